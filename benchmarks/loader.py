"""Does the loader keep up? Sequences a second that one thread reads, and what a step takes.

    python benchmarks/loader.py --out benchmarks/records/loader

Batches of `python-docs` with the marks of its rare words, read without the threads that read ahead in training, put on
the device; beside it the step of BERT-A on this machine that would take them. Run it on an idle machine: the load is
recorded.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import grain
import numpy as np
from step_time import VARIANTS, make, of_size, timed
from study import command, machine, table, write_record

from jaxpretrain.config import sized
from jaxpretrain.data.batches import train_dataset
from jaxpretrain.data.build import prepare
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.training import sharding
from jaxpretrain.training.heap import run_in_this_thread

IN_THIS_THREAD = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
Seconds = dict[str, list[float]]
NEEDS = {  # layers, width, heads, batch, length of the step that takes them
    "2 × 128": (2, 128, 2, 32, 128),
    "6 × 256": (6, 256, 4, 16, 128),
    "6 × 256, T 512": (6, 256, 4, 4, 512),
}


def measured(corpus: Corpus, layers: int, hidden: int, heads: int, batch: int, length: int, rounds: int) -> Seconds:
    """Seconds to read a batch and put it on the device, thirty a round, and of the steps that take it."""
    fields = {"layers": layers, "hidden": hidden, "heads": heads, "batch": batch, "length": length}
    variant = make(of_size(VARIANTS["BERT-A"], **fields), corpus.vocab_size, 1000)
    on_rows = variant.batch["tokens"].sharding
    dataset = train_dataset(corpus, batch_size=batch, sequence_length=length, seed=0)
    batches = iter(dataset.to_iter_dataset(IN_THIS_THREAD))

    read = timed(lambda: sharding.put_batch(next(batches), on_rows), 30 * rounds)
    return {"read": read, "step": timed(variant.take_step, rounds)}


def main() -> None:
    """Measures, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="steps; batches are read thirty times as often")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/loader"))
    options = parser.parse_args()
    run_in_this_thread()
    load, found, rows = os.getloadavg()[0], {}, []
    config = sized("tiny")
    corpus = prepare(config.data, replace(config.notes, enabled=True), progress=True)
    for name, need in NEEDS.items():
        found[name] = measured(corpus, *need, options.rounds)
        *_, batch, length = need
        reads, needs = (batch / np.median(found[name][what]) for what in ("read", "step"))
        row = [f"{batch} × {length}", f"{reads:,.0f}", f"{1e-6 * length * reads:,.1f}", f"{needs:,.0f}"]
        rows.append([name, *row, f"{reads / needs:,.0f}"])
    about = (
        f"Medians over {30 * options.rounds} batches and {options.rounds} steps. {machine()}; load before {load:.2f}."
    )
    head = ["size", "batch", "sequences read a second", "million tokens", "sequences a step takes a second", "ratio"]
    body = f"{table(head, rows)}\n\n`{command()}`"
    write_record(
        options.out, "Does the loader keep up?", about, body, {"loader.json": json.dumps(found, indent=1) + "\n"}
    )


if __name__ == "__main__":
    main()

"""What each method costs: step times over plain BERT, interleaved in one process.

    python benchmarks/step_time.py [--layers 6 --hidden 256 --heads 4 --length 128 --batch 16 --rounds 20]
    taskset -c 0 python benchmarks/step_time.py --study --notes 5067 --out benchmarks/records/methods-tiny

Prints a Markdown table and, with --out FOLDER, writes it there with a JSON file beside it. Ratios are medians over
rounds of (this step's time / plain BERT's in the same round); run it on an idle machine: the load is recorded.
"""

import argparse
import json
import os
import runpy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import methods
import numpy as np
from study import command, machine, table

from jaxpretrain.config import Config, sized, validate
from jaxpretrain.objectives import build
from jaxpretrain.training import flops, sharding
from jaxpretrain.training.heap import keep_freed_memory, run_in_this_thread
from jaxpretrain.training.optimizer import optimizer as make_optimizer
from jaxpretrain.training.programs import state_program, step_program

VARIANTS: dict[str, dict[str, Any]] = {
    "BERT-A": {"model.position": "absolute"},
    "BERT-R": {"model.position": "relative"},
    "TUPE-A": {"model.position": "tupe_a"},
    "TUPE-R": {"model.position": "tupe_r"},
    "BERT-A + notes": {"model.position": "absolute", "notes.enabled": True},
    "ELECTRA": {"model.position": "absolute", "objective.name": "electra"},
    "MC-BERT": {"model.position": "absolute", "objective.name": "mcbert"},
    "TUPE-R + notes + MC-BERT": {
        "model.position": "tupe_r",
        "notes.enabled": True,
        "objective.name": "mcbert",
    },
}
SIZE = ("layers", "hidden", "heads", "length", "batch", "vocab")


@dataclass
class Variant:
    """A compiled step and its state."""

    step: Any
    state: Any
    batch: Any
    flops: int

    def take_step(self) -> Any:
        """Goes on by one step and returns its metrics, which may not be there yet."""
        self.state, metrics = self.step(self.state, self.batch)
        return metrics


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The same with other values, by dotted names."""
    for name, value in changes.items():
        room, _, field = name.partition(".")
        setattr(getattr(config, room), field, value)
    validate(config)
    return config


def of_size(changes: Mapping[str, Any], *, layers: int, hidden: int, heads: int, batch: int, length: int) -> Config:
    """A variant's config at the size asked for."""
    size = {
        "model.layers": layers,
        "model.hidden": hidden,
        "model.heads": heads,
        "model.ffn": 4 * hidden,
        "data.sequence_length": length,
        "train.batch_size": batch,
    }
    return changed(sized("small"), size | dict(changes))


def make(config: Config, vocab: int, notes: int) -> Variant:
    """Builds one variant, on random tokens with four rare words a sequence; `notes`: rows of the table."""
    length, batch_size = config.data.sequence_length, config.train.batch_size
    mesh = sharding.make_mesh(config)
    objective, optimizer = build(config, vocab), make_optimizer(config)
    init, like = state_program(config, objective, optimizer, mesh, notes)
    state = init(0)
    random = np.random.default_rng(0)
    words = np.zeros((batch_size, length), np.int32)
    for start in range(4, length - 4, max(8, length // 4)):
        rows = 2 * (1 + random.integers(0, notes, batch_size))
        words[:, start], words[:, start + 1] = rows + 1, rows
    host_batch = {
        "tokens": random.integers(6, vocab, (batch_size, length)).astype(np.int32),
        "rows": np.arange(batch_size, dtype=np.int32),
        "words": words,
    }
    batch = sharding.put_batch(host_batch, sharding.batch_sharding(mesh))
    compiled = step_program(config, objective, optimizer, mesh, like).lower(like, batch).compile()
    keep_freed_memory()  # as training does
    return Variant(compiled, state, batch, flops.step_flops(config, vocab, like.params, batch))


def timed(run: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of some calls, after two to warm up."""
    taken = []
    for _ in range(times + 2):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - begin)
    return taken[2:]


def measure(variants: dict[str, Variant], rounds: int) -> dict[str, list[float]]:
    """Seconds per step, one list entry a round; two steps each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 2):
        for name, variant in variants.items():
            begin = time.perf_counter()
            jax.block_until_ready(variant.take_step())
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--notes", type=int, default=200_000, help="rows of the note table")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--study", action="store_true", help="the networks of methods.py, in its setting, instead")
    parser.add_argument("--only", nargs="*", metavar="STEP", help="besides BERT-A")
    parser.add_argument("--out", type=Path, help="folder for step_time.md and step_time.json")
    options = parser.parse_args()
    run_in_this_thread()

    if options.study:
        if given := [f"--{name}" for name in SIZE if getattr(options, name) != parser.get_default(name)]:
            parser.error(f"{', '.join(given)}: --study has its own")
        bert = runpy.run_path("configs/bert.py")["get_config"]
        configs = {name: changed(bert("tiny"), methods.SETTING | changes) for name, changes in methods.METHODS.items()}
    else:
        size = {name: getattr(options, name) for name in ("layers", "hidden", "heads", "batch", "length")}
        configs = {name: of_size(changes, **size) for name, changes in VARIANTS.items()}
    if unknown := {*(options.only or ())} - {*configs}:
        parser.error(f"--only: no step {', '.join(sorted(unknown))}; there are {', '.join(configs)}")
    names = [name for name in configs if name == "BERT-A" or not options.only or name in options.only]
    size = configs["BERT-A"]
    vocab = size.data.vocab_size if options.study else options.vocab
    load = os.getloadavg()[0]
    seconds = measure({name: make(configs[name], vocab, options.notes) for name in names}, options.rounds)
    plain = np.array(seconds["BERT-A"])
    rows = {
        name: {"ms": 1e3 * float(np.median(s)), "ratio": float(np.median(np.array(s) / plain))}
        for name, s in seconds.items()
    }
    lines = [[name, f"{row['ms']:.1f}", f"{row['ratio']:.3f}"] for name, row in rows.items()]
    found = table(["step", "ms", "over BERT-A"], lines)
    device = jax.devices()[0].device_kind
    about = (
        f"{size.model.layers} × {size.model.hidden}, T {size.data.sequence_length}, batch {size.train.batch_size}, "
        f"{vocab:,} pieces, {options.notes:,} notes. {machine()}; {device}, "
        f"{len(os.sched_getaffinity(0))} cores used, load before {load:.2f}; {options.rounds} rounds."
    )
    print(f"{about}\n\n{found}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "step_time.md").write_text(f"{about}\n\n`{command()}`\n\n{found}\n")
        record = {"load": load, "rows": rows, "seconds": seconds, "command": command()}
        record |= {"setting": methods.SETTING} if options.study else {}
        (options.out / "step_time.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What a checkpoint costs: how long a run waits for it, how long it is written beside the steps, and how it slows them.

    python benchmarks/checkpoint.py --out benchmarks/records/checkpoint

The run waits while the state is copied, so that the next step may overwrite it, and goes on while the copy is written.
Run it on an idle machine: the load is recorded.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from against_pytorch import SIZES
from roofline import variant_of
from study import command, machine, table, write_record

from jaxpretrain.training.checkpoint import Checkpointer
from jaxpretrain.training.heap import run_in_this_thread


def measured(size: str, saves: int, steps: int) -> dict[str, list[float]]:
    """Seconds of steps with nothing beside, of the calls of `save`, of the steps while one is written, and of these."""
    variant = variant_of(size, "BERT-A", 1)
    found: dict[str, list[float]] = {"alone": [], "waited": [], "beside": [], "written": []}

    def step() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(variant.take_step())
        return time.perf_counter() - begin

    for _ in range(2):
        step()
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Checkpointer(Path(name) / "checkpoints", keep=1, keep_best=False)
        for number in range(saves + 1):  # the first save also makes threads and finds its way: left out
            alone = [step() for _ in range(steps)]
            begin = time.perf_counter()
            checkpoints.save(number + 1, variant.state, {})
            waited, beside = time.perf_counter() - begin, []
            while not checkpoints.steps() or checkpoints.steps()[-1] <= number:
                beside.append(step())
            written = time.perf_counter() - begin
            checkpoints.wait()
            if number:
                found["alone"] += alone
                found["waited"].append(waited)
                found["beside"] += beside
                found["written"].append(written)
        checkpoints.close()
    return found | {"megabytes": [sum(x.nbytes for x in jax.tree.leaves(variant.state)) / 1e6]}


def main() -> None:
    """Measures, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="between two saves")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/checkpoint"))
    options = parser.parse_args()
    run_in_this_thread()
    load = os.getloadavg()[0]
    found = {size: measured(size, options.saves, options.steps) for size in options.sizes}
    rows = []
    for size, cost in found.items():
        alone, waited, beside, written = (np.median(cost[name]) for name in ("alone", "waited", "beside", "written"))
        row = [f"{cost['megabytes'][0]:,.0f}", f"{1e3 * alone:,.0f}", f"{1e3 * waited:,.0f}", f"{waited / alone:.2f}"]
        rows.append([size, *row, f"{written:.2f}", f"{beside / alone:.2f}"])
    about = (
        f"Medians over {options.saves} checkpoints of BERT-A's state, {options.steps} steps between them, on a local "
        f"disk. {machine()}; load before {load:.2f}."
    )
    head = ["size", "MB", "step, ms", "waited, ms", "in steps", "committed after, s", "a step beside the writing"]
    body = f"{table(head, rows)}\n\n`{command()}`"
    files = {"checkpoint.json": json.dumps(found, indent=1) + "\n"}
    write_record(options.out, "What a checkpoint costs", about, body, files)


if __name__ == "__main__":
    main()

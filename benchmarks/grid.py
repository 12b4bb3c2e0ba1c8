"""A fine-tuning grid of 4 rates x 5 seeds as one program, against its 20 trials one after another.

    python benchmarks/grid.py --run runs/tupe-tiny --task RTE --data-dir GLUE --out benchmarks/records/grid

Both in one process, compiled before the clock starts, in turns; a trial is cut to a few hundred rows and two epochs.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from study import command, machine, table, write_record

from jaxpretrain.config import FinetuneConfig, max_positions
from jaxpretrain.evaluation.finetuning import Finetuner, Grid, Result
from jaxpretrain.evaluation.labelled import bucketed, sequence_of_buckets
from jaxpretrain.evaluation.tasks import Examples, load
from jaxpretrain.evaluation.trained import load_run


def first(examples: Examples, count: int) -> Examples:
    """The first rows."""
    labels = None if examples.labels is None else examples.labels[:count]
    return replace(examples, ids=examples.ids[:count], texts=examples.texts[:count], labels=labels)


def main() -> None:
    """Measures, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="workdir of a pre-training run")
    parser.add_argument("--task", default="RTE")
    parser.add_argument("--data-dir", default="", help="folder in GLUE's layout; empty: TensorFlow Datasets")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/grid"))
    options = parser.parse_args()

    run, data = load_run(options.run), load(options.task, options.data_dir)
    rates = (1e-4, 2e-4, 3e-4, 5e-4)
    config = FinetuneConfig(init_from=options.run, task=options.task, learning_rates=rates, epochs=2)
    trials = [(rate, seed) for rate in rates for seed in range(config.seeds)]
    limit = min(config.max_length, max_positions(run.config))

    def rows(examples: Examples) -> list:
        return bucketed(examples, run.tokenizer, [], limit, data.task)

    train = rows(first(data.train, options.rows))
    dev = {name: (rows(examples), examples) for name, examples in data.dev.items()}
    steps = config.epochs * len(sequence_of_buckets([len(bucket) for bucket in train], config.batch_size, 0))
    finetuner = Finetuner(config, run.config, run.tokenizer.vocab_size, data.task, steps)
    encoder = run.params["encoder"]
    grids = {"one program": Grid(finetuner, train, dev, encoder, None, len(trials))}
    grids["one after another"] = Grid(finetuner, train, dev, encoder, None, 1)

    def go(name: str) -> tuple[float, list[Result]]:
        """Seconds and results of all trials."""
        grid, results = grids[name], []
        begin = time.perf_counter()
        for start in range(0, len(trials), grid.at_once):
            results += grid.run(trials[start : start + grid.at_once])[0]
        return time.perf_counter() - begin, results

    seconds: dict[str, list[float]] = {name: [] for name in grids}
    results: dict[str, list[Result]] = {}
    for grid in grids.values():  # compiles
        grid.run(trials[: grid.at_once])
    for _ in range(options.turns):
        for name in grids:
            taken, results[name] = go(name)
            seconds[name].append(taken)
    together, alone = (
        np.array([next(iter(r.scores.values()))[data.task.metrics[0]] for r in results[name]]) for name in grids
    )
    differing = float(np.abs(together - alone).max())
    best = {name: min(values) for name, values in seconds.items()}
    ratio = best["one after another"] / best["one program"]
    device = jax.devices()[0].device_kind
    about = (
        f"{data.task.name}, {options.rows} rows, 2 epochs, 20 trials; encoder {run.config.model.layers} x "
        f"{run.config.model.hidden}. {len(jax.devices())} x {device}, {machine()}."
    )
    body = (
        table(["", "seconds, each turn"], [[n, ", ".join(f"{s:.1f}" for s in v)] for n, v in seconds.items()])
        + f"\n\nOne after another takes {ratio:.2f} times as long as one program. Largest difference of a dev score: "
        f"{differing:.4f}.\n\n`{command(run='RUN', data_dir='GLUE')}`"
    )
    record = {"seconds": seconds, "ratio": ratio, "largest_difference": differing}
    write_record(options.out, "A grid as one program", about, body, {"grid.json": json.dumps(record, indent=1) + "\n"})


if __name__ == "__main__":
    main()

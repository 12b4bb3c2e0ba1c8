"""What each method costs: step times over plain BERT, interleaved in one process.

    python benchmarks/step_time.py [--layers 6 --hidden 256 --heads 4 --length 128 --batch 16 --rounds 20]

Prints a Markdown table and, with --out FOLDER, writes it there with a JSON file beside it. Ratios are medians over
rounds of (this step's time / plain BERT's in the same round); run it on an idle machine: the load is recorded.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpretrain.config import Config, sized, validate
from jaxpretrain.objectives import build
from jaxpretrain.training import flops, sharding
from jaxpretrain.training.heap import keep_freed_memory, run_in_this_thread
from jaxpretrain.training.optimizer import optimizer as make_optimizer
from jaxpretrain.training.state import init_state
from jaxpretrain.training.step import train_step

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


@dataclass
class Variant:
    """A compiled step and its state."""

    step: Any
    state: Any
    batch: Any
    flops: int


def make(changes: dict[str, Any], options: argparse.Namespace) -> Variant:
    """Builds one variant at the size asked for, on random tokens with four rare words a sequence."""
    config: Config = sized("small")
    model, data, train = config.model, config.data, config.train
    model.layers, model.hidden, model.heads, model.ffn = (
        options.layers,
        options.hidden,
        options.heads,
        4 * options.hidden,
    )
    data.sequence_length, train.batch_size = options.length, options.batch
    for name, value in changes.items():
        room, _, field = name.partition(".")
        setattr(getattr(config, room), field, value)
    validate(config)
    mesh = sharding.make_mesh(config)
    objective, optimizer = build(config, options.vocab), make_optimizer(config)
    init = partial(init_state, objective=objective, optimizer=optimizer, config=config, note_rows=options.notes)
    shapes = jax.eval_shape(init, 0)
    places = sharding.state_sharding(mesh, shapes)
    state = jax.jit(init, out_shardings=places)(0)
    random = np.random.default_rng(0)
    words = np.zeros((options.batch, options.length), np.int32)
    for start in range(4, options.length - 4, max(8, options.length // 4)):
        rows = 2 * (1 + random.integers(0, options.notes, options.batch))
        words[:, start], words[:, start + 1] = rows + 1, rows
    host_batch = {
        "tokens": random.integers(6, options.vocab, (options.batch, options.length)).astype(np.int32),
        "rows": np.arange(options.batch, dtype=np.int32),
        "words": words,
    }
    batch = sharding.put_batch(host_batch, sharding.batch_sharding(mesh))
    step = partial(train_step, objective=objective, optimizer=optimizer, config=config, mesh=mesh)
    compiled = jax.jit(step, out_shardings=(places, None), donate_argnums=0).lower(state, batch).compile()
    keep_freed_memory()  # as training does
    return Variant(compiled, state, batch, flops.step_flops(config, options.vocab, shapes.params, batch))


def measure(variants: dict[str, Variant], rounds: int) -> dict[str, list[float]]:
    """Seconds per step, one list entry a round; two steps each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 2):
        for name, variant in variants.items():
            begin = time.perf_counter()
            variant.state, metrics = variant.step(variant.state, variant.batch)
            jax.block_until_ready(metrics)
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
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="besides BERT-A")
    parser.add_argument("--out", type=Path, help="folder for step_time.md and step_time.json")
    options = parser.parse_args()
    run_in_this_thread()

    names = [name for name in VARIANTS if name == "BERT-A" or not options.only or name in options.only]
    load = os.getloadavg()[0]
    seconds = measure({name: make(VARIANTS[name], options) for name in names}, options.rounds)
    plain = np.array(seconds["BERT-A"])
    rows = {
        name: {"ms": 1e3 * float(np.median(s)), "ratio": float(np.median(np.array(s) / plain))}
        for name, s in seconds.items()
    }
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    table = "\n".join(
        ["| step | ms | over BERT-A |", "| --- | --- | --- |"]
        + [f"| {name} | {row['ms']:.1f} | {row['ratio']:.3f} |" for name, row in rows.items()]
    )
    about = (
        f"{options.layers} × {options.hidden}, T {options.length}, batch {options.batch}, {options.vocab:,} pieces, "
        f"{options.notes:,} notes; {jax.device_count()} × {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}, jax {versions['jax']}; "
        f"load before the run {load:.2f}; {options.rounds} rounds"
    )
    print(f"{about}\n\n{table}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        command = "python benchmarks/step_time.py " + " ".join(
            f"--{name} {value}" for name, value in vars(options).items() if name not in ("out", "only")
        )
        command += "".join([" --only", *(f" '{name}'" for name in options.only)]) if options.only else ""
        (options.out / "step_time.md").write_text(f"{about}\n\n`{command}`\n\n{table}\n")
        record = {"options": {k: str(v) for k, v in vars(options).items() if k != "out"}, "versions": versions}
        record |= {"load": load, "rows": rows, "seconds": seconds, "command": command}
        (options.out / "step_time.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

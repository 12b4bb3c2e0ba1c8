"""The memory of a training step as length, depth, vocabulary, notes and devices grow, read off the compiled program.

    python benchmarks/memory.py --out benchmarks/records/memory

Nothing is trained and nothing allocated: XLA says what it would need. Eight devices are made of one.
"""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax  # after the flags
import numpy as np
from study import command, machine, table, write_record
from tqdm import tqdm

from jaxpretrain.config import sized, validate
from jaxpretrain.objectives import build
from jaxpretrain.training import sharding
from jaxpretrain.training.optimizer import optimizer as make_optimizer
from jaxpretrain.training.programs import state_program, step_program

BASE = {
    "model.position": "tupe_r",
    "model.layers": 6,
    "model.hidden": 256,
    "model.heads": 4,
    "model.ffn": 1024,
    "model.layer_loop": "scan",  # as on accelerators
    "data.sequence_length": 128,
    "train.batch_size": 16,
}
ALL = {"notes.enabled": True, "objective.name": "mcbert"}
FORMS = {
    "BERT-A": {"model.position": "absolute"},
    "BERT-A, blockwise": {"model.position": "absolute", "model.attention": "blockwise"},
    "TUPE-A": {"model.position": "tupe_a"},
    "TUPE-A, blockwise": {"model.position": "tupe_a", "model.attention": "blockwise"},
    "TUPE-R": {},
    "TUPE-R, blockwise": {"model.attention": "blockwise"},
}
COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
ARRAY = re.compile(r"(f32|bf16|s32|u32|pred|f16|s8|u8)\[([\d,]*)\]")
PARTS = ("state", "besides", "moved")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}


def measure(
    fields: dict[str, Any] | None = None, vocab: int = 32_768, notes: int = 200_000, devices: int = 1
) -> dict[str, float]:
    """MB a device of one step: the state, what is needed besides it, and what collectives make."""
    config = sized("small")
    for name, value in (BASE | (fields or {})).items():
        room, _, field = name.partition(".")
        setattr(getattr(config, room), field, value)
    validate(config)
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    objective, optimizer = build(config, vocab), make_optimizer(config)
    _, state = state_program(config, objective, optimizer, mesh, notes)
    rows = sharding.batch_sharding(mesh)
    batch_size, length = config.train.batch_size, config.data.sequence_length
    array = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32, sharding=rows)  # noqa: E731
    batch = {"tokens": array(batch_size, length), "words": array(batch_size, length), "rows": array(batch_size)}
    compiled = step_program(config, objective, optimizer, mesh, state).lower(state, batch).compile()
    memory = compiled.memory_analysis()
    moved = sum(
        BYTES[kind] * int(np.prod([int(n) for n in shape.split(",") if n]))
        for made, _ in COLLECTIVE.findall(compiled.as_text())
        for kind, shape in ARRAY.findall(made)
    )
    return {
        "state": memory.argument_size_in_bytes / 1e6,
        "besides": memory.temp_size_in_bytes / 1e6,
        "moved": moved / 1e6,
    }


def main() -> None:
    """Compiles, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/memory"))
    options = parser.parse_args()
    lengths, batch = (128, 512, 1024, 2048, 4096), 2
    plan: dict[str, list[tuple[str, dict[str, Any]]]] = {
        f"length: {name}": [
            (f"{T:,}", {"fields": form | {"data.sequence_length": T, "train.batch_size": batch}}) for T in lengths
        ]
        for name, form in FORMS.items()
    }
    plan["layers"] = [(str(n), {"fields": {"model.layers": n}}) for n in (2, 6, 12, 24)]
    plan["layers, remat"] = [(str(n), {"fields": {"model.layers": n, "model.remat": True}}) for n in (2, 6, 12, 24)]
    plan["pieces"] = [(f"{n:,}", {"vocab": n}) for n in (8_192, 32_768, 131_072)]
    plan["pieces, MC-BERT"] = [
        (f"{n:,}", {"vocab": n, "fields": {"objective.name": "mcbert"}}) for n in (8_192, 32_768, 131_072)
    ]
    plan["notes"] = [
        (f"{n:,}", {"notes": n, "fields": {"notes.enabled": True}}) for n in (10_000, 100_000, 1_000_000, 10_000_000)
    ]
    plan["devices, 16 sequences each, all methods"] = [
        (str(n), {"devices": n, "fields": ALL | {"train.batch_size": 16 * n}}) for n in (1, 2, 4, 8)
    ]
    plan["devices, fsdp and sharded notes"] = [
        (
            str(n),
            {
                "devices": n,
                "fields": ALL | {"train.batch_size": 16 * n, "sharding.fsdp": n, "notes.sharded": True},
            },
        )
        for n in (1, 2, 4, 8)
    ]
    with tqdm(total=sum(map(len, plan.values())), unit="program") as bar:
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name, cases in plan.items():
            found[name] = {}
            for value, arguments in cases:
                found[name][value] = measure(**arguments)
                bar.update()
    by_length = [
        [name, *(f"{found[f'length: {name}'][f'{T:,}']['besides'] / batch:,.0f}" for T in lengths)] for name in FORMS
    ]
    others = [
        [name, ", ".join(found[name]), *(" / ".join(f"{x[part]:,.0f}" for x in found[name].values()) for part in PARTS)]
        for name in plan
        if not name.startswith("length")
    ]
    about = (
        "6 × 256, T 128, 16 sequences, 32,768 pieces, TUPE-R, float32, where not said otherwise; MB of one device by "
        f"XLA's account of the compiled step. {machine()}."
    )
    body = (
        "By length: MB per sequence that a step needs besides its state.\n\n"
        f"{table(['positions', *(f'T {T:,}' for T in lengths)], by_length)}\n\n"
        "By the rest: the state; what a step needs besides; what collectives bring to a device.\n\n"
        f"{table(['what grows', 'to', 'state', 'besides', 'collectives'], others)}\n\n`{command()}`"
    )
    write_record(options.out, "Memory of a step", about, body, {"memory.json": json.dumps(found, indent=1) + "\n"})


if __name__ == "__main__":
    main()

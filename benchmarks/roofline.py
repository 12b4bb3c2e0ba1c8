"""What bounds a step: its FLOPs and bytes against the machine's own matrix product and memory, as a roofline.

    python benchmarks/roofline.py --out benchmarks/records/roofline

Everything is measured in one process. Bytes are XLA's account of what the compiled step reads and writes, caches left
aside, so a point may lie above the slanted roof. Run it on an idle machine: the load is recorded.
"""

import argparse
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from against_pytorch import SIZES
from matplotlib.figure import Figure
from step_time import VARIANTS, Variant, make, of_size, timed
from study import command, machine, table, write_record

from jaxpretrain.evaluation.pictures import png
from jaxpretrain.training import flops
from jaxpretrain.training.heap import run_in_this_thread

METHODS = ("BERT-A", "TUPE-R", "MC-BERT")
COLOURS = {"BERT-A": "#000000", "TUPE-R": "#0072b2", "MC-BERT": "#d55e00"}
MARKS = {"2 × 128": "o", "6 × 256": "s", "12 × 768": "^"}


def bandwidth() -> float:
    """Bytes a second, read and written, of an addition to an array of 256 MB in its place."""
    x = jnp.zeros(64 << 20, jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def run() -> object:
        nonlocal x
        x = add(x)
        return x

    return 2 * x.nbytes / float(np.median(timed(run, 8)))


def variant_of(size: str, method: str, notes: int) -> Variant:
    """A method's step at one of `SIZES`, 128 tokens; `notes`: rows of the table."""
    layers, hidden, heads, batch, vocab = SIZES[size]
    shape = {"layers": layers, "hidden": hidden, "heads": heads, "batch": batch, "length": 128}
    return make(of_size(VARIANTS[method], **shape), vocab, notes)


def measured(size: str, method: str, rounds: int) -> dict[str, float]:
    """One step: its seconds, the FLOPs of its matrix products, and the bytes that it moves."""
    variant = variant_of(size, method, 1000)
    moved = variant.step.cost_analysis()["bytes accessed"]
    return {"seconds": float(np.median(timed(variant.take_step, rounds))), "flops": variant.flops, "bytes": moved}


def drawn(found: dict[str, dict[str, dict[str, float]]], peak: float, bytes_per_second: float) -> Figure:
    """FLOP/s over FLOPs a byte, both logarithmic, under the two roofs."""
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    x = np.geomspace(0.5, 200, 100)
    axes.plot(x, np.minimum(peak, x * bytes_per_second) / 1e9, color="#999999", linewidth=1.5)
    axes.annotate(
        "matrix product", (x[-1], peak / 1e9), (0, 4), textcoords="offset points", ha="right", color="#666666"
    )
    for size, methods in found.items():
        for method, cost in methods.items():
            at = cost["flops"] / cost["bytes"], cost["flops"] / cost["seconds"] / 1e9
            axes.plot(*at, MARKS[size], color=COLOURS[method], label=f"{size}, {method}", markersize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs per byte (XLA's account)")
    axes.set_ylabel("GFLOP per second")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    return figure


def main() -> None:
    """Measures, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/roofline"))
    options = parser.parse_args()
    run_in_this_thread()
    load, peak, moves = os.getloadavg()[0], flops.peak_flops(), bandwidth()
    found = {size: {m: measured(size, m, options.rounds) for m in METHODS} for size in options.sizes}
    rows = [
        [
            f"{size}, {method}",
            f"{1e3 * cost['seconds']:,.0f}",
            f"{cost['flops'] / 1e9:,.1f}",
            f"{cost['bytes'] / 1e9:,.2f}",
            f"{cost['flops'] / cost['bytes']:.1f}",
            f"{cost['flops'] / cost['seconds'] / peak:.0%}",
        ]
        for size, methods in found.items()
        for method, cost in methods.items()
    ]
    about = (
        f"Steps of sequences of 128 tokens with dropout, float32. Matrix product {peak / 1e9:,.0f} GFLOP/s, memory "
        f"{moves / 1e9:,.1f} GB/s. {machine()}; load before {load:.2f}, after {os.getloadavg()[0]:.2f}."
    )
    head = ["step", "ms", "GFLOP", "GB moved", "FLOPs a byte", "of the matrix product"]
    body = f"{table(head, rows)}\n\n![roofline](roofline.png)\n\n`{command()}`"
    numbers = {"peak": peak, "bytes_per_second": moves, "load": load, "steps": found}
    files = {"roofline.json": json.dumps(numbers, indent=1) + "\n", "roofline.png": png(drawn(found, peak, moves))}
    write_record(options.out, "What bounds a step", about, body, files)


if __name__ == "__main__":
    main()

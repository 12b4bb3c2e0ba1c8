"""Does a step wait for the host? A trace of training: when the device computes, and what the host does meanwhile.

    python benchmarks/timeline.py --out benchmarks/records/timeline

Runs `python -m jaxpretrain.train --profile`, reads the trace and draws it. Run it on an idle machine: the load is
recorded.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from study import command, machine, write_record

from jaxpretrain.evaluation.pictures import png

ROOM = {  # what is drawn: how its events begin
    "device: a step": "ThunkExecutor::Execute (wait for completion)",
    "host: a step is sent off": "train",
    "host: waits for the step before": "np.asarray(jax.Array)",
    "host: batches are read ahead": "Prefetch._getitem",
}


def spans(folder: Path) -> dict[str, np.ndarray]:
    """Begin and end in ms, [events, 2], of what is drawn."""
    [path] = folder.glob("plugins/profile/*/*.trace.json.gz")
    events = [
        event for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] if event.get("ph") == "X"
    ]
    found = {}
    for what, name in ROOM.items():
        times = np.array(sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == name)) / 1e3
        found[what] = times[times[:, 1] - times[:, 0] > 0.01]
    return found


def drawn(found: dict[str, np.ndarray], steps: int) -> Figure:
    """A row for each, of some steps in the middle."""
    device = found["device: a step"]
    first = device[len(device) // 2 - steps // 2, 0]
    last = device[len(device) // 2 + steps // 2, 0]
    figure = Figure(figsize=(9, 2.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    colours = ("#0072b2", "#d55e00", "#999999", "#009e73")
    for row, (times, colour) in enumerate(zip(found.values(), colours, strict=True)):
        here = times[(times[:, 1] > first) & (times[:, 0] < last)] - first
        axes.broken_barh([(a, b - a) for a, b in here], (-row - 0.4, 0.8), color=colour, edgecolor="white")
    axes.set_yticks(-np.arange(len(found)), list(found))
    axes.set_xlim(0, last - first)
    axes.set_xlabel("milliseconds")
    return figure


def main() -> None:
    """Traces, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tupe.py")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/timeline"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        arguments = ["--config", options.config, f"--config.train.steps={options.steps + 20}", "--config.eval.every=0"]
        started = [sys.executable, "-m", "jaxpretrain.train", *arguments, f"--profile={options.steps}"]
        subprocess.run([*started, "--workdir", f"{name}/run"], check=True)
        found = spans(Path(name) / "run/profile")
    device = found["device: a step"]
    gaps = device[1:, 0] - device[:-1, 1]
    busy = float((device[:, 1] - device[:, 0]).sum() / (device[-1, 1] - device[0, 0]))
    about = (
        f"`{options.config}`, {len(device)} steps: the device computes {busy:.1%} of the time. Between a step's end "
        f"and the next one's begin: median {1e3 * np.median(gaps):,.0f} µs, at most {1e3 * gaps.max():,.0f} µs, of "
        f"steps of {np.median(device[:, 1] - device[:, 0]):.0f} ms. {machine()}; load before {load:.2f}."
    )
    body = f"![what device and host do](timeline.png)\n\n`{command()}`"
    files = {
        "timeline.png": png(drawn(found, 6)),
        "spans.json": json.dumps({k: v.tolist() for k, v in found.items()}) + "\n",
    }
    write_record(options.out, "Does a step wait for the host?", about, body, files)


if __name__ == "__main__":
    main()

"""A long run of a very small network, watched from outside: memory, threads, open files and step time must stay flat.

    python benchmarks/soak.py --out benchmarks/records/soak

All three methods; every cadence is exercised: logging, evaluation, checkpoints by steps and by time. Linux alone
(`/proc`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from study import command, machine, table, write_record

from jaxpretrain.evaluation.pictures import png
from jaxpretrain.training import metrics

SETTINGS = {
    "data.sequence_length": 16,
    "data.vocab_size": 512,
    "model.layers": 1,
    "model.hidden": 16,
    "model.heads": 2,
    "model.ffn": 32,
    "train.batch_size": 4,
    "train.log_every": 50,
    "eval.every": 2_000,
    "eval.examples": 64,
    "checkpoint.every_steps": 1_500,
    "checkpoint.every_minutes": 0.5,
}
WATCHED = {  # what, unit
    "memory": "MiB, resident",
    "anonymous": "MiB, of that not backed by files",
    "threads": "",
    "files": "open",
}
EVERY = 2.0  # seconds between looks
WARM = 0.1  # share of the run at its beginning that is not judged: caches fill


def look(pid: int) -> dict[str, float]:
    """What a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    mib = {name: int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")}
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return {"memory": mib["VmRSS"], "anonymous": mib["RssAnon"], "threads": int(status["Threads"]), "files": files}


def last_step(workdir: Path) -> int:
    """The last one logged, by the end of the file alone."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().splitlines()
    steps = [json.loads(line)["step"] for line in lines[1:] if line.endswith(b"}")]
    return max(steps, default=0)


def watch(arguments: list[str], workdir: Path) -> dict[str, np.ndarray]:
    """Trains, and looks every two seconds; [n] each."""
    process = subprocess.Popen([sys.executable, "-m", "jaxpretrain.train", *arguments, "--workdir", str(workdir)])
    rows = []
    while process.poll() is None:
        time.sleep(EVERY)
        if step := last_step(workdir):
            try:
                rows.append({"step": step} | look(process.pid))
            except (OSError, KeyError):  # it has just ended
                break
    if process.wait():
        sys.exit(f"the run failed with exit code {process.returncode}")
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def picture(seen: dict[str, np.ndarray], steps: np.ndarray, step_ms: np.ndarray) -> Figure:
    """Each against steps."""
    figure = Figure((7, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    axes[0].plot(seen["step"], seen["memory"], label="resident")
    axes[0].plot(seen["step"], seen["anonymous"], label="not backed by files")
    axes[0].set(ylabel="memory (MiB)", ylim=(0, None))
    axes[0].legend()
    axes[1].plot(seen["step"], seen["threads"], label="threads")
    axes[1].plot(seen["step"], seen["files"], label="open files")
    axes[1].set(ylabel="number", ylim=(0, None))
    axes[1].legend()
    axes[2].plot(steps, step_ms, ".", markersize=1)
    axes[2].set(ylabel="step (ms, log)", yscale="log", xlabel="steps")
    return figure


def main() -> None:
    """Runs it, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/soak"))
    options = parser.parse_args()
    fields = [f"--config.{name}={value}" for name, value in (SETTINGS | {"train.steps": options.steps}).items()]
    arguments = ["--config", "configs/tupe_tnf_mcbert.py", *fields]
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        begun = time.perf_counter()
        seen = watch(arguments, workdir)
        seconds = time.perf_counter() - begun
        lines = list(metrics.read(workdir))
        kept = len(list((workdir / "checkpoints").iterdir()))
    steps = np.array([line["step"] for line in lines if "speed/step_ms" in line])
    step_ms = np.array([line["speed/step_ms"] for line in lines if "speed/step_ms" in line])

    rows = []
    series = [(name, unit, seen["step"], seen[name]) for name, unit in WATCHED.items()]
    for name, unit, at, values in [*series, ("step time", "ms, median", steps, step_ms)]:
        judged = at > WARM * options.steps
        first, last = (np.median(part) for part in np.array_split(values[judged], 10)[::9])
        label = f"{name} ({unit})" if unit else name
        rows.append([label, f"{first:,.2f}", f"{last:,.2f}", f"{100 * (last / first - 1):+.1f} %"])
    evaluations = sum("eval/mlm_loss" in line for line in lines)
    about = (
        f"{options.steps:,} steps of one layer × 16 with TUPE-R, notes and MC-BERT in {seconds / 60:.0f} minutes; "
        f"{len(steps):,} lines of metrics, {evaluations} evaluations, a checkpoint every 1,500 steps and every half "
        f"minute, {kept} folders of them at the end. {machine()}."
    )
    head = ["", "second tenth of the run", "last tenth", "change"]
    body = (
        f"{table(head, rows)}\n\n![memory, threads and files, and step time over the run](soak.png)\n\n"
        f"`{command()}`, which runs `python -m jaxpretrain.train {' '.join(arguments)}`"
    )
    curves = {name: values.tolist() for name, values in seen.items()}
    files = {"soak.json": json.dumps(curves) + "\n", "soak.png": png(picture(seen, steps, step_ms))}
    write_record(options.out, "Soak", about, body, files)


if __name__ == "__main__":
    main()

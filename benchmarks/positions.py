"""BERT-A, BERT-R, TUPE-A and TUPE-R at `tiny`, one schedule, several seeds: held-out loss by steps.

    python benchmarks/positions.py --runs runs/positions --seeds 0 1 2 --out benchmarks/records/positions-tiny

Trains what is not trained yet (about four minutes a run on two idle cores; stop it and start it again at will), then
writes the table and every curve. Same text, same order of batches and same masks for all with one seed.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

POSITIONS = {"BERT-A": "absolute", "BERT-R": "relative", "TUPE-A": "tupe_a", "TUPE-R": "tupe_r"}


def command(position: str, seed: int, workdir: Path | str) -> list[str]:
    """The training command of one run."""
    recipe = "configs/tupe.py" if position.startswith("tupe") else "configs/bert.py"
    return [
        *("python", "-m", "jaxpretrain.train", "--config", recipe, f"--config.model.position={position}"),
        *(f"--config.train.seed={seed}", "--config.eval.every=250", "--workdir", str(workdir)),
    ]


def curve(workdir: Path) -> dict[str, list[float]]:
    """Steps, held-out loss and training seconds of a run."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "eval/mlm_loss" in line]
    names = {
        "step": "step",
        "mlm_loss": "eval/mlm_loss",
        "unigram_loss": "eval/unigram_loss",
        "seconds": "total/seconds",
    }
    return {short: [line[name] for line in lines] for short, name in names.items()}


def main() -> None:
    """Trains, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/positions"), help="where the runs live")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/positions-tiny"))
    options = parser.parse_args()

    curves: dict[str, dict[int, dict[str, list[float]]]] = {name: {} for name in POSITIONS}
    for seed in options.seeds:
        for name, position in POSITIONS.items():
            workdir = options.runs / f"{position}-seed{seed}"
            if not (workdir / "DONE").exists():
                subprocess.run([sys.executable, *command(position, seed, workdir)[1:]], check=True)
            curves[name][seed] = curve(workdir)

    rows = ["| model | 500 | 1,000 | 1,500 | 2,000 | 2,500 | each seed at 2,500 |", "| --- " * 7 + "|"]
    for name, runs in curves.items():
        steps = next(iter(runs.values()))["step"]
        losses = np.array([run["mlm_loss"] for run in runs.values()])
        means = [f"{losses[:, steps.index(step)].mean():.2f}" for step in (500, 1000, 1500, 2000, 2500)]
        rows.append(f"| {name} | " + " | ".join(means) + f" | {', '.join(f'{x:.3f}' for x in losses[:, -1])} |")
    floor = next(iter(next(iter(curves.values())).values()))["unigram_loss"][-1]
    table = "\n".join(rows)
    about = (
        f"Held-out MLM loss in nats, mean over seeds {', '.join(map(str, options.seeds))}; by frequency {floor:.2f}. "
        f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}, "
        f"jax {importlib.metadata.version('jax')}."
    )
    example = " ".join(command("POSITION", 0, "WORKDIR")).replace("seed=0", "seed=SEED")
    options.out.mkdir(parents=True, exist_ok=True)
    lines = ["# Positions at tiny", "", about, "", table, "", f"Each run: `{example}`"]
    lines += ["(`configs/tupe.py` for the two TUPE forms.) All: `python benchmarks/positions.py`", ""]
    (options.out / "README.md").write_text("\n".join(lines))
    (options.out / "curves.json").write_text(json.dumps(curves, indent=1) + "\n")
    print(f"{about}\n\n{table}")


if __name__ == "__main__":
    main()

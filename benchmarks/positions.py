"""BERT-A, BERT-R, TUPE-A and TUPE-R at `tiny`, one schedule, several seeds: held-out loss by steps.

    python benchmarks/positions.py --runs runs/positions --seeds 0 1 2 --out benchmarks/records/positions-tiny

Trains what is not trained yet (about four minutes a run on two idle cores; stop it and start it again at will), then
writes the table and every curve. Same text, same order of batches and same masks for all with one seed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from study import command, labelled, machine, table, train_missing, write_record

from jaxpretrain.evaluation.curves import factors, read_series
from jaxpretrain.evaluation.pictures import learning_curves, png

POSITIONS = {"BERT-A": "absolute", "BERT-R": "relative", "TUPE-A": "tupe_a", "TUPE-R": "tupe_r"}
LOSS = "eval/mlm_loss"
SHOWN = (500, 1000, 1500, 2000, 2500)
METRICS = {"mlm_loss": LOSS, "unigram_loss": "eval/unigram_loss", "seconds": "total/seconds"}


def arguments(position: str, seed: int | str) -> list[str]:
    """Of the training command of one run."""
    recipe = "configs/tupe.py" if position.startswith("tupe") else "configs/bert.py"
    return [
        *("--config", recipe, f"--config.model.position={position}"),
        *(f"--config.train.seed={seed}", "--config.eval.every=250"),
    ]


def curve(workdir: Path) -> dict[str, list[float]]:
    """Steps, held-out loss and training seconds of a run."""
    steps, series = read_series(workdir, list(METRICS.values()))
    there = np.isfinite(series[LOSS])
    return {"step": steps[there].tolist()} | {short: series[name][there].tolist() for short, name in METRICS.items()}


def main() -> None:
    """Trains, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/positions"), help="where the runs live")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/positions-tiny"))
    options = parser.parse_args()

    workdirs = {(p, seed): options.runs / f"{p}-seed{seed}" for seed in options.seeds for p in POSITIONS.values()}
    train_missing({workdir: arguments(*run) for run, workdir in workdirs.items()})
    curves = {
        name: {seed: curve(workdirs[position, seed]) for seed in options.seeds} for name, position in POSITIONS.items()
    }
    rows = []
    for name, runs in curves.items():
        steps = next(iter(runs.values()))["step"]
        losses = np.array([run["mlm_loss"] for run in runs.values()])
        means = [f"{losses[:, steps.index(step)].mean():.2f}" for step in SHOWN]
        rows.append([name, *means, ", ".join(f"{x:.3f}" for x in losses[:, -1])])
    floor = next(iter(next(iter(curves.values())).values()))["unigram_loss"][-1]
    seeds = ", ".join(map(str, options.seeds))
    about = f"Held-out MLM loss in nats, mean over seeds {seeds}; by frequency {floor:.2f}. {machine()}."
    head = ["model", *(f"{step:,}" for step in SHOWN), f"each seed at {SHOWN[-1]:,}"]
    each = " ".join(arguments("POSITION", "SEED"))
    body = (
        f"{table(head, rows)}\n\nEach run: `python -m jaxpretrain.train {each}`\n"
        f"(`configs/tupe.py` for the two TUPE forms.) All: `{command()}`"
    )
    methods = [labelled(name, [workdirs[p, seed] for seed in options.seeds], LOSS) for name, p in POSITIONS.items()]
    drawn = learning_curves(methods, methods[0], LOSS, factors(methods, methods[0], LOSS), over=("step",))
    files = {"curves.json": json.dumps(curves, indent=1) + "\n", "curves.png": png(drawn)}
    write_record(options.out, "Positions at tiny", about, body + "\n\n![held-out loss](curves.png)", files)


if __name__ == "__main__":
    main()

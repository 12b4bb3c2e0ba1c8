"""Short sequences first, against none: BERT-A and TUPE-R at `tiny`, same text, steps, tokens and learning rate.

    python benchmarks/short_first.py --runs runs/short-first --out benchmarks/records/short-first-tiny

Half of the steps on 64 sequences of 32 tokens instead of 16 of 128. Trains what is not trained yet, a run to a core
(stop it and start it again at will), then writes the table and every curve.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from study import command, labelled, machine, table, train_missing_together, write_record

from jaxpretrain.evaluation import curves
from jaxpretrain.evaluation.pictures import learning_curves, png

LOSS, STEPS, SHOWN = "eval/mlm_loss", 2500, (500, 1000, 1500, 2000, 2500)
METHODS = {
    "BERT-A": ("absolute", 0.0),
    "BERT-A, short first": ("absolute", 0.5),
    "TUPE-R": ("tupe_r", 0.0),
    "TUPE-R, short first": ("tupe_r", 0.5),
}


def arguments(position: str, short_share: float, seed: int | str) -> list[str]:
    """Of the training command of one run."""
    return [
        *("--config", "configs/tupe.py", f"--config.model.position={position}", f"--config.train.steps={STEPS}"),
        *(f"--config.train.short_share={short_share}", f"--config.train.seed={seed}", "--config.eval.every=125"),
    ]


def main() -> None:
    """Trains, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/short-first"), help="where the runs live")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/short-first-tiny"))
    options = parser.parse_args()

    workdirs = {
        (name, seed): options.runs / f"{position}-short{short}-seed{seed}"
        for seed in options.seeds
        for name, (position, short) in reversed(METHODS.items())
    }
    train_missing_together([{path: arguments(*METHODS[name], seed)} for (name, seed), path in workdirs.items()])
    methods = [labelled(name, [workdirs[name, seed] for seed in options.seeds], LOSS) for name in METHODS]
    rows, factors = [], {}
    for method in methods:
        losses = np.array([curve.value for curve in method.curves])
        steps = method.curves[0].step.astype(int).tolist()
        cells = [f"{losses[:, steps.index(step)].mean():.2f}" for step in SHOWN]
        rows.append([method.label, *cells, ", ".join(f"{x:.3f}" for x in losses[:, -1])])
    targets = {method.label: method for method in methods if "short" not in method.label}
    for label, baseline in targets.items():
        factors[label] = curves.factors(methods, baseline, LOSS)
        for row, method in zip(rows, methods, strict=True):
            found = factors[label][method.label]["flops"]
            row.append("–" if found.mean is None else f"{found.mean:.2f} ({found.low:.2f} – {found.high:.2f})")
    head = ["", *(f"{step:,}" for step in SHOWN), f"each seed at {STEPS:,}"]
    head += [f"times fewer FLOPs to {label}'s end" for label in targets]
    about = (
        f"Held-out MLM loss in nats at 128 tokens, mean over seeds {', '.join(map(str, options.seeds))}; two layers "
        f"× 128, {STEPS:,} steps of 2,048 tokens of python-docs. Short first: half of the steps on 64 × 32 "
        f"tokens, where else 16 × 128. {machine()}."
    )
    each = "\n".join(
        f"- {name}: `python -m jaxpretrain.train {' '.join(arguments(*METHODS[name], 'SEED'))}`" for name in METHODS
    )
    body = f"{table(head, rows)}\n\n![held-out loss](curves.png)\n\n{each}\n\nAll: `{command()}`"
    kept = {
        method.label: {
            str(config.train.seed): {
                "step": curve.step.tolist(),
                "flops": curve.flops.tolist(),
                "loss": curve.value.tolist(),
            }
            for config, curve in zip(method.configs, method.curves, strict=True)
        }
        for method in methods
    }
    drawn = learning_curves(methods, methods[0], LOSS, factors["BERT-A"])
    files = {"curves.json": json.dumps(kept) + "\n", "curves.png": png(drawn)}
    write_record(options.out, "Short sequences first", about, body, files)


if __name__ == "__main__":
    main()

"""TNF against its baseline: held-out loss near rare words and elsewhere, notes switched on and off, several seeds.

    python benchmarks/notes.py --runs runs/notes --seeds 0 1 2 --out benchmarks/records/notes-tiny
    python benchmarks/notes.py --source 'text:encyclopedia.txt' --weights 0.5 0.1

Same text, order of batches, masks and initial weights for all with one seed; only the notes differ. Trains what is not
trained yet (stop it and start it again at will), then writes the tables, the curves and what the notes learnt.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from study import command, machine, table, train_missing, write_record

from jaxpretrain.evaluation.curves import read_series
from jaxpretrain.evaluation.pictures import notes_learnt, png
from jaxpretrain.training.workdir import notes_of_run

PARTS = {"near rare words": "mlm_loss_near_rare_words", "elsewhere": "mlm_loss_elsewhere", "all": "mlm_loss"}
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73")


def main() -> None:
    """Trains, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/notes"), help="where the runs live")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5, 0.1], help="λ; the paper's is 0.5")
    parser.add_argument("--source", default="python-docs", help="data.source")
    parser.add_argument("--about", default="", help="what the text is, for the record")
    parser.add_argument("--held-out", type=float, default=0.08, help="share of the documents")
    parser.add_argument("--steps", type=int, default=6000, help="of 16 x 128 tokens")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/notes-tiny"))
    options = parser.parse_args()

    named = re.sub(r"text:.*/", "text:", options.source)  # a record names no folder of one machine

    def arguments(weight: float, seed: int | str, source: str = options.source) -> list[str]:
        notes = [f"--config.notes.enabled={str(weight > 0).lower()}"]
        notes += [f"--config.notes.weight={weight}"] if weight not in (0, 0.5) else []
        return [
            *("--config", "configs/tupe.py", *notes, f"--config.data.source={source}"),
            *(f"--config.data.held_out={options.held_out}", f"--config.train.steps={options.steps}"),
            *("--config.eval.every=500", f"--config.train.seed={seed}"),
        ]

    weights = [0.0, *options.weights]
    methods = {weight: "TUPE-R" if weight == 0 else f"with notes, λ = {weight:g}" for weight in weights}
    folders = {
        weight: "baseline" if weight == 0 else "tnf" if weight == 0.5 else f"tnf-weight{weight:g}" for weight in weights
    }
    workdirs = {(w, seed): options.runs / f"{folders[w]}-seed{seed}" for seed in options.seeds for w in weights}
    train_missing({workdir: arguments(*run) for run, workdir in workdirs.items()})

    names = [f"eval/{room}{name}" for room in ("", "without_notes/") for name in PARTS.values()]
    found = {run: read_series(workdir, names) for run, workdir in workdirs.items()}
    steps = found[0.0, options.seeds[0]][0]

    def losses(weight: float, name: str, room: str = "") -> np.ndarray:
        """[seeds, evaluations]."""
        return np.stack([found[weight, seed][1][f"eval/{room}{name}"] for seed in options.seeds])

    rows = []
    for weight, method in methods.items():
        for room, switch in (("", "on"), ("without_notes/", "off")) if weight else (("", ""),):
            last = [losses(weight, name, room)[:, -1] for name in PARTS.values()]
            cells = [f"{x.mean():.3f} ({x.min():.3f} – {x.max():.3f})" for x in last]
            rows.append([f"{method}, {switch}" if switch else method, *cells])
    saved = []
    for weight in options.weights:
        for title, name in PARTS.items():
            against = (losses(0.0, name) - losses(weight, name))[:, -1]
            switched = (losses(weight, name, "without_notes/") - losses(weight, name))[:, -1]
            saved.append(
                [
                    methods[weight],
                    title,
                    *(f"{x.mean():+.3f} ({x.min():+.3f} … {x.max():+.3f})" for x in (against, switched)),
                ]
            )
    words = notes_of_run(workdirs[options.weights[0], options.seeds[0]])
    about = (
        f"Two layers × 128, TUPE-R, {options.steps:,} steps of 16 × 128 tokens of `{named}`{options.about}; "
        f"{len(words[0]):,} rare words. Seeds {', '.join(map(str, options.seeds))}. {machine()}."
    )
    head = ["held-out MLM loss (nats) at the end, mean and range over seeds", *PARTS]
    gain = ["nats saved at the end", "where", "against the baseline, same seed", "by switching the notes on"]
    commands = "\n".join(
        f"- {method}: `python -m jaxpretrain.train {' '.join(arguments(weight, 'SEED', named))}`"
        for weight, method in methods.items()
    )
    body = (
        f"{table(head, rows)}\n\n{table(gain, saved)}\n\n![held-out loss by steps](curves.png)\n\n"
        f"![what the notes learnt](notes.png)\n\n{commands}\n\nAll: `{command(source=named)}`"
    )
    curves = {
        methods[w]: {
            seed: {name: values.tolist() for name, values in found[w, seed][1].items()} for seed in options.seeds
        }
        for w in weights
    }
    files = {
        "curves.json": json.dumps({"step": steps.tolist(), "runs": curves}, indent=1) + "\n",
        "curves.png": png(picture(steps, methods, losses)),
        "notes.png": png(notes_learnt(*words)),
    }
    write_record(options.out, "TNF against its baseline at tiny", about, body, files)


def picture(steps: np.ndarray, methods: dict[float, str], losses) -> Figure:
    """Loss less the baseline's of the same seed, near rare words and elsewhere: below 0, notes helped."""
    figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
    for axes, (title, name) in zip(figure.subplots(1, 2, sharey=True), list(PARTS.items())[:2], strict=True):
        axes.axhline(0, color=COLOURS[0], linewidth=1.5, label=f"{methods[0.0]} (0 by definition)")
        for colour, (weight, method) in zip(COLOURS[1:], list(methods.items())[1:], strict=False):
            for room, dashes, switch in (("", "-", "on"), ("without_notes/", "--", "off")):
                values = losses(weight, name, room) - losses(0.0, name)
                axes.plot(steps, values.mean(0), dashes, color=colour, linewidth=1.8, label=f"{method}, {switch}")
                axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
        axes.set_title(f"{title}: held-out MLM loss less the baseline's", fontsize=12)
        axes.set_xlabel("steps", fontsize=12)
        axes.set_ylabel("nats (mean and range over seeds)", fontsize=12)
        axes.grid(color="#dddddd", linewidth=0.8)
        axes.legend(fontsize=10)
    return figure


if __name__ == "__main__":
    main()

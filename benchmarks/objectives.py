"""ELECTRA and MC-BERT at `tiny` on the default text: what each network learns, and how MC-BERT's quiz hardens.

    python benchmarks/objectives.py --runs runs/objectives --out benchmarks/records/objectives-tiny

Trains what is not trained yet (stop it and start it again at will), then writes the table and the quiz over training.
"""

import argparse
import json
from pathlib import Path

from study import command, machine, table, train_missing, write_record

from jaxpretrain.evaluation.curves import read_series
from jaxpretrain.evaluation.pictures import QUIZ_METRICS, png, positions_attend, quiz_over_time
from jaxpretrain.evaluation.positions import position_scores

RECIPES = {"ELECTRA": "electra", "MC-BERT": "mcbert"}
FREQUENT = "always the most frequent piece: 5 %"
SHOWN = {  # metric, what it says, what chance would give
    "ELECTRA": [
        ("mlm_accuracy", "generator: masked pieces right", FREQUENT),
        ("discriminator_accuracy", "original or replaced, all positions", "always original: {always}"),
        ("discriminator_recall", "replaced ones found", "always original: 0 %"),
        ("discriminator_auc", "of two pieces of a sequence, the replaced one found (ROC AUC)", "50 %"),
    ],
    "MC-BERT": [
        ("mlm_accuracy", "controller: masked pieces right", FREQUENT),
        ("choice_accuracy", "questions right, all positions", "always neither: {always}"),
        ("choice_accuracy_changed", "changed pieces: the original chosen", "one of 10: 10 %"),
        ("choice_accuracy_original", "changed pieces, neither aside", "one of 9: 11.1 %"),
        ("choice_accuracy_neither", "unchanged pieces: neither chosen", "one of 10: 10 %"),
    ],
}
METRICS = [
    *("eval/mlm_accuracy", "eval/mlm_loss", "eval/unigram_loss"),
    *("eval/discriminator_accuracy", "eval/discriminator_recall", "eval/discriminator_auc"),
    *("eval/discriminator_loss", "eval/replaced_share"),
    *("eval/choice_accuracy", "eval/choice_accuracy_changed", "eval/choice_accuracy_neither"),
    *("eval/choice_accuracy_original", "eval/choice_loss"),
    *("eval/neither_share", "eval/candidate_entropy", "eval/mlm_probability"),
]


def arguments(recipe: str, seed: int, steps: int) -> list[str]:
    """Of the training command of one run: the recipe with TUPE-R, and checkpoints along the way."""
    return [
        *("--config", f"configs/{recipe}.py", "--config.model.position=tupe_r", "--config.eval.every=250"),
        *(f"--config.train.steps={steps}", f"--config.train.seed={seed}"),
        *("--config.checkpoint.every_steps=500", "--config.checkpoint.keep=30"),
    ]


def main() -> None:
    """Trains, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"), help="where the runs live")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6_000, help="of 64 x 32 tokens")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=["MC-BERT", "ELECTRA"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/objectives-tiny"))
    options = parser.parse_args()
    recipes = {name: RECIPES[name] for name in options.only}
    workdirs = {name: options.runs / f"{recipe}-seed{options.seed}" for name, recipe in recipes.items()}
    train_missing({workdirs[name]: arguments(recipe, options.seed, options.steps) for name, recipe in recipes.items()})

    found = {name: read_series(workdir, METRICS) for name, workdir in workdirs.items()}
    rows = []
    for name, (_, series) in found.items():
        last = {metric.removeprefix("eval/"): float(values[-1]) for metric, values in series.items()}
        always = 1 - last["replaced_share"] if name == "ELECTRA" else last["neither_share"]
        for metric, what, chance in SHOWN[name]:
            rows.append([name, what, f"{100 * last[metric]:.1f} %", chance.format(always=f"{100 * always:.1f} %")])
    steps, series = found["MC-BERT"]
    begin, end = ({m: float(series[f"eval/{m}"][i]) for m in QUIZ_SHOWN} for i in (0, -1))
    quiz = [[m.replace("_", " "), f"{begin[m]:.3f}", f"{end[m]:.3f}"] for m in QUIZ_SHOWN]
    about = (
        f"Two layers × 128, TUPE-R, {int(steps[-1]):,} steps of 64 × 32 tokens of python-docs, seed {options.seed}, "
        f"held-out text. {machine()}."
    )
    commands = "\n".join(
        f"- {name}: `python -m jaxpretrain.train {' '.join(arguments(recipe, options.seed, options.steps))}`"
        for name, recipe in recipes.items()
    )
    body = (
        f"{table(['objective', 'what', 'held out', 'by chance'], rows)}\n\n"
        f"MC-BERT's quiz:\n\n{table(['held out', f'step {int(steps[0]):,}', f'step {int(steps[-1]):,}'], quiz)}\n\n"
        "![the quiz over training](quiz.png)\n\n"
        f"![how positions attend to positions in MC-BERT's main model](positions.png)\n\n"
        f"{commands}\n\nAll: `{command()}`"
    )
    curves = {
        name: {"step": s.tolist()} | {m: v.tolist() for m, v in values.items()} for name, (s, values) in found.items()
    }
    quiz_metrics = read_series(workdirs["MC-BERT"], QUIZ_METRICS)
    files = {"curves.json": json.dumps(curves, indent=1) + "\n", "quiz.png": png(quiz_over_time(*quiz_metrics))}
    if scores := position_scores(workdirs["MC-BERT"]):
        files["positions.png"] = png(positions_attend(*scores))
    write_record(options.out, "The objectives at tiny", about, body, files)


QUIZ_SHOWN = (
    *("mlm_accuracy", "mlm_probability", "candidate_entropy", "neither_share"),
    *("choice_accuracy", "choice_accuracy_changed", "choice_accuracy_original", "choice_accuracy_neither"),
)

if __name__ == "__main__":
    main()

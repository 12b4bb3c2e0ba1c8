"""ELECTRA and MC-BERT at `tiny` on the default text: what each network learns, and how MC-BERT's quiz hardens.

    python benchmarks/objectives.py --runs runs/objectives --out benchmarks/records/objectives-tiny

Trains what is not trained yet (stop it and start it again at will), then writes the table and the quiz over training.
"""

import argparse
import json
from pathlib import Path

from study import machine, table, train_missing, write_record

from jaxpretrain.evaluation.curves import read_series
from jaxpretrain.evaluation.pictures import QUIZ_METRICS, png, quiz_over_time

RECIPES = {"ELECTRA": "electra", "MC-BERT": "mcbert"}
METRICS = [
    *("eval/mlm_accuracy", "eval/mlm_loss", "eval/unigram_loss"),
    *("eval/discriminator_accuracy", "eval/discriminator_recall", "eval/discriminator_loss", "eval/replaced_share"),
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
    parser.add_argument("--steps", type=int, default=6_000, help="of 16 x 128 tokens")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/objectives-tiny"))
    options = parser.parse_args()
    workdirs = {name: options.runs / f"{recipe}-seed{options.seed}" for name, recipe in RECIPES.items()}
    train_missing({workdirs[name]: arguments(recipe, options.seed, options.steps) for name, recipe in RECIPES.items()})

    found = {name: read_series(workdir, METRICS) for name, workdir in workdirs.items()}
    last = {name: {m: float(values[-1]) for m, values in series.items()} for name, (_, series) in found.items()}

    def shown(name: str, metric: str) -> str:
        return f"{100 * last[name][f'eval/{metric}']:.1f} %"

    electra, mcbert = last["ELECTRA"], last["MC-BERT"]
    rows = [
        ["ELECTRA", "generator: masked pieces right", shown("ELECTRA", "mlm_accuracy"), "always the most frequent piece: 5 %"],
        [
            "ELECTRA",
            "original or replaced, all positions",
            shown("ELECTRA", "discriminator_accuracy"),
            f"always original: {100 * (1 - electra['eval/replaced_share']):.1f} %",
        ],
        ["ELECTRA", "replaced ones found", shown("ELECTRA", "discriminator_recall"), "always original: 0 %"],
        ["MC-BERT", "controller: masked pieces right", shown("MC-BERT", "mlm_accuracy"), "always the most frequent piece: 5 %"],
        [
            "MC-BERT",
            "questions right, all positions",
            shown("MC-BERT", "choice_accuracy"),
            f"always neither: {100 * mcbert['eval/neither_share']:.1f} %",
        ],
        [
            "MC-BERT",
            "changed pieces: the original chosen",
            shown("MC-BERT", "choice_accuracy_changed"),
            "one of 10: 10 %",
        ],
        ["MC-BERT", "changed pieces, neither aside", shown("MC-BERT", "choice_accuracy_original"), "one of 9: 11.1 %"],
        ["MC-BERT", "unchanged pieces: neither chosen", shown("MC-BERT", "choice_accuracy_neither"), "one of 10: 10 %"],
    ]
    steps, series = found["MC-BERT"]
    begin, end = ({m: float(series[f"eval/{m}"][i]) for m in QUIZ_SHOWN} for i in (0, -1))
    quiz = [[m.replace("_", " "), f"{begin[m]:.3f}", f"{end[m]:.3f}"] for m in QUIZ_SHOWN]
    about = (
        f"Two layers × 128, TUPE-R, {int(steps[-1]):,} steps of 16 × 128 tokens of python-docs, seed {options.seed}, "
        f"held-out text. {machine()}."
    )
    commands = "\n".join(
        f"- {name}: `python -m jaxpretrain.train {' '.join(arguments(recipe, options.seed, options.steps))}`"
        for name, recipe in RECIPES.items()
    )
    body = (
        f"{table(['objective', 'what', 'held out', 'by chance'], rows)}\n\n"
        f"MC-BERT's quiz:\n\n{table(['held out', f'step {int(steps[0]):,}', f'step {int(steps[-1]):,}'], quiz)}\n\n"
        f"![the quiz over training](quiz.png)\n\n{commands}\n\nAll: `python benchmarks/objectives.py`"
    )
    curves = {
        name: {"step": s.tolist()} | {m: v.tolist() for m, v in values.items()} for name, (s, values) in found.items()
    }
    quiz_metrics = read_series(workdirs["MC-BERT"], QUIZ_METRICS)
    files = {"curves.json": json.dumps(curves, indent=1) + "\n", "quiz.png": png(quiz_over_time(*quiz_metrics))}
    write_record(options.out, "The objectives at tiny", about, body, files)


QUIZ_SHOWN = (
    *("mlm_accuracy", "mlm_probability", "candidate_entropy", "neither_share"),
    *("choice_accuracy", "choice_accuracy_changed", "choice_accuracy_original", "choice_accuracy_neither"),
)

if __name__ == "__main__":
    main()

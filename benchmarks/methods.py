"""The study of docs/study.md at `tiny`: what each method saves over BERT, alone and together.

    python benchmarks/methods.py --runs runs/methods --only BERT-A TUPE-R
    python benchmarks/methods.py --runs runs/methods --data-dir GLUE

Trains what is not trained yet (stop it and start it again at will, with more methods or seeds too), one run to a core,
scores frozen encoders on GLUE, then writes the record.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from study import machine, table, train_missing_together, write_record

from jaxpretrain.evaluation import curves
from jaxpretrain.evaluation.curves import Curve, Estimate, Method
from jaxpretrain.evaluation.pictures import learning_curves, png
from jaxpretrain.evaluation.probe import probe
from jaxpretrain.evaluation.tasks import load
from jaxpretrain.evaluation.trained import load_run
from jaxpretrain.training.checkpoint_files import committed_steps
from jaxpretrain.training.metrics import add_to_lines

TUPE_R, NOTES = {"model.position": "tupe_r"}, {"notes.enabled": True}
QUESTIONS = {"objective.mask_share": 1.0, "objective.random_share": 0.0, "objective.loss_weight": 10.0}
ELECTRA = {"objective.name": "electra", "objective.divider": 2} | QUESTIONS
MCBERT = {"objective.name": "mcbert", "objective.divider": 2} | QUESTIONS
METHODS = {
    "BERT-A": {},
    "BERT-R": {"model.position": "relative"},
    "TUPE-A": {"model.position": "tupe_a"},
    "TUPE-R": TUPE_R,
    "BERT-A + TNF": NOTES,
    "ELECTRA": ELECTRA,
    "MC-BERT": MCBERT,
    "TUPE-R + TNF + MC-BERT": TUPE_R | NOTES | MCBERT,
    "BERT-A^d": {"model.position": "absolute_untied"},
    "TUPE-R + TNF": TUPE_R | NOTES,
    "TUPE-R + ELECTRA": TUPE_R | ELECTRA,
    "TUPE-R + MC-BERT": TUPE_R | MCBERT,
}
CORE = list(METHODS)[:8]
BASELINE = "BERT-A"
SETTING = {
    "data.vocab_size": 1024,
    "data.sequence_length": 32,
    "train.batch_size": 64,
    "eval.examples": 4096,
    "notes.capacity": 4,
}
STEPS = 6_000
SHORTER = (3_000, 1_500, 750)
RATES = (5e-4, 1e-3, 2e-3)
TASKS = ("CoLA", "MRPC", "RTE", "STS-B", "SST-2")
LOSS, PROBE = "eval/mlm_loss", "eval/glue/probe"


def arguments(method: str, rate: float, seed: int | str, steps: int) -> list[str]:
    """Of the training command of one run; warm-up is a twenty-fourth of the steps, and there are 24 evaluations."""
    fields = (
        SETTING
        | METHODS[method]
        | {
            "optim.learning_rate": rate,
            "optim.warmup_steps": steps // 24,
            "train.steps": steps,
            "train.seed": seed,
            "eval.every": steps // 24,
            "checkpoint.every_steps": steps // 6,
            "checkpoint.every_minutes": 0,
            "checkpoint.keep": 6,
        }
    )
    return ["--config", "configs/bert.py", *(f"--config.{name}={value}" for name, value in fields.items())]


class Study:
    """The runs of some methods in a folder, and what came of them."""

    def __init__(self, runs: Path, seeds: list[int], data_dir: str) -> None:
        self.runs, self.seeds = runs, seeds
        self.data = {task: load(task, data_dir) for task in TASKS} if data_dir else {}

    def workdir(self, method: str, rate: float, seed: int, steps: int = STEPS) -> Path:
        name = method.lower().replace(" + ", "+").replace("^", "")
        return self.runs / f"{name}-rate{rate:g}-seed{seed}-steps{steps}"

    def train(self, wanted: list[tuple[str, float, int, int]]) -> None:
        """Runs (method, rate, seed, steps) that are missing, then their probes."""
        train_missing_together({self.workdir(*run): arguments(*run) for run in wanted})
        for method, *rest in wanted:
            if "objective.name" in METHODS[method]:
                self.add_probes(self.workdir(method, *rest))

    def add_probes(self, workdir: Path) -> None:
        """Scores a linear model on the frozen encoder of every checkpoint, and adds it to the run's metrics."""
        if np.isfinite(curves.read_series(workdir, [PROBE])[1].get(PROBE, np.nan)).any() or not self.data:
            return
        found = {}
        for step in committed_steps(workdir / "checkpoints"):
            run = load_run(workdir, step)
            scores = {t: next(iter(probe(run, d).values()))[d.task.metrics[0]] for t, d in self.data.items()}
            found[step] = {f"{PROBE}_{task}": score for task, score in scores.items()}
            found[step][PROBE] = float(np.mean(list(scores.values())))
        add_to_lines(workdir, found)

    def search(self, method: str) -> float:
        """The best of `RATES` by seed 0; while it is the lowest or the highest tried, one more beyond is tried."""
        tried = list(RATES)
        while True:
            best = max(tried, key=lambda rate: self.judged(method, rate))
            beyond = {min(tried): best / 2, max(tried): best * 2}
            if best not in beyond:
                return best
            tried.append(beyond[best])
            self.train([(method, tried[-1], 0, STEPS)])

    def judged(self, method: str, rate: float) -> float:
        """How good the end of seed 0 is: minus the loss where the whole model has one, else the probe."""
        metric, sign = (PROBE, 1) if "objective.name" in METHODS[method] else (LOSS, -1)
        return sign * float(curves.read_curve(self.workdir(method, rate, 0), metric).value[-1])

    def method(self, name: str, rate: float, metric: str, steps: int = STEPS) -> Method:
        """Its runs with all seeds, as `compare` reads them."""
        runs = [str(self.workdir(name, rate, seed, steps)) for seed in self.seeds]
        (found,) = curves.read_methods(runs, metric)
        return replace(found, label=name)

    def annealed(self, name: str, rate: float, target: float) -> Estimate:
        """How many times fewer steps of a schedule of its own end at `target`, by seed; None: more than all."""
        budgets = sorted([*SHORTER, STEPS])
        ends = np.array([[c.value[-1] for c in self.method(name, rate, LOSS, steps).curves] for steps in budgets]).T
        logs = np.log(budgets)
        needed = [curves.first_reach(Curve(logs, logs, logs, logs, losses), target, "step") for losses in ends]
        return curves.estimate([None if x is None else STEPS / float(np.exp(x)) for x in needed])


def shown(found: Estimate, digits: int = 2) -> str:
    """Mean and range over seeds."""
    if found.mean is None:
        reached = sum(value is not None for value in found.values)
        return "not reached" + (f" ({reached} of {len(found.values)} seeds did)" if reached else "")
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} – {found.high:.{digits}f})"


def main() -> None:
    """Trains, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="where the runs live")
    parser.add_argument("--data-dir", default="", help="folder in GLUE's layout; without it no probes")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=CORE, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/methods-tiny"))
    options = parser.parse_args()
    names = [BASELINE, *(name for name in options.only if name != BASELINE)]

    study = Study(options.runs, options.seeds, options.data_dir)
    study.train([(name, rate, 0, STEPS) for name in names for rate in RATES])
    rates = {name: study.search(name) for name in names}
    study.train([(name, rates[name], seed, STEPS) for seed in options.seeds for name in names])
    cloze = [name for name in names if "objective.name" not in METHODS[name]]
    study.train([(name, rates[name], seed, n) for seed in options.seeds for name in cloze for n in SHORTER])

    methods = [study.method(name, rates[name], LOSS) for name in cloze]
    baseline, target = methods[0], curves.target_of(methods[0])
    factors = curves.factors(methods, baseline, LOSS)
    rows = []
    for method in methods:
        annealed = study.annealed(method.label, rates[method.label], target)
        within = [shown(factors[method.label][axis]) for axis in ("step", "flops", "seconds")]
        cells = [f"{rates[method.label]:g}", shown(curves.final_values(method), 3), *within, shown(annealed)]
        rows.append([method.label, *(cells if method is not baseline else [*cells[:2], *["1"] * 4])])
    head = ["method", "rate", "held-out loss", "factor: steps", "FLOPs", "seconds", "annealed: steps"]
    floor = curves.read_curve(methods[0].runs[0], "eval/unigram_loss").value[-1]
    about = (
        f"Two layers × 128, {STEPS:,} steps of 64 × 32 tokens of python-docs in 1,024 pieces; seeds "
        f"{', '.join(map(str, options.seeds))}: mean (lowest – highest). Loss by frequency alone: {floor:.3f}. "
        f"Protocol: docs/study.md. {machine()}, a core to a run."
    )
    searched = [[name, *(f"{study.judged(name, rate):.4g}" for rate in RATES)] for name in names]
    each = " ".join(arguments("BERT-A", rates[BASELINE], 0, STEPS))
    body = (
        f"{table(head, rows)}\n\nThe search, seed 0 (minus the loss, or the probe): \n\n"
        f"{table(['method', *(f'{rate:g}' for rate in RATES)], searched)}\n\n"
        f"![held-out loss](curves.png)\n\nBERT-A: `python -m jaxpretrain.train {each}`\n\n"
        "All: `python benchmarks/methods.py --data-dir GLUE`"
    )
    kept = {
        method.label: {
            str(c.train.seed): {"step": x.step.tolist(), "loss": x.value.tolist()}
            for c, x in zip(method.configs, method.curves, strict=True)
        }
        for method in methods
    }
    drawn = learning_curves(methods, baseline, LOSS, factors)
    files = {"curves.json": json.dumps(kept) + "\n", "curves.png": png(drawn)}
    write_record(options.out, "Methods at tiny", about, body, files)


if __name__ == "__main__":
    main()

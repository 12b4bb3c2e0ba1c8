"""The study of docs/study.md at `tiny`: what each method saves over BERT, alone and together.

    python benchmarks/methods.py --runs runs/methods --only BERT-A TUPE-R
    python benchmarks/methods.py --runs runs/methods

Trains what is not trained yet (stop it and start it again at will, with more methods or seeds too), one run to a core,
then writes the record. Its folder keeps what finished runs are judged by: the study goes on from there anywhere.
"""

import argparse
import json
import runpy
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from study import command, machine, table, train_missing_together, write_record

from jaxpretrain.data.build import prepare
from jaxpretrain.data.sources import pydocs
from jaxpretrain.evaluation import curves
from jaxpretrain.evaluation.curves import Curve, Estimate, Method
from jaxpretrain.evaluation.pictures import learning_curves, png
from jaxpretrain.training import metrics

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
TUNING, TUNING_RATE = 750, 1e-3
LOSS = "eval/mlm_loss"


@dataclass(frozen=True)
class Run:
    """One run of a method; `tuned`: of its encoder, `TUNING` steps further as a masked language model."""

    method: str
    rate: float
    seed: int
    steps: int = STEPS
    tuned: bool = False

    @property
    def name(self) -> str:
        method = self.method.lower().replace(" + ", "+").replace("^", "")
        return f"{method}-rate{self.rate:g}-seed{self.seed}-steps{self.steps}{'-tuned' if self.tuned else ''}"

    def arguments(self, runs: Path) -> list[str]:
        """Of the training command; warm-up is a twenty-fourth of the steps, and there are 24 evaluations."""
        fields = SETTING | METHODS[self.method]
        steps, rate = self.steps, self.rate
        if self.tuned:
            fields = {name: value for name, value in fields.items() if not name.startswith(("objective.", "notes."))}
            fields["init_from"] = runs / replace(self, tuned=False).name
            steps, rate = TUNING, TUNING_RATE
        fields |= {
            "optim.learning_rate": rate,
            "optim.warmup_steps": steps // 24,
            "train.steps": steps,
            "train.seed": self.seed,
            "eval.every": steps // 24,
            "checkpoint.every_steps": steps // 2,
            "checkpoint.every_minutes": 0,
            "checkpoint.keep": 1,
        }
        return ["--config", "configs/bert.py", *(f"--config.{name}={value}" for name, value in fields.items())]


def keep(workdir: Path, folder: Path) -> None:
    """Copies what a finished run is judged by, its config and held-out metrics, into a folder of the record."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((workdir / "config.json").read_text())
    config["init_from"] = Path(config["init_from"]).name
    (folder / "config.json").write_text(json.dumps(config) + "\n")
    short = lambda x: float(f"{x:.7g}") if isinstance(x, float) else x  # noqa: E731
    measured = [line for line in metrics.read(workdir) if LOSS in line]
    lines = [{k: short(x) for k, x in line.items() if k.startswith(("step", "total/", "eval/"))} for line in measured]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(workdir / "DONE", folder)


def check_text(folder: Path) -> str:
    """The fingerprint of the text, which all runs of a record share; ends the program where it is another one.

    `python-docs` depends on the versions of Python and of the packages: the record keeps them.
    """
    config = runpy.run_path("configs/bert.py")["get_config"]("tiny")
    of_data = {name.removeprefix("data."): value for name, value in SETTING.items() if name.startswith("data.")}
    found = prepare(replace(config.data, **of_data), config.notes, progress=True).fingerprint
    path = folder / "text.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["fingerprint"] != found:
            there = ", ".join(sorted({*kept["versions"]}.difference(pydocs.identity()))) or "the same versions"
            sys.exit(f"{folder}: its runs are of another text than here: install {there}, or give another --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"fingerprint": found, "versions": pydocs.identity()}, indent=1) + "\n")
    return found


class Study:
    """The runs of some methods, and what came of them.

    Finished ones are kept in the record, so the study goes on from there on another machine.
    """

    def __init__(self, runs: Path, record: Path, seeds: list[int]) -> None:
        self.runs, self.record, self.seeds = runs, record / "runs", seeds

    def train(self, wanted: Sequence[Run]) -> None:
        """Trains what is missing; before an encoder is tuned, the run that it is from."""
        jobs = []
        for run in wanted:
            if not (self.record / run.name / "DONE").exists():
                before = [replace(run, tuned=False)] if run.tuned else []
                jobs.append({self.runs / r.name: r.arguments(self.runs) for r in [*before, run]})
        train_missing_together(jobs, lambda job: [keep(workdir, self.record / workdir.name) for workdir in job])

    def end(self, run: Run) -> float:
        """Its last loss."""
        return float(curves.read_curve(self.record / run.name, LOSS).value[-1])

    def search(self, method: str) -> float:
        """The best of `RATES` by seed 0; while it is the lowest or the highest tried, one more beyond is tried."""
        tried = list(RATES)
        while True:
            best = min(tried, key=lambda rate: self.end(judged(method, rate)))
            beyond = {min(tried): best / 2, max(tried): best * 2}
            if best not in beyond:
                return best
            tried.append(beyond[best])
            self.train([judged(method, tried[-1])])

    def method(self, name: str, rate: float) -> Method:
        """Its runs with all seeds, as `compare` reads them."""
        runs = [str(self.record / Run(name, rate, seed).name) for seed in self.seeds]
        (found,) = curves.read_methods(runs, LOSS)
        return replace(found, label=name)

    def ends(self, run: Run) -> list[float]:
        """The last loss by seed."""
        return [self.end(replace(run, seed=seed)) for seed in self.seeds]

    def annealed(self, run: Run, target: float) -> Estimate:
        """How many times fewer steps of a schedule of its own end at `target`, by seed; None: more than all."""
        budgets = sorted([*SHORTER, STEPS])
        ends = np.array([self.ends(replace(run, steps=steps)) for steps in budgets]).T
        logs = np.log(budgets)
        needed = [curves.first_reach(Curve(logs, logs, logs, logs, losses), target, "step") for losses in ends]
        return curves.estimate([None if x is None else STEPS / float(np.exp(x)) for x in needed])


def two_networks(method: str) -> bool:
    """Whether the main network is not the one that the masked language model trains."""
    return "objective.name" in METHODS[method]


def judged(method: str, rate: float, seed: int = 0, steps: int = STEPS) -> Run:
    """The run whose end tells how good a method is."""
    return Run(method, rate, seed, steps, tuned=two_networks(method))


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
    parser.add_argument("--only", nargs="+", choices=METHODS, default=CORE, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/methods-tiny"))
    options = parser.parse_args()
    names = [BASELINE, *(name for name in options.only if name != BASELINE)]
    seeds, cloze, others = options.seeds, *([n for n in names if two_networks(n) == which] for which in (False, True))

    study = Study(options.runs, options.out, seeds)
    fingerprint = check_text(study.record)
    study.train([judged(name, rate) for name in names for rate in RATES])
    rates = {name: study.search(name) for name in names}
    study.train([judged(name, rates[name], seed) for seed in seeds for name in names])
    study.train([judged(name, rates[name], seed, steps) for seed in seeds for name in names for steps in SHORTER])

    methods = [study.method(name, rates[name]) for name in cloze]
    baseline, target = methods[0], curves.target_of(methods[0])
    factors = curves.factors(methods, baseline, LOSS)
    rows = []
    for method in methods:
        annealed = study.annealed(Run(method.label, rates[method.label], 0), target)
        within = [shown(factors[method.label][axis]) for axis in ("step", "flops")]
        cells = [f"{rates[method.label]:g}", shown(curves.final_values(method), 3), *within, shown(annealed)]
        rows.append([method.label, *(cells if method is not baseline else [*cells[:2], *["1"] * 3])])
    head = ["method", "rate", "held-out loss", "factor: steps", "FLOPs", "annealed: steps"]
    parts = [table(head, rows)]
    if others:
        study.train([Run(BASELINE, rates[BASELINE], seed, tuned=True) for seed in seeds])
        runs = [Run(name, rates[name], 0, tuned=True) for name in (BASELINE, *others)]
        ends = [study.ends(run) for run in runs]
        target = float(np.mean(ends[0]))
        found = [shown(study.annealed(run, target)) for run in runs[1:]]
        losses = [shown(curves.estimate(values), 3) for values in ends]
        rows = [[r.method, f"{r.rate:g}", x, f] for r, x, f in zip(runs, losses, ["1", *found], strict=True)]
        parts += [
            f"Encoders, {TUNING} steps further as masked language models, at a rate of {TUNING_RATE:g} for all:",
            table(["method", "rate", "held-out loss", "annealed: steps"], rows),
        ]
    floor = curves.read_curve(methods[0].runs[0], "eval/unigram_loss").value[-1]
    about = (
        f"Two layers × 128, {STEPS:,} steps of 64 × 32 tokens of python-docs in 1,024 pieces; seeds "
        f"{', '.join(map(str, options.seeds))}: mean (lowest – highest). Loss by frequency alone: {floor:.3f}. "
        f"Text: fingerprint {fingerprint[:12]}, of the versions in `runs/text.json`. "
        f"Protocol: docs/study.md. {machine()}, a core to a run."
    )
    searched = [[name, *(f"{study.end(judged(name, rate)):.3f}" for rate in RATES)] for name in names]
    each = " ".join(Run(BASELINE, rates[BASELINE], 0).arguments(options.runs))
    parts += [
        "The search, loss of seed 0 by rate:",
        table(["method", *(f"{rate:g}" for rate in RATES)], searched),
        "![held-out loss](curves.png)",
        f"BERT-A: `python -m jaxpretrain.train {each}`",
        f"All: `{command()}`. The folder `runs` holds each run's config and held-out metrics.",
    ]
    drawn = learning_curves(methods, baseline, LOSS, factors)
    write_record(options.out, "Methods at tiny", about, "\n\n".join(parts), {"curves.png": png(drawn)})


if __name__ == "__main__":
    main()

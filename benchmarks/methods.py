"""The study of docs/study.md at `tiny`: what each method saves over BERT, alone and together.

    python benchmarks/methods.py --runs runs/methods --only BERT-A TUPE-R
    python benchmarks/methods.py --runs runs/methods

Trains what is not trained yet (stop it and start it again at will, with more methods or seeds too), one run to a core,
then writes the record. Its folder keeps what finished runs are judged by: the study goes on from there anywhere.
"""

import argparse
import functools
import json
import runpy
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from study import all_done, command, labelled, machine, table, train_missing_together, write_record

from jaxpretrain.config import flatten
from jaxpretrain.data.build import prepare
from jaxpretrain.data.sources import pydocs
from jaxpretrain.evaluation import curves
from jaxpretrain.evaluation.curves import Curve, Estimate, Method
from jaxpretrain.evaluation.pictures import learning_curves, png
from jaxpretrain.training import metrics
from jaxpretrain.training.workdir import config_of

TUPE_R, NOTES = {"model.position": "tupe_r"}, {"notes.enabled": True}
QUESTIONS = {"objective.mask_share": 1.0, "objective.random_share": 0.0, "objective.loss_weight": 10.0}
ELECTRA = {"objective.name": "electra", "objective.divider": 2} | QUESTIONS
MCBERT = {"objective.name": "mcbert", "objective.divider": 2} | QUESTIONS
FAST = {"optim.name": "muon", "objective.mask_rate": 0.4}  # no method of the three: options, for the baseline too
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
    "BERT-A, fast": FAST,
    "TUPE-R, fast": TUPE_R | FAST,
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
BUDGETS = sorted([*SHORTER, STEPS])
RATES = (5e-4, 1e-3, 2e-3)
MOST_RATES = 6  # where the search ends, whatever it finds
MUON_TIMES = 5  # Muon's rate over Adam's, in the search too
TUNING, TUNING_RATE = 750, 1e-3
TUNING_SEEDS = 1000  # added to a run's: other batches than those it began with
LOSS, WITHOUT_NOTES = "eval/mlm_loss", "eval/without_notes/mlm_loss"
DIVERGED = "DIVERGED"
WORSE_THAN_ALL = 1e6  # in place of the loss of a run that diverged


@dataclass(frozen=True)
class Run:
    """One run of a method; `tuned`: of its encoder with a fresh head, `TUNING` steps further, by MLM."""

    method: str
    rate: float
    seed: int
    steps: int = STEPS
    tuned: bool = False

    @property
    def name(self) -> str:
        method = self.method.lower().replace(" + ", "+").replace(", ", "-").replace("^", "")
        return f"{method}-rate{self.rate:g}-seed{self.seed}-steps{self.steps}{'-tuned' if self.tuned else ''}"

    @property
    def source(self) -> "Run":
        """The run that trained the encoder."""
        return replace(self, tuned=False)

    def fields(self, runs: Path) -> dict[str, Any]:
        """What its config has besides `configs/bert.py`'s; warm-up a twenty-fourth of the steps, and 24 evaluations."""
        fields: dict[str, Any] = SETTING | METHODS[self.method]
        steps, rate, seed = self.steps, self.rate, self.seed
        if self.tuned:
            fields = {name: value for name, value in fields.items() if not name.startswith(("objective.", "notes."))}
            fields |= {"init_from": str(runs / self.source.name), "init_encoder_only": True}
            steps, rate, seed = TUNING, TUNING_RATE, self.seed + TUNING_SEEDS
        if fields.get("optim.name") == "muon":
            fields |= {"optim.muon_rate": MUON_TIMES * rate}
        return fields | {
            "optim.learning_rate": rate,
            "optim.warmup_steps": steps // 24,
            "train.steps": steps,
            "train.seed": seed,
            "eval.every": steps // 24,
            "checkpoint.every_steps": steps // 2,
            "checkpoint.every_minutes": 0.0,
            "checkpoint.keep": 1,
        }

    def arguments(self, runs: Path) -> list[str]:
        """Of the training command."""
        fields = [f"--config.{name}={value}" for name, value in self.fields(runs).items()]
        return ["--config", "configs/bert.py", *fields]


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
        for run in dict.fromkeys(wanted):
            if not self.known(run):
                before = [run.source] if run.tuned else []
                jobs.append({self.runs / r.name: r.arguments(self.runs) for r in [*before, run]})
        train_missing_together(jobs, self.collect)
        for run in wanted:
            self.known(run)

    def known(self, run: Run) -> bool:
        """Whether the record has it; ends the program where it was made with other settings than those of today."""
        folder = self.record / run.name
        if self.diverged(run):
            return True
        if not (folder / "DONE").exists():
            return False
        kept = flatten(config_of(folder))
        for name, value in run.fields(Path()).items():
            if kept[name] != value:
                sys.exit(f"{folder}: has {name}={kept[name]!r}, not {value!r}: move it away, or give another --out")
        return not run.tuned or self.known(run.source)

    def collect(self, job: Mapping[Path, Sequence[str]]) -> None:
        """Into the record, what it does not have yet of a job that ended."""
        for workdir in job:
            folder = self.record / workdir.name
            if (workdir / "DONE").exists():
                if not (folder / "DONE").exists():
                    keep(workdir, folder)
            elif "is not finite" in (said := Path(f"{workdir}.log").read_text(errors="replace")[-500:]):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / DIVERGED).write_text(said.strip().splitlines()[-1] + "\n")
                return
            else:
                all_done(job)

    def diverged(self, run: Run) -> bool:
        """Whether a step was not finite."""
        return any((self.record / r.name / DIVERGED).exists() for r in (run, run.source))

    def end(self, run: Run) -> float:
        """Its last loss."""
        return np.inf if self.diverged(run) else float(curves.read_curve(self.record / run.name, LOSS).value[-1])

    def search(self, methods: Sequence[str], tuned: bool) -> tuple[dict[str, float], dict[str, list[float]]]:
        """The best rate of each method by seed 0, and all that were tried.

        While the best is the lowest or the highest of them, one more beyond is tried, by a factor of two.
        """
        tried, best = {name: list(RATES) for name in methods}, {}
        while True:
            self.train([Run(name, rate, 0, tuned=tuned) for name in methods for rate in tried[name]])
            best = {n: min(tried[n], key=lambda rate: self.end(Run(n, rate, 0, tuned=tuned))) for n in methods}
            beyond = {n: {min(tried[n]): best[n] / 2, max(tried[n]): best[n] * 2}.get(best[n]) for n in methods}
            more = {n: rate for n, rate in beyond.items() if rate and len(tried[n]) < MOST_RATES}
            if not more:
                return best, tried
            for name, rate in more.items():
                tried[name].append(rate)

    def method(self, name: str, rate: float) -> Method:
        """Its runs with all seeds, as `compare` reads them."""
        return labelled(name, [self.record / Run(name, rate, seed).name for seed in self.seeds], LOSS)

    def ends(self, run: Run) -> np.ndarray:
        """The last loss by seed."""
        return np.array([self.end(replace(run, seed=seed)) for seed in self.seeds])

    def flops(self, run: Run) -> float:
        """Of a step, whatever the budget: read from the run that the search always has."""
        curve = curves.read_curve(self.record / replace(run.source, seed=0, steps=STEPS).name, LOSS)
        return float(curve.flops[-1] / curve.step[-1])

    @functools.cached_property
    def step_times(self) -> dict[str, Any]:
        """What `step_time.py --study` measured; ends the program where the setting was another."""
        path = self.record.parent / "step_time.json"
        found = json.loads(path.read_text()) if path.exists() else {"rows": {}}
        if found["rows"] and found["setting"] != SETTING:
            sys.exit(f"{path}: is of another setting: measure it again with step_time.py --study")
        return found

    def seconds(self, method: str) -> float:
        """Of a step over one of the baseline; NaN if not measured."""
        return self.step_times["rows"].get(method, {"ratio": np.nan})["ratio"]

    def annealed(self, run: Run, baseline: Run) -> "Annealed":
        """How many times fewer steps, FLOPs and seconds schedules of its own need to end where the baseline does.

        The losses at the ends of all budgets, as a line over the logarithm of the steps, reach the end that the
        baseline has with the same seed. Where the shortest budget is enough, more is not known.
        """
        logs, needed = np.log(BUDGETS), []
        ends = np.array([self.ends(replace(run, steps=steps)) for steps in BUDGETS]).T
        ends = np.where(np.isfinite(ends), ends, WORSE_THAN_ALL)  # a line to it reaches nothing before the next budget
        for losses, target in zip(ends, self.ends(baseline), strict=True):
            reached = curves.first_reach(Curve(logs, logs, logs, logs, losses), float(target), "step")
            needed.append(reached if np.isfinite(target) else None)
        least = any(x is not None and x <= logs[0] for x in needed)
        spent = curves.estimate([None if x is None else float(np.exp(x)) for x in needed])
        ends = (None if x is None else baseline.steps / x for x in (spent.mean, spent.high, spent.low))
        steps = replace(spent, **dict(zip(("mean", "low", "high"), ends, strict=True)))
        per_step = 1.0, self.flops(run) / self.flops(baseline), self.seconds(run.method)
        return Annealed(tuple(scaled(steps, 1 / cost) for cost in per_step), least)


@dataclass(frozen=True)
class Annealed:
    """Factors in steps, FLOPs and seconds; `least`: with some seed the shortest budget was enough."""

    factors: tuple[Estimate, ...]
    least: bool

    @property
    def cells(self) -> list[str]:
        return [("at least " if self.least and measured(x) else "") + shown(x) for x in self.factors]


def two_networks(method: str) -> bool:
    """Whether the main network is not the one that the masked language model trains."""
    return "objective.name" in METHODS[method]


def scaled(found: Estimate, factor: float) -> Estimate:
    """So many times as much."""
    mean, low, high = (None if x is None else factor * x for x in (found.mean, found.low, found.high))
    return replace(found, mean=mean, low=low, high=high)


def measured(found: Estimate) -> bool:
    """Whether it was reached with all seeds, and measured."""
    return found.mean is not None and not np.isnan(found.mean)


def shown(found: Estimate, digits: int = 2) -> str:
    """Mean and range over seeds."""
    if found.mean is None:
        reached = sum(value is not None for value in found.values)
        return "not reached" + (f" ({reached} of {len(found.values)} seeds did)" if reached else "")
    if not measured(found):
        return "not measured"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} – {found.high:.{digits}f})"


def spread(values: np.ndarray) -> str:
    """The same of what all seeds have."""
    if bad := int((~np.isfinite(values)).sum()):
        return f"diverged ({bad} of {len(values)} seeds)"
    return shown(curves.estimate(values.tolist()), 3)


def by_budget(study: Study, runs: Sequence[Run]) -> str:
    """The ends of all budgets."""
    rows = [[run.method, *(f"{study.ends(replace(run, steps=steps)).mean():.3f}" for steps in BUDGETS)] for run in runs]
    return table(["ends, mean over seeds", *(f"{steps:,} steps" for steps in BUDGETS)], rows)


def searched(study: Study, tried: Mapping[str, Sequence[float]], tuned: bool) -> str:
    """All of the search."""
    rates = sorted({rate for of_method in tried.values() for rate in of_method})
    rows = [
        [n, *(f"{study.end(Run(n, rate, 0, tuned=tuned)):.3f}" if rate in tried[n] else "" for rate in rates)]
        for n in tried
    ]
    return table(["seed 0, by rate", *(f"{rate:g}" for rate in rates)], rows)


def main() -> None:
    """Trains, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="where the runs live")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=CORE, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/methods-tiny"))
    options = parser.parse_args()
    names, seeds = list(dict.fromkeys([BASELINE, *options.only])), list(dict.fromkeys(options.seeds))
    study = Study(options.runs, options.out, seeds)
    fingerprint = check_text(study.record)
    parts, files, bars = [], {}, {}
    for tuned in (False, True):
        group = [BASELINE, *(name for name in names if name != BASELINE and two_networks(name) == tuned)]
        if tuned and len(group) == 1:
            continue
        rates, tried = study.search(group, tuned)
        runs = [Run(name, rates[name], 0, tuned=tuned) for name in group]
        every = [(steps, seed) for steps in reversed(BUDGETS) for seed in seeds]
        study.train([replace(run, seed=seed, steps=steps) for steps, seed in every for run in runs])
        ends = [by_budget(study, runs), "The search for the rate:", searched(study, tried, tuned)]
        factors = {run.method: study.annealed(run, runs[0]) for run in runs[1:]}
        bars |= factors
        if tuned:
            parts += [*tuned_tables(study, runs, factors), *ends]
        else:
            tables, drawn = cloze_tables(study, runs, factors)
            parts += [*tables, *ends, "![held-out loss](curves.png)"]
            files["curves.png"] = png(drawn)
    if bars:
        parts.insert(0, "![times less than BERT-A](factors.png)")
        files["factors.png"] = png(drawn_factors(bars))
    interval = "95 % of the mean" if len(seeds) >= curves.MANY_SEEDS else "lowest – highest"
    about = (
        f"Two layers × 128, {STEPS:,} steps of 64 × 32 tokens of python-docs in 1,024 pieces; seeds "
        f"{', '.join(map(str, seeds))}: mean ({interval}). "
        f"Text: fingerprint {fingerprint[:12]}, of the versions in `runs/text.json`. "
        f"Protocol: docs/study.md. {machine()}, a core to a run."
    )
    each = " ".join(Run(BASELINE, TUNING_RATE, 0).arguments(options.runs))
    parts.append(
        f"A run: `python -m jaxpretrain.train {each}`\n\nAll: `{command()}`. The folder `runs` holds each run's "
        "config and held-out metrics."
    )
    if "load" in (timed := study.step_times):
        parts.append(f"Seconds: [step_time.md](step_time.md), on one core with a load of {timed['load']:.2f} before.")
    write_record(options.out, "Methods at tiny", about, "\n\n".join(parts), files)


def cloze_tables(study: Study, runs: Sequence[Run], factors: Mapping[str, Annealed]) -> tuple[list[str], Figure]:
    """Of the methods that are trained as masked language models: the ends, the factors by both readings, the curves."""
    whole = [run for run in runs if np.isfinite(study.ends(run)).all()]  # no seed of which diverged
    if runs[0] not in whole:
        sys.exit(f"{BASELINE} diverged with a rate of {runs[0].rate:g}: there is nothing to compare with")
    methods = [study.method(run.method, run.rate) for run in whole]
    within, base = curves.factors(methods, methods[0], LOSS), study.ends(runs[0])
    rows, notes = [[BASELINE, f"{runs[0].rate:g}", spread(base), *[""] * 8]], []
    half = replace(runs[0], steps=STEPS // 2)
    for run in runs[1:]:
        ends, reached = study.ends(run), [""] * 3
        if run in whole:
            steps, by_flops = (within[run.method][axis] for axis in ("step", "flops"))
            reached = [shown(steps), shown(by_flops), shown(scaled(steps, 1 / study.seconds(run.method)))]
        reached += [*factors[run.method].cells, study.annealed(run, half).cells[0]]
        rows.append([run.method, f"{run.rate:g}", spread(ends), spread(base - ends), *reached])
        if run in whole and METHODS[run.method].get("notes.enabled"):
            folders = [study.record / replace(run, seed=seed).name for seed in study.seeds]
            series = [curves.read_series(folder, [WITHOUT_NOTES])[1][WITHOUT_NOTES] for folder in folders]
            notes.append(f"{run.method} with its notes off at the end: {spread(np.array([x[-1] for x in series]))}.")
    head = ["method", "rate", "held-out loss", "less than BERT-A's, same seed"]
    head += ["within one schedule: steps", "FLOPs", "seconds"]
    head += ["annealed: steps", "FLOPs", "seconds", f"steps, to BERT-A's end with {STEPS // 2:,}"]
    floor = curves.read_curve(methods[0].runs[0], "eval/unigram_loss").value[-1]
    drawn = learning_curves(methods, methods[0], LOSS, within, over=("step", "flops"))
    return [table(head, rows), " ".join([f"By frequency alone: {floor:.3f}.", *notes])], drawn


def tuned_tables(study: Study, runs: Sequence[Run], factors: Mapping[str, Annealed]) -> list[str]:
    """Of ELECTRA and MC-BERT: their encoders with a fresh head, going on as masked language models."""
    fresh = [Run(BASELINE, TUNING_RATE, seed + TUNING_SEEDS, TUNING) for seed in study.seeds]
    study.train(fresh)
    rows = [["a fresh network", f"{TUNING_RATE:g}", spread(np.array([study.end(run) for run in fresh])), *[""] * 4]]
    base = study.ends(runs[0])
    for run in runs:
        reached = [] if run is runs[0] else [spread(base - study.ends(run)), *factors[run.method].cells]
        rows.append([run.method, f"{run.rate:g}", spread(study.ends(run)), *(reached or [""] * 4)])
    head = ["method", "rate", "held-out loss", "less than BERT-A's, same seed", "annealed: steps", "FLOPs", "seconds"]
    return [
        f"Encoders with a fresh head, {TUNING} steps further as masked language models, at a rate of {TUNING_RATE:g} "
        "for all; these steps, the same for all, are in no factor.",
        table(head, rows),
    ]


def drawn_factors(factors: Mapping[str, Annealed]) -> Figure:
    """The annealed factors as bars, with their range over seeds; a method that does not reach the end has none."""
    figure = Figure(figsize=(7, 1.1 + 0.7 * len(factors)), dpi=120, layout="constrained")
    axes = figure.subplots()
    colours = {"steps": "#0072b2", "FLOPs": "#e69f00", "seconds": "#999999"}
    for i, found in enumerate(factors.values()):
        for j, (unit, factor) in enumerate(zip(colours, found.factors, strict=True)):
            at = i + 0.26 * (j - 1)
            if measured(factor):
                error = [[factor.mean - factor.low], [factor.high - factor.mean]]
                label = unit if unit not in axes.get_legend_handles_labels()[1] else None
                axes.barh(at, factor.mean, 0.24, color=colours[unit], xerr=error, capsize=2, label=label)
                more = " or more" if found.least else ""
                axes.annotate(
                    f"{factor.mean:.2f}{more}", (factor.high, at), (5, 0), textcoords="offset points", va="center"
                )
            elif j == 1:
                axes.annotate("not reached", (1, at), (5, 0), textcoords="offset points", va="center")
    axes.axvline(1, color="#000000", linewidth=1)
    axes.set_yticks(range(len(factors)), list(factors))
    axes.set_ylim(len(factors) - 0.5, -0.5)  # also where the last has no bar
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.set_xlabel("times less than BERT-A, to its end (schedules of their own)")
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside upper right", ncols=len(colours), frameon=False)
    return figure


if __name__ == "__main__":
    main()

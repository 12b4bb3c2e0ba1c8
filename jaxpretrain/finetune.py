"""Fine-tunes a pre-trained encoder on a task with labels: a grid of learning rates and seeds.

    python -m jaxpretrain.finetune --config configs/glue.py:tiny --config.init_from=runs/tupe-tiny \\
        --config.task=MRPC --config.data_dir=GLUE
    python -m jaxpretrain.finetune --config configs/glue.py:tiny --config.init_from=runs/tupe-tiny \\
        --config.task=tsv:reviews.tsv

Tasks are GLUE's (CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI), from a folder in its layout or through
TensorFlow Datasets, and your own: `tsv:FILE` with a header, columns `text` (or `text_a`, `text_b`) and `label` (or
`score`), or those that --config.columns and --config.label name. Several at once, `CoLA,MRPC` or `GLUE` for all nine,
also get a table with their averages.

Writes to --workdir (default INIT_FROM/finetuned/TASK): trials.jsonl, one line a trial; summary.md; the best model
(`predict --workdir … FILE.tsv` labels rows with it); and its predictions for the test rows, in GLUE's own format. A
second start goes on with the trials that are missing.
"""

import json
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from jaxpretrain import cli
from jaxpretrain.config import ConfigError, FinetuneConfig, max_positions, validate_finetune
from jaxpretrain.evaluation.finetuned import (
    describe,
    label,
    load_finetuned,
    mark,
    read_trials,
    save_best,
    write_trials,
)
from jaxpretrain.evaluation.finetuning import Finetuner, Grid, Result, predictions, trials_at_once
from jaxpretrain.evaluation.labelled import Bucket, bucketed, sequence_of_buckets
from jaxpretrain.evaluation.probe import probe
from jaxpretrain.evaluation.scores import AVERAGED, glue_average, glue_missing, summary
from jaxpretrain.evaluation.tasks import GLUE, Examples, TaskData, load, write_submission
from jaxpretrain.evaluation.trained import Trained, load_run, untrained
from jaxpretrain.notes import Notes
from jaxpretrain.training.checkpoint_files import CheckpointError, committed_steps
from jaxpretrain.training.compilation import use_compilation_cache
from jaxpretrain.training.heap import keep_freed_memory, run_in_this_thread
from jaxpretrain.training.metrics import add_to_lines
from jaxpretrain.training.workdir import config_of, locked, notes_of_run, overrides, plain

flags.declare_key_flag("workdir")
PROBE = flags.DEFINE_bool(
    "probe", False, "Also score a linear model on the frozen encoder's sentence vectors (seconds; scikit-learn)."
)
EVERY = flags.DEFINE_bool(
    "every", False, "Fine-tune from every checkpoint of the run and add eval/glue/TASK to its metrics.jsonl."
)


def main(config: FinetuneConfig) -> None:
    """Fine-tunes from one checkpoint, or from every one."""
    run_in_this_thread()
    use_compilation_cache()
    config_of(config.init_from)  # before a task is downloaded for a run that is not there
    names = [config.task] if config.task.startswith("tsv:") else config.task.split(",")
    names = list(GLUE) if config.task.upper() == "GLUE" else [name.strip() for name in names]
    changed = overrides(config, cli.recipe())
    scores: dict[str, float] = {}
    # All of them first: what is wrong with the last should not show after hours.
    for data in [load(name, config.data_dir, columns=config.columns, label=config.label) for name in names]:
        for warning in data.warnings:
            print(f"note: {warning}")
        base = epath.Path(config.init_from) / "finetuned" / "-".join([plain(data.task.name), *changed])
        if cli.WORKDIR.value:
            base = epath.Path(cli.WORKDIR.value) / (plain(data.task.name) if len(names) > 1 else "")
        if EVERY.value:
            finetune_every(config, data, base, changed)
        else:
            where = base if cli.WORKDIR.value or not config.step else base / f"step-{config.step}"
            scores |= finetune(config, data, where, PROBE.value)
    if len(names) > 1 and not EVERY.value:
        of_tasks = {name: value for name, value in scores.items() if name.startswith("eval/glue/")}
        print(f"\n{averages({name.removeprefix('eval/glue/'): value for name, value in of_tasks.items()})}")


def finetune_every(config: FinetuneConfig, data: TaskData, base: epath.Path, changed: list[str]) -> None:
    """Fine-tunes from each checkpoint and adds what came of it to the run's metrics.

    Args:
        config: validated; its step does not count.
        data: of the task.
        base: gets a folder a step.
        changed: what differs from the recipe, part of a curve's name: it is another one.

    Raises:
        ConfigError: no checkpoint, or the run is still training.
        CheckpointError: all of them are damaged.
    """
    run = epath.Path(config.init_from)
    steps = committed_steps(run / "checkpoints")
    if not steps:
        raise ConfigError(f"init_from={config.init_from!r}: no checkpoint there to fine-tune from")
    with locked(run):  # a run that trains writes the same file: now is the time to say so
        pass
    damaged = []
    for step in steps:
        print(f"from step {step:,}")
        try:
            scores = finetune(replace(config, step=step), data, base / f"step-{step}", PROBE.value)
        except CheckpointError as error:
            print(f"note: left out: {error}")
            damaged.append(error)
            continue
        with locked(run):
            add_to_lines(run, {step: {"-".join([name, *changed]): value for name, value in scores.items()}})
    if len(damaged) == len(steps):
        raise damaged[-1]


def averages(scores: Mapping[str, float]) -> str:
    """A table of the tasks' scores, × 100, and GLUE's averages as the papers define them, of what is there."""
    rows = [f"| {name} | {100 * value:.1f} |" for name, value in scores.items()]
    missing = glue_missing(scores)
    if len(missing) < len(AVERAGED):
        without = f", without {', '.join(missing)}" if missing else ""
        nine, eight = glue_average(scores), glue_average(scores, mnli_once=True)
        rows.append(f"| average as in the TUPE paper, MNLI twice{without} | {100 * nine:.1f} |")
        rows.append(f"| average as in those of TNF and MC-BERT, MNLI once{without} | {100 * eight:.1f} |")
    return "\n".join(["| task | dev score × 100 |", "| --- | --- |", *rows])


def finetune(
    config: FinetuneConfig, data: TaskData, workdir: epath.PathLike, with_probe: bool = False
) -> dict[str, float]:
    """Runs the trials that are missing and writes what came of all.

    Args:
        config: validated.
        data: of the task.
        workdir: gets all files.
        with_probe: score a linear model on frozen sentence vectors too.

    Returns:
        For the curves: `eval/glue/TASK`, the median at the best rate (`MNLI-m` and `MNLI-mm` apart);
        `eval/glue_rate/TASK`; `eval/probe/TASK`.

    Raises:
        ConfigError: config, run, rows and workdir do not go together.
    """
    workdir = epath.Path(workdir)
    run = load_run(config.init_from, config.step or None)
    rare, notes = notes_of(config, run)
    limit = min(config.max_length, max_positions(run.config))

    def rows(examples: Examples) -> list[Bucket]:
        return bucketed(examples, run.tokenizer, rare, limit, data.task)

    train, dev = rows(data.train), {name: (rows(examples), examples) for name, examples in data.dev.items()}
    per_epoch = len(sequence_of_buckets([len(bucket) for bucket in train], config.batch_size, 0))
    steps = (config.epochs or data.task.epochs) * per_epoch
    finetuner = Finetuner(config, run.config, run.tokenizer.vocab_size, data.task, steps)
    marks = {"checkpoint": mark((run.params, notes)), "rows": mark((train, [buckets for buckets, _ in dev.values()]))}
    with locked(workdir):
        describe(workdir, finetuner, run.tokenizer, rare, run.step, marks)
        done = read_trials(workdir)
        known = {(result.rate, result.seed) for result in done}
        missing = [(rate, seed) for rate in config.learning_rates for seed in range(config.seeds)]
        missing = [trial for trial in missing if trial not in known]

        def grid_of(at_once: int) -> Grid:
            encoder = run.params["encoder"]
            return Grid(finetuner, train, dev, encoder, notes, at_once)

        at_once = trials_at_once(config, len(missing), lambda: grid_of(len(jax.devices())).bytes_per_trial())
        print_table(finetuner, run, data, workdir, len(missing), len(done), at_once, limit)
        if missing:
            keep_freed_memory()
            done = run_trials(grid_of(at_once), missing, done, workdir)
        wanted = [r for r in done if r.rate in config.learning_rates and r.seed < config.seeds]
        probed = probe(untrained(run) if config.untrained else run, data) if with_probe else {}
        rate, scores = write_summary(workdir, finetuner, data, wanted, probed)
        write_predictions(workdir, data)
    task = data.task
    return {
        **{f"eval/glue/{name}": value for name, value in scores.items()},
        f"eval/glue_rate/{task.name}": rate,
        **{f"eval/probe/{task.dev_score(split)}": values[task.metrics[0]] for split, values in probed.items()},
    }


def notes_of(config: FinetuneConfig, run: Trained) -> tuple[list[str], Notes | None]:
    """The words that have notes, and the notes, where a run's are kept (TNF-F, TNF-U)."""
    if config.notes == "drop":
        return [], None
    words, table, written = notes_of_run(config.init_from, config.step or None)
    return words, Notes(jnp.asarray(table), jnp.asarray(written))


def run_trials(grid: Grid, trials: list[tuple[float, int]], done: list[Result], workdir: epath.Path) -> list[Result]:
    """Runs trials, as many at a time as the grid takes; each lot is written when it is over, with the best model."""
    task, main = grid.finetuner.task, grid.finetuner.task.metrics[0]
    steps = grid.finetuner.steps
    redraw = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file needs no more
    with tqdm(total=len(trials) * steps, unit="step", dynamic_ncols=True, mininterval=redraw, smoothing=0.05) as bar:
        for start in range(0, len(trials), grid.at_once):
            results, model_of = grid.run(trials[start : start + grid.at_once], bar.update)
            before = max((standing(result, main) for result in done), default=-np.inf)
            scores = [standing(result, main) for result in results]
            best = int(np.argmax(scores))
            if scores[best] > before or not done:
                save_best(workdir, len(done) + best + 1, *model_of(best), scores[best])
            done = [*done, *results]
            write_trials(workdir, task, done)
            for result in results:
                odd = "" if result.finite else ", not finite"
                trial = f"rate {result.rate:g} seed {result.seed}"
                bar.write(f"{trial}: dev {main} {100 * judged(result, main):.1f} at epoch {result.epoch}{odd}")
    return done


def judged(result: Result, metric: str) -> float:
    """The dev score that trials are compared by: of the first dev set (MNLI: matched)."""
    return next(iter(result.scores.values()))[metric]


def standing(result: Result, metric: str) -> float:
    """The same, for the choice of model and rate: a trial whose outputs are no numbers is behind all others."""
    return judged(result, metric) if result.sound else -np.inf


def write_summary(
    workdir: epath.Path, finetuner: Finetuner, data: TaskData, results: list[Result], probed: dict
) -> tuple[float, dict[str, float]]:
    """Writes summary.md and summary.json, prints the former; returns the best rate, and its median on each dev set."""
    config, task, main = finetuner.config, finetuner.task, finetuner.task.metrics[0]
    by_rate: dict[float, list[Result]] = defaultdict(list)
    for result in results:
        by_rate[result.rate].append(result)
    numbers = {rate: summary([judged(result, main) for result in found]) for rate, found in by_rate.items()}
    best = max(by_rate, key=lambda rate: float(np.median([standing(result, main) for result in by_rate[rate]])))
    rule = "the best epoch by dev score" if config.select == "best" else "the last epoch"
    rows = ["| rate | seeds | median | mean | std | 95 % of the median |", "| --- " * 6 + "|"]
    for rate, n in sorted(numbers.items()):
        mark = "**" if rate == best else ""
        spread = f"{100 * n['std']:.1f} | {100 * n['low']:.1f} – {100 * n['high']:.1f}" if n["n"] > 1 else "– | –"
        rows.append(f"| {rate:g} | {n['n']} | {mark}{100 * n['median']:.1f}{mark} | {100 * n['mean']:.1f} | {spread} |")
    lines = [
        f"# {task.name}",
        "",
        f"Dev {main} × 100, {rule}; from {config.init_from}"
        f"{' (untrained)' if config.untrained else ''}, {len(data.train):,} rows to train on, "
        f"{', '.join(f'{len(examples):,} {name}' for name, examples in data.dev.items())}.",
        "",
        *rows,
        "",
        f"Medians at rate {best:g}: {medians(by_rate[best])}.",
    ]
    if probed:
        of = "; ".join(f"{name} {shown(values)}" for name, values in probed.items())
        lines += ["", f"Linear probe on frozen sentence vectors: {of}."]
    bad = sum(not result.finite for result in results)
    if bad:
        lines += ["", f"{bad} of {len(results)} trials had scores that are no numbers: lower learning rates."]
    text = "\n".join(lines) + "\n"
    (workdir / "summary.md").write_text(text)
    rates = {f"{rate:g}": {k: None if math.isnan(x) else x for k, x in n.items()} for rate, n in numbers.items()}
    scores = {
        task.dev_score(split): float(np.median([result.scores[split][main] for result in by_rate[best]]))
        for split in data.dev
    }
    about = {"task": task.name, "metric": main, "best_rate": best, "scores": scores, "rates": rates}
    (workdir / "summary.json").write_text(json.dumps(about | ({"probe": probed} if probed else {}), indent=2) + "\n")
    print(f"\n{text}\n{workdir}/summary.md")
    print(f"\n  python -m jaxpretrain.predict --workdir {shlex.quote(str(workdir))} FILE.tsv")
    return best, scores


def medians(results: list[Result]) -> str:
    """Every metric of every dev set, the median over trials."""
    return "; ".join(
        f"{split} " + shown({m: float(np.median([r.scores[split][m] for r in results])) for m in scores})
        for split, scores in results[0].scores.items()
    )


def shown(scores: dict[str, float]) -> str:
    """Scores × 100."""
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())


def write_predictions(workdir: epath.Path, data: TaskData) -> None:
    """The best model's answers to the unlabelled rows, as GLUE's server takes them."""
    if not data.test:
        return
    model = load_finetuned(workdir)
    folder = workdir / "predictions"
    folder.mkdir(exist_ok=True)
    for split, examples in data.test.items():
        answers = predictions(label(model, examples), data.task)
        path = write_submission(str(folder), data.task, split, examples.ids, answers)
        print(f"{path}: {len(examples):,} rows")


def print_table(
    finetuner: Finetuner,
    run: Trained,
    data: TaskData,
    workdir: epath.Path,
    missing: int,
    done: int,
    at_once: int,
    limit: int,
) -> None:
    """One table of what is about to run."""
    config, task = finetuner.config, data.task
    model = run.config.model
    table = {
        "task": f"{task.name}, {len(task.classes)} classes" if task.classes else f"{task.name}, regression",
        "rows": f"{len(data.train):,} to train on, "
        + ", ".join(f"{len(examples):,} {name}" for name, examples in data.dev.items()),
        "model": f"{config.init_from} at step {run.step:,}{', untrained' if config.untrained else ''}: "
        f"{model.layers} x {model.hidden}, {model.position}; notes {config.notes}",
        "trials": f"{len(config.learning_rates)} rates x {config.seeds} seeds, {done} done, {missing} to run, "
        f"{at_once} at once; {finetuner.steps:,} steps of {config.batch_size} each, at most {limit} tokens",
        "folder": str(workdir),
    }
    print("\n".join(f"  {name:<9} {text}" for name, text in table.items()), flush=True)


if __name__ == "__main__":
    cli.run(main, FinetuneConfig, validate_finetune)

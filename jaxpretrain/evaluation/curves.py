"""Learning curves of runs, and how many times less one method needs than another to get as far.

A method is a group of runs whose configs differ in nothing but `train.seed`, and in the steps that a budget gave each.
The baseline's final value is the target;
a method's factor is what the baseline spent until it was there for good, divided by what the method spent: in steps,
tokens, FLOPs and seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from etils import epath

from jaxpretrain.config import FREE_ON_RESUME, Config, ConfigError, flatten, is_unread, short_name
from jaxpretrain.training import metrics
from jaxpretrain.training.workdir import config_of

AXES = ("step", "tokens", "flops", "seconds")
SMOOTHING = 0.04  # of a curve's points: the window of the moving average
LOWER, HIGHER = ("loss", "perplexity"), ("accuracy", "probability")
SCORES = ("glue/", "probe/")
_LENGTHS = ("train.steps", "train.budget_flops", "train.budget_minutes")
UNIGRAM, _ROUNDING = "eval/unigram_loss", 1e-3
_BEYOND = 1e100  # of every metric; JSON has whole numbers that no float holds
MANY_SEEDS = 5  # from here on, intervals are a bootstrap's

# These shape the result or what is measured, although a run may resume under another value.
_FREE = {*FREE_ON_RESUME, "train.seed"} - {"train.steps", "init_from", "init_encoder_only", "eval.examples"}
# These change the held-out text, its pieces or the masks.
_OF_HELD_OUT = (
    "data.source",
    "data.sequence_length",
    "data.vocab_size",
    "data.lowercase",
    "data.tokenizer",
    "data.tokenizer_type",
    "data.held_out",
    "objective.mask_share",
    "objective.random_share",
    "eval.examples",
    "eval.masked",
)


@dataclass(frozen=True)
class Curve:
    """One metric of a run, float64 [P] each, and what the run had spent by then.

    Attributes:
        step: steps taken.
        tokens: tokens seen.
        flops: floating-point operations of its products (training/flops.py).
        seconds: of training, without compilation and evaluation.
        value: the metric.
    """

    step: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but the seed, and in the steps that a budget gave each.

    Attributes:
        label: what sets the method apart from the others.
        runs: the folders.
        configs: one per run.
        curves: one per run, at the steps that all of them measured, and at their ends.
    """

    label: str
    runs: tuple[str, ...]
    configs: tuple[Config, ...]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Estimate:
    """A number measured once per seed.

    Attributes:
        values: one per seed; None: not reached.
        mean: None where one of them is.
        low: lower end of the interval over seeds: the lowest of fewer than five, else of a 95 % bootstrap of the mean.
        high: upper end.
    """

    values: tuple[float | None, ...]
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def read_curve(workdir: epath.PathLike, metric: str) -> Curve:
    """The values of a metric that a run has measured so far, as in `metrics.jsonl`, without those that are not finite.

    Raises:
        ConfigError: no run in the folder, or it has no such metric.
    """
    lines = _lines(workdir)
    names = ("step", "total/tokens", "total/flops", "total/seconds", metric)
    points: list[list[Any]] = [[line.get(name) for name in names] for line in lines]
    points = [point for point in points if all(map(_finite, point)) and min(point[:-1]) >= 0]
    if not points:
        if any(_finite(line.get(metric)) for line in lines):
            raise ConfigError(f"{workdir}: --metric={metric} is there only at steps whose cost is unknown (total/…)")
        measured = sorted({name for line in lines for name in line if name.startswith("eval/")})
        there = ", ".join(measured) or "nothing held out yet"
        raise ConfigError(f"{workdir}: --metric={metric} has no value there; measured: {there}")
    return Curve(*np.array(points, np.float64).T)


def read_series(workdir: epath.PathLike, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Those of the metrics that a run has, on the steps at which one of them was measured; NaN where another was not.

    Raises:
        ConfigError: no run in the folder.
    """
    lines = [line for line in _lines(workdir) if any(name in line for name in names)]
    numbers = {n: np.array([line[n] if _finite(line.get(n)) else np.nan for line in lines], float) for n in names}
    found = {name: values for name, values in numbers.items() if np.isfinite(values).any()}
    return np.array([line["step"] for line in lines], int), found


def read_methods(workdirs: Sequence[str], metric: str) -> list[Method]:
    """Groups runs into methods, in the order of their first runs.

    Raises:
        ConfigError: a folder without a run or without the metric, or seeds that were measured at no common step.
    """
    groups: dict[tuple, list[tuple[str, Config]]] = {}
    for workdir in dict.fromkeys(workdirs):
        config = config_of(workdir)
        fields = _fields(config)
        key = tuple((name, str(value)) for name, value in fields.items())
        groups.setdefault(key, []).append((workdir, config))
    found = []
    for label, group in zip(labels([group[0][1] for group in groups.values()]), groups.values(), strict=True):
        runs, configs = zip(*group, strict=True)
        curves = [read_curve(run, metric) for run in runs]
        found.append(Method(label, runs, configs, _at_common_steps(curves, configs, runs)))
    return found


def labels(configs: Sequence[Config]) -> list[str]:
    """Names for methods: their recipes', where these tell them apart, else the fields that differ.

    Where many fields differ between recipes, each label is the recipe's name and what differs within the recipe.
    """
    names = [config.name for config in configs]
    if len(set(names)) == len(names):
        return names
    differing = _differing(configs)
    if len(differing) <= 2:
        return [_described(config, differing) for config in configs]
    within = {name: _differing([config for config in configs if config.name == name]) for name in names}
    return [f"{config.name} {_described(config, within[config.name])}".strip() for config in configs]


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss, by its name.

    Raises:
        ConfigError: the name tells nothing.
    """
    known = dict.fromkeys(LOWER, True) | dict.fromkeys(HIGHER, False)
    if metric.removeprefix("eval/").startswith(SCORES):  # the name of a task follows, whatever it is
        return False
    for word, lower in known.items():
        if word in metric:
            return lower
    raise ConfigError(f"--metric={metric}: is less or more of it better? It can be one with {', '.join(known)}")


def smoothed(curve: Curve) -> Curve:
    """A centred moving average of the value, over 4 % of the points: none below 50 of them, three from there on.

    A wider window would round the knee of a curve, and move the place where it crosses a target. Where the window would
    stick out at either end, a straight line through its points takes the place of their mean: the last value of a
    falling curve would else be an average with what came before, and every factor too large.
    """
    half = int(len(curve.value) * SMOOTHING / 2)
    if not half:
        return curve
    x, window = np.arange(2 * half + 1), np.ones(2 * half + 1) / (2 * half + 1)
    first, last = (np.polyval(np.polyfit(x, part, 1), x) for part in (curve.value[: len(x)], curve.value[-len(x) :]))
    return replace(curve, value=np.concatenate([first[:half], np.convolve(curve.value, window, "valid"), last[-half:]]))


def mean_curve(method: Method) -> Curve:
    """The mean over seeds, of values and of what was spent."""
    return Curve(*(np.mean([getattr(c, name) for c in method.curves], 0) for name in (*AXES, "value")))


def first_reach(curve: Curve, target: float, axis: str, lower: bool = True) -> float | None:
    """What was spent when a curve first was at least as good as `target` and then never worse again.

    Args:
        curve: smoothed.
        target: a value of the metric.
        axis: one of `AXES`.
        lower: lower is better.

    Returns:
        In the unit of the axis, interpolated between points; the first point, where that is as good already; None where
        the last one is not.
    """
    x, gap = getattr(curve, axis), (curve.value - target) * (1 if lower else -1)
    worse = np.flatnonzero(gap > 0)
    if len(worse) == 0:
        return float(x[0])
    last = worse[-1]
    if last == len(x) - 1:
        return None
    share = gap[last] / (gap[last] - gap[last + 1])
    return float(x[last] + share * (x[last + 1] - x[last]))


def target_of(baseline: Method) -> float:
    """The baseline's final value: the mean over its seeds, smoothed."""
    return float(smoothed(mean_curve(baseline)).value[-1])


def factors(methods: Sequence[Method], baseline: Method, metric: str) -> dict[str, dict[str, Estimate]]:
    """How many times less each method needs, by label and axis, to get where the baseline's mean curve ends.

    What the baseline spent until it was there (all, unless it went past and came back) is divided by what the method
    did, the mean over its seeds: a mean of the seeds' own factors would grow with their noise. The baseline's factor is
    1 by definition.
    """
    lower, target, reference = lower_is_better(metric), target_of(baseline), smoothed(mean_curve(baseline))
    table: dict[str, dict[str, Estimate]] = {}
    for method in methods:
        table[method.label] = {}
        for axis in AXES:
            needed = first_reach(reference, target, axis, lower)
            assert needed is not None  # it ends on its own target
            reached = [first_reach(smoothed(curve), target, axis, lower) for curve in method.curves]
            spent = [needed] * len(reached) if method is baseline else reached
            spent = estimate([x or None for x in spent])  # what cost nothing has no factor
            mean, most, least = (None if x is None else needed / x for x in (spent.mean, spent.low, spent.high))
            values = tuple(None if x is None else needed / x for x in spent.values)
            table[method.label][axis] = Estimate(values, mean, least, most)
    return table


def final_values(method: Method) -> Estimate:
    """The smoothed value at the last step that all seeds have, or at each one's end."""
    return estimate([float(smoothed(curve).value[-1]) for curve in method.curves])


def estimate(values: Sequence[float | None]) -> Estimate:
    """Mean and interval over seeds."""
    known = np.array([value for value in values if value is not None])
    if len(known) < len(values):
        return Estimate(tuple(values))
    low, high = known.min(), known.max()
    if len(known) >= MANY_SEEDS:
        draws = np.random.default_rng(0).choice(known, (10_000, len(known)))  # the same interval every time
        low, high = np.quantile(draws.mean(1), (0.025, 0.975))
    return Estimate(tuple(values), float(known.mean()), float(low), float(high))


def caveats(methods: Sequence[Method], metric: str) -> list[str]:
    """What stands against comparing these runs by this metric, a sentence each."""
    configs = [method.configs[0] for method in methods]
    differing, found = _differing(configs), []
    apart = [name for name in differing if name in _OF_HELD_OUT]
    if apart and metric.startswith("eval/") and not metric.removeprefix("eval/").startswith(SCORES):
        found.append(
            f"{', '.join(apart)} differ{'s' if len(apart) == 1 else ''} between the methods: their held-out texts, "
            "pieces or masks are not the same, and the values do not compare."
        )
    if "objective.name" in differing and "mlm" in metric:
        found.append(f"{metric} is the whole model's in MLM, but the small second network's in ELECTRA and MC-BERT.")
    elif len(methods) > 1 and ("choice" in metric or "discriminator" in metric):
        found.append(f"{metric}: each method's second network sets its own questions, harder or easier ones.")
    if lengths := [name for name in differing if name in _LENGTHS]:
        differ = "differs, and with it" if len(lengths) == 1 else "differ, and with them"
        found.append(f"{' and '.join(lengths)} {differ} the schedule of the learning rate.")
    if "init_from" in differing:
        found.append("init_from differs: what the run before had cost is in no factor.")
    runs = [run for method in methods for run in method.runs]
    unigram = [values[-1] for run in runs for values in read_series(run, [UNIGRAM])[1].values()]
    if not apart and metric.startswith("eval/mlm") and unigram and max(unigram) - min(unigram) > _ROUNDING:
        found.append(
            f"{UNIGRAM}, which depends on the text alone, is not the same in all runs: their held-out texts, pieces or "
            "masks are not, and the values do not compare."
        )
    target, lower = target_of(methods[0]), lower_is_better(metric)
    for method in methods:
        seeds = [config.train.seed for config in method.configs]
        if len(set(seeds)) < len(seeds):
            found.append(f"{method.label}: two runs have the same seed, and say less than two seeds would.")
        if method is not methods[0] and any(
            first_reach(smoothed(curve), target, "step", lower) == curve.step[0] for curve in method.curves
        ):
            found.append(f"{method.label} is there where it was measured first: its factors are these at least.")
        planned, last = method.configs[0].train.steps, int(method.curves[0].step[-1])
        if last < planned:
            found.append(f"{method.label}: read up to step {last:,} of {planned:,}; one of its runs is not finished.")
    return found


def _lines(workdir: epath.PathLike) -> list[dict[str, Any]]:
    by_step = {line["step"]: line for line in metrics.read(workdir)}  # each once and in order, as the trainer writes
    lines = [by_step[step] for step in sorted(by_step) if 0 <= step < 1 << 53]  # no larger number is whole in a float
    if not lines:
        raise ConfigError(f"{workdir}: no {metrics.METRICS} there that could be read; has a run logged anything yet?")
    return lines


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _BEYOND


def _at_common_steps(curves: Sequence[Curve], configs: Sequence[Config], runs: Sequence[str]) -> tuple[Curve, ...]:
    """The points at steps that all measured; and the ends, where a budget gave each seed its own number of steps."""
    steps = reduce(np.intersect1d, [curve.step for curve in curves])
    chosen = [np.isin(curve.step, steps) for curve in curves]
    if all(curve.step[-1] == config.train.steps for curve, config in zip(curves, configs, strict=True)):
        shortest = min(curve.step[-1] for curve in curves)
        chosen = [rows & (curve.step < shortest) for curve, rows in zip(curves, chosen, strict=True)]
        for rows in chosen:
            rows[-1] = True
    if not chosen[0].any():
        raise ConfigError(f"{', '.join(runs)}: the same but for the seed, yet measured at no common step")
    return tuple(
        Curve(*(getattr(curve, name)[rows] for name in (*AXES, "value")))
        for curve, rows in zip(curves, chosen, strict=True)
    )


def _fields(config: Config) -> dict[str, Any]:
    """What sets a method apart; where a budget gives the steps, the budget."""
    flat, train = flatten(config), config.train
    free = {*_FREE, "train.steps"} - {*_LENGTHS[1:]} if train.budget_flops or train.budget_minutes else _FREE
    return {name: value for name, value in flat.items() if name not in free and not is_unread(config, name)}


def _differing(configs: Sequence[Config]) -> list[str]:
    fields = [_fields(config) for config in configs]
    names = dict.fromkeys(name for of_one in fields for name in of_one)
    return [name for name in names if any(f.get(name) != fields[0].get(name) for f in fields)]


def _described(config: Config, fields: Sequence[str]) -> str:
    """`position=tupe_r, notes=True`: fields without their room, unless the name then says too little."""
    flat = flatten(config)
    return ", ".join(f"{short_name(name.removesuffix('.enabled'), flat)}={flat[name]}" for name in fields)

"""Pictures of runs: learning curves, how positions attend, what notes learnt, and the quiz over time.

Each function returns a figure of its own (no pyplot, no global state) for `png` or `svg`; 1,200 pixels wide at 100 dpi.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from jaxpretrain.config import ConfigError
from jaxpretrain.evaluation.curves import (
    AXES,
    Estimate,
    Method,
    first_reach,
    lower_is_better,
    mean_curve,
    smoothed,
    target_of,
)

# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow that white swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, DASHES = "os^DvPX", ("-", "--", ":", "-.")
GREY = "#666666"
WIDTH, DPI = 12.0, 100  # inches, dots an inch

GROUPS, NEIGHBOURS = 6, 3  # of the heat map of notes
MOST_NOTES = 20_000  # all pairs are compared, which takes seconds for so many
PAIRS = 20_000
BINS = np.linspace(-1, 1, 81)

MOST_HEADS, MOST_POSITIONS = 4, 64  # of the picture of positions

_UNITS = {
    "step": ((1, "steps"), (1e3, "thousand steps"), (1e6, "million steps")),
    "tokens": ((1e3, "thousand tokens"), (1e6, "million tokens"), (1e9, "billion tokens")),
    "flops": ((1e9, "GFLOP"), (1e12, "TFLOP"), (1e15, "PFLOP"), (1e18, "EFLOP"), (1e21, "ZFLOP")),
    "seconds": ((1, "seconds"), (60, "minutes"), (3600, "hours"), (86400, "days")),
}


def png(figure: Figure) -> bytes:
    """The file's content."""
    return _saved(figure, "png")


def svg(figure: Figure) -> bytes:
    """The file's content; letters are drawn, so that it looks the same everywhere."""
    return _saved(figure, "svg", metadata={"Date": None})


def metric_label(metric: str) -> str:
    """`eval/mlm_loss` as an axis names it: "held-out MLM loss (nats)"."""
    room, _, name = metric.rpartition("/")
    where = {"eval": "held-out ", "train": "training "}.get(room, f"{room} " if room else "")
    text = name.replace("_", " ").replace("mlm", "MLM").replace("glue", "GLUE")
    unit = " (nats)" if "loss" in name else " (share)" if "accuracy" in name or "probability" in name else ""
    return where + text + unit


def learning_curves(
    methods: Sequence[Method],
    baseline: Method,
    metric: str,
    factors: Mapping[str, Mapping[str, Estimate]],
    over: Sequence[str] = AXES,
) -> Figure:
    """The metric over steps, tokens, FLOPs and seconds: the mean over seeds in a band from the lowest to the highest.

    Args:
        methods: at most 28 look different.
        baseline: one of them; where it ends is dashed.
        metric: its name.
        factors: of `curves.factors`: written at the names.
        over: the panels, some of `AXES`.
    """
    columns, rows = min(len(over), 2), -(-len(over) // 2)
    figure = Figure(figsize=(WIDTH * (1 + columns) / 3, 4.75 * rows), dpi=DPI, layout="constrained")
    target, lower = target_of(baseline), lower_is_better(metric)
    panels: list[Axes] = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, axis in zip(panels, over, strict=False):  # of three, the fourth place stays empty
        most = max(float(getattr(curve, axis)[-1]) for method in methods for curve in method.curves)
        scale, unit = next((unit for unit in reversed(_UNITS[axis]) if most >= 4 * unit[0]), _UNITS[axis][0])
        axes.axhline(target, color=GREY, linestyle="--", linewidth=1.2, gid="target")
        ends = []
        for i, method in enumerate(methods):
            mean = mean_curve(method)
            x, values = getattr(mean, axis) / scale, np.array([curve.value for curve in method.curves])
            color, dashes = PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]
            axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
            axes.plot(
                x, mean.value, label=method.label, color=color, linestyle=dashes, linewidth=1.8,
                marker=MARKERS[i % len(MARKERS)], markersize=4.5, markevery=max(1, len(x) // 12),
            )  # fmt: skip
            factor, there = factors[method.label][axis].mean, first_reach(smoothed(mean), target, axis, lower)
            compared = method is not baseline and factor is not None
            ends.append((float(mean.value[-1]), f"{method.label} {factor:.1f}×" if compared else method.label, color))
            if compared and there is not None:
                ring = {"color": color, "fillstyle": "none", "markeredgewidth": 1.8}
                axes.plot(there / scale, target, marker="o", markersize=11, **ring)
        axes.set_xlim(left=0)
        axes.tick_params(labelleft=True)
        _label_ends(axes, ends)
        _dress(axes, unit, metric_label(metric))
    label = metric_label(metric)
    spread = "line: mean over seeds, band: lowest to highest; " if any(len(m.curves) > 1 for m in methods) else ""
    below = [f"{spread}dashed: where {baseline.label} ends, {target:.4g}"]
    if len(methods) > 1:
        below.append("ring: where a method gets there; ×: how many times less that takes")
    _title(figure, label[0].upper() + label[1:], "\n".join(below))
    return figure


def notes_learnt(words: list[str], table: np.ndarray, written: np.ndarray) -> Figure:
    """What the notes learnt: which words' notes are alike, and how much more alike than chance.

    All cosines are of notes less their mean, which every note has a share of. Left, some tight neighbourhoods, by a
    rule that the picture states: it shows the best that was learnt, not a sample. Right, all words.

    Args:
        words: N, by falling count.
        table: [N, H].
        written: int [N], the step at which each note was last written; -1: never. Those are left out.

    Raises:
        ConfigError: fewer than two notes are written.
    """
    rows = np.flatnonzero(np.asarray(written) >= 0)[:MOST_NOTES]
    if len(rows) < 2:
        raise ConfigError(
            f"{len(rows)} of {len(words):,} notes are written, and two are compared: train for longer, or look at a "
            "later checkpoint"
        )
    notes = _directions(np.asarray(table, np.float32)[rows])
    neighbours, cosines = _nearest(notes, min(NEIGHBOURS, len(rows) - 1))
    groups = tight_groups(notes, neighbours, cosines)
    shown = [i for group in groups for i in group]

    figure = Figure(figsize=(WIDTH, 7.6), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    image = left.imshow(notes[shown] @ notes[shown].T, cmap="RdBu_r", vmin=-1, vmax=1)
    names = [_short(words[rows[i]]) for i in shown]
    left.set_xticks(range(len(shown)), names, rotation=90, fontsize=10, parse_math=False)
    left.set_yticks(range(len(shown)), names, fontsize=10, parse_math=False)
    for border in np.cumsum([len(group) for group in groups])[:-1] - 0.5:
        left.axhline(border, color="white", linewidth=2)
        left.axvline(border, color="white", linewidth=2)
    left.set_title(
        f"Chosen, not sampled: a word and its {neighbours.shape[1]} nearest, no word twice;\n"
        "each group from the tightest tenth, as far from those before as there is",
        fontsize=12,
    )
    bar = figure.colorbar(image, ax=left, location="bottom", shrink=0.6, pad=0.02, ticks=(-1, -0.5, 0, 0.5, 1))
    bar.set_label("cosine of two notes (mean note subtracted)", fontsize=12)

    rng = np.random.default_rng(0)
    one = rng.integers(len(rows), size=PAIRS)
    other = (one + rng.integers(1, len(rows), size=PAIRS)) % len(rows)
    chance = _directions(rng.standard_normal(notes.shape, dtype=np.float32))
    for i, (name, values) in enumerate(
        {
            "each note and its nearest": cosines[:, 0],
            "two notes at random": np.einsum("ih,ih->i", notes[one], notes[other]),
            "a random vector and its nearest": _nearest(chance, 1)[1][:, 0],
        }.items()
    ):
        counts, _ = np.histogram(np.clip(values, -1, 1), BINS)
        look = {"color": PALETTE[i], "linewidth": 2, "linestyle": DASHES[i]}
        right.stairs(counts / len(values), BINS, label=f"{name} (median {np.median(values):.2f})", **look)
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=11, frameon=False)
    _dress(right, "cosine (mean subtracted)", f"share, per {BINS[1] - BINS[0]:.3g} of cosine")
    right.set_xlim(-1, 1)
    count = f"{len(rows):,} of {len(words):,} words have a written note"
    cut = f"; the {MOST_NOTES:,} most frequent are compared" if len(rows) == MOST_NOTES else ""
    _title(figure, "What the notes learnt", count + cut)
    return figure


def tight_groups(notes: np.ndarray, neighbours: np.ndarray, cosines: np.ndarray) -> list[list[int]]:
    """At most six groups of rows, a row and its neighbours each, no row twice.

    First the group of the largest mean cosine. Then, of the tightest tenth (and of 24, where there are so few), the one
    whose first row is least like the first rows before it: else all six would be of one topic.

    Args:
        notes: [N, H], of length 1.
        neighbours: int [N, k], each row's nearest, the nearest first.
        cosines: [N, k], to each.
    """
    tightest = np.argsort(-cosines.mean(1), kind="stable")[: max(len(notes) // 10, GROUPS * (NEIGHBOURS + 1))]
    candidates = {int(row): [int(row), *map(int, neighbours[row])] for row in tightest}
    groups: list[list[int]] = []
    likeness = np.full(len(notes), -1.0)  # to the nearest first row so far
    while candidates and len(groups) < GROUPS:
        group = candidates[min(candidates, key=lambda row: likeness[row])]  # of equals, the tightest
        groups.append(group)
        likeness = np.maximum(likeness, notes @ notes[group[0]])
        candidates = {row: other for row, other in candidates.items() if set(other).isdisjoint(group)}
    return groups


NOTES_METRICS = (
    "notes/share_written",
    "notes/age",
    "notes/norm",
    *(
        f"eval/{without}{name}"
        for name in ("mlm_loss_near_rare_words", "mlm_loss_elsewhere", "choice_loss", "discriminator_loss", "mlm_loss")
        for without in ("", "without_notes/")
    ),
)
QUIZ_METRICS = (
    "eval/mlm_accuracy",
    "eval/mlm_probability",
    "eval/neither_share",
    "eval/candidate_entropy",
    "eval/choice_accuracy",
    "eval/choice_accuracy_changed",
    "eval/choice_accuracy_original",
    "eval/choice_accuracy_neither",
)


def notes_over_time(steps: np.ndarray, metrics: Mapping[str, np.ndarray]) -> Figure:
    """The dictionary over training, and the held-out loss with and without it.

    Args:
        steps: [P].
        metrics: those of `NOTES_METRICS` that the run has, [P] each. The loss is split into near rare words and
            elsewhere where the objective does so.
    """
    figure = Figure(figsize=(WIDTH, 7.4), dpi=DPI, layout="constrained")
    panels = figure.subplot_mosaic("wwaann;lllsss")
    for panel, name, label in (
        ("w", "share_written", "notes written (share of words)"),
        ("a", "age", "age (mean, steps)"),
        ("n", "norm", "length (mean norm)"),
    ):
        _lines(panels[panel], steps, metrics, {f"notes/{name}": ("", "-")})
        _dress(panels[panel], "steps", label)
        panels[panel].set_ylim(0, 1.05 * panels[panel].get_ylim()[1])

    parts = {"mlm_loss_near_rare_words": "near rare words", "mlm_loss_elsewhere": "elsewhere"}
    if not any(f"eval/{name}" in metrics for name in parts):
        whole = {"choice_loss": "choice", "discriminator_loss": "discriminator", "mlm_loss": "MLM"}
        parts = dict([next((part for part in whole.items() if f"eval/{part[0]}" in metrics), ("mlm_loss", "MLM"))])
    with_notes = {f"eval/{name}": (f"{text}, with notes", "-") for name, text in parts.items()}
    without = {f"eval/without_notes/{name}": (f"{text}, without", "--") for name, text in parts.items()}
    loss, saved = panels["l"], panels["s"]
    _lines(loss, steps, metrics, with_notes)
    _lines(loss, steps, metrics, without)
    _dress(loss, "steps", "held-out loss (nats)")
    both = {with_: metrics[w] - metrics[with_] for with_, w in zip(with_notes, without, strict=True) if w in metrics}
    saved.axhline(0, color=GREY, linewidth=1.2)
    _lines(saved, steps, both, {name: (text, "-") for name, text in zip(with_notes, parts.values(), strict=True)})
    _dress(saved, "steps", "loss without - with (nats)", "What the notes save")
    _title(figure, "Notes over training", "")
    return figure


def quiz_over_time(steps: np.ndarray, metrics: Mapping[str, np.ndarray]) -> Figure:
    """MC-BERT over training: how well the controller guesses, how hard its questions are, how well they are answered.

    Args:
        steps: [P].
        metrics: those of `QUIZ_METRICS` that the run has, [P] each.
    """
    figure = Figure(figsize=(WIDTH, 7.6), dpi=DPI, layout="constrained")
    controller, changed, entropy, main = figure.subplots(2, 2).flat
    fills = {"eval/mlm_accuracy": ("best guess right", ""), "eval/mlm_probability": ("probability of the truth", "")}
    _lines(controller, steps, metrics, fills)
    _dress(controller, "steps", "share of masked pieces", "The controller fills masks")
    neither = {"eval/neither_share": ("answer is <neither>", "")}
    _lines(changed, steps, metrics, neither)
    _dress(changed, "steps", "share of questions", "Its questions: how many change nothing")
    _lines(entropy, steps, metrics, {"eval/candidate_entropy": ("of what candidates are drawn from", "")})
    _dress(entropy, "steps", "entropy (nats)", "Its questions: how sharp the candidates are")
    answers = {
        "eval/choice_accuracy": ("all", "-"),
        "eval/choice_accuracy_changed": ("where a piece was changed", "-"),
        "eval/choice_accuracy_neither": ("where none was", "-"),
        "eval/choice_accuracy_original": ("where one was changed, <neither> aside", "-"),
        "eval/neither_share": ("to be beaten by all: always <neither>", ":"),
    }
    _lines(main, steps, metrics, answers)
    _dress(main, "steps", "share answered rightly", "The main model answers")
    main.set_ylim(-0.02, 1.02)
    if main.get_legend_handles_labels()[0]:
        main.legend(fontsize=10, loc="center", bbox_to_anchor=(0.5, 0.6))  # between the lines near 1 and those near 0
    _title(figure, "The quiz over training", "on held-out text")
    return figure


def positions_attend(before: np.ndarray, after: np.ndarray) -> Figure:
    """What positions alone add to the attention scores of each head, before and after training.

    Args:
        before: [heads, T, T], query by key.
        after: the same.
    """
    heads, length = min(len(before), MOST_HEADS), min(before.shape[1], MOST_POSITIONS)
    figure = Figure(figsize=(WIDTH, 1.2 + 2 * WIDTH / max(heads, 3)), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, heads, squeeze=False)
    # Most scores, not all: those of [CLS], a row and a column, may be far from the others.
    limit = max(float(np.quantile(np.abs(after[:heads, 1:length, 1:length]), 0.995)), 1e-6)
    for row, (when, scores) in enumerate((("before training", before), ("after", after))):
        for head in range(heads):
            axes = panels[row, head]
            shown = scores[head, :length, :length]
            axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.set_title(f"head {head + 1}, {when}", fontsize=12)
            axes.tick_params(labelsize=10)
            if row:
                axes.set_xlabel("position that is looked at", fontsize=12)
            if not head:
                axes.set_ylabel("position that looks", fontsize=12)
    bar = figure.colorbar(panels[1, 0].images[0], ax=panels, shrink=0.7, extend="both")
    bar.set_label("added to the attention score (nats)", fontsize=12)
    of_all = f" (the first {heads} of {len(before)} heads)" if heads < len(before) else ""
    _title(figure, f"How positions attend to positions{of_all}", "the same in every layer and for every text")
    return figure


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, facecolor="white", **options)
    return file.getvalue()


def _lines(
    axes: Axes, steps: np.ndarray, metrics: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[str, str]]
) -> None:
    """Draws those of the wanted metrics that there are: name → (label, dashes)."""
    for i, (name, (label, dashes)) in enumerate(wanted.items()):
        if name in metrics:
            there = np.isfinite(metrics[name])
            x, y = np.asarray(steps)[there], np.asarray(metrics[name])[there]
            look = {"color": GREY if dashes == ":" else PALETTE[i], "linestyle": dashes or "-", "linewidth": 1.8}
            axes.plot(x, y, label=label, marker="" if dashes == ":" else MARKERS[i], markersize=4.5, **look)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=11)


def _dress(axes: Axes, x: str, y: str, title: str = "") -> None:
    axes.set_xlabel(x, fontsize=12)
    axes.set_ylabel(y, fontsize=12)
    axes.tick_params(labelsize=11)
    if isinstance(formatter := axes.yaxis.get_major_formatter(), ScalarFormatter):
        formatter.set_useOffset(False)  # a tick says its value, not what it adds to one in a corner
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=12)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes each line's name right of the panel, as high as the line ends, or just off where names would overlap.

    Args:
        axes: whose limits are final.
        ends: of each line, the last value, the name and the colour.
    """
    low, high = axes.get_ylim()
    ends = [(y, textwrap.fill(name, 24), color) for y, name, color in sorted(ends)]
    places = [(y - low) / (high - low) for y, _, _ in ends]
    gap = 0.055 * max(name.count("\n") + 1 for _, name, _ in ends)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    top = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - gap
    for place, (_, name, color) in zip(places, ends, strict=True):
        style = {"color": color, "fontsize": 11, "va": "center", "parse_math": False}
        axes.text(1.01, place, name, transform=axes.transAxes, **style)


def _title(figure: Figure, title: str, below: str) -> None:
    figure.suptitle(f"{title}\n{below}" if below else title, fontsize=13, parse_math=False)


def _short(word: str) -> str:
    return word if len(word) <= 18 else word[:17] + "…"


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Rows less their mean, of length 1."""
    centred = vectors - vectors.mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def _nearest(unit: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of largest cosine, the row itself left out: int [N, count] and their cosines."""
    rows, cosines = [], []
    for start in range(0, len(unit), 1024):
        here = unit[start : start + 1024] @ unit.T
        own = np.arange(len(here))
        here[own, start + own] = -np.inf
        found = np.argpartition(-here, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(here, found, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        rows.append(np.take_along_axis(found, order, 1))
        cosines.append(np.take_along_axis(values, order, 1))
    return np.concatenate(rows), np.concatenate(cosines)

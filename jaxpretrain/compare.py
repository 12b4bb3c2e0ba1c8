"""Compares runs: how many times less one method needs to get where another one ends.

    python -m jaxpretrain.compare runs/bert-tiny runs/tupe-tiny
    python -m jaxpretrain.compare runs/bert-* runs/tupe-* --baseline runs/bert-tiny --metric eval/mlm_accuracy
    python -m jaxpretrain.compare runs/mcbert-tiny --html

Runs that differ in nothing but train.seed are one method. Prints a table and writes compare.md, compare.json,
curves.png and curves.svg to --out; with --html also report.html, one file with the table and all pictures: curves, what
the notes learnt, and the meta controller's quiz over time.
"""

import base64
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from absl import flags
from etils import epath
from matplotlib.figure import Figure

from jaxpretrain import cli
from jaxpretrain.config import ConfigError
from jaxpretrain.evaluation import curves, pictures
from jaxpretrain.evaluation.curves import AXES, Estimate, Method
from jaxpretrain.evaluation.positions import position_scores
from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.training.checkpoint_files import CheckpointError
from jaxpretrain.training.workdir import config_of, notes_of_run

BASELINE = flags.DEFINE_string("baseline", None, "A run, whose method the others are measured by; default the first.")
METRIC = flags.DEFINE_string(
    "metric", None, "As in metrics.jsonl; default the objective's held-out loss, or one that all the runs have."
)
OUT = flags.DEFINE_string("out", "compare", "The folder that is written to; made if it is not there.")
HTML = flags.DEFINE_bool("html", False, "Write report.html as well: one file that a browser opens without a server.")


@dataclass(frozen=True)
class Comparison:
    """What is known of some methods by one metric.

    Attributes:
        metric: its name.
        methods: in the order of the command line.
        baseline: one of them.
        factors: by label and axis.
        caveats: sentences.
    """

    metric: str
    methods: list[Method]
    baseline: Method
    factors: dict[str, dict[str, Estimate]]
    caveats: list[str]


def compare(runs: Sequence[str], baseline: str | None = None, metric: str | None = None) -> Comparison:
    """Reads runs and compares them.

    Args:
        runs: folders.
        baseline: one of them, or another; None: the first.
        metric: None: `common_metric` of the runs.

    Raises:
        ConfigError: no runs, a folder without one, or a metric that one of them lacks.
    """
    runs = list(dict.fromkeys(str(epath.Path(run)) for run in [*([baseline] if baseline else []), *runs]))
    if not runs:
        raise ConfigError("no RUN given: python -m jaxpretrain.compare runs/bert-tiny runs/tupe-tiny")
    metric = metric or common_metric(runs)
    methods = curves.read_methods(runs, metric)
    first = methods[0]
    return Comparison(metric, methods, first, curves.factors(methods, first, metric), curves.caveats(methods, metric))


def common_metric(runs: Sequence[str]) -> str:
    """The held-out loss that the runs are judged by: their objective's, else the first that all of them have.

    Raises:
        ConfigError: a folder without a run, or nothing in common.
    """
    headlines = {OBJECTIVES[config_of(run).objective.name].headline for run in runs}
    names = [*(headlines if len(headlines) == 1 else []), "mlm_loss", "discriminator_loss", "choice_loss"]
    candidates = [f"eval/{name}" for name in names]
    for name in candidates:
        if all(name in curves.read_series(run, [name])[1] for run in runs):
            return name
    raise ConfigError(f"the runs have none of {', '.join(dict.fromkeys(candidates))} in common: give a --metric")


def table(comparison: Comparison) -> list[list[str]]:
    """Rows of cells, the head first."""
    heads = [f"factor in {axis}" for axis in ("steps", "tokens", "FLOPs", "seconds")]
    rows = [["method", "seeds", "steps", comparison.metric, *heads]]
    for method in comparison.methods:
        steps = f"{int(method.curves[0].step[-1]):,}"
        cells = [method.label, str(len(method.runs)), steps, _number(curves.final_values(method), 4)]
        for axis in AXES:
            factor = comparison.factors[method.label][axis]
            reached = sum(value is not None for value in factor.values)
            if method is comparison.baseline:
                cells.append("1, baseline")
            elif factor.mean is not None:
                cells.append(_number(factor, 3))
            else:
                cells.append("not reached" + (f" ({reached} of {len(factor.values)} seeds did)" if reached else ""))
        rows.append(cells)
    return rows


def remarks(comparison: Comparison) -> list[str]:
    """How the table is to be read, a sentence or two each."""
    label, target = comparison.baseline.label, curves.target_of(comparison.baseline)
    several = [
        f"Factor: how many times less a method needs than {label} until it is as good as {label} is in the end "
        f"({target:.4g}), and stays so. Between two points a curve is a straight line; from 50 points on it is "
        f"smoothed over {100 * curves.SMOOTHING:.0f} % of them.",
        "With a decaying learning rate factors err on the low side: a method that arrives early is read in the middle "
        "of its schedule, the baseline at the end of its own.",
        "Seconds depend on the machine and on what else it did.",
    ]
    interval = (
        "In brackets: from the lowest to the highest seed; "
        f"from {curves.MANY_SEEDS} seeds on, a 95 % interval of the mean (bootstrap)."
    )
    seeds = [interval] if any(len(method.runs) > 1 for method in comparison.methods) else []
    return [*(several if len(comparison.methods) > 1 else []), *seeds, *comparison.caveats]


def markdown(comparison: Comparison) -> str:
    """The table and its remarks."""
    head, *rows = table(comparison)
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join(f"| {' | '.join(map(_cell, cells))} |" for cells in lines)
    return "\n\n".join([text, *remarks(comparison)]) + "\n"


def as_json(comparison: Comparison) -> str:
    """All numbers of the table; a factor whose mean is null was not reached by all seeds."""
    values = {
        "metric": comparison.metric,
        "baseline": comparison.baseline.label,
        "target": curves.target_of(comparison.baseline),
        "smoothed_over_share_of_points": curves.SMOOTHING,
        "methods": [
            {
                "label": method.label,
                "runs": method.runs,
                "seeds": [config.train.seed for config in method.configs],
                "steps": int(method.curves[0].step[-1]),
                "final": asdict(curves.final_values(method)),
                "factors": {axis: asdict(x) for axis, x in comparison.factors[method.label].items()},
            }
            for method in comparison.methods
        ],
        "caveats": comparison.caveats,
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def run_pictures(run: str) -> Iterator[Figure | str]:
    """What a run has besides its curve: how its positions attend; what notes learnt and how; MC-BERT's quiz over time.

    Instead of a picture that cannot be drawn, as without a checkpoint, comes the reason.
    """
    config = config_of(run)
    try:
        if scores := position_scores(run):
            yield pictures.positions_attend(*scores)
    except (ConfigError, CheckpointError) as error:
        yield f"No picture of how positions attend: {error}"
    if config.notes.enabled:
        try:
            yield pictures.notes_learnt(*notes_of_run(run))
        except (ConfigError, CheckpointError) as error:
            yield f"No picture of what the notes learnt: {error}"
        yield pictures.notes_over_time(*curves.read_series(run, pictures.NOTES_METRICS))
    if config.objective.name == "mcbert":
        yield pictures.quiz_over_time(*curves.read_series(run, pictures.QUIZ_METRICS))


def report(comparison: Comparison, curve_png: bytes) -> str:
    """One page: table, remarks, curves, and the pictures of each run; nothing is loaded from elsewhere."""
    parts = [_table(table(comparison))]
    parts += [f"<p>{html.escape(text)}</p>" for text in remarks(comparison)]
    parts += [_image(curve_png, f"{comparison.metric} over steps, tokens, FLOPs and seconds"), "<h2>Runs</h2>"]
    described = [["method", "run", "seed", "recipe", "position", "objective", "notes", "layers × width"]]
    for method in comparison.methods:
        for run, config in zip(method.runs, method.configs, strict=True):
            model, notes = config.model, "yes" if config.notes.enabled else "no"
            cells = [method.label, run, str(config.train.seed), f"{config.name}-{config.size}", model.position]
            described.append([*cells, config.objective.name, notes, f"{model.layers} × {model.hidden}"])
    parts.append(_table(described))
    for method in comparison.methods:
        for run in method.runs:
            shown = [
                f"<p>{html.escape(found)}</p>" if isinstance(found, str) else _image(pictures.png(found), run)
                for found in run_pictures(run)
            ]
            if shown:
                parts += [f"<h3>{html.escape(f'{method.label}: {run}')}</h3>", *shown]
    title = "Runs compared" if len(comparison.methods) > 1 else f"Run {comparison.baseline.label}"
    return PAGE.format(title=html.escape(title), body="\n".join(parts))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 1rem; }}
img {{ width: 100%; height: auto; background: white; border-radius: 6px; margin: 0.5rem 0; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 0.3rem 0.7rem; text-align: left; border-bottom: 1px solid #8886; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def main(argv: Sequence[str]) -> None:
    """Compares the runs given."""
    comparison = compare(argv[1:], BASELINE.value, METRIC.value)
    methods, metric = comparison.methods, comparison.metric
    figure = pictures.learning_curves(methods, comparison.baseline, metric, comparison.factors)
    curve_png = pictures.png(figure)
    text = markdown(comparison)
    files = {
        "compare.md": _bytes(f"{text}\n![{metric} over steps, tokens, FLOPs and seconds](curves.png)\n"),
        "compare.json": _bytes(as_json(comparison)),
        "curves.png": curve_png,
        "curves.svg": pictures.svg(figure),
    }
    if HTML.value:
        files["report.html"] = _bytes(report(comparison, curve_png))
    out = epath.Path(OUT.value)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out={out}: cannot be made ({error.strerror or error})") from error
    for name, content in files.items():
        (out / name).write_bytes(content)
    print(text)
    print(f"written to {out}: {', '.join(files)}")


def _number(estimate: Estimate, digits: int) -> str:
    """`4.45 (4.44 – 4.46)`; the interval where there is more than one seed."""
    mean, low, high = (f"{x:#.{digits}g}".rstrip(".") for x in (estimate.mean, estimate.low, estimate.high))
    return mean if len(estimate.values) == 1 else f"{mean} ({low} – {high})"


def _cell(text: str) -> str:
    """On one line, and without what ends a cell."""
    return " ".join(text.split()).replace("|", "&#124;")


def _bytes(text: str) -> bytes:
    """UTF-8; a folder's name may hold bytes that are not, and they become what JSON writes for them."""
    return text.encode(errors="backslashreplace")


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return "<div><table>\n" + "\n".join(lines) + "\n</table></div>"


def _image(data: bytes, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


if __name__ == "__main__":
    cli.run_plain(main)

"""Comparing runs: the table has the known factors, the report is one file, mistakes are one line."""

import base64
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain import compare
from jaxpretrain.config import Config, ConfigError, to_dict
from jaxpretrain.evaluation.pictures import NOTES_METRICS, QUIZ_METRICS
from jaxpretrain.predict import nearest_notes
from jaxpretrain.training.checkpoint import Checkpointer
from jaxpretrain.training.workdir import notes_of_run

STEPS = range(100, 2001, 100)
WORDS = [f"word{i}" for i in range(40)]


def write_run(folder: Path, times: float, seed: int = 0, names: tuple[str, ...] = (), **sections: Any) -> Path:
    """A run whose held-out loss falls as a line, `times` as fast as the slowest."""
    config = Config()
    config.train.seed, config.train.steps = seed, 2000
    for section, fields in sections.items():
        for name, value in fields.items():
            setattr(getattr(config, section), name, value)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in STEPS:
            line = {"step": step, "total/tokens": step * 10, "total/flops": step * 1e9, "total/seconds": step * 0.1}
            line |= {"eval/mlm_loss": 9 - times * step / 1000, "eval/mlm_accuracy": times * step / 10_000}
            line |= dict.fromkeys(names, step / 4000)
            file.write(json.dumps(line) + "\n")
    return folder


def with_notes(run: Path) -> Path:
    rng = np.random.default_rng(0)
    table = np.repeat(rng.normal(size=(11, 16)), 4, 0) + 0.1 * rng.normal(size=(44, 16))  # some more rows than words
    written = np.where(np.arange(44) < 36, 5, -1)
    (run / "notes.tsv").write_text("".join(f"{word}\t7\n" for word in WORDS))
    checkpoints = Checkpointer(run / "checkpoints", keep=1, keep_best=True)
    checkpoints.save(10, {"notes": {"table": table.astype(np.float32), "written": written.astype(np.int32)}}, {})
    checkpoints.close()
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "slow": write_run(folder / "slow", 1),
        "slow1": write_run(folder / "slow1", 1, seed=1),
        "fast": write_run(folder / "fast", 2.5, model={"position": "tupe_r"}),
        "worse": write_run(folder / "worse", 0.5, model={"position": "relative"}),
        "notes": with_notes(write_run(folder / "notes", 2, names=NOTES_METRICS, notes={"enabled": True})),
        "quiz": write_run(folder / "quiz", 2, names=QUIZ_METRICS, objective={"name": "mcbert"}),
    }


def compared(runs: dict[str, Path], *names: str, **options: Any) -> compare.Comparison:
    return compare.compare([str(runs[name]) for name in names], **options)


def test_the_table(runs):
    head, slow, fast, worse = compare.table(compared(runs, "slow", "fast", "slow1", "worse"))
    assert head[:4] == ["method", "seeds", "steps", "eval/mlm_loss"]
    assert [len(row) for row in (slow, fast, worse)] == [len(head)] * 3
    assert slow == ["position=absolute", "2", "2,000", "7.000 (7.000 – 7.000)", *4 * ["1, baseline"]]
    assert fast == ["position=tupe_r", "1", "2,000", "4.000", *4 * ["2.50"]]
    assert worse == ["position=relative", "1", "2,000", "8.000", *4 * ["not reached"]]


def test_another_baseline_and_metric(runs):
    comparison = compared(runs, "slow", "fast", baseline=str(runs["worse"]), metric="eval/mlm_accuracy")
    assert comparison.baseline.label == comparison.methods[0].label == "position=relative"
    means = {label: x["tokens"].mean for label, x in comparison.factors.items()}
    assert means == pytest.approx({"position=relative": 1, "position=absolute": 2, "position=tupe_r": 5})


def test_a_baseline_given_twice_is_one_run(runs):
    comparison = compared(runs, "fast", "slow", baseline=str(runs["slow"]) + "/")
    assert [method.runs for method in comparison.methods] == [(str(runs["slow"]),), (str(runs["fast"]),)]


def test_the_default_metric(runs, tmp_path: Path):
    assert compare.common_metric([str(runs["slow"]), str(runs["quiz"])]) == "eval/mlm_loss"
    quiz = write_run(tmp_path / "quiz", 1, names=("eval/choice_loss",), objective={"name": "mcbert"})
    assert compare.common_metric([str(quiz)]) == "eval/choice_loss"
    assert compare.common_metric([str(quiz), str(runs["slow"])]) == "eval/mlm_loss"


def test_names_that_would_end_a_cell_or_are_no_text(tmp_path: Path):
    runs = [str(write_run(tmp_path / name, 1.0)) for name in ("a", "b\udcff")]
    for run, name in zip(runs, ("one|two\nthree", "x"), strict=True):
        path = Path(run) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name}))
    comparison = compare.compare(runs)
    lines = compare.markdown(comparison).splitlines()
    assert lines[2].startswith("| one&#124;two three | ")
    assert {line.count("|") for line in lines[:3]} == {9}
    values = json.loads(compare._bytes(compare.as_json(comparison)))
    assert [method["runs"] for method in values["methods"]] == [runs]


def test_json(runs):
    found = json.loads(compare.as_json(compared(runs, "slow", "fast", "slow1", "worse")))
    assert (found["metric"], found["baseline"], found["target"]) == ("eval/mlm_loss", "position=absolute", 7.0)
    slow, fast, worse = found["methods"]
    assert slow["seeds"] == [0, 1]
    assert fast["factors"]["flops"]["mean"] == pytest.approx(2.5)
    assert worse["factors"]["seconds"] == {"values": [None], "mean": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("names", "metric", "parts"),
    [
        ([], None, ["no RUN given"]),
        (["slow", "fast"], "eval/glue", ["slow", "eval/glue", "eval/mlm_accuracy, eval/mlm_loss"]),
        (["slow"], "total/flops", ["total/flops", "accuracy"]),
    ],
)
def test_what_cannot_be_compared(names: list[str], metric: str | None, parts: list[str], runs):
    with pytest.raises(ConfigError) as error:
        compared(runs, *names, metric=metric)
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


def images(page: str) -> list[bytes]:
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]


def test_a_report_shows_what_each_run_has(runs):
    page = compare.report(compared(runs, "slow", "notes", "quiz"), b"\x89PNG curves")
    found = images(page)
    assert [image[:4] for image in found] == [b"\x89PNG"] * 4  # curves, two of notes, the quiz
    assert "http" not in page
    assert "<script" not in page
    assert str(runs["slow"]) in page
    assert page.count("<h3>") == 2


def test_a_report_says_why_a_picture_is_missing(runs, tmp_path: Path):
    run = write_run(tmp_path / "run", 1, notes={"enabled": True})
    (run / "notes.tsv").write_text("a<b\t7\n")
    shown = list(compare.run_pictures(str(run)))
    assert isinstance(shown[0], str)
    assert "no checkpoint" in shown[0]
    assert len(shown) == 2


def test_notes_are_read_where_predict_reads_them(runs):
    words, table, written = notes_of_run(runs["notes"])
    assert words == WORDS
    assert (table.shape, table.dtype) == ((40, 16), np.float32)
    assert written.tolist() == 36 * [5] + 4 * [-1]
    [found] = nearest_notes(runs["notes"], ["word9"], top=3)
    assert set(found["nearest"]) == {"word8", "word10", "word11"}
    [found] = nearest_notes(runs["notes"], ["word9"], top=100)
    assert set(found["nearest"]) == {*WORDS[:36]} - {"word9"}  # the others were never written
    with pytest.raises(ConfigError, match=f"'{WORDS[36]}': no note yet"):
        nearest_notes(runs["notes"], [WORDS[36]], top=3)
    with pytest.raises(ConfigError, match="a run without notes"):
        notes_of_run(runs["slow"])


# --- as a command ---


def test_it_prints_and_writes(runs, command, run, tmp_path: Path):
    out = tmp_path / "some" / "where"
    done = run(command("compare", runs["slow"], runs["fast"], "--out", out, "--html"))
    assert done.code == 0, done.err
    assert "| position=tupe_r | 1 | 2,000 | 4.000 | 2.50 | 2.50 | 2.50 | 2.50 |" in done.out.splitlines()
    assert done.lines == []
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(files) == {"compare.md", "compare.json", "curves.png", "curves.svg", "report.html"}
    assert all(files.values())
    assert images(files["report.html"].decode()) == [files["curves.png"]]
    assert "| position=tupe_r |" in files["compare.md"].decode()


@pytest.mark.parametrize("args", [["/nowhere"], ["SLOW", "--out=/dev/null/x"]])
def test_a_wrong_command(args: list[str], runs, command, run):
    args = [str(runs["slow"]) if arg == "SLOW" else arg for arg in args]
    done = run(command("compare", *args))
    assert args[-1] in done.error()
    assert done.code == 2
    assert done.out == ""


def test_pyplot_is_not_imported(command):
    code = "import sys, jaxpretrain.compare; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([*command("compare")[:1], "-c", code], check=True)

"""Fine-tuning tasks: GLUE's own files, TensorFlow Datasets, and tab-separated files with all that people put there."""

import csv
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources.tensorflow_data_sets import library
from jaxpretrain.evaluation.tasks import GLUE, Examples, Task, load, read_rows, write_submission


def rows_of(examples: Examples) -> list[tuple[Any, ...]]:
    """Id, texts and label of each row."""
    labels = [None] * len(examples) if examples.labels is None else examples.labels.tolist()
    return [(i, *texts, label) for i, texts, label in zip(examples.ids, examples.texts, labels, strict=True)]


def fails(message: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_cell_that_holds_a_book_and_a_number_that_no_label_is(tmp_path: Path):
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\n" + "word " * 100_000 + "\t1e39\nshort\t0\n")
    data = load(f"tsv:{path},{path}")
    assert len(data.train.texts[0][0]) == 500_000
    assert data.task.classes == ("0", "1e39")
    path.write_text("text\tscore\none\t1e39\ntwo\t0.5\n")
    fails("line 2: label '1e39' is not a number", f"tsv:{path},{path}")
    fails("cannot read ~nobody-of-this-name/x: No such file", "tsv:~nobody-of-this-name/x")


# --- GLUE's own files ---

GLUE_FILES = {
    "CoLA/train.tsv": "gj04\t1\t\tOur friends won't buy this.\r\ngj04\t0\t*\tThe more does Bill smoke.\r\n",
    "CoLA/dev.tsv": 'c-05\t0\t*\t"Him said so.\nc-05\t1\t\tHe said so.',  # ends without a line break
    "CoLA/test.tsv": "index\tsentence\n0\tBill whistled.\n1\tHonked car the.\n",
    "SST-2/train.tsv": "sentence\tlabel\nno wit , only gags \t0\na delight \t1\n",
    "SST-2/dev.tsv": "sentence\tlabel\na charming journey . \t1\n",
    "SST-2/test.tsv": "index\tsentence\n0\tuneasy mishmash\n",
    "MRPC/train.tsv": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said .\t" He said so .\n'
    '0\t3\t4\t" No " , he said .\t" Yes .\n',
    "MRPC/dev.tsv": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA .\tB .\n",
    "MRPC/test.tsv": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n5\t1\t2\tC .\tD .\n",
    "STS-B/train.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n"
    "0\tx\tA plane.\tAn air plane.\t5.000\n1\tx\tA\tB\t0\n",
    "STS-B/dev.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\tA\tC\t2.25\n",
    "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    '9\t1\t2\tWho?\tWhat?\t0\n7\t3\t4\t"Was he\n"\tWas he real?\t0\n5\t5\t6\tHow?\t\t1\n4\t7\t8\ta\tb\tc\t1\n',
    "QQP/dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t1\t2\tWhy?\tWhy so?\t1\n",
    "QQP/test.tsv": "id\tquestion1\tquestion2\n0\tWhere?\tWhen?\n",
    "MNLI/train.tsv": "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tp\th\tneutral\tneutral\n"
    "1\tp\th\tneutral\tcontradiction\n2\tp\th\tentailment\tentailment\n",
    "MNLI/dev_matched.tsv": "index\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n0\tm\th\t-\t-\tneutral\n",
    "MNLI/dev_mismatched.tsv": "index\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n0\tmm\th\t-\t-\tentailment\n",
    "MNLI/test_matched.tsv": "index\tsentence1\tsentence2\n0\ttm\th\n",
    "MNLI/test_mismatched.tsv": "index\tsentence1\tsentence2\n0\ttmm\th\n",
    "diagnostic/diagnostic.tsv": "index\tsentence1\tsentence2\n0\tThe cat sat.\tNo cat sat.\n",
    "QNLI/train.tsv": "index\tquestion\tsentence\tlabel\n0\tq\ts\tentailment\n1\tq\tt\tnot_entailment\n",
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\tq\tu\tnot_entailment\n",
    "RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\r\n0\ta\tb\tnot_entailment\r\n1\ta\u2028c\tb\tentailment\r\n",
    "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
    "WNLI/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tI stuck a pin.\tIt had a hole.\t1\n",
    "WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n",
}


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    for name, text in GLUE_FILES.items():
        path = tmp_path / "glue" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return tmp_path / "glue"


@pytest.mark.parametrize(
    ("name", "train", "dev", "test"),
    [
        (
            "CoLA",
            [("0", "Our friends won't buy this.", 1), ("1", "The more does Bill smoke.", 0)],
            [("0", '"Him said so.', 0), ("1", "He said so.", 1)],
            [("0", "Bill whistled.", None), ("1", "Honked car the.", None)],
        ),
        (
            "SST-2",
            [("0", "no wit , only gags ", 0), ("1", "a delight ", 1)],
            [("0", "a charming journey . ", 1)],
            [("0", "uneasy mishmash", None)],
        ),
        (
            "MRPC",
            [("0", "He said .", '" He said so .', 1), ("1", '" No " , he said .', '" Yes .', 0)],
            [("0", "A .", "B .", 0)],
            [("5", "C .", "D .", None)],
        ),
        ("STS-B", [("0", "A plane.", "An air plane.", 5.0), ("1", "A", "B", 0.0)], [("0", "A", "C", 2.25)], None),
        (
            "QQP",
            [("9", "Who?", "What?", 0), ("5", "How?", "", 1)],
            [("1", "Why?", "Why so?", 1)],
            [("0", "Where?", "When?", None)],
        ),
        ("QNLI", [("0", "q", "s", 0), ("1", "q", "t", 1)], [("0", "q", "u", 1)], None),
        ("RTE", [("0", "a", "b", 1), ("1", "a\u2028c", "b", 0)], [("0", "a", "b", 0)], None),
        ("WNLI", [("0", "I stuck a pin.", "It had a hole.", 1)], [("0", "a", "b", 0)], None),
    ],
)
def test_glue_files(glue: Path, name: str, train: list, dev: list, test: list | None):
    data = load(name.swapcase(), str(glue))
    assert data.task == GLUE[name]
    assert rows_of(data.train) == train
    assert {split: rows_of(examples) for split, examples in data.dev.items()} == {"dev": dev}
    assert {split: rows_of(examples) for split, examples in data.test.items()} == ({"test": test} if test else {})
    assert data.train.labels is not None
    assert data.train.labels.dtype == (np.float64 if name == "STS-B" else np.int32)


def test_mnli_has_two_dev_splits_and_the_diagnostic_one(glue: Path):
    data = load("mnli", str(glue))
    assert [row[-1] for row in rows_of(data.train)] == [1, 2, 0]
    assert {split: rows_of(examples) for split, examples in data.dev.items()} == {
        "matched": [("0", "m", "h", 1)],
        "mismatched": [("0", "mm", "h", 0)],
    }
    assert {split: rows_of(examples) for split, examples in data.test.items()} == {
        "matched": [("0", "tm", "h", None)],
        "mismatched": [("0", "tmm", "h", None)],
        "diagnostic": [("0", "The cat sat.", "No cat sat.", None)],
    }
    (glue / "diagnostic/diagnostic.tsv").unlink()
    assert set(load("mnli", str(glue)).test) == {"matched", "mismatched"}
    fails("task AX is only a test set: train on MNLI", "ax", str(glue))


def test_qqp_rows_in_pieces_are_counted(glue: Path):
    assert load("qqp", str(glue)).warnings == (
        f"{glue}/QQP/train.tsv: 3 malformed lines were left out, as is usual for QQP",
    )
    assert load("rte", str(glue)).warnings == ()
    # A row that the test set lacks would make a submission void.
    (glue / "QQP/test.tsv").write_text("id\tquestion1\tquestion2\n0\tWhere?\n")
    fails(r"QQP/test.tsv, line 2: 2 cells where there are 3 columns", "qqp", str(glue))


def test_epochs_are_those_of_the_papers():
    assert {name for name, task in GLUE.items() if task.epochs == 5} == {"MNLI", "QNLI", "QQP"}
    assert {task.epochs for task in GLUE.values()} == {5, 10}
    assert load_names("SST2") == load_names("sst-2") == "SST-2"


def load_names(spec: str) -> str:
    """The name of the task that `load` looks for, from what it says of an empty folder."""
    with pytest.raises(ConfigError) as caught:
        load(spec, "/nonexistent")
    found = re.search(r"no file /nonexistent/(.*)/train.tsv, where GLUE's layout has it", str(caught.value))
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "RTE",
            "train",
            "index\tsentence1\tlabel\n0\ta\tentailment\n",
            r"line 1: no column 'sentence2'; the header, split at tabs, is",
        ),
        (
            "RTE",
            "train",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
            r"line 2: label 'maybe' is not one of",
        ),
        ("RTE", "dev", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t \n", r"line 2: no label in column 'label'"),
        ("RTE", "dev", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\n", r"line 2: 3 cells where there are 4 columns"),
        ("RTE", "dev", "index\tsentence1\tsentence2\tlabel\n", r"no rows"),
        ("RTE", "dev", "", r"no rows"),
        ("CoLA", "train", "gj04\t1\t\tA.\ngj04\t1\tA.\n", r"line 2: 3 cells where there are 4 columns"),
        ("CoLA", "train", "gj04\t1\t\tA.\n\ngj04\t1\t\tA.\n", r"line 2: 1 cells where there are 4 columns"),
        ("STS-B", "dev", "sentence1\tsentence2\tscore\na\tb\t5.5\n", r"line 2: label '5.5' is not between 0 and 5"),
        ("STS-B", "dev", "sentence1\tsentence2\tscore\na\tb\t1\na\tb\tnan\n", r"line 3: label 'nan' is not a number"),
        ("STS-B", "dev", "sentence1\tsentence2\tscore\na\tb\t1_0\n", r"line 2: label '1_0' is not a number"),
    ],
)
def test_damaged_glue_files(glue: Path, name: str, file: str, content: str, message: str):
    path = glue / name / f"{file}.tsv"
    path.write_text(content)
    fails(rf"^{path}(: |, ){message}", name, str(glue))


def test_missing_files_and_unknown_tasks(glue: Path):
    (glue / "RTE/dev.tsv").unlink()
    fails(rf"no file {glue}/RTE/dev.tsv, where GLUE's layout has it; without data_dir it is", "rte", str(glue))
    fails(r"task 'glue': must be one of CoLA, SST-2, .*, or tsv:FILE", "glue")
    fails(r"task CoLA: its columns are known", "cola", str(glue), columns=("sentence",))
    fails(r"data_dir='x': is for GLUE's tasks", "tsv:a.tsv", "x")
    fails(r"data_dir='x': 'tfds:glue/cola' comes through TensorFlow Datasets; give task='CoLA'", "tfds:glue/cola", "x")


# --- GLUE through TensorFlow Datasets: its own builders, with the files above in place of a download ---


@pytest.fixture
def tfds(glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tfds = library()
    # The environment variable is read when TFDS is imported, which another test may have done.
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))

    def download(self: Any, url: str | dict[str, str]) -> Any:
        return {name: glue / "MRPC" / name for name in url} if isinstance(url, dict) else glue / "diagnostic.tsv"

    (glue / "diagnostic.tsv").write_text(GLUE_FILES["diagnostic/diagnostic.tsv"])
    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", lambda self, url: glue)
    monkeypatch.setattr(manager, "download", download)


@pytest.mark.parametrize("name", ["CoLA", "SST-2", "STS-B", "QQP", "QNLI", "RTE", "WNLI", "MNLI"])
@pytest.mark.usefixtures("tfds")
def test_tfds_holds_what_the_files_hold(glue: Path, name: str):
    """Row numbers apart: QQP's files have ids of their own for labelled rows."""
    for file in ("STS-B", "RTE", "WNLI"):
        (glue / file / "test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n")
    (glue / "QNLI/test.tsv").write_text("index\tquestion\tsentence\n0\ta\tb\n")
    for file, cut in (("RTE/train.tsv", "\u2028"), ("QQP/train.tsv", "4\t7\t8\ta\tb\tc\t1\n")):
        path = glue / file  # TFDS ends a line at this character, and stops at a row with too many cells
        path.write_text(path.read_text().replace(cut, ""))
    expected, found = load(name, str(glue)), load(name)
    assert found.task == expected.task
    assert found.train.labels is not None
    assert expected.train.labels is not None
    assert found.train.labels.dtype == expected.train.labels.dtype
    for one, two in (({"": found.train}, {"": expected.train}), (found.dev, expected.dev)):
        assert {s: [r[1:] for r in rows_of(e)] for s, e in one.items()} == {
            s: [r[1:] for r in rows_of(e)] for s, e in two.items()
        }
    assert {s: rows_of(e) for s, e in found.test.items()} == {s: rows_of(e) for s, e in expected.test.items()}


@pytest.mark.usefixtures("tfds")
def test_tfds_builds_mrpc_from_its_source(glue: Path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (glue / "MRPC/train").write_text(header + '1\t5\t6\tA\t" B\n0\t7\t8\tC\tD\n0\t1\t2\tE\tF\n')
    (glue / "MRPC/test").write_text(header + "1\t3\t4\tG\tH\n")
    (glue / "MRPC/dev_ids").write_text("7\t8\n")
    data = load("mrpc")
    assert rows_of(data.train) == [("0", "A", '" B', 1), ("2", "E", "F", 0)]
    assert rows_of(data.dev["dev"]) == [("1", "C", "D", 0)]
    assert [row[1:] for row in rows_of(data.test["test"])] == [("G", "H", None)]


def test_tfds_classes_have_our_order():
    """Its names for them differ where the files have 0 and 1; the second is the positive one."""
    from tensorflow_datasets.text import glue

    for config in glue.Glue.BUILDER_CONFIGS:
        for task in GLUE.values():
            if task.name.lower().replace("-", "") == config.name and config.label_classes:
                if task.classes == ("0", "1"):
                    negative, positive = config.label_classes
                    assert negative.startswith(("un", "not_", "negative"))
                    assert negative.endswith(positive) or (negative, positive) == ("negative", "positive")
                else:
                    assert tuple(config.label_classes) == task.classes


@pytest.mark.usefixtures("tfds")
def test_tfds_order_is_that_of_the_file(glue: Path):
    rows = [f"s\t{i % 2}\t\tsentence {i}" for i in range(50)]
    (glue / "CoLA/train.tsv").write_text("\n".join(rows))
    assert rows_of(load("cola").train) == [(str(i), f"sentence {i}", i % 2) for i in range(50)]


@pytest.mark.usefixtures("tfds")
def test_a_diagnostic_that_cannot_be_downloaded_is_missed_aloud(glue: Path, monkeypatch: pytest.MonkeyPatch):
    """It is a download of its own; MNLI does without."""

    def broken(self: Any, url: str) -> None:
        raise ConnectionError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(library().download.DownloadManager, "download", broken)
        data = load("tfds:glue/mnli")
    assert "diagnostic" not in data.test
    [said] = data.warnings
    assert said.startswith("task AX cannot be downloaded (no network)")
    assert load("mnli").warnings == ()
    assert rows_of(load("mnli").test["diagnostic"]) == rows_of(load("mnli", str(glue)).test["diagnostic"])


@pytest.mark.parametrize("error", ["ConnectionError", "DownloadError", "NonMatchingChecksumError"])
@pytest.mark.usefixtures("tfds")
def test_a_failed_download(error: str, monkeypatch: pytest.MonkeyPatch):
    from tensorflow_datasets.core.download import download_manager, util

    kinds = {
        "ConnectionError": ConnectionError("no network"),
        "DownloadError": util.DownloadError("HTTP code 404\nand more"),
        "NonMatchingChecksumError": download_manager.NonMatchingChecksumError("no network", "/tmp/file"),
    }

    def broken(self: Any, url: str) -> None:
        raise kinds[error]

    monkeypatch.setattr(library().download.DownloadManager, "download_and_extract", broken)
    fails(r"task CoLA cannot be downloaded \(.*\): give data_dir, a folder with GLUE's own files", "cola")


# --- own files ---


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"tsv:{path},{path}"


def own(tmp_path: Path, content: str | bytes, **kwargs: Any) -> tuple[Task, list[tuple[Any, ...]]]:
    """The task of a file, which is its own dev, and its rows."""
    data = load(write(tmp_path / "own.tsv", content), **kwargs)
    assert rows_of(data.dev["dev"]) == rows_of(data.train)
    return data.task, rows_of(data.train)


def test_classes_are_sorted(tmp_path: Path):
    task, rows = own(tmp_path, "text\tlabel\na\tpos\nb\tneg\nc\t neutral \n")
    assert task == Task(
        "own", ("text",), "label", ("neg", "neutral", "pos"), ("accuracy", "matthews"), epochs=10, quoted=True
    )
    assert rows == [("0", "a", 2), ("1", "b", 0), ("2", "c", 1)]
    assert own(tmp_path, "text\tlabel\na\tpos\nb\tneg\n")[0].metrics == ("accuracy", "f1", "matthews")
    assert own(tmp_path, "text\tlabel\na\t10\nb\t9\nc\t1.0\n")[0].classes == ("1.0", "10", "9")


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("label\tsentence", ("sentence",)),
        ("label\ttext", ("text",)),
        ("label\ttext_a\ttext_b", ("text_a", "text_b")),
        ("label\tsentence2\tother\tsentence1", ("sentence1", "sentence2")),
        (" label \t text ", ("text",)),
    ],
)
def test_columns_by_convention(tmp_path: Path, header: str, columns: tuple[str, ...]):
    names = [name.strip() for name in header.split("\t")]
    cells = "\t".join("yes" if name == "label" else f"of {name}" for name in names)
    task, rows = own(tmp_path, f"{header}\n{cells}\n{cells.replace('yes', 'no')}")
    assert task.columns == columns
    assert rows == [(str(i), *[f"of {name}" for name in columns], 1 - i) for i in range(2)]


def test_columns_by_name(tmp_path: Path):
    content = "id\tpremise\thypothesis\ttext\tlabel\tstars\nx\tp\th\tt\t1\tlow\ny\tq\ti\tu\t1\thigh\n"
    task, rows = own(tmp_path, content, columns=("hypothesis", "premise"), label="stars")
    assert (task.columns, task.label, task.classes) == (("hypothesis", "premise"), "stars", ("high", "low"))
    assert rows == [("x", "h", "p", 1), ("y", "i", "q", 0)]


def test_regression(tmp_path: Path):
    task, rows = own(tmp_path, "text\tlabel\na\t1\nb\t-2.5\nc\t1e3\n")
    assert (task.classes, task.metrics, task.bounds) == ((), ("pearson", "spearman"), None)
    assert rows == [("0", "a", 1.0), ("1", "b", -2.5), ("2", "c", 1000.0)]
    assert own(tmp_path, "text\tscore\na\t1\nb\t2\n")[0].classes == ()
    assert own(tmp_path, "text\tscore\na\t3000\nb\t4000\nc\t3000\nd\t3000\n")[0].scale == pytest.approx(
        (3250, 433), abs=0.1
    )
    assert own(tmp_path, "text\tscore\tlabel\na\t1\tx\nb\t2\ty\n")[0].classes == ("x", "y")
    data = load(f"tsv:{tmp_path}/own.tsv,{tmp_path}/own.tsv", label="score")
    assert data.train.labels is not None
    assert data.train.labels.dtype == np.float64


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"a\tb"\t1\nc\t0\n', ["a\tb", "c"]),
        ('text\tlabel\n"say ""no"""\t1\nc\t0\n', ['say "no"', "c"]),
        ('text\tlabel\nsay "no"\t1\nc" d"\t0\n', ['say "no"', 'c" d"']),
        ('text\tlabel\n"two\nlines"\t1\n"and\r\nso"\t0\n', ["two\nlines", "and\r\nso"]),
        ("text\tlabel\r\na\t1\r\nb\t0\r\n\r\n", ["a", "b"]),
        ("text\tlabel\na\t1\nb\t0", ["a", "b"]),
        (b"\xef\xbb\xbftext\tlabel\na\t1\nb\t0", ["a", "b"]),
        (b'\xef\xbb\xbf"text"\t"label"\r\n"a"\t"1"\r\n"b"\t"0"\r\n', ["a", "b"]),
        ("text\tlabel\nгрусть, 語 \u2028 𝒳\t1\nna\u00efve\u0301\t0\n", ["грусть, 語 \u2028 𝒳", "na\u00efve\u0301"]),
        ('text\tlabel\n" "" "\t1\n""""\t0\n', [' " ', '"']),
        ("text\tlabel\n 'a' \\ \\t ,\t1\n#b\t0\n", [" 'a' \\ \\t ,", "#b"]),
    ],
)
def test_what_spreadsheets_write(tmp_path: Path, content: str | bytes, texts: list[str]):
    _, rows = own(tmp_path, content)
    assert rows == [("0", texts[0], 1), ("1", texts[1], 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tlabel\na\t1\n\t0\n", r", line 3: no text in column 'text'; fill it in or leave the row out"),
        ("text\tlabel\na\t1\n \xa0\t0\n", r", line 3: no text in column 'text'"),
        ('text\tlabel\n"a\n\nb"\t1\n""\t0\n', r", line 5: no text in column 'text'"),
        ("text_a\ttext_b\tlabel\na\tb\t1\na\t\t0\n", r", line 3: no text in column 'text_b'"),
        ("text\tlabel\na\t1\nb\t\n", r", line 3: no label in column 'label'; fill it in or leave the row out"),
        ("text\tlabel\na\t1\nb\t \nc\t0\n", r", line 3: no label in column 'label'"),
        ("text\tlabel\na\t1\nb\nc\t0\n", r", line 3: 1 cells where there are 2 columns"),
        ("text\tlabel\na\t1\n\nc\t0\n", r", line 3: 0 cells where there are 2 columns"),
        ('text\tlabel\n"a\nb"\t1\nb\tc\t0\n', r", line 4: 3 cells where there are 2 columns"),
        ('text\tlabel\na\t1\n"No" he said\t0\n', r", line 3: .*; a cell that begins with a quote must end with one"),
        ('text\tlabel\na\t1\n"never ends\t0\nb\t1\nc\t1\n', r", line 3: .*; a cell that begins with a quote must"),
        (b"text\tlabel\na\t1\ncaf\xe9\t0\n", r", line 3: not UTF-8; save the file in that encoding"),
        (b"\xef\xbb\xbftext\tlabel\n\xe9\t1\n", r", line 2: not UTF-8"),
        ("text\tlabel\na\t1\n".encode("utf-16"), r", line 1: a NUL .* or text that is not UTF-8"),
        ("text\tlabel\na\t1\n".encode("utf-16-le"), r", line 1: a NUL .* or text that is not UTF-8; save the"),
        (b"PK\x03\x04\x14\0\x06\0\x08\0\xe9", r", line 1: a NUL character: a spreadsheet's or word processor's own"),
        ("text\tlabel\na\t1\nb\0\t0\n", r", line 3: a NUL character"),
        ("", r": no rows; it must hold tab-separated columns"),
        ("\n\n", r": no rows"),
        ("text\tlabel\n", r": no rows"),
        (
            "a good film\t1\nbad\t0\n",
            r", line 1: text must be in one or two columns, .* the header, split at tabs, is a good film, 1",
        ),
        (
            "text label\na 1\n",
            r", line 1: text must be in one or two columns, .* the header, split at tabs, is text label",
        ),
        ("text,label\na,1\n", r", line 1: columns are separated by tabs, and the header seems to use commas; save the"),
        (
            '"text","label"\n"a\tb","1"\n',
            r", line 1: columns are separated by tabs, and the header seems to use commas",
        ),
        ("text;label\na;1,5\n", r", line 1: columns are separated by tabs, and the header seems to use semicolons"),
        ("text\ttext_a\ttext_b\tlabel\na\tb\tc\t1\n", r", line 1: text must be in one or two columns"),
        (
            "text\tclass\na\t1\n",
            r", line 1: labels must be in a column of their own, label, .* the header, split at tabs, is text, class",
        ),
        (
            "text\tlabel\tlabel\na\t1\t0\n",
            r", line 1: several columns 'label'; the header, split at tabs, is text, label, label",
        ),
        ("text\ttext\tlabel\na\tb\t0\nc\td\t1\n", r", line 1: several columns 'text'"),
        ("text\tlabel\na\t1\nb\t1\n", r": every row has the label '1', so that there is nothing to learn"),
        ("text\tlabel\na\t1.5\nb\tmany\n", r", line 3: label 'many' is not a number, as those of a regression are"),
        ("text\tscore\na\t1\nb\t1,5\n", r", line 3: label '1,5' is not a number"),
        ("text\tscore\na\t1\nb\t1e999\n", r", line 3: label '1e999' is not a number"),
        ("text\tscore\na\t1\nb\tinf\n", r", line 3: label 'inf' is not a number"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, content: str | bytes, message: str):
    fails(f"^{re.escape(str(tmp_path))}/own.tsv{message}", write(tmp_path / "own.tsv", content))


def test_wrong_names_of_columns(tmp_path: Path):
    spec = write(tmp_path / "own.tsv", "text\tlabel\na\t1\nb\t0\n")
    fails(r"own.tsv, line 1: no column 'body'; the header, split at tabs, is text, label", spec, columns=("body",))
    fails(r"own.tsv, line 1: no column 'stars'", spec, label="stars")
    fails(r"line 1: labels must be in a column of their own", spec, columns=("text", "label"))
    fails(r"line 1: text must be in one or two columns", spec, columns=("a", "b", "c"))


def test_files_that_cannot_be_read(tmp_path: Path):
    fails(rf"cannot read {tmp_path}/none.tsv: No such file", f"tsv:{tmp_path}/none.tsv")
    fails(rf"cannot read {tmp_path}: not a file", f"tsv:{tmp_path}")
    for files in ("", "a.tsv,", "a,b,c,d"):
        fails(r"task 'tsv:.*': must be tsv:FILE or tsv:TRAIN,DEV", f"tsv:{files}")


def test_train_dev_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.tsv", "text\tlabel\na\tyes\nb\tno\n")
    write(tmp_path / "b.tsv", "label\tother\ttext\nyes\tx\tc\n")
    write(tmp_path / "c.tsv", "index\ttext\nq7\td\n")
    data = load("tsv:~/a.tsv, ~/b.tsv, ~/c.tsv")
    assert data.task.name == "a"
    assert rows_of(data.dev["dev"]) == [("0", "c", 1)]
    assert {split: rows_of(examples) for split, examples in data.test.items()} == {"test": [("q7", "d", None)]}
    write(tmp_path / "b.tsv", "text\tlabel\nc\tno\nd\tmaybe\n")
    fails(r"b.tsv, line 3: label 'maybe' is not one of the classes to train on, no, yes", "tsv:~/a.tsv,~/b.tsv")


def test_a_tenth_is_held_out(tmp_path: Path):
    lines = [f"text {i % 900}\t{'yes' if i % 3 else 'no'}" for i in range(1000)]
    spec = write(tmp_path / "own.tsv", "text\tlabel\n" + "\n".join(lines)).split(",")[0]
    data = load(spec)
    train, dev = rows_of(data.train), rows_of(data.dev["dev"])
    assert 70 < len(dev) < 130
    assert sorted(train + dev) == sorted((str(i), f"text {i % 900}", int(i % 3 > 0)) for i in range(1000))
    assert [rows_of(load(spec).train), rows_of(load(spec).dev["dev"])] == [train, dev]
    # Equal texts are on one side, and stay there whatever the order and whoever else comes.
    held = {row[1] for row in dev}
    assert not held & {row[1] for row in train}
    write(tmp_path / "own.tsv", "label\ttext\nno\tnew\n" + "".join(f"yes\ttext {i}\n" for i in range(899, -1, -1)))
    assert {row[1] for row in rows_of(load(spec).dev["dev"])} - {"new"} == held


def test_a_held_out_class_is_trained_on(tmp_path: Path):
    content = "text\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(100))
    spec = write(tmp_path / "own.tsv", content).split(",")[0]
    text = rows_of(load(spec).dev["dev"])[0][1]
    write(tmp_path / "own.tsv", re.sub(rf"^{text}\t.*$", f"{text}\trare", content, flags=re.MULTILINE))
    data = load(spec)
    assert data.task.classes == ("0", "1", "rare")
    assert text in [row[1] for row in rows_of(data.train)]
    assert text not in [row[1] for row in rows_of(data.dev["dev"])]


def test_too_few_rows_to_hold_out(tmp_path: Path):
    write(tmp_path / "own.tsv", "text\tlabel\na\t1\nb\t0\n")
    fails(r"own.tsv: 2 rows are too few to hold some out; give dev rows as tsv:TRAIN,DEV", f"tsv:{tmp_path}/own.tsv")


CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
LABELS = st.sampled_from(['"yes"', "tab\there", "né", "two\r\nlines", "7", '""'])


@given(st.lists(st.tuples(CELLS, CELLS, CELLS, LABELS), max_size=8))
def test_the_csv_module_writes_what_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]):
    rows = [("x", "x", "x", "a"), ("y", "y", "y", "b"), *rows]
    path = tmp_path_factory.getbasetemp() / "round.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, "excel-tab").writerows([("text_b", "id", "text_a", "label"), *rows])
    data = load(f"tsv:{path},{path}")
    assert data.train.texts == [(a, b) for b, _, a, _ in rows]
    assert data.train.ids == [key for _, key, _, _ in rows]
    assert data.train.labels is not None
    assert [data.task.classes[i] for i in data.train.labels] == [label for *_, label in rows]
    assert data.task.classes == tuple(sorted({label for *_, label in rows}))
    assert read_rows(path, data.task).texts == data.train.texts


# --- new rows, and submissions ---


def test_rows_to_be_labelled(tmp_path: Path, glue: Path):
    path = tmp_path / "new.tsv"
    task = own(tmp_path, "text\tlabel\na\t1\nb\t0\n")[0]
    write(path, 'text\tid\n"a\tb"\tx\nc\ty\n')
    assert rows_of(read_rows(path, task)) == [("x", "a\tb", None), ("y", "c", None)]
    write(path, "label\ttext\n\ta\nnew\tb\n")  # what is in the label's column does not matter
    assert rows_of(read_rows(path, task)) == [("0", "a", None), ("1", "b", None)]
    write(path, "sentence\nall\nright\n")
    assert rows_of(read_rows(path, task)) == [("0", "all", None), ("1", "right", None)]
    write(path, "sentence\nall\n\nright\n")
    with pytest.raises(ConfigError, match=rf"^{path}, line 3: 0 cells where there are 1 columns"):
        read_rows(path, task)
    write(path, "id,text\n1,a\n")
    with pytest.raises(ConfigError, match=rf"^{path}, line 1: columns are separated by tabs, .* commas"):
        read_rows(path, task)
    write(path, "text\nwith, of course, commas\n")
    assert rows_of(read_rows(path, task)) == [("0", "with, of course, commas", None)]
    write(path, "body\na\n")
    with pytest.raises(ConfigError, match=rf"^{path}, line 1: no column 'text'; the header, split at tabs, is body"):
        read_rows(path, task)
    # GLUE's tasks read GLUE's files, and other names for the columns.
    assert rows_of(read_rows(glue / "MRPC/test.tsv", GLUE["MRPC"])) == [("5", "C .", "D .", None)]
    write(path, 'text_b\ttext_a\ttext\nb\t"a\tc\n')
    assert rows_of(read_rows(path, GLUE["MRPC"])) == [("0", '"a', "b", None)]


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        *[(name, "test", name) for name in GLUE if name != "MNLI"],
        ("MNLI", "matched", "MNLI-m"),
        ("MNLI", "mismatched", "MNLI-mm"),
        ("MNLI", "diagnostic", "AX"),
    ],
)
def test_submissions(tmp_path: Path, name: str, split: str, file: str):
    task = GLUE[name]
    predictions = np.array([1, 0, len(task.classes) - 1], np.int32) if task.classes else np.array([2.34567, -1, 5.01])
    path = write_submission(tmp_path, task, split, ["0", "1", "2"], predictions)
    assert path == tmp_path / f"{file}.tsv"
    expected = [task.classes[i] for i in (1, 0, -1)] if task.classes else ["2.346", "0.000", "5.000"]
    assert path.read_bytes().decode() == "index\tprediction\n" + "".join(
        f"{i}\t{prediction}\n" for i, prediction in enumerate(expected)
    )


def test_a_quote_that_swallows_rows_is_doubted(tmp_path: Path):
    content = 'text\tlabel\n"hello there\t1\nmiddle\t0\nsaid "\t1\nc\t0\n'
    data = load(write(tmp_path / "own.tsv", content))
    assert len(data.train) == 2
    assert {said.split(":")[0] for said in data.warnings} == {f"{tmp_path}/own.tsv, line 2"}
    assert load(write(tmp_path / "own.tsv", 'text\tlabel\n"a\tb"\t1\n"c\nd"\t0\n')).warnings == ()


def test_numbers_with_a_comma_are_doubted(tmp_path: Path):
    data = load(write(tmp_path / "own.tsv", "text\tlabel\na\t1,5\nb\t2,5\nc\t3\n"))
    assert data.task.classes == ("1,5", "2,5", "3")
    assert [said.split(":")[0] for said in data.warnings] == ["labels such as 1,5 are taken for classes"]


def test_own_tasks_may_be_called_as_those_of_glue(tmp_path: Path):
    content = "text\tlabel\na\t1\nb\t0\n"
    for name in ("MNLI.tsv", "other.tsv"):
        (tmp_path / name).write_text(content)
    data = load(f"tsv:{tmp_path}/MNLI.tsv,{tmp_path}/other.tsv,{tmp_path}/other.tsv")
    assert data.task.dev_score("dev") == "MNLI"
    assert write_submission(tmp_path, data.task, "test", ["0"], [1]).name == "MNLI.tsv"


def test_submissions_of_own_tasks(tmp_path: Path):
    task = Task("mine", ("text",), "label", ("a\tb", "c"), ("accuracy",), quoted=True)
    path = write_submission(tmp_path, task, "test", ['x"', "y\rz"], np.array([0, 1]))
    with path.open(newline="") as file:
        assert list(csv.reader(file, "excel-tab")) == [["index", "prediction"], ['x"', "a\tb"], ["y\rz", "c"]]
    path = write_submission(tmp_path, Task("mine", ("text",), "score", (), ("pearson",)), "test", ["x"], [-7.25])
    assert path.read_text() == "index\tprediction\nx\t-7.2500\n"
    for mean, deviation in ((1.7e9, 11.5), (3e-4, 1e-4)):  # dates in seconds; very small numbers
        task_ = Task("mine", ("text",), "score", (), ("pearson",), scale=(mean, deviation))
        scores = mean + deviation * np.array([-1, 0.001, 1])
        rows = write_submission(tmp_path, task_, "test", ["x", "y", "z"], scores).read_text().split()[2:]
        np.testing.assert_allclose(np.array(rows[1::2], float), scores, atol=1e-3 * deviation, rtol=0)
    with pytest.raises(ValueError, match="shorter"):
        write_submission(tmp_path, task, "test", ["x", "y"], np.array([0]))


def test_a_named_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "rows.tsv")
    fails(r"cannot read .*rows\.tsv: not a file", f"tsv:{tmp_path}/rows.tsv")


def test_a_header_that_is_not_one(tmp_path: Path):
    path = tmp_path / "rows.tsv"
    path.write_text('\t"a\nb"\tlabel\n0\t1\t2\n')
    fails(r"line 1: text must be .* the header, split at tabs, is , a b, label$", f"tsv:{path}")
    path.write_text("\t".join(f"column {i}" for i in range(10_000)) + "\n" + "\t" * 9_999 + "\n")
    fails(r"line 1: .{0,800} …$", f"tsv:{path}")

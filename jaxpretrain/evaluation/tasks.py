"""What a model is fine-tuned on: the tasks of GLUE, or one of your own in tab-separated files.

GLUE is read from its own files (a folder with `CoLA/train.tsv`, `MNLI/dev_matched.tsv`, …) or through TensorFlow
Datasets. Its files know no quoting: a `"` is a letter. Own files are read as spreadsheet programs write them: a cell
that begins with a quote ends with one, and may hold tabs, line breaks and doubled quotes in between.
"""

import csv
import hashlib
import importlib
import io
import math
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources import tensorflow_data_sets
from jaxpretrain.data.sources.files import check_file


@dataclass(frozen=True)
class Task:
    """One fine-tuning task. Classification if it has classes, else regression."""

    name: str
    columns: tuple[str, ...]  # one or two of text
    label: str  # column
    classes: tuple[str, ...]  # in the order of their indices; empty: the label is a number
    metrics: tuple[str, ...]  # of scores.METRICS; checkpoints are judged by the first
    epochs: int = 10  # of the papers' protocol
    bounds: tuple[float, float] | None = None  # of a regression's labels, where they are known
    quoted: bool = False  # its files: as spreadsheet programs write them, or as GLUE's are
    scale: tuple[float, float] = (0.0, 1.0)  # of a regression's labels: the model learns (label − mean) / deviation

    @property
    def decimals(self) -> int:
        """Of a regression's predictions: GLUE's server takes three, own tasks get as many as their scale asks for."""
        return 3 if self.bounds else max(0, 4 - math.floor(math.log10(self.scale[1])))

    def dev_score(self, split: str) -> str:
        """What the score of a dev set is called: the task, or `MNLI-m`, `MNLI-mm`."""
        return self.name if self.quoted else _SUBMISSIONS.get(split, self.name)


@dataclass(frozen=True)
class Examples:
    """Rows of one split."""

    ids: list[str]  # of an `index` or `id` column, else row numbers from 0
    texts: list[tuple[str, ...]]
    labels: np.ndarray | None  # [rows] int32 class indices, or float64 scores; None: unlabelled

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TaskData:
    """A task and its rows."""

    task: Task
    train: Examples
    dev: dict[str, Examples]  # MNLI: matched, mismatched; the others: dev
    test: dict[str, Examples]  # unlabelled; MNLI: matched, mismatched, diagnostic; the others: test; may be empty
    warnings: tuple[str, ...] = ()  # what a user should know


_YES_NO = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_TWO = ("sentence1", "sentence2")

# The order of the classes is also that of TensorFlow Datasets, whose names for 0 and 1 differ.
GLUE = {
    task.name: task
    for task in (
        Task("CoLA", ("sentence",), "label", _YES_NO, ("matthews", "accuracy")),
        Task("SST-2", ("sentence",), "label", _YES_NO, ("accuracy",)),
        Task("MRPC", ("#1 String", "#2 String"), "Quality", _YES_NO, ("accuracy", "f1")),
        Task("STS-B", _TWO, "score", (), ("pearson", "spearman"), bounds=(0.0, 5.0)),
        Task("QQP", ("question1", "question2"), "is_duplicate", _YES_NO, ("accuracy", "f1"), epochs=5),
        Task("MNLI", _TWO, "gold_label", ("entailment", "neutral", "contradiction"), ("accuracy",), epochs=5),
        Task("QNLI", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",), epochs=5),
        Task("RTE", _TWO, "label", _ENTAILMENT, ("accuracy",)),
        Task("WNLI", _TWO, "label", _YES_NO, ("accuracy",)),
    )
}

_COLA_HEADER = ["source", "label", "star", "sentence"]  # its labelled files lack one
_MNLI_SPLITS = ("matched", "mismatched")
_SUBMISSIONS = {"matched": "MNLI-m", "mismatched": "MNLI-mm", "diagnostic": "AX"}

# Columns that need not be named in own files.
_TEXT_COLUMNS = (("text_a", "text_b"), ("sentence1", "sentence2"), ("text",), ("sentence",))
_LABEL_COLUMNS = ("label", "score")
_ID_COLUMNS = ("index", "id")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TFDS = "tfds:glue/"
_SEPARATORS = {",": "commas", ";": "semicolons", "|": "bars"}  # that files have in place of tabs
_LARGEST = float(np.finfo(np.float32).max)  # of a label
_HELD_OUT = 10  # one row in so many becomes dev where no file is given for it


def load(spec: str, data_dir: str = "", *, columns: tuple[str, ...] = (), label: str = "") -> TaskData:
    """The task of a name, with its rows.

    Args:
        spec: a GLUE task in any case (`cola`, `MNLI`, `tfds:glue/cola`), or `tsv:TRAIN[,DEV[,TEST]]`, files with a
            header. Without DEV a tenth of the rows is held out, by a hash of their texts.
        data_dir: a folder with GLUE's own files; empty: TensorFlow Datasets, which downloads them.
        columns: of own files, the one or two with text; empty: `text`, `sentence`, `text_a` and `text_b`, or
            `sentence1` and `sentence2`.
        label: of own files, the column with the label; empty: `label`, or `score`. A column `score`, and one where a
            number has a fractional part, makes the task a regression; all else are classes, in sorted order.

    Raises:
        ConfigError: one line: an unknown task, a file that cannot be read, a bad row with its line number.
    """
    kind, _, files = spec.partition(":")
    if kind == "tsv":
        if data_dir:
            raise ConfigError(f"data_dir={data_dir!r}: is for GLUE's tasks; {spec!r} names its own files")
        return _load_own(files, columns, label)
    task = _glue_task(spec.removeprefix(_TFDS))
    if spec.startswith(_TFDS) and data_dir:
        raise ConfigError(f"data_dir={data_dir!r}: {spec!r} comes through TensorFlow Datasets; give task={task.name!r}")
    if columns or label:
        raise ConfigError(f"task {task.name}: its columns are known; columns and label are for tsv:FILE")
    return _load_glue(task, Path(os.path.expanduser(data_dir))) if data_dir else _load_tfds(task)


def read_rows(path: str | Path, task: Task) -> Examples:
    """Rows to be labelled, from a file like the task's own, with a header; labels in it are not read.

    Raises:
        ConfigError: as `load`.
    """
    table = _read_table(Path(os.path.expanduser(path)), task.quoted)
    if not set(task.columns) <= set(table.header):
        # GLUE's names for columns are not what one calls them at home.
        task = replace(task, columns=_conventional(table, len(task.columns)) or task.columns)
    return _examples(table, task, labelled=False)


def write_submission(
    folder: str | Path, task: Task, split: str, ids: Sequence[str], predictions: np.ndarray | Sequence[float]
) -> Path:
    """Writes the predictions for a test split as GLUE's server wants them, and returns the file's path.

    Args:
        folder: gets the file, `CoLA.tsv` or `MNLI-mm.tsv`.
        task: that was predicted.
        split: key of `TaskData.test`.
        ids: of the rows.
        predictions: [rows] class indices, or scores, which are clipped to the task's bounds.
    """
    name = task.dev_score(split)
    path = Path(folder) / f"{name}.tsv"
    if task.classes:
        values = [task.classes[int(i)] for i in predictions]
    else:
        low, high = task.bounds or (-math.inf, math.inf)
        values = [f"{min(max(float(score), low), high):.{task.decimals}f}" for score in predictions]
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [("index", "prediction"), *zip(ids, values, strict=True)]
        file.writelines(f"{cell(index)}\t{cell(value)}\n" for index, value in rows)
    return path


def cell(text: str) -> str:
    """As spreadsheet programs write it, and as it was read: quoted if it holds a tab, a line break or a quote."""
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in '\t\r\n"') else text


# --- GLUE ---


def _glue_task(spec: str) -> Task:
    key = _plain(spec)
    if key == "ax":
        raise ConfigError("task AX is only a test set: train on MNLI, which has it as its test split 'diagnostic'")
    for task in GLUE.values():
        if _plain(task.name) == key:
            return task
    raise ConfigError(f"task {spec!r}: must be one of {', '.join(GLUE)}, or tsv:FILE")


def _plain(name: str) -> str:
    """What TensorFlow Datasets calls a task: `stsb`."""
    return name.lower().replace("-", "")


def _load_glue(task: Task, folder: Path) -> TaskData:
    warnings = []

    def read(file: str, labelled: bool) -> Examples:
        path = folder / file
        if not path.exists():
            raise ConfigError(
                f"data_dir: no file {path}, where GLUE's layout has it; without data_dir it is downloaded"
            )
        header = _COLA_HEADER if task.name == "CoLA" and labelled else None
        # QQP as published has questions with line breaks and tabs, whose rows are in pieces; all leave these out.
        table = _read_table(path, header=header, skip=task.name == "QQP" and labelled)
        if table.skipped:
            warnings.append(f"{path}: {table.skipped:,} malformed lines were left out, as is usual for {task.name}")
        return _examples(table, task, labelled)

    mnli = task.name == "MNLI"
    dev = {split: f"dev_{split}" for split in _MNLI_SPLITS} if mnli else {"dev": "dev"}
    test = {split: f"{task.name}/test_{split}" for split in _MNLI_SPLITS} if mnli else {"test": f"{task.name}/test"}
    if mnli:
        test["diagnostic"] = "diagnostic/diagnostic"
    return TaskData(
        task,
        read(f"{task.name}/train.tsv", True),
        {split: read(f"{task.name}/{file}.tsv", True) for split, file in dev.items()},
        {split: read(f"{file}.tsv", False) for split, file in test.items() if (folder / f"{file}.tsv").exists()},
        tuple(warnings),
    )


def _load_tfds(task: Task) -> TaskData:
    """GLUE through TensorFlow Datasets: ArrayRecord, and no TensorFlow."""
    builder = _prepared(_builder(task), task.name)
    mnli = task.name == "MNLI"
    dev = {split: f"validation_{split}" for split in _MNLI_SPLITS} if mnli else {"dev": "validation"}
    test = {split: f"test_{split}" for split in _MNLI_SPLITS} if mnli else {"test": "test"}
    unlabelled = {split: _tfds_examples(builder, task, name, labelled=False) for split, name in test.items()}
    warnings = []
    if mnli:
        try:
            diagnostic = _prepared(_builder(task, "ax"), "AX")
            unlabelled["diagnostic"] = _tfds_examples(diagnostic, task, "test", labelled=False)
        except ConfigError as error:  # a download of its own, which should not stop a run
            warnings.append(f"{error}; MNLI goes on without its diagnostics")
    return TaskData(
        task,
        _tfds_examples(builder, task, "train", labelled=True),
        {split: _tfds_examples(builder, task, name, labelled=True) for split, name in dev.items()},
        unlabelled,
        tuple(warnings),
    )


def _builder(task: Task, name: str = "") -> Any:
    tfds = tensorflow_data_sets.library()
    # A builder of the older kind: it is found only after its module was imported.
    importlib.import_module("tensorflow_datasets.text.glue")
    return tfds.builder(f"glue/{name or _plain(task.name)}", file_format="array_record", try_gcs=False)


def _prepared(builder: Any, name: str) -> Any:
    tensorflow_data_sets.download(builder, f"task {name}", ": give data_dir, a folder with GLUE's own files")
    return builder


def _tfds_examples(builder: Any, task: Task, split: str, labelled: bool) -> Examples:
    features = list(builder.builder_config.text_features)  # in the order of our columns
    # Stored in the order of a hash; `idx` is that of the file.
    records = sorted(builder.as_data_source(split=split), key=lambda record: int(record["idx"]))
    kind = np.int32 if task.classes else np.float64
    return Examples(
        [str(int(record["idx"])) for record in records],
        [tuple(tensorflow_data_sets.as_text(record[feature]) for feature in features) for record in records],
        np.array([record["label"] for record in records], kind) if labelled else None,
    )


# --- own tasks ---


def _load_own(files: str, columns: tuple[str, ...], label: str) -> TaskData:
    paths = [Path(os.path.expanduser(file.strip())) for file in files.split(",")]
    if len(paths) > 3 or not all(file.strip() for file in files.split(",")):
        raise ConfigError(f"task 'tsv:{files}': must be tsv:FILE or tsv:TRAIN,DEV[,TEST]")
    tables = [_read_table(path, quoted=True) for path in paths]
    task = _own_task(tables[0], columns, label)
    train = _examples(tables[0], task, labelled=True)
    if len(tables) > 1:
        dev = _examples(tables[1], task, labelled=True)
    else:
        train, dev = _hold_out(train, task, tables[0].path)
    test = {"test": _examples(tables[2], task, labelled=False)} if len(tables) > 2 else {}
    if not task.classes and train.labels is not None:  # in their thousands a network that starts at 0 never gets there
        task = replace(task, scale=(float(train.labels.mean()), float(train.labels.std()) or 1.0))
    doubts = [*map(_swallowed, tables), _comma(task)]
    return TaskData(task, train, {"dev": dev}, test, tuple(filter(None, doubts)))


def _comma(task: Task) -> str:
    found = next((name for name in task.classes if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", name)), "")
    return found and f"labels such as {found} are taken for classes: numbers of a regression need a point"


def _swallowed(table: "_Table") -> str:
    """A doubt about a cell with both a tab and a line break: a lone quote at its beginning, and one lines later?"""
    for line, cells in table.rows:
        if any("\t" in text and "\n" in text for text in cells):
            return f"{table.path}, line {line}: a quoted cell holds a tab and a line break: is that quote a letter?"
    return ""


def _own_task(table: "_Table", columns: tuple[str, ...], label: str) -> Task:
    """What the training rows say about the task."""
    header = textwrap.shorten(", ".join(table.header), 500, placeholder=" …")
    columns = columns or _conventional(table)
    if not 1 <= len(columns) <= 2:
        raise ConfigError(
            f"{table.path}, line 1: text must be in one or two columns, text or sentence, text_a and text_b, or those "
            f"that columns names; the header, split at tabs, is {header}"
        )
    label = label or next((name for name in _LABEL_COLUMNS if name in table.header), "")
    if not label or label in columns:
        raise ConfigError(
            f"{table.path}, line 1: labels must be in a column of their own, label, score, or the one that label names;"
            f" the header, split at tabs, is {header}"
        )
    task = Task(table.path.stem, columns, label, (), ("pearson", "spearman"), quoted=True)
    labels = {cell for _, cell in _label_cells(table, label)}
    if len(labels) == 1:
        raise ConfigError(f"{table.path}: every row has the label {labels.pop()!r}, so that there is nothing to learn")
    numbers = {number for cell in labels if (number := _number(cell)) is not None}
    if label == "score" or not all(number.is_integer() for number in numbers):
        return task
    metrics = ("accuracy", "f1", "matthews") if len(labels) == 2 else ("accuracy", "matthews")
    return replace(task, classes=tuple(sorted(labels)), metrics=metrics)


def _conventional(table: "_Table", count: int = 0) -> tuple[str, ...]:
    """The columns with text by their usual names, `count` of them or any number; () if there are none, or several."""
    found = [names for names in _TEXT_COLUMNS if set(names) <= set(table.header) and (not count or len(names) == count)]
    return found[0] if len(found) == 1 else ()


def _hold_out(examples: Examples, task: Task, path: Path) -> tuple[Examples, Examples]:
    """Training and dev rows. Equal texts stay together, and rows stay where they are when others come."""
    held = np.array([_hash(texts) % _HELD_OUT == 0 for texts in examples.texts])
    for index in range(len(task.classes)):
        of_class = examples.labels == index
        if held[of_class].all():  # a class must be seen to be learned
            held[of_class] = False
    if not held.any() or held.all():
        raise ConfigError(f"{path}: {len(held)} rows are too few to hold some out; give dev rows as tsv:TRAIN,DEV")
    return _taken(examples, ~held), _taken(examples, held)


def _hash(texts: tuple[str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b("\t".join(texts).encode(), digest_size=8).digest())


def _taken(examples: Examples, rows: np.ndarray) -> Examples:
    labels = None if examples.labels is None else examples.labels[rows]
    places = np.flatnonzero(rows)
    return Examples([examples.ids[i] for i in places], [examples.texts[i] for i in places], labels)


# --- tab-separated files ---


@dataclass(frozen=True)
class _Table:
    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]  # number of a row's first line, and its cells
    skipped: int  # rows with a wrong number of cells


def _read_table(path: Path, quoted: bool = False, header: list[str] | None = None, skip: bool = False) -> _Table:
    """The rows of a file; `header`: of a file without one; `skip`: leave rows out that have too many or few cells."""
    text = _read_text(path).rstrip("\r\n")
    first = text.partition("\n")[0]
    other = max(_SEPARATORS, key=first.count)
    if header is None and other in first and "\t" not in first:
        what = f"columns are separated by tabs, and the header seems to use {_SEPARATORS[other]}"
        raise _mistake(path, 1, f"{what}; save the file as tab-separated text")
    lines = _quoted_rows(text, path) if quoted else _plain_rows(text)
    if header is None:
        header = [name.strip() for name in next(lines)[1]] if text else []
    rows: list[tuple[int, list[str]]] = []
    skipped = 0
    for line, cells in lines if text else ():
        if len(cells) == len(header):
            rows.append((line, cells))
        elif skip:
            skipped += 1
        else:
            raise _mistake(path, line, f"{len(cells)} cells where there are {len(header)} columns")
    if not rows:
        raise ConfigError(f"{path}: no rows; it must hold tab-separated columns with one row a line")
    return _Table(path, header, rows, skipped)


def _read_text(path: Path) -> str:
    try:
        check_file(path)
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if (place := data.find(0)) >= 0:
        what = "a NUL character: a spreadsheet's or word processor's own format, or text that is not UTF-8"
        raise _mistake(path, data.count(b"\n", 0, place) + 1, f"{what}; save the file as tab-separated UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1  # without the byte-order mark
        raise _mistake(path, line, "not UTF-8; save the file in that encoding") from error


def _plain_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        yield number, line.removesuffix("\r").split("\t")


def _quoted_rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a cell may hold a book
    reader = csv.reader(io.StringIO(text, newline=""), "excel-tab", strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        help_ = "a cell that begins with a quote must end with one, and double those in between"
        raise _mistake(path, line, f"{error}; {help_}") from error


def _examples(table: _Table, task: Task, labelled: bool) -> Examples:
    columns = [_place(table, name) for name in task.columns]
    texts = [tuple(cells[i] for i in columns) for _, cells in table.rows]
    if task.quoted:  # two questions of GLUE's QQP are empty
        for (line, _), row in zip(table.rows, texts, strict=True):
            for name, text in zip(task.columns, row, strict=True):
                if not text.strip():
                    raise _mistake(table.path, line, f"no text in column {name!r}; fill it in or leave the row out")
    key = next((table.header.index(name) for name in _ID_COLUMNS if name in table.header), None)
    ids = [str(i) if key is None else cells[key] for i, (_, cells) in enumerate(table.rows)]
    return Examples(ids, texts, _labels(table, task) if labelled else None)


def _labels(table: _Table, task: Task) -> np.ndarray:
    cells = _label_cells(table, task.label)
    if not task.classes:
        return np.array([_score(table.path, line, cell, task) for line, cell in cells], np.float64)
    indices = {name: i for i, name in enumerate(task.classes)}
    for line, cell in cells:
        if cell not in indices:
            known = ", ".join(task.classes[:10]) + (", …" if len(task.classes) > 10 else "")
            raise _mistake(table.path, line, f"label {cell!r} is not one of the classes to train on, {known}")
    return np.array([indices[cell] for _, cell in cells], np.int32)


def _label_cells(table: _Table, name: str) -> list[tuple[int, str]]:
    """Line numbers and labels as they are written."""
    column = _place(table, name)
    found = [(line, cells[column].strip()) for line, cells in table.rows]
    for line, cell in found:
        if not cell:
            raise _mistake(table.path, line, f"no label in column {name!r}; fill it in or leave the row out")
    return found


def _score(path: Path, line: int, cell: str, task: Task) -> float:
    score = _number(cell)
    if score is None:
        raise _mistake(path, line, f"label {cell!r} is not a number, as those of a regression are")
    if task.bounds and not task.bounds[0] <= score <= task.bounds[1]:
        raise _mistake(path, line, f"label {cell!r} is not between {task.bounds[0]:g} and {task.bounds[1]:g}")
    return score


def _number(cell: str) -> float | None:
    number = float(cell) if _NUMBER.fullmatch(cell) else math.inf
    return number if abs(number) <= _LARGEST else None


def _place(table: _Table, name: str) -> int:
    """Of a column that must be there once."""
    if table.header.count(name) != 1:
        times = "several columns" if name in table.header else "no column"
        raise _mistake(table.path, 1, f"{times} {name!r}; the header, split at tabs, is {', '.join(table.header)}")
    return table.header.index(name)


def _mistake(path: Path, line: int, what: str) -> ConfigError:
    return ConfigError(f"{path}, line {line}: {what}")

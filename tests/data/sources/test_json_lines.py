import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import zstandard

from jaxpretrain.data import corpus
from jaxpretrain.data.corpus import documents, plan, resolve
from jaxpretrain.data.sources import files, json_lines, source
from jaxpretrain.data.sources.source import Warnings
from tests.data.conftest import mistake, read


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_is_a_document(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "grün\\n\\nblau"}\r\n\n  \n{"n": 1, "text": "\\u00e9t\\u00e9"}'.encode())
    assert read(f"jsonl:{path}", tmp_path) == ["grün\n\nblau", "été"]


@pytest.mark.parametrize(
    ("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open), (".zst", zstandard.open), (".bz2", bz2.open)]
)
def test_compressed_files(tmp_path: Path, suffix: str, opener: Any):
    path = tmp_path / f"a.jsonl{suffix}"
    with opener(path, "wb") as file:
        file.write('{"text": "grün"}\n{"text": "blau"}\n{"text": 3}'.encode())
    assert "line 3: 'text' is a number" in mistake(f"jsonl:{path}", tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    assert f"{path} is damaged" in mistake(f"jsonl:{path}", tmp_path)


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("", "plain"),
        ("#body", "other"),
        ("#meta.title", "inside"),
        ("#meta.deep.er", "deepest"),
        ("#a.b", "the key with a dot"),
        ("#a.c", "no key with a dot"),
        ("#x.y.z", "half a key"),
    ],
)
def test_fields(tmp_path: Path, field: str, found: str):
    row = {
        "text": "plain",
        "body": "other",
        "meta": {"title": "inside", "deep": {"er": "deepest"}},
        "a": {"b": "hidden", "c": "no key with a dot"},
        "a.b": "the key with a dot",
        "x.y": {"z": "half a key"},
    }
    assert read(f"jsonl:{write(tmp_path / 'a.jsonl', [row])}{field}", tmp_path) == [found]


def test_a_file_with_the_mark_in_its_name_needs_the_field_written_out(tmp_path: Path):
    path = write(tmp_path / "a#1.jsonl", [{"text": "one"}])
    assert read(f"jsonl:{path}#text", tmp_path) == ["one"]
    assert "no file matches" in mistake(f"jsonl:{path}", tmp_path)


def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x").mkdir()
    for name in ("b", "x/a", "x/c"):
        write(tmp_path / f"{name}.jsonl", [{"body": name}])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("jsonl:~/**/*.jsonl#body", tmp_path) == ["b", "x/a", "x/c"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cut_files_hold_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str):
    path = tmp_path / "a.jsonl"
    expected = [f"document {i} " + "é" * (i % 70) for i in range(500)]
    path.write_bytes(end.join(json.dumps({"text": d}, ensure_ascii=False) for d in expected).encode())
    monkeypatch.setattr(corpus, "UNIT_BYTES", 700)
    monkeypatch.setattr(files, "BLOCK", 50)  # most lines are longer
    units = plan(resolve(f"jsonl:{path}"), tmp_path, None)
    assert len(units) > 20
    assert sum(piece.size for unit in units for piece in unit) == path.stat().st_size
    assert [d for unit in units for d in documents(unit, Warnings())] == expected


def test_long_texts_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source, "LONGEST_DOCUMENT", 1000)
    path = write(tmp_path / "a.jsonl", [{"text": "語" * 2500}, {"text": "short"}])
    assert [len(d) for d in read(f"jsonl:{path}", tmp_path)] == [1000, 1000, 500, 5]


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path):
    rows = [{"text": text} for text in ("one", None, "", " \n", "two")]
    path = write(tmp_path / "a.jsonl", [*rows, {"other": 3}, {}, {"text": "three"}])
    warnings = Warnings()
    assert read(f"jsonl:{path}", tmp_path, warnings) == ["one", "two", "three"]
    assert warnings == {(str(path), "rows without text in 'text' were skipped"): 5}


def test_a_field_that_no_row_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "a.jsonl", [{"body": "one", "meta": {"title": "x", "n": 1}}, {"late": 1}, {}] * 50)
    expected = f"no row of {path} has a field 'text'; there are body, meta.title, meta.n, late: name one"
    assert expected in mistake(f"jsonl:{path}", tmp_path)
    monkeypatch.setattr(corpus, "UNIT_BYTES", 200)
    assert expected in mistake(f"jsonl:{path}", tmp_path)
    # One row that has it, however late, and it is a matter of rows.
    with path.open("a") as file:
        file.write('{"text": "here"}\n')
    warnings = Warnings()
    assert read(f"jsonl:{path}", tmp_path, warnings) == ["here"]
    assert list(warnings.values()) == [150]


@pytest.mark.parametrize("row", ['{"a":' * 900 + "1" + "}" * 900, '{"' + "a" * 100_000 + '": 1}'], ids=["deep", "long"])
def test_names_without_end_are_cut(tmp_path: Path, row: str):
    path = tmp_path / "a.jsonl"
    path.write_text(row)
    found = mistake(f"jsonl:{path}", tmp_path)
    assert f"no row of {path} has a field 'text'; there are a" in found
    assert len(found) < 500


def test_names_that_would_break_the_line(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"a\n\x1b[2J": 1, "b": {"\ud800": 2}}])
    assert r"there are a\n\x1b[2J, b.\ud800: name one" in mistake(f"jsonl:{path}", tmp_path)


@pytest.mark.parametrize("field", [None, "text.inner"])
@pytest.mark.parametrize(
    ("value", "name"),
    [(1, "a number"), (0.5, "a number"), (True, "a truth value"), (["a"], "a list"), ({"b": 1}, "an object")],
)
def test_a_value_that_is_no_string(tmp_path: Path, value: Any, name: str, field: str | None):
    row = {"text": {"inner": value}} if field else {"text": value}
    path = write(tmp_path / "a.jsonl", [{"text": None}, row])
    message = mistake(f"jsonl:{path}" + (f"#{field}" if field else ""), tmp_path)
    assert message.startswith(
        f"data.source: {path}, line 2: {field or 'text'!r} is {name}, not a string; name the field"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "torn', "is not a JSON object; repair or remove it"),
        (b'["a", "b"]', "is not a JSON object"),
        (b'"a"', "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b"plain words", "is not a JSON object"),
        (b"[" * 100_000, "is not a JSON object"),
        (b'{"text": "caf\xe9"}', "is not UTF-8; iconv"),
        (b'{"text": 1}', "'text' is a number"),
        (b"\x00\x01", "is not a JSON object"),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("unit_bytes", [100, 1 << 20])
def test_a_line_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, message: str, unit_bytes: int
):
    monkeypatch.setattr(corpus, "UNIT_BYTES", unit_bytes)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' * 20 + line + b'\n{"text": "good"}\n')
    found = mistake(f"jsonl:{path}", tmp_path)
    assert f"data.source: {path}, line 41" in found
    assert message in found


@pytest.mark.parametrize("content", ["wide", '{"text": "wide"}\n'])
def test_another_encoding(tmp_path: Path, content: str):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content.encode("utf-16"))
    assert f"{path}, line 1 is not UTF-8" in mistake(f"jsonl:{path}", tmp_path)


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_lines, "_LONGEST_LINE", 10_000)
    monkeypatch.setattr(files, "BLOCK", 1000)
    path = write(tmp_path / "a.jsonl", [{"text": "x" * 9000}, {"text": "y" * 20_000}])
    assert f"{path}, line 2 is longer than 10,000 bytes" in mistake(f"jsonl:{path}", tmp_path)


def test_lone_halves_of_characters(tmp_path: Path):
    """JSON can say what UTF-8 cannot; the normal form leaves it out."""
    path = tmp_path / "a.jsonl"
    path.write_text(r'{"text": "half \ud83d and whole \ud83d\ude00"}')
    assert read(f"jsonl:{path}", tmp_path) == ["half \ud83d and whole 😀"]


def test_an_empty_file(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n")
    assert read(f"jsonl:{path}", tmp_path) == []

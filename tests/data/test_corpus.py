import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.data.corpus import documents, plan, resolve, slug
from jaxpretrain.data.sources.source import Warnings
from tests.data.conftest import read


def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x" / "y").mkdir(parents=True)
    for name in ("a.txt", "x/b.txt", "x/y/c.txt", "x/y/d.md"):
        (tmp_path / name).write_text(name)
    assert read(f"text:{tmp_path}/**/*.txt", tmp_path) == ["a.txt", "x/b.txt", "x/y/c.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("text:~/x/*.txt", tmp_path) == ["x/b.txt"]
    assert read("text:~/x/*.txt+text:~/a.txt", tmp_path) == ["x/b.txt", "a.txt"]
    with pytest.raises(ConfigError, match=r"data.source='text:.*none\*': no file matches"):
        read(f"text:{tmp_path}/none*", tmp_path)
    with pytest.raises(ConfigError, match=r"no file matches; a folder is given as text:.*/x/\*"):
        read(f"text:{tmp_path}/x/", tmp_path)


@pytest.mark.parametrize("source", ["", "wikipedia", "text:", "tfds:", "jsonl:", "hf:", "textfile:a", "python-docs:x"])
def test_unknown_sources(source: str):
    with pytest.raises(ConfigError, match=r"data.source=.*: must be python-docs, text:GLOB, jsonl:.*parquet:.*hf:NAME"):
        resolve(source)


def test_sources_of_all_kinds_are_joined(tmp_path: Path):
    (tmp_path / "a.txt").write_text("of text")
    (tmp_path / "a+b.jsonl").write_text('{"body": "of lines"}')
    pq.write_table(pa.table({"text": ["of a table"]}), tmp_path / "a.parquet")
    source = f"jsonl:{tmp_path}/a+b.jsonl#body+text:{tmp_path}/a.txt+parquet:{tmp_path}/*.parquet+text:{tmp_path}/a.txt"
    assert [part.kind for part in resolve(source)] == ["jsonl", "text", "parquet", "text"]
    assert read(source, tmp_path) == ["of lines", "of text", "of a table", "of text"]
    assert resolve("python-docs+" + source)[1:] == resolve(source)
    with pytest.raises(ConfigError, match=r"data.source='jsonl:/nowhere/\*#body': no file matches"):
        resolve(source + "+jsonl:/nowhere/*#body")


def test_a_folder_is_named_after_its_source():
    assert slug("text:~/books/*.txt") == "books---txt"
    assert slug("jsonl:a.jsonl#body+parquet:b+tfds:c@train+hf:me/d") == "a-jsonl-body-b-c-train-me-d"
    assert len(slug("text:" + "x" * 100)) == 40


def test_small_files_share_a_unit(tmp_path: Path):
    for i in range(50):
        (tmp_path / f"{i:02}.txt").write_text(f"text {i}")
    units = plan(resolve(f"text:{tmp_path}/*.txt"), tmp_path, None)
    assert len(units) == 1
    assert list(documents(units[0], Warnings())) == [f"text {i}" for i in range(50)]


def test_a_changed_file_has_another_identity(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = resolve(f"text:{path}")
    assert resolve(f"text:{path}") == before
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert resolve(f"text:{path}") != before

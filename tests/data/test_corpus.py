import os
from pathlib import Path

import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.data.corpus import documents, plan, resolve
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


@pytest.mark.parametrize("source", ["", "wikipedia", "text:", "tfds:", "textfile:a", "python-docs:x"])
def test_unknown_sources(source: str):
    with pytest.raises(ConfigError, match=r"data.source=.*: must be python-docs, text:GLOB or tfds:NAME"):
        resolve(source)


def test_small_files_share_a_unit(tmp_path: Path):
    for i in range(50):
        (tmp_path / f"{i:02}.txt").write_text(f"text {i}")
    units = plan(resolve(f"text:{tmp_path}/*.txt"), tmp_path, None)
    assert len(units) == 1
    assert list(documents(units[0], [])) == [f"text {i}" for i in range(50)]


def test_a_changed_file_has_another_identity(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = resolve(f"text:{path}")
    assert resolve(f"text:{path}") == before
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert resolve(f"text:{path}") != before

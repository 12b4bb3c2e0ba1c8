"""What is written lies there whole or not at all, and nothing of the user's is touched."""

from pathlib import Path

import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.interop.folders import written_whole


def fill(folder: str | Path, more: str = ".") -> None:
    with written_whole(folder) as partial:
        (partial / "inside").mkdir()
        (partial / "inside" / "file").write_text("ours")
        (partial / more / "last").write_text("ours")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_neighbours_are_left_alone(tmp_path: Path) -> None:
    for name in ("out.partial", ".out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    fill(tmp_path / "out")
    assert names(tmp_path) == [".out.partial", "out", "out.partial"]
    assert (tmp_path / "out.partial" / "file").read_text() == "mine"
    assert (tmp_path / "out" / "inside" / "file").read_text() == "ours"
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "out.partial").stat().st_mode


def test_the_folder_that_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    fill(".")
    assert names(Path()) == ["inside", "last"]  # seen from there: it is still the same folder
    assert names(tmp_path) == ["out"]


def test_a_link_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        (tmp_path / f"link-{name}").symlink_to(tmp_path / name)
        fill(tmp_path / f"link-{name}")
        assert names(tmp_path / name) == ["inside", "last"]
    with pytest.raises(ConfigError, match="empty: is not empty"):
        fill(tmp_path / "link-empty")


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with pytest.raises(FileNotFoundError):
            fill(tmp_path / name, "nowhere")
    assert names(tmp_path) == ["empty"]
    assert names(tmp_path / "empty") == []


def test_a_bucket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="gs://bucket/out: give a folder on this machine"):
        fill("gs://bucket/out")
    assert names(tmp_path) == []

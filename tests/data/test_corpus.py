import bz2
import gzip
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from jaxpretrain.config import ConfigError
from jaxpretrain.data import corpus
from jaxpretrain.data.corpus import documents, plan, resolve


def read(source: str, tmp_path: Path, warnings: list[str] | None = None) -> list[str]:
    units = plan(resolve(source), tmp_path, None)
    return [document for unit in units for document in documents(unit, [] if warnings is None else warnings)]


def test_a_blank_line_ends_a_document(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\ntwo\n\n \t\n\nthree\r\n\r\nfour".encode())
    assert [d.split() for d in read(f"text:{path}", tmp_path)] == [["one", "two"], ["three"], ["four"]]


@pytest.mark.parametrize(
    ("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open), (".zst", zstandard.open), (".bz2", bz2.open)]
)
def test_compressed_files(tmp_path: Path, suffix: str, opener: Any):
    path = tmp_path / f"a.txt{suffix}"
    with opener(path, "wb") as file:
        file.write("grün\n\nblau".encode())
    assert read(f"text:{path}", tmp_path) == ["grün", "blau"]
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(ConfigError, match=rf"{path} is damaged"):
        read(f"text:{path}", tmp_path)
    path.write_bytes(b"no such format")
    with pytest.raises(ConfigError, match=rf"{path} is damaged"):
        read(f"text:{path}", tmp_path)


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


@pytest.mark.parametrize("content", [b"\x89PNG\0\0\x1a" * 10, os.urandom(5000), "wide".encode("utf-16")])
def test_binary_files(tmp_path: Path, content: bytes):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path} is binary, or text in another encoding than UTF-8"):
        read(f"text:{path}", tmp_path)


def test_a_few_bad_bytes_are_replaced_and_counted(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 and na\xefve" + b" words" * 20)
    warnings: list[str] = []
    assert read(f"text:{path}", tmp_path, warnings)[0].startswith("caf\ufffd and na\ufffdve")
    assert warnings == [f"{path}: 2 characters are not UTF-8 and were replaced"]


def test_an_unreadable_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    parts = resolve(f"text:{path}")
    units = plan(parts, tmp_path, None)
    path.unlink()
    with pytest.raises(ConfigError, match=rf"cannot read {path}: No such file"):
        list(documents(units[0], []))


def test_a_long_line_is_cut_at_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "_LONGEST_DOCUMENT", 1000)
    monkeypatch.setattr(corpus, "_BLOCK", 300)
    path = tmp_path / "a.txt"
    text = "".join(f"word{i} " for i in range(2000))
    path.write_text(text)
    found = read(f"text:{path}", tmp_path)
    assert "".join(found).split() == text.split()
    assert len(found) > 10
    assert max(map(len, found)) <= 1001
    path.write_text("語" * 5000)
    assert [len(d) for d in read(f"text:{path}", tmp_path)] == [1000] * 5


@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n", "\n \n"])
def test_cut_files_hold_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str):
    path = tmp_path / "a.txt"
    expected = [f"document {i}\nsecond line " + "é" * (i % 50) for i in range(500)]
    path.write_bytes(separator.join(expected).encode())
    monkeypatch.setattr(corpus, "UNIT_BYTES", 700)
    units = plan(resolve(f"text:{path}"), tmp_path, None)
    assert len(units) > 20
    assert [d.strip() for unit in units for d in documents(unit, [])] == [d.strip() for d in expected]


def test_a_file_without_lines_is_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    path.write_text("é語𝒳" * 1000)
    monkeypatch.setattr(corpus, "UNIT_BYTES", 700)
    monkeypatch.setattr(corpus, "_BLOCK", 100)
    found = read(f"text:{path}", tmp_path)
    assert len(found) > 10
    assert "".join(found) == "é語𝒳" * 1000


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


# --- TFDS, with real builders written in ArrayRecord ---


def _write_data_set(folder: Path, name: str, features: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    import tensorflow_datasets as tfds

    def info(self: Any) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    builder = type(
        name,
        (tfds.core.GeneratorBasedBuilder,),
        {
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": info,
            "_split_generators": lambda self, manager: {
                "train": self._generate_examples(rows),
                "test": self._generate_examples(rows[:3]),
            },
            "_generate_examples": lambda self, some: enumerate(some),
            "__module__": __name__,
        },
    )
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    text = tfds.features.Text()
    rows = [f"the tale of ship {i}, très belle" for i in range(100)]
    _write_data_set(folder, "Tales", {"text": text, "title": text}, [{"text": r, "title": "no"} for r in rows])
    _write_data_set(folder, "Reviews", {"review": text, "stars": np.int64}, [{"review": r, "stars": 5} for r in rows])
    _write_data_set(folder, "Pairs", {"first": text, "second": text}, [{"first": r, "second": r} for r in rows])
    _write_data_set(folder, "Stars", {"stars": np.int64}, [{"stars": 5} for _ in rows])
    return folder


@pytest.fixture
def data_sets(tfds_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tfds_folder))  # the variable is read at import


@pytest.mark.parametrize("name", ["tales", "reviews", "tales@train", "tales:1.0.0"])
@pytest.mark.usefixtures("data_sets")
def test_tfds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    units = plan(resolve(f"tfds:{name}"), tmp_path, None)
    assert len(units) > 1
    found = [d for unit in units for d in documents(unit, [])]
    assert sorted(found) == sorted(f"the tale of ship {i}, très belle" for i in range(100))


@pytest.mark.usefixtures("data_sets")
def test_tfds_splits_and_slices(tmp_path: Path):
    assert len(read("tfds:tales@test", tmp_path)) == 3
    assert len(read("tfds:tales@train[:10%]", tmp_path)) == 10
    assert len(read("tfds:tales@test+tfds:reviews@test", tmp_path)) == 6


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:tales@valid", r"tfds:tales@valid': split 'valid' is not one of .*train"),
        ("tfds:pairs", r"tfds:pairs': needs one text feature, or one named 'text'; it has first, second"),
        ("tfds:stars", r"tfds:stars': .* it has none"),
        ("tfds:no_such_data_set", r"tfds:no_such_data_set': .*not found"),
    ],
)
@pytest.mark.usefixtures("data_sets")
def test_tfds_mistakes(source: str, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message) as caught:
        read(source, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(corpus.importlib.util.find_spec("apache_beam") is not None, reason="needs a missing apache_beam")
@pytest.mark.usefixtures("data_sets")
def test_a_missing_extra_is_named(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"wikipedia/20230601.en' .*apache_beam: pip install 'jaxpretrain\[wikipedia\]'"
    ):
        read("tfds:wikipedia/20230601.en", tmp_path)


def test_zst_files_of_several_frames(tmp_path: Path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"".join(zstandard.compress(f"document {i}\n\n".encode()) for i in range(3)))
    assert read(f"text:{path}", tmp_path) == ["document 0", "document 1", "document 2"]


@pytest.mark.parametrize("cut", [1, 100, 3000])
def test_a_zst_file_that_was_cut_off(tmp_path: Path, cut: int):
    path = tmp_path / "a.txt.zst"
    whole = zstandard.compress(b"document\n\n") + zstandard.compress(os.urandom(2000).hex().encode())
    path.write_bytes(whole[:-cut] if cut < len(whole) else whole[:7])
    with pytest.raises(ConfigError, match=rf"{path} is damaged: it ends in the middle of a frame"):
        read(f"text:{path}", tmp_path)

import bz2
import glob
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from jaxpretrain.config import ConfigError
from jaxpretrain.data import corpus
from jaxpretrain.data.corpus import documents, plan, resolve
from jaxpretrain.data.sources import files, text_files
from jaxpretrain.data.sources.source import Warnings
from tests.data.conftest import read


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


@pytest.mark.parametrize("content", [b"\x89PNG\0\0\x1a" * 10, os.urandom(5000), "wide".encode("utf-16")])
def test_binary_files(tmp_path: Path, content: bytes):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path} is binary, or text in another encoding than UTF-8"):
        read(f"text:{path}", tmp_path)


def test_a_few_bad_bytes_are_replaced_and_counted(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 and na\xefve" + b" words" * 20)
    warnings = Warnings()
    assert read(f"text:{path}", tmp_path, warnings)[0].startswith("caf\ufffd and na\ufffdve")
    assert warnings == {(str(path), "characters are not UTF-8 and were replaced"): 2}


def test_an_unreadable_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    parts = resolve(f"text:{path}")
    units = plan(parts, tmp_path, None)
    path.unlink()
    with pytest.raises(ConfigError, match=rf"cannot read {path}: No such file"):
        list(documents(units[0], Warnings()))


def test_a_long_line_is_cut_at_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 1000)
    monkeypatch.setattr(files, "BLOCK", 300)
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
    assert [d.strip() for unit in units for d in documents(unit, Warnings())] == [d.strip() for d in expected]


def test_a_file_without_lines_is_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    path.write_text("é語𝒳" * 1000)
    monkeypatch.setattr(corpus, "UNIT_BYTES", 700)
    monkeypatch.setattr(files, "BLOCK", 100)
    found = read(f"text:{path}", tmp_path)
    assert len(found) > 10
    assert "".join(found) == "é語𝒳" * 1000


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


def test_a_zst_file_that_unfolds_without_end(tmp_path: Path):
    """Blocks of four bytes stand for 128 KiB of one letter each; no piece of the text may fill the memory."""
    blocks = [(128 << 10 << 3 | 1 << 1 | (i == 1023)).to_bytes(3, "little") + b"a" for i in range(1024)]
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00\x50" + b"".join(blocks))
    sizes = [len(block) for block in files.blocks(str(path), 0, 0)]
    assert sum(sizes) == 128 << 20
    assert max(sizes) <= 33 << 20


def test_links_in_circles(tmp_path: Path):
    """As in a shell, `**` enters no linked folder; a folder that the pattern names may be one."""
    for name in ("a", "b", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "up").symlink_to("..")
        (tmp_path / name / "x.txt").write_text(name)
    (tmp_path / "c.txt").symlink_to("c.txt")
    assert read(f"text:{tmp_path}/**/*.txt", tmp_path) == ["a", "b"]
    assert read(f"text:{tmp_path}/a/up/**/x.txt", tmp_path) == ["a", "b"]
    assert read(f"text:{tmp_path}/**/a/**", tmp_path) == ["a"]


def test_what_two_stars_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without links it is what Python's glob finds."""
    for name in ("x.txt", "a/x.txt", "a/[b]/x.txt", "a/.c/x.txt", "a/a/\n/x.txt", ".x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    for pattern in ("**", "**/*.txt", "a/**", "a/**/", "./**/x.txt", "*/**/a/**/x.txt", "**/.c/*", f"{tmp_path}/**"):
        expected = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        found = [file for part in resolve(f"text:{pattern}") for file in part.files] if expected else []
        assert found == sorted(expected), pattern


def test_xz_files_of_several_streams_with_padding(tmp_path: Path):
    path = tmp_path / "a.txt.xz"
    streams = [lzma.compress(f"document {i}\n\n".encode()) for i in range(3)]
    path.write_bytes(streams[0] + bytes(4096) + streams[1] + streams[2] + bytes(8))
    assert read(f"text:{path}", tmp_path) == ["document 0", "document 1", "document 2"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda whole: whole[:-5], "is damaged: it ends in the middle of a frame"),
        (lambda whole: whole + b"PK", "is damaged"),
        (lambda _: b"", "is damaged: it ends in the middle of a frame"),
        (lambda _: bytes(4096), "is damaged"),
        (lambda whole: whole[:40] + b"x" + whole[41:], "is damaged"),
    ],
)
def test_an_xz_file_that_was_spoilt(tmp_path: Path, spoil: Callable[[bytes], bytes], message: str):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(spoil(lzma.compress(b"document\n\n" + os.urandom(2000).hex().encode())))
    with pytest.raises(ConfigError, match=f"{path} {message}"):
        read(f"text:{path}", tmp_path)


def test_an_xz_file_that_wants_gigabytes_to_be_read(tmp_path: Path):
    """Its dictionary would grow with the text, to as much as its head says."""
    path = tmp_path / "a.txt.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    path.write_bytes(lzma.compress(b"document", filters=filters))
    with pytest.raises(ConfigError, match=f"{path}: it wants more than 256 MiB to be read; compress it anew"):
        read(f"text:{path}", tmp_path)


def test_replacement_characters_are_characters(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("\ufffd" * 1000)
    warnings = Warnings()
    units = plan(resolve(f"text:{path}"), tmp_path, None)
    assert [d for unit in units for d in documents(unit, warnings)] == ["\ufffd" * 1000]
    assert not warnings

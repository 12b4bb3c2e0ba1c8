import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.data import corpus
from jaxpretrain.data.corpus import documents, plan, resolve
from jaxpretrain.data.sources import source
from jaxpretrain.data.sources.source import Warnings
from tests.data.conftest import mistake, read

TEXTS = [f"document {i}\n\n" + "très belle " * (i % 20) for i in range(1000)]


def write(path: Path, rows: int = 50, compression: str = "snappy", **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows, compression=compression)
    return path


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_row_groups_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str):
    path = write(tmp_path / "a.parquet", compression=compression, text=TEXTS, n=range(1000))
    monkeypatch.setattr(corpus, "UNIT_BYTES", 10_000)
    units = plan(resolve(f"parquet:{path}"), tmp_path, None)
    assert 5 < len(units) < 20
    assert [d for unit in units for d in documents(unit, Warnings())] == TEXTS
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1 << 20)
    units = plan(resolve(f"parquet:{path}"), tmp_path, None)
    assert len(units) == len(units[0]) == 1
    assert list(documents(units[0], Warnings())) == TEXTS


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_types_of_text(tmp_path: Path, type_: pa.DataType):
    path = write(tmp_path / "a.parquet", body=pa.array(["one", None, "two", "one"], type_), n=range(4))
    warnings = Warnings()
    assert read(f"parquet:{path}", tmp_path, warnings) == ["one", "two", "one"]
    assert warnings == {(str(path), "rows without text in 'body' were skipped"): 1}


def test_columns(tmp_path: Path):
    path = write(tmp_path / "a.parquet", title=["t"], text=["x"], **{"a.b": ["dotted"]})
    assert read(f"parquet:{path}", tmp_path) == ["x"]
    assert read(f"parquet:{path}#title", tmp_path) == ["t"]
    assert read(f"parquet:{path}#a.b", tmp_path) == ["dotted"]


def test_only_the_column_is_read(tmp_path: Path):
    """Damage elsewhere in the file goes unseen."""
    path = write(tmp_path / "a.parquet", 1000, "none", a=["garbage" * 1000], text=["good"])
    path.write_bytes(path.read_bytes().replace(b"garbage" * 1000, b"\xff" * 7000, 1))
    assert read(f"parquet:{path}", tmp_path) == ["good"]


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        (
            {"title": ["a"], "body": ["b"], "n": [1]},
            "",
            "has no column 'text' of strings; there are title, body: name",
        ),
        ({"title": ["a"], "n": [1]}, "n", "has no column 'n' of strings; there are title: name one, #COLUMN"),
        ({"title": ["a"]}, "text", "has no column 'text' of strings; there are title"),
        ({"a\n\x1b[2J": ["a"]}, "text", r"has no column 'text' of strings; there are a\n\x1b[2J: name one"),
        ({"n": [1], "many": [["a"]]}, "", "has no column 'text' of strings; it has no column of strings at all"),
    ],
)
def test_a_wrong_column(tmp_path: Path, columns: dict[str, list], wanted: str, message: str):
    path = write(tmp_path / "a.parquet", **columns)
    assert f"{path} {message}" in mistake(f"parquet:{path}" + (f"#{wanted}" if wanted else ""), tmp_path)


@pytest.mark.parametrize("damage", ["no table", "cut", "pages", "text"])
def test_damaged_files(tmp_path: Path, damage: str):
    path = write(tmp_path / "a.parquet", 1000, "none", text=TEXTS)
    content = path.read_bytes()
    if damage == "no table":
        path.write_text('{"text": "lines"}')
    elif damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "pages":
        path.write_bytes(content[:20] + bytes(500) + content[520:])
    else:
        path.write_bytes(content.replace("très".encode(), "très".encode("latin-1") + b" ", 1))
    assert f"data.source: {path} is damaged, or not a Parquet file" in mistake(f"parquet:{path}", tmp_path)


def test_a_file_that_is_gone(tmp_path: Path):
    path = write(tmp_path / "a.parquet", text=TEXTS)
    (unit,) = plan(resolve(f"parquet:{path}"), tmp_path, None)
    path.unlink()
    with pytest.raises(ConfigError, match=rf"cannot read {path}: No such file"):
        list(documents(unit, Warnings()))
    with pytest.raises(ConfigError, match="no file matches"):
        resolve(f"parquet:{path}")


def test_long_and_empty_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source, "LONGEST_DOCUMENT", 1000)
    path = write(tmp_path / "a.parquet", text=["語" * 2500, "", " \n", "short"])
    assert [len(d) for d in read(f"parquet:{path}", tmp_path)] == [1000, 1000, 500, 5]
    empty = write(tmp_path / "b.parquet", text=pa.array([], pa.string()))
    assert read(f"parquet:{empty}", tmp_path) == []


FLIP_EVERY_BIT = """
import sys
from pathlib import Path
from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources import parquet_files
path = Path(sys.argv[1])
whole = path.read_bytes()
for i in range(max(4, len(whole) - 400), len(whole)):
    for bit in range(8):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :])
        try:
            list(parquet_files.pieces(parquet_files.resolve(str(path)), 1000))
        except ConfigError:
            pass
"""


def test_no_flipped_bit_at_its_end_takes_the_process_along(tmp_path: Path):
    write(tmp_path / "a.parquet", text=["one", "two", None], n=[1, 2, 3])
    done = subprocess.run(
        [sys.executable, "-c", FLIP_EVERY_BIT, tmp_path / "a.parquet"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]

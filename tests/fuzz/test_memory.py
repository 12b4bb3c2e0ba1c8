"""Bombs and lines without end: a small file, or one line, never takes the memory."""

import bz2
import gzip
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells a peak")
MIB = 1 << 20
# Reads a source to its end and prints how many characters there were, or the one line, and MiB at the peak.
READ = """
import re, sys
from jaxpretrain.config import ConfigError
from jaxpretrain.data.corpus import documents, plan, resolve
from jaxpretrain.data.sources.source import Warnings
try:
    found = sum(len(d) for u in plan(resolve(sys.argv[1]), None, None) for d in documents(u, Warnings()))
except ConfigError as error:
    found = error
print(found)
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
"""


def read(source: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", READ, source], capture_output=True, text=True, check=True)
    found, peak = done.stdout.strip().splitlines()[-2:]
    return found, int(peak)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> int:
    """MiB of a process that reads next to nothing."""
    path = tmp_path_factory.mktemp("idle") / "x.txt"
    path.write_text("a")
    return read(f"text:{path}")[1]


def rle_frame(size: int) -> bytes:
    """A .zst file of blocks of four bytes that stand for 128 KiB of one letter each."""
    blocks = size >> 17
    frame = [(128 << 10 << 3 | 1 << 1 | (i == blocks - 1)).to_bytes(3, "little") + b"a" for i in range(blocks)]
    return b"\x28\xb5\x2f\xfd\x00\x50" + b"".join(frame)


BOMBS: dict[str, Callable[[int], bytes]] = {
    ".xz": lambda size: lzma.compress(b"a" * size, preset=0),
    ".gz": lambda size: gzip.compress(b"a" * size, 9),
    ".bz2": lambda size: bz2.compress(b"a" * size),
    ".zst": rle_frame,
}


@pytest.mark.parametrize("ending", BOMBS)
def test_a_line_that_unfolds_to_hundreds_of_megabytes(ending: str, idle: int, tmp_path: Path):
    size = 300 * MIB
    path = tmp_path / f"x.txt{ending}"
    path.write_bytes(BOMBS[ending](size))
    assert path.stat().st_size < size / 100
    found, peak = read(f"text:{path}")
    assert int(found) == size
    assert peak < idle + 250


def test_a_gigabyte_of_nothing(idle: int, tmp_path: Path):
    path = tmp_path / "x.txt.xz"
    path.write_bytes(16 * lzma.compress(bytes(64 * MIB), preset=0))
    assert path.stat().st_size < MIB
    found, peak = read(f"text:{path}")
    assert "is binary" in found
    assert peak < idle + 60


def test_a_line_of_a_hundred_megabytes(idle: int, tmp_path: Path):
    path = tmp_path / "x.txt"
    with path.open("w") as file:
        for _ in range(100):
            file.write("é" * (MIB // 2))
    found, peak = read(f"text:{path}")
    assert int(found) == 50 * MIB
    assert peak < idle + 120
    found, peak = read(f"jsonl:{path}")
    assert "line 1 is longer than 67,108,864 bytes" in found
    assert peak < idle + 350

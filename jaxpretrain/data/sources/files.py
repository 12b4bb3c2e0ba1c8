"""Files on disk, plain or compressed: finding them, cutting them into byte ranges, reading these block by block."""

import bz2
import errno
import glob
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import zstandard
from etils import epath

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources.source import Part

BLOCK = 1 << 20  # bytes read at a time
_BLOCK_OF_FRAME = 1 << 10  # compressed bytes at a time: four of them may hold 128 KiB
_XZ_MEMORY = 256 << 20  # bytes that decompressing may take; `xz -9` needs 65 MiB
_COMPRESSED = (".gz", ".xz", ".zst", ".bz2")
_RATIO = 4  # text is about this many times larger than its compressed file


def find(kind: str, value: str, pattern: str) -> Part:
    """The part of a source that is the files of a glob.

    Raises:
        ConfigError: when no file matches.
    """
    pattern = os.path.expanduser(pattern)
    files = sorted(file for file in _matches(pattern) if os.path.isfile(file))
    if not files:
        hint = f"; a folder is given as {kind}:{value.rstrip('/')}/*" if os.path.isdir(pattern) else ""
        raise ConfigError(f"data.source='{kind}:{value}': no file matches{hint}")
    found = tuple((file, status.st_size, status.st_mtime_ns) for file in files if (status := os.stat(file)))
    return Part(kind, value, found, tuple(files))


def _matches(pattern: str) -> set[str]:
    """What a glob finds. As in a shell, `**` enters no linked folder: links may lead in circles."""
    before, *after = re.split(r"(?<![^/])\*\*(?:/+(?=[^/])|$)", pattern, maxsplit=1)
    if not after:
        return set(glob.glob(pattern))
    found: set[str] = set()
    for top in glob.glob(before) if before else ["."]:
        for folder, inside, _ in os.walk(top):
            inside[:] = [name for name in inside if not name.startswith(".")]
            found |= _matches(os.path.join(glob.escape(folder), after[0] or "*"))
    return found if before else {file.removeprefix("./") for file in found}


def text_size(path: str) -> int:
    """Bytes of text in a file, an estimate if it is compressed."""
    return os.path.getsize(path) * (_RATIO if path.endswith((*_COMPRESSED, ".parquet")) else 1)


def cut(
    path: str, unit_bytes: int, next_cut: Callable[[IO[bytes], int, int], int]
) -> Iterator[tuple[str, int, int, int]]:
    """Byte ranges of about `unit_bytes`: path, start, end, size of the text. A compressed file stays whole, its end 0.

    Args:
        next_cut: of the file, a position in it and its size: where the text may be cut after that position.
    """
    if path.endswith(_COMPRESSED):
        yield path, 0, 0, text_size(path)
        return
    size = os.path.getsize(path)
    start = 0
    with opened(path, lambda: open(path, "rb")) as file:
        while start < size:
            position = start + unit_bytes
            end = next_cut(file, position, size) if position < size else size
            yield path, start, end, end - start
            start = end


def blocks(path: str, start: int, end: int) -> Iterator[bytes]:
    """A range of a plain file; with `end` 0 up to its end. A compressed file is decompressed, and whole.

    Raises:
        ConfigError: when the file cannot be read or is damaged.
    """
    if path.endswith(".zst"):
        yield from _frames(path, lambda: zstandard.ZstdDecompressor().decompressobj())
        return
    if path.endswith(".xz"):
        yield from _frames(path, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), padding=b"\0")
        return
    openers = {".gz": gzip.open, ".bz2": bz2.open}
    opener = openers.get(os.path.splitext(path)[1], open)
    with opened(path, lambda: opener(path, "rb")) as file:
        if start:
            file.seek(start)
        left = end - start if end else -1
        while left:
            try:
                block = file.read(BLOCK if left < 0 else min(BLOCK, left))
            except (OSError, EOFError, zlib.error) as error:
                raise ConfigError(f"data.source: {path} is damaged: {error}") from error
            if not block:
                return
            left -= len(block) if left > 0 else 0
            yield block


def _frames(path: str, decompressor: Callable[[], Any], padding: bytes = b"") -> Iterator[bytes]:
    """What unfolds from the frames of a file, one after another, in bounded memory.

    zstandard's own reader takes a file that was cut off, or the first frame, for all; that of lzma knows no limit.

    Args:
        decompressor: for one frame.
        padding: may stand after a frame, again and again.
    """
    frame, data = decompressor(), b""
    with opened(path, lambda: open(path, "rb")) as file:
        while True:
            try:
                if not (data := data or file.read(_BLOCK_OF_FRAME)):
                    break
                if frame.eof:
                    if not (data := data.lstrip(padding)):
                        continue
                    frame = decompressor()
                text = frame.decompress(data)
            except (OSError, zstandard.ZstdError, lzma.LZMAError) as error:
                if "limit" in str(error):
                    error = f"it wants more than {_XZ_MEMORY >> 20} MiB to be read; compress it anew, as by xz -9"
                    raise ConfigError(f"data.source: {path}: {error}") from None
                raise ConfigError(f"data.source: {path} is damaged: {error}") from error
            data = frame.unused_data
            if text:
                yield text
    if not frame.eof:
        raise ConfigError(f"data.source: {path} is damaged: it ends in the middle of a frame")


def check_file(path: epath.PathLike) -> None:
    """Named pipes are waited for and devices read for ever.

    Raises:
        OSError: the path is neither a file nor missing.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # epath's own is_file takes all but folders for files
        raise OSError(errno.EINVAL, "not a file", str(path))


def opened(path: str, opener: Callable[[], Any]) -> IO[bytes]:
    """What the opener returns.

    Raises:
        ConfigError: when the file cannot be opened.
    """
    try:
        return opener()
    except OSError as error:
        raise ConfigError(f"data.source: cannot read {path}: {error.strerror}") from error

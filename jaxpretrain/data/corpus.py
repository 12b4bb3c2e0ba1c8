"""Where text comes from: a source string becomes units of work, and a unit a stream of documents.

A unit is a list of pieces (byte ranges of text files, record ranges of a TFDS split), small enough that many processes
share the work and fixed by the source alone, so that the result does not depend on how many there are.
"""

import bz2
import codecs
import contextlib
import glob
import gzip
import importlib
import importlib.util
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from jaxpretrain.config import ConfigError
from jaxpretrain.data import pydocs

UNIT_BYTES = 32 << 20
_MOST_UNITS = 256  # about; each leaves a shard, and a shard takes a file handle while training
_LONGEST_DOCUMENT = 1 << 20  # characters; what is longer is cut, so that memory stays bounded
_BLOCK = 1 << 20  # bytes read at a time
_ZST_BLOCK = 1 << 16  # compressed bytes at a time: they may hold a thousand times as much
_COMPRESSED = (".gz", ".xz", ".zst", ".bz2")
_RATIO = 4  # text is about this many times larger than its compressed file


@dataclass(frozen=True)
class TextRange:
    """Bytes of a text file; `end` 0: all of it, decompressed."""

    path: str
    start: int
    end: int
    size: int  # bytes of text, an estimate if compressed


@dataclass(frozen=True)
class Records:
    """Records of a prepared TFDS split."""

    folder: str
    split: str
    feature: str
    start: int
    end: int
    size: int


Piece = TextRange | Records
Unit = tuple[Piece, ...]


@dataclass(frozen=True)
class Part:
    """One of the sources that a source string joins by `+`."""

    kind: str  # python-docs | text | tfds
    value: str
    identity: tuple[Any, ...]  # what decides its content, ready for JSON
    files: tuple[str, ...] = ()


def resolve(source: str) -> list[Part]:
    """Finds the sources, without reading them.

    Raises:
        ConfigError: for an unknown kind, a glob without a match, an unknown data set.
    """
    return [_resolve(part.strip()) for part in re.split(r"\+(?=python-docs$|python-docs\+|text:|tfds:)", source)]


def plan(parts: list[Part], scratch: Path, pool: Executor | None) -> list[Unit]:
    """Cuts the sources into units.

    Data sets that TFDS has not prepared are prepared; the prose of `python-docs` is gathered into a file in `scratch`.

    Raises:
        ConfigError: when a data set cannot be prepared or holds no text, a file cannot be read.
    """
    pieces: list[Piece] = []
    total = sum(_size(file) for part in parts for file in part.files)
    unit_bytes = max(UNIT_BYTES, total // _MOST_UNITS)
    for part in parts:
        if part.kind == "python-docs":
            pieces += _cut_file(str(_write_python_docs(scratch, pool)), unit_bytes)
        elif part.kind == "text":
            for file in part.files:
                pieces += _cut_file(file, unit_bytes)
        else:
            pieces += _cut_records(part.value, unit_bytes)
    units: list[Unit] = []
    unit: list[Piece] = []
    for piece in pieces:
        if unit and sum(p.size for p in unit) + piece.size > unit_bytes:
            units.append(tuple(unit))
            unit = []
        unit.append(piece)
    return [*units, tuple(unit)] if unit else units


def documents(unit: Unit, warnings: list[str]) -> Iterator[str]:
    """Streams the documents of a unit; appends to `warnings` what a user should know.

    Raises:
        ConfigError: naming the file that is damaged or not text.
    """
    for piece in unit:
        if isinstance(piece, TextRange):
            yield from _text_documents(piece, warnings)
        else:
            yield from _record_documents(piece)


def _resolve(part: str) -> Part:
    kind, _, value = part.partition(":")
    if part == "python-docs":
        return Part(part, "", tuple(pydocs.identity()))
    if kind == "text" and value:
        files = sorted(file for file in glob.glob(os.path.expanduser(value), recursive=True) if os.path.isfile(file))
        if not files:
            raise ConfigError(f"data.source='text:{value}': no file matches")
        found = tuple((file, status.st_size, status.st_mtime_ns) for file in files if (status := os.stat(file)))
        return Part(kind, value, found, tuple(files))
    if kind == "tfds" and value:
        name, split = _name_and_split(value)
        builder = _builder(name)
        return Part(kind, value, (builder.info.full_name, split))
    raise ConfigError(f"data.source={part!r}: must be python-docs, text:GLOB or tfds:NAME[@SPLIT], several joined by +")


def _size(file: str) -> int:
    return os.path.getsize(file) * (_RATIO if file.endswith(_COMPRESSED) else 1)


# --- text files ---


def _cut_file(path: str, unit_bytes: int) -> Iterator[TextRange]:
    """Cuts a plain file after blank lines near every `unit_bytes`; a compressed one stays whole."""
    size = os.path.getsize(path)
    if path.endswith(_COMPRESSED):
        yield TextRange(path, 0, 0, size * _RATIO)
        return
    start = 0
    with _opened(path, lambda: open(path, "rb")) as file:
        while start < size:
            end = _next_cut(file, start + unit_bytes, size)
            yield TextRange(path, start, end, end - start)
            start = end


def _next_cut(file: IO[bytes], position: int, size: int) -> int:
    """The end of the first blank line after `position`; where there is none nearby, of a line, or of a character.

    Nearby is as far as a document reaches before it is cut anyway.
    """
    if position >= size:
        return size
    file.seek(position)
    window = file.read(_BLOCK)
    if match := re.search(rb"\n[ \t\r]*\n", window):
        return position + match.end()
    if position + len(window) >= size:
        return size  # the last document
    if match := re.search(rb"\n|(?=[\x00-\x7f\xc0-\xff])", window):
        return position + match.end()
    return size


def _text_documents(piece: TextRange, warnings: list[str]) -> Iterator[str]:
    """Runs of lines up to a blank line."""
    lines: list[str] = []
    length = 0
    for line in _lines(_blocks(piece), piece.path, warnings):
        blank = not line or line.isspace()
        if lines and (blank or length + len(line) > _LONGEST_DOCUMENT):
            yield "\n".join(lines)
            lines, length = [], 0
        if not blank:
            lines.append(line)
            length += len(line)
    if lines:
        yield "\n".join(lines)


def _lines(blocks: Iterable[bytes], path: str, warnings: list[str]) -> Iterator[str]:
    """Lines of UTF-8; bytes that are not are replaced, and more than a few of them or a NUL mean it is not text."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    tail = ""
    characters = bad = 0
    for block in blocks:
        if b"\0" in block:
            raise ConfigError(f"data.source: {path} is binary, or text in another encoding than UTF-8 (it holds NULs)")
        text = decoder.decode(block)
        characters += len(text)
        bad += text.count("\ufffd")
        if bad > 100 + 0.05 * characters:
            raise ConfigError(f"data.source: {path} is binary, or text in another encoding than UTF-8")
        lines = (tail + text).split("\n")
        tail = lines.pop()
        yield from lines
        while len(tail) >= _LONGEST_DOCUMENT:
            cut = tail.rfind(" ", 1, _LONGEST_DOCUMENT) + 1 or _LONGEST_DOCUMENT
            yield tail[:cut]
            tail = tail[cut:]
    yield tail + decoder.decode(b"", True)
    if bad:
        warnings.append(f"{path}: {bad:,} characters are not UTF-8 and were replaced")


def _blocks(piece: TextRange) -> Iterator[bytes]:
    path = piece.path
    if path.endswith(".zst"):
        yield from _zst_blocks(path)
        return
    openers = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    opener = openers.get(os.path.splitext(path)[1], open)
    with _opened(path, lambda: opener(path, "rb")) as file:
        if piece.start:
            file.seek(piece.start)
        left = piece.end - piece.start if piece.end else -1
        while left:
            try:
                block = file.read(_BLOCK if left < 0 else min(_BLOCK, left))
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise ConfigError(f"data.source: {path} is damaged: {error}") from error
            if not block:
                return
            left -= len(block) if left > 0 else 0
            yield block


def _zst_blocks(path: str) -> Iterator[bytes]:
    """The frames of a .zst file. zstandard's own reader takes a file that was cut off, or the first frame, for all."""
    frame = None
    with _opened(path, lambda: open(path, "rb")) as file:
        while data := file.read(_ZST_BLOCK):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    text = frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise ConfigError(f"data.source: {path} is damaged: {error}") from error
                data = b""
                if frame.eof:
                    data, frame = frame.unused_data, None
                if text:
                    yield text
    if frame:
        raise ConfigError(f"data.source: {path} is damaged: it ends in the middle of a frame")


def _opened(path: str, opener: Any) -> IO[bytes]:
    try:
        return opener()
    except OSError as error:
        raise ConfigError(f"data.source: cannot read {path}: {error.strerror}") from error


# --- the prose of Python's documentation ---


def _write_python_docs(scratch: Path, pool: Executor | None) -> Path:
    """Gathers the prose into one text file; what was said before is dropped, in the order of the files."""
    modules = pydocs.modules()
    found = pool.map(pydocs.paragraphs_of, modules, chunksize=32) if pool else map(pydocs.paragraphs_of, modules)
    seen = pydocs.Seen()
    path = scratch / "python-docs.txt"
    with path.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        for texts in found:
            for document in texts:
                if new := [paragraph for paragraph in document if seen.add(paragraph)]:
                    file.write("\n".join(new) + "\n\n")
    return path


# --- TensorFlow Datasets, through ArrayRecord and without TensorFlow ---


def _name_and_split(value: str) -> tuple[str, str]:
    name, _, split = value.partition("@")
    return name, split or "train"


def _builder(name: str) -> Any:
    """The builder of a data set.

    Raises:
        ConfigError: when there is none of this name.
    """
    import tensorflow_datasets as tfds  # slow to import, and few runs need it

    top = re.split(r"[/:]", name)[0]
    for room in ("text", "translate", "question_answering", "summarization"):
        # Builders of the older kind are found only after their module was imported.
        try:
            importlib.import_module(f"tensorflow_datasets.{room}.{top}")
        except ModuleNotFoundError:
            continue
    try:
        with contextlib.suppress(tfds.core.DatasetNotFoundError):
            return tfds.builder(name, file_format="array_record", try_gcs=False)
        return tfds.builder(name, try_gcs=False)  # one whose code is elsewhere: read from its prepared files
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"data.source='tfds:{name}': {_first_line(error)}") from error


def _cut_records(value: str, unit_bytes: int) -> Iterator[Records]:
    name, split = _name_and_split(value)
    builder = _builder(name)
    _prepare_data_set(builder, name)
    feature = _text_feature(builder, name)
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        choices = ", ".join(builder.info.splits)
        raise ConfigError(f"data.source='tfds:{value}': split {split!r} is not one of {choices}") from error
    total, size = info.num_examples, max(info.num_bytes, 1)
    step = max(1, total * unit_bytes // size)
    for start in range(0, total, step):
        end = min(total, start + step)
        yield Records(str(builder.data_dir), split, feature, start, end, size * (end - start) // total)


def _prepare_data_set(builder: Any, name: str) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    if builder.is_prepared():
        return
    if isinstance(builder, tfds.core.BeamBasedBuilder):
        # Asked before the download: the builder itself would find out hours later.
        for module in ("apache_beam", "mwparserfromhell"):
            if not importlib.util.find_spec(module):
                raise ConfigError(
                    f"data.source='tfds:{name}' must be generated first, and that needs {module}: "
                    "pip install 'jaxpretrain[wikipedia]'"
                )
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ConfigError(f"data.source='tfds:{name}' cannot be generated: {_first_line(error)}") from error
    except (OSError, DownloadError, NonMatchingChecksumError) as error:  # no network is an OSError
        raise ConfigError(f"data.source='tfds:{name}' cannot be downloaded: {_first_line(error)}") from error


def _text_feature(builder: Any, name: str) -> str:
    import tensorflow_datasets as tfds

    texts = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Text)]
    if "text" in texts:
        return "text"
    if len(texts) != 1:
        choices = ", ".join(texts) or "none"
        raise ConfigError(f"data.source='tfds:{name}': needs one text feature, or one named 'text'; it has {choices}")
    return texts[0]


def _record_documents(piece: Records) -> Iterator[str]:
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(piece.folder)
    records = builder.as_data_source(split=piece.split)
    for index in range(piece.start, piece.end):
        value = records[index][piece.feature]
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        for start in range(0, len(text), _LONGEST_DOCUMENT):
            yield text[start : start + _LONGEST_DOCUMENT]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]

"""Where text comes from: a source string becomes units of work, and a unit a stream of documents.

A unit is a list of pieces (byte ranges of text files, row groups, records, shards), small enough that many processes
share the work and fixed by the source alone, so that the result does not depend on how many there are. Each kind of
source is a module of `sources/`.
"""

import re
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from jaxpretrain.config import SOURCES, ConfigError
from jaxpretrain.data.sources import (
    files,
    huggingface,
    json_lines,
    parquet_files,
    pydocs,
    tensorflow_data_sets,
    text_files,
)
from jaxpretrain.data.sources.source import Kind, Part, Piece, Warnings

UNIT_BYTES = 32 << 20
_MOST_UNITS = 256  # about; each leaves a shard, and a shard takes a file handle while training
_KINDS: dict[str, Kind] = {
    "text": text_files,
    "jsonl": json_lines,
    "parquet": parquet_files,
    "tfds": tensorflow_data_sets,
    "hf": huggingface,
}

Unit = tuple[Piece, ...]


def resolve(source: str) -> list[Part]:
    """Finds the sources, without reading them.

    Raises:
        ConfigError: for an unknown kind, a glob without a match, an unknown data set, a missing library.
    """
    start = rf"python-docs$|python-docs\+|(?:{'|'.join(_KINDS)}):"
    return [_resolve(part.strip()) for part in re.split(rf"\+(?={start})", source)]


def _resolve(part: str) -> Part:
    if part == "python-docs":
        return Part(part, "", tuple(pydocs.identity()))
    kind, _, value = part.partition(":")
    if kind in _KINDS and value:
        return _KINDS[kind].resolve(value)
    raise ConfigError(f"data.source={part!r}: must be {SOURCES}")


def slug(source: str) -> str:
    """A name for the folder of a source: what it says, without the kinds, its end if it is long."""
    for kind in _KINDS:
        source = source.replace(f"{kind}:", "")
    return "".join(c if c.isalnum() else "-" for c in source)[-40:].strip("-")


def plan(parts: list[Part], scratch: Path, pool: Executor | None, progress: bool = False) -> list[Unit]:
    """Cuts the sources into units.

    Data sets that TFDS has not prepared are prepared; the prose of `python-docs` is gathered into a file in `scratch`.

    Raises:
        ConfigError: when a file cannot be read, a data set cannot be prepared or opened, or holds no text.
    """
    pieces: list[Piece] = []
    total = sum(files.text_size(file) for part in parts for file in part.files)
    unit_bytes = max(UNIT_BYTES, total // _MOST_UNITS)
    for part in parts:
        if part.kind == "python-docs":
            pieces += text_files.cut_file(str(pydocs.gather(scratch, pool, progress)), unit_bytes)
        else:
            pieces += _KINDS[part.kind].pieces(part, unit_bytes)
    units: list[Unit] = []
    unit: list[Piece] = []
    for piece in pieces:
        if unit and sum(p.size for p in unit) + piece.size > unit_bytes:
            units.append(tuple(unit))
            unit = []
        unit.append(piece)
    return [*units, tuple(unit)] if unit else units


def documents(unit: Unit, warnings: Warnings) -> Iterator[str]:
    """Streams the documents of a unit, and counts what it warns of.

    Raises:
        ConfigError: naming the file that is damaged or not text.
    """
    for piece in unit:
        yield from piece.documents(warnings)

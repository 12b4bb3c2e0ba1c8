"""Where text comes from: a source string becomes units of work, and a unit a stream of documents.

A unit is a list of pieces (byte ranges of text files, record ranges of a TFDS split), small enough that many processes
share the work and fixed by the source alone, so that the result does not depend on how many there are. Each kind of
source is a module of `sources/`.
"""

import re
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources import files, pydocs, tensorflow_data_sets, text_files
from jaxpretrain.data.sources.source import Part, Piece

UNIT_BYTES = 32 << 20
_MOST_UNITS = 256  # about; each leaves a shard, and a shard takes a file handle while training
_KINDS = {"text": text_files, "tfds": tensorflow_data_sets}

Unit = tuple[Piece, ...]


def resolve(source: str) -> list[Part]:
    """Finds the sources, without reading them.

    Raises:
        ConfigError: for an unknown kind, a glob without a match, an unknown data set.
    """
    start = rf"python-docs$|python-docs\+|(?:{'|'.join(_KINDS)}):"
    return [_resolve(part.strip()) for part in re.split(rf"\+(?={start})", source)]


def _resolve(part: str) -> Part:
    if part == "python-docs":
        return Part(part, "", tuple(pydocs.identity()))
    kind, _, value = part.partition(":")
    if kind in _KINDS and value:
        return _KINDS[kind].resolve(value)
    raise ConfigError(f"data.source={part!r}: must be python-docs, text:GLOB or tfds:NAME[@SPLIT], several joined by +")


def plan(parts: list[Part], scratch: Path, pool: Executor | None) -> list[Unit]:
    """Cuts the sources into units.

    Data sets that TFDS has not prepared are prepared; the prose of `python-docs` is gathered into a file in `scratch`.

    Raises:
        ConfigError: when a data set cannot be prepared or holds no text, a file cannot be read.
    """
    pieces: list[Piece] = []
    total = sum(files.text_size(file) for part in parts for file in part.files)
    unit_bytes = max(UNIT_BYTES, total // _MOST_UNITS)
    for part in parts:
        if part.kind == "python-docs":
            pieces += text_files.cut_file(str(pydocs.gather(scratch, pool)), unit_bytes)
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


def documents(unit: Unit, warnings: list[str]) -> Iterator[str]:
    """Streams the documents of a unit; appends to `warnings` what a user should know.

    Raises:
        ConfigError: naming the file that is damaged or not text.
    """
    for piece in unit:
        yield from piece.documents(warnings)

"""`jsonl:GLOB[#FIELD]`: JSON lines, an object a line, a document in one of its fields."""

import codecs
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources import files
from jaxpretrain.data.sources.source import Part, Warnings, cut_document, printable, split_off

_LONGEST_LINE = 64 << 20  # bytes
_NAMES_SHOWN = 12
_DEEPEST_NAME, _LONGEST_NAME = 8, 80  # objects inside each other; characters
_MISSING = object()
_TYPES = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}


@dataclass(frozen=True)
class LineRange:
    """Whole lines of a file of JSON lines; `end` 0: all of it, decompressed."""

    path: str
    start: int
    end: int
    size: int
    field: str

    def documents(self, warnings: Warnings) -> Iterator[str]:
        """The field of each object; one that is missing, null or blank is skipped and counted."""
        found = False
        names: dict[str, None] = {}
        for line, row in _rows(self.path, self.start, self.end):
            value = _look_up(row, self.field)
            if value is _MISSING:
                if not found and len(names) < _NAMES_SHOWN:
                    names |= dict.fromkeys(_names(row))
            else:
                found = True
            if isinstance(value, str) and value and not value.isspace():
                yield from cut_document(value)
            elif value is None or value is _MISSING or isinstance(value, str):
                warnings[self.path, f"rows without text in {self.field!r} were skipped"] += 1
            else:
                raise ConfigError(
                    f"{_place(self.path, self.start, line)}: {self.field!r} is {_TYPES[type(value)]}, not a string; "
                    "name the field that holds the text, jsonl:GLOB#FIELD"
                )
        # Where a file is cut, its first range speaks for all of it.
        if names and not found and self.start == 0 and not self._found_later():
            raise ConfigError(
                f"data.source: no row of {self.path} has a field {self.field!r}; there are "
                f"{', '.join(itertools.islice(names, _NAMES_SHOWN))}: name one, jsonl:GLOB#FIELD"
            )

    def _found_later(self) -> bool:
        rest = _rows(self.path, self.end, 0) if self.end else ()
        return any(_look_up(row, self.field) is not _MISSING for _, row in rest)


def resolve(value: str) -> Part:
    """Finds the files.

    Raises:
        ConfigError: when there are none.
    """
    return files.find("jsonl", value, split_off(value, "#")[0])


def pieces(part: Part, unit_bytes: int) -> Iterator[LineRange]:
    """Cuts plain files at ends of lines near every `unit_bytes`; a compressed one stays whole."""
    field = split_off(part.value, "#")[1] or "text"
    for path in part.files:
        for piece in files.cut(path, unit_bytes, _next_cut):
            yield LineRange(*piece, field)


def _next_cut(file: IO[bytes], position: int, size: int) -> int:
    """The end of the line at `position`."""
    file.seek(position)
    while block := file.read(files.BLOCK):
        if (end := block.find(b"\n")) >= 0:
            return position + end + 1
        position += len(block)
    return size


def _rows(path: str, start: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a range, each with its line, counted from 1 at the start of the range."""
    number = 0
    tail = b""
    for block in itertools.chain(files.blocks(path, start, end), [b"\n"]):
        *lines, tail = (tail + block).split(b"\n")
        for line in lines:
            number += 1
            if number == 1 and start == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line and not line.isspace():
                yield number, _parse(line, path, start, number)
        if len(tail) > _LONGEST_LINE:
            raise ConfigError(
                f"{_place(path, start, number + 1)} is longer than {_LONGEST_LINE:,} bytes; make several rows of it"
            )


def _parse(line: bytes, path: str, start: int, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{_place(path, start, number)} is not UTF-8; iconv -f ENCODING -t UTF-8 converts a file"
        ) from error
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        return row
    raise ConfigError(
        f"{_place(path, start, number)} is not a JSON object; repair or remove it (jq -c '.[]' makes lines of a list)"
    )


def _place(path: str, start: int, line: int) -> str:
    """Names a line by its number in the whole file."""
    before = sum(block.count(b"\n") for block in files.blocks(path, 0, start)) if start else 0
    return f"data.source: {path}, line {before + line}"


def _look_up(row: Any, field: str) -> Any:
    """The value at a dotted path. A key that holds the dots itself comes first, the longest one."""
    if not isinstance(row, dict):
        return _MISSING
    if field in row:
        return row[field]
    key = field
    while "." in key:
        key = key[: key.rindex(".")]
        if (value := _look_up(row.get(key), field[len(key) + 1 :])) is not _MISSING:
            return value
    return _MISSING


def _names(row: dict[str, Any], before: str = "", depth: int = 1) -> Iterator[str]:
    """The fields of an object, dotted where they are inside another; what is deeper or longer than a name is cut."""
    for key, value in row.items():
        if isinstance(value, dict) and depth < _DEEPEST_NAME:
            yield from _names(value, f"{before}{key}.", depth + 1)
        else:
            yield printable((before + key)[:_LONGEST_NAME])

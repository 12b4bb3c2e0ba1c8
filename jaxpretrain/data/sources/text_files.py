"""`text:GLOB`: plain text, a blank line between documents."""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources import files
from jaxpretrain.data.sources.source import LONGEST_DOCUMENT, Part, Warnings

_REPLACEMENT = "\ufffd".encode()


@dataclass(frozen=True)
class TextRange:
    """Bytes of a text file; `end` 0: all of it, decompressed."""

    path: str
    start: int
    end: int
    size: int

    def documents(self, warnings: Warnings) -> Iterator[str]:
        """Runs of lines up to a blank line."""
        lines: list[str] = []
        length = 0
        for line in _lines(files.blocks(self.path, self.start, self.end), self.path, warnings):
            blank = not line or line.isspace()
            if lines and (blank or length + len(line) > LONGEST_DOCUMENT):
                yield "\n".join(lines)
                lines, length = [], 0
            if not blank:
                lines.append(line)
                length += len(line)
        if lines:
            yield "\n".join(lines)


def resolve(value: str) -> Part:
    """Finds the files.

    Raises:
        ConfigError: when there are none.
    """
    return files.find("text", value, value)


def pieces(part: Part, unit_bytes: int) -> Iterator[TextRange]:
    """Cuts the files near every `unit_bytes`."""
    for path in part.files:
        yield from cut_file(path, unit_bytes)


def cut_file(path: str, unit_bytes: int) -> Iterator[TextRange]:
    """Cuts a plain file after blank lines; a compressed one stays whole."""
    for piece in files.cut(path, unit_bytes, _next_cut):
        yield TextRange(*piece)


def _next_cut(file: IO[bytes], position: int, size: int) -> int:
    """The end of the first blank line after `position`; where there is none nearby, of a line, or of a character.

    Nearby is as far as a document reaches before it is cut anyway.
    """
    file.seek(position)
    window = file.read(files.BLOCK)
    if match := re.search(rb"\n[ \t\r]*\n", window):
        return position + match.end()
    if position + len(window) >= size:
        return size  # the last document
    if match := re.search(rb"\n|(?=[\x00-\x7f\xc0-\xff])", window):
        return position + match.end()
    return size


def _lines(blocks: Iterable[bytes], path: str, warnings: Warnings) -> Iterator[str]:
    """Lines of UTF-8; bytes that are not are replaced, and more than a few of them or a NUL mean it is not text."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    tail = ""
    characters = bad = 0
    for block in blocks:
        if b"\0" in block:
            raise ConfigError(f"data.source: {path} is binary, or text in another encoding than UTF-8 (it holds NULs)")
        text = decoder.decode(block)
        characters += len(text)
        bad += text.count("\ufffd") - block.count(_REPLACEMENT)  # those that stood there are characters
        if bad > 100 + 0.05 * characters:
            raise ConfigError(f"data.source: {path} is binary, or text in another encoding than UTF-8")
        lines = (tail + text).split("\n")
        tail = lines.pop()
        yield from lines
        while len(tail) >= LONGEST_DOCUMENT:
            cut = tail.rfind(" ", 1, LONGEST_DOCUMENT) + 1 or LONGEST_DOCUMENT
            yield tail[:cut]
            tail = tail[cut:]
    yield tail + decoder.decode(b"", True)
    if bad:
        warnings[path, "characters are not UTF-8 and were replaced"] += bad

"""What the kinds of sources share: a part of the source string, a piece of work, the longest document."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

Warnings = Counter[tuple[str, str]]  # what a user should know: how often, by file and by what follows the number

LONGEST_DOCUMENT = 1 << 20  # characters; what is longer is cut, so that memory stays bounded


@dataclass(frozen=True)
class Part:
    """One of the sources that a source string joins by `+`."""

    kind: str
    value: str  # what follows the kind's colon
    identity: tuple[Any, ...]  # what decides its content, ready for JSON
    files: tuple[str, ...] = ()


class Piece(Protocol):
    """What one process reads at a time. It is sent there, so it can be pickled, and is small."""

    @property
    def size(self) -> int:
        """Bytes of text, an estimate."""
        ...

    def documents(self, warnings: Warnings) -> Iterator[str]:
        """Streams the documents, and counts what it warns of.

        Raises:
            ConfigError: naming the file that is damaged or not text.
        """
        ...


class Kind(Protocol):
    """What the module of a kind of source offers."""

    def resolve(self, value: str) -> Part:
        """Finds what the value names, without reading it.

        Raises:
            ConfigError: when there is no such thing.
        """
        ...

    def pieces(self, part: Part, unit_bytes: int) -> Iterator[Piece]:
        """Cuts a part into pieces of about so many bytes of text.

        Raises:
            ConfigError: when it cannot be read or holds no text.
        """
        ...


def printable(name: str) -> str:
    """A name that a file gives, fit for an error's one line."""
    return name if name.isprintable() else ascii(name)[1:-1]


def split_off(value: str, mark: str) -> tuple[str, str]:
    """What stands before the last `mark` and after it; nothing after it where there is none."""
    head, found, tail = value.rpartition(mark)
    return (head, tail) if found else (value, "")


def cut_document(text: str) -> Iterator[str]:
    """A document, in several if it is too long."""
    for start in range(0, len(text), LONGEST_DOCUMENT):
        yield text[start : start + LONGEST_DOCUMENT]

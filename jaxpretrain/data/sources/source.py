"""What the kinds of sources share: a part of the source string, a piece of work, the longest document."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

LONGEST_DOCUMENT = 1 << 20  # characters; what is longer is cut, so that memory stays bounded


@dataclass(frozen=True)
class Part:
    """One of the sources that a source string joins by `+`."""

    kind: str
    value: str  # what follows the kind's colon
    identity: tuple[Any, ...]  # what decides its content, ready for JSON
    files: tuple[str, ...] = ()


class Piece(Protocol):
    """What one process reads at a time; it is sent there, so it holds names and numbers alone."""

    @property
    def size(self) -> int:
        """Bytes of text, an estimate."""
        ...

    def documents(self, warnings: list[str]) -> Iterator[str]:
        """Streams the documents; appends to `warnings` what a user should know.

        Raises:
            ConfigError: naming the file that is damaged or not text.
        """
        ...


def cut_document(text: str) -> Iterator[str]:
    """A document, in several if it is too long."""
    for start in range(0, len(text), LONGEST_DOCUMENT):
        yield text[start : start + LONGEST_DOCUMENT]

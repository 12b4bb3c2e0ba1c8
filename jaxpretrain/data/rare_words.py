"""Rare words: which ones have notes (TNF), and where they stand in a text.

A word is what `words` cuts, without the mark of the space before it: "word" after a space and after a quotation mark
are one. It must hold a letter. It is rare when its count in the training text lies in a range, and unless single pieces
are asked for, it must take two pieces or more in both spellings: a generator draws single pieces, and one that it drew
elsewhere would lack the note that the text's own has.
"""

import heapq
import itertools
import math
import operator
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxpretrain.config import ConfigError, NotesConfig
from jaxpretrain.data.text import SPACE, words
from jaxpretrain.data.tokenizer import SEP, Cache, Tokenizer

FILE_NAME = "notes.tsv"

Counts = Callable[[], Iterator[tuple[str, int]]]  # reads the words of the training text, sorted, with their counts

# The range of the paper, and the size of its corpus in words.
_PAPER_MIN, _PAPER_RATIO, _PAPER_WORDS = 100, 5, 3.5e9
_LEAST_MIN = 5  # a word met less often has hardly come back when training is over
_STOPS, _CLOSERS = set(".!?"), set("\"')]”’»")


def count_range(notes: NotesConfig, total: int) -> tuple[int, int]:
    """The counts that make a word rare, both included, in a training text of `total` words.

    The paper's 100 … 500 shrinks with the square root of the text, down to 5 … 25: the number of rare words grows with
    the text, and so does the number of times that each comes back.

    Raises:
        ConfigError: when the range is empty.
    """
    low = notes.min_count or max(_LEAST_MIN, round(_PAPER_MIN * math.sqrt(total / _PAPER_WORDS)))
    high = notes.max_count or _PAPER_RATIO * low
    if low > high:
        raise ConfigError(
            f"notes.max_count={high}: must be at least the {low} that a text of {total:,} words begins at"
        )
    return low, high


def total_words(counts: Counts) -> int:
    """Number of words with a letter in the text."""
    return sum(count for word, count in counts() if _has_letter(word))


def choose(counts: Counts, low: int, high: int, tokenizer: Tokenizer, single_piece: bool) -> list[tuple[str, int]]:
    """The rare words with their counts, in the order of the rows: by falling count, then by spelling."""
    after_space = ((word[1:], count) for word, count in counts() if word.startswith(SPACE))
    elsewhere = ((word, count) for word, count in counts() if not word.startswith(SPACE))
    chosen = []
    for word, group in itertools.groupby(heapq.merge(after_space, elsewhere), operator.itemgetter(0)):
        count = sum(count for _, count in group)
        if low <= count <= high and _has_letter(word):
            fewest = min(map(tokenizer.pieces_in, (SPACE + word, word)))
            if single_piece or fewest > 1:
                chosen.append((word, count))
    return sorted(chosen, key=lambda entry: (-entry[1], entry[0]))


def write(entries: list[tuple[str, int]], path: Path) -> None:
    """Writes `word<TAB>count` lines, row by row."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{word}\t{count}\n" for word, count in entries)


def read(path: Path) -> list[str]:
    """The words of the rows."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line.split("\t")[0] for line in file]


class Finder:
    """Encodes text and finds the rare words in it."""

    def __init__(self, tokenizer: Tokenizer, rare: list[str]):
        """Takes the words of the rows."""
        self._tokenizer = tokenizer
        self._rows = {word: row for row, word in enumerate(rare)}
        self._of_chunk = Cache(self._find_in_chunk)

    def encode(self, normal: str) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
        """Ids of normalised text, int32 [tokens], and each rare word's first piece, one past its last, and row."""
        chunks = normal.split(" ") if normal else []
        parts = self._tokenizer.encode_chunks(chunks)
        found = list(map(self._of_chunk.__getitem__, chunks))
        places = itertools.accumulate(map(len, parts), initial=0)
        occurrences = [
            (place // 4 + start, place // 4 + end, row)
            for place, in_chunk in itertools.compress(zip(places, found, strict=False), found)  # few hold one
            for start, end, row in in_chunk
        ]
        return np.frombuffer(b"".join(parts), np.int32), occurrences

    def _find_in_chunk(self, chunk: str) -> tuple[tuple[int, int, int], ...]:
        found = []
        place = 0
        for word in words(chunk):
            end = place + self._tokenizer.pieces_in(word)
            row = self._rows.get(word.removeprefix(SPACE))
            if row is not None:
                found.append((place, end, row))
            place = end
        return tuple(found)


class Sentences:
    """Counts sentences in streams of ids, and those in which a rare word starts.

    A sentence ends at a full stop, exclamation or question mark, with or without a closing quotation mark or bracket
    after it, before a space or at the end of the document.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size)]
        self._stops = np.array([piece.removeprefix(SPACE) in _STOPS for piece in pieces])
        self._closes = np.array([piece in _CLOSERS for piece in pieces])
        self._begins = np.array([piece.startswith(SPACE) or i == SEP for i, piece in enumerate(pieces)])

    def count(self, ids: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
        """Both numbers, of ids int [tokens], and of the places of the rare words' first pieces, int [n]."""
        ids = np.append(ids, SEP)
        stop = self._stops[ids]
        over = stop.copy()
        over[1:] |= self._closes[ids[1:]] & stop[:-1]
        ends = np.flatnonzero(over[:-1] & self._begins[ids[1:]] | (ids[1:] == SEP) & (ids[:-1] != SEP))
        return len(ends), len(np.unique(np.searchsorted(ends, starts)))


def _has_letter(word: str) -> bool:
    return any(map(str.isalpha, word))

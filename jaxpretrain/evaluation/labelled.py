"""Labelled texts as arrays: buckets of like length, and the order in which trials see them.

The sequence of buckets is the same for all trials, so that trials can run side by side in one program; which examples
of a bucket come when is each seed's own. Both are pure functions of (seed, epoch): a trial alone sees what it sees
among others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct

from jaxpretrain.data.rare_words import Finder
from jaxpretrain.data.text import normalise
from jaxpretrain.data.tokenizer import CLS, PAD, SEP, Tokenizer
from jaxpretrain.evaluation.tasks import Examples, Task

SHORTEST = 16  # tokens; buckets are this long, twice, four times …
_FEWEST = 0.05  # a bucket that would hold a smaller share of the examples joins the next longer one
_BUCKET_SEED = 2018  # of the sequence of buckets


@struct.dataclass
class Bucket:
    """Examples padded to one length L.

    Attributes:
        tokens: int32 [N, L], `[CLS] text [SEP]` or `[CLS] first [SEP] second [SEP]`, then [PAD].
        segments: int32 [N, L], 1 at the second text and its [SEP].
        words: int32 [N, L], marks of rare words as `notes.find` reads them.
        labels: [N], classes, or scores by the task's scale; 0 where there are none.
        numbers: int32 [N], of the examples.
    """

    tokens: Any
    segments: Any
    words: Any
    labels: Any
    numbers: Any

    def __len__(self) -> int:
        return len(self.numbers)


def bucketed(examples: Examples, tokenizer: Tokenizer, rare: list[str], limit: int, task: Task) -> list[Bucket]:
    """The examples in buckets, the shortest first.

    Args:
        examples: of the task.
        tokenizer: of the model.
        rare: words that have notes, in the order of the rows; empty: none.
        limit: tokens at most. Of two texts the longer is cut until both fit; a rare word cut in two has no marks.
        task: says what labels are.
    """
    finder = Finder(tokenizer, rare)
    encoded = [_encode(texts, finder, tokenizer.lowercase, limit) for texts in examples.texts]
    lengths = np.array([len(tokens) for tokens, _, _ in encoded])
    labels = np.zeros(len(examples)) if examples.labels is None else examples.labels
    mean, deviation = task.scale
    labels = labels.astype(np.int32) if task.classes else ((labels - mean) / deviation).astype(np.float32)
    buckets, below = [], 0
    for length in bucket_lengths(lengths, limit):
        numbers = np.flatnonzero((below < lengths) & (lengths <= length)).astype(np.int32)
        below = length
        arrays = np.zeros((3, len(numbers), length), np.int32)
        arrays[0] = PAD
        for row, number in enumerate(numbers):
            for array, values in zip(arrays, encoded[number], strict=True):
                array[row, : len(values)] = values
        buckets.append(Bucket(*arrays, labels=labels[numbers], numbers=numbers))
    return buckets


def bucket_lengths(lengths: np.ndarray, limit: int) -> list[int]:
    """The lengths of the buckets: powers of two, and the limit; each compiles one program, so not too many."""
    found: list[int] = []
    waiting = 0
    length = min(SHORTEST, limit)
    below = 0
    while below < lengths.max():
        waiting += int(((below < lengths) & (lengths <= length)).sum())
        if waiting and (waiting >= _FEWEST * len(lengths) or length >= lengths.max()):
            found.append(length)
            waiting = 0
        below, length = length, min(2 * length, limit)
    return found


def _encode(texts: tuple[str, ...], finder: Finder, lowercase: bool, limit: int) -> tuple[np.ndarray, ...]:
    """Tokens, segments and word marks of one example."""
    found = [finder.encode(normalise(text, lowercase)) for text in texts]
    kept = [len(ids) for ids, _ in found]
    over = sum(kept) + len(kept) + 1 - limit
    while over > 0:  # the longer gives way until both are as long, then both in turn
        longest = int(np.argmax(kept))
        others = [n for i, n in enumerate(kept) if i != longest]
        cut = min(over, max(1, kept[longest] - max(others, default=0)))
        kept[longest] -= cut
        over -= cut
    tokens, segments, words = [np.array([CLS], np.int32)], [np.zeros(1, np.int32)], [np.zeros(1, np.int32)]
    for i, ((ids, occurrences), length) in enumerate(zip(found, kept, strict=True)):
        marks = np.zeros(length + 1, np.int32)
        for start, end, row in occurrences:
            if end <= length:
                marks[start:end] = 2 * (1 + row)
                marks[start] += 1
        tokens += [ids[:length], np.array([SEP], np.int32)]
        segments.append(np.full(length + 1, i, np.int32))
        words.append(marks)
    return np.concatenate(tokens), np.concatenate(segments), np.concatenate(words)


def sequence_of_buckets(sizes: Sequence[int], batch_size: int, epoch: int) -> np.ndarray:
    """The bucket of each step of an epoch, int [steps]."""
    steps = np.repeat(np.arange(len(sizes)), [-(-size // batch_size) for size in sizes])
    return np.random.default_rng([_BUCKET_SEED, epoch]).permutation(steps)


def order_in_bucket(size: int, batch_size: int, seed: int, epoch: int, bucket: int) -> np.ndarray:
    """The rows of a bucket, shuffled, a batch a line: int32 [steps, batch_size]; -1 fills up the last."""
    rows = np.full(-(-size // batch_size) * batch_size, -1, np.int32)
    rows[:size] = np.random.default_rng([seed, epoch, bucket]).permutation(size)
    return rows.reshape(-1, batch_size)


def in_order(size: int, batch_size: int) -> np.ndarray:
    """The rows of a bucket in order, as `order_in_bucket` gives them."""
    rows = np.full(-(-size // batch_size) * batch_size, -1, np.int32)
    rows[:size] = np.arange(size)
    return rows.reshape(-1, batch_size)

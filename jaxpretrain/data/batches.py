"""Batches as a pure function of (seed, step): nothing to save but the step, whatever the number of hosts.

Training example i of length T is `[CLS] + stream[i·(T-2) : (i+1)·(T-2)] + [SEP]`; a rare word that a border cuts is an
ordinary word there. An epoch is a permutation of the examples, epochs follow one another without a seam, and step s
takes the rows s·B … (s+1)·B of that sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np

from jaxpretrain.config import ConfigError
from jaxpretrain.data.prepared import Corpus, stream_dtype
from jaxpretrain.data.tokenizer import CLS, PAD, SEP

Batch = dict[str, np.ndarray]

_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)  # batches


@dataclass(frozen=True)
class _Stream:
    """Shards as one array."""

    shards: list[np.ndarray]
    starts: np.ndarray  # int64 [shards + 1]
    occurrences: np.ndarray  # uint32 or int64 [3, n], of rare words: first place, one past the last, row

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start … stop, across shards if need be."""
        first, last = np.searchsorted(self.starts, (start, stop - 1), side="right") - 1
        parts = [self.shards[i][max(0, start - self.starts[i]) : stop - self.starts[i]] for i in range(first, last + 1)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def train_dataset(
    corpus: Corpus, *, batch_size: int, sequence_length: int, seed: int, rows: slice | None = None
) -> grain.MapDataset:
    """The endless sequence of batches; `dataset[step]` is the batch of that step, as `train_batches` describes it."""
    stream = _open(corpus.train_shards, corpus.train_occurrences, corpus.vocab_size)
    examples = corpus.train_tokens // (sequence_length - 2)
    if examples < batch_size:
        raise ConfigError(
            f"data.source: the training text has {corpus.train_tokens:,} tokens, {examples} sequences of "
            f"data.sequence_length={sequence_length}: too little for one batch of train.batch_size={batch_size}; give "
            "more text, or lower one of the two"
        )
    numbers = np.arange(batch_size, dtype=np.int32)[rows or slice(None)]
    order = grain.MapDataset.range(examples).shuffle(seed=seed).repeat()

    def gather(step: int) -> Batch:
        examples = np.array([order[step * batch_size + row] for row in numbers.tolist()])
        return {
            "tokens": _examples(stream, examples, sequence_length),
            "words": _word_marks(stream, examples, sequence_length),
            "rows": numbers,
        }

    return grain.MapDataset.range(len(order) // batch_size).map(gather)


def train_batches(
    corpus: Corpus, *, batch_size: int, sequence_length: int, seed: int, start: int = 0, rows: slice | None = None
) -> Iterator[Batch]:
    """Training batches of steps start, start + 1, …, without end; a few are read ahead.

    Args:
        corpus: what `prepare` returned.
        batch_size: sequences of the global batch, B.
        sequence_length: T, [CLS] and [SEP] included.
        seed: of the order of the examples.
        start: the first step.
        rows: the rows of the global batch to read here, R of them; None: all.

    Yields:
        `tokens` int32 [R, T]; `words` int32 [R, T], the marks of rare words that `notes.find` reads; and `rows` int32
        [R], the rows' numbers in the global batch.

    Raises:
        ConfigError: when the training text does not fill one batch.
    """
    batches = train_dataset(corpus, batch_size=batch_size, sequence_length=sequence_length, seed=seed, rows=rows)
    return iter(batches.slice(slice(start, None)).to_iter_dataset(_READ_AHEAD))


def eval_batches(
    corpus: Corpus, *, batch_size: int, sequence_length: int, examples: int, rows: slice | None = None
) -> Iterator[Batch]:
    """Held-out batches in the order of the text: `examples` sequences at most, evenly spread over it.

    The last batch is filled up with rows of [PAD]. Text that fills no sequence gives one, padded.

    Yields:
        `tokens` and `words` int32 [R, T], and `rows` int32 [R], the numbers of the held-out examples (masking follows
        them).
    """
    stream = _open(corpus.valid_shards, corpus.valid_occurrences, corpus.vocab_size)
    there = max(1, corpus.valid_tokens // (sequence_length - 2))
    count = min(examples, there)
    for first in range(0, count, batch_size):
        numbers = np.arange(first, first + batch_size, dtype=np.int32)[rows or slice(None)]
        tokens = np.full((len(numbers), sequence_length), PAD, np.int32)
        words = np.zeros_like(tokens)
        real = numbers[numbers < count].astype(np.int64) * there // count
        tokens[: len(real)] = _examples(stream, real, sequence_length)
        words[: len(real)] = _word_marks(stream, real, sequence_length)
        yield {"tokens": tokens, "words": words, "rows": numbers}


def _open(paths: Sequence[Path], occurrences: Path, vocab_size: int) -> _Stream:
    dtype = stream_dtype(vocab_size)
    # Plain arrays over the mappings: slicing np.memmap itself costs ten times as much.
    shards = [np.asarray(np.memmap(path, dtype, "r")) for path in paths]
    return _Stream(shards, np.cumsum([0, *map(len, shards)]), np.asarray(np.load(occurrences, mmap_mode="r")))


def _examples(stream: _Stream, indices: np.ndarray, length: int) -> np.ndarray:
    """Sequences int32 [len(indices), length]; one that the stream does not fill is padded."""
    tokens = np.full((len(indices), length), PAD, np.int32)
    tokens[:, 0] = CLS
    inner = length - 2
    end = int(stream.starts[-1])
    for row, index in zip(tokens, indices.tolist(), strict=True):
        part = stream.read(index * inner, min(end, (index + 1) * inner))
        row[1 : 1 + len(part)] = part
        row[1 + len(part)] = SEP
    return tokens


def _word_marks(stream: _Stream, indices: np.ndarray, length: int) -> np.ndarray:
    """Marks int32 [len(indices), length] of the rare words that stand whole in the sequences.

    2 (1 + row) at each piece of a word, and 1 more at its first; 0 elsewhere.
    """
    starts, ends, rows = stream.occurrences
    inner = length - 2
    begin = indices.astype(np.int64) * inner
    borders = np.minimum([begin, begin + inner], stream.starts[-1])
    # Of the places' own type: another would have all of them converted.
    low, high = np.searchsorted(starts, borders.astype(starts.dtype))
    found = _runs(low, high - low)
    sequence = np.repeat(np.arange(len(indices)), high - low)
    whole = ends[found] <= begin[sequence] + inner
    found, sequence = found[whole], sequence[whole]
    pieces = ends[found].astype(np.int64) - starts[found]
    first = sequence * length + 1 + starts[found].astype(np.int64) - begin[sequence]
    marks = np.zeros(len(indices) * length, np.int32)
    marks[_runs(first, pieces)] = np.repeat(2 * (1 + rows[found].astype(np.int32)), pieces)
    marks[first] += 1
    return marks.reshape(len(indices), length)


def _runs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, …, as many as the lengths say, one run after another."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())

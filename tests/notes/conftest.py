"""TNF's notes by a numpy oracle, texts full of rare words, and a step small enough to compile in a second."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from jaxpretrain.config import Config
from jaxpretrain.data.tokenizer import NEITHER, PAD
from tests.training.conftest import Run, compile_step, put, small_config

ROWS, LENGTH, VOCAB = 40, 24, 64
SMALL = {
    "data__sequence_length": LENGTH,
    "model__hidden": 16,
    "model__ffn": 32,
    "model__dropout": 0.0,
    "model__attention_dropout": 0.0,
    "model__initializer_range": 0.5,
    "notes__enabled": True,
    "notes__window": 3,
    "notes__capacity": 6,
    "train__batch_size": 32,
    "optim__eps": 1e-2,  # or Adam makes steps of rounding errors
}


def oracle(
    table: np.ndarray, words: np.ndarray, contexts: np.ndarray, padding: np.ndarray, config: Any
) -> tuple[np.ndarray, dict[int, list[np.ndarray]]]:
    """The table after a step, and the contexts of each word."""
    met: dict[int, list[np.ndarray]] = {}
    for marks, x, pad in zip(words, contexts, padding, strict=True):
        for s in np.flatnonzero(marks % 2)[: config.capacity]:
            t = s + 1
            while t < len(marks) and marks[t] == marks[s] - 1:
                t += 1
            places = range(max(0, s - config.window), min(len(marks), t + config.window))
            met.setdefault(marks[s] // 2 - 1, []).append(x[[i for i in places if not pad[i]]].mean(0))
    table = table.copy()
    for word, notes in met.items():
        for _ in notes if config.repeats == "compound" else [0]:
            table[word] = (1 - config.rate) * table[word] + config.rate * np.mean(notes, 0)
    return table, met


def spans(marks: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(row of the table, first piece, one past the last) of a sequence's words."""
    starts = np.flatnonzero(marks % 2)
    for s in starts.tolist():
        t = s + 1
        while t < len(marks) and marks[t] and not marks[t] % 2:
            t += 1
        yield marks[s] // 2 - 1, s, t


def input_oracle(
    table: np.ndarray, words: np.ndarray, tokens: np.ndarray, inputs: np.ndarray, config: Any
) -> tuple[np.ndarray, np.ndarray]:
    """λ at each position that shows a note, [B, T], and the note, [B, T, H]."""
    weight = np.zeros(tokens.shape)
    vectors = np.zeros((*tokens.shape, table.shape[1]))
    for row, marks in enumerate(words):
        for word, s, t in list(spans(marks))[: config.capacity]:
            if (tokens[row, s:t] == inputs[row, s:t]).all():
                weight[row, s:t], vectors[row, s:t] = config.weight, table[word]
    return weight, vectors


def texts(seed: int, batch: int = 8, length: int = LENGTH, rows: int = ROWS, pieces: int = VOCAB) -> dict[str, Any]:
    """Random texts full of rare words: at both edges, side by side, one after itself, in padded and empty texts."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(NEITHER + 1, pieces, (batch, length), dtype=np.int32)
    words = np.zeros((batch, length), np.int32)
    for row in range(batch):
        end = length if row % 3 else int(rng.integers(3, length))
        place, word = 0, 0
        while place < end and row != 1:  # text 1 has no rare word
            size = int(rng.integers(1, 4))
            if place + size <= end and (rng.random() < 0.6 or place == 0 or place + size == end):
                word = word if rng.random() < 0.3 else int(rng.integers(rows))
                words[row, place : place + size] = 2 * (1 + word)
                words[row, place] += 1
            place += size
        tokens[row, end:] = PAD
    return {"tokens": tokens, "words": words, "rows": np.arange(batch, dtype=np.int32)}


def small(**fields: Any) -> Config:
    return small_config(**(SMALL | fields))


def start(config: Config, devices: int = 1, rows: int = ROWS, **how: Any) -> Run:
    """On texts with `rows` rare words; `how` as `compile_step` takes it."""
    make, run = compile_step(config, texts(0, config.train.batch_size), VOCAB, devices, rows=rows, **how)
    return replace(run, state=make(config.train.seed))


def tables_of(run: Run, steps: int) -> list[np.ndarray]:
    """The table before, and after each step."""
    state, found = run.state, [np.array(run.state.notes.table)]
    for seed in range(steps):
        state, metrics = run.step(state, put(run, texts(seed, run.config.train.batch_size)))
        assert metrics["finite"]
        found.append(np.array(state.notes.table))
    return found

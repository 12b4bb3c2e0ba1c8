"""What notes become after a step, alone: against the oracle."""

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpretrain import notes as notes_lib
from jaxpretrain.config import Config
from jaxpretrain.data.tokenizer import PAD
from jaxpretrain.notes import NONE, Notes
from tests.notes.conftest import LENGTH, ROWS, oracle, spans, texts


def test_the_texts_have_what_the_tests_are_about():
    batches = [texts(seed) for seed in range(4)]
    found = [[list(spans(marks)) for marks in batch["words"]] for batch in batches]
    flat = [row for batch in found for row in batch]
    assert any(row and row[0][1] == 0 for row in flat)
    assert any(row and row[-1][2] == LENGTH for row in flat)
    assert any(a == b and e == s for row in flat for (a, _, e), (b, s, _) in itertools.pairwise(row))
    assert any(a != b and e == s for row in flat for (a, _, e), (b, s, _) in itertools.pairwise(row))
    assert any(t - s == 3 for row in flat for _, s, t in row)
    assert all(len({word for row in batch for word, _, _ in row}) < sum(map(len, batch)) for batch in found)
    assert all((batch["tokens"] == PAD).any() and not batch["words"][1].any() for batch in batches)


def whole_update(table: Any, batch: dict[str, Any], contexts: Any, config: Any) -> tuple[Notes, Array]:
    notes = Notes(table=jnp.asarray(table), written=jnp.full(len(table), -1, jnp.int32))

    @partial(jax.jit, static_argnums=(3, 4, 5, 6))
    def run(notes: Notes, words: Array, contexts: Array, window: int, rate: float, capacity: int, repeats: str) -> Any:
        occurrences = notes_lib.find(words, capacity)
        values = notes_lib.contexts_of(contexts, batch["tokens"] == PAD, occurrences, window)
        ids = occurrences.ids.reshape(-1)
        rule = replace(config, rate=rate, repeats=repeats)
        return notes_lib.update(notes, ids, values.reshape(len(ids), -1), 7, rule), occurrences.overflow

    contexts = jnp.asarray(contexts)
    return run(notes, batch["words"], contexts, config.window, config.rate, config.capacity, config.repeats)


def check_update(seed: int, dtype: Any, tolerance: float, **rules: Any) -> None:
    config = replace(Config().notes, **rules)
    batch, rng = texts(seed), np.random.default_rng(seed)
    table, contexts = rng.normal(size=(ROWS, 8)), rng.normal(size=(8, LENGTH, 8))
    table, contexts = table.astype(dtype), contexts.astype(dtype)
    after, overflow = whole_update(table, batch, contexts, config)
    expected, met = oracle(table.astype(float), batch["words"], contexts.astype(float), batch["tokens"] == PAD, config)
    assert after.table.dtype == dtype
    np.testing.assert_allclose(after.table, expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(np.flatnonzero(after.written == 7), sorted(met))
    assert np.isin(after.written, (-1, 7)).all()
    beyond = [max(0, len(list(spans(marks))) - config.capacity) for marks in batch["words"]]
    np.testing.assert_array_equal(overflow, beyond)


RULES = (
    {},
    {"window": 2, "rate": 0.4},
    {"window": 0, "rate": 1.0},
    {"window": 3, "repeats": "compound"},
    {"window": 1, "capacity": 3},
    {"window": 1, "capacity": 3, "repeats": "compound", "rate": 0.3},
    {"window": 2, "capacity": 100},
)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_steps_notes_are_the_oracles_in_64_bits(rules: dict[str, Any]):
    for seed in range(4):
        check_update(seed, np.float64, 1e-10, **rules)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_steps_notes_are_the_oracles_in_32_bits(rules: dict[str, Any]):
    check_update(0, np.float32, 1e-5, **rules)


def test_vectors_in_16_bits_are_averaged_in_32():
    batch, rng = texts(3), np.random.default_rng(3)
    config = replace(Config().notes, rate=1.0)
    contexts = jnp.asarray(1 + rng.normal(size=(8, LENGTH, 8)) / 64, jnp.bfloat16)
    table = np.zeros((ROWS, 8), np.float32)
    after, _ = whole_update(table, batch, contexts, config)
    expected, _ = oracle(table, batch["words"], np.asarray(contexts, float), batch["tokens"] == PAD, config)
    assert after.table.dtype == np.float32
    np.testing.assert_allclose(after.table, expected, rtol=0, atol=1e-5)


def test_a_batch_without_rare_words_changes_nothing():
    batch = texts(0)
    batch["words"][:] = 0
    table = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    after, overflow = whole_update(table, batch, np.ones((8, LENGTH, 8), np.float32), Config().notes)
    np.testing.assert_array_equal(after.table, table)
    assert (after.written == -1).all()
    assert not overflow.any()


def test_a_word_mark_of_no_word_reaches_no_row():
    """`NONE` lies outside of every table: it gathers nothing and scatters nothing."""
    table = jnp.ones((ROWS, 4))
    notes = Notes(table=table, written=jnp.full(ROWS, -1, jnp.int32))
    ids, values = jnp.full(5, NONE), jnp.full((5, 4), jnp.nan)
    after = jax.jit(lambda: notes_lib.update(notes, ids, values, jnp.asarray(1), Config().notes))()
    np.testing.assert_array_equal(after.table, table)
    assert (after.written == -1).all()


def test_summary_by_hand():
    table = jnp.asarray([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [50.0, 0.0]])  # the last row fills the table up
    written = jnp.asarray([10, 4, -1, -1])
    found = notes_lib.summary(Notes(table=table, written=written), jnp.asarray(12), 3)
    assert found["norm"] == pytest.approx(2.0)
    assert found["age"] == pytest.approx((2 + 8) / 2)
    assert found["share_written"] == pytest.approx(2 / 3)

"""Masking: how many, where, what the model sees there, and that none of it depends on how rows are spread."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpretrain.config import ObjectiveConfig
from jaxpretrain.data.masking import FIRST_ORDINARY, Masked, mask_tokens, predictions_per_sequence
from jaxpretrain.data.tokenizer import CLS, MASK, PAD, SEP, SPECIAL_PIECES

VOCAB = 200
LENGTH = 32
CONFIG = ObjectiveConfig()


def rows_of(count: int, ordinary: int = LENGTH - 2, seed: int = 0) -> np.ndarray:
    """`[CLS] words [SEP]` and padding, int [count, LENGTH]."""
    rng = np.random.default_rng(seed)
    tokens = np.full((count, LENGTH), PAD, np.int32)
    tokens[:, 0], tokens[:, 1 + ordinary] = CLS, SEP
    tokens[:, 1 : 1 + ordinary] = rng.integers(FIRST_ORDINARY, VOCAB, (count, ordinary))
    return tokens


@functools.cache
def compiled(rate: float, mask_share: float, random_share: float) -> Callable[..., Masked]:
    config = ObjectiveConfig(mask_rate=rate, mask_share=mask_share, random_share=random_share)
    return jax.jit(lambda tokens, rows, key: mask_tokens(tokens, rows, key, config, VOCAB))


def mask(tokens: np.ndarray, seed: int = 0, config: ObjectiveConfig = CONFIG, rows: np.ndarray | None = None) -> Masked:
    rows = np.arange(len(tokens)) if rows is None else rows
    function = compiled(config.mask_rate, config.mask_share, config.random_share)
    return jax.device_get(function(tokens, rows, jax.random.key(seed)))


def test_first_ordinary_id_follows_the_special_pieces():
    assert len(SPECIAL_PIECES) == FIRST_ORDINARY


@pytest.mark.parametrize(("rate", "length", "count"), [(0.15, 128, 19), (0.15, 512, 76), (0.15, 8, 1), (0.01, 8, 1)])
def test_number_of_predictions(rate: float, length: int, count: int):
    assert predictions_per_sequence(ObjectiveConfig(mask_rate=rate), length) == count


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31 - 1),
    ordinary=st.integers(0, LENGTH - 2),
    rate=st.sampled_from([0.15, 0.5]),
    shares=st.sampled_from([(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]),
)
def test_what_every_masked_row_obeys(seed: int, ordinary: int, rate: float, shares: tuple[float, float]):
    config = ObjectiveConfig(mask_rate=rate, mask_share=shares[0], random_share=shares[1])
    tokens = rows_of(4, ordinary, seed % 1000)
    found = mask(tokens, seed, config)
    count = predictions_per_sequence(config, LENGTH)
    assert found.positions.shape == found.labels.shape == found.chosen.shape == (4, count)
    for row in range(4):
        here = found.positions[row][found.chosen[row]]
        # As many as asked for, or all there are; each at a place of its own, none on a special piece.
        assert len(here) == min(count, ordinary)
        assert len(set(here)) == len(here)
        assert (tokens[row, here] >= FIRST_ORDINARY).all()
        np.testing.assert_array_equal(found.labels[row], tokens[row, found.positions[row]])
        elsewhere = np.setdiff1d(np.arange(LENGTH), here)
        np.testing.assert_array_equal(found.inputs[row, elsewhere], tokens[row, elsewhere])
        seen = found.inputs[row, here]
        assert ((seen == MASK) | (seen >= FIRST_ORDINARY)).all()
        assert (seen < VOCAB).all()


def test_shares_of_mask_random_and_kept():
    tokens = rows_of(4000)
    found = mask(tokens)
    assert found.chosen.all()
    seen = np.take_along_axis(found.inputs, found.positions, 1)
    is_mask, kept = seen == MASK, seen == found.labels
    total = seen.size
    # A random piece is the old one with probability 1 / 194: part of `kept`. Bounds: four standard deviations.
    same = 1 / (VOCAB - FIRST_ORDINARY)
    for share, p in [(is_mask.mean(), 0.8), (kept.mean(), 0.1 + 0.1 * same), ((~is_mask & ~kept).mean(), 0.1)]:
        assert share == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / total) + 0.1 * same)


def test_random_pieces_are_uniform_over_the_ordinary_ones():
    found = mask(rows_of(4000), config=dataclasses.replace(CONFIG, mask_share=0.0, random_share=1.0))
    counts = np.bincount(np.take_along_axis(found.inputs, found.positions, 1).ravel(), minlength=VOCAB)[FIRST_ORDINARY:]
    expected = counts.sum() / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = len(counts) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)
    assert counts.min() > 0


def test_positions_are_uniform_over_the_ordinary_ones():
    counts = np.bincount(mask(rows_of(4000)).positions.ravel(), minlength=LENGTH)[1:-1]
    expected = counts.sum() / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()  # of draws without replacement: a little lower
    assert chi_square < len(counts) + 4 * np.sqrt(2 * len(counts))


def test_a_row_is_masked_the_same_alone_and_in_any_batch():
    tokens = rows_of(8)
    whole = mask(tokens)
    order = np.array([5, 2, 7])
    part = mask(tokens[order], rows=order)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), whole, part)


def test_rows_and_steps_are_masked_differently():
    tokens = np.repeat(rows_of(1), 16, axis=0)
    first, second = mask(tokens), mask(tokens, seed=1)
    assert len({tuple(row) for row in first.positions}) > 12
    assert (first.positions != second.positions).any(1).sum() > 12


def test_masking_on_many_devices_is_the_same():
    tokens, mesh = rows_of(16), jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    found = mask(jax.device_put(tokens, spread), rows=jax.device_put(jnp.arange(16), spread))
    jax.tree.map(np.testing.assert_array_equal, mask(tokens), found)


def test_which_positions_are_chosen_does_not_depend_on_the_words():
    one, other = mask(rows_of(8, seed=1)), mask(rows_of(8, seed=2))
    np.testing.assert_array_equal(one.positions, other.positions)

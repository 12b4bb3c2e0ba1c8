"""Dropout: rate and scale, independent masks wherever they should be, the same ones whatever the batch."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpretrain.models import attention, encoder
from jaxpretrain.models.dropout import cheap_bits, dropout

COUNT = 1 << 18


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_rate_and_scale(rate: float) -> None:
    x = jnp.linspace(1, 2, COUNT)
    found = np.asarray(dropout(x, rate, jax.random.key(0)))
    dropped = found == 0
    error = (rate * (1 - rate) / COUNT) ** 0.5
    assert abs(dropped.mean() - rate) < 4 * error
    np.testing.assert_allclose(found[~dropped], np.asarray(x)[~dropped] / (1 - rate), rtol=1e-6)
    assert abs(found.mean() / x.mean() - 1) < 5 * error / (1 - rate)


def test_no_key_or_no_rate_is_the_identity() -> None:
    x = jnp.arange(5.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """In standard errors."""
    return abs(np.corrcoef(a, b)[0, 1]) * len(a) ** 0.5


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_entries_and_keys_are_independent(rate: float) -> None:
    keys = [jax.random.key(0), jax.random.key(1), jax.random.fold_in(jax.random.key(0), 1)]
    masks = [np.asarray(dropout(jnp.ones(COUNT), rate, key) == 0) for key in keys]
    for other in masks[1:]:
        assert correlation(masks[0], other) < 4.5
    for lag in (1, 2, 3, 8, 64, 128, 512, 768, 1024, 4096):
        assert correlation(masks[0][:-lag], masks[0][lag:]) < 4.5, lag


def test_bits_are_uniform() -> None:
    bits = np.asarray(cheap_bits(jax.random.key(3), COUNT))
    assert bits.dtype == np.uint32
    for shift in range(32):
        share = (bits >> shift & 1).mean()
        assert abs(share - 0.5) < 4.5 * 0.5 / COUNT**0.5, shift
    counts = np.bincount(bits >> 24, minlength=256)
    chi_square = ((counts - COUNT / 256) ** 2 / (COUNT / 256)).sum()
    assert 255 - 5 * 510**0.5 < chi_square < 255 + 5 * 510**0.5


def test_gradient_flows_through_what_was_kept() -> None:
    x, key = jnp.arange(1.0, 100.0), jax.random.key(2)
    gradient = jax.grad(lambda x: dropout(x, 0.3, key).sum())(x)
    np.testing.assert_allclose(gradient, dropout(x, 0.3, key) / x, rtol=1e-6)


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_a_key_of_its_own_for_every_example_layer_and_place(
    model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    """Reported from the running program: 3 examples · (the embeddings + 3 layers · 3 places), no two alike."""
    seen: Counter[tuple[int, ...]] = Counter()

    def reporting(x: Array, rate: float, key: Array | None) -> Array:
        if key is not None:
            jax.debug.callback(lambda data: seen.update([tuple(data.tolist())]), jax.random.key_data(key))
        return dropout(x, rate, key)

    monkeypatch.setattr(encoder, "dropout", reporting)
    monkeypatch.setattr(attention, "dropout", reporting)
    m = model(position="tupe_a", dropout=0.1, attention_dropout=0.1, layer_loop=loop)
    jax.block_until_ready(m.apply(keys=jax.random.split(jax.random.key(0), 3)))
    jax.effects_barrier()
    assert len(seen) == 3 * (1 + 3 * 3)
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"attention_dropout": 0.5}])
def test_equal_texts_with_other_keys_differ_and_with_equal_keys_do_not(
    model: Callable[..., Any], rates: dict[str, float]
) -> None:
    m = model(**rates)
    inputs = {name: np.repeat(x[:1], 3, axis=0) for name, x in m.inputs().items()}
    one, two = jax.random.split(jax.random.key(0))
    first, second, third = m.apply(**inputs, keys=jnp.stack([one, two, one]))
    assert np.abs(first - second).max() > 1e-2
    chex.assert_trees_all_equal(first, third)
    assert np.abs(first - m.apply(**inputs)[0]).max() > 1e-2


def test_the_draw_does_not_depend_on_the_batch(model: Callable[..., Any]) -> None:
    m = model(position="tupe_r", dropout=0.3, attention_dropout=0.3)
    keys = jax.random.split(jax.random.key(0), 3)
    together = m.apply(keys=keys)
    backwards = m.apply(**{name: x[::-1] for name, x in m.inputs().items()}, keys=keys[::-1])
    chex.assert_trees_all_close(backwards[::-1], together, rtol=1e-5, atol=1e-5)
    for row in range(3):
        alone = m.apply(**{name: x[row : row + 1] for name, x in m.inputs().items()}, keys=keys[row : row + 1])
        chex.assert_trees_all_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_layers_draw_different_masks(model: Callable[..., Any], with_value: Callable[..., np.ndarray]) -> None:
    """Two layers of the same weights: with one mask for both, the second would drop what the first did."""
    m = model(layers=2, dropout=0.5, layer_loop="scan")
    keys = jax.random.split(jax.random.key(0), 3)
    silent = jax.tree.map(np.zeros_like, m.params["layers"])
    for name in ("attention_norm", "ffn_norm"):
        silent[name]["scale"] = silent[name]["scale"] + 1
    silent["ffn_out"]["bias"] = silent["ffn_out"]["bias"] + 1  # x + mask / keep, then a layer norm
    only = {n: silent | {"ffn_out": {k: with_value(v, 1 - n, 0) for k, v in silent["ffn_out"].items()}} for n in (0, 1)}
    first, second = (m.apply(params=m.params | {"layers": only[n]}, keys=keys) for n in (0, 1))
    assert np.abs(first - second).max() > 1e-2

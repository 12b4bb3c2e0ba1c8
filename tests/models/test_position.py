"""The positional part alone: buckets, Toeplitz, [CLS]."""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.position import relative_buckets, reset_cls, toeplitz


def t5_bucket(distance: int, buckets: int, max_distance: int) -> int:
    """One distance (key's place - query's) at a time, from T5's definition, logarithms in float32 as everywhere."""
    half = buckets // 2
    first = half if distance > 0 else 0
    size = abs(distance)
    exact = half // 2
    if size < exact:
        return first + size
    ratio = np.log(np.float32(size) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    return first + min(exact + int(ratio * np.float32(half - exact)), half - 1)


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 256), (16, 64), (64, 1000), (4, 2)])
@pytest.mark.parametrize("length", [1, 2, 24, 65, 129, 1024])
def test_relative_buckets_of_all_distances(length: int, buckets: int, max_distance: int) -> None:
    found = relative_buckets(length, buckets, max_distance)
    assert found.shape == (2 * length,)
    for distance in range(-length + 1, length):
        assert found[distance % (2 * length)] == t5_bucket(distance, buckets, max_distance), distance


def test_relative_buckets_at_the_borders() -> None:
    """Written down once, from T5's rule with 32 buckets and 128: a new one begins at 8·2^(k/2)."""
    found = relative_buckets(1024, 32, 128)
    before = [found[-distance] for distance in (1, 7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 1023)]
    assert before == [1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15]
    assert (found[1:1024] == 16 + found[:1024:-1]).all()
    assert found[0] == 0
    assert 16 not in found  # the one that TUPE-R gives to [CLS]


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_toeplitz_equals_the_loop(length: int) -> None:
    values = np.random.default_rng(length).normal(size=(3, 2 * length)).astype(np.float32)
    spread = np.asarray(toeplitz(jnp.asarray(values)))
    assert spread.shape == (3, length, length)
    for i in range(length):
        for j in range(length):
            assert (spread[:, i, j] == values[:, (j - i) % (2 * length)]).all()


def test_toeplitz_gradient_counts_the_cells_of_each_distance() -> None:
    length = 5
    gradient = jax.grad(lambda values: toeplitz(values).sum())(jnp.zeros((1, 2 * length)))
    distances = [length - abs(distance) for distance in range(length)]
    np.testing.assert_array_equal(gradient[0], [*distances, 0, *distances[:0:-1]])


def test_reset_cls() -> None:
    bias = jnp.arange(2 * 4 * 4.0).reshape(2, 4, 4)
    theta_1, theta_2 = jnp.array([100.0, 200.0]), jnp.array([-1.0, -2.0])
    found = reset_cls(bias, theta_1, theta_2)
    np.testing.assert_array_equal(found[:, 1:, 1:], bias[:, 1:, 1:])
    np.testing.assert_array_equal(found[:, 0], jnp.tile(theta_1[:, None], 4))  # [CLS] for itself too
    np.testing.assert_array_equal(found[:, 1:, 0], jnp.tile(theta_2[:, None], 3))


@pytest.mark.parametrize("position", ["relative", "absolute_untied", "tupe_a", "tupe_r"])
def test_position_terms_need_no_word(model: Callable[..., Any], position: str) -> None:
    """They come out the same without the token table and without the layers."""
    m = model(position=position)
    alone = m.terms(7, {"positions": m.params["positions"]})
    chex.assert_trees_all_equal(alone, m.terms(7))
    assert any(leaf.any() for leaf in jax.tree.leaves(alone))


@pytest.mark.parametrize("untie_cls", [True, False])
@pytest.mark.parametrize("position", ["relative", "absolute_untied", "tupe_a", "tupe_r"])
def test_position_terms_of_a_shorter_text_are_a_corner_of_the_longer(
    model: Callable[..., Any], position: str, untie_cls: bool
) -> None:
    m = model(position=position, untie_cls=untie_cls)
    short, long = m.terms(4), m.terms(9)
    if long.bias is not None:
        chex.assert_trees_all_close(short.bias, long.bias[:, :4, :4], rtol=1e-5, atol=1e-6)
    else:
        chex.assert_trees_all_close((short.query, short.key), (long.query[:4], long.key[:4]), rtol=1e-5, atol=1e-6)


def test_theta_1_has_no_gradient_and_theta_2_has(model: Callable[..., Any]) -> None:
    """θ₁ is added to every score of [CLS]: a softmax does not see it. It is row 0's alone; row 1 makes θ₂."""
    m = model(position="tupe_a")
    table = m.gradient()["positions"]["table"]
    assert np.abs(table[0]).max() < 1e-5
    assert np.abs(table[1]).max() > 1e-2


@pytest.mark.parametrize("position", ["tupe_a", "tupe_r"])
def test_cls_sees_no_distance_unless_tied(model: Callable[..., Any], position: str) -> None:
    """Its row and column hold one value per head each; without `untie_cls` they are like the others."""
    for untie_cls, distinct in ((True, 1), (False, 6)):
        m = model(position=position, untie_cls=untie_cls)
        bias = m.terms(7).bias
        for head in bias:
            assert len(np.unique(head[0, 1:])) == distinct
            assert len(np.unique(head[1:, 0])) == distinct
            assert len(np.unique(head[1:, 1:].round(5))) > 6

"""The two ways of computing attention agree, the backend's fused one and the plain one."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config import Config, ConfigError, validate
from jaxpretrain.models.attention import fused_attention, plain_attention


@pytest.mark.parametrize("position", ["absolute", "absolute_untied", "tupe_r"])
def test_fused_equals_plain_in_the_encoder(model: Callable[..., Any], position: str) -> None:
    """With padding; forward and gradients."""
    plain, fused = (model(position=position, attention=attention) for attention in ("plain", "fused"))
    chex.assert_trees_all_close(fused.apply()[plain.real], plain.apply()[plain.real], rtol=1e-5, atol=1e-5)
    gradient = fused.gradient()
    chex.assert_tree_all_finite(gradient)
    chex.assert_trees_all_close(gradient, plain.gradient(), rtol=1e-4, atol=1e-5)


def test_fused_calls_the_kernel_and_plain_does_not(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = jax.nn.dot_product_attention

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["implementation"])
        return kernel(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    implementations = {}
    for attention in ("plain", "fused"):
        m = model(position="tupe_a", attention=attention)
        jax.eval_shape(lambda params, m=m: m.encoder.apply(params, **m.inputs()), m.params)
        implementations[attention] = set(calls)
    assert implementations == {"plain": set(), "fused": {"xla"}}


def test_a_bias_stays_without_a_batch_dimension(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel needs in order to differentiate it."""
    shapes = []
    kernel = jax.nn.dot_product_attention

    def recorded(*args: Any, bias: Any, **kwargs: Any) -> Any:
        shapes.append((bias.shape, type(bias).__name__))
        return kernel(*args, bias=bias, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    m = model(position="tupe_a", attention="fused")
    jax.eval_shape(lambda params: m.encoder.apply(params, **m.inputs()), m.params)
    assert {shape for shape, _ in shapes} == {(1, 2, 7, 7)}
    assert not any("Batch" in name for _, name in shapes)


@pytest.mark.parametrize("attend", [plain_attention, fused_attention])
def test_attention_of_one_head_by_hand(attend: Callable[..., Any]) -> None:
    q, k, v = (jax.random.normal(key, (4, 1, 6)) for key in jax.random.split(jax.random.key(0), 3))
    bias = jax.random.normal(jax.random.key(1), (1, 4, 4))
    padding = jnp.array([False, False, False, True])
    found = attend(q, k, v, 0.3, bias, padding)
    for i in range(3):
        weights = np.exp([0.3 * np.dot(q[i, 0], k[j, 0]) + bias[0, i, j] for j in range(3)])
        expected = sum(weights[j] / weights.sum() * v[j, 0] for j in range(3))
        np.testing.assert_allclose(found[i, 0], expected, rtol=1e-5, atol=1e-6)


def test_fused_is_refused_with_dropout(model: Callable[..., Any]) -> None:
    m = model(attention="fused", attention_dropout=0.1)
    with pytest.raises(ValueError, match=r"model\.attention_dropout must be 0"):
        m.apply(keys=jax.random.split(jax.random.key(0), 3))
    chex.assert_tree_all_finite(m.apply())  # without a key there is no dropout
    config = Config()
    config.model.attention = "fused"
    with pytest.raises(ConfigError, match=r"model\.attention_dropout"):
        validate(config)

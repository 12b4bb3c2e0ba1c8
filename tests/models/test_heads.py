"""The heads: logits where they are asked for, from the shared table."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config import Config, ModelConfig
from jaxpretrain.models.heads import DiscriminatorHead, MLMHead, take_positions
from jaxpretrain.objectives.mlm import MLM

VOCAB = 23


def mlm_head(width: int = 6, dtype: str = "float32") -> tuple[MLMHead, Any, jax.Array]:
    head = MLMHead(ModelConfig(hidden=8), jnp.dtype(dtype))
    table = jax.random.normal(jax.random.key(0), (VOCAB, width))
    params = head.init(jax.random.key(1), jnp.zeros((1, 8)), table)["params"]
    keys = iter(jax.random.split(jax.random.key(2), 9))
    return head, jax.tree.map(lambda x: x + 0.5 * jax.random.normal(next(keys), x.shape), params), table


@pytest.mark.parametrize("width", [8, 6])
def test_mlm_head_written_out(width: int) -> None:
    head, p, table = mlm_head(width)
    x = jax.random.normal(jax.random.key(3), (2, 5, 8))
    y = x @ p["dense"]["kernel"] + p["dense"]["bias"]
    y = y * (1 + jax.lax.erf(y / 2**0.5)) / 2
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    expected = (y + p["norm"]["bias"]) @ table.T + p["bias"]
    chex.assert_trees_all_close(head.apply({"params": p}, x, table), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_head_gives_float32_logits() -> None:
    head, params, table = mlm_head(dtype="bfloat16")
    x = jax.random.normal(jax.random.key(3), (4, 8))
    logits: Any = head.apply({"params": params}, x, table)
    assert logits.dtype == jnp.float32
    full: Any = mlm_head()[0].apply({"params": params}, x, table)
    assert 0 < jnp.abs(logits - full).max() < 0.2


def test_take_positions() -> None:
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
    positions = np.array([[0, 6], [3, 3], [5, 1]])
    found = take_positions(jnp.asarray(x), jnp.asarray(positions))
    for row in range(3):
        np.testing.assert_array_equal(found[row], x[row, positions[row]])


def test_logits_at_the_predicted_positions_are_those_of_all() -> None:
    head, params, table = mlm_head()
    x = jax.random.normal(jax.random.key(3), (3, 7, 8))
    positions = jnp.array([[0, 6], [3, 3], [5, 1]])
    everywhere: Any = head.apply({"params": params}, x, table)
    found = head.apply({"params": params}, take_positions(x, positions), table)
    chex.assert_trees_all_close(found, take_positions(everywhere, positions), rtol=1e-5, atol=1e-5)


def shapes_in(program: Any) -> set[tuple[int, ...]]:
    """Of every value in a traced program, the nested ones too."""
    shapes = {v.aval.shape for equation in program.eqns for v in equation.outvars}
    for equation in program.eqns:
        for value in equation.params.values():
            body = getattr(value, "jaxpr", value)
            shapes |= shapes_in(body) if hasattr(body, "eqns") else set()
    return shapes


def test_the_mlm_loss_makes_no_logits_elsewhere() -> None:
    """No value of the loss or of its gradient has the size batch · length · vocabulary."""
    config = Config(model=ModelConfig(layers=1, hidden=8, heads=2, ffn=12))
    config.data.sequence_length = 20
    objective = MLM(config, 211)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    batch = {"tokens": jnp.full((5, 20), 7), "rows": jnp.arange(5)}
    batch = jax.eval_shape(objective.corrupt, batch, jax.random.key(0))
    program = jax.make_jaxpr(jax.grad(lambda p, b: objective.loss(p, b, None, None)[0]))(params, batch)
    shapes = shapes_in(program.jaxpr)
    predicted = batch["positions"].shape[1]
    assert predicted == 3
    assert (5, predicted, 211) in shapes
    with_vocabulary = [shape for shape in shapes if 211 in shape]
    assert max(np.prod(shape) for shape in with_vocabulary) == 5 * predicted * 211


def test_discriminator_head_written_out(model: Callable[..., Any]) -> None:
    head = DiscriminatorHead(model().encoder.config, jnp.dtype("float32"))
    x = jax.random.normal(jax.random.key(3), (2, 5, 8))
    p = head.init(jax.random.key(1), x)["params"]
    y = x @ p["dense"]["kernel"] + p["dense"]["bias"]
    y = y * (1 + jax.lax.erf(y / 2**0.5)) / 2
    expected = (y @ p["score"]["kernel"])[..., 0] + p["score"]["bias"]
    found = head.apply({"params": p}, x)
    chex.assert_shape(found, (2, 5))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)

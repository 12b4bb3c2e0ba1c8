"""The heads: logits where they are asked for, from the shared table."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config import Config, ModelConfig
from jaxpretrain.models.heads import DiscriminatorHead, MLMHead, take_positions
from jaxpretrain.objectives.mlm import MLM

VOCAB = 23


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def weights(head: Any, *inputs: Any) -> Any:
    shapes = jax.eval_shape(head.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda x: random(*x.shape), shapes)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2


@pytest.mark.parametrize("width", [8, 6])
def test_mlm_head_written_out(width: int) -> None:
    head = MLMHead(ModelConfig(hidden=8), jnp.dtype("float32"))
    x, table = random(2, 5, 8), random(VOCAB, width)
    p = weights(head, x, table)
    y = gelu(x @ p["dense"]["kernel"] + p["dense"]["bias"])
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    expected = (y + p["norm"]["bias"]) @ table.T + p["bias"]
    np.testing.assert_allclose(jax.jit(head.apply)({"params": p}, x, table), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_head_gives_float32_logits() -> None:
    x, table = random(4, 8), random(VOCAB, 8)
    half, full = (MLMHead(ModelConfig(hidden=8), jnp.dtype(dtype)) for dtype in ("bfloat16", "float32"))
    p = weights(full, x, table)
    logits, expected = (jax.jit(head.apply)({"params": p}, x, table) for head in (half, full))
    assert logits.dtype == jnp.float32
    difference = np.abs(np.asarray(logits) - np.asarray(expected))
    assert 0 < difference.mean() < 0.01 * np.abs(expected).mean()


def test_take_positions() -> None:
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
    positions = np.array([[0, 6], [3, 3], [5, 1]])
    found = take_positions(jnp.asarray(x), jnp.asarray(positions))
    for row in range(3):
        np.testing.assert_array_equal(found[row], x[row, positions[row]])


def test_logits_at_the_predicted_positions_are_those_of_all() -> None:
    head = MLMHead(ModelConfig(hidden=8), jnp.dtype("float32"))
    x, table = random(3, 7, 8), random(VOCAB, 8)
    p = weights(head, x, table)
    positions = np.array([[0, 6], [3, 3], [5, 1]])
    everywhere = jax.jit(head.apply)({"params": p}, x, table)
    found = jax.jit(head.apply)({"params": p}, take_positions(jnp.asarray(x), jnp.asarray(positions)), table)
    expected = np.take_along_axis(np.asarray(everywhere), positions[..., None], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


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


def test_discriminator_head_written_out() -> None:
    head = DiscriminatorHead(ModelConfig(hidden=8), jnp.dtype("float32"))
    x = random(2, 5, 8)
    p = weights(head, x)
    y = gelu(x @ p["dense"]["kernel"] + p["dense"]["bias"])
    expected = (y @ p["score"]["kernel"])[..., 0] + p["score"]["bias"]
    found = jax.jit(head.apply)({"params": p}, x)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

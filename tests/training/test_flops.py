"""Counted operations against counts by hand, and against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpretrain.config import Config, sized
from jaxpretrain.data.masking import predictions_per_sequence
from jaxpretrain.objectives import build
from jaxpretrain.training.flops import PEAKS, matmul_flops, peak_flops, step_flops

A, B, C = 3, 5, 7
X, W = jax.ShapeDtypeStruct((A, B), jnp.float32), jax.ShapeDtypeStruct((B, C), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((B, B), jnp.float32)


def scanned(x, w):
    return lax.scan(lambda x, _: (x @ w, None), x, length=11)[0]


@pytest.mark.parametrize(
    ("function", "args", "flops"),
    [
        (jnp.matmul, (X, W), 2 * A * B * C),
        (lambda x: x + 1, (X,), 0),
        (scanned, (X, SQUARE), 11 * 2 * A * B * B),
        (jax.vmap(jnp.matmul, (None, 0)), (X, jax.ShapeDtypeStruct((9, B, C), jnp.float32)), 9 * 2 * A * B * C),
        (jax.jit(jnp.matmul), (X, W), 2 * A * B * C),
        (jax.grad(lambda x, w: (x @ w).sum(), (0, 1)), (X, W), 3 * 2 * A * B * C),
        (jax.grad(lambda x, w: scanned(x, w).sum()), (X, SQUARE), 2 * 11 * 2 * A * B * B),
        (lambda x, w: jnp.einsum("ab,bc->", x, w), (X, W), None),
        (lambda x, w: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: jnp.zeros((A, C))), (X, W), 2 * A * B * C),
    ],
)
def test_products_by_hand(function, args, flops: int | None):
    if flops is None:  # whatever einsum makes of it, no more than the plain product
        assert matmul_flops(function, *args) <= 2 * A * B * C
    else:
        assert matmul_flops(function, *args) == flops


def counted(config: Config, vocab_size: int) -> int:
    params = jax.eval_shape(build(config, vocab_size).init, jax.random.key(0))
    rows, length = config.train.batch_size, config.data.sequence_length
    batch = {
        "tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "rows": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    return step_flops(config, vocab_size, params, batch)


def by_formula(config: Config, vocab_size: int) -> float:
    """Forward and backward: three times the forward products."""
    model, length = config.model, config.data.sequence_length
    hidden = model.hidden
    block = model.layers * (4 * hidden**2 + 2 * hidden * model.ffn)
    share = predictions_per_sequence(config.objective, length) / length
    per_token = 3 * (2 * block + 4 * model.layers * hidden * length)
    per_token += 3 * 2 * (vocab_size * hidden + hidden**2) * share
    positions = 0
    if model.position.startswith("tupe"):  # two projections and their product, once per step
        positions = 3 * (2 * 2 * length * hidden**2 + 2 * length**2 * hidden)
    return per_token * config.train.batch_size * length + positions


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("position", ["absolute", "tupe_r"])
@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_a_step_costs_what_the_formula_says(size: str, position: str, loop: str):
    config = sized(size)
    config.model.position, config.model.layer_loop = position, loop
    vocab_size = config.data.vocab_size
    assert counted(config, vocab_size) == pytest.approx(by_formula(config, vocab_size), rel=0.02)


def test_what_is_computed_twice_counts_once():
    config = sized("tiny")
    plain = counted(config, 8192)
    config.model.remat = True
    assert counted(config, 8192) == plain


def test_xla_counts_the_same():
    config = sized("base")
    config.model.layers, config.model.layer_loop, config.model.dtype = 2, "unroll", "float32"
    config.data.sequence_length, config.train.batch_size = 64, 4
    objective = build(config, 4096)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    batch = {"tokens": jax.ShapeDtypeStruct((4, 64), jnp.int32), "rows": jax.ShapeDtypeStruct((4,), jnp.int32)}
    corrupted = jax.eval_shape(objective.corrupt, batch, jax.random.key(0))
    gradient = jax.grad(lambda params, batch: objective.loss(params, batch, None, None)[0])
    cost = jax.jit(gradient).lower(params, corrupted).cost_analysis()
    assert step_flops(config, 4096, params, batch) == pytest.approx(cost["flops"], rel=0.1)


def test_peak_of_a_cpu_is_measured_and_of_a_card_looked_up(monkeypatch: pytest.MonkeyPatch):
    assert peak_flops() > 1e6

    class Card:
        platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(jax, "devices", lambda: [Card])
    assert peak_flops() == PEAKS["NVIDIA H100"]
    Card.device_kind = "NVIDIA H100 PCIe"
    assert peak_flops() == PEAKS["NVIDIA H100 PCIe"]
    Card.device_kind = "A card of tomorrow"
    assert peak_flops() is None


def test_peaks_are_plausible():
    assert all(np.log10(peak) > 13 for peak in PEAKS.values())

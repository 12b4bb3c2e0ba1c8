"""The two ways of computing attention agree, the backend's fused one and the plain one."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config import Config, ConfigError, ModelConfig, validate
from jaxpretrain.models import attention as attentions
from jaxpretrain.models.attention import blockwise_attention, check_fused, fused_attention, plain_attention
from jaxpretrain.models.encoder import compute_dtype


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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("position", ["absolute", "absolute_untied", "tupe_a", "tupe_a with [CLS] tied", "tupe_r"])
def test_blockwise_equals_plain_in_the_encoder(
    model: Callable[..., Any], position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven positions, three at a time; TUPE-A's as further channels. Forward and gradients, in 64 bit."""
    monkeypatch.setattr(attentions, "BLOCK", 3)
    fields = {"position": position.split()[0], "untie_cls": "tied" not in position, "dtype": "float64"}
    plain, blockwise = (model(attention=attention, **fields) for attention in ("plain", "blockwise"))
    chex.assert_trees_all_close(blockwise.apply()[plain.real], plain.apply()[plain.real], rtol=1e-12)
    chex.assert_trees_all_close(blockwise.gradient(), plain.gradient(), rtol=1e-9, atol=1e-12)


def test_only_tupe_a_lengthens_heads(model: Callable[..., Any]) -> None:
    terms = {position: model(position=position, attention="blockwise").terms(6) for position in ("tupe_a", "tupe_r")}
    assert terms["tupe_a"].bias is None
    assert terms["tupe_a"].query.shape == terms["tupe_a"].key.shape == (6, 2, 4 + 2)
    assert terms["tupe_r"].query is None
    assert terms["tupe_r"].bias.shape == (2, 6, 6)


def test_blockwise_needs_memory_linear_in_the_length() -> None:
    """Of the backward pass, four times the length: four times as much, where the plain form needs more than eight."""

    def temporaries(attend: Callable[..., Any], length: int) -> int:
        x = jax.ShapeDtypeStruct((2, length, 1, 8), jnp.float32)
        padding = jax.ShapeDtypeStruct((2, length), bool)
        loss = lambda x, padding: jax.vmap(lambda x, p: attend(x, x, x, 0.3, None, p))(x, padding).sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(x, padding).compile().memory_analysis().temp_size_in_bytes

    growth = {f: temporaries(f, 4096) / temporaries(f, 1024) for f in (plain_attention, blockwise_attention)}
    assert growth[blockwise_attention] < 4.5
    assert growth[plain_attention] > 8


def test_products_of_scores_are_of_the_operands_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU gets them, forward and backward; in float32 the slopes are those of jax's own derivative."""
    padding = jnp.arange(16) > 12

    def gradient(q: jax.Array, k: jax.Array) -> Any:
        attend = lambda q, k: plain_attention(q, k, k, 0.3, None, padding).astype(jnp.float32)  # noqa: E731
        return jax.grad(lambda q, k: jnp.sin(jax.vmap(attend)(q, k)).sum(), (0, 1))(q, k)

    half = jax.ShapeDtypeStruct((2, 16, 2, 8), jnp.bfloat16)
    program = jax.jit(gradient).trace(half, half).lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"dot_general .* : \((.*)\) ->", program)
    assert len(products) == 6
    assert not any("f32" in operands.replace("bf16", "") for operands in products)

    q, k = (jax.random.normal(key, (2, 16, 2, 8)) for key in jax.random.split(jax.random.key(0)))
    found = jax.jit(gradient)(q, k)
    monkeypatch.setattr(attentions, "word_scores", partial(jnp.einsum, "qhd,khd->hqk"))
    chex.assert_trees_all_close(jax.jit(lambda *x: gradient(*x))(q, k), found, rtol=1e-5, atol=1e-6)


def test_blockwise_drops_weights(model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block its own: with one mask for all of them, rows of equal inputs would be equal."""
    monkeypatch.setattr(attentions, "BLOCK", 2)
    ones, padding = jnp.ones((8, 1, 4)), jnp.zeros(8, bool)
    v = jnp.eye(8)[:, None]  # so that what comes out is the weights
    weights = np.asarray(blockwise_attention(ones, ones, v, 1.0, None, padding, 0.5, jax.random.key(0)))[:, 0]
    assert set(np.unique(weights).tolist()) == {0.0, 0.25}
    assert len({tuple(pair.ravel()) for pair in weights.reshape(4, 2, 8)}) == 4


@pytest.mark.parametrize("attend", [plain_attention, blockwise_attention, fused_attention])
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


def test_the_kernel_never_gets_an_empty_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **given: (lengths.append(given), q)[1])
    x = jnp.ones((4, 1, 8))
    for padding in ([True] * 4, [False, False, True, True]):
        fused_attention(x, x, x, 1.0, None, jnp.array(padding))
    found = [[int(given[f"{name}_seq_lengths"][0]) for name in ("query", "key_value")] for given in lengths]
    assert found == [[1, 1], [2, 2]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`gpu("7.5")`: jax shows a GPU of this compute capability."""

    def show(capability: str) -> None:
        device = type("Device", (), {"compute_capability": capability})
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    return show


def test_products_are_bfloat16_where_the_hardware_has_it(
    gpu: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> str:
        return compute_dtype(ModelConfig()).name

    assert found() == "float32"
    for capability, dtype in {"7.5": "float32", "8.0": "bfloat16", "12.0": "bfloat16", "gfx90a": "bfloat16"}.items():
        gpu(capability)
        assert found() == dtype, capability
    monkeypatch.setattr(jax, "local_devices", lambda: [object()])
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert found() == "bfloat16"
    assert compute_dtype(ModelConfig(dtype="float32")) == jnp.float32


@pytest.mark.parametrize(
    ("capability", "fields", "length", "needs"),
    [
        ("8.0", {}, 128, ""),
        ("9.0", {"hidden": 512}, 128, ""),
        ("8.0", {"position": "absolute"}, 127, ""),
        ("7.5", {}, 128, "compute capability 8.0"),
        ("gfx90a", {}, 128, "an NVIDIA GPU"),
        ("8.0", {"dtype": "float32"}, 128, "model.dtype=bfloat16"),
        ("8.0", {"hidden": 512}, 128, "model.heads=256 to be a multiple of 8, up to 128"),
        ("9.0", {"hidden": 24}, 128, "model.heads=12 to be a multiple of 8"),
        ("9.0", {}, 127, "an even data.sequence_length"),
        (None, {"hidden": 24, "dtype": "float32"}, 127, ""),
        ("7.5", {"attention": "plain"}, 127, ""),
    ],
)
def test_what_cudnn_cannot_do_is_told_before(
    gpu: Callable[[str], None], capability: str | None, fields: dict[str, Any], length: int, needs: str
) -> None:
    if capability:  # else a CPU
        gpu(capability)
    config = ModelConfig(**({"attention": "fused", "position": "tupe_r"} | fields))
    message = rf"^model\.attention='fused': needs .*{needs}.*--config\.model\.attention=plain$"
    with pytest.raises(ConfigError, match=message) if needs else nullcontext():
        check_fused(config, compute_dtype(config), [128, length])

"""The encoder against one written out by hand, and what must not change its result."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config import POSITIONS, ModelConfig
from jaxpretrain.models.encoder import Encoder, InputNotes
from jaxpretrain.models.position import relative_buckets

FORMS = [
    *({"position": position} for position in POSITIONS),
    {"position": "tupe_a", "untie_cls": False},
    {"position": "tupe_r", "untie_cls": False},
    {"position": "absolute", "embedding": 6, "segments": 2},
    {"position": "tupe_r", "embedding": 12},
    {"position": "relative", "relative_buckets": 8, "relative_max_distance": 3},
    {"position": "tupe_r", "relative_buckets": 4, "relative_max_distance": 3},
]
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
every_position = pytest.mark.parametrize("position", POSITIONS)


def slow_norm(p: Any, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def linear(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2


def slow_scores(config: ModelConfig, p: Any, h: int, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Scores of one head, cell by cell, from the words' queries and keys [T, d]: section 3 of the TUPE paper."""
    length, width = q.shape
    position, untie = config.position, config.untie_cls and config.position.startswith("tupe")
    buckets = relative_buckets(length, config.relative_buckets, config.relative_max_distance)

    def projected(row: int, name: str) -> np.ndarray:
        vector = slow_norm(p["norm"], p["table"][row], config.layer_norm_eps)
        return vector @ p[name]["kernel"][:, h] + p[name]["bias"][h]

    def cell(i: int, j: int) -> float:
        word = q[i] @ k[j]
        relative = 0.0
        if position in ("relative", "tupe_r"):
            relative = p["relative"][buckets[j - i], h]
            if untie and 0 in (i, j):
                relative = p["relative"][config.relative_buckets // 2 if i == 0 else config.relative_buckets, h]
        if position in ("absolute", "relative"):
            return word / width**0.5 + relative
        if position == "absolute_untied":
            u_q, u_k = projected(i, "query"), projected(j, "key")
            return (word + q[i] @ u_k + u_q @ k[j] + u_q @ u_k) / (4 * width) ** 0.5
        a, b = (i + 1, j + 1) if untie else (i, j)  # the table's rows
        if untie and i == 0:
            a = b = 0
        elif untie and j == 0:
            a = b = 1
        return (word + projected(a, "query") @ projected(b, "key")) / (2 * width) ** 0.5 + relative

    return np.array([[cell(i, j) for j in range(length)] for i in range(length)])


def slow_encoder(config: ModelConfig, params: Any, tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """One text without padding, layer by layer, head by head: [T] → [T, D]."""
    eps = config.layer_norm_eps
    p = params["embedder"]
    x = p["tokens"][tokens]
    if "positions" in p:
        x = x + p["positions"][: len(tokens)]
    if "segments" in p:
        x = x + p["segments"][segments]
    x = slow_norm(p["norm"], x, eps)
    x = linear(p["projection"], x) if "projection" in p else x
    for number in range(config.layers):
        layer = jax.tree.map(lambda leaf, n=number: leaf[n], params["layers"])
        p = layer["attention"]
        attended = p["out"]["bias"]
        for h in range(config.heads):
            q, k, v = (x @ p["qkv"]["kernel"][:, n, h] + p["qkv"]["bias"][n, h] for n in range(3))
            weights = np.exp(slow_scores(config, params["positions"], h, q, k))
            attended = attended + weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][h]
        x = slow_norm(layer["attention_norm"], x + attended, eps)
        x = slow_norm(layer["ffn_norm"], x + linear(layer["ffn_out"], gelu(linear(layer["ffn_in"], x))), eps)
    return x


@pytest.mark.usefixtures("x64")
@every_form
def test_equals_the_encoder_written_out(model: Callable[..., Any], form: dict[str, Any]) -> None:
    """Vectors, and the gradient of every parameter (the shared bias's is a sum over layers and texts)."""
    m = model(lengths=(4, 2), max_positions=5, layers=2, dtype="float64", **form)

    def slow(params: Any) -> np.ndarray:
        rows = zip(m.tokens, m.segments, m.real.sum(axis=1), strict=True)
        return np.concatenate([slow_encoder(m.encoder.config, params, t[:n], s[:n]) for t, s, n in rows])

    def loss(params: Any) -> float:  # the one that `gradient` differentiates
        return np.sin(slow(params) + np.arange(8)).sum()

    np.testing.assert_allclose(m.apply()[m.real], slow(m.params), rtol=1e-9, atol=1e-9)
    leaves, structure = jax.tree.flatten(m.params)
    rng, h = np.random.default_rng(1), 1e-5
    for number, gradient in enumerate(jax.tree.leaves(m.gradient())):
        direction = rng.normal(size=gradient.shape)

        def moved(step: float, number: int = number, direction: np.ndarray = direction) -> float:
            changed = [leaf + step * direction if i == number else leaf for i, leaf in enumerate(leaves)]
            return loss(jax.tree.unflatten(structure, changed))

        difference = (moved(h) - moved(-h)) / (2 * h)
        np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-7)


@every_position
def test_padding_changes_no_real_token(model: Callable[..., Any], position: str) -> None:
    """Not by what stands in it, not by how much of it there is; and nothing flows back into it."""
    m = model(position=position)
    expected = m.apply()
    other = m.apply(tokens=np.where(m.padding, (m.tokens + 11) % 23, m.tokens))
    chex.assert_trees_all_equal(other[m.real], expected[m.real])
    assert not np.array_equal(other, expected)  # the texts did differ

    longer = {name: np.pad(x, ((0, 0), (0, 2)), constant_values=1) for name, x in m.inputs().items()}
    chex.assert_trees_all_close(m.apply(**longer)[:, :7][m.real], expected[m.real], rtol=1e-5, atol=1e-5)

    tokens = np.where(m.padding, 22, m.tokens % 22)
    assert not m.gradient(tokens=tokens)["embedder"]["tokens"][22].any()


@every_position
def test_each_real_token_is_seen(model: Callable[..., Any], with_value: Callable[..., Any], position: str) -> None:
    m = model(position=position)
    expected = m.apply()
    for place in range(5):
        changed = m.apply(tokens=with_value(m.tokens, (1, place), (m.tokens[1, place] + 1) % 23))
        assert (np.abs(changed - expected)[1, :5].max(-1) > 1e-5).all(), place
        chex.assert_trees_all_equal(changed[::2], expected[::2])


@pytest.mark.parametrize("attention", ["plain", "fused"])
@pytest.mark.parametrize("position", ["absolute", "tupe_r"])
def test_a_text_of_padding_alone_is_finite(model: Callable[..., Any], position: str, attention: str) -> None:
    """Rows that fill up a batch: their gradients are finite too, and change nothing in the others."""
    m = model(position=position, attention=attention)
    padding = m.padding.copy()
    padding[1] = True
    found = m.apply(padding=padding)
    chex.assert_tree_all_finite((found, m.gradient(padding=padding)))
    chex.assert_trees_all_equal(found[0], m.apply()[0])


@every_position
def test_order_matters(model: Callable[..., Any], with_value: Callable[..., Any], position: str) -> None:
    """Two words change places: their neighbours notice, in every form."""
    m = model(position=position, layers=1)
    tokens, swapped = (with_value(m.tokens, (0, [3, 5]), words) for words in ([5, 6], [6, 5]))
    assert np.abs(m.apply(tokens=tokens) - m.apply(tokens=swapped))[0, 4].max() > 1e-4


@pytest.mark.parametrize("position", ["absolute_untied", "tupe_r"])
def test_scan_equals_unroll(model: Callable[..., Any], position: str) -> None:
    scan, unroll = (model(position=position, layer_loop=loop, layers=2) for loop in ("scan", "unroll"))
    chex.assert_trees_all_close(scan.apply(), unroll.apply(), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(scan.gradient(), unroll.gradient(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_dropout_is_the_same_in_both_loops(model: Callable[..., Any], loop: str) -> None:
    keys = jax.random.split(jax.random.key(1), 3)
    expected = model(dropout=0.2, attention_dropout=0.2, layer_loop="scan").apply(keys=keys)
    found = model(dropout=0.2, attention_dropout=0.2, layer_loop=loop, remat=True).apply(keys=keys)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_remat_changes_nothing_and_recomputes(model: Callable[..., Any], loop: str) -> None:
    kept, remat = (model(position="tupe_r", layer_loop=loop, layers=2, remat=remat) for remat in (False, True))
    chex.assert_trees_all_close(kept.gradient(), remat.gradient(), rtol=1e-4, atol=1e-5)
    programs = [str(jax.make_jaxpr(lambda p, m=m: m.encoder.apply(p, **m.inputs()))(m.params)) for m in (kept, remat)]
    assert ["remat" in program or "checkpoint" in program for program in programs] == [False, True]


def test_remat_needs_less_memory_unless_told_otherwise(model: Callable[..., Any]) -> None:
    """On a CPU too, where layers are written out without it."""
    needed = {}
    for remat in (False, True):
        m = model(layers=4, layer_loop="auto", remat=remat)
        memory = jax.jit(lambda m=m: m.gradient()).lower().compile().memory_analysis()
        needed[remat] = memory.temp_size_in_bytes
    assert needed[True] < 0.6 * needed[False]


@every_position
def test_bfloat16_is_near_float32(model: Callable[..., Any], position: str) -> None:
    full, half = model(position=position), model(position=position, dtype="bfloat16")
    found = half.apply()
    assert found.dtype == jnp.bfloat16
    difference = np.abs(found.astype(np.float32) - full.apply())[full.real]
    assert 0 < difference.mean() < 0.03  # of vectors normalised to 1


def test_bfloat16_products_leave_gradients_float32(model: Callable[..., Any]) -> None:
    full, half = model(position="tupe_r"), model(position="tupe_r", dtype="bfloat16")
    gradient = half.gradient()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}
    for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(full.gradient()), strict=True):
        assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected) + 0.1


@pytest.mark.parametrize("position", ["absolute", "tupe_a"])
def test_products_are_bfloat16_and_sums_float32(model: Callable[..., Any], position: str) -> None:
    """In the traced program: what goes into a layer's matrix products, and what the softmax works on."""
    m = model(position=position, dtype="bfloat16")
    program = str(jax.make_jaxpr(lambda p: m.encoder.apply(p, **m.inputs()))(m.params))
    exponentials = [line for line in program.splitlines() if " exp " in line]
    assert exponentials
    assert all(":f32[3,2,7,7]" in line for line in exponentials)
    assert "bf16[3,7,12] = dot_general" in program
    assert "f32[3,2,7,7] = dot_general" in program.replace("bf16[3,2,7,7]", "")


def test_segments(model: Callable[..., Any], with_value: Callable[..., Any]) -> None:
    m = model(segments=2)
    zeros = np.zeros_like(m.segments)
    chex.assert_trees_all_equal(m.apply(segments=None), m.apply(segments=zeros))
    assert np.abs(m.apply(segments=with_value(zeros, (0, 3), 1)) - m.apply(segments=zeros))[0].max() > 1e-3
    without = model(segments=0)
    chex.assert_trees_all_equal(without.apply(segments=zeros), without.apply(segments=zeros + 1))


@pytest.mark.parametrize("position", ["absolute", "tupe_a"])
def test_notes_take_their_share_of_the_input(
    model: Callable[..., Any], with_value: Callable[..., Any], position: str
) -> None:
    m = model(position=position)
    vectors: Any = np.random.default_rng(5).normal(size=(*m.tokens.shape, 8)).astype(np.float32)
    zeros: Any = np.zeros(m.tokens.shape, np.float32)
    nothing = m.apply(notes=InputNotes(vectors, zeros))
    chex.assert_trees_all_close(nothing, m.apply(), rtol=1e-5, atol=1e-5)

    # A weight of 1 hides the word.
    notes = InputNotes(vectors, with_value(zeros, (0, 2), 1))
    hidden = m.apply(tokens=with_value(m.tokens, (0, 2), (m.tokens[0, 2] + 1) % 23), notes=notes)
    chex.assert_trees_all_equal(hidden, m.apply(notes=notes))
    assert np.abs(hidden - m.apply())[0].max() > 1e-2

    # A quarter of note and three quarters of word is what a token of that very vector gives.
    tokens = np.where(m.tokens == 22, 21, m.tokens)
    table = m.params["embedder"]["tokens"]
    place = m.params["embedder"].get("positions", np.zeros((9, 8)))[3]  # added again to that token
    table = with_value(table, 22, 0.75 * table[tokens[1, 3]] + 0.25 * vectors[1, 3] - 0.25 * place)
    params = m.params | {"embedder": m.params["embedder"] | {"tokens": table}}
    mixed = m.apply(tokens=tokens, notes=InputNotes(vectors, with_value(zeros, (1, 3), 0.25)))
    found = m.apply(params=params, tokens=with_value(tokens, (1, 3), 22))
    chex.assert_trees_all_close(found, mixed, rtol=1e-5, atol=1e-5)


def test_traced_once_for_batches_of_one_shape(model: Callable[..., Any]) -> None:
    m = model(position="tupe_r")
    chex.clear_trace_counter()
    apply = jax.jit(chex.assert_max_traces(m.encoder.apply, n=1))
    first = apply(m.params, m.tokens, padding=m.padding)
    second = apply(m.params, m.tokens[::-1], padding=m.padding[::-1])
    chex.assert_trees_all_close(first, second[::-1], rtol=1e-6, atol=1e-6)
    chex.assert_shape(first, (3, 7, 8))


def test_init() -> None:
    config = ModelConfig(position="tupe_r", layers=3, hidden=64, heads=4, ffn=128, segments=2, embedding=48)
    config.initializer_range = 0.07
    params = jax.device_get(jax.jit(Encoder(config, 500, 100).init)(jax.random.key(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if name.endswith("['scale']"):
            assert (leaf == 1).all(), name
        elif name.endswith("['bias']"):
            assert (leaf == 0).all(), name
        else:
            spread = 4 * 0.07 / (2 * leaf.size) ** 0.5  # four standard errors
            assert abs(leaf.std() - 0.07) < spread, name
    kernel = params["layers"]["ffn_in"]["kernel"]
    assert kernel.shape == (3, 64, 128)
    assert not np.array_equal(kernel[0], kernel[1])  # each layer draws its own


@pytest.mark.parametrize("position", ["tupe_a", "tupe_r"])
def test_init_is_the_same_for_every_attention_and_calls_no_kernel(
    position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *_, **__: pytest.fail("called"))
    config = ModelConfig(position=position, layers=2, hidden=8, heads=2, ffn=12)
    plain, *others = (
        jax.jit(Encoder(dataclasses.replace(config, attention=attention), 23, 9).init)(jax.random.key(0))
        for attention in ("plain", "blockwise", "fused")
    )
    for other in others:
        chex.assert_trees_all_equal(other, plain)


def test_auto_writes_few_layers_out_on_a_cpu(model: Callable[..., Any]) -> None:
    def scans(layers: int) -> int:
        config = dataclasses.replace(model().encoder.config, layers=layers, layer_loop="auto")
        encoder = Encoder(config, 23, 9)
        params = jax.eval_shape(encoder.init, jax.random.key(0))
        tokens = jnp.zeros((1, 4), jnp.int32)
        return str(jax.make_jaxpr(lambda p: encoder.apply(p, tokens, padding=tokens > 0))(params)).count("scan[")

    assert (scans(12), scans(13)) == (0, 1)

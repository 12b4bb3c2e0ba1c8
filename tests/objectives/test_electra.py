"""ELECTRA: what counts as replaced, its loss by hand, what is shared and what learns from what, its FLOPs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpretrain.config import POSITIONS, Config, validate
from jaxpretrain.data.tokenizer import CLS, MASK, NEITHER, PAD, SEP
from jaxpretrain.models.position import added_to_input
from jaxpretrain.objectives import build
from jaxpretrain.objectives.electra import ELECTRA

VOCAB, ROWS, LENGTH = 14, 8, 16


def small(position: str = "absolute", **fields: Any) -> Config:
    """Fields of `objective`."""
    config = Config()
    config.data.sequence_length = LENGTH
    config.model = dataclasses.replace(
        config.model, layers=1, hidden=16, ffn=32, dropout=0.0, attention_dropout=0.0, initializer_range=0.3
    )
    config.model.position = position
    defaults = {"name": "electra", "mask_share": 1.0, "random_share": 0.0, "mask_rate": 0.4}
    config.objective = dataclasses.replace(config.objective, **(defaults | fields))
    validate(config)
    return config


def batch_of(seed: int = 0) -> dict[str, Array]:
    """Some texts are padded, one so far that it has fewer words than predictions."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(NEITHER + 1, VOCAB, (ROWS, LENGTH), dtype=np.int32)
    tokens[:, 0] = CLS
    for row in range(ROWS):
        end = LENGTH - (row % 4) * 4
        tokens[row, end - 1], tokens[row, end:] = SEP, PAD
    return {"tokens": jnp.asarray(tokens), "rows": jnp.arange(ROWS, dtype=jnp.int32)}


def built(position: str = "absolute", **fields: Any) -> tuple[ELECTRA, Any, dict[str, Array]]:
    """Objective, parameters, corrupted batch. The generator writes ordinary pieces alone, so that some are right."""
    objective = build(small(position, **fields), VOCAB)
    assert isinstance(objective, ELECTRA)
    params = jax.jit(objective.init)(jax.random.key(0))
    bias = params["generator_head"]["bias"].at[: NEITHER + 1].set(-30.0)
    params = {**params, "generator_head": {**params["generator_head"], "bias": bias}}
    return objective, params, jax.jit(objective.corrupt)(batch_of(), jax.random.key(1))


def watch(objective: ELECTRA) -> Any:
    """The loss as a jitted function that also gives the discriminator's input."""
    seen: list[Array] = []
    encoder = objective.encoder

    @dataclasses.dataclass
    class Spy:
        def apply(self, params: Any, tokens: Array, **kw: Any) -> Array:
            seen.append(tokens)
            return encoder.apply(params, tokens, **kw)

    @jax.jit
    def run(params: Any, batch: dict[str, Array]) -> tuple[Array, Any, Array]:
        seen.clear()
        objective.encoder = Spy()  # type: ignore[assignment]
        loss, aux = objective.loss(params, batch, None, None)
        objective.encoder = encoder
        return loss, aux, seen[0]

    return run


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


# --- the loss ---


@pytest.mark.parametrize("mask_share", [1.0, 0.5])
def test_loss_and_metrics_are_those_of_the_scores(mask_share: float):
    objective, params, batch = built(mask_share=mask_share, random_share=(1 - mask_share) / 2, loss_weight=7.0)
    loss, aux, inputs = watch(objective)(params, batch)
    tokens, inputs = np.asarray(batch["tokens"]), np.asarray(inputs)
    scores = np.asarray(objective.head.apply({"params": params["head"]}, aux.contexts), np.float64)
    logits = np.asarray(objective.fill(params, batch["inputs"], batch["positions"]), np.float64)
    chosen = np.zeros(tokens.shape, bool)
    mlm, filled = [], []
    for row in range(ROWS):
        ordinary = (tokens[row] > NEITHER).sum()
        for i, place in enumerate(batch["positions"][row].tolist()[:ordinary]):
            chosen[row, place] = True
            log_odds = log_softmax(logits[row, i])
            mlm.append(-log_odds[tokens[row, place]])
            filled.append(log_odds.argmax() == tokens[row, place])

    losses, right, recalled = [], [], []
    for row, place in np.ndindex(tokens.shape):
        if tokens[row, place] == PAD:
            continue
        replaced, score = inputs[row, place] != tokens[row, place], scores[row, place]
        losses.append(np.log1p(np.exp(-score if replaced else score)))
        right.append((score > 0) == replaced)
        if replaced:
            recalled.append(score > 0)
    pairs = []
    for row in range(ROWS):
        here = tokens[row] != PAD
        mark, score = (inputs[row] != tokens[row])[here], scores[row][here]
        pairs += (score[mark][:, None] > score[~mark]).ravel().tolist()
    expected = {
        "mlm_loss": (np.sum(mlm), len(mlm)),
        "mlm_accuracy": (np.sum(filled), len(mlm)),
        "mlm_probability": (np.exp(-np.array(mlm)).sum(), len(mlm)),
        "discriminator_loss": (np.sum(losses), len(losses)),
        "discriminator_accuracy": (np.sum(right), len(losses)),
        "discriminator_recall": (np.sum(recalled), len(recalled)),
        "discriminator_auc": (np.sum(pairs), len(pairs)),
        "replaced_share": (len(recalled), len(losses)),
    }
    assert set(aux.metrics) == set(expected)
    for name, pair in expected.items():
        np.testing.assert_allclose(aux.metrics[name], pair, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, np.mean(mlm) + 7 * np.mean(losses), rtol=1e-5)

    # What is drawn stands at chosen places alone; a guess that is right is no replacement.
    np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
    lucky = chosen & (inputs == tokens)
    assert lucky.any()
    assert len(recalled) == chosen.sum() - lucky.sum() > 10
    assert not (inputs == MASK).any()


@pytest.mark.parametrize("certain", [True, False])
def test_a_right_guess_is_an_original(certain: bool):
    """A generator that knows all the answers leaves nothing to find."""
    objective, params, batch = built()
    word = NEITHER + 2
    tokens = jnp.where(batch["tokens"] > NEITHER, word, batch["tokens"])
    batch = jax.jit(objective.corrupt)({**batch_of(), "tokens": tokens}, jax.random.key(1))
    bias = params["generator_head"]["bias"].at[word if certain else word + 1].set(1e4)
    params = {**params, "generator_head": {**params["generator_head"], "bias": bias}}
    _, aux, inputs = watch(objective)(params, batch)
    replaced, present = aux.metrics["replaced_share"]
    assert present == (tokens != PAD).sum()
    if certain:
        np.testing.assert_array_equal(inputs, tokens)
        assert replaced == 0
    else:
        assert replaced == (np.asarray(batch["weights"]) > 0).sum()


@pytest.mark.parametrize(("temperature", "draws_the_best"), [(1e-4, True), (1.0, False), (1e4, False)])
def test_temperature(temperature: float, draws_the_best: bool):
    objective, params, batch = built(temperature=temperature)
    _, _, inputs = watch(objective)(params, batch)
    best = np.asarray(objective.fill(params, batch["inputs"], batch["positions"])).argmax(-1)
    drawn = np.take_along_axis(np.asarray(inputs), np.asarray(batch["positions"]), 1)
    same = (drawn == best)[np.asarray(batch["weights"]) > 0]
    assert same.all() == draws_the_best
    if temperature > 1:  # any piece at all, special ones too
        assert (drawn[np.asarray(batch["weights"]) > 0] <= NEITHER).any()


def test_padding_has_no_part():
    objective, params, batch = built()
    run = watch(objective)
    padding = batch["tokens"] == PAD
    one = run(params, batch)
    other = run(params, {**batch, "inputs": jnp.where(padding, NEITHER + 1, batch["inputs"])})
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    assert (np.asarray(one[2])[padding] == PAD).all()
    empty = {**batch_of(), "tokens": batch["tokens"].at[3].set(PAD)}
    loss, aux, _ = run(params, jax.jit(objective.corrupt)(empty, jax.random.key(1)))
    assert np.isfinite(loss)
    assert aux.metrics["discriminator_loss"][1] == (np.asarray(empty["tokens"]) != PAD).sum()


def test_micro_batches_add_up():
    objective, params, batch = built()
    run = watch(objective)
    whole = run(params, batch)[0]
    parts = [run(params, jax.tree.map(lambda x, part=part: x[part], batch))[0] for part in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)
    assert abs(parts[0] - parts[1]) > 1e-3


def test_draws_follow_the_row_of_the_global_batch():
    objective, params, batch = built()
    run = watch(objective)
    whole = np.asarray(run(params, batch)[2])
    half = np.asarray(run(params, jax.tree.map(lambda x: x[4:], batch))[2])
    np.testing.assert_array_equal(half, whole[4:])
    other = jax.jit(objective.corrupt)(batch_of(), jax.random.key(2))
    assert (np.asarray(run(params, other)[2]) != whole).any()


# --- what is shared, and what learns from what ---


@pytest.mark.parametrize("position", POSITIONS)
def test_tables_are_shared_where_positions_are_added(position: str):
    config = small(position)
    config.model.segments = 2
    params = jax.eval_shape(build(config, VOCAB).init, jax.random.key(0))
    main, generator = params["encoder"]["embedder"], params["generator"]["embedder"]
    added = position in ("absolute", "relative")
    assert added == added_to_input(position)
    assert set(main) == {"tokens", "segments", "norm", *(["positions"] if added else [])}
    assert set(generator) == {"norm", "projection"}
    # Positions that are not added, and relative ones, are each network's own.
    own = {"absolute": set(), "relative": {"relative"}}.get(position, {"table", "norm", "query", "key"})
    assert set(params["generator"]["positions"]) == own | ({"relative"} if position == "tupe_r" else set())
    if "table" in own:
        assert params["generator"]["positions"]["table"].shape[-1] == 8
        assert params["encoder"]["positions"]["table"].shape[-1] == 16


@pytest.mark.parametrize(("divider", "layers"), [(1, 0), (2, 0), (2, 3)])
def test_the_generator_is_narrower(divider: int, layers: int):
    objective = build(small(divider=divider, auxiliary_layers=layers), VOCAB)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    block = params["generator"]["layers"]
    width = 16 // divider
    assert block["ffn_in"]["kernel"].shape == (layers or 1, width, 32 // divider)
    assert block["attention"]["qkv"]["kernel"].shape == (layers or 1, width, 3, 2 // divider, 8)
    assert ("projection" in params["generator"]["embedder"]) == (divider > 1)
    assert params["generator_head"]["dense"]["kernel"].shape == (width, 16)
    assert params["generator_head"]["bias"].shape == (VOCAB,)


@pytest.mark.parametrize("position", ["absolute", "tupe_a"])
def test_each_network_learns_from_its_own_loss_and_the_tables_from_both(position: str):
    objective, params, batch = built(position)

    def gradient(weight: float) -> dict[str, np.ndarray]:
        objective.config.objective.loss_weight = weight
        grads = jax.jit(jax.grad(lambda p: objective.loss(p, batch, None, None)[0]))(params)
        return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(grads)}

    alone, both = gradient(0.0), gradient(50.0)
    shared = [f"['encoder']['embedder']['{name}']" for name in ("tokens", "positions")]
    shared = shared if position == "absolute" else shared[:1]
    for name in both:
        if name.startswith("['generator"):  # none through sampling
            np.testing.assert_allclose(both[name], alone[name], rtol=1e-4, atol=1e-6, err_msg=name)
        elif name in shared:
            assert np.abs(alone[name]).max() > 1e-4, name
            assert np.abs(both[name] - alone[name]).max() > 1e-4, name
        else:
            assert not alone[name].any(), name
    assert set(shared) <= set(both)
    assert all(alone[name].any() for name in alone if name.startswith("['generator']") and "ffn" in name)
    assert all(both[name].any() for name in both if name.startswith(("['head']", "['encoder']['layers']['ffn")))


def test_fill_is_the_generators():
    """It sees [MASK]s; the discriminator never does."""
    objective, params, batch = built()
    before = objective.fill(params, batch["inputs"], batch["positions"])
    encoder = {**params["encoder"], "layers": jax.tree.map(jnp.zeros_like, params["encoder"]["layers"])}
    changed = {**params, "encoder": encoder}
    np.testing.assert_array_equal(objective.fill(changed, batch["inputs"], batch["positions"]), before)

"""Masked language modelling: the loss by hand, labels that do not leak, padding that weighs nothing."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config import POSITIONS, Config
from jaxpretrain.data.masking import FIRST_ORDINARY
from jaxpretrain.data.tokenizer import CLS, MASK, PAD, SEP
from jaxpretrain.objectives import OBJECTIVES, build
from jaxpretrain.training.step import eval_step

VOCAB, ROWS, LENGTH = 208, 8, 16
UNIGRAM = jnp.log(jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(VOCAB)), jnp.float32))


def small(position: str = "absolute", layers: int = 1) -> Config:
    config = Config()
    config.data.sequence_length, config.data.vocab_size = LENGTH, VOCAB
    config.model.position = position
    config.model.layers, config.model.hidden, config.model.ffn = layers, 32, 64
    return config


def tokens_of(seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(FIRST_ORDINARY, VOCAB, (ROWS, LENGTH), dtype=np.int32)
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    return tokens


def batch_of(tokens: np.ndarray) -> dict[str, jax.Array]:
    rows = jnp.arange(len(tokens), dtype=jnp.int32)
    return {"tokens": jnp.asarray(tokens), "words": jnp.zeros_like(tokens), "rows": rows}


@dataclass(frozen=True)
class Compiled:
    """An objective's functions as the step runs them, and parameters for it."""

    objective: Any
    params: Any
    corrupt: Any
    loss: Any


def compiled(position: str = "absolute") -> Compiled:
    objective = build(small(position), VOCAB)
    params = jax.jit(objective.init)(jax.random.key(0))
    return Compiled(objective, params, jax.jit(objective.corrupt), jax.jit(objective.loss))


@pytest.fixture(scope="module")
def plain() -> Compiled:
    return compiled()


def test_every_objective_keeps_the_interface():
    for name in OBJECTIVES:
        config = small()
        config.objective.name = name
        objective = build(config, VOCAB)
        params = jax.eval_shape(objective.init, jax.random.key(0))
        batch = jax.eval_shape(objective.corrupt, batch_of(tokens_of()), jax.random.key(0))
        loss, aux = jax.eval_shape(objective.loss, params, batch, None, jax.random.key(0))
        assert loss.shape == ()
        assert aux.contexts.shape == (ROWS, LENGTH, 32)
        assert objective.headline in aux.metrics
        assert all(x.shape == weight.shape == () for x, weight in aux.metrics.values())
        assert set(params["encoder"]) == {"embedder", "positions", "layers"}


def test_loss_and_metrics_are_those_of_the_logits(plain: Compiled):
    batch = plain.corrupt(batch_of(tokens_of()), jax.random.key(1))
    loss, aux = plain.loss(plain.params, batch, None, None)
    padding = jnp.zeros((ROWS, LENGTH), bool)
    contexts = jax.jit(plain.objective.encoder.apply)(plain.params["encoder"], batch["inputs"], padding=padding)
    logits = np.asarray(jax.jit(plain.objective.logits)(plain.params, contexts), np.float64)
    losses, right = [], []
    for row, positions in enumerate(batch["positions"]):
        for position in positions.tolist():
            label, scores = int(batch["tokens"][row, position]), logits[row, position]
            losses.append(np.log(np.exp(scores).sum()) - scores[label])
            right.append(scores.argmax() == label)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert aux.metrics["mlm_loss"][0] == pytest.approx(np.sum(losses), rel=1e-5)
    assert aux.metrics["mlm_accuracy"] == (sum(right), len(losses))


@pytest.mark.parametrize("position", POSITIONS)
def test_a_masked_label_never_leaks(position: str):
    m = compiled(position)
    one = m.corrupt(batch_of(tokens_of()), jax.random.key(1))
    hidden = one["inputs"] == MASK
    assert hidden.sum() > 8
    words = jnp.where(one["tokens"] > FIRST_ORDINARY, one["tokens"] - 1, one["tokens"] + 1)
    other = m.corrupt(batch_of(jnp.where(hidden, words, one["tokens"])), jax.random.key(1))
    assert (one["labels"] != other["labels"]).any()
    (loss_one, aux_one), (loss_other, aux_other) = (m.loss(m.params, batch, None, None) for batch in (one, other))
    np.testing.assert_array_equal(aux_one.contexts, aux_other.contexts)
    assert loss_one != loss_other


def test_a_loss_needs_its_label(plain: Compiled):
    """The counter-check of the test above: a label that is seen does change the contexts."""
    batch = plain.corrupt(batch_of(tokens_of()), jax.random.key(1))
    hidden, seen = (
        plain.loss(plain.params, {**batch, "inputs": x}, None, None)[1].contexts
        for x in (batch["inputs"], batch["tokens"])
    )
    assert np.abs(hidden - seen).max() > 1e-3


def test_evaluation_of_padding_rows_weighs_nothing(plain: Compiled):
    tokens = tokens_of()
    padded = np.concatenate([tokens, np.full_like(tokens, PAD)])
    options = {"objective": plain.objective, "config": small(), "mask_key": jax.random.key(5)}
    evaluate = jax.jit(lambda batch: eval_step(plain.params, None, batch, UNIGRAM, **options))
    alone, with_padding = evaluate(batch_of(tokens)), evaluate(batch_of(padded))
    assert set(alone) >= {"mlm_loss", "mlm_accuracy", "unigram_loss"}
    for name, (total, weight) in alone.items():
        assert weight == (0 if "near_rare_words" in name else ROWS * 2), name
        assert with_padding[name][1] == weight
        np.testing.assert_allclose(with_padding[name][0], total, rtol=1e-5)


def test_a_batch_of_padding_alone_has_no_loss_and_no_nan(plain: Compiled):
    batch = plain.corrupt(batch_of(np.full((ROWS, LENGTH), PAD, np.int32)), jax.random.key(1))
    gradient = jax.jit(jax.value_and_grad(plain.objective.loss, has_aux=True))
    (loss, aux), grads = gradient(plain.params, batch, None, jax.random.key(2))
    assert loss == 0
    assert aux.metrics["mlm_loss"] == (0, 0)
    assert all((x == 0).all() for x in jax.tree.leaves(grads))


def test_unigram_loss_is_that_of_the_labels(plain: Compiled):
    key, batch = jax.random.key(5), batch_of(tokens_of())
    evaluate = partial(eval_step, objective=plain.objective, config=small(), mask_key=key)
    total, weight = jax.jit(evaluate)(plain.params, None, batch, UNIGRAM)["unigram_loss"]
    labels = plain.corrupt(batch, key)["labels"]
    assert float(total / weight) == pytest.approx(float(-UNIGRAM[labels].mean()), rel=1e-5)

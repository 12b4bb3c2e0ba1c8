"""Notes as input: shown where the word is seen and nowhere else, and no gradient into the table."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpretrain import notes as notes_lib
from jaxpretrain.config import Config
from jaxpretrain.data.tokenizer import MASK, NEITHER, PAD
from jaxpretrain.models.encoder import InputNotes
from jaxpretrain.notes import Notes
from jaxpretrain.objectives import OBJECTIVES, build
from tests.notes.conftest import LENGTH, ROWS, VOCAB, input_oracle, small, spans, texts


@pytest.mark.parametrize("capacity", [3, 100])
def test_lookup_gives_a_note_where_the_whole_word_is_seen(capacity: int):
    config = replace(Config().notes, capacity=capacity, weight=0.25)
    table = np.random.default_rng(1).normal(size=(ROWS, 8)).astype(np.float32)
    notes = Notes(table=jnp.asarray(table), written=jnp.zeros(ROWS, jnp.int32))

    @jax.jit
    def run(words: Array, tokens: Array, inputs: Array) -> tuple[InputNotes, Array]:
        occurrences = notes_lib.find(words, capacity)
        shown = notes_lib.intact(occurrences, tokens, inputs)
        return notes_lib.lookup(notes, occurrences, tokens, inputs, config), shown

    for seed in range(4):
        batch, rng = texts(seed), np.random.default_rng(seed)
        tokens, words = batch["tokens"], batch["words"]
        changed = rng.random(tokens.shape) < 0.15
        inputs = np.where(changed, rng.choice([MASK, 9, 11], tokens.shape), tokens).astype(np.int32)
        found, shown = run(words, tokens, inputs)
        weight, vectors = input_oracle(table, words, tokens, inputs, config)
        np.testing.assert_allclose(found.weight, weight, rtol=1e-6)
        np.testing.assert_array_equal(np.where(weight[..., None] > 0, found.vectors, 0), vectors.astype(np.float32))
        whole = [[(tokens[r, s:t] == inputs[r, s:t]).all() for _, s, t in spans(words[r])][:capacity] for r in range(8)]
        assert shown.sum() == sum(map(sum, whole))
        assert 0 < shown.sum() < sum(map(len, whole))


@dataclass
class Spy:
    """An encoder that keeps what it is given and what it makes of it."""

    encoder: Any
    calls: list[tuple[Array, InputNotes, Array]]

    def apply(self, params: Any, tokens: Array, **kw: Any) -> Array:
        out = self.encoder.apply(params, tokens, **kw)
        self.calls.append((tokens, kw["notes"], out))
        return out


NETWORKS = [("mlm", "encoder"), ("electra", "generator"), ("electra", "encoder")]
NETWORKS += [("mcbert", "controller"), ("mcbert", "encoder")]
PIECES = NEITHER + 5  # four ordinary ones: many a draw is the original


@pytest.mark.parametrize(("name", "network"), NETWORKS)
def test_a_network_that_does_not_see_a_word_is_not_told(name: str, network: str):
    """Whether a note is there follows from the input alone, and one that is not there changes nothing."""
    config = small(objective__name=name, train__batch_size=96, notes__auxiliary_reads=True, objective__mask_rate=0.4)
    config.notes.capacity = LENGTH
    if name != "mlm":
        config.objective.mask_share, config.objective.random_share = 1.0, 0.0
    objective: Any = build(config, PIECES)
    params = jax.jit(objective.init)(jax.random.key(0))
    batch = texts(5, 96, rows=400, pieces=PIECES)
    tokens, words = batch["tokens"], batch["words"]
    corrupted = jax.jit(objective.corrupt)({**batch, "occurrences": notes_lib.find(words, LENGTH)}, jax.random.key(1))
    calls: list[tuple[Array, InputNotes, Array]] = []
    setattr(objective, network, Spy(getattr(objective, network), calls))

    @jax.jit
    def run(table: Array) -> tuple[Array, InputNotes, Array]:
        calls.clear()
        objective.loss(params, corrupted, Notes(table=table, written=jnp.zeros(len(table), jnp.int32)), None)
        return calls[0]

    table = np.random.default_rng(6).normal(size=(400, 16)).astype(np.float32)
    seen, found, out = map(jax.device_get, run(jnp.asarray(table)))
    weight, vectors = input_oracle(table, words, tokens, seen, config.notes)
    np.testing.assert_array_equal(found.weight, weight.astype(np.float32))
    width = vectors.shape[-1]
    if network != "controller":  # which reads them through its map
        np.testing.assert_array_equal(np.where(weight[..., None] > 0, found.vectors[..., :width], 0), vectors)

    # A chosen place that shows the original, kept or drawn, has its note like any other.
    chosen = np.zeros(tokens.shape, bool)
    np.put_along_axis(chosen, np.asarray(corrupted["positions"]), np.asarray(corrupted["weights"]) > 0, 1)
    again = chosen & (seen == tokens) & (words > 0)
    changed = (seen != tokens) & (words > 0)
    assert changed.sum() > 10
    assert (weight[changed] == 0).all()
    if network == "encoder":
        assert (weight[again] > 0).sum() > 3
    assert (weight[~chosen & (words > 0)] > 0).sum() > 10

    shown = {
        word for r, marks in enumerate(words) for word, s, t in spans(marks) if (seen[r, s:t] == tokens[r, s:t]).all()
    }
    hidden = {word for marks in words for word, _, _ in spans(marks)} - shown
    assert len(hidden) > 5
    other = table.copy()
    other[list(hidden)] = 9.0
    np.testing.assert_array_equal(run(jnp.asarray(other))[2], out)
    # The counter-check: notes that are shown do count.
    other = table.copy()
    other[list(shown)] = 9.0
    assert (np.asarray(run(jnp.asarray(other))[2]) != out).any()


@pytest.mark.parametrize(("name", "network"), [("electra", "generator"), ("mcbert", "controller")])
def test_the_second_network_reads_no_notes_unless_told_to(name: str, network: str):
    objective: Any = build(small(objective__name=name, train__batch_size=8), VOCAB)
    params = jax.jit(objective.init)(jax.random.key(0))
    batch = texts(2)
    batch["occurrences"] = notes_lib.find(batch["words"], 6)
    corrupted = jax.jit(objective.corrupt)(batch, jax.random.key(1))
    calls: list[tuple[Array, InputNotes, Array]] = []
    setattr(objective, network, Spy(getattr(objective, network), calls))

    @jax.jit
    def run(table: Array) -> tuple[Any, Array, Array]:
        calls.clear()
        aux = objective.loss(params, corrupted, Notes(table, jnp.zeros(ROWS, jnp.int32)), None)[1]
        [(_, notes, out)] = calls
        return notes, out, aux.contexts

    table = jax.random.normal(jax.random.key(3), (ROWS, 16))
    (notes, out, contexts), (_, same, others) = run(table), run(-table)
    assert notes is None
    np.testing.assert_array_equal(out, same)
    assert (contexts != others).any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_gradient_flows_into_the_table(name: str):
    config = small(objective__name=name, train__batch_size=8, notes__auxiliary_reads=True)
    objective = build(config, VOCAB)
    params = jax.jit(objective.init)(jax.random.key(0))
    batch = texts(2)
    corrupted = jax.jit(objective.corrupt)(
        {**batch, "occurrences": notes_lib.find(batch["words"], 6)}, jax.random.key(1)
    )

    @jax.jit
    def loss_and_gradient(table: Array) -> tuple[Array, Array]:
        def loss(table: Array) -> Array:
            notes = Notes(table=table, written=jnp.zeros(ROWS, jnp.int32))
            value, aux = objective.loss(params, corrupted, notes, None)
            padding = corrupted["tokens"] == PAD
            return value + notes_lib.contexts_of(aux.contexts, padding, corrupted["occurrences"], 3).sum()

        return jax.value_and_grad(loss)(table)

    table = jax.random.normal(jax.random.key(3), (ROWS, 16))
    value, gradient = loss_and_gradient(table)
    np.testing.assert_array_equal(gradient, 0)
    assert loss_and_gradient(2 * table)[0] != value


def test_contexts_ask_nothing_of_the_encoder():
    batch = texts(2)
    occurrences = notes_lib.find(jnp.asarray(batch["words"]), 6)
    contexts = jnp.ones((8, LENGTH, 4))
    gradient = jax.jit(jax.grad(lambda x: notes_lib.contexts_of(x, batch["tokens"] == PAD, occurrences, 3).sum()))
    np.testing.assert_array_equal(gradient(contexts), 0)


@pytest.mark.usefixtures("x64")
def test_gradients_past_the_notes_are_those_of_differences():
    """Of the loss by the parameters, where a part λ of the input is a note; and by λ and the note themselves."""
    config = small(train__batch_size=8, notes__weight=0.3)
    config.model.dtype = "float64"
    objective = build(config, VOCAB)
    batch, rng = texts(4), np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), jax.jit(objective.init)(jax.random.key(0)))
    corrupted = jax.jit(objective.corrupt)(
        {**batch, "occurrences": notes_lib.find(batch["words"], 6)}, jax.random.key(1)
    )
    notes = Notes(table=jnp.asarray(rng.normal(size=(ROWS, 16))), written=jnp.zeros(ROWS, jnp.int32))
    loss = jax.jit(lambda params: objective.loss(params, corrupted, notes, None)[0])
    check_gradient(loss, params, rng)

    padding = jnp.asarray(batch["tokens"] == PAD)
    weight, vectors = input_oracle(
        np.asarray(notes.table), batch["words"], batch["tokens"], np.asarray(corrupted["inputs"]), config.notes
    )

    @jax.jit
    def by_notes(notes: InputNotes) -> Array:
        x = objective.encoder.apply(params["encoder"], corrupted["inputs"], padding=padding, notes=notes)
        return jnp.sin(x + jnp.arange(16)).sum()

    check_gradient(by_notes, InputNotes(vectors=jnp.asarray(vectors), weight=jnp.asarray(weight)), rng)


def check_gradient(function: Any, at: Any, rng: np.random.Generator) -> None:
    """Along random directions, by central differences."""
    gradient = jax.jit(jax.grad(function))(at)
    for _ in range(3):
        way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), at)
        up, down = (function(jax.tree.map(lambda x, w, s=s: x + s * 1e-6 * w, at, way)) for s in (1, -1))
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, w: (g * w).sum(), gradient, way)))
        np.testing.assert_allclose((up - down) / 2e-6, along, rtol=1e-6, atol=1e-7)

"""Notes in the step: the oracle's, on any number of devices and parts, in one table; evaluation leaves them alone."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpretrain import notes as notes_lib
from jaxpretrain.data.tokenizer import MASK, PAD
from jaxpretrain.models.encoder import InputNotes
from jaxpretrain.objectives import OBJECTIVES, build
from jaxpretrain.objectives.mlm import MLM
from jaxpretrain.training.step import eval_step
from tests.notes.conftest import ROWS, VOCAB, input_oracle, oracle, small, spans, start, tables_of, texts
from tests.training.conftest import put


class Watched(MLM):
    """Shows what the encoder saw and made of it."""

    def loss(self, params: Any, batch: Any, notes: Any, key: Any) -> tuple[Array, Any]:
        loss, aux = super().loss(params, batch, notes, key)
        return loss, replace(aux, metrics=aux.metrics | {"watched": (aux.contexts, batch["inputs"])})


@pytest.fixture(scope="module")
def reference() -> list[np.ndarray]:
    """Tables of two steps on one device, whole batch."""
    config = small()
    return tables_of(start(config, objective=Watched(config, VOCAB)), 2)


@pytest.mark.parametrize("repeats", ["mean", "compound"])
def test_the_steps_notes_are_the_oracles(repeats: str, reference: list[np.ndarray]):
    config = small(notes__repeats=repeats)
    run = start(config, objective=Watched(config, VOCAB))
    batch, before = texts(0, 32), np.array(run.state.notes.table)
    params = jax.tree.map(jnp.copy, run.state.params)
    state, metrics = run.step(run.state, jax.tree.map(jnp.asarray, batch))
    contexts, inputs = map(np.asarray, metrics["metrics"]["watched"])
    padding = batch["tokens"] == PAD

    # What the encoder sees, from the oracle: words masked, kept and changed, with and without a note.
    assert ((inputs == MASK) & (batch["words"] > 0)).sum() > 10
    weight, vectors = input_oracle(before, batch["words"], batch["tokens"], inputs, config.notes)
    seen = InputNotes(vectors=jnp.asarray(vectors, jnp.float32), weight=jnp.asarray(weight, jnp.float32))
    again = jax.jit(run.objective.encoder.apply)(
        params["encoder"], jnp.asarray(inputs), padding=jnp.asarray(padding), notes=seen
    )
    np.testing.assert_allclose(contexts, again, atol=1e-5)

    expected, met = oracle(before.astype(float), batch["words"], contexts.astype(float), padding, config.notes)
    np.testing.assert_allclose(state.notes.table, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(state.notes.written == 1), sorted(met))
    each = {name: metrics["metrics"][name] for name in ("notes_read", "notes_written", "notes_overflow")}
    counts = {name: float(total) for name, (total, _) in each.items()}
    assert {float(weight) for _, weight in each.values()} == {float(len(batch["tokens"]))}  # per sequence
    found = [list(spans(marks)) for marks in batch["words"]]
    shown = [(inputs[r, s:t] == batch["tokens"][r, s:t]).all() for r in range(32) for _, s, t in found[r][:6]]
    overflow = sum(max(0, len(row) - 6) for row in found)
    assert counts == {
        "notes_read": sum(shown),
        "notes_written": sum(map(len, met.values())),
        "notes_overflow": overflow,
    }
    assert 0 < sum(shown) < len(shown)
    assert overflow > 0
    if repeats == "mean":
        np.testing.assert_allclose(state.notes.table, reference[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("accumulation", "devices", "sharded"),
    [
        (2, 1, False),
        (4, 1, True),
        (1, 2, True),
        (4, 2, False),
        (1, 8, False),
        (2, 8, False),
        (1, 8, True),
        (4, 8, True),
    ],
)
def test_parts_and_devices_do_not_matter(accumulation: int, devices: int, sharded: bool, reference: list[np.ndarray]):
    config = small(train__accumulation=accumulation, notes__sharded=sharded, sharding__fsdp=min(devices, 2))
    run = start(config, devices)
    table = run.state.notes.table
    assert table.addressable_shards[0].data.size == table.size // (devices if sharded else 1)
    tables = tables_of(run, 2)
    np.testing.assert_array_equal(tables[0], reference[0])
    assert np.abs(tables[1] - tables[0]).max() > 1e-2
    for found, expected in zip(tables[1:], reference[1:], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_update_that_is_not_finite_writes_no_note():
    run = start(small())
    bias = run.state.params["head"]["bias"]
    head = {**run.state.params["head"], "bias": bias.at[7].set(jnp.nan)}
    state = replace(run.state, params={**run.state.params, "head": head})
    before = jax.tree.map(np.array, state.notes)
    state, metrics = run.step(state, jax.tree.map(jnp.asarray, texts(0, 32)))
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, state.notes, before)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_evaluation_reads_notes_and_leaves_them(name: str):
    config = small(objective__name=name, train__batch_size=8)
    objective = build(config, VOCAB)
    params = jax.jit(objective.init)(jax.random.key(0))
    notes = notes_lib.init(jax.random.key(1), ROWS, 16, 1.0)
    before = jax.tree.map(np.array, notes)
    evaluate = partial(eval_step, objective=objective, config=config, mask_key=jax.random.key(2))
    metrics = jax.jit(evaluate)(params, notes, texts(0), jnp.zeros(VOCAB))
    jax.tree.map(np.testing.assert_array_equal, notes, before)
    assert metrics["notes_read"][0] > 0
    assert metrics[objective.headline][0] != metrics[f"without_notes/{objective.headline}"][0]


def test_the_held_out_loss_near_rare_words_and_elsewhere():
    config = small(train__batch_size=16, notes__window=2, notes__capacity=3)
    objective: Any = build(config, VOCAB)
    params, notes = jax.jit(objective.init)(jax.random.key(0)), notes_lib.init(jax.random.key(1), ROWS, 16, 1.0)
    batch, key = texts(1, 16), jax.random.key(2)
    evaluate = partial(eval_step, objective=objective, config=config, mask_key=key)
    metrics = jax.jit(evaluate)(params, notes, batch, jnp.zeros(VOCAB))
    corrupted = jax.jit(objective.corrupt)({**batch, "occurrences": notes_lib.find(batch["words"], 3)}, key)
    contexts = jax.jit(objective.loss)(params, corrupted, notes, None)[1].contexts
    likelihood = np.asarray(jax.nn.log_softmax(jax.jit(objective.logits)(params, contexts)))

    losses: dict[str, list[float]] = {"near_rare_words": [], "elsewhere": []}
    for row, marks in enumerate(batch["words"]):
        words = list(spans(marks))[:3]
        for place, weight in zip(corrupted["positions"][row].tolist(), corrupted["weights"][row].tolist(), strict=True):
            near = any(start - 2 <= place < end + 2 for _, start, end in words)
            if weight > 0:
                group = losses["near_rare_words" if near else "elsewhere"]
                group.append(-likelihood[row, place, batch["tokens"][row, place]])
    for name, found in losses.items():
        total, count = metrics[f"mlm_loss_{name}"]
        assert count == len(found) > 9
        assert total == pytest.approx(np.sum(found), rel=1e-5)


@pytest.mark.parametrize(("devices", "sharded"), [(1, False), (8, False), (8, True)])
def test_the_table_is_updated_in_place(devices: int, sharded: bool):
    """No second table: not in the temporaries, not as a copy, not sent between devices."""
    config = small(notes__sharded=sharded, train__batch_size=16, model__hidden=64)
    optimized = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}  # as a user's run
    run = start(config, devices, rows=60_000, options=optimized)
    rows = len(run.state.notes.table) // (devices if sharded else 1)
    size = rows * 64 * 4
    memory = run.step.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2
    text = run.step.as_text()
    shape = rf"f32\[{rows},64\]"
    assert re.search(shape, text)
    assert not re.search(rf"= {shape}\S* (copy|all-reduce|all-gather|copy-start|concatenate)\(", text)
    table = run.state.notes.table
    run.step(run.state, put(run, texts(0, 16)))
    assert table.is_deleted()

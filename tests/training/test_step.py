"""The step: the same on any devices and in any micro-batches, never worse than before, compiled once."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config import POSITIONS
from jaxpretrain.data.masking import row_keys
from jaxpretrain.data.tokenizer import PAD
from jaxpretrain.training import sharding

ROUNDING = 2e-5  # relative, of losses after five float32 steps


def copy_of(tree):
    """On the host: what is donated is gone."""
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if is_key(x) else x), tree)


def put(batch):
    return jax.tree.map(jax.numpy.asarray, batch)


def is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# --- devices ---


@pytest.mark.usefixtures("shard_all")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("position", "spreads"),
    [("tupe_r", (1, 2, 8)), *((position, (2,)) for position in POSITIONS if position != "tupe_r")],
)
def test_eight_devices_learn_what_one_learns(small, start_run, position: str, spreads: tuple[int, ...]):
    layers = 2 if position == "tupe_r" else 1
    alone = start_run(small(model__position=position, model__layers=layers)).losses(5)
    assert len(set(alone)) == 5
    for fsdp in spreads:
        run = start_run(small(model__position=position, model__layers=layers, sharding__fsdp=fsdp), devices=8)
        np.testing.assert_allclose(run.losses(5), alone, rtol=ROUNDING)


@pytest.mark.usefixtures("shard_all")
def test_muon_on_eight_devices_learns_what_it_learns_on_one(small, start_run):
    alone = start_run(small(optim__name="muon")).losses(5)
    assert alone != start_run(small()).losses(5)
    spread = start_run(small(optim__name="muon", sharding__fsdp=2), devices=8).losses(5)
    np.testing.assert_allclose(spread, alone, rtol=ROUNDING)


@pytest.mark.usefixtures("shard_all")
def test_state_stays_spread_and_each_device_holds_its_part(small, start_run):
    run = start_run(small(sharding__fsdp=8), devices=8)
    state, _ = run.step(run.state, run.batch)
    for before, after in zip(jax.tree.leaves(run.shapes), jax.tree.leaves(state), strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, after.ndim)
    table = state.params["encoder"]["embedder"]["tokens"]
    assert table.addressable_shards[0].data.size == table.size / 8


@pytest.mark.usefixtures("shard_all")
def test_weights_are_gathered_and_activations_stay(small, start_run):
    config = small(sharding__fsdp=2, model__layer_loop="scan", data__sequence_length=24)
    run = start_run(config, devices=8)
    hlo = run.step.as_text()
    assert "all-to-all" not in hlo
    assert "collective-permute" not in hlo
    results = " ".join(re.findall(r"= (.*?) all-gather(?:-start)?\(", hlo))
    gathered = [tuple(map(int, shape.split(","))) for shape in re.findall(r"\w+\[([\d,]+)\]", results)]
    weights = {leaf.shape for leaf in jax.tree.leaves(run.shapes.params)}
    assert run.shapes.params["encoder"]["embedder"]["tokens"].shape in gathered
    assert not [shape for shape in gathered if shape not in weights]


def test_dropout_does_not_depend_on_the_devices(small, start_run):
    config = small(model__dropout=0.5)
    run = start_run(config)
    batch = run.objective.corrupt(run.batch, jax.random.key(1))

    def contexts(params, batch):
        return run.objective.loss(params, batch, None, jax.random.key(2))[1].contexts

    mesh = sharding.make_mesh(config)
    everywhere = jax.device_put(run.state.params, sharding.replicated(mesh))
    spread = jax.device_put(batch, sharding.batch_sharding(mesh))
    one = jax.jit(contexts)(run.state.params, batch)
    eight = jax.jit(contexts)(everywhere, spread)
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_allclose(one, jax.device_get(eight), atol=1e-5)


def test_dropout_differs_between_examples_and_steps(small, start_run):
    run = start_run(small(model__dropout=0.5))
    same = jax.tree.map(lambda x: jnp.repeat(x[:1], len(x), 0), run.objective.corrupt(run.batch, jax.random.key(1)))
    same["rows"] = run.batch["rows"]
    contexts = jax.jit(lambda key: run.objective.loss(run.state.params, same, None, key)[1].contexts)
    one, other = contexts(jax.random.key(2)), contexts(jax.random.key(3))
    assert len({row.tobytes() for row in np.asarray(one)}) == len(one)
    assert (np.abs(one - other) > 1e-3).any()
    assert len(set(jax.random.key_data(row_keys(jax.random.key(2), run.batch["rows"]))[:, 0].tolist())) == len(one)


# --- accumulation ---


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_add_up_to_the_whole_batch(small, start_run, count: int):
    whole, parts = start_run(small()), start_run(small(train__accumulation=count))
    short = jax.tree.map(np.array, whole.batch)
    short["tokens"][:5, 3:] = PAD  # fewer predictions: micro-batches of unequal weight
    state, state_parts = whole.state, parts.state
    for _ in range(2):
        state, metrics = whole.step(state, put(short))
        state_parts, metrics_parts = parts.step(state_parts, put(short))
        chex.assert_trees_all_close(metrics_parts, metrics, rtol=1e-4)
        # Adam divides by the gradient's size: where that is next to nothing, rounding is all there is.
        chex.assert_trees_all_close(state_parts.params, state.params, rtol=1e-3, atol=1e-4)


def test_micro_batches_on_many_devices(small, start_run):
    alone = start_run(small()).losses(3)
    spread = start_run(small(train__accumulation=2, sharding__fsdp=2), devices=8).losses(3)
    np.testing.assert_allclose(spread, alone, rtol=ROUNDING)


# --- what is never applied, what is given away, how often it compiles ---


def test_state_is_donated(small, start_run):
    run = start_run(small())
    before = [x for x in jax.tree.leaves(run.state) if x.ndim]
    run.step(run.state, run.batch)
    assert all(x.is_deleted() for x in before)


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_not_applied(small, start_run, fault: float):
    run = start_run(small())
    state = run.state
    head = {**state.params["head"], "bias": state.params["head"]["bias"].at[7].set(fault)}
    state = dataclasses.replace(state, params={**state.params, "head": head})
    before = copy_of(state)
    state, metrics = run.step(state, run.batch)
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, copy_of(state), before)


def test_a_finite_update_changes_every_parameter_and_counts(small, start_run):
    run = start_run(small(model__position="tupe_r", model__dropout=0.0))
    before = copy_of(run.state)
    state, metrics = run.step(run.state, run.batch)
    assert metrics["finite"]
    assert int(state.step) == 1
    after = copy_of(state)
    np.testing.assert_array_equal(after.rng, before.rng)
    for path, x in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.subtract, after.params, before.params)):
        assert x.any(), path


# --- learning ---


def test_loss_falls_on_a_repeated_batch(small, start_run):
    run = start_run(small(optim__learning_rate=3e-3, model__layers=1))
    state, losses = run.state, []
    for _ in range(100):
        state, metrics = run.step(state, run.batch)
        losses.append(float(metrics["metrics"]["loss"][0]))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5


def test_masks_and_dropout_change_from_step_to_step(small, start_run):
    run = start_run(small(optim__learning_rate=1e-30))
    state, first = run.step(run.state, run.batch)
    _, second = run.step(state, run.batch)
    assert first["metrics"]["loss"][0] != second["metrics"]["loss"][0]


def test_the_same_seed_is_the_same_run(small, start_run):
    one, other = start_run(small()).losses(2), start_run(small()).losses(2)
    assert one == other
    assert start_run(small(train__seed=1)).losses(2) != one

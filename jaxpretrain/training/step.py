"""One step of training, and one of evaluation: pure functions of the state and a batch."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from jaxpretrain.config import Config
from jaxpretrain.data.tokenizer import PAD
from jaxpretrain.notes import NONE, Notes, contexts_of, find, update
from jaxpretrain.objectives.base import Batch, Metrics, Objective
from jaxpretrain.training.sharding import replicated
from jaxpretrain.training.state import TrainState


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    config: Config,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, Any]]:
    """Corrupts the batch, takes the gradient, applies the update, takes notes.

    Where loss or gradient are not finite, nothing is applied: the state comes back as it was. Where they are, the
    update is finite too, at any learning rate that a config may have.

    Returns:
        The next state, and `{"metrics": (sum, weight) by name, "grad_norm", "finite"}`; `"wish"` too, the highest of
        `batch["wishes"]` where the batch has them (`training/hosts.py`).
    """
    mask_key, dropout_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
    if state.notes is not None:
        batch = with_occurrences(batch, config)
    batch = objective.corrupt(batch, mask_key)

    def loss_fn(params: Any, batch: Batch) -> tuple[Array, tuple[Metrics, Array | None]]:
        # Whole weights are gathered here. Left alone, the partitioner would split the *activations* over fsdp.
        params = lax.with_sharding_constraint(params, replicated(mesh))
        loss, aux = objective.loss(params, batch, state.notes, dropout_key)
        new_notes = None
        if state.notes is not None:
            padding = batch["tokens"] == PAD
            new_notes = contexts_of(aux.contexts, padding, batch["occurrences"], config.notes.window)
        return loss, (aux.metrics, new_notes)

    gradient = partial(jax.value_and_grad(loss_fn, has_aux=True), state.params)
    if config.train.accumulation == 1:
        (loss, (metrics, new_notes)), grads = gradient(batch)
    else:
        batch = micro_batches(batch, config.train.accumulation)
        (loss, metrics, grads), new_notes = accumulate(gradient, batch)

    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite)
    metrics = {"loss": (loss, jnp.ones(())), **metrics}
    notes = state.notes
    if notes is not None:
        occurrences = batch["occurrences"]
        # Where the update is not finite, no word is written: the table is too large to be copied for the case.
        ids = jnp.where(finite, occurrences.ids, NONE).reshape(-1)
        values = new_notes.reshape(len(ids), -1)
        if not config.notes.sharded:  # every device gets all, compactly, and makes the same update of its copy
            ids, values = lax.with_sharding_constraint((ids, values), replicated(mesh))
        notes = update(notes, ids, values, state.step + 1, config.notes)
        metrics["notes_read"] = (metrics["notes_read"][0], jnp.ones(()))  # of the step, whatever its micro-batches
        metrics["notes_written"] = ((ids != NONE).sum(dtype=jnp.float32), jnp.ones(()))
        metrics["notes_overflow"] = (occurrences.overflow.sum(dtype=jnp.float32), jnp.ones(()))
    params = jax.tree.map(partial(jnp.where, finite), optax.apply_updates(state.params, updates), state.params)
    step = state.step + finite
    results = {"metrics": metrics, "grad_norm": grad_norm, "finite": finite}
    if "wishes" in batch:
        results["wish"] = batch["wishes"].max()
    return replace(state, step=step, params=params, opt_state=opt_state, notes=notes), results


def eval_step(
    params: Any,
    notes: Notes | None,
    batch: Batch,
    unigram: Array,
    *,
    objective: Objective,
    config: Config,
    mask_key: Array,
) -> Metrics:
    """Metrics of a held-out batch, its masks fixed by the key and each example's number.

    Notes are read, not written; with notes, the metrics without them stand beside, under `without_notes/`.

    Args:
        unigram: float [V], log-probabilities of the pieces in the training text: the model to beat.
    """
    batch = objective.corrupt(with_occurrences(batch, config), mask_key)
    metrics = objective.loss(params, batch, notes, None)[1].metrics
    chosen = batch["weights"] > 0
    metrics["unigram_loss"] = (-(unigram[batch["labels"]] * chosen).sum(), chosen.sum())
    if notes is not None:
        without = objective.loss(params, batch, None, None)[1].metrics
        metrics |= {f"without_notes/{name}": pair for name, pair in without.items()}
    return metrics


def with_occurrences(batch: Batch, config: Config) -> Batch:
    """The batch with the places of its rare words, from its word marks."""
    return {**batch, "occurrences": find(batch["words"], config.notes.capacity)}


def micro_batches(batch: Batch, count: int) -> Batch:
    """[B, …] → [count, B / count, …], every `count`-th row together: each device's rows stay on it."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def accumulate(gradient: Callable, batches: Batch) -> tuple[tuple[Array, Metrics, Any], Any]:
    """Sums loss, metrics and gradient over micro-batches, one after another; new notes are kept side by side."""

    def one(batch: Batch) -> tuple[tuple[Array, Metrics, Any], Any]:
        (loss, (metrics, new_notes)), grads = gradient(batch)
        return (loss, metrics, grads), new_notes

    def add(total: Any, batch: Batch) -> tuple[Any, Any]:
        sums, new_notes = one(batch)
        return jax.tree.map(jnp.add, total, sums), new_notes

    shapes, _ = jax.eval_shape(one, jax.tree.map(lambda x: x[0], batches))
    return lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), batches)

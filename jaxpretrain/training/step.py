"""One step of training, and one of evaluation: pure functions of the state and a batch."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh

from jaxpretrain.objectives.base import Aux, Batch, Metrics, Objective
from jaxpretrain.training.sharding import replicated
from jaxpretrain.training.state import TrainState


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulation: int,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, Any]]:
    """Corrupts the batch, takes the gradient, applies the update.

    An update that is not finite is not applied: the state comes back as it was.

    Returns:
        The next state, and `{"metrics": (sum, weight) by name, "grad_norm", "update_norm", "finite"}`.
    """
    mask_key, dropout_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
    batch = objective.corrupt(batch, mask_key)

    def loss_fn(params: Any, batch: Batch) -> tuple[Array, Aux]:
        # Whole weights are gathered here. Left alone, the partitioner would split the *activations* over fsdp.
        params = lax.with_sharding_constraint(params, replicated(mesh))
        return objective.loss(params, batch, state.notes, dropout_key)

    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulation == 1:
        (loss, aux), grads = value_and_grad(state.params, batch)
        metrics = aux.metrics
    else:
        loss, metrics, grads = accumulate(partial(value_and_grad, state.params), micro_batches(batch, accumulation))

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    grad_norm, update_norm = optax.global_norm(grads), optax.global_norm(updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
    new_state = replace(
        state, step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )
    new_state = jax.tree.map(partial(select, finite), new_state, state)
    metrics = {"loss": (loss, jnp.ones(())), **metrics}
    return new_state, {"metrics": metrics, "grad_norm": grad_norm, "update_norm": update_norm, "finite": finite}


def eval_step(
    params: Any, notes: Any, batch: Batch, unigram: Array, *, objective: Objective, mask_key: Array
) -> Metrics:
    """Metrics of a held-out batch, its masks fixed by the key and each example's number.

    Args:
        unigram: float [V], log-probabilities of the pieces in the training text: the model to beat.
    """
    batch = objective.corrupt(batch, mask_key)
    _, aux = objective.loss(params, batch, notes, None)
    metrics = dict(aux.metrics)
    if "labels" in batch:
        chosen = batch["weights"] > 0
        metrics["unigram_loss"] = (-(unigram[batch["labels"]] * chosen).sum(), chosen.sum())
    return metrics


def micro_batches(batch: Batch, count: int) -> Batch:
    """[B, …] → [count, B / count, …], every `count`-th row together: each device's rows stay on it."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def accumulate(value_and_grad: Any, batches: Batch) -> tuple[Array, Metrics, Any]:
    """Sums loss, metrics and gradient over micro-batches, one after another."""

    def one(batch: Batch) -> tuple[Array, Metrics, Any]:
        (loss, aux), grads = value_and_grad(batch)
        return loss, aux.metrics, grads

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.scan(lambda total, batch: (jax.tree.map(jnp.add, total, one(batch)), None), zeros, batches)[0]


def select(condition: Array, new: Array, old: Array) -> Array:
    """`new` if the condition holds; keys included."""
    return new if new is old else jnp.where(condition, new, old)

"""All that a run learns and carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jaxpretrain.config import Config
from jaxpretrain.notes import Notes, init
from jaxpretrain.objectives.base import Objective

NOTE_ROWS = 256  # the note table has a multiple of this many


@struct.dataclass
class TrainState:
    """One pytree: sharded, donated to the step and saved as a whole.

    Attributes:
        step: int32 [], steps taken.
        params: of the main model, and of a generator or meta controller beside it.
        opt_state: of optax.
        notes: the TNF table, learnt but not by gradient; None: no notes.
        rng: key of the run; each step folds its number in.
    """

    step: Array
    params: Any
    opt_state: Any
    notes: Notes | None
    rng: Array


def init_state(
    seed: int | Array, *, objective: Objective, optimizer: optax.GradientTransformation, config: Config, note_rows: int
) -> TrainState:
    """The state before the first step. Run it under `jax.jit(…, out_shardings=…)`: each device then makes its part.

    Args:
        seed: of the run.
        objective: makes the parameters.
        optimizer: makes its own state.
        config: whether there are notes, and how wide.
        note_rows: words in the dictionary; the table is rounded up so that it divides among devices.
    """
    _, notes_key, run_key = _keys(seed)
    params = init_params(seed, objective)
    notes = None
    if config.notes.enabled:
        rows, model = note_rows + -note_rows % NOTE_ROWS, config.model
        notes = init(notes_key, rows, model.embedding or model.hidden, model.initializer_range)
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), notes=notes, rng=run_key
    )


def init_params(seed: int | Array, objective: Objective) -> Any:
    """The parameters before the first step."""
    return objective.init(_keys(seed)[0])


def _keys(seed: int | Array) -> Array:
    """Keys [3]: of the parameters, of the notes, of the run."""
    return jax.random.split(jax.random.key(seed), 3)

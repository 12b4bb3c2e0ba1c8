"""All that a run learns and carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jaxpretrain.objectives.base import Objective


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
    notes: Any
    rng: Array


def init_state(seed: int | Array, objective: Objective, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. Run it under `jax.jit(…, out_shardings=…)`: each device then makes its part."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = objective.init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), notes=None, rng=run_key
    )

"""What runs on the devices: the program that makes a run's state, and the one that takes a step."""

from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jaxpretrain.config import Config
from jaxpretrain.objectives.base import Objective
from jaxpretrain.training.sharding import state_sharding, with_sharding
from jaxpretrain.training.state import init_state
from jaxpretrain.training.step import train_step


def state_program(
    config: Config, objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh, note_rows: int
) -> tuple[jax.stages.Wrapped, Any]:
    """What makes the state from a seed, each device its own part; and the state's shapes with their places."""
    init = partial(init_state, objective=objective, optimizer=optimizer, config=config, note_rows=note_rows)
    shapes = jax.eval_shape(init, 0)
    places = state_sharding(mesh, shapes, notes_sharded=config.notes.sharded)
    return jax.jit(init, out_shardings=places), with_sharding(shapes, places)


def step_program(
    config: Config,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    like: Any,
) -> jax.stages.Wrapped:
    """What takes a step; the state, in places as `like` has them, is donated and stays in them."""
    step = partial(train_step, objective=objective, optimizer=optimizer, config=config, mesh=mesh)
    return jax.jit(step, out_shardings=(jax.tree.map(lambda x: x.sharding, like), None), donate_argnums=0)

"""The mesh and where each array lies on it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpretrain.config import Config, ConfigError
from jaxpretrain.training.state import TrainState

BATCH_AXES = ("data", "fsdp")
SMALL = 2**14  # entries below which an array is kept whole on every device


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices as (data, fsdp).

    Raises:
        ConfigError: the devices do not divide as the config wants.
    """
    if devices is None:  # a process reads rows of the batch that follow each other: so its devices do too
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    fsdp, count = config.sharding.fsdp, len(devices)
    if count % fsdp:
        raise ConfigError(f"sharding.fsdp={fsdp}: must divide the number of devices, {count}")
    rows = config.train.batch_size // config.train.accumulation
    if rows % count:
        per = "" if config.train.accumulation == 1 else f" / train.accumulation={config.train.accumulation}"
        raise ConfigError(
            f"train.batch_size={config.train.batch_size}{per}: must be a multiple of the number of devices, {count}"
        )
    return Mesh(np.array(devices).reshape(count // fsdp, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows spread over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def state_sharding(mesh: Mesh, shapes: TrainState, *, notes_sharded: bool = False) -> TrainState:
    """Parameters and optimizer moments over `fsdp` by their largest divisible axis; small arrays everywhere.

    The note table has a copy on each device, or its rows over all of them.

    Args:
        mesh: the devices.
        shapes: the state as `jax.eval_shape` gives it.
        notes_sharded: where the note table lies.

    Raises:
        ConfigError: its rows do not divide among the devices.
    """
    fsdp = mesh.shape["fsdp"]

    def place(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or leaf.size < SMALL or not divisible:
            return replicated(mesh)
        axis = max(divisible, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    rows = batch_sharding(mesh) if notes_sharded else replicated(mesh)
    for count in {leaf.shape[0] for leaf in jax.tree.leaves(shapes.notes) if notes_sharded}:
        if count % mesh.size:
            raise ConfigError(f"notes.sharded=True: the table's {count:,} rows do not divide among {mesh.size} devices")
    notes = jax.tree.map(lambda _: rows, shapes.notes)
    return replace(jax.tree.map(place, replace(shapes, notes=None)), notes=notes)


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """Shapes that carry their place: what compiling ahead and restoring ask for."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def batch_shapes(size: int, length: int, on_rows: NamedSharding | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Of a global batch as `data/batches.py` makes them, and its place."""
    shapes = {"tokens": (size, length), "words": (size, length), "rows": (size,)}
    return {name: jax.ShapeDtypeStruct(shape, np.int32, sharding=on_rows) for name, shape in shapes.items()}


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, Array]:
    """This host's rows as part of the global batch."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def local_rows(batch_size: int) -> slice:
    """The rows of the global batch that this process reads."""
    per_process = batch_size // jax.process_count()
    return slice(jax.process_index() * per_process, (jax.process_index() + 1) * per_process)

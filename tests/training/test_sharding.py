"""The mesh, and where arrays lie on it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxpretrain.config import Config, ConfigError
from jaxpretrain.training import sharding
from jaxpretrain.training.state import TrainState


def mesh_of(fsdp: int, devices: int = 8, **train: int) -> jax.sharding.Mesh:
    config = Config()
    config.sharding.fsdp = fsdp
    for name, value in train.items():
        setattr(config.train, name, value)
    return sharding.make_mesh(config, jax.devices()[:devices])


def state_of(shape: tuple[int, ...], notes: Any = None) -> TrainState:
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(number, jax.ShapeDtypeStruct(shape, jnp.float32), (), notes, number)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((256, 1024), (None, "fsdp")),
        ((1024, 256), ("fsdp",)),
        ((12, 768, 3, 12, 64), (None, "fsdp")),
        ((1022, 256), (None, "fsdp")),  # the larger axis does not divide
        ((513, 511), ()),  # neither does
        ((64, 64), ()),  # small
        ((), ()),
    ],
)
def test_the_largest_axis_that_divides_is_split(shape: tuple[int, ...], spec: tuple[str | None, ...]):
    found = sharding.state_sharding(mesh_of(4), state_of(shape)).params
    assert found.spec == PartitionSpec(*spec)


def test_one_copy_per_device_without_fsdp():
    assert sharding.state_sharding(mesh_of(1), state_of((1024, 1024))).params.is_fully_replicated


@pytest.mark.parametrize(("sharded", "spec"), [(False, PartitionSpec()), (True, PartitionSpec(("data", "fsdp")))])
def test_the_note_table_is_copied_or_spread_over_all_devices(sharded: bool, spec: PartitionSpec):
    table = jax.ShapeDtypeStruct((512, 64), jnp.float32)
    found = sharding.state_sharding(mesh_of(2), state_of((8, 8), notes={"table": table}), notes_sharded=sharded)
    assert found.notes["table"].spec == spec


def test_a_batch_is_split_over_all_devices():
    mesh = mesh_of(2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    placed = sharding.put_batch({"x": np.arange(32).reshape(16, 2)}, sharding.batch_sharding(mesh))["x"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(placed, np.arange(32).reshape(16, 2))


def test_this_process_reads_all_rows_of_its_own():
    assert sharding.local_rows(16) == slice(0, 16)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"fsdp": 3}, ["sharding.fsdp=3", "8"]),
        ({"fsdp": 16}, ["sharding.fsdp=16", "8"]),
        ({"fsdp": 1, "batch_size": 12}, ["train.batch_size=12", "8"]),
        ({"fsdp": 1, "batch_size": 16, "accumulation": 4}, ["train.batch_size=16", "train.accumulation=4", "8"]),
    ],
)
def test_what_does_not_divide_is_named(options: dict[str, int], parts: list[str]):
    with pytest.raises(ConfigError) as caught:
        mesh_of(**options)
    assert all(part in str(caught.value) for part in parts)


def test_notes_that_do_not_divide_are_named():
    state = state_of((4,), notes={"table": jax.ShapeDtypeStruct((256, 8), jnp.float32)})
    with pytest.raises(ConfigError, match=r"notes\.sharded=True: the table's 256 rows do not divide among 3 devices"):
        sharding.state_sharding(mesh_of(1, devices=3, batch_size=12), state, notes_sharded=True)


def test_three_devices_are_a_mesh_too():
    assert dict(mesh_of(3, devices=3, batch_size=12).shape) == {"data": 1, "fsdp": 3}

"""Checkpoints: bits kept, damage found, nothing lost by a kill or a full disk, nothing deleted too early."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from jax.sharding import NamedSharding, PartitionSpec

from jaxpretrain.training import checkpoint, checkpoint_files
from jaxpretrain.training.checkpoint import Checkpointer, restore_params
from jaxpretrain.training.checkpoint_files import CheckpointError


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    notes: Any
    rng: jax.Array


def make_state(seed: int = 0, sharding: jax.sharding.Sharding | None = None) -> State:
    """Every kind of leaf a run has: float32, bfloat16 with NaN, integers, scalars, a key, an array of keys, None."""
    key = jax.random.key(seed)
    params = {
        "encoder": {"kernel": jax.random.normal(key, (16, 8)), "bias": jax.random.normal(key, (8,), jnp.bfloat16)},
        "head": {"table": jnp.arange(24.0).reshape(8, 3).at[1, 1].set(jnp.nan).at[0, 0].set(-0.0)},
    }
    notes = {
        "table": jax.random.normal(key, (8, 4), jnp.bfloat16).at[0, 0].set(jnp.nan),
        "seen": jnp.arange(8),
        "x": None,
    }
    state = State(jnp.int32(seed), params, optax.adamw(1e-3).init(params), notes, jax.random.split(key, 8))
    if sharding is None:
        return dataclasses.replace(state, rng=key)
    rows = jax.tree.map(lambda x: sharding if x.ndim else NamedSharding(sharding.mesh, PartitionSpec()), state)
    return jax.device_put(state, rows)


def like(state: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    def one(x: jax.Array) -> jax.ShapeDtypeStruct:
        where = x.sharding if sharding is None else sharding if x.ndim else jax.sharding.SingleDeviceSharding(DEVICE)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(one, state)


def bits(tree: Any) -> list[bytes]:
    def one(x: Any) -> bytes:
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()

    return [one(x) for x in jax.tree.leaves(tree)]


def assert_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [x.dtype for x in jax.tree.leaves(one)] == [x.dtype for x in jax.tree.leaves(other)]
    assert bits(one) == bits(other)


def saved(folder: Path, *steps: int, keep: int = 9) -> Checkpointer:
    """A run that has saved `make_state(step)` at these steps."""
    checkpointer = Checkpointer(folder, keep=keep, keep_best=True)
    for step in steps:
        checkpointer.save(step, make_state(step), {"step": step})
    checkpointer.wait()
    return checkpointer


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


DEVICE = jax.devices()[0]


@pytest.mark.quick
def test_round_trip_keeps_every_bit(tmp_path: Path):
    state = make_state(3)
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=2, keep_best=True)
    assert checkpointer.restore(like(state)) is None
    checkpointer.save(3, state, {"tokens": 2**60, "names": ["a"]})
    found = checkpointer.restore(like(state))
    assert found is not None
    assert_same(found[0], state)
    assert found[1] == {"tokens": 2**60, "names": ["a"]}
    assert jax.random.key_impl(found[0].rng) == jax.random.key_impl(state.rng)
    assert float(jax.random.normal(found[0].rng)) == float(jax.random.normal(state.rng))


def test_folder_layout(tmp_path: Path):
    saved(tmp_path, 12)
    assert {path.name for path in tmp_path.iterdir()} == {"00000012"}
    assert {path.name for path in (tmp_path / "00000012").iterdir()} == {"state", "host.json", "digests.json"}
    digests = json.loads((tmp_path / "00000012/digests.json").read_text())
    assert sorted(digests["files"]) == [name for name in files(tmp_path / "00000012") if name != "digests.json"]


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_restore_onto_other_devices_and_shardings(tmp_path: Path, devices: int):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    state = make_state(5, NamedSharding(mesh, PartitionSpec("data")))
    checkpointer = Checkpointer(tmp_path, keep=2, keep_best=True)
    checkpointer.save(5, state, {})
    smaller = jax.make_mesh(
        (1, devices), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:devices]
    )
    wanted = NamedSharding(smaller, PartitionSpec("fsdp"))
    found = checkpointer.restore(like(state, wanted))
    assert found is not None
    assert_same(found[0], state)
    for x in jax.tree.leaves(found[0]):
        if x.ndim:
            assert x.sharding.is_equivalent_to(wanted, x.ndim)


def test_state_may_be_donated_right_after_save(tmp_path: Path):
    @jax.jit
    def make(i: jax.Array) -> dict[str, Any]:
        return {"params": {"w": jnp.full((512, 1024), i)}, "count": i}

    @jax.jit(donate_argnums=0)
    def step(state: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(lambda x: x * 2 + 1, state)

    state, value = make(jnp.float32(1)), 1.0
    checkpointer = Checkpointer(tmp_path, keep=9, keep_best=False)
    expected = {}
    for i in range(4):
        expected[i] = value
        checkpointer.save(i, state, {})
        for n in range(3):
            before, state, value = state, step(state), value * 2 + 1
            # On CPU orbax reads the arrays where they are: the first step after a save leaves them and is not in place.
            assert before["params"]["w"].is_deleted() or n == 0
    checkpointer.wait()
    for i, value in expected.items():
        found = checkpointer.restore(like(state), i)
        assert found is not None
        np.testing.assert_array_equal(found[0]["params"]["w"], value)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damage_to_any_file_is_reported_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
):
    good = tmp_path / "good"
    saved(good, 1, 2).close()
    names = files(good / "00000002")
    ours = {checkpoint.__name__, checkpoint_files.__name__}
    assert {"host.json", "digests.json", "state/_METADATA"} < set(names)
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        shutil.copytree(good, folder)
        damage(folder / "00000002" / name)
        caplog.clear()
        checkpointer = Checkpointer(folder, keep=2, keep_best=True)
        found = checkpointer.restore(like(make_state()))
        assert found is not None, name
        assert_same(found[0], make_state(1))
        assert found[1] == {"step": 1}
        report = [record.getMessage() for record in caplog.records if record.name in ours]
        assert name in report[0]
        assert "00000002" in report[0]
        if damage is Path.unlink and name == "digests.json":  # without its mark it was never there
            assert "unfinished" in report[0]
        else:
            assert "damaged" in report[0]
            assert (folder / "00000002.damaged").is_dir()
            assert not (folder / "00000002").exists()


@pytest.mark.parametrize("name", ["../other", "/etc/hostname", "state/../../other"])
def test_digests_name_no_file_elsewhere(tmp_path: Path, name: str):
    saved(tmp_path, 1)
    path = tmp_path / "00000001/digests.json"
    written = json.loads(path.read_text())["files"] | {name: [0, ""]}
    path.write_text(json.dumps({"files": written, "self": checkpoint_files._digest_of(written)}))
    assert checkpoint_files._damage(epath.Path(path.parent)) == "digests.json names files outside the folder"


def test_every_bit_of_the_digests_themselves_counts(tmp_path: Path):
    saved(tmp_path, 1)
    path = tmp_path / "00000001/digests.json"
    whole = path.read_bytes()
    for i in range(0, len(whole), 7):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        assert checkpoint_files._damage(epath.Path(path.parent)) is not None, (i, whole[i - 5 : i + 5])


def test_damaged_one_is_kept_aside_and_its_step_saved_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    saved(tmp_path, 1, 2).close()
    flip(tmp_path / "00000002/host.json")
    before = (tmp_path / "00000002/host.json").read_bytes()
    checkpointer = Checkpointer(tmp_path, keep=1, keep_best=False)
    checkpointer.restore(like(make_state()))
    assert "set aside as 00000002.damaged" in caplog.text
    checkpointer.save(2, make_state(2), {"again": True})
    checkpointer.wait()
    assert checkpointer.steps() == [2]
    assert (tmp_path / "00000002.damaged/host.json").read_bytes() == before
    found = checkpointer.restore(like(make_state()))
    assert found is not None
    assert found[1] == {"again": True}


def test_none_intact_is_an_error_every_time(tmp_path: Path):
    saved(tmp_path, 1, 2).close()
    flip(tmp_path / "00000001/host.json")
    flip(tmp_path / "00000002/host.json")
    before = files(tmp_path)
    for _ in range(2):  # the first try must not make the second one start over
        with pytest.raises(CheckpointError, match=r"host\.json .* no intact checkpoint is left") as e:
            Checkpointer(tmp_path, keep=2, keep_best=True).restore(like(make_state()))
        assert "\n" not in str(e.value)
        assert files(tmp_path) == before


def test_restore_of_one_step(tmp_path: Path):
    checkpointer = saved(tmp_path, 1, 2)
    found = checkpointer.restore(like(make_state()), 1)
    assert found is not None
    assert found[1] == {"step": 1}
    with pytest.raises(CheckpointError, match=r"no such checkpoint; there are \[1, 2\]"):
        checkpointer.restore(like(make_state()), 3)
    flip(tmp_path / "00000001/host.json")
    with pytest.raises(CheckpointError, match="host"):
        checkpointer.restore(like(make_state()), 1)


def changed(state: State, **params: Any) -> State:
    return dataclasses.replace(state, params=state.params | params)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda s: changed(s, more={"w": s.step}), "lacks params/more/w"),
        (lambda s: dataclasses.replace(s, notes=None), "has, and this run has not, notes/"),
        (lambda s: changed(s, head={"table": jnp.zeros((8, 4))}), r"params/head/table is float32\(8, 3\).*\(8, 4\)"),
        (lambda s: changed(s, head={"table": jnp.zeros((8, 3), jnp.bfloat16)}), "params/head/table is .* bfloat16"),
    ],
)
def test_checkpoint_of_another_model_is_refused(tmp_path: Path, other: Any, message: str):
    checkpointer = saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=message):
        checkpointer.restore(like(other(make_state())))
    assert checkpointer.steps() == [1]


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path):
    checkpointer = Checkpointer(tmp_path, keep=2, keep_best=True)
    seen = []
    for step, metric in enumerate([3.0, 1.0, None, float("nan"), 2.0, 1.0, 4.0, 5.0]):
        checkpointer.save(step, {"w": jnp.zeros(2)}, {}, metric=metric)
        checkpointer.wait()
        seen.append((checkpointer.steps(), checkpointer.best()))
    assert seen == [
        ([0], 0),
        ([0, 1], 1),
        ([1, 2], 1),
        ([1, 2, 3], 1),
        ([1, 3, 4], 1),
        ([4, 5], 5),
        ([5, 6], 5),
        ([5, 6, 7], 5),
    ]


def test_retention_after_going_back_leaves_later_ones(tmp_path: Path):
    saved(tmp_path, 10, 20).close()
    checkpointer = Checkpointer(tmp_path, keep=1, keep_best=False)
    checkpointer.restore(like(make_state()), 10)
    checkpointer.save(15, make_state(15), {})
    checkpointer.wait()
    assert checkpointer.steps() == [15, 20]


def test_retention_without_best_and_of_foreign_files(tmp_path: Path):
    for name in ("notes.txt", "00000001.damaged/host.json", "old/host.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    checkpointer = Checkpointer(tmp_path, keep=1, keep_best=False)
    for step in (1, 2):
        checkpointer.save(step, {"w": jnp.zeros(2)}, {}, metric=float(step))
    checkpointer.wait()
    assert checkpointer.steps() == [2]
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "00000001.damaged", "old", "00000002"}


def test_nothing_is_deleted_before_a_newer_one_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpointer = saved(tmp_path, 1, keep=1)

    def full(folder: epath.Path) -> Any:
        raise OSError(28, "No space left on device", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "_digests", full)
        checkpointer.save(2, make_state(2), {})
        with pytest.raises(CheckpointError, match=r"00000002: cannot save: No space left on device; free some space"):
            checkpointer.save(3, make_state(3), {})
    assert checkpointer.steps() == [1]
    checkpointer.save(2, make_state(2), {})  # the error was told once; the step can be tried again
    checkpointer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["00000002"]


def test_same_step_again_does_nothing_and_never_replaces_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpointer = saved(tmp_path, 4)
    checkpointer.save(4, make_state(4), {"second": True})
    found = checkpointer.restore(like(make_state()))
    assert found is not None
    assert found[1] == {"step": 4}
    assert not caplog.records
    saved(tmp_path, 4).close()  # another run in the same folder that did not restore
    assert "set aside as 00000004.replaced" in caplog.text
    assert (tmp_path / "00000004.replaced/digests.json").exists()


SAVE_AND_STOP = """
import sys, time, jax, jax.numpy as jnp
from jaxpretrain.training import checkpoint_files
from jaxpretrain.training.checkpoint import Checkpointer
folder, stage = sys.argv[1:]
checkpointer = Checkpointer(folder, keep=1, keep_best=False)
big = jax.random.normal(jax.random.key(0), (1 << 24,))
state = {"params": {"w": big}}
checkpointer.save(1, {"params": {"w": big[:8]}}, {})
checkpointer.wait()
if stage == "digests":
    def stop(folder):
        print("now", flush=True)
        time.sleep(60)
    checkpoint_files._digests = stop
else:
    checkpoint_files.commit = lambda folder: time.sleep(60)  # however late the kill comes
checkpointer.save(2, state, {})
if stage == "arrays":
    print("now", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("stage", ["arrays", "digests"])
def test_kill_in_mid_save_leaves_the_older_one(tmp_path: Path, stage: str, caplog: pytest.LogCaptureFixture):
    command = [sys.executable, "-c", SAVE_AND_STOP, str(tmp_path), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "00000002").exists()
    checkpointer = Checkpointer(tmp_path, keep=1, keep_best=False)
    state = {"params": {"w": jnp.zeros(8)}}
    found = checkpointer.restore(like(state))
    assert found is not None
    assert "00000002 is unfinished" in caplog.text
    assert checkpointer.steps() == [1]
    checkpointer.save(2, state, {})
    checkpointer.wait()
    assert checkpointer.steps() == [2]
    assert checkpointer.restore(like(state)) is not None


def test_unfinished_ones_go_once_a_newer_one_is_committed(tmp_path: Path):
    saved(tmp_path, 1, 2).close()
    (tmp_path / "00000002/digests.json").unlink()
    checkpointer = Checkpointer(tmp_path, keep=2, keep_best=False)
    checkpointer.restore(like(make_state()))
    assert (tmp_path / "00000002").exists()
    checkpointer.save(3, make_state(3), {})
    checkpointer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000003"]


FILL_DISK = """
import resource, sys, jax
from jaxpretrain.training.checkpoint import Checkpointer
from jaxpretrain.training.checkpoint_files import CheckpointError
checkpointer = Checkpointer(sys.argv[1], keep=1, keep_best=False)
state = {"params": {"w": jax.random.normal(jax.random.key(0), (1 << 20,))}}
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
checkpointer.save(7, state, {})
try:
    checkpointer.close()
except CheckpointError as e:
    print(e)
"""


def test_full_disk_is_one_line(tmp_path: Path):
    """A limit on file sizes stands in for a full disk: the same write fails, and it binds root."""
    command = [sys.executable, "-c", FILL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""  # no chatter, no stack trace
    lines = done.stdout.splitlines()
    assert lines == [
        f"{tmp_path}/00000007: cannot save: File too large; raise the limit on file sizes or choose another workdir"
    ]
    assert Checkpointer(tmp_path, keep=1, keep_best=False).steps() == []


def test_file_where_a_folder_is_needed_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    checkpointer = Checkpointer(tmp_path / "file/checkpoints", keep=1, keep_best=False)
    with pytest.raises(CheckpointError, match=r"file/checkpoints/00000001: cannot save: Not a directory; a file is"):
        checkpointer.save(1, make_state(), {})


def test_restore_params_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpointer = Checkpointer(tmp_path, keep=9, keep_best=True)
    for step, metric in ((1, 1.0), (2, 3.0), (3, 2.0)):
        checkpointer.save(step, make_state(step), {}, metric=metric)
    checkpointer.close()
    for wanted, step in ((None, 3), ("best", 1), (2, 2)):
        params, found = restore_params(tmp_path, wanted)
        assert found == step
        assert_same(params, jax.tree.map(np.asarray, make_state(step).params))
        assert all(type(x) is np.ndarray for x in jax.tree.leaves(params))
    notes, _ = restore_params(tmp_path, subtree="notes")
    assert set(notes) == {"table", "seen"}
    with pytest.raises(CheckpointError, match="holds no 'generator', only notes, opt_state, params"):
        restore_params(tmp_path, subtree="generator")

    flip(tmp_path / "00000001/state/_METADATA")
    before = files(tmp_path)
    _, found = restore_params(tmp_path, "best")
    assert found == 3
    assert "00000001 is damaged: state/_METADATA" in caplog.text
    with pytest.raises(CheckpointError, match="state/_METADATA"):
        restore_params(tmp_path, 1)
    assert files(tmp_path) == before  # another run's folder is not touched


def test_restore_params_where_there_are_none(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no checkpoint in here"):
        restore_params(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_commit_marks_work_on_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All but orbax's own part, on `gs://` paths that end in memory."""
    memory = MemoryFileSystem()
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: memory)
    saved(tmp_path, 1, 2, 3).close()
    for name in files(tmp_path):
        path = epath.Path("gs://bucket/checkpoints") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tmp_path / name).read_bytes())
    try:
        checkpointer = Checkpointer("gs://bucket/checkpoints", keep=1, keep_best=False)
        assert checkpointer.steps() == [1, 2, 3]
        assert checkpoint_files.newest_intact(checkpointer.folder, None) == (3, [])
        digests = json.loads((tmp_path / "00000003/digests.json").read_text())
        assert checkpoint_files._digests(checkpointer.folder / "00000003") == digests["files"]
        host = checkpointer.folder / "00000003/host.json"
        checkpoint_files.write_json(host, {"changed": True})
        assert json.loads(host.read_text()) == {"changed": True}
        assert checkpoint_files.newest_intact(checkpointer.folder, None) == (2, [3])
        checkpoint_files.set_aside(checkpointer.folder / "00000003", "damaged")
        checkpointer._remove_older(2)
        assert {path.name for path in checkpointer.folder.iterdir()} == {"00000002", "00000003.damaged"}
    finally:
        memory.store.clear()

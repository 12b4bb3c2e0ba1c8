"""A run's folder: recognised, never taken from another run, never shared."""

import errno
import fcntl
import json
from contextlib import suppress

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from jaxpretrain.config import Config, ConfigError
from jaxpretrain.training.checkpoint import Checkpointer
from jaxpretrain.training.checkpoint_files import CheckpointError
from jaxpretrain.training.workdir import check_resume, check_workdir, locked, params_of_run, read_config, write_config


@pytest.fixture
def workdir(tmp_path) -> epath.Path:
    return epath.Path(tmp_path / "runs" / "one")


def opened(config: Config, workdir: epath.Path) -> epath.Path:
    check_workdir(config, workdir)
    workdir.mkdir(parents=True)
    write_config(config, workdir)
    return workdir


def test_a_config_comes_back(workdir):
    config = Config(name="mine", size="small")
    config.optim.learning_rate = 3e-4
    opened(config, workdir)
    assert read_config(workdir) == config
    assert sorted(path.name for path in workdir.iterdir()) == ["config.json"]


def test_no_folder_no_config(workdir):
    assert read_config(workdir) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model": 3}', '{"unheard": 1}', "[" * 10**5])
def test_a_damaged_config_is_named(workdir, text: str):
    opened(Config(), workdir)
    (workdir / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config.json|unheard"):
        read_config(workdir)


def test_a_run_with_another_config_is_left_alone(workdir):
    opened(Config(), workdir)
    before = (workdir / "config.json").read_text()
    other = Config()
    other.model.layers, other.train.seed = 4, 7
    with pytest.raises(ConfigError, match=r"model.layers: 2 → 4; train.seed: 0 → 7") as caught:
        check_workdir(other, workdir)
    assert str(workdir) in str(caught.value)
    assert (workdir / "config.json").read_text() == before


def test_what_does_not_shape_the_result_may_change(workdir):
    opened(Config(), workdir)
    other = Config()
    other.train.steps, other.train.log_every, other.eval.every, other.checkpoint.keep = 9999, 7, 3, 5
    check_workdir(other, workdir)


def test_checkpoints_without_a_config_are_left_alone(workdir):
    (workdir / "checkpoints" / "00000005").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_workdir(Config(), workdir)


@pytest.mark.parametrize("file", ["runs", "runs/one"])
def test_a_folder_that_cannot_be_made_is_named(workdir, tmp_path, file: str):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("a file")
    with pytest.raises(ConfigError, match=rf"--workdir={workdir}: cannot be written \([nN]ot a "), locked(workdir):
        pass
    assert (tmp_path / file).read_text() == "a file"


def test_a_held_workdir_is_refused_and_free_afterwards(workdir):
    opened(Config(), workdir)
    with locked(workdir), pytest.raises(ConfigError, match="in use by another run"), locked(workdir):
        pass
    with locked(workdir):
        pass


def fail_in(workdir):
    with suppress(ZeroDivisionError), locked(workdir):
        assert (workdir / ".lock").exists()
        print(1 // 0)


def test_nothing_is_left_of_a_run_that_never_began(workdir, tmp_path):
    fail_in(workdir)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["runs/", "runs/one/", "runs/one/mine.txt", "runs/one/.lock", "runs/two/"])
def test_what_was_there_before_stays(workdir, tmp_path, there: str):
    place = tmp_path / there
    (place if there.endswith("/") else place.parent).mkdir(parents=True)
    if not there.endswith("/"):
        place.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    fail_in(workdir)
    assert sorted(tmp_path.rglob("*")) == before
    assert not place.is_file() or place.read_text() == "mine"


def test_what_a_run_wrote_stays(workdir):
    with locked(workdir):
        (workdir / "config.json").write_text("{}")
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


@pytest.mark.parametrize("then", ["gone", "held by a third"])
def test_a_lock_that_its_holder_takes_away_is_none(workdir, monkeypatch, then: str):
    """Between our opening the file and our locking it the run before ends: we hold a file that nobody else sees."""
    flock = fcntl.flock

    def late(file, how):
        (workdir / ".lock").unlink()
        if then != "gone":
            (workdir / ".lock").touch()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ConfigError, match="in use by another run"), locked(workdir):
        pass
    assert (workdir / ".lock").exists() == (then != "gone")


def test_a_file_system_without_locks(workdir, monkeypatch, caplog):
    def none(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(workdir):
        assert (workdir / ".lock").exists()
    assert caplog.messages == [f"{workdir}: has no locks (No locks available): see that no other run uses it"]


def test_a_share_whose_lock_another_holds(workdir, monkeypatch):
    def held(file, how):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(ConfigError, match="in use by another run"), locked(workdir):
        pass


def test_a_workdir_without_room_for_the_lock(workdir):
    (workdir / ".lock").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"--workdir=.*: cannot be written \(Is a directory\)"), locked(workdir):
        pass


def test_resume_needs_the_same_text_and_no_fewer_steps(workdir):
    config, host = Config(), {"corpus": "a" * 32}
    check_resume(config, host, workdir, host, config.train.steps)
    with pytest.raises(ConfigError, match=r"data.source='python-docs'.*bbbb.*aaaa"):
        check_resume(config, {"corpus": "b" * 32}, workdir, host, 10)
    with pytest.raises(ConfigError, match=r"train.steps=2500.*step 2501"):
        check_resume(config, host, workdir, host, 2501)
    with pytest.raises(ConfigError, match="dictionary of rare words"):
        check_resume(config, {"corpus": "a" * 32, "notes": "c"}, workdir, host | {"notes": "d"}, 10)


def like(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def test_parameters_of_another_run(workdir):
    params = {"encoder": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "head": {"bias": jnp.ones(3)}}
    checkpoints = Checkpointer(workdir / "checkpoints", keep=2, keep_best=True)
    checkpoints.save(1, {"params": params, "step": jnp.int32(1)}, {}, metric=1.0)
    checkpoints.save(2, {"params": jax.tree.map(lambda x: x + 1, params), "step": jnp.int32(2)}, {}, metric=2.0)
    checkpoints.close()
    config = Config(init_from=str(workdir))
    found = params_of_run(config, like(params))
    assert found["encoder"]["kernel"].tolist() == params["encoder"]["kernel"].tolist()  # the best, not the newest

    wider = {"encoder": {"kernel": jnp.zeros((2, 4))}, "head": {"bias": jnp.ones(3)}}
    with pytest.raises(ConfigError, match=r"encoder/kernel is \(2, 3\) there and \(2, 4\)"):
        params_of_run(config, like(wider))
    with pytest.raises(ConfigError, match=r"head/bias is \(3,\) there and absent"):
        params_of_run(config, like({"encoder": params["encoder"]}))

    write_config(Config(), workdir)
    assert params_of_run(config, like(params)).keys() == {"encoder", "head"}
    config.init_encoder_only = True
    assert params_of_run(config, like(params)).keys() == {"encoder"}

    config.init_encoder_only, config.objective.name = False, "electra"
    found = params_of_run(config, like({"encoder": params["encoder"], "generator": params["head"]}))
    assert found.keys() == {"encoder"}


def test_parameters_of_no_run(workdir):
    with pytest.raises((ConfigError, CheckpointError), match=str(workdir)):
        params_of_run(Config(init_from=str(workdir)), {})


def test_config_json_is_readable(workdir):
    opened(Config(), workdir)
    assert json.loads((workdir / "config.json").read_text())["model"]["layers"] == 2

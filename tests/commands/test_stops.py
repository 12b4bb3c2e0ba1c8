"""Real processes, really stopped: kill, SIGTERM, Ctrl-C, and the same command again."""

import json
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.training import metrics
from jaxpretrain.training.checkpoint import restore_params

# Long enough to be met in the middle; and every word has a note.
LONG = (
    *("--config.train.steps=300", "--config.train.log_every=1", "--config.eval.every=0"),
    *("--config.notes.enabled=true", "--config.notes.single_piece=true"),
    *("--config.notes.min_count=1", "--config.notes.max_count=100000"),
)


def result_of(workdir: Path) -> tuple:
    """Everything that must not depend on where a run was stopped."""
    parts = [restore_params(workdir / "checkpoints", 300, subtree=part)[0] for part in ("params", "opt_state", "notes")]
    times = ("speed/", "total/seconds")
    lines = [{k: v for k, v in line.items() if not k.startswith(times)} for line in metrics.read(workdir)]
    return parts, lines, json.loads((workdir / "DONE").read_text())


def assert_same(one: tuple, other: tuple) -> None:
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert one[1:] == other[1:]


@pytest.fixture(scope="session")
def undisturbed(shared_tmp: Path, exclusive, command, run) -> tuple:
    workdir = shared_tmp / "undisturbed"
    with exclusive("undisturbed"):
        if not (workdir / "DONE").exists():
            done = run(command("train", "--workdir", workdir, *LONG))
            assert done.code == 0, done.err
    return result_of(workdir)


def test_killed_in_mid_run_and_started_again(undisturbed: tuple, command, start, run, wait_for_step, tmp_path: Path):
    args = command("train", "--workdir", tmp_path / "run", *LONG)
    process = start(args)
    wait_for_step([process], tmp_path / "run", 25)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "DONE").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere")
    done = run(args)
    assert done.code == 0, done.err
    assert re.search(r"goes on from step \d+0\b", done.out)
    assert_same(result_of(tmp_path / "run"), undisturbed)
    # On two devices, to rounding.
    done = run(command("train", "--workdir", tmp_path / "elsewhere", *LONG), devices=2)
    assert done.code == 0, done.err
    for here, there in zip(result_of(tmp_path / "elsewhere")[0], undisturbed[0], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), here, there)
    assert (undisturbed[0][2]["written"] >= 0).any()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends(
    number: signal.Signals, code: int, undisturbed, command, start, run, wait_for_step, tmp_path: Path
):
    args = command("train", "--workdir", tmp_path / "run", "--config.checkpoint.every_steps=0", *LONG)
    process = start(args)
    wait_for_step([process], tmp_path / "run", 7)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    [step] = re.findall(rf"{number.name}: saved after step (\d+)", out)
    assert (tmp_path / "run" / "checkpoints" / f"{int(step):08d}" / "digests.json").exists()
    done = run(args)
    assert done.code == 0, done.err
    assert f"goes on from step {step}" in done.out
    assert_same(result_of(tmp_path / "run"), undisturbed)


def test_two_runs_on_one_workdir(command, start, run, wait_for_step, tmp_path: Path):
    args = command("train", "--workdir", tmp_path / "run", *LONG)
    first = start(args)
    wait_for_step([first], tmp_path / "run", 1)
    first.send_signal(signal.SIGSTOP)
    error = run(args).error()
    assert "is in use by another run" in error
    assert str(tmp_path / "run") in error


def test_ctrl_c_while_the_corpus_is_prepared(command, start, wait_until, tmp_path: Path):
    cache = tmp_path / "cache"
    fields = ["--config.data.source=python-docs", f"--config.data.cache_dir={cache}"]
    process = start(command("train", "--workdir", tmp_path / "run", *fields))
    wait_until("something is prepared", lambda: cache.exists() and any(cache.iterdir()), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.strip().endswith("error: interrupted")
    assert not any(cache.iterdir())

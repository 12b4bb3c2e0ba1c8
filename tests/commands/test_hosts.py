"""Several real processes that train as one."""

import contextlib
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.training import metrics
from jaxpretrain.training.checkpoint import restore_params
from jaxpretrain.training.hosts import LOST

EVERYTHING = (  # both networks, and notes
    *("--config.train.steps=10", "--config.optim.decay=constant"),  # so that fewer steps are a beginning of more
    *("--config.objective.name=mcbert", "--config.objective.mask_share=1", "--config.objective.random_share=0"),
    *("--config.notes.enabled=true", "--config.notes.single_piece=true"),
    *("--config.notes.min_count=1", "--config.notes.max_count=100000"),
)
LONG = ("--config.train.steps=3000", "--config.train.log_every=1", "--config.eval.every=0")


SLURM_PORTS = range(61440, 65536)  # jax takes one by the number of the job


def free_port(among: Iterable[int] = (0,)) -> int:
    for port in among:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return free.getsockname()[1]
    raise OSError("no port is free")


@pytest.fixture
def start_all(command, start, monkeypatch: pytest.MonkeyPatch):
    """Starts as many processes as are asked for.

    They are told of each other by flags, or find each other as under SLURM.
    """

    def begin(count: int, workdir: Path, *args: str, each: tuple[tuple[str, ...], ...] = (), slurm: bool = False):
        port, now = free_port(random.sample(SLURM_PORTS, 99) if slurm else (0,)), []
        for number in range(count):
            own = each[number] if each else ()
            told = (f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={number}")
            if slurm:
                told = ("--distributed",)
                job = {"JOB_ID": port - SLURM_PORTS[0], "STEP_NODELIST": "localhost", "NTASKS": count}
                for name, value in (job | {"PROCID": number, "LOCALID": number, "STEP_NUM_NODES": 1}).items():
                    monkeypatch.setenv(f"SLURM_{name}", str(value))
            now.append(start(command("train", "--workdir", workdir, *told, *args, *own)))
        return now

    return begin


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    found = []
    for process in processes:
        out, err = process.communicate(timeout=600)
        found.append((process.returncode, out, err))
    return found


def learnt(workdir: Path, step: int) -> list:
    return [restore_params(workdir / "checkpoints", step, subtree=part)[0] for part in ("params", "opt_state", "notes")]


def assert_close(here: list, there: list, atol: float) -> None:
    for one, other in zip(here, there, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def assert_same_run(workdir: Path, other: Path) -> None:
    """To rounding: what was learnt, and the metrics of all steps."""
    assert_close(learnt(workdir, 10), learnt(other, 10), 2e-4)
    expected = {line["step"]: line for line in metrics.read(other)}
    lines = metrics.read(workdir)
    assert {line["step"] for line in lines} >= expected.keys()
    for line in lines:
        for name, value in expected.get(line["step"], {}).items():
            if name != "total/seconds" and not name.startswith("speed/"):
                assert line[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


@pytest.fixture(scope="session")
def alone(shared_tmp: Path, exclusive, command, run) -> Path:
    """The same run by one process on one device."""
    workdir = shared_tmp / "alone"
    with exclusive("alone"):
        if not (workdir / "DONE").exists():
            done = run(command("train", "--workdir", workdir, *EVERYTHING))
            assert done.code == 0, done.err
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_as_one_process(count: int, alone: Path, start_all, tmp_path: Path):
    processes = start_all(count, tmp_path / "run", *EVERYTHING, slurm=count == 2)
    for code, out, err in (results := ended(processes)):
        assert code == 0, (out, err)
    assert "held-out" in results[0][1]
    assert all(not out for _, out, _ in results[1:])  # one speaks
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_on_another_number_of_hosts(alone: Path, start_all, command, run, tmp_path: Path):
    """Two processes begin, one ends: the same batches, and so the same run."""
    begun = ended(start_all(2, tmp_path / "run", *EVERYTHING, "--config.train.steps=5"))
    assert [code for code, _, _ in begun] == [0, 0], begun
    done = run(command("train", "--workdir", tmp_path / "run", *EVERYTHING))
    assert done.code == 0, done.err
    assert "goes on from step 5" in done.out
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_one_is_killed(start_all, command, run, wait_for_step, tmp_path: Path):
    """The other one ends by itself, in seconds; both go on from the checkpoint, and so does one process alone."""
    args = (*LONG, "--config.checkpoint.every_steps=20")
    processes = start_all(2, tmp_path / "run", *args)
    wait_for_step(processes, tmp_path / "run", 45)
    processes[1].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    [code, out, err] = ended(processes[:1])[0]
    assert time.monotonic() - begin < 30
    assert code == LOST, (out, err)
    assert re.search(r"error: process 0 of 2: another one is gone; start all of them again", err), err

    killed_at = max(line["step"] for line in metrics.read(tmp_path / "run"))
    processes = start_all(2, tmp_path / "run", *args)
    wait_for_step(processes, tmp_path / "run", killed_at + 10)
    for process in processes[:1]:  # one is told to stop: all save and stop at the same step
        process.send_signal(signal.SIGTERM)
    (first, said, _), (second, _, _) = ended(processes)
    assert (first, second) == (143, 143)
    [step] = re.findall(r"SIGTERM: saved after step (\d+)", said)
    assert re.search(r"goes on from step [\d,]+", said)

    done = run(command("train", "--workdir", tmp_path / "run", *args, f"--config.train.steps={int(step) + 10}"))
    assert done.code == 0, done.err
    assert f"goes on from step {int(step):,}" in done.out


@pytest.mark.slow
def test_the_first_of_four_is_killed(start_all, command, run, wait_for_step, tmp_path: Path):
    """The others end by themselves, in seconds, and one alone comes to the end."""
    args = (*LONG, "--config.train.steps=200", "--config.checkpoint.every_steps=20")
    processes = start_all(4, tmp_path / "run", *args)
    wait_for_step(processes, tmp_path / "run", 45)
    processes[0].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    assert all(code != 0 for code, _, _ in ended(processes))
    assert time.monotonic() - begin < 30
    assert not (tmp_path / "run/DONE").exists()
    done = run(command("train", "--workdir", tmp_path / "run", *args))
    assert done.code == 0, done.err
    [step] = re.findall(r"goes on from step (\d+)", done.out)
    assert int(step) >= 40


@pytest.mark.slow
def test_mistakes_end_all_of_them(start_all, tmp_path: Path):
    """What one process alone finds wrong must not leave the others waiting."""
    different = (("--config.optim.learning_rate=1e-3",), ("--config.optim.learning_rate=2e-3",))
    (_, _, _), (code, _, err) = ended(start_all(2, tmp_path / "run", each=different))
    assert code == 2
    assert "--config: process 1 found something else than the first process" in err
    assert not list((tmp_path / "run").glob("checkpoints/*"))

    (code, _, err), (other, _, _) = ended(start_all(2, tmp_path / "run", "--config.train.batch_size=7"))
    assert code == 2
    assert "train.batch_size=7: must be a multiple of the number of devices, 2" in err
    assert other != 0  # 2 as well, unless it was so slow that jax ended it first


def test_no_others(command, run, tmp_path: Path):
    done = run(command("train", "--workdir", tmp_path / "run", "--distributed"))
    assert "the processes do not come together" in done.error()
    assert "--coordinator=HOST:PORT" in done.error()

"""Small runs: a corpus of made-up words, a model of one layer, and the commands as a user starts them."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from study import SMALL, made_up_text

from jaxpretrain.config import Config, to_dict, validate
from jaxpretrain.train import train
from jaxpretrain.training import metrics
from jaxpretrain.training.workdir import check_workdir, locked

ROOT = Path(__file__).parents[2]
FIELDS = SMALL | {
    "train.steps": 30,
    "train.batch_size": 8,
    "train.log_every": 5,
    "optim.warmup_steps": 5,
    "optim.learning_rate": 3e-3,
    "eval.every": 10,
    "eval.examples": 32,
    "checkpoint.every_steps": 10,
    "checkpoint.every_minutes": 0.0,
    "checkpoint.keep": 9,
}
NOTES = {"notes.enabled": True, "notes.single_piece": True, "notes.min_count": 1, "notes.max_count": 10**5}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What stands on standard error besides progress bars."""
        rows = [row.strip() for row in re.split(r"[\r\n]+", self.err)]
        return [row for row in rows if row and not re.search(r"\[\d+:\d\d.*\]$", row)]

    def error(self) -> str:
        """The one line of a failed command."""
        assert self.code != 0, self.out
        assert len(self.lines) == 1, self.err
        assert self.lines[0].startswith("error: ")
        return self.lines[0]


@pytest.fixture(scope="session")
def text(shared_tmp: Path, exclusive) -> Path:
    path = shared_tmp / "made-up.txt"
    with exclusive("made-up"):
        if not path.exists():
            path.write_text(made_up_text())
    return path


@pytest.fixture(scope="session")
def tiny(text: Path) -> Callable[..., Config]:
    """`tiny(**{"train.steps": 3})`: a small config, validated."""

    def make(**fields: Any) -> Config:
        config = Config()
        for name, value in ({"data.source": f"text:{text}"} | FIELDS | fields).items():
            *rooms, leaf = name.split(".")
            target = config
            for room in rooms:
                target = getattr(target, room)
            assert hasattr(target, leaf), name
            setattr(target, leaf, value)
        validate(config)
        return config

    return make


@pytest.fixture(scope="session")
def run_train() -> Callable[[Config, Path], dict[str, float]]:
    """The command without its flags, in this process, on eight devices."""

    def run(config: Config, workdir: Path) -> dict[str, float]:
        folder = epath.Path(workdir)
        with locked(folder):
            check_workdir(config, folder)
            return train(config, folder)

    return run


@pytest.fixture(scope="session")
def finished(shared_tmp: Path, exclusive, tiny, run_train) -> Path:
    """A run of 30 steps that nothing disturbed, with checkpoints at 10, 20 and 30. Copy it, do not change it."""
    workdir = shared_tmp / "finished"
    with exclusive("finished"):
        if not (workdir / "DONE").exists():
            run_train(tiny(), workdir)
    return workdir


@pytest.fixture(scope="session")
def command(shared_tmp: Path, exclusive, tiny) -> Callable[..., list[str]]:
    """`command("train", "--config.train.steps=3")`: what to start; training runs have the small config."""
    recipe = shared_tmp / "small.py"
    with exclusive("recipe"):
        if not recipe.exists():
            recipe.write_text(RECIPE.format(to_dict(tiny())))

    def make(name: str, *args: object) -> list[str]:
        config = ["--config", str(recipe)] if name == "train" else []
        return [sys.executable, "-m", f"jaxpretrain.{name}", *config, *map(str, args)]

    return make


RECIPE = """
from jaxpretrain.config import from_dict

def get_config(size=""):
    return from_dict({})
"""


def environment(devices: int) -> dict[str, str]:
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}


def opened(args: list[str], devices: int = 1, **options: Any) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    options = {"cwd": ROOT} | options
    return subprocess.Popen(args, env=environment(devices), stdout=pipe, stderr=pipe, text=True, **options)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command, in the repository's root unless told otherwise; kills it if it outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*args: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(opened(*args, **options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
    for process in started:
        process.communicate()


@pytest.fixture(scope="session")
def run() -> Callable[..., Done]:
    """Runs a command to its end."""

    def go(args: list[str], devices: int = 1, stdin: str | None = None, **options: Any) -> Done:
        with opened(args, devices, stdin=subprocess.PIPE, **options) as process:
            try:
                out, err = process.communicate(stdin, timeout=300)
            finally:
                process.kill()
        return Done(process.returncode, out, err)

    return go


@pytest.fixture(scope="session")
def wait_for_step(wait_until) -> Callable[..., None]:
    """Waits until a run of some processes has logged a step; they must live until then."""

    def wait(processes: list[subprocess.Popen[str]], workdir: Path, step: int) -> None:
        logged = lambda: any(line["step"] >= step for line in metrics.read(workdir))  # noqa: E731
        wait_until(f"step {step} of {workdir} is logged", logged, *processes)

    return wait

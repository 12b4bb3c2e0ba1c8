"""A model small enough to compile in a second, and its step on any number of devices."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config import Config, flatten, validate
from jaxpretrain.data.tokenizer import CLS, NEITHER, SEP
from jaxpretrain.objectives import Objective, build
from jaxpretrain.training import sharding
from jaxpretrain.training.optimizer import optimizer
from jaxpretrain.training.programs import state_program, step_program
from jaxpretrain.training.state import TrainState

VOCAB = 208


@dataclass(frozen=True)
class Run:
    """A compiled step, a state to start from (donated by the first step) and a batch on the devices."""

    config: Config
    objective: Objective
    mesh: jax.sharding.Mesh
    step: jax.stages.Compiled
    state: TrainState
    shapes: TrainState
    batch: dict[str, jax.Array]

    def losses(self, steps: int) -> list[float]:
        """Of some steps, each on a batch of its own."""
        state, found = self.state, []
        for number in range(steps):
            state, metrics = self.step(state, put(self, batch_of(self.config, number)))
            assert metrics["finite"]
            found.append(float(metrics["metrics"]["loss"][0]))
        return found


def batch_of(config: Config, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(NEITHER + 1, VOCAB, (config.train.batch_size, config.data.sequence_length), dtype=np.int32)
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    return {"tokens": tokens, "rows": np.arange(len(tokens), dtype=np.int32)}


def put(run: Run, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return sharding.put_batch(batch, sharding.batch_sharding(run.mesh))


def small_config(**fields: Any) -> Config:
    """Dotted names with `__` for the dot: `small(model__position="tupe_r")`."""
    config = Config()
    defaults = {
        "data__sequence_length": 16,
        "data__vocab_size": VOCAB,
        "model__layers": 1,
        "model__hidden": 32,
        "model__ffn": 64,
        "train__batch_size": 16,
        "train__steps": 100,
        "optim__warmup_steps": 2,
    }
    for name, value in (defaults | fields).items():
        room, _, leaf = name.partition("__")
        assert hasattr(getattr(config, room), leaf), name
        setattr(getattr(config, room), leaf, value)
    validate(config)
    return config


def compile_step(
    config: Config,
    batch: dict[str, np.ndarray],
    vocab_size: int,
    devices: int = 1,
    *,
    rows: int = 0,
    objective: Objective | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[Callable[[int], TrainState], Run]:
    """As the loop does it: state born sharded, step compiled ahead, state donated.

    Returns:
        What makes the state from a seed, and the run without one.
    """
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    objective, adam = objective or build(config, vocab_size), optimizer(config)
    make, like = state_program(config, objective, adam, mesh, rows)
    on_devices = sharding.put_batch(batch, sharding.batch_sharding(mesh))
    step = step_program(config, objective, adam, mesh, like).lower(like, on_devices).compile(options)
    return make, Run(config, objective, mesh, step, like, like, on_devices)


_compiled: dict[Any, tuple[Callable[[int], TrainState], Run]] = {}  # tests share what is compiled
_MOST = 12  # programs kept: each holds a thousand and more memory maps


def start(config: Config, devices: int = 1) -> Run:
    key = (*flatten(config).items(), devices, sharding.SMALL)
    if key not in _compiled:
        if len(_compiled) >= _MOST:
            _compiled.clear()
        _compiled[key] = compile_step(config, batch_of(config), VOCAB, devices)
    make, run = _compiled[key]
    return replace(run, state=make(config.train.seed))


@pytest.fixture(scope="session")
def small() -> Callable[..., Config]:
    return small_config


@pytest.fixture(scope="session")
def start_run() -> Callable[..., Run]:
    return start


@pytest.fixture
def shard_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of these models are small: spread even them."""
    monkeypatch.setattr(sharding, "SMALL", 1)

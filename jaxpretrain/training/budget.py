"""Training to a budget: how many steps a number of FLOPs or minutes allows, so that runs compare at equal cost."""

import time
from collections.abc import Callable
from dataclasses import replace

import jax
from jax.sharding import Mesh

from jaxpretrain.config import Config, ConfigError
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.objectives import build
from jaxpretrain.training import flops, hosts, sharding
from jaxpretrain.training.optimizer import optimizer as make_optimizer
from jaxpretrain.training.phases import Phase, batches, phases
from jaxpretrain.training.programs import state_program, step_program

_MANY = 10**6  # steps, whose mean cost is a step's
_WARM_STEPS, _TIMED_STEPS, _LEAST_SECONDS = 3, 20, 2.0


def with_budget(config: Config, known: Config | None, corpus: Corpus, mesh: Mesh) -> Config:
    """The config with the steps that its budget allows; the learning rate then falls to 0 at the last of them.

    Args:
        config: of the run.
        known: the config that the workdir holds, if it holds one: a measured speed is not measured again.
        corpus: the text.
        mesh: the devices.

    Raises:
        ConfigError: the budget allows no step, or too few for the warm-up of a new run.
    """
    train, warmup = config.train, config.optim.warmup_steps
    if train.budget_flops:
        steps = _affordable(config, train.budget_flops, lambda phase: _flops_per_step(phase, corpus))
        name, value = "train.budget_flops", train.budget_flops
    elif train.budget_minutes:
        if known is not None and known.train.budget_minutes:
            steps = round(known.train.steps * train.budget_minutes / known.train.budget_minutes)
        else:
            seconds = 60 * train.budget_minutes
            steps = _affordable(config, seconds, lambda phase: _seconds_per_step(phase, corpus, mesh))
        name, value = "train.budget_minutes", train.budget_minutes
    else:
        return config
    if steps < 1:
        raise ConfigError(f"{name}={value:g}: must be more than one step takes")
    if known is None and 2 * warmup > steps:
        raise ConfigError(
            f"optim.warmup_steps={warmup}: is more than half of the {steps:,} steps that {name}={value:g} allows: give "
            f"--config.optim.warmup_steps={steps // 10}, or a larger budget"
        )
    return replace(config, train=replace(train, steps=steps))


def _affordable(config: Config, budget: float, cost: Callable[[Config], float]) -> int:
    """The steps that a budget pays for; one costs what its phase's config says."""
    many = replace(config, train=replace(config.train, steps=_MANY))
    mean = sum((phase.stop - phase.start) * cost(phase.config) for phase in phases(many)) / _MANY
    return int(budget / mean)


def _flops_per_step(config: Config, corpus: Corpus) -> int:
    params = jax.eval_shape(build(config, corpus.vocab_size).init, jax.random.key(0))
    batch = sharding.batch_shapes(config.train.batch_size, config.data.sequence_length, None)
    return flops.step_flops(config, corpus.vocab_size, params, batch)


def _seconds_per_step(config: Config, corpus: Corpus, mesh: Mesh) -> float:
    """Measured on a state of its own, which is thrown away."""
    objective, optimizer = build(config, corpus.vocab_size), make_optimizer(config)
    init, like = state_program(config, objective, optimizer, mesh, corpus.note_rows)
    state, take_step = init(0), step_program(config, objective, optimizer, mesh, like)
    stream, on_rows = batches([Phase(0, _MANY, config)], corpus, 0), sharding.batch_sharding(mesh)

    def seconds(steps: int) -> float:
        """Of one step, the same number in all processes: it decides how many more they take."""
        nonlocal state
        begin, metrics = time.perf_counter(), None
        for _ in range(steps):
            previous = metrics
            state, metrics = take_step(state, sharding.put_batch(next(stream), on_rows))
            jax.block_until_ready(previous)  # as in training, where one step is on its way while the next is sent off
        jax.block_until_ready(metrics)
        return hosts.of_first((time.perf_counter() - begin) / steps)

    seconds(_WARM_STEPS)  # compiles
    found = seconds(_TIMED_STEPS)
    if found * _TIMED_STEPS < _LEAST_SECONDS:
        found = seconds(int(_LEAST_SECONDS / found))
    return found

"""Short sequences first: a run's phases, each with batches of a shape of its own.

Attention that has learnt nothing yet averages the whole sequence. In a short one that is the neighbours, from which
there is something to learn: so the first plateau is left sooner, and a step on short sequences is no dearer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxpretrain.config import Config, max_positions
from jaxpretrain.data.batches import Batch, train_batches
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.training import sharding


@dataclass(frozen=True)
class Phase:
    """Steps with batches of one shape.

    Attributes:
        start: steps that come before.
        stop: the last of its steps.
        config: the run's, with this phase's sequences.
    """

    start: int
    stop: int
    config: Config

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.config.data.sequence_length

    def batch_shapes(self, on_rows: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
        """Of its global batches on the devices, `wishes` (training/hosts.py) among them."""
        size = self.config.train.batch_size
        wishes = jax.ShapeDtypeStruct((size,), np.int8, sharding=on_rows)
        return sharding.batch_shapes(size, self.length, on_rows) | {"wishes": wishes}


def phases(config: Config) -> list[Phase]:
    """The run's own sequences, after a share of the steps on short ones with as many tokens."""
    train, steps = config.train, config.train.steps
    short_steps = round(train.short_share * steps)
    if not short_steps:
        return [Phase(0, steps, config)]
    ratio = config.data.sequence_length // train.short_length
    short = replace(
        config,
        data=replace(config.data, sequence_length=train.short_length),
        model=replace(config.model, max_positions=max_positions(config)),
        notes=replace(config.notes, capacity=-(-config.notes.capacity // ratio)),
        train=replace(train, batch_size=train.batch_size * ratio),
    )
    both = [Phase(0, short_steps, short), Phase(short_steps, steps, config)]
    return [phase for phase in both if phase.start < phase.stop]


def batches(plan: list[Phase], corpus: Corpus, start: int) -> Iterator[Batch]:
    """This process's rows of steps start, start + 1, …: a function of (seed, step), across all phases.

    Raises:
        ConfigError: when the training text does not fill one batch.
    """

    def of(phase: Phase) -> Iterator[Batch]:
        train, begin = phase.config.train, max(start, phase.start)
        stream = train_batches(
            corpus,
            batch_size=train.batch_size,
            sequence_length=phase.length,
            seed=train.seed,
            start=begin,
            rows=sharding.local_rows(train.batch_size),
        )
        return islice(stream, phase.stop - begin)

    # Mistakes show now; those of the run's own sequences, the last phase's, in the terms of its config.
    return chain.from_iterable([of(phase) for phase in reversed(plan) if start < phase.stop][::-1])


def total(plan: list[Phase], each: dict[int, int], step: int) -> int:
    """What the steps up to `step` come to, where `each` says what one is, by the length of its sequences."""
    return sum(each[phase.length] * max(0, min(step, phase.stop) - phase.start) for phase in plan)


def tokens_per_step_of(config: Config) -> int:
    """The same in all phases."""
    return config.train.batch_size * config.data.sequence_length

"""Short sequences first: which steps, which batches, what they cost."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from study import made_up_text

from jaxpretrain.config import Config, DataConfig, NotesConfig
from jaxpretrain.data.batches import train_batches
from jaxpretrain.data.build import prepare
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.training.phases import batches, phases, total
from jaxpretrain.training.sharding import batch_sharding, make_mesh

STEPS, SHORT = 7, 3


def config_of(short_share: float = SHORT / STEPS, steps: int = STEPS) -> Config:
    config = Config()
    config.data.sequence_length, config.notes.capacity = 32, 5
    config.train = replace(config.train, steps=steps, batch_size=6, short_share=short_share, short_length=8)
    return config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder: Path = tmp_path_factory.mktemp("phases")
    (folder / "text.txt").write_text(made_up_text())
    data = DataConfig(source=f"text:{folder}/text.txt", vocab_size=200, cache_dir=str(folder / "cache"), held_out=0.1)
    return prepare(data, NotesConfig())


def test_the_same_tokens_in_shorter_sequences():
    short, whole = phases(config_of())
    assert (short.start, short.stop, whole.start, whole.stop) == (0, SHORT, SHORT, STEPS)
    assert whole.config == config_of()
    assert (short.length, short.config.train.batch_size, short.config.notes.capacity) == (8, 24, 2)
    assert short.config.model.max_positions == 32  # the network is one


@pytest.mark.parametrize(("short_share", "lengths"), [(0.0, [32]), (0.01, [32]), (0.99, [8])])
def test_one_phase(short_share: float, lengths: list[int]):
    """A share that comes to no step, or to all."""
    plan = phases(config_of(short_share))
    assert [(phase.start, phase.stop) for phase in plan] == [(0, STEPS)]
    assert [phase.length for phase in plan] == lengths


@pytest.mark.parametrize("start", [0, 2, SHORT, 5])
def test_batches_are_a_function_of_the_step(corpus: Corpus, start: int):
    plan = phases(config_of())
    found = list(batches(plan, corpus, start))
    assert len(found) == STEPS - start
    mesh = make_mesh(config_of(), jax.devices()[:1])
    for step, batch in enumerate(found, start):
        [phase] = [phase for phase in plan if phase.start <= step < phase.stop]
        shapes = phase.batch_shapes(batch_sharding(mesh))
        assert {name: rows.shape for name, rows in batch.items()} == {n: shapes[n].shape for n in batch}
        lone = train_batches(
            corpus, batch_size=phase.config.train.batch_size, sequence_length=phase.length, seed=0, start=step
        )
        np.testing.assert_array_equal(batch["tokens"], next(lone)["tokens"])


def test_totals_across_the_border():
    plan = phases(config_of())
    assert [total(plan, {8: 2, 32: 10}, step) for step in range(STEPS + 1)] == [0, 2, 4, 6, 16, 26, 36, 46]

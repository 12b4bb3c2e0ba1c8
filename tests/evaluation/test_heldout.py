"""The held-out evaluation: the same every time, on any devices and in any batches; it changes nothing."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.config import Config
from jaxpretrain.data.batches import eval_batches
from jaxpretrain.data.build import prepare
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.evaluation import heldout
from jaxpretrain.evaluation.heldout import MASK_SEED, Evaluation
from jaxpretrain.evaluation.pictures import NOTES_METRICS, QUIZ_METRICS
from jaxpretrain.objectives import OBJECTIVES, build
from jaxpretrain.training import sharding
from jaxpretrain.training.optimizer import optimizer
from jaxpretrain.training.state import TrainState, init_state


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder: Path = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(60)]
    documents = [" ".join(rng.choice(words, 50, p=np.arange(60, 0, -1) / 1830)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    config = small()
    config.data.source, config.data.cache_dir = f"text:{folder}/text.txt", str(folder / "cache")
    config.notes.min_count, config.notes.max_count, config.notes.single_piece = 5, 50, True
    return prepare(config.data, config.notes, progress=False)


def small() -> Config:
    config = Config()
    config.data.sequence_length, config.data.vocab_size, config.data.held_out = 16, 200, 0.3
    config.model.layers, config.model.hidden, config.model.ffn = 1, 32, 64
    config.train.batch_size, config.eval.examples = 8, 20
    return config


def state_of(config: Config, corpus: Corpus) -> TrainState:
    objective = build(config, corpus.vocab_size)
    return jax.jit(
        lambda: init_state(
            0, objective=objective, optimizer=optimizer(config), config=config, note_rows=corpus.note_rows
        )
    )()


def evaluation(config: Config, corpus: Corpus, devices: int = 8) -> Evaluation:
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    return Evaluation(config, corpus, mesh)


def bits(state: TrainState) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(dataclasses.replace(state, rng=None))]


def placed(state: TrainState, devices: int) -> TrainState:
    return jax.device_put(state, sharding.replicated(sharding.make_mesh(small(), jax.devices()[:devices])))


def test_it_is_the_same_every_time_and_changes_nothing(corpus: Corpus):
    state = placed(state_of(small(), corpus), 8)
    before = bits(state)
    evaluate = evaluation(small(), corpus)
    first = evaluate(state)
    assert evaluate(state) == first
    assert evaluation(small(), corpus)(state) == first
    assert bits(state) == before
    assert {"eval/mlm_loss", "eval/mlm_accuracy", "eval/unigram_loss"} <= set(first)


def test_batches_and_devices_do_not_matter(corpus: Corpus):
    """Twenty examples in batches of 8 (the last one filled up) or 24, on one device or eight."""
    state = state_of(small(), corpus)
    expected = evaluation(small(), corpus)(placed(state, 8))
    config = small()
    config.eval.batch_size = 24
    for found in (
        evaluation(config, corpus)(placed(state, 8)),
        evaluation(small(), corpus, devices=1)(placed(state, 1)),
    ):
        assert found == pytest.approx(expected, rel=1e-5)


def test_each_device_evaluates_its_own_rows_where_weights_are_spread(corpus: Corpus):
    """What devices send each other are weights, and sums over the batch: nothing with a row for each sequence."""
    config = small()
    config.sharding.fsdp, config.model.hidden, config.model.ffn = 2, 128, 512
    config.model.layer_loop = "scan"  # as on accelerators: written out, layers leave activations where they are
    mesh = sharding.make_mesh(config, jax.devices()[:2])
    shapes = jax.eval_shape(lambda: dataclasses.replace(state_of(config, corpus), notes=None))
    like = sharding.with_sharding(shapes, sharding.state_sharding(mesh, shapes))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(like.params))
    program = Evaluation(config, corpus, mesh).compile(like).as_text()
    sent = re.findall(r"(\S+) = (.*?) (all-gather|all-reduce|all-to-all|collective-permute)\(", program)
    assert any(kind == "all-gather" for _, _, kind in sent)
    assert not [line for line in sent if re.search(r"\[[84],", line[1])]


@pytest.mark.parametrize("objective", ["mlm", "mcbert"])
def test_it_takes_no_more_at_once_than_a_micro_batch(corpus: Corpus, objective: str, monkeypatch: pytest.MonkeyPatch):
    config, sizes = small(), set()
    config.train.batch_size, config.objective.name = 32, objective
    if objective == "mcbert":
        config.objective.mask_share, config.objective.random_share = 1.0, 0.0
    state = placed(state_of(config, corpus), 8)
    whole = evaluation(config, corpus)(state)
    put = heldout.put_batch
    monkeypatch.setattr(
        heldout, "put_batch", lambda batch, place: (sizes.add(len(batch["rows"])), put(batch, place))[1]
    )
    config.train.accumulation = 4
    assert evaluation(config, corpus)(state) == pytest.approx(whole, rel=1e-5)
    assert sizes == {8}
    config.eval.batch_size = 16
    evaluation(config, corpus)(state)
    assert sizes == {8, 16}


def test_seed_dropout_and_mask_rate_of_the_training_do_not_matter(corpus: Corpus):
    config = small()
    config.train.seed, config.model.dropout, config.objective.mask_rate = 5, 0.9, 0.5
    state = placed(state_of(small(), corpus), 8)
    assert evaluation(config, corpus)(state) == evaluation(small(), corpus)(state)
    config.eval.masked = 0.5
    assert evaluation(config, corpus)(state) != evaluation(small(), corpus)(state)


def test_examples_are_counted(corpus: Corpus):
    config, state = small(), placed(state_of(small(), corpus), 8)
    few = evaluation(config, corpus)(state)["eval/mlm_loss"]
    config.eval.examples = 10**6
    assert evaluation(config, corpus)(state)["eval/mlm_loss"] != few


def test_an_untrained_model_knows_nothing_and_the_unigram_model_something(corpus: Corpus):
    result = evaluation(small(), corpus)(placed(state_of(small(), corpus), 8))
    uniform = np.log(corpus.vocab_size)
    assert result["eval/mlm_loss"] == pytest.approx(uniform, abs=0.3)
    assert result["eval/unigram_loss"] < uniform - 0.3


def test_the_unigram_model_is_that_of_the_training_text(corpus: Corpus):
    """Its loss at the masked pieces, which are the same in every run."""
    config = small()
    config.eval.examples = 10**6
    text = np.concatenate([np.fromfile(path, "<u2") for path in corpus.train_shards])
    counts = np.bincount(text, minlength=corpus.vocab_size) + 1
    corrupt = jax.jit(build(config, corpus.vocab_size).corrupt)
    losses: list[float] = []
    for batch in eval_batches(corpus, batch_size=64, sequence_length=16, examples=10**6):
        masked = corrupt(batch, jax.random.key(MASK_SEED))
        losses += (-np.log(counts / counts.sum()))[masked["labels"]][masked["weights"] > 0].tolist()
    found = evaluation(config, corpus)(placed(state_of(config, corpus), 8))["eval/unigram_loss"]
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_every_metric_that_pictures_draw_is_measured(corpus: Corpus):
    found = {}
    for name in OBJECTIVES:
        config = small()
        config.objective.name, config.notes.enabled, config.notes.window = name, True, 1
        found[name] = set(evaluation(config, corpus, devices=1)(placed(state_of(config, corpus), 1)))
    assert set(NOTES_METRICS) <= set().union(*found.values())
    assert set(QUIZ_METRICS) <= found["mcbert"]

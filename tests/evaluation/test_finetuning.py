"""Trials of a grid against the same trials alone, and what a trial learns."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain import notes as notes_lib
from jaxpretrain.config import Config, FinetuneConfig
from jaxpretrain.data.tokenizer import CLS, NEITHER, PAD, SEP
from jaxpretrain.evaluation.finetuning import Finetuner, Grid, predictions, trials_at_once
from jaxpretrain.evaluation.labelled import Bucket
from jaxpretrain.evaluation.tasks import Examples, Task
from jaxpretrain.models.encoder import Encoder

VOCAB, BATCH = 40, 8
TASK = Task("made-up", ("text",), "label", ("no", "yes"), ("accuracy", "matthews"), epochs=2)


def bucket_of(length: int, rows: int, seed: int, first: int = 0) -> Bucket:
    """Whether a text holds the piece 10."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(NEITHER + 5, VOCAB, (rows, length), dtype=np.int32)
    tokens[:, 0] = CLS
    ends = rng.integers(4, length + 1, rows)
    for row, end in zip(tokens, ends, strict=True):
        row[row == 10] = 11
        row[end - 1], row[end:] = SEP, PAD
    labels = rng.integers(0, 2, rows).astype(np.int32)
    tokens[labels == 1, 1] = 10
    words = np.zeros_like(tokens)
    words[:, 2] = 2 * (1 + np.arange(rows) % 4) + 1
    return Bucket(tokens, np.zeros_like(tokens), words, labels, np.arange(first, first + rows, dtype=np.int32))


def grid(at_once: int, notes: str = "drop", task: Task = TASK, lengths: tuple[int, ...] = (8,), **fields: Any) -> Grid:
    run = Config()
    run.model = replace(run.model, layers=1, hidden=16, heads=2, ffn=32, initializer_range=0.1)
    run.data.sequence_length = 16
    config = FinetuneConfig(init_from="run", task="t", batch_size=BATCH, notes=notes)
    config = replace(config, **fields)
    train = [bucket_of(length, 37, seed) for seed, length in enumerate(lengths)]
    dev = [bucket_of(length, 20, 7 + i, first=20 * i) for i, length in enumerate(lengths)]
    labels = np.concatenate([bucket.labels for bucket in dev])
    examples = Examples([str(i) for i in range(len(labels))], [("",)] * len(labels), labels)
    steps = 5 * len(lengths) * (config.epochs or task.epochs)
    finetuner = Finetuner(config, run, VOCAB, task, steps)
    params = jax.jit(Encoder(run.model, VOCAB, 16).init)(jax.random.key(3))
    table = None if notes == "drop" else notes_lib.init(jax.random.key(0), 8, 16, 0.1)
    return Grid(finetuner, train, {"dev": (dev, examples)}, params, table, at_once)


TRIALS = [(3e-3, 0), (3e-3, 1), (1e-2, 0), (1e-2, 1), (3e-2, 5)]


def test_a_trial_among_others_is_the_trial_alone():
    """Side by side over eight devices, filled up with a repeated trial; dropout on."""
    together, model_of = grid(5, lengths=(8, 12)).run(TRIALS)
    alone = grid(1, lengths=(8, 12))
    for i, trial in enumerate(TRIALS):
        [result], its_model = alone.run([trial])
        assert (result.rate, result.seed) == trial
        assert result.epoch == together[i].epoch
        assert result.scores == together[i].scores
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-3), its_model(0)[0], model_of(i)[0])
    models = {np.asarray(model_of(i)[0]["head"]["out"]["kernel"]).tobytes() for i in range(len(TRIALS))}
    assert len(models) == len(TRIALS)


def test_it_learns_what_the_labels_say():
    results, _ = grid(1, epochs=12).run([(1e-2, 0)])
    assert results[0].scores["dev"]["accuracy"] > 0.9
    assert results[0].finite


def test_the_best_epoch_or_the_last():
    best, _ = grid(1, epochs=6).run([(3e-2, 0)])
    last, _ = grid(1, epochs=6, select="last").run([(3e-2, 0)])
    assert last[0].epoch == 6
    assert last[0].scores == last[0].last == best[0].last
    assert best[0].scores["dev"]["accuracy"] >= best[0].last["dev"]["accuracy"]


def test_the_model_that_is_given_back_is_that_of_the_epoch_that_counts():
    """Its scores, predicted anew, are those of the result."""
    trials = grid(2, epochs=3)
    results, model_of = trials.run(TRIALS[:2])
    for i, result in enumerate(results):
        params, _ = model_of(i)
        dev, examples = trials._dev["dev"]
        right = 0
        for bucket in dev:
            scores = trials.finetuner.outputs(jax.tree.map(jnp.asarray, params), None, bucket, None)[0]
            right += int((np.asarray(scores).argmax(-1) == np.asarray(bucket.labels)).sum())
        assert right / len(examples) == pytest.approx(result.scores["dev"]["accuracy"])


@pytest.mark.parametrize(("notes", "moves"), [("fixed", False), ("updated", True)])
def test_notes_that_are_kept(notes: str, moves: bool):
    trials = grid(1, notes)
    _, model_of = trials.run([(1e-3, 0)])
    _, after = model_of(0)
    before = notes_lib.init(jax.random.key(0), 8, 16, 0.1)
    changed = (after.table != np.asarray(before.table)).any(-1)
    assert changed.tolist() == [moves] * 4 + [False] * 4
    params = trials.finetuner.encoder.init(jax.random.key(0))
    head = trials.finetuner.head.init(jax.random.key(0), jnp.zeros(16), None)["params"]
    rows = bucket_of(8, 5, 1)
    read = trials.finetuner.outputs({"encoder": params, "head": head}, before, rows, None)[0]
    unread = trials.finetuner.outputs({"encoder": params, "head": head}, None, rows, None)[0]
    assert (read != unread).any(-1).all()


def test_padding_changes_no_score():
    finetuner = grid(1).finetuner
    params = {
        "encoder": finetuner.encoder.init(jax.random.key(0)),
        "head": finetuner.head.init(jax.random.key(1), jnp.zeros(16), None)["params"],
    }
    rows = bucket_of(8, 5, 1)
    longer = Bucket(*(np.pad(x, ((0, 0), (0, 4))) for x in (rows.tokens, rows.segments, rows.words)), 0, 0)
    longer.tokens[:, 8:] = PAD
    np.testing.assert_allclose(
        finetuner.outputs(params, None, rows, None)[0], finetuner.outputs(params, None, longer, None)[0], atol=1e-5
    )


def test_rows_that_fill_up_a_batch_weigh_nothing():
    trials = grid(1)
    finetuner = trials.finetuner
    trial = finetuner.init(0, 1e-2, trials._pretrained[0], None)
    rows = bucket_of(8, 5, 1)
    step = jax.jit(finetuner.step)
    few = step(trial, rows, jnp.array([0, 1, 2, -1, -1]))
    changed = replace(rows, tokens=rows.tokens.copy(), labels=rows.labels.copy())
    changed.labels[0] = 1 - changed.labels[0]
    swapped = replace(rows, tokens=np.concatenate([rows.tokens[:3], rows.tokens[:2]]))
    same = step(trial, swapped, jnp.array([0, 1, 2, -1, -1]))
    jax.tree.map(np.testing.assert_array_equal, few.params, same.params)
    other = step(trial, changed, jnp.array([0, 1, 2, -1, -1]))
    assert (few.params["head"]["out"]["bias"] != other.params["head"]["out"]["bias"]).any()


def test_what_a_trial_is_trained_with_shapes_the_model():
    def trained(**fields: float) -> Any:
        trials = grid(1, **fields)
        trial = jax.jit(trials.finetuner.init)(0, 1e-2, trials._pretrained[0], None)
        step = jax.jit(trials.finetuner.step)
        for _ in range(3):
            trial = step(trial, bucket_of(8, 8, 1), jnp.arange(8))
        return trial.params["encoder"]["layers"]

    nothing = dict.fromkeys(("warmup", "weight_decay", "dropout", "attention_dropout"), 0.0)
    without = trained(**nothing)
    for field in nothing:
        apart = jax.tree.map(lambda x, y: np.abs(x - y).max(), trained(**nothing | {field: 0.5}), without)
        assert max(jax.tree.leaves(apart)) > 1e-3, field


def test_untrained_starts_from_fresh_weights_that_follow_the_seed():
    finetuner = grid(1, untrained=True).finetuner
    pretrained = finetuner.encoder.init(jax.random.key(3))
    tables = [finetuner.init(s, 1e-3, pretrained, None).params["encoder"]["embedder"]["tokens"] for s in (0, 0, 1)]
    assert (tables[0] == tables[1]).all()
    assert (tables[0] != tables[2]).all()
    assert (tables[0] != pretrained["embedder"]["tokens"]).all()


def test_regression_and_a_rate_that_breaks_it():
    task = Task("made-up", ("text",), "score", (), ("pearson", "spearman"), epochs=12)
    good, bad = grid(2, task=task, clip_norm=0.0).run([(1e-2, 0), (1e30, 0)])[0]
    assert good.finite
    assert good.scores["dev"]["pearson"] > 0.8
    assert not bad.finite
    assert bad.scores["dev"]["pearson"] == 0.0


def test_an_epoch_without_numbers_is_not_the_best(monkeypatch: pytest.MonkeyPatch):
    """Of NaN the argmax is class 0: on unbalanced rows that scores well."""
    trials = grid(1, epochs=3)
    examples = trials._dev["dev"][1]
    examples.labels[:] = 0
    step, taken = trials._step, []

    def breaks(state: Any, *args: Any) -> Any:
        taken.append(1)
        state = step(state, *args)
        if len(taken) > 10:  # in the third epoch
            state = replace(state, params=jax.tree.map(lambda x: x * jnp.nan, state.params))
        return state

    monkeypatch.setattr(trials, "_step", breaks)
    [result], model_of = trials.run([(1e-2, 0)])
    assert result.last["dev"]["accuracy"] == 1.0 >= result.scores["dev"]["accuracy"]
    assert result.epoch < 3
    assert not result.finite
    assert result.sound
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(model_of(0)[0]))


def test_predictions_are_classes_or_numbers():
    assert predictions(np.array([[0.1, 0.3], [np.nan, -1]]), TASK).tolist() == [1, 0]
    assert predictions(np.array([[0.1], [np.nan]]), replace(TASK, classes=())).tolist() == [pytest.approx(0.1), 0]
    scaled = replace(TASK, classes=(), scale=(100.0, 20.0))
    assert predictions(np.array([[0.1], [np.nan]]), scaled).tolist() == [pytest.approx(102), 100]


@pytest.mark.parametrize(
    ("mode", "at_once", "expected"), [("auto", 0, 1), ("loop", 7, 1), ("vmap", 3, 3), ("vmap", 99, 20), ("auto", 4, 4)]
)
def test_trials_at_once_on_a_cpu(mode: str, at_once: int, expected: int):
    config = FinetuneConfig(grid=mode, at_once=at_once)
    assert trials_at_once(config, 20, lambda: pytest.fail("memory is not asked for")) == expected
    config = FinetuneConfig(grid="vmap")
    assert trials_at_once(config, 20, lambda: 1e3) == 20
    assert trials_at_once(config, 20, lambda: 1e18) == 1


def test_trials_at_once_on_a_card_fill_its_memory(monkeypatch: pytest.MonkeyPatch):
    class Card:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 1000}

    monkeypatch.setattr(jax, "devices", lambda: [Card(), Card()])
    config = FinetuneConfig(grid="vmap")
    assert trials_at_once(config, 20, lambda: 100.0) == 16
    assert trials_at_once(config, 20, lambda: 5000.0) == 1
    assert trials_at_once(config, 20, lambda: 1.0) == 20


def test_memory_of_a_trial_is_what_one_more_needs_on_its_device():
    devices = len(jax.devices())
    one, two = (grid(times * devices).bytes_per_trial() for times in (1, 2))
    assert 1e5 < two <= one < 1e7
    assert two > 0.5 * one

from itertools import islice

import numpy as np
import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.data.batches import eval_batches, train_batches, train_dataset
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.data.tokenizer import CLS, PAD, SEP
from tests.data.test_build import stream

T, B = 32, 8


def first(corpus: Corpus, count: int, **options: object) -> list[dict[str, np.ndarray]]:
    settings: dict[str, object] = {"batch_size": B, "sequence_length": T, "seed": 0} | options
    return list(islice(train_batches(corpus, **settings), count))


def assert_same(batches: list[dict[str, np.ndarray]], others: list[dict[str, np.ndarray]]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for name in ("tokens", "words", "rows"):
            np.testing.assert_array_equal(batch[name], other[name])


def test_an_epoch_covers_the_stream_once(corpus: Corpus):
    train = stream(corpus, "train")
    examples = len(train) // (T - 2)
    steps = -(-examples // B)
    rows = np.concatenate([batch["tokens"] for batch in first(corpus, steps)])[:examples]
    assert set(rows[:, 0]) == {CLS}
    assert set(rows[:, -1]) == {SEP}
    found = sorted(map(tuple, rows[:, 1:-1]))
    assert found == sorted(map(tuple, train[: examples * (T - 2)].reshape(examples, T - 2)))


def test_epochs_follow_one_another_in_other_orders(corpus: Corpus):
    examples = corpus.train_tokens // (T - 2)
    rows = np.concatenate([batch["tokens"] for batch in first(corpus, 2 * examples // B + 1)])
    one, two = rows[:examples], rows[examples : 2 * examples]
    assert not np.array_equal(one, two)
    assert sorted(map(tuple, one)) == sorted(map(tuple, two))
    in_order = stream(corpus, "train")[: examples * (T - 2)].reshape(examples, T - 2)
    assert not np.array_equal(one[:, 1:-1], in_order)


def test_types_and_rows(corpus: Corpus):
    for batch in first(corpus, 3):
        assert batch["tokens"].shape == (B, T)
        assert batch["tokens"].dtype == batch["rows"].dtype == np.int32
        np.testing.assert_array_equal(batch["rows"], np.arange(B))


def test_a_batch_depends_on_seed_and_step(corpus: Corpus):
    assert_same(first(corpus, 20), first(corpus, 20))
    dataset = train_dataset(corpus, batch_size=B, sequence_length=T, seed=0)
    assert_same(first(corpus, 20), [dataset[step] for step in reversed(range(20))][::-1])
    assert not np.array_equal(first(corpus, 1)[0]["tokens"], first(corpus, 1, seed=1)[0]["tokens"])


@pytest.mark.parametrize("start", [1, 7, 1000])
def test_starting_late_is_skipping(corpus: Corpus, start: int):
    assert_same(first(corpus, 3, start=start), first(corpus, start + 3)[start:])


def test_hosts_read_their_rows(corpus: Corpus):
    whole = first(corpus, 5)
    parts = [first(corpus, 5, rows=rows) for rows in (slice(0, 3), slice(3, 4), slice(4, 8))]
    for step, batch in enumerate(whole):
        for name in ("tokens", "words", "rows"):
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), batch[name])


def test_sequences_across_shards(corpus: Corpus, tmp_path, monkeypatch: pytest.MonkeyPatch):
    from dataclasses import replace

    train = stream(corpus, "train").astype("<u2")
    paths = []
    for i, part in enumerate(np.split(train, [1, 5, 6, 200, 1000])):
        paths.append(tmp_path / f"train-{i}.bin")
        part.tofile(paths[-1])
    assert_same(first(replace(corpus, train_shards=tuple(paths)), 50), first(corpus, 50))


def test_held_out_examples_in_order(corpus: Corpus):
    valid = stream(corpus, "valid")
    count = len(valid) // (T - 2)
    batches = list(eval_batches(corpus, batch_size=B, sequence_length=T, examples=10**9))
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    np.testing.assert_array_equal(np.concatenate([batch["rows"] for batch in batches]), np.arange(len(tokens)))
    assert len(tokens) % B == 0
    assert count <= len(tokens) < count + B
    np.testing.assert_array_equal(tokens[:count, 1:-1].ravel(), valid[: count * (T - 2)])
    assert (tokens[count:] == PAD).all()
    assert (tokens[:count] != PAD).all()


@pytest.mark.parametrize("examples", [1, B, B + 1])
def test_held_out_examples_at_most(corpus: Corpus, examples: int):
    batches = list(eval_batches(corpus, batch_size=B, sequence_length=T, examples=examples))
    assert len(batches) == -(-examples // B)
    assert sum((batch["tokens"][:, 0] == CLS).sum() for batch in batches) == examples


def test_some_of_the_held_out_examples_are_spread_over_all(corpus: Corpus):
    settings = {"batch_size": 1, "sequence_length": T}
    every = [batch["tokens"][0] for batch in eval_batches(corpus, **settings, examples=10**9)]
    some = [batch["tokens"][0] for batch in eval_batches(corpus, **settings, examples=5)]
    np.testing.assert_array_equal(some, [every[i * len(every) // 5] for i in range(5)])
    assert len(every) > 5


def test_hosts_evaluate_their_rows(corpus: Corpus):
    settings = {"batch_size": B, "sequence_length": T, "examples": B + 3}
    whole = list(eval_batches(corpus, **settings))
    parts = [list(eval_batches(corpus, **settings, rows=rows)) for rows in (slice(0, 5), slice(5, 8))]
    for step, batch in enumerate(whole):
        for name in ("tokens", "words", "rows"):
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), batch[name])


def test_held_out_text_shorter_than_a_sequence_is_padded(corpus: Corpus):
    length = corpus.valid_tokens + 10
    (batch,) = eval_batches(corpus, batch_size=2, sequence_length=length, examples=5)
    expected = [CLS, *stream(corpus, "valid"), SEP, *[PAD] * 8]
    np.testing.assert_array_equal(batch["tokens"], [expected, [PAD] * length])


def test_too_little_text_for_a_batch(corpus: Corpus):
    message = r"data.source: .* 1 sequences of data.sequence_length=.*: too little for one batch of train.batch_size=2"
    with pytest.raises(ConfigError, match=message):
        train_batches(corpus, batch_size=2, sequence_length=corpus.train_tokens, seed=0)

"""Buckets and their order, by plain counting."""

import numpy as np
import pytest

from jaxpretrain.data.tokenizer import CLS, PAD, SEP, Tokenizer, train
from jaxpretrain.evaluation.finetuning import predictions
from jaxpretrain.evaluation.labelled import bucket_lengths, bucketed, order_in_bucket, sequence_of_buckets
from jaxpretrain.evaluation.tasks import Examples, Task

TASK = Task("made-up", ("text",), "label", ("no", "yes"), ("accuracy",))
WORDS = ["red", "green", "blue", "yellow", "orange", "violet", "indigo"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    counts = [(f"▁{word}", 100 - i) for i, word in enumerate(WORDS)]
    return train(counts, tmp_path_factory.mktemp("tokenizer"), vocab_size=64, kind="unigram", lowercase=True)


def examples(texts: list[tuple[str, ...]]) -> Examples:
    return Examples([str(i) for i in range(len(texts))], texts, np.arange(len(texts)) % 2)


def test_every_example_is_in_the_shortest_bucket_that_holds_it(tokenizer):
    rng = np.random.default_rng(0)
    texts = [(" ".join(rng.choice(WORDS, n)),) for n in rng.integers(1, 40, 100)]
    buckets = bucketed(examples(texts), tokenizer, [], 64, TASK)
    assert sorted(np.concatenate([b.numbers for b in buckets])) == list(range(100))
    lengths = [b.tokens.shape[1] for b in buckets]
    assert lengths == sorted(set(lengths))
    for bucket, below in zip(buckets, [0, *lengths], strict=False):
        for tokens, number, label in zip(bucket.tokens, bucket.numbers, bucket.labels, strict=True):
            real = tokens[tokens != PAD]
            assert below < len(real) <= len(tokens)
            assert real.tolist() == [CLS, *tokenizer.encode(texts[number][0]), SEP]
            assert label == number % 2


def test_a_pair_has_two_segments_and_is_cut_at_the_longer(tokenizer):
    first, second = "red " * 30, "blue " * 3
    [bucket] = bucketed(examples([(first, second)]), tokenizer, [], 16, TASK)
    pieces = len(tokenizer.encode(second))
    assert bucket.tokens.shape == (1, 16)
    assert (bucket.tokens[0] == SEP).sum() == 2
    assert bucket.segments[0].sum() == pieces + 1
    assert bucket.tokens[0, -1 - pieces : -1].tolist() == tokenizer.encode(second).tolist()


def test_rare_words_are_marked_where_they_stand_whole(tokenizer):
    text = "red violet blue"
    [bucket] = bucketed(examples([(text,)]), tokenizer, ["green", "violet"], 64, TASK)
    before, inside = (len(tokenizer.encode(t)) for t in ("red", "violet"))
    marks = np.zeros(bucket.words.shape[1], int)
    marks[1 + before : 1 + before + inside] = 2 * (1 + 1)
    marks[1 + before] += 1
    np.testing.assert_array_equal(bucket.words[0], marks)
    limit = 8
    long = "red " * 20 + "violet"
    [cut] = bucketed(examples([(long,)]), tokenizer, ["violet"], limit, TASK)
    assert not cut.words.any()


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([5, 9, 16], 128, [16]),
        ([5] * 50 + [20] * 50, 128, [16, 32]),
        ([5] * 2 + [20] * 98, 128, [32]),  # too few for a bucket of their own
        ([5] * 50 + [20] + [100] * 49, 128, [16, 128]),
        ([5] * 99 + [100], 100, [16, 100]),  # the longest has one however rare
        ([8, 8], 8, [8]),
    ],
)
def test_lengths_of_buckets(lengths, limit, expected):
    assert bucket_lengths(np.array(lengths), limit) == expected


def test_an_epoch_holds_every_example_once_and_the_buckets_come_alike_for_all_seeds():
    sizes = [37, 5, 64]
    first, second = (sequence_of_buckets(sizes, 8, epoch) for epoch in (0, 1))
    assert np.bincount(first).tolist() == [5, 1, 8]
    assert first.tolist() != second.tolist()
    seen = set()
    for seed in (0, 1):
        for bucket, size in enumerate(sizes):
            rows = order_in_bucket(size, 8, seed, 0, bucket)
            assert sorted(rows[rows >= 0]) == list(range(size))
            seen.add(rows.tobytes())
    assert len(seen) == 6


def test_numbers_are_learnt_by_their_scale(tokenizer):
    """Also where they differ by less than float32 can tell, such as dates in seconds."""
    labels = 1.7e9 + np.arange(40.0)
    task = Task("made-up", ("text",), "score", (), ("pearson",), scale=(labels.mean(), labels.std()))
    rows = Examples([str(i) for i in range(40)], [("red",)] * 40, labels)
    [bucket] = bucketed(rows, tokenizer, [], 16, task)
    assert bucket.labels.dtype == np.float32
    np.testing.assert_allclose(bucket.labels, (np.arange(40.0) - 19.5) / labels.std(), rtol=1e-6)
    np.testing.assert_allclose(predictions(bucket.labels[:, None], task), labels, atol=1e-5, rtol=0)

"""GLUE's metrics against numbers worked out by hand, and the summaries of several runs."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from jaxpretrain.evaluation.scores import AVERAGED, METRICS, glue_average, glue_missing, score, summary
from jaxpretrain.evaluation.tasks import GLUE

# 2 true and 1 false positives, 3 false and 4 true negatives.
PREDICTED = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], np.int32)
TRUE = np.array([1, 1, 0, 1, 1, 1, 0, 0, 0, 0], np.int32)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_classification_by_hand():
    found = score(("matthews", "accuracy", "f1"), PREDICTED, TRUE)
    assert list(found) == ["matthews", "accuracy", "f1"]
    assert found == pytest.approx({"matthews": (2 * 4 - 1 * 3) / math.sqrt(3 * 5 * 5 * 7), "accuracy": 0.6, "f1": 0.5})


def test_f1_is_that_of_class_one():
    assert score(("f1",), 1 - PREDICTED, 1 - TRUE)["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 3))
    assert score(("f1",), np.zeros(3), np.zeros(3)) == {"f1": 0}
    assert score(("f1",), np.zeros(3), np.ones(3)) == {"f1": 0}
    assert score(("f1",), np.ones(3), np.ones(3)) == {"f1": 1}


def test_regression_by_hand():
    found = score(("pearson", "spearman"), np.array([1.0, 3.0, 2.0, 4.0]), np.array([1, 2, 3, 4], np.float32))
    assert found == pytest.approx({"pearson": 0.8, "spearman": 0.8})
    # A curve keeps the ranks. Σdx·dy = 104, Σdx² = 2390, Σdy² = 5.
    found = score(("pearson", "spearman"), np.array([1, 8, 27, 64]), np.array([1, 2, 3, 4]))
    assert found == pytest.approx({"pearson": 104 / math.sqrt(2390 * 5), "spearman": 1.0})


def test_ties_share_their_mean_rank():
    # Ranks 1, 2½, 2½, 4: Σdx·dy = 4.5, Σdx² = 4.5, Σdy² = 5.
    found = METRICS["spearman"](np.array([1.0, 2.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0, 40.0]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_against_the_libraries():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=200)
    predictions = np.where(rng.random(200) < 0.6, labels, rng.integers(3, size=200))
    assert METRICS["accuracy"](predictions, labels) == sklearn.metrics.accuracy_score(labels, predictions)
    assert METRICS["matthews"](predictions, labels) == sklearn.metrics.matthews_corrcoef(labels, predictions)
    two, guessed = labels > 0, predictions > 0
    assert METRICS["f1"](guessed, two) == sklearn.metrics.f1_score(two, guessed)
    # Of two classes it is Pearson's correlation.
    assert METRICS["matthews"](guessed, two) == pytest.approx(np.corrcoef(guessed, two)[0, 1])
    scores = rng.integers(11, size=200) / 2
    near = (scores + rng.normal(size=200)).astype(np.float32)
    assert METRICS["pearson"](near, scores) == pytest.approx(np.corrcoef(near, scores)[0, 1])
    assert METRICS["spearman"](near, scores) == pytest.approx(scipy.stats.spearmanr(near, scores).statistic)
    ranks = [scipy.stats.rankdata(values) for values in (near, scores)]
    assert METRICS["spearman"](near, scores) == pytest.approx(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize("name", ["matthews", "pearson", "spearman"])
@pytest.mark.parametrize("constant", [0.0, 1.0, 2.7])
def test_constants_are_uncorrelated(name: str, constant: float):
    varied = np.array([0, 1, 1, 0, 1])
    same = np.full(5, constant, np.float64) if name != "matthews" else np.full(5, round(constant))
    assert score((name,), same, varied) == {name: 0.0}
    assert score((name,), varied, same) == {name: 0.0}
    assert score((name,), same, same) == {name: 0.0}


def test_rounding_is_not_variation():
    nearly = 2.7 + np.arange(5) * 1e-15
    assert score(("pearson", "spearman"), nearly, np.arange(5)) == {"pearson": 0.0, "spearman": 0.0}
    nearly = np.float32(3) + np.array([0, 0, 1, 1, 0], np.float32) * np.spacing(np.float32(3))
    assert score(("pearson", "spearman"), nearly, np.arange(5)) == {"pearson": 0.0, "spearman": 0.0}
    assert score(("pearson",), 2.7 + np.arange(5) * 1e-6, np.arange(5))["pearson"] == pytest.approx(1)


def test_one_row():
    found = score(tuple(METRICS), np.array([1]), np.array([1]))
    assert found == {"matthews": 0, "accuracy": 1, "f1": 1, "pearson": 0, "spearman": 0}


def test_as_many_predictions_as_labels():
    for predictions, labels in ((np.ones(2), np.ones(3)), (np.ones((2, 1)), np.ones((2, 1))), (np.ones(0), np.ones(0))):
        with pytest.raises(ValueError, match=r"must be as many, one or more"):
            score(("accuracy",), predictions, labels)


def test_every_task_has_known_metrics():
    assert {name for task in GLUE.values() for name in task.metrics} == set(METRICS)
    first = {task.name: task.metrics[0] for task in GLUE.values()}
    assert {name: metric for name, metric in first.items() if metric != "accuracy"} == {
        "CoLA": "matthews",
        "STS-B": "pearson",
    }


def test_summary_by_hand():
    found = summary([4.0, 1.0, 3.0, 2.0])
    assert (found["n"], found["median"], found["mean"]) == (4, 2.5, 2.5)
    assert found["std"] == pytest.approx(math.sqrt(5 / 3))
    assert summary([4.0, 1.0, 3.0, 2.0]) == found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_interval_is_that_of_the_binomial(seed: int):
    """The median of a resample is at most the k-th of n values with probability P(Bin(n, k/n) > n/2).

    That is 5.8 % for the first of 5, and 0.1 % and 3 % for the first two of 9.
    """
    for values, low, high in (([3, 1, 4, 5, 2], 1, 5), (range(1, 10), 2, 8)):
        found = summary(list(values), seed)
        assert (found["low"], found["high"]) == (low, high)


def test_the_interval_of_equal_values():
    assert summary([0.5] * 5) == {"n": 5, "median": 0.5, "mean": 0.5, "std": 0.0, "low": 0.5, "high": 0.5}


def test_one_run_has_no_spread():
    found = summary([0.5])
    assert (found["n"], found["median"], found["mean"]) == (1, 0.5, 0.5)
    assert all(math.isnan(found[name]) for name in ("std", "low", "high"))
    with pytest.raises(ValueError, match="no values"):
        summary([])


def test_glue_average_of_the_paper():
    """The row BERT-A of TUPE's table 1, whose average is printed as 82.96."""
    row = (84.93, 84.91, 91.34, 91.04, 92.88, 55.19, 88.29, 68.61, 89.43)
    scores = dict(zip(AVERAGED, row, strict=True))
    assert round(glue_average(scores), 2) == 82.96
    assert glue_average(scores | {"WNLI": 0.0, "AX": 0.0}) == glue_average(scores)
    assert glue_missing(scores) == []


@pytest.mark.parametrize(
    ("row", "average"),
    [
        ((85.0, 85.0, 91.5, 91.2, 93.3, 58.3, 88.3, 69.0, 88.5), 83.1),  # BERT in the TNF paper, as recalled
        ((85.7, 85.2, 91.3, 89.7, 92.3, 62.1, 86.0, 75.0, 88.0), 83.7),  # MC-BERT, as quoted later by others
    ],
)
def test_glue_average_with_mnli_once(row: tuple[float, ...], average: float):
    scores = dict(zip(AVERAGED, row, strict=True))
    assert round(glue_average(scores, mnli_once=True), 1) == average
    assert glue_average({"CoLA": 0.5, "MNLI-m": 0.7}, mnli_once=True) == pytest.approx(0.6)
    assert glue_average({"CoLA": 0.5, "RTE": 0.7}, mnli_once=True) == pytest.approx(0.6)


def test_glue_average_of_a_part():
    assert glue_average({"CoLA": 0.5, "RTE": 0.7, "WNLI": 0.1}) == pytest.approx(0.6)
    assert glue_missing({"CoLA": 0.5, "WNLI": 0.1}) == [
        "MNLI-m",
        "MNLI-mm",
        "QNLI",
        "QQP",
        "SST-2",
        "MRPC",
        "RTE",
        "STS-B",
    ]
    with pytest.raises(ValueError, match="no score to average: MNLI given, MNLI-m, MNLI-mm"):
        glue_average({"MNLI": 0.8})

"""How good predictions are, by GLUE's metrics, and what several runs say together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import sklearn.metrics

_RESAMPLES = 10_000


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predictions == labels))


def _f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Of class 1; 0 where it is neither predicted nor there."""
    return float(sklearn.metrics.f1_score(labels, predictions, zero_division=0.0))  # type: ignore[arg-type]


def _matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    if _constant(predictions) or _constant(labels):
        return 0.0
    return float(sklearn.metrics.matthews_corrcoef(labels, predictions))


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    if _constant(predictions) or _constant(labels):
        return 0.0
    result: Any = scipy.stats.pearsonr(predictions.astype(np.float64), labels.astype(np.float64))
    return float(result.statistic)


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Of the ranks; equal values share their mean rank."""
    if _constant(predictions) or _constant(labels):
        return 0.0
    result: Any = scipy.stats.spearmanr(predictions, labels)
    return float(result.statistic)


def _constant(values: np.ndarray) -> bool:
    """Whether values differ by rounding at most: GLUE counts such predictions as uncorrelated, not as undefined."""
    rtol = 1e-12 if values.dtype == np.float64 else 1e-6
    return np.allclose(values, values[0], rtol=rtol, atol=0)


# Predictions and labels, both [rows]: class indices, or scores for the last two. The score is in [-1, 1].
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "matthews": _matthews,
    "accuracy": _accuracy,
    "f1": _f1,
    "pearson": _pearson,
    "spearman": _spearman,
}

# What the TUPE paper averages, each by its first metric: Matthews for CoLA, Pearson for STS-B, else accuracy.
AVERAGED = ("MNLI-m", "MNLI-mm", "QNLI", "QQP", "SST-2", "CoLA", "MRPC", "RTE", "STS-B")


def score(task_metrics: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of predictions, in the order asked for.

    Args:
        task_metrics: names in `METRICS`.
        predictions: [rows] class indices or scores.
        labels: [rows] the true ones.

    Raises:
        ValueError: no rows, or not as many predictions as labels.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape}: must be as many, one or more")
    return {name: METRICS[name](predictions, labels) for name in task_metrics}


def summary(values: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """What runs with different seeds say together.

    Args:
        values: one score a run.
        seed: of the resampling.

    Returns:
        n, median, mean, std (with n - 1), and low and high, the 95 % percentile bootstrap interval of the median. One
        run has no spread: std, low and high are nan.

    Raises:
        ValueError: no values.
    """
    runs = np.asarray(values, np.float64)
    n = len(runs)
    if not n:
        raise ValueError("no values to summarise")
    result = {"n": n, "median": float(np.median(runs)), "mean": float(runs.mean())}
    if n == 1:
        return result | dict.fromkeys(("std", "low", "high"), float("nan"))
    rng = np.random.default_rng(seed)
    medians = np.median(runs[rng.integers(n, size=(_RESAMPLES, n))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return result | {"std": float(runs.std(ddof=1)), "low": float(low), "high": float(high)}


def glue_average(scores: Mapping[str, float], *, mnli_once: bool = False) -> float:
    """The mean over those of `AVERAGED` that are there; `glue_missing` says which are not. WNLI and AX do not count.

    Args:
        scores: the main metric of each task, under the names of GLUE's submission files.
        mnli_once: both MNLI sets are one number, their mean, as in the TNF and MC-BERT papers' averages of eight; else
            two, as in the TUPE paper's of nine.

    Raises:
        ValueError: none is there.
    """
    found = [scores[name] for name in AVERAGED if name in scores]
    mnli = [scores[name] for name in AVERAGED[:2] if name in scores]
    if mnli_once and mnli:
        found = [float(np.mean(mnli)), *found[len(mnli) :]]
    if not found:
        raise ValueError(f"no score to average: {', '.join(scores) or 'none'} given, {', '.join(AVERAGED)} known")
    return float(np.mean(found))


def glue_missing(scores: Mapping[str, float]) -> list[str]:
    """What a GLUE average of these scores lacks."""
    return [name for name in AVERAGED if name not in scores]

"""The frozen-encoder probe: what a linear model makes of sentence vectors. Seconds, where fine-tuning takes hours."""

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxpretrain.evaluation.scores import score
from jaxpretrain.evaluation.tasks import Examples, TaskData
from jaxpretrain.evaluation.trained import Trained, embed


def probe(run: Trained, data: TaskData) -> dict[str, dict[str, float]]:
    """Scores by dev split and metric of a logistic (or ridge) regression on the run's sentence vectors."""
    if data.task.classes:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    else:
        model = make_pipeline(StandardScaler(), Ridge())
    model.fit(features(run, data.train), data.train.labels)
    return {
        name: score(data.task.metrics, model.predict(features(run, examples)), examples.labels)
        for name, examples in data.dev.items()
        if examples.labels is not None
    }


def features(run: Trained, examples: Examples) -> np.ndarray:
    """Sentence vectors u, float32 [N, hidden]; of two texts u and v: u, v, |u - v| and u · v, [N, 4 hidden]."""
    parts = [embed(run, column, batch_size=64) for column in zip(*examples.texts, strict=True)]
    if len(parts) == 1:
        return parts[0]
    u, v = parts
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=-1)

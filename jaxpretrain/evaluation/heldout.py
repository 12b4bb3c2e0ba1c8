"""The held-out text: loss and accuracy with masks that never change, beside the unigram model's loss."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh

from jaxpretrain.config import Config
from jaxpretrain.data.batches import eval_batches
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.notes import Notes, summary
from jaxpretrain.objectives import build
from jaxpretrain.objectives.base import Batch, Metrics
from jaxpretrain.training.metrics import Average
from jaxpretrain.training.sharding import batch_sharding, local_rows, put_batch, replicated
from jaxpretrain.training.state import TrainState
from jaxpretrain.training.step import eval_step

MASK_SEED = 20200628  # of the held-out masks: the same in every run, so that runs compare


class Evaluation:
    """`Evaluation(…)(state)` → metrics named `eval/…`; compiled once."""

    def __init__(self, config: Config, corpus: Corpus, mesh: Mesh) -> None:
        config = replace(config, objective=replace(config.objective, mask_rate=config.eval.masked))
        objective = build(config, corpus.vocab_size)
        counts = np.asarray(corpus.counts, np.float64) + 1  # add-one: a piece may be absent from the training text
        self._unigram = jax.device_put(np.log(counts / counts.sum()).astype(np.float32), replicated(mesh))
        step = partial(eval_step, objective=objective, config=config, mask_key=jax.random.key(MASK_SEED))

        def with_whole_weights(params: Any, notes: Notes | None, batch: Batch, unigram: Array) -> Metrics:
            return step(lax.with_sharding_constraint(params, replicated(mesh)), notes, batch, unigram)  # as in training

        self._step = jax.jit(with_whole_weights)
        self._summary = jax.jit(partial(summary, rows=corpus.note_rows))
        self._config, self._corpus, self._mesh = config, corpus, mesh

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Metrics over `eval.examples` held-out sequences. The state is read, never changed."""
        config = self._config
        size = config.eval.batch_size or config.train.batch_size // config.train.accumulation  # what memory holds
        size += -size % self._mesh.size
        batches = eval_batches(
            self._corpus,
            batch_size=size,
            sequence_length=config.data.sequence_length,
            examples=config.eval.examples,
            rows=local_rows(size),
        )
        place, total = batch_sharding(self._mesh), Average()
        pending: list[Any] = [
            self._step(state.params, state.notes, put_batch(batch, place), self._unigram) for batch in batches
        ]
        for metrics in jax.device_get(pending):
            total.add(metrics)
        result = {f"eval/{name}": value for name, value in total.take().items()}
        if state.notes is not None:
            of_table = jax.device_get(self._summary(state.notes, state.step))
            result |= {f"notes/{name}": float(value) for name, value in of_table.items()}
        return result

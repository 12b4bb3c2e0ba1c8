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
from jaxpretrain.training.sharding import batch_shapes, batch_sharding, local_rows, put_batch, replicated
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

        self._step: Any = jax.jit(with_whole_weights)
        self._summary = jax.jit(partial(summary, rows=corpus.note_rows))
        self._config, self._corpus = config, corpus
        size = config.eval.batch_size or config.train.batch_size // config.train.accumulation  # what memory holds
        self._size, self._place = size + -size % mesh.size, batch_sharding(mesh)

    def compile(self, like: TrainState) -> jax.stages.Compiled:
        """Ahead, for states with the shapes and places of `like` alone."""
        batch = batch_shapes(self._size, self._config.data.sequence_length, self._place)
        self._step = self._step.lower(like.params, like.notes, batch, self._unigram).compile()
        return self._step

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Metrics over `eval.examples` held-out sequences. The state is read, never changed."""
        batches = eval_batches(
            self._corpus,
            batch_size=self._size,
            sequence_length=self._config.data.sequence_length,
            examples=self._config.eval.examples,
            rows=local_rows(self._size),
        )
        place, total = self._place, Average()
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

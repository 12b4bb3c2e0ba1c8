"""Fine-tuning: a classifier on a pre-trained encoder, and many trials of it as one program.

A trial is a learning rate and a seed. Its functions are written for one trial; `vmap` maps them over the trials of a
grid, which lie spread over the devices. Nothing depends on how many run at once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpretrain import notes as notes_lib
from jaxpretrain.config import Config, FinetuneConfig, OptimConfig, TrainConfig, max_positions
from jaxpretrain.data.masking import row_keys
from jaxpretrain.data.tokenizer import PAD
from jaxpretrain.evaluation.labelled import Bucket, in_order, order_in_bucket, sequence_of_buckets
from jaxpretrain.evaluation.scores import score
from jaxpretrain.evaluation.tasks import Examples, Task
from jaxpretrain.models.encoder import Encoder, compute_dtype, fold_in
from jaxpretrain.models.heads import ClassifierHead
from jaxpretrain.notes import Notes
from jaxpretrain.objectives.base import mean_weights
from jaxpretrain.training.optimizer import optimizer

EVALUATION_BATCH = 64
_MEMORY_SHARE = 0.8  # of what a device has, for trials


@struct.dataclass
class Trial:
    """One trial's state; a grid's has one more axis in front.

    Attributes:
        params: of the encoder and the head.
        opt_state: of optax.
        notes: of TNF, where they are kept.
        step: int32 [], steps taken.
        rate: float32 [], the peak learning rate.
        key: of the seed.
    """

    params: Any
    opt_state: Any
    notes: Notes | None
    step: Array
    rate: Array
    key: Array


@dataclass(frozen=True)
class Finetuner:
    """What the trials of a task share, and the pure functions of one trial.

    Attributes:
        config: of the fine-tuning.
        run: config of the pre-training run.
        vocab_size: pieces.
        task: what is learnt.
        steps: of the whole trial.
    """

    config: FinetuneConfig
    run: Config
    vocab_size: int
    task: Task
    steps: int

    @cached_property
    def encoder(self) -> Encoder:
        config = self.config
        # cuDNN's kernel knows no dropout, and is not mapped over trials where each has a bias of its own.
        plain = config.attention_dropout or self.run.model.attention == "fused"
        model = replace(
            self.run.model,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            attention="plain" if plain else self.run.model.attention,
        )
        return Encoder(model, self.vocab_size, max_positions(self.run))

    @cached_property
    def head(self) -> ClassifierHead:
        model = self.encoder.config
        return ClassifierHead(model, len(self.task.classes) or 1, compute_dtype(model))

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam for a peak rate of 1; a trial multiplies by its own."""
        config = self.config
        optim = OptimConfig(
            learning_rate=1.0,
            warmup_steps=round(config.warmup * self.steps),
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )
        return optimizer(Config(optim=optim, train=TrainConfig(steps=self.steps)))

    def init(self, seed: Array, rate: Array, encoder_params: Any, notes: Notes | None) -> Trial:
        """A trial before its first step: the encoder as pre-trained (or untrained), the head random."""
        head_key, encoder_key, key = jax.random.split(jax.random.key(seed), 3)
        if self.config.untrained:
            encoder_params = self.encoder.init(encoder_key)
        head = self.head.init(head_key, jnp.zeros(self.encoder.config.hidden), None)["params"]
        params = {"encoder": encoder_params, "head": head}
        return Trial(params, self.optimizer.init(params), notes, jnp.zeros((), jnp.int32), rate, key)

    def outputs(
        self, params: Any, notes: Notes | None, rows: Bucket, keys: Array | None
    ) -> tuple[Array, Array, notes_lib.Occurrences | None]:
        """Scores [B, classes or 1], the encoder's vectors, and the rare words in the rows."""
        occurrences = input_notes = None
        if notes is not None:
            occurrences = notes_lib.find(rows.words, self.run.notes.capacity)
            input_notes = notes_lib.lookup(notes, occurrences, rows.tokens, rows.tokens, self.run.notes)
        x = self.encoder.apply(
            params["encoder"],
            rows.tokens,
            padding=rows.tokens == PAD,
            segments=rows.segments if self.run.model.segments else None,
            notes=input_notes,
            keys=keys,
        )
        head_keys = fold_in(keys, 1 << 20)

        def classify(x: Array, key: Array | None) -> Array:
            return self.head.apply({"params": params["head"]}, x, key)  # type: ignore[return-value]

        return jax.vmap(classify)(x[:, 0], head_keys), x, occurrences

    def step(self, trial: Trial, bucket: Bucket, index: Array) -> Trial:
        """The trial after a batch: rows `index`, int [B], of the bucket; -1 stands for none."""
        rows = jax.tree.map(lambda x: x[jnp.maximum(index, 0)], bucket)
        weights = mean_weights(index >= 0)
        keys = row_keys(jax.random.fold_in(trial.key, trial.step), jnp.arange(len(index)))

        def loss(params: Any) -> tuple[Array, tuple[Array, Any]]:
            scores, x, occurrences = self.outputs(params, trial.notes, rows, keys)
            if self.task.classes:
                losses = optax.softmax_cross_entropy_with_integer_labels(scores, rows.labels)
            else:
                losses = jnp.square(scores[:, 0] - rows.labels)
            return (losses * weights).sum(), (x, occurrences)

        grads, (x, occurrences) = jax.grad(loss, has_aux=True)(trial.params)
        updates, opt_state = self.optimizer.update(grads, trial.opt_state, trial.params)
        updates = jax.tree.map(lambda update: trial.rate * update, updates)
        notes = trial.notes
        if notes is not None and self.config.notes == "updated":
            ids = jnp.where((index >= 0)[:, None], occurrences.ids, notes_lib.NONE).reshape(-1)
            window = self.run.notes.window
            values = notes_lib.contexts_of(x, rows.tokens == PAD, occurrences, window).reshape(len(ids), -1)
            notes = notes_lib.update(notes, ids, values, trial.step, self.run.notes)
        return replace(
            trial,
            params=optax.apply_updates(trial.params, updates),
            opt_state=opt_state,
            notes=notes,
            step=trial.step + 1,
        )

    def predict(self, trial: Trial, bucket: Bucket, index: Array) -> Array:
        """Scores [batches, B, classes or 1] of the rows `index`, int [batches, B]."""

        def batch(index: Array) -> Array:
            rows = jax.tree.map(lambda x: x[jnp.maximum(index, 0)], bucket)
            return self.outputs(trial.params, trial.notes, rows, None)[0]

        return jax.lax.map(batch, index)


@dataclass(frozen=True)
class Result:
    """What came of a trial.

    Attributes:
        rate: its learning rate.
        seed: its seed.
        epoch: the one that counts, from 1.
        scores: by dev split and metric, at that epoch.
        last: the same at the last epoch.
        finite: whether its outputs were numbers at the end of every epoch.
        sound: whether they were at the epoch that counts.
    """

    rate: float
    seed: int
    epoch: int
    scores: dict[str, dict[str, float]]
    last: dict[str, dict[str, float]]
    finite: bool
    sound: bool


class Grid:
    """Runs trials of one task, several at once.

    Args:
        finetuner: of the task.
        train: its training rows.
        dev: its dev rows, and what they should be.
        encoder_params: pre-trained.
        notes: of the run; None: none, or dropped.
        at_once: trials in one program; above 1 they are spread over all devices.
    """

    def __init__(
        self,
        finetuner: Finetuner,
        train: list[Bucket],
        dev: dict[str, tuple[list[Bucket], Examples]],
        encoder_params: Any,
        notes: Notes | None,
        at_once: int,
    ) -> None:
        devices = np.array(jax.devices() if at_once > 1 else jax.devices()[:1])
        mesh = Mesh(devices, ("trials",))
        self.at_once = at_once + -at_once % len(devices)
        self.finetuner = finetuner
        self._spread, whole = NamedSharding(mesh, PartitionSpec("trials")), NamedSharding(mesh, PartitionSpec())
        self._train = [jax.device_put(bucket, whole) for bucket in train]
        self._dev = {
            name: ([jax.device_put(bucket, whole) for bucket in buckets], examples)
            for name, (buckets, examples) in dev.items()
        }
        self._pretrained = jax.device_put((encoder_params, notes), whole)
        lift = jax.vmap if self.at_once > 1 else for_one
        self._init = jax.jit(lift(finetuner.init, (0, 0, None, None)), out_shardings=self._spread)
        self._step = jax.jit(lift(finetuner.step, (0, None, 0)), out_shardings=self._spread, donate_argnums=0)
        self._predict = jax.jit(lift(finetuner.predict, (0, None, None)))
        self._better = jax.jit(
            lambda better, new, old: jax.vmap(lambda b, n, o: jax.tree.map(lambda x, y: jnp.where(b, x, y), n, o))(
                better, new, old
            ),
            out_shardings=self._spread,
            donate_argnums=2,
        )

    def run(
        self, trials: Sequence[tuple[float, int]], progress: Callable[[int], Any] = lambda steps: None
    ) -> tuple[list[Result], Callable[[int], tuple[Any, Notes | None]]]:
        """Trains the trials, `at_once` at most.

        Args:
            trials: learning rate and seed of each.
            progress: called with the number of steps taken since the last call, over all trials.

        Returns:
            A result per trial, and a function that gives a trial's parameters and notes at the epoch that counts.
        """
        finetuner, config = self.finetuner, self.finetuner.config
        filled = [*trials, *[trials[-1]] * (self.at_once - len(trials))]
        rates = jax.device_put(np.array([rate for rate, _ in filled], np.float32), self._spread)
        seeds = jax.device_put(np.array([seed for _, seed in filled], np.int32), self._spread)
        state = self._init(seeds, rates, *self._pretrained)
        kept = jax.tree.map(jnp.copy, (state.params, state.notes))
        history: list[list[dict[str, dict[str, float]]]] = [[] for _ in trials]
        best, epoch_of = np.full(len(filled), -np.inf), np.zeros(len(filled), int)
        finite = np.ones(len(filled), bool)
        main = finetuner.task.metrics[0]
        epochs = config.epochs or finetuner.task.epochs
        for epoch in range(epochs):
            for bucket, index in self._batches(filled, epoch):
                state = self._step(state, self._train[bucket], jax.device_put(index, self._spread))
                progress(len(trials))
            outputs = {name: all_outputs(self._predict, state, buckets) for name, (buckets, _) in self._dev.items()}
            judged = next(iter(outputs))
            sound = np.array([[np.isfinite(x).all() for x in values] for values in outputs.values()]).all(0)
            finite &= sound
            for i, scores in enumerate(history):
                scores.append(
                    {
                        name: score(finetuner.task.metrics, answers(values[i], finetuner.task), labels)
                        for name, values in outputs.items()
                        if (labels := self._dev[name][1].labels) is not None
                    }
                )
            now = np.array([history[min(i, len(trials) - 1)][-1][judged][main] for i in range(len(filled))])
            now = np.where(sound, now, -np.inf)  # no numbers, yet a score: that of always giving the same answer
            better = (now > best) | (config.select == "last") | (epoch == 0)
            best, epoch_of = np.where(better, now, best), np.where(better, epoch, epoch_of)
            kept = self._better(jax.device_put(better, self._spread), (state.params, state.notes), kept)
        results = [
            Result(
                rate,
                seed,
                epoch=int(epoch_of[i]) + 1,
                scores=history[i][epoch_of[i]],
                last=history[i][-1],
                finite=bool(finite[i]),
                sound=bool(np.isfinite(best[i])),
            )
            for i, (rate, seed) in enumerate(trials)
        ]
        return results, lambda i: jax.tree.map(lambda x: np.asarray(x[i]), kept)

    def _batches(self, trials: Sequence[tuple[float, int]], epoch: int) -> Iterator[tuple[int, np.ndarray]]:
        """The bucket of each step, and each trial's rows of it, int32 [trials, B]."""
        size = self.finetuner.config.batch_size
        sizes = [len(bucket) for bucket in self._train]
        orders = [
            np.stack([order_in_bucket(n, size, seed, epoch, bucket) for _, seed in trials], axis=1)
            for bucket, n in enumerate(sizes)
        ]
        taken = [0] * len(sizes)
        for bucket in sequence_of_buckets(sizes, size, epoch):
            yield int(bucket), orders[bucket][taken[bucket]]
            taken[bucket] += 1

    def bytes_per_trial(self) -> float:
        """Memory that one trial takes on a device in its dearest step, by the compiler's account of one."""
        scalars = jax.ShapeDtypeStruct((self.at_once,), jnp.int32), jax.ShapeDtypeStruct((self.at_once,), jnp.float32)
        state = jax.eval_shape(self._init, *scalars, *self._pretrained)
        index = jax.ShapeDtypeStruct((self.at_once, self.finetuner.config.batch_size), jnp.int32)
        memory = self._step.lower(state, self._train[-1], index).compile().memory_analysis()
        assert memory is not None
        kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params)) / self.at_once
        of_device = self.at_once // self._spread.num_devices
        return (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / of_device + kept


def all_outputs(predict: Callable, state: Trial, buckets: list[Bucket]) -> np.ndarray:
    """Scores of all rows in the order of the examples, float32 [trials, N, classes or 1].

    Args:
        predict: `Finetuner.predict` of several trials.
        state: of the trials.
        buckets: of the rows.
    """
    pending = [predict(state, bucket, jnp.asarray(in_order(len(bucket), EVALUATION_BATCH))) for bucket in buckets]
    parts = [
        scores.reshape(len(scores), -1, scores.shape[-1])[:, : len(bucket)]
        for scores, bucket in zip(jax.device_get(pending), buckets, strict=True)
    ]
    numbers = np.concatenate([np.asarray(bucket.numbers) for bucket in buckets])
    return np.concatenate(parts, axis=1)[:, np.argsort(numbers)].astype(np.float32)


def for_one(function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """`jax.vmap` over trials, for one: a batched product of one costs more than a plain one."""

    def wrapped(*args: Any) -> Any:
        plain = [
            arg if axis is None else jax.tree.map(lambda x: x[0], arg) for arg, axis in zip(args, in_axes, strict=True)
        ]
        return jax.tree.map(lambda x: x[None], function(*plain))

    return wrapped


def answers(outputs: np.ndarray, task: Task) -> np.ndarray:
    """Scores [N, classes or 1] → classes int32 [N], or numbers [N] as the model learns them; NaN and inf count as 0."""
    outputs = np.nan_to_num(outputs, posinf=0, neginf=0)
    return outputs.argmax(-1).astype(np.int32) if task.classes else outputs[:, 0]


def predictions(outputs: np.ndarray, task: Task) -> np.ndarray:
    """The same in the unit of the labels: classes int32 [N], or numbers float64 [N]."""
    found, (mean, deviation) = answers(outputs, task), task.scale
    return found if task.classes else found.astype(np.float64) * deviation + mean


def trials_at_once(config: FinetuneConfig, wanted: int, bytes_per_trial: Callable[[], float]) -> int:
    """How many trials run in one program: all that are wanted, or as many as memory holds."""
    slower = config.grid == "auto" and not config.at_once and jax.default_backend() == "cpu"
    one_by_one = config.grid == "loop" or slower
    if one_by_one or wanted == 1:
        return 1
    if config.at_once:
        return min(config.at_once, wanted)
    devices = jax.devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # a CPU: its devices share what there is
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    return int(max(1, min(wanted, len(devices) * (_MEMORY_SHARE * limit // bytes_per_trial()))))

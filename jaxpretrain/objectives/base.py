"""What the training step asks of an objective."""

from typing import Any, Protocol

import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpretrain import notes as notes_lib
from jaxpretrain.config import Config, NotesConfig, ObjectiveConfig
from jaxpretrain.data.masking import mask_tokens
from jaxpretrain.data.tokenizer import PAD
from jaxpretrain.models.encoder import Encoder, InputNotes
from jaxpretrain.notes import Notes

Params = Any  # a nested dict of arrays
Metrics = dict[str, tuple[Array, Array]]  # name → (sum, weight)
Batch = dict[str, Any]  # tokens: int [B, T]; rows: int [B], those of the global batch; with notes: occurrences


@struct.dataclass
class Aux:
    """What a loss gives besides its value.

    Attributes:
        metrics: name → (sum, weight); summed over micro-batches, steps and devices, then divided.
        contexts: the main model's vectors, [B, T, hidden], from which notes are taken.
    """

    metrics: Metrics
    contexts: Array


def mask(batch: Batch, key: Array, config: ObjectiveConfig, vocab_size: int) -> Batch:
    """The batch with what a masked language model sees and predicts.

    It gains `inputs`, int [B, T]; and, for P predictions a sequence, their `positions` and `labels`, int [B, P], and
    `weights`, float [B, P], of the mean over the global batch (0 where a short text has no more to predict).
    """
    masked = mask_tokens(batch["tokens"], batch["rows"], key, config, vocab_size)
    found = {"inputs": masked.inputs, "positions": masked.positions, "labels": masked.labels}
    return batch | found | {"weights": mean_weights(masked.chosen)}


def mean_weights(members: Array) -> Array:
    """Weights, float32, with which a sum over the global batch is the mean over its members, a bool array."""
    return members.astype(jnp.float32) / jnp.maximum(members.sum(), 1)


def read_notes(
    notes: Notes | None, batch: Batch, inputs: Array, config: NotesConfig
) -> tuple[InputNotes | None, Metrics]:
    """The notes that a network which sees `inputs`, int [B, T], has in its input, and how many a sequence they are."""
    if notes is None:
        return None, {}
    occurrences = batch["occurrences"]
    read = notes_lib.intact(occurrences, batch["tokens"], inputs).sum(dtype=jnp.float32)
    found = notes_lib.lookup(notes, occurrences, batch["tokens"], inputs, config)
    sequences = (inputs != PAD).any(1).sum(dtype=jnp.float32)
    return found, {"notes_read": (read, sequences)}


class Objective(Protocol):
    """Three pure functions. The parameters may hold several networks.

    Attributes:
        headline: the held-out metric that stands for the run, in nats; lower is better.
        ranks_checkpoints: whether a lower one is a better checkpoint. Not where a second network sets the task: it gets
            harder, and the loss of a better main network may be higher; the newest checkpoint then counts as the best.
    """

    headline: str
    ranks_checkpoints: bool
    encoder: Encoder  # the main model's

    def __init__(self, config: Config, vocab_size: int) -> None: ...

    def init(self, key: Array) -> Params:
        """Fresh parameters; under `encoder` those of the main model, which pre-training is for."""
        ...

    def corrupt(self, batch: Batch, key: Array) -> Batch:
        """Masks a whole global batch.

        It also sets the weight of each prediction so that the loss of the batch is the plain *sum* over its rows:
        micro-batches then add up to the same gradient, however unevenly the predictions fall.
        """
        ...

    def loss(self, params: Params, batch: Batch, notes: Notes | None, key: Array | None) -> tuple[Array, Aux]:
        """The loss of a corrupted batch, or of a part of it; no dropout without a key."""
        ...

    def fill(self, params: Params, tokens: Array, positions: Array) -> Array:
        """Scores over the vocabulary at masked positions: tokens int [B, T], positions int [B, P] → [B, P, V]."""
        ...

"""Masked language modelling (BERT, arXiv 1810.04805), without the next-sentence task."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxpretrain.config import Config, max_positions
from jaxpretrain.data.masking import row_keys
from jaxpretrain.data.tokenizer import PAD
from jaxpretrain.models.encoder import Encoder, compute_dtype
from jaxpretrain.models.heads import MLMHead, take_positions
from jaxpretrain.notes import Notes, around
from jaxpretrain.objectives.base import Aux, Batch, Metrics, Params, mask, read_notes


def mlm_loss(
    logits: Array, labels: Array, weights: Array, groups: dict[str, Array] | None = None
) -> tuple[Array, Metrics]:
    """Cross-entropy at the masked positions.

    Args:
        logits: float [B, P, V].
        labels: int [B, P], the original tokens.
        weights: float [B, P], summing to 1 over the global batch; 0 where nothing was masked.
        groups: bool [B, P] by name, for losses of some positions apart.

    Returns:
        The weighted sum, and loss, accuracy and probability of the truth as metrics.
    """
    logit = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    log_likelihood = logit - jax.nn.logsumexp(logits, -1)
    chosen = (weights > 0).astype(logits.dtype)
    right = (logit >= logits.max(-1)).astype(logits.dtype)  # an argmax costs as much as all the rest
    count = chosen.sum()
    metrics = {
        "mlm_loss": (-(log_likelihood * chosen).sum(), count),
        "mlm_accuracy": ((right * chosen).sum(), count),
        "mlm_probability": ((jnp.exp(log_likelihood) * chosen).sum(), count),
    }
    for name, group in (groups or {}).items():
        members = chosen * group
        metrics[f"mlm_loss_{name}"] = (-(log_likelihood * members).sum(), members.sum())
    return -(log_likelihood * weights).sum(), metrics


class MLM:
    """Predict the original token at the masked positions, and only there."""

    headline = "mlm_loss"
    ranks_checkpoints = True

    def __init__(self, config: Config, vocab_size: int) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self.encoder = Encoder(config.model, vocab_size, max_positions(config))
        self.head = MLMHead(config.model, compute_dtype(config.model))

    def init(self, key: Array) -> Params:
        encoder_key, head_key = jax.random.split(key)
        encoder = self.encoder.init(encoder_key)
        x = jnp.zeros((1, self.config.model.hidden))
        return {"encoder": encoder, "head": self.head.init(head_key, x, encoder["embedder"]["tokens"])["params"]}

    def corrupt(self, batch: Batch, key: Array) -> Batch:
        return mask(batch, key, self.config.objective, self.vocab_size)

    def loss(self, params: Params, batch: Batch, notes: Notes | None, key: Array | None) -> tuple[Array, Aux]:
        input_notes, notes_metrics = read_notes(notes, batch, batch["inputs"], self.config.notes)
        contexts = self.encoder.apply(
            params["encoder"],
            batch["inputs"],
            padding=batch["tokens"] == PAD,
            notes=input_notes,
            keys=None if key is None else row_keys(key, batch["rows"]),
        )
        logits = self.logits(params, take_positions(contexts, batch["positions"]))
        groups = None
        if key is None and "occurrences" in batch:  # evaluation: is it near rare words that notes help?
            near = around(batch["occurrences"], contexts.shape[1], self.config.notes.window).any(1)
            near = jnp.take_along_axis(near, batch["positions"], 1)
            groups = {"near_rare_words": near, "elsewhere": ~near}
        loss, metrics = mlm_loss(logits, batch["labels"], batch["weights"], groups)
        return loss, Aux(metrics=metrics | notes_metrics, contexts=contexts)

    def logits(self, params: Params, x: Array) -> Array:
        """Scores over the vocabulary, [..., V], of contextual vectors [..., hidden]."""
        return self.head.apply({"params": params["head"]}, x, params["encoder"]["embedder"]["tokens"])  # type: ignore

    def fill(self, params: Params, tokens: Array, positions: Array) -> Array:
        x = self.encoder.apply(params["encoder"], tokens, padding=tokens == PAD)
        return self.logits(params, take_positions(x, positions))

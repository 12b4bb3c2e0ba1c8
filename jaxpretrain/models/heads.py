"""What sits on the encoder."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxpretrain.config import ModelConfig
from jaxpretrain.models.activation import gelu
from jaxpretrain.models.dropout import dropout


class MLMHead(nn.Module):
    """Vectors to scores over the vocabulary: dense, GELU, layer norm, then the token table (tied) and a bias.

    Call it on the predicted positions only: the product with the table is the dearest of the model.
    """

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, table: Array, candidates: Array | None = None, first: int | None = None) -> Array:
        """Scores, float32 at least.

        Args:
            x: [..., hidden].
            table: [V, E].
            candidates: int [..., k], the only pieces to score; None: all.
            first: a piece to score before them, the same everywhere: one row, whose gradient needs no scatter.

        Returns:
            [..., V], or [..., k], or with `first` [..., 1 + k].
        """
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        vocab_size, width = table.shape
        x = nn.Dense(width, kernel_init=init, dtype=self.dtype, name="dense")(x)
        x = gelu(x)
        x = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name="norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (vocab_size,))
        logits_dtype = jnp.promote_types(self.dtype, jnp.float32)
        if candidates is not None:
            scores = candidate_scores(x, table, candidates).astype(logits_dtype) + bias[candidates]
            if first is None:
                return scores
            row = table[first].astype(x.dtype).astype(logits_dtype)
            return jnp.concatenate([(x * row).sum(-1, keepdims=True) + bias[first], scores], -1)
        product = jnp.einsum("...e,ve->...v", x, table.astype(self.dtype), preferred_element_type=logits_dtype)
        return product + bias


class DiscriminatorHead(nn.Module):
    """Vectors to one score each, above 0 for "replaced": dense, GELU, dense (ELECTRA)."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., hidden] → float32 (at least) [...]."""
        init = nn.initializers.normal(self.config.initializer_range)
        x = nn.Dense(self.config.hidden, kernel_init=init, dtype=self.dtype, name="dense")(x)
        x = gelu(x)
        wide = jnp.promote_types(self.dtype, jnp.float32)  # a score of 16 bits would tie with many others
        return nn.Dense(1, kernel_init=init, dtype=wide, name="score")(x)[..., 0]


class ClassifierHead(nn.Module):
    """The vector at [CLS] to a score per class, or to one number: dense, tanh, dense, with dropout before each."""

    config: ModelConfig
    outputs: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, key: Array | None) -> Array:
        """x [hidden] → float32 (at least) [outputs]; no dropout without `key`."""
        init = nn.initializers.normal(self.config.initializer_range)
        keys = [None] * 2 if key is None else list(jax.random.split(key))
        x = dropout(x, self.config.dropout, keys[0])
        x = jnp.tanh(nn.Dense(self.config.hidden, kernel_init=init, dtype=self.dtype, name="dense")(x))
        x = dropout(x, self.config.dropout, keys[1])
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return nn.Dense(self.outputs, kernel_init=init, dtype=wide, name="out")(x)


def table_map(width: int, initializer_range: float) -> nn.Dense:
    """The token table for a network of another width: [V, E] → [V, width] (MC-BERT's meta controller)."""
    return nn.Dense(width, kernel_init=nn.initializers.normal(initializer_range))


@jax.custom_vjp
def candidate_scores(x: Array, table: Array, candidates: Array) -> Array:
    """Products with a few rows of the table, one candidate of every position at a time: [..., k, E] never exists.

    Args:
        x: [B, ..., E].
        table: [V, E].
        candidates: int [B, ..., k].

    Returns:
        [B, ..., k], float32 at least.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def one(chosen: Array) -> Array:
        return (x.astype(dtype) * table[chosen].astype(x.dtype).astype(dtype)).sum(-1)

    return jnp.moveaxis(lax.map(one, jnp.moveaxis(candidates, -1, 0)), 0, -1)


def _candidate_scores_forward(x: Array, table: Array, candidates: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return candidate_scores(x, table, candidates), (x, table, candidates)


def _candidate_scores_backward(saved: tuple[Array, Array, Array], slopes: Array) -> tuple[Array, Array, None]:
    x, table, candidates = saved
    # Each device adds up its own sequences; the sum over devices comes once, at the end.
    groups = math.gcd(len(x), jax.device_count())
    flat, candidates, grouped = (a.reshape(groups, -1, a.shape[-1]) for a in (x, candidates, slopes))

    def add(sums: tuple[Array, Array], one: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (by_x, by_table), (chosen, slope) = sums, one
        by_x = by_x + slope[..., None] * table[chosen].astype(x.dtype).astype(slope.dtype)
        updates = slope[..., None] * flat.astype(slope.dtype)
        by_table = jax.vmap(lambda total, rows, update: total.at[rows].add(update))(by_table, chosen, updates)
        return (by_x, by_table), None

    start = jnp.zeros(flat.shape, slopes.dtype), jnp.zeros((groups, *table.shape), slopes.dtype)
    (by_x, by_table), _ = lax.scan(add, start, (jnp.moveaxis(candidates, -1, 0), jnp.moveaxis(grouped, -1, 0)))
    return by_x.reshape(x.shape).astype(x.dtype), by_table.sum(0).astype(table.dtype), None


candidate_scores.defvjp(_candidate_scores_forward, _candidate_scores_backward)


def take_positions(x: Array, positions: Array) -> Array:
    """Rows of each sequence: x [B, T, D], positions int [B, P] → [B, P, D]."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)

"""Which positions of a batch are predicted, and what the model sees there: on the device, inside the step."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpretrain.config import ObjectiveConfig
from jaxpretrain.data.tokenizer import MASK, NEITHER

FIRST_ORDINARY = NEITHER + 1  # ids below are special pieces


@struct.dataclass
class Masked:
    """A masked batch.

    Attributes:
        inputs: int [B, T], what the model sees.
        positions: int [B, P], the predicted positions.
        labels: int [B, P], the original tokens there.
        chosen: bool [B, P], false where a sequence has fewer than P ordinary tokens.
    """

    inputs: Array
    positions: Array
    labels: Array
    chosen: Array


def row_keys(key: Array, rows: Array) -> Array:
    """One key per row of the *global* batch, so that no draw depends on how the batch is spread over devices."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def predictions_per_sequence(config: ObjectiveConfig, length: int) -> int:
    """P, the same for every sequence so that shapes are static: the rate of a sequence's ordinary positions."""
    return max(1, round(config.mask_rate * (length - 2)))


def mask_tokens(tokens: Array, rows: Array, key: Array, config: ObjectiveConfig, vocab_size: int) -> Masked:
    """BERT's masking: P positions without special pieces, drawn without replacement; 80 / 10 / 10 by default.

    Args:
        tokens: int [B, T].
        rows: int [B], the row of each in the global batch.
        key: of this step.
    """
    count = predictions_per_sequence(config, tokens.shape[1])

    def one(tokens: Array, key: Array) -> Masked:
        choose_key, kind_key, random_key = jax.random.split(key, 3)
        ordinary = tokens >= FIRST_ORDINARY
        # Special pieces get a draw below all others and come last.
        draws = jnp.where(ordinary, jax.random.uniform(choose_key, tokens.shape), -1.0)
        positions = jnp.argsort(-draws)[:count]  # unlike top_k, a sort stays on each device's own rows
        chosen = draws[positions] >= 0
        labels = tokens[positions]
        kind = jax.random.uniform(kind_key, (count,))
        random = jax.random.randint(random_key, (count,), FIRST_ORDINARY, vocab_size, dtype=tokens.dtype)
        seen = jnp.where(kind < config.mask_share, MASK, labels)
        is_random = (kind >= config.mask_share) & (kind < config.mask_share + config.random_share)
        seen = jnp.where(is_random, random, seen)
        inputs = tokens.at[positions].set(jnp.where(chosen, seen, labels))
        return Masked(inputs=inputs, positions=positions, labels=labels, chosen=chosen)

    return jax.vmap(one)(tokens, row_keys(key, rows))

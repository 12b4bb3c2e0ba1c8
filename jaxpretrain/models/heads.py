"""What sits on the encoder."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxpretrain.config import ModelConfig


class MLMHead(nn.Module):
    """Vectors to scores over the vocabulary: dense, GELU, layer norm, then the token table (tied) and a bias.

    Call it on the predicted positions only: the product with the table is the dearest of the model.
    """

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        """x [..., hidden], table [V, E] → float32 (at least) [..., V]."""
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        vocab_size, width = table.shape
        x = nn.Dense(width, kernel_init=init, dtype=self.dtype, name="dense")(x)
        x = jax.nn.gelu(x, approximate=False)
        x = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name="norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (vocab_size,))
        logits_dtype = jnp.promote_types(self.dtype, jnp.float32)
        product = jnp.einsum("...e,ve->...v", x, table.astype(self.dtype), preferred_element_type=logits_dtype)
        return product + bias


def take_positions(x: Array, positions: Array) -> Array:
    """Rows of each sequence: x [B, T, D], positions int [B, P] → [B, P, D]."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)

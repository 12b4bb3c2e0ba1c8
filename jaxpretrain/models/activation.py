"""The activation of the feed-forward layers and of the heads."""

import math

import jax.numpy as jnp
from jax import Array, lax


def gelu(x: Array) -> Array:
    """x Φ(x), exactly (Hendrycks and Gimpel, arXiv 1606.08415); computed in float32 at least.

    By the error function, as `jax.nn.gelu` is by its complement, which is made of two branches: half the time.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)

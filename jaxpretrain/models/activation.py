"""The activation of the feed-forward layers and of the heads."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """x Φ(x), exactly (Hendrycks and Gimpel, arXiv 1606.08415); computed in float32 at least.

    By the error function, as `jax.nn.gelu` is by its complement, which is made of two branches: half the time. The
    backward pass needs nothing of it but x.
    """
    wide = _wide(x)
    return (wide * _phi(wide)).astype(x.dtype)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, slope: Array) -> tuple[Array]:
    wide = _wide(x)
    density = jnp.exp(-0.5 * jnp.square(wide)) * (1 / math.sqrt(2 * math.pi))
    return ((_wide(slope) * (_phi(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _phi(x: Array) -> Array:
    """The normal distribution function."""
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))

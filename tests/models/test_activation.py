"""GELU against jax's own form of it, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.activation import gelu

exact = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2**-8)])
def test_gelu_and_its_gradient(dtype: str, tolerance: float):
    x = jnp.linspace(-8, 8, 2001).astype(dtype)
    wide = x.astype(jnp.float32)
    assert gelu(x).dtype == x.dtype
    np.testing.assert_allclose(gelu(x).astype(jnp.float32), exact(wide), atol=tolerance, rtol=tolerance)
    slopes, expected = jax.vmap(jax.grad(gelu))(x), jax.vmap(jax.grad(exact))(wide)
    assert slopes.dtype == x.dtype
    np.testing.assert_allclose(slopes.astype(jnp.float32), expected, atol=tolerance, rtol=tolerance)


def test_nothing_but_the_input_is_kept():
    """Where layers are scanned, what is kept is memory for every one of them."""
    x = jnp.ones((64, 64), jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(gelu, x)[1])
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [(x.shape, x.dtype)]

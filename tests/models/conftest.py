"""A small encoder with a batch of padded texts, its weights far from their start values so that every one matters.

All arrays outside the compiled functions are numpy's: each operation of jax on its own would have to be compiled.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpretrain.config import ModelConfig
from jaxpretrain.models.encoder import Encoder

VOCAB = 23


@dataclass(frozen=True)
class Model:
    """An encoder, parameters for it and a batch."""

    encoder: Encoder
    params: Any
    tokens: np.ndarray
    padding: np.ndarray
    segments: np.ndarray

    @property
    def real(self) -> np.ndarray:
        return ~self.padding

    def inputs(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "padding": self.padding, "segments": self.segments}

    @functools.cached_property
    def compiled(self) -> Callable[..., Array]:
        return jax.jit(self.encoder.apply)

    @functools.cached_property
    def compiled_gradient(self) -> Callable[..., Any]:
        def loss(params: Any, inputs: dict[str, Any]) -> Array:
            x = self.encoder.apply(params, **inputs)
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            return jnp.where(self.real[..., None], jnp.sin(x + jnp.arange(x.shape[-1])), 0).sum()

        return jax.jit(jax.grad(loss))

    def apply(self, **changed: Any) -> np.ndarray:
        """The forward pass on the batch, or with some of its arguments changed."""
        return np.asarray(self.compiled(**({"params": self.params} | self.inputs() | changed)))

    def gradient(self, **changed: Any) -> Any:
        """Of an arbitrary smooth function of the real positions' vectors, by the parameters."""
        return jax.device_get(self.compiled_gradient(self.params, self.inputs() | changed))

    def terms(self, length: int, params: Any = None) -> Any:
        """What positions add to the attention."""
        compiled = jax.jit(self.encoder.position_terms, static_argnums=1)
        return jax.device_get(compiled(params or self.params, length))


@functools.cache
def build(
    lengths: tuple[int, ...] = (7, 5, 2), max_positions: int = 9, seed: int = 0, spread: float = 0.3, **fields: Any
) -> Model:
    """Fields of `ModelConfig` as keywords; no dropout unless asked for. 64-bit where the type says so."""
    defaults = {"layers": 3, "hidden": 8, "heads": 2, "ffn": 12, "dropout": 0.0, "attention_dropout": 0.0}
    defaults |= {"layer_loop": "scan"}  # compiles fastest
    config = ModelConfig(**(defaults | fields))
    encoder = Encoder(config, VOCAB, max_positions)
    rng = np.random.default_rng(seed)
    dtype = np.float64 if config.dtype == "float64" else np.float32

    def random(x: jax.ShapeDtypeStruct, path: str) -> np.ndarray:
        return (path.endswith("['scale']") + spread * rng.normal(size=x.shape)).astype(dtype)

    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(lambda path, x: random(x, jax.tree_util.keystr(path)), shapes)
    shape = (len(lengths), max(lengths))
    tokens = rng.integers(0, VOCAB, shape, dtype=np.int32)
    segments = rng.integers(0, max(config.segments, 1), shape, dtype=np.int32)
    padding = np.arange(shape[1]) >= np.array(lengths)[:, None]
    return Model(encoder, params, tokens, padding, segments)


@pytest.fixture
def with_value() -> Callable[..., np.ndarray]:
    """`with_value(x, index, value)`: a changed copy."""

    def copy(x: np.ndarray, index: Any, value: Any) -> np.ndarray:
        x = np.array(x)
        x[index] = value
        return x

    return copy


@pytest.fixture
def model() -> Callable[..., Model]:
    return build

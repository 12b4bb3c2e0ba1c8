"""The encoder: a block written for one sequence, mapped over the batch and repeated over the layers.

This is the heart of the design. `Block` sees one sequence, [T, D]. `Encoder.apply` computes the positional part of the
attention once, then

    vmap over the batch    with the positional part unmapped (in_axes=None),
    scan over the layers   with the positional part closed over,

so one [heads, T, T] bias serves every layer and every example, and its gradient is the sum over both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array, lax

from jaxpretrain.config import ModelConfig
from jaxpretrain.models.activation import gelu
from jaxpretrain.models.attention import Attention, compute_capability
from jaxpretrain.models.dropout import dropout
from jaxpretrain.models.position import Positions, PositionTerms, added_to_input

Params = Any  # a nested dict of arrays


@struct.dataclass
class InputNotes:
    """Notes mixed into the input (TNF).

    Attributes:
        vectors: [B, T, E], the note of the rare word that each position belongs to.
        weight: [B, T], λ at positions of a rare word, 0 elsewhere.
    """

    vectors: Array
    weight: Array


class Embedder(nn.Module):
    """Tokens of one sequence to the block's input: int [T] → [T, hidden].

    Token (+ position + segment) vectors, mixed with notes where there are any, layer norm, dropout; a projection
    follows where the table is narrower or wider than the blocks (ELECTRA, arXiv 2003.10555).
    """

    config: ModelConfig
    vocab_size: int
    max_positions: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, segments: Array, notes: InputNotes | None, key: Array | None) -> Array:
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        width = config.embedding or config.hidden
        x = self.param("tokens", init, (self.vocab_size, width))[tokens]
        if added_to_input(config.position):
            x = x + self.param("positions", init, (self.max_positions, width))[: tokens.shape[0]]
        if config.segments:
            x = x + self.param("segments", init, (config.segments, width))[segments]
        if notes is not None:
            weight = notes.weight[:, None]
            x = (1 - weight) * x + weight * notes.vectors
        x = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name="norm")(x)
        x = dropout(x, config.dropout, key)
        if width != config.hidden:
            x = nn.Dense(config.hidden, kernel_init=init, dtype=self.dtype, name="projection")(x)
        return x


class Block(nn.Module):
    """One layer, for one sequence: attention and feed-forward, each with a residual and a layer norm after it."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, position: PositionTerms, padding: Array, key: Array | None) -> Array:
        """x [T, D] → [T, D]; `padding` bool [T]; no dropout without `key`."""
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        attended = Attention(config, self.dtype, name="attention")(x, position, padding, keys[0])
        x = x + dropout(attended, config.dropout, keys[1])
        x = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name="attention_norm")(x)
        inner = nn.Dense(config.ffn, kernel_init=init, dtype=self.dtype, name="ffn_in")(x)
        inner = gelu(inner)
        inner = nn.Dense(config.hidden, kernel_init=init, dtype=self.dtype, name="ffn_out")(inner)
        x = x + dropout(inner, config.dropout, keys[2])
        return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name="ffn_norm")(x)


def compute_dtype(config: ModelConfig) -> Any:
    """The dtype of matrix products: bfloat16 where the hardware is made for it, unless the config says otherwise."""
    if config.dtype != "auto":
        return jnp.dtype(config.dtype)
    capability = compute_capability()
    made = jax.default_backend() in ("gpu", "tpu") and (capability is None or capability >= 8)  # since Ampere
    return jnp.dtype(jnp.bfloat16 if made else jnp.float32)


@dataclass(frozen=True)
class Encoder:
    """An encoder as two pure functions, `init(key) -> params` and `apply(params, tokens) -> [B, T, hidden]`.

    Its parameters are `{"embedder": …, "positions": …, "layers": …}`, those of the layers stacked along a first axis.
    """

    config: ModelConfig
    vocab_size: int
    max_positions: int

    @property
    def embedder(self) -> Embedder:
        return Embedder(self.config, self.vocab_size, self.max_positions, compute_dtype(self.config))

    @property
    def positions(self) -> Positions:
        return Positions(self.config, self.max_positions)

    @property
    def block(self) -> Block:
        return Block(self.config, compute_dtype(self.config))

    @property
    def scanned(self) -> bool:
        """Whether the layers are one scan.

        Written out, XLA's CPU backend is a tenth faster, and slower to compile; but it recomputes there without saving
        memory.
        """
        if self.config.layer_loop == "auto":
            return jax.default_backend() != "cpu" or self.config.layers > 12 or self.config.remat
        return self.config.layer_loop == "scan"

    def init(self, key: Array) -> Params:
        """Fresh parameters: weights normal(0, initializer_range), biases 0, layer norms 1."""
        if self.config.attention != "plain":  # the same parameters, and cuDNN's kernel cannot be mapped over layers
            return replace(self, config=replace(self.config, attention="plain")).init(key)
        embedder_key, positions_key, layers_key = jax.random.split(key, 3)
        tokens = jnp.zeros(2, jnp.int32)
        x = jnp.zeros((2, self.config.hidden))
        padding = jnp.zeros(2, bool)
        positions = self.positions.init(positions_key, 2)
        position = self.positions.apply(positions, 2)
        layers = jax.vmap(lambda k: self.block.init(k, x, position, padding, None)["params"])(
            jax.random.split(layers_key, self.config.layers)
        )
        return {
            "embedder": self.embedder.init(embedder_key, tokens, tokens, None, None)["params"],
            "positions": positions.get("params", {}),
            "layers": layers,
        }

    def position_terms(self, params: Params, length: int) -> PositionTerms:
        """What positions add to the attention: once per forward pass."""
        return self.positions.apply({"params": params["positions"]}, length)  # type: ignore[return-value]

    def apply(
        self,
        params: Params,
        tokens: Array,
        *,
        padding: Array,
        segments: Array | None = None,
        notes: InputNotes | None = None,
        keys: Array | None = None,
    ) -> Array:
        """Contextual vectors of a batch.

        Args:
            params: as `init` returns them.
            tokens: int [B, T].
            padding: bool [B, T], true where there is no token.
            segments: int [B, T] (zeros if None); used by models that have a segment table.
            notes: mixed into the input; None: none.
            keys: one random key per example, [B], for dropout; None: no dropout. One key for all examples would give
                them all the same mask.

        Returns:
            [B, T, hidden] in the compute dtype.
        """
        position = self.position_terms(params, tokens.shape[1])
        segments = jnp.zeros_like(tokens) if segments is None else segments

        def embed(tokens: Array, segments: Array, notes: InputNotes | None, key: Array | None) -> Array:
            return self.embedder.apply({"params": params["embedder"]}, tokens, segments, notes, key)  # type: ignore

        def one_layer(layer: Params, x: Array, position: PositionTerms, padding: Array, key: Array | None) -> Array:
            return self.block.apply({"params": layer}, x, position, padding, key)  # type: ignore[return-value]

        x = jax.vmap(embed)(tokens, segments, notes, fold_in(keys, 0))
        batched_layer = jax.vmap(one_layer, in_axes=(None, 0, None, 0, 0))

        def step(x: Array, layer_and_index: tuple[Params, Array]) -> tuple[Array, None]:
            layer, index = layer_and_index
            return batched_layer(layer, x, position, padding, fold_in(keys, index)), None

        if self.config.remat:
            step = jax.checkpoint(step, prevent_cse=not self.scanned)
        return self.over_layers(step, x, params["layers"])

    def over_layers(self, step: Callable, x: Array, layers: Params) -> Array:
        """Runs `step(x, (layer's parameters, 1 + its index))` over all layers: one scan, or written out."""
        count = self.config.layers
        if self.scanned:
            return lax.scan(step, x, (layers, jnp.arange(1, count + 1)))[0]
        for i in range(count):
            x, _ = step(x, (jax.tree.map(lambda leaf: leaf[i], layers), i + 1))  # noqa: B023
        return x


def fold_in(keys: Array | None, data: int | Array) -> Array | None:
    """`jax.random.fold_in` for a batch of keys, or for none."""
    return None if keys is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)

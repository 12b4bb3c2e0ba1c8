"""Drawing pieces from a softmax over the vocabulary, at many positions and several times each.

A draw is an inverse CDF in two levels: first a block of 256 pieces, then a piece inside it. The probabilities of a
position are summed once, however many draws it gets, and positions go through in chunks, so nothing of the size
positions × vocabulary exists but for one chunk.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

BLOCK = 256  # pieces
CHUNK = 512  # positions at a time, over all sequences of a device: enough to fill an accelerator
CPU_CHUNK = 128  # as many as a CPU's cache holds: three times as fast as four times as many


def draw(logits: Array, uniforms: Array) -> Array:
    """Pieces drawn independently, with replacement, from softmax(logits).

    A piece of probability zero is never drawn.

    Args:
        logits: float [..., V].
        uniforms: float [..., k, 2], uniform in [0, 1): one for the block, one for the piece.

    Returns:
        int32 [..., k].
    """
    vocab_size = logits.shape[-1]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # 16 bits cannot hold the running sums
    logits = jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, -vocab_size % BLOCK)], constant_values=-jnp.inf)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = weights.reshape(*weights.shape[:-1], -1, BLOCK)  # [..., blocks, 256]
    block = pick(weights.sum(-1)[..., None, :], uniforms[..., 0])  # [..., k]
    inside = jnp.take_along_axis(weights, block[..., None], axis=-2)  # [..., k, 256]
    return (block * BLOCK + pick(inside, uniforms[..., 1])).astype(jnp.int32)


def pick(weights: Array, uniform: Array) -> Array:
    """The index i with probability weights_i / Σ weights: weights [..., k or 1, n], uniform [..., k] → [..., k]."""
    cumulative = jnp.cumsum(weights, -1)
    beyond = cumulative > uniform[..., None] * cumulative[..., -1:]
    # A parallel cumulative sum rounds differently at neighbouring places: without the second condition an index of
    # weight zero could be the first beyond. Where rounding leaves none, the heaviest is taken.
    found = beyond & (weights > 0)
    return jnp.where(found.any(-1), found.argmax(-1), weights.argmax(-1))


def draw_each(logits_of: Callable[[Array], Array], x: Array, keys: Array, draws: int) -> Array:
    """Pieces drawn at every position of every sequence.

    Args:
        logits_of: [B, t, …] → [B, t, V].
        x: [B, T, …].
        keys: one per sequence.
        draws: how many at each position.

    Returns:
        int32 [B, T, draws].
    """
    rows = max(1, len(x) // jax.device_count())
    return over_chunks(lambda x, u: draw(logits_of(x), u), (x, uniforms(keys, x.shape[1], draws)), rows)


def over_chunks(function: Callable, sequences: tuple[Array, ...], rows: int) -> Array:
    """Maps over slices of the positions, all sequences at once, so that a batch stays spread as it is.

    Args:
        function: of arrays [B, t, …] to one [B, t, …].
        sequences: arrays [B, T, …].
        rows: sequences per device: there are as many slices as keep rows · t positions within the chunk, all of one
            length but the last, which may be shorter.
    """
    length = sequences[0].shape[1]
    most = max(rows, CPU_CHUNK if jax.default_backend() == "cpu" else CHUNK)
    count = -(-length // (most // rows))
    size = -(-length // count)
    if count == 1:
        return function(*sequences)
    whole = length // size

    def chunk(number: Array) -> Array:
        return function(*[lax.dynamic_slice_in_dim(x, number * size, size, axis=1) for x in sequences])

    out = jnp.moveaxis(lax.map(chunk, jnp.arange(whole)), 0, 1)
    out = out.reshape(out.shape[0], -1, *out.shape[3:])
    if whole * size == length:
        return out
    return jnp.concatenate([out, function(*[x[:, whole * size :] for x in sequences])], axis=1)


def uniforms(keys: Array, length: int, draws: int) -> Array:
    """Uniforms for `draw`, [B, T, k, 2], from one key per sequence."""
    return jax.vmap(lambda key: jax.random.uniform(key, (length, draws, 2)))(keys)

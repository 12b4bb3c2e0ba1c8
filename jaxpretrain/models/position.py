"""Where a word stands: the five ways of telling the attention, TUPE's among them.

TUPE (Ke et al., "Rethinking Positional Encoding in Language Pre-training", arXiv 2006.15595) keeps words and positions
apart. The score of query i for key j in a head of width d is (equations 7 and 8)

    α_ij = (x_i W_Q)(x_j W_K)ᵀ / √(2d)  +  (p_i U_Q)(p_j U_K)ᵀ / √(2d)  [+ b_{j-i}]

The first term is the block's. The rest is this file's: it holds no word, so it is computed once per forward pass and
shared by every layer and every example. `[CLS]` stands at no place of the sentence, so its row and its column are then
set to one learned score each (equations 9 and 10):

    α_0j = θ₁    α_i0 = θ₂
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array

from jaxpretrain.config import ModelConfig


@struct.dataclass
class PositionTerms:
    """What the positions add to the attention of every layer; None: nothing.

    Attributes:
        bias: [heads, T, T] added to the scores (TUPE, T5).
        query: [T, heads, d] added to each word's query (BERT-A^d), or further channels of it.
        key: [T, heads, d] added to each word's key (BERT-A^d), or further channels of it.
        lengthen: whether query and key are further channels (TUPE-A without a bias).
    """

    bias: Array | None = None
    query: Array | None = None
    key: Array | None = None
    lengthen: bool = struct.field(pytree_node=False, default=False)


def added_to_input(position: str) -> bool:
    """Whether position vectors are added to the word vectors, as in BERT."""
    return position in ("absolute", "relative")


def score_scale(position: str, head_width: int) -> float:
    """1 / √(number of summed products · head width), so that the scores' variance does not depend on the form."""
    products = {"tupe_a": 2, "tupe_r": 2, "absolute_untied": 4}.get(position, 1)
    return (products * head_width) ** -0.5


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """T5's bucket (arXiv 1910.10683) of each distance j - i, for j - i = 0 … T-1, then (unused), -(T-1) … -1.

    Half of the buckets are for keys after the query. Of either half, the first half holds one distance each, the
    second grows by a constant factor up to `max_distance`, beyond which all share the last.

    Returns:
        int [2T]: the bucket of distance r at index r mod 2T.
    """
    distance = np.arange(2 * length)
    distance[length:] -= 2 * length
    half = buckets // 2
    exact = half // 2
    size = np.abs(distance)
    # float32 as in the published implementations: the bucket of a distance on a border depends on it.
    growth = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    growth = growth / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + growth.astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(size < exact, size, far)


def toeplitz(values: Array) -> Array:
    """Spreads [heads, 2T], one value per distance (index: j - i mod 2T), to [heads, T, T], without a gather.

    Repeating the row and cutting it at 2T - 1 shifts it by one per line; the backward pass is a plain sum.
    """
    heads, width = values.shape
    length = width // 2
    lines = jnp.broadcast_to(values[:, None, :], (heads, length, width)).reshape(heads, -1)
    return lines[:, : length * (width - 1)].reshape(heads, length, width - 1)[:, :, :length]


def reset_cls(bias: Array, cls_to_others: Array, others_to_cls: Array) -> Array:
    """Equation 10: `[CLS]` (position 0) gets one score per head as a key and one as a query, whatever the distance.

    Args:
        bias: [heads, T, T].
        cls_to_others: θ₁, [heads]; also the score of `[CLS]` for itself.
        others_to_cls: θ₂, [heads].
    """
    bias = bias.at[:, :, 0].set(others_to_cls[:, None])
    return bias.at[:, 0, :].set(cls_to_others[:, None])


def further_channels(query: Array, key: Array, theta: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """TUPE-A with no [T, T] anywhere: further channels of every head, whose product adds up with the words'.

    Equation 10 takes two channels more. `[CLS]`, whose channels are else 0, asks with (θ₁, 0) and answers to (1, θ₂);
    every other place asks with (0, 1) and answers to (1, 0).

    Args:
        query: p U_Q, [T, heads, d].
        key: p U_K, [T, heads, d].
        theta: the two factors of θ₁, [heads, d] each; None: `[CLS]` is a place like others.

    Returns:
        Channels of the queries and of the keys, [T, heads, d or d + 2].
    """
    if theta is None:
        return query, key
    theta_1, theta_2 = (theta[0] * theta[1]).sum(-1), (query[0] * key[0]).sum(-1)
    length, heads, _ = query.shape
    cls, ones = (jnp.arange(length) == 0)[:, None], jnp.ones((length, heads), query.dtype)
    asks = jnp.stack([jnp.where(cls, theta_1, 0), jnp.where(cls, 0, ones)], -1)
    answers = jnp.stack([ones, jnp.where(cls, theta_2, 0)], -1)
    query, key = (jnp.where(cls[..., None], 0, x) for x in (query, key))
    return jnp.concatenate([query, asks], -1), jnp.concatenate([key, answers], -1)


class Positions(nn.Module):
    """The positional part of the attention: `Positions(config).apply(params, T) -> PositionTerms`."""

    config: ModelConfig
    max_positions: int

    @nn.compact
    def __call__(self, length: int) -> PositionTerms:
        config = self.config
        kind = config.position
        if kind == "absolute":
            return PositionTerms()
        if kind == "relative":
            return PositionTerms(bias=self.relative(length))
        untie_cls = config.untie_cls and kind != "absolute_untied"
        query, key, theta = self.projected_positions(length, untie_cls)
        if kind == "absolute_untied":
            return PositionTerms(query=query, key=key)
        if kind == "tupe_a" and config.attention == "blockwise":
            return PositionTerms(None, *further_channels(query, key, theta if untie_cls else None), lengthen=True)
        scale = score_scale(kind, query.shape[-1])
        bias = jnp.einsum("qhd,khd->hqk", query * scale, key)
        if untie_cls:
            # θ₂ is the product with itself of the row that [CLS], untied, does not need: equation 9.
            theta_1 = (theta[0] * scale * theta[1]).sum(-1)
            theta_2 = bias[:, 0, 0]
            bias = reset_cls(bias, theta_1, theta_2)
        if kind == "tupe_r":
            bias = bias + self.relative(length, untie_cls)
        return PositionTerms(bias=bias)

    def projected_positions(self, length: int, untie_cls: bool) -> tuple[Array, Array, tuple[Array, Array]]:
        """p U_Q and p U_K, [T, heads, d] each, and the pair for θ₁, [heads, d] each.

        The table has one row more than positions where `[CLS]` is untied: row 0 makes θ₁, row 1 (the place of `[CLS]`
        itself) θ₂, as in the official implementation.
        """
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        extra = int(untie_cls)
        rows = self.max_positions + extra
        table = self.param("table", init, (rows, config.hidden))
        vectors = nn.LayerNorm(epsilon=config.layer_norm_eps, name="norm")(table[: length + extra])
        shape = (config.heads, config.hidden // config.heads)
        query = nn.DenseGeneral(shape, kernel_init=init, name="query")(vectors)
        key = nn.DenseGeneral(shape, kernel_init=init, name="key")(vectors)
        return query[extra:], key[extra:], (query[0], key[0])

    def relative(self, length: int, untie_cls: bool = False) -> Array:
        """T5's bias b_{j-i}, [heads, T, T], one learned value per bucket and head, unscaled."""
        config = self.config
        init = nn.initializers.normal(config.initializer_range)
        buckets = config.relative_buckets
        table = self.param("relative", init, (buckets + int(untie_cls), config.heads))
        per_distance = table[relative_buckets(length, buckets, config.relative_max_distance)]
        bias = toeplitz(per_distance.T)
        if untie_cls:
            # No distance falls into the middle bucket: the official implementation gives it to [CLS] as a query.
            bias = reset_cls(bias, table[buckets // 2], table[buckets])
        return bias

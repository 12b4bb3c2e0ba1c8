"""Self-attention of one sequence, with what the positions add to it."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxpretrain.config import ConfigError, ModelConfig
from jaxpretrain.models.dropout import dropout
from jaxpretrain.models.position import PositionTerms, score_scale

MASKED = -1e9  # a score that the softmax turns into 0, with gradients that stay finite
BLOCK = 256  # queries at a time


class Attention(nn.Module):
    """Multi-head attention: x [T, D] → [T, D]."""

    config: ModelConfig
    dtype: Any  # of the matrix products

    @nn.compact
    def __call__(self, x: Array, position: PositionTerms, padding: Array, key: Array | None) -> Array:
        """Attends from every position to every one that is not padding.

        Args:
            x: [T, D].
            position: shared by all layers and examples.
            padding: bool [T], true where there is no token.
            key: for dropout on the attention's weights; None: none.
        """
        config = self.config
        width = config.hidden // config.heads
        init = nn.initializers.normal(config.initializer_range)
        projection = nn.DenseGeneral((3, config.heads, width), kernel_init=init, dtype=self.dtype, name="qkv")(x)
        q, k, v = projection[:, 0], projection[:, 1], projection[:, 2]  # [T, H, d] each
        if position.query is not None and position.key is not None:
            q_of_place, k_of_place = position.query.astype(q.dtype), position.key.astype(k.dtype)
            if position.lengthen:
                q, k = jnp.concatenate([q, q_of_place], -1), jnp.concatenate([k, k_of_place], -1)
            else:
                q, k = q + q_of_place, k + k_of_place
        scale = score_scale(config.position, width)
        if config.attention == "fused":
            if key is not None and config.attention_dropout > 0:
                raise ValueError("fused attention has no dropout: model.attention_dropout must be 0")
            out = fused_attention(q, k, v, scale, position.bias, padding)
        else:
            attend = blockwise_attention if config.attention == "blockwise" else plain_attention
            out = attend(q, k, v, scale, position.bias, padding, config.attention_dropout, key)
        return nn.DenseGeneral(config.hidden, axis=(-2, -1), kernel_init=init, dtype=self.dtype, name="out")(out)


@jax.custom_vjp
def word_scores(q: Array, k: Array) -> Array:
    """q kᵀ, [H, queries, T], in float32 at least, for q [queries, H, d] and k [T, H, d].

    Their gradients are products in their own dtype, of the scores' gradient rounded to it: a GPU takes a product of
    float32 and bfloat16 as one of float32.
    """
    return jnp.einsum("qhd,khd->hqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))


def _word_scores_forward(q: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return word_scores(q, k), (q, k)


def _word_scores_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    q, k = saved
    slope = slope.astype(q.dtype)
    return jnp.einsum("hqk,khd->qhd", slope, k), jnp.einsum("hqk,qhd->khd", slope, q)


word_scores.defvjp(_word_scores_forward, _word_scores_backward)


def plain_attention(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    bias: Array | None,
    padding: Array,
    dropout_rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """softmax(scale · q kᵀ + bias) v, [queries, H, d], for q [queries, H, d'], k [T, H, d'], v [T, H, d].

    Scores and softmax are in float32 at least.
    """
    scores_HTT = word_scores(q * scale, k)
    if bias is not None:
        scores_HTT = scores_HTT + bias
    scores_HTT = scores_HTT + jnp.where(padding, MASKED, 0.0).astype(scores_HTT.dtype)
    weights_HTT = dropout(jax.nn.softmax(scores_HTT), dropout_rate, key)
    return jnp.einsum("hqk,khd->qhd", weights_HTT.astype(v.dtype), v)


def blockwise_attention(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    bias: Array | None,
    padding: Array,
    dropout_rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """The same, `BLOCK` queries at a time: memory linear in T but for a bias.

    Scores are made anew in the backward pass, a third more work. Dropout draws other masks than the plain form's.
    """
    length = len(q)
    size = min(BLOCK, length)
    count = -(-length // size)
    beyond = count * size - length
    blocks = jnp.pad(q, ((0, beyond), (0, 0), (0, 0))).reshape(count, size, *q.shape[1:])
    rows = None if bias is None else jnp.pad(bias, ((0, 0), (0, beyond), (0, 0)))

    @jax.checkpoint
    def attend(index_and_block: tuple[Array, Array]) -> Array:
        index, block = index_and_block
        part = None if rows is None else lax.dynamic_slice_in_dim(rows, index * size, size, axis=1)
        drawn = None if key is None else jax.random.fold_in(key, index)
        return plain_attention(block, k, v, scale, part, padding, dropout_rate, drawn)

    return lax.map(attend, (jnp.arange(count), blocks)).reshape(-1, *v.shape[1:])[:length]


def fused_attention(q: Array, k: Array, v: Array, scale: float, bias: Array | None, padding: Array) -> Array:
    """The same through the backend's fused kernel: cuDNN on a GPU, XLA elsewhere. Padding must follow the tokens.

    cuDNN differentiates a bias that has no batch dimension; lengths keep the padding out of that bias.
    """
    length = jnp.maximum((~padding).sum(dtype=jnp.int32), 1)[None]  # cuDNN 9.4 fails at 0: rows that fill up a batch
    return jax.nn.dot_product_attention(
        q[None],
        k[None],
        v[None],
        bias=None if bias is None else bias[None].astype(q.dtype),
        scale=scale,
        query_seq_lengths=length,
        key_value_seq_lengths=length,
        implementation="cudnn" if jax.default_backend() == "gpu" else "xla",
    )[0]


def compute_capability() -> float | None:
    """Of the first device, such as 9.0; None where it is no number: other devices than NVIDIA's GPUs."""
    try:
        return float(getattr(jax.local_devices()[0], "compute_capability", ""))
    except ValueError:
        return None


def check_fused(config: ModelConfig, dtype: Any, lengths: Iterable[int]) -> None:
    """What cuDNN's kernel asks for, by the rules of `jax.nn.dot_product_attention`; elsewhere XLA takes anything.

    Args:
        config: of the model.
        dtype: of its matrix products.
        lengths: of the sequences that it is trained on.

    Raises:
        ConfigError: the kernel cannot compute this model's attention here.
    """
    if config.attention != "fused" or jax.default_backend() != "gpu":
        return
    capability, width = compute_capability() or 0, config.hidden // config.heads
    widest = 256 if capability >= 9 else 128
    biased = config.position not in ("absolute", "absolute_untied")
    for ok, needs in (
        (capability >= 8, "an NVIDIA GPU of compute capability 8.0 or more"),
        (dtype == jnp.bfloat16, "model.dtype=bfloat16"),
        (
            width % 8 == 0 and width <= widest,
            f"model.hidden / model.heads={width} to be a multiple of 8, up to {widest}",
        ),
        (not (biased and any(length % 2 for length in lengths)), "an even data.sequence_length with a position bias"),
    ):
        if not ok:
            raise ConfigError(f"model.attention='fused': needs {needs}; or give --config.model.attention=plain")

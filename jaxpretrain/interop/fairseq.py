"""The official TUPE and MC-BERT checkpoints: arrays under fairseq's names to our parameters.

Both are read strictly: a missing, unknown or misshapen array is an error that names it. The number of heads does not
show in the arrays' shapes; a fairseq checkpoint holds it as `args.encoder_attention_heads`.
"""

from collections.abc import Mapping

import numpy as np

from jaxpretrain.config import ConfigError, ModelConfig
from jaxpretrain.interop.weights import (
    Params,
    State,
    check_empty,
    check_heads,
    count_layers,
    dense,
    drop_tied,
    from_heads,
    fuse_qkv,
    norm,
    shape_of,
    stack,
    take,
    to_heads,
)

FIRST_POSITION = 2  # fairseq's learned positions start after the padding id, which is 1


def tupe(weights: Mapping[str, np.ndarray], heads: int) -> tuple[ModelConfig, Params]:
    """TUPE-A, or TUPE-R where the weights hold a relative bias.

    Args:
        weights: the official model's state dict.
        heads: attention heads.

    Returns:
        The model's config and the parameters of the MLM objective, `{"encoder": …, "head": …}`.

    Raises:
        ConfigError: naming the weight that is missing, unknown, misshapen or not tied.
    """
    state = dict(weights)
    name = "decoder.sentence_encoder"
    config = encoder_config(state, name, heads)
    rows, _ = shape_of(state, f"{name}.pos.weight", 2)
    check_positions(rows - 1)
    config.max_positions = rows - 1
    config.position = "tupe_a"
    relative = f"{name}.relative_attention_bias.weight"
    if relative in state:
        config.position = "tupe_r"
        config.relative_buckets = shape_of(state, relative, 2)[0] - 1
        if config.relative_buckets < 4 or config.relative_buckets % 4:
            raise ConfigError(f"{relative}: has {config.relative_buckets + 1} rows, must be a multiple of 4, and 1")
    tokens = take(state, f"{name}.embed_tokens.weight", *shape_of(state, f"{name}.embed_tokens.weight", 2))
    encoder = {
        "embedder": {"tokens": tokens, "norm": norm(state, f"{name}.emb_layer_norm", config.hidden)},
        "positions": tupe_positions(state, name, config),
        "layers": encoder_layers(state, f"{name}.layers", config),
    }
    head = mlm_head(state, "decoder.lm_head", config.hidden)
    head["bias"] = take(state, "decoder.lm_head.bias", len(tokens))
    drop_tied(state, "decoder.lm_head.weight", f"{name}.embed_tokens.weight", tokens)
    check_empty(state)
    return config, {"encoder": encoder, "head": head}


def tupe_positions(state: State, name: str, config: ModelConfig) -> Params:
    """The position table, row for row: 0 for θ₁, 1 for `[CLS]` and θ₂, the positions after it from 2 on."""
    hidden = config.hidden
    positions = {
        "table": take(state, f"{name}.pos.weight", config.max_positions + 1, hidden),
        "norm": norm(state, f"{name}.pos_ln", hidden),
        "query": to_heads(dense(state, f"{name}.pos_q_linear", hidden, hidden), config.heads),
        "key": to_heads(dense(state, f"{name}.pos_k_linear", hidden, hidden), config.heads),
    }
    if config.position == "tupe_r":
        rows = config.relative_buckets + 1
        positions["relative"] = take(state, f"{name}.relative_attention_bias.weight", rows, config.heads)
    return positions


def mcbert(weights: Mapping[str, np.ndarray], heads: int) -> tuple[ModelConfig, Params]:
    """MC-BERT, both networks.

    Args:
        weights: the official model's state dict.
        heads: attention heads of the main network; the controller's are as wide as its.

    Returns:
        The main network's config and the parameters of the MC-BERT objective: `encoder` and `head` (those of an MLM
        objective), `controller` (an encoder without a token table), `controller_head` (without the bias, which is the
        main head's) and `table_map`, which makes the controller's token table from the main one.

    Raises:
        ConfigError: naming the weight that is missing, unknown, misshapen or not tied.
    """
    state = dict(weights)
    name, small = "decoder.sentence_encoder", "mc.sentence_encoder"
    config = encoder_config(state, name, heads)
    tokens = take(state, f"{name}.embed_tokens.weight", *shape_of(state, f"{name}.embed_tokens.weight", 2))
    vocab_size, hidden = tokens.shape
    width, _ = shape_of(state, f"{small}.embed_linear.weight", 2)
    if heads * width % hidden:
        raise ConfigError(f"{small}.embed_linear.weight: has width {width}, must hold heads of {hidden // heads}")
    narrow = encoder_config(state, small, heads * width // hidden, width)

    encoder = absolute_encoder(state, name, config)
    encoder["embedder"]["tokens"] = tokens
    head = mlm_head(state, "decoder.lm_head", hidden)
    head["bias"] = take(state, "decoder.lm_head.bias.weight", vocab_size, 1)[:, 0]
    controller = absolute_encoder(state, small, narrow)
    controller_head = mlm_head(state, "mc.lm_head", width)
    table_map = dense(state, f"{small}.embed_linear", hidden, width)

    table = f"{name}.embed_tokens.weight"
    for key in ("decoder.lm_head.embed_tokens.weight", f"{small}.embed_tokens.weight", "mc.lm_head.weight"):
        drop_tied(state, key, table, tokens)
    drop_tied(state, "mc.lm_head.bias", "decoder.lm_head.bias.weight", head["bias"][:, None])
    for part, value in (("weight", table_map["kernel"].T), ("bias", table_map["bias"])):
        drop_tied(state, f"mc.lm_head.share_emb_pro.{part}", f"{small}.embed_linear.{part}", value)
    check_empty(state)
    return config, {
        "encoder": encoder,
        "head": head,
        "controller": controller,
        "controller_head": controller_head,
        "table_map": table_map,
    }


def absolute_encoder(state: State, name: str, config: ModelConfig) -> Params:
    """An encoder with learned positions on its input, without its token table; sets `config.max_positions`."""
    rows, _ = shape_of(state, f"{name}.embed_positions.weight", 2)
    check_positions(rows - FIRST_POSITION)
    config.max_positions = rows - FIRST_POSITION
    positions = take(state, f"{name}.embed_positions.weight", rows, config.hidden)[FIRST_POSITION:]
    return {
        "embedder": {"positions": positions, "norm": norm(state, f"{name}.emb_layer_norm", config.hidden)},
        "positions": {},
        "layers": encoder_layers(state, f"{name}.layers", config),
    }


def check_positions(count: int) -> None:
    """There must be some.

    Raises:
        ConfigError: if there are none.
    """
    if count < 1:
        raise ConfigError(f"the model has {max(count, 0)} positions, must have some")


def encoder_config(state: State, name: str, heads: int, hidden: int = 0) -> ModelConfig:
    """What the shapes tell; `hidden` 0: the token table's width."""
    hidden = hidden or shape_of(state, f"{name}.embed_tokens.weight", 2)[1]
    check_heads(heads, hidden)
    layers = count_layers(state, f"{name}.layers")
    ffn, _ = shape_of(state, f"{name}.layers.0.fc1.weight", 2)
    return ModelConfig(layers=layers, hidden=hidden, heads=heads, ffn=ffn, layer_norm_eps=1e-5)


def encoder_layers(state: State, name: str, config: ModelConfig) -> Params:
    """fairseq's `TransformerSentenceEncoderLayer`, all of them."""
    hidden, heads = config.hidden, config.heads

    def one(name: str) -> Params:
        kernel = take(state, f"{name}.self_attn.in_proj_weight", 3 * hidden, hidden).T
        bias = take(state, f"{name}.self_attn.in_proj_bias", 3 * hidden)
        kernels, biases = np.split(kernel, 3, axis=1), np.split(bias, 3)
        query, key, value = ({"kernel": k, "bias": b} for k, b in zip(kernels, biases, strict=True))
        return {
            "attention": {
                "qkv": fuse_qkv(query, key, value, heads),
                "out": from_heads(dense(state, f"{name}.self_attn.out_proj", hidden, hidden), heads),
            },
            "attention_norm": norm(state, f"{name}.self_attn_layer_norm", hidden),
            "ffn_in": dense(state, f"{name}.fc1", hidden, config.ffn),
            "ffn_out": dense(state, f"{name}.fc2", config.ffn, hidden),
            "ffn_norm": norm(state, f"{name}.final_layer_norm", hidden),
        }

    return stack([one(f"{name}.{i}") for i in range(config.layers)])


def mlm_head(state: State, name: str, width: int) -> Params:
    """The head up to its layer norm; its output bias has another name in each model."""
    return {"dense": dense(state, f"{name}.dense", width, width), "norm": norm(state, f"{name}.layer_norm", width)}

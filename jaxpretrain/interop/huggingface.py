"""Models that Hugging Face transformers saved: `config.json` and the weights beside it to our parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxpretrain.config import ConfigError, ModelConfig
from jaxpretrain.interop import pickled
from jaxpretrain.interop.foreign_tokenizer import read_json
from jaxpretrain.interop.weights import (
    Params,
    State,
    by_name,
    check_empty,
    check_heads,
    dense,
    drop_tied,
    from_heads,
    fuse_qkv,
    norm,
    stack,
    take,
)

BERT, GENERATOR, DISCRIMINATOR = "BertForMaskedLM", "ElectraForMaskedLM", "ElectraForPreTraining"
BERT_WITH_PAIRS = "BertForPreTraining"  # has a classifier of sentence pairs besides, which is left out

# What older files hold besides, and these models do not need: a classifier over [CLS], and numbers 0, 1, 2, …
NOT_NEEDED = ("bert.pooler.", "cls.seq_relationship.")
NOT_WEIGHTS = ("embeddings.position_ids", "embeddings.token_type_ids")


def load(folder: str | Path) -> tuple[ModelConfig, Params]:
    """A BERT with its MLM head, or one of ELECTRA's two networks with its head, as `save_pretrained` wrote it.

    Returns:
        The model's config and `{"encoder": …, "head": …}`. The head is an `MLMHead` for `BertForMaskedLM` and
        `ElectraForMaskedLM` (the generator), a `DiscriminatorHead` for `ElectraForPreTraining`.

    Raises:
        ConfigError: one line that names the file and what is wrong in it.
    """
    folder = Path(folder)
    values = read_json(folder / "config.json")
    try:
        return from_state(values, read_folder(folder))
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def architecture(values: dict[str, Any]) -> str:
    """Which of the three models a `config.json` describes.

    Raises:
        ConfigError: if it is another.
    """
    names = values.get("architectures")
    for name in (BERT, GENERATOR, DISCRIMINATOR):
        if names == [name]:
            return name
    unnamed = not names and values.get("model_type") == "bert"  # as in Google's small ones; the weights will tell
    if unnamed or names == [BERT_WITH_PAIRS]:
        return BERT
    raise ConfigError(
        f"architectures={names!r}: must be one of {BERT}, {GENERATOR}, {DISCRIMINATOR}, in brackets; "
        "where config.json has none, write there which it is"
    )


def from_state(values: dict[str, Any], weights: dict[str, np.ndarray]) -> tuple[ModelConfig, Params]:
    """The same from the content of `config.json` and the arrays under their names."""
    kind = architecture(values)
    config = model_config(values)
    state = {modern_name(key): value for key, value in weights.items() if is_needed(key)}
    prefix = "bert" if kind == BERT else "electra"
    vocab_size = values["vocab_size"]
    params = {"encoder": encoder(state, prefix, config, vocab_size)}
    tokens = params["encoder"]["embedder"]["tokens"]
    table = f"{prefix}.embeddings.word_embeddings.weight"
    hidden, width = config.hidden, tokens.shape[1]
    if kind == DISCRIMINATOR:
        name = "discriminator_predictions"
        params["head"] = {
            "dense": dense(state, f"{name}.dense", hidden, hidden),
            "score": dense(state, f"{name}.dense_prediction", hidden, 1),
        }
    elif kind == GENERATOR:
        name = "generator_predictions"
        params["head"] = {
            "dense": dense(state, f"{name}.dense", hidden, width),
            "norm": norm(state, f"{name}.LayerNorm", width),
            "bias": take(state, "generator_lm_head.bias", vocab_size),
        }
        drop_tied(state, "generator_lm_head.weight", table, tokens)
    else:
        name = "cls.predictions"
        params["head"] = {
            "dense": dense(state, f"{name}.transform.dense", hidden, width),
            "norm": norm(state, f"{name}.transform.LayerNorm", width),
            "bias": take(state, f"{name}.bias", vocab_size),
        }
        drop_tied(state, f"{name}.decoder.weight", table, tokens)
        drop_tied(state, f"{name}.decoder.bias", f"{name}.bias", params["head"]["bias"])
    check_empty(state)
    return config, params


def model_config(values: dict[str, Any]) -> ModelConfig:
    """Our config for theirs.

    Raises:
        ConfigError: naming a field that is missing or that asks for what this model has not.
    """

    def number(name: str, ok: Callable[[Any], bool], allowed: str, kinds: tuple[type, ...] = (int, float)) -> Any:
        if name not in values:
            raise ConfigError(f"{name}: missing from config.json")
        if type(values[name]) not in kinds or not ok(values[name]):
            raise ConfigError(f"{name}={values[name]!r}: must be {allowed}")
        return values[name]

    def size(name: str) -> int:
        return number(name, lambda x: x >= 1, "a whole number, at least 1", (int,))

    def share(name: str) -> float:
        return number(name, lambda x: 0 <= x < 1, "a number in [0, 1)")

    def positive(name: str) -> float:
        return number(name, lambda x: x > 0, "a number above 0")

    values = {"layer_norm_eps": 1e-12} | values  # what transformers takes for it where older files have none
    fixed = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for name, allowed in fixed.items():
        if values.get(name, allowed) != allowed:
            raise ConfigError(f"{name}={values[name]!r}: must be {allowed!r}")
    hidden = size("hidden_size")
    width = size("embedding_size") if "embedding_size" in values else hidden
    check_heads(size("num_attention_heads"), hidden)
    size("vocab_size")
    return ModelConfig(
        position="absolute",
        layers=size("num_hidden_layers"),
        hidden=hidden,
        heads=size("num_attention_heads"),
        ffn=size("intermediate_size"),
        embedding=0 if width == hidden else width,
        max_positions=size("max_position_embeddings"),
        segments=size("type_vocab_size"),
        dropout=share("hidden_dropout_prob"),
        attention_dropout=share("attention_probs_dropout_prob"),
        layer_norm_eps=positive("layer_norm_eps"),
        initializer_range=positive("initializer_range"),
    )


def encoder(state: State, prefix: str, config: ModelConfig, vocab_size: int) -> Params:
    """The encoder under `bert.` or `electra.`."""
    hidden, width = config.hidden, config.embedding or config.hidden
    name = f"{prefix}.embeddings"
    embedder = {
        "tokens": take(state, f"{name}.word_embeddings.weight", vocab_size, width),
        "positions": take(state, f"{name}.position_embeddings.weight", config.max_positions, width),
        "segments": take(state, f"{name}.token_type_embeddings.weight", config.segments, width),
        "norm": norm(state, f"{name}.LayerNorm", width),
    }
    if width != hidden:
        embedder["projection"] = dense(state, f"{prefix}.embeddings_project", width, hidden)
    layers = [encoder_layer(state, f"{prefix}.encoder.layer.{i}", config) for i in range(config.layers)]
    return {"embedder": embedder, "positions": {}, "layers": stack(layers)}


def encoder_layer(state: State, name: str, config: ModelConfig) -> Params:
    """One layer."""
    hidden, heads = config.hidden, config.heads
    attention = f"{name}.attention"
    query, key, value = (dense(state, f"{attention}.self.{x}", hidden, hidden) for x in ("query", "key", "value"))
    return {
        "attention": {
            "qkv": fuse_qkv(query, key, value, heads),
            "out": from_heads(dense(state, f"{attention}.output.dense", hidden, hidden), heads),
        },
        "attention_norm": norm(state, f"{attention}.output.LayerNorm", hidden),
        "ffn_in": dense(state, f"{name}.intermediate.dense", hidden, config.ffn),
        "ffn_out": dense(state, f"{name}.output.dense", config.ffn, hidden),
        "ffn_norm": norm(state, f"{name}.output.LayerNorm", hidden),
    }


def is_needed(key: str) -> bool:
    """False for the parts of older files that these models leave out."""
    return not key.startswith(NOT_NEEDED) and not key.endswith(NOT_WEIGHTS)


def modern_name(key: str) -> str:
    """Files converted from TensorFlow call a layer norm's two arrays gamma and beta."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder: of `model.safetensors`, else of the older `pytorch_model.bin`.

    Raises:
        ConfigError: there is neither, or it cannot be read.
    """
    older = folder / "pytorch_model.bin"
    if (folder / "model.safetensors").exists() or not older.exists():
        return read_weights(folder / "model.safetensors")
    return by_name(pickled.read(older), older.name)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors` file.

    Raises:
        ConfigError: if it cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"{path.name}: not found")
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, AttributeError) as error:  # the last for types that numpy has not
        raise ConfigError(f"{path.name}: cannot be read: {' '.join(str(error).split())}") from error

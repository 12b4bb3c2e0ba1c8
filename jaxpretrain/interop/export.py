"""A run as a folder that Hugging Face transformers opens: weights, config, fast tokenizer and model card.

Absolute positions are stock BERT and ELECTRA, without any code of ours. The other positions come with
`modeling_jaxpretrain.py`, for `trust_remote_code=True`. Neither PyTorch nor transformers is needed to write a folder.
"""

import importlib.resources
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from jaxpretrain.config import Config, ModelConfig, max_positions, narrowed, to_dict
from jaxpretrain.data.tokenizer import PAD, Tokenizer
from jaxpretrain.evaluation.trained import Trained
from jaxpretrain.interop.fast_tokenizer import special_tokens_map, tokenizer_config, tokenizer_json
from jaxpretrain.interop.folders import write_json, written_whole
from jaxpretrain.interop.huggingface import BERT, DISCRIMINATOR, GENERATOR
from jaxpretrain.interop.model_card import model_card
from jaxpretrain.interop.weights import Params, State, joined, put, put_dense, put_layers, put_norm
from jaxpretrain.objectives.electra import ELECTRA
from jaxpretrain.objectives.mcbert import MCBERT

BARE = "ElectraModel"  # an encoder without a head: of the stock ones, the one without a pooler
SEGMENTS = 2  # rows of the zero segment table, which stock models must have and add nothing with
CODE = ("configuration_jaxpretrain.py", "modeling_jaxpretrain.py")

STOCK_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
OUR_LAYER = {name: name for name in STOCK_LAYER}
OUR_CLASSES = {
    "AutoModel": "JaxPretrainModel",
    "AutoModelForMaskedLM": "JaxPretrainForMaskedLM",
    "AutoModelForPreTraining": "JaxPretrainForPreTraining",
    "AutoModelForSequenceClassification": "JaxPretrainForSequenceClassification",
}


@dataclass(frozen=True)
class Network:
    """One of a run's networks.

    Attributes:
        folder: of the network in the export; empty: the export itself.
        config: of its encoder.
        encoder: its parameters, tables included.
        auto: the `Auto…` class that opens it with its head, which tells what the head is: `AutoModelForMaskedLM` (an
            `MLMHead`), `AutoModelForPreTraining` (a `DiscriminatorHead`), `AutoModel` (none).
        head: the head's parameters, empty for `AutoModel`.
    """

    folder: str
    config: ModelConfig
    encoder: Params
    auto: str
    head: Params


def export(run: Trained, workdir: str | Path, folder: str | Path) -> list[Network]:
    """Writes the folder, whole or not at all.

    Args:
        run: what `load_run` read.
        workdir: where from; its metrics stand in the model card.
        folder: to write; must not exist, or be empty.

    Returns:
        The networks written.

    Raises:
        ConfigError: the folder holds something, or the tokenizer cannot be expressed.
    """
    with written_whole(folder) as partial:
        fast = tokenizer_json(run.tokenizer)
        found = networks(run)
        for network in found:
            write_network(network, run.tokenizer, fast, partial / network.folder)
        text = model_card(run.config, workdir, run.step, [(n.folder, class_of(n), n.auto) for n in found])
        (partial / "README.md").write_text(text, encoding="utf-8")
        write_json(partial / "jaxpretrain.json", to_dict(run.config))
    return found


def networks(run: Trained) -> list[Network]:
    """The main network first, where it has a use; then the one that fills [MASK]s, where that is another."""
    config, params, objective = run.config, run.params, run.objective
    model = with_positions(config.model, config)
    main: Params = params["encoder"]
    if isinstance(objective, ELECTRA):
        narrow, generator = with_positions(narrowed(config), config), objective.generator_params(params)
        return [
            Network("discriminator", model, main, "AutoModelForPreTraining", params["head"]),
            Network("generator", narrow, generator, "AutoModelForMaskedLM", params["generator_head"]),
        ]
    if isinstance(objective, MCBERT):
        narrow = with_positions(narrowed(config), config)
        controller = objective.controller_params(params, objective.controller_table(params))
        head = objective.controller_head_params(params)
        return [
            Network("", model, main, "AutoModel", {}),
            Network("controller", narrow, controller, "AutoModelForMaskedLM", head),
        ]
    return [Network("", model, main, "AutoModelForMaskedLM", params["head"])]


def with_positions(model: ModelConfig, config: Config) -> ModelConfig:
    """A copy whose `max_positions` is a number of its own."""
    return replace(model, max_positions=max_positions(config))


def class_of(network: Network) -> str:
    """The transformers class that computes what the network does."""
    if network.config.position != "absolute":
        return OUR_CLASSES[network.auto]
    if network.auto == "AutoModelForPreTraining":
        return DISCRIMINATOR
    if network.auto == "AutoModel":
        return BARE
    plain = network.config.embedding in (0, network.config.hidden)
    return BERT if plain and network.folder != "generator" else GENERATOR


def write_network(network: Network, tokenizer: Tokenizer, fast: dict[str, Any], folder: Path) -> None:
    """Writes config, weights and tokenizer of a network, and the code that it needs."""
    folder.mkdir(exist_ok=True)
    values, state = describe(network, class_of(network), tokenizer.vocab_size)
    write_json(folder / "config.json", values)
    weights = folder / "model.safetensors"
    safetensors.numpy.save_file(state, weights, {"format": "pt"})
    weights.chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read it
    write_json(folder / "tokenizer.json", fast)
    longest, segments = network.config.max_positions, network.config.segments > 0
    write_json(folder / "tokenizer_config.json", tokenizer_config(longest, segments))
    write_json(folder / "special_tokens_map.json", special_tokens_map())
    if "auto_map" in values:
        for name in CODE:
            source = importlib.resources.files("jaxpretrain.interop") / "pytorch" / name
            (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


def describe(network: Network, architecture: str, vocab_size: int) -> tuple[dict[str, Any], State]:
    """The content of `config.json`, and the arrays under the names that the class gives them."""
    model = network.config
    width = model.embedding or model.hidden
    values: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "bert" if architecture == BERT else "electra",
        "dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.ffn,
        "max_position_embeddings": model.max_positions,
        "type_vocab_size": model.segments or SEGMENTS,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "layer_norm_eps": model.layer_norm_eps,
        "initializer_range": model.initializer_range,
        "pad_token_id": PAD,
    }
    if architecture == BERT:
        return values, bert(network)
    if architecture in (GENERATOR, DISCRIMINATOR, BARE):
        return values | {"embedding_size": width}, electra(network, architecture)
    auto_map = {name: f"modeling_jaxpretrain.{found}" for name, found in OUR_CLASSES.items()}
    values |= {
        "model_type": "jaxpretrain",
        "auto_map": {"AutoConfig": "configuration_jaxpretrain.JaxPretrainConfig"} | auto_map,
        "position": model.position,
        "untie_cls": model.untie_cls,
        "embedding_size": width,
        "type_vocab_size": model.segments,
        "relative_buckets": model.relative_buckets,
        "relative_max_distance": model.relative_max_distance,
    }
    return values, ours(network)


def bert(network: Network) -> State:
    """The arrays of `BertForMaskedLM`."""
    state: State = {}
    stock_encoder(state, "bert", network)
    head, name = network.head, "cls.predictions"
    put_dense(state, f"{name}.transform.dense", head["dense"])
    put_norm(state, f"{name}.transform.LayerNorm", head["norm"])
    put(state, f"{name}.bias", head["bias"])
    return state


def electra(network: Network, architecture: str) -> State:
    """The arrays of `ElectraForMaskedLM`, `ElectraForPreTraining` or `ElectraModel`."""
    state: State = {}
    stock_encoder(state, "electra", network)
    head = network.head
    if architecture == GENERATOR:
        put_dense(state, "generator_predictions.dense", head["dense"])
        put_norm(state, "generator_predictions.LayerNorm", head["norm"])
        put(state, "generator_lm_head.bias", head["bias"])
    if architecture == DISCRIMINATOR:
        put_dense(state, "discriminator_predictions.dense", head["dense"])
        put_dense(state, "discriminator_predictions.dense_prediction", head["score"])
    if architecture == BARE:
        return {key.removeprefix("electra."): value for key, value in state.items()}
    return state


def stock_encoder(state: State, prefix: str, network: Network) -> None:
    """The encoder under `bert.` or `electra.`."""
    embedder, name = network.encoder["embedder"], f"{prefix}.embeddings"
    put(state, f"{name}.word_embeddings.weight", embedder["tokens"])
    put(state, f"{name}.position_embeddings.weight", embedder["positions"])
    nothing = np.zeros((SEGMENTS, embedder["tokens"].shape[1]))
    put(state, f"{name}.token_type_embeddings.weight", embedder.get("segments", nothing))
    put_norm(state, f"{name}.LayerNorm", embedder["norm"])
    if "projection" in embedder:
        put_dense(state, f"{prefix}.embeddings_project", embedder["projection"])
    put_layers(state, f"{prefix}.encoder.layer", network.encoder["layers"], STOCK_LAYER)


def ours(network: Network) -> State:
    """The arrays of the classes in `modeling_jaxpretrain.py`."""
    state: State = {}
    prefix = "" if network.auto == "AutoModel" else "model."
    embedder, positions, head = network.encoder["embedder"], network.encoder["positions"], network.head
    for table in ("tokens", "positions", "segments"):
        if table in embedder:
            put(state, f"{prefix}embeddings.{table}.weight", embedder[table])
    put_norm(state, f"{prefix}embeddings.norm", embedder["norm"])
    if "projection" in embedder:
        put_dense(state, f"{prefix}embeddings.projection", embedder["projection"])
    for table in ("table", "relative"):
        if table in positions:
            put(state, f"{prefix}positions.{table}.weight", positions[table])
    if "table" in positions:
        put_norm(state, f"{prefix}positions.norm", positions["norm"])
        for part in ("query", "key"):
            put_dense(state, f"{prefix}positions.{part}", joined(positions[part]))
    put_layers(state, f"{prefix}layers", network.encoder["layers"], OUR_LAYER)
    for part in ("dense", "score"):
        if part in head:
            put_dense(state, f"head.{part}", head[part])
    if "bias" in head:
        put_norm(state, "head.norm", head["norm"])
        put(state, "head.bias", head["bias"])
    return state

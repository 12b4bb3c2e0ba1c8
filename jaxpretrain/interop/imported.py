"""Models from elsewhere as a run's folder: what `predict`, fine-tuning and `load` open.

The vocabulary is put in our order (`foreign_tokenizer.py`), and the rows of the tables with it.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxpretrain.config import Config, ConfigError, ModelConfig, narrowed
from jaxpretrain.interop import fairseq, huggingface, pickled
from jaxpretrain.interop.folders import write_json, written_whole
from jaxpretrain.interop.foreign_tokenizer import (
    FILE_NAME,
    NEW_ROW,
    Vocabulary,
    is_lowercase,
    of_dictionary,
    of_folder,
    read_json,
)
from jaxpretrain.interop.weights import Params, by_name
from jaxpretrain.objectives import build
from jaxpretrain.objectives.electra import SHARED
from jaxpretrain.training.checkpoint import Checkpointer
from jaxpretrain.training.workdir import fitted, write_config

# Where a checkpoint keeps the fingerprint of its text: none equals it, so that training in this folder is refused.
NO_CORPUS = {"seconds": 0.0, "corpus": "imported", "notes": "imported"}
NEVER = -1e4  # the bias of a piece that the model does not know: its probability is 0


def from_huggingface(folder: str | Path, workdir: str | Path, generator: str | Path | None = None) -> Config:
    """A BERT or an ELECTRA that transformers saved.

    Args:
        folder: a `BertForMaskedLM`; a generator, which then is a masked language model; or a discriminator.
        workdir: to write.
        generator: the folder of a discriminator's generator; None: `generator` beside the folder.

    Returns:
        The run's config.

    Raises:
        ConfigError: one line that names the file and what is wrong in it.
    """
    folder = Path(os.path.expanduser(folder))
    model, params = huggingface.load(folder)
    kind = huggingface.architecture(read_json(folder / "config.json"))
    config = imported_config(folder.resolve().name, model)
    if kind == huggingface.DISCRIMINATOR:
        other = Path(os.path.expanduser(generator)) if generator else folder.resolve().parent / "generator"
        if not (other / "config.json").exists():
            raise ConfigError(f"{folder}: is a discriminator; give its generator too, with --generator")
        network = huggingface.load(other)
        if huggingface.architecture(read_json(other / "config.json")) != huggingface.GENERATOR:
            raise ConfigError(f"{other}: is no generator")
        params = with_generator(config, params, *network, where=str(other))
    vocabulary = of_folder(folder, len(params["encoder"]["embedder"]["tokens"]))
    write(config, params, vocabulary, workdir)
    return config


def with_generator(config: Config, params: Params, model: ModelConfig, generator: Params, where: str) -> Params:
    """The parameters of both networks; the config becomes ELECTRA's.

    Raises:
        ConfigError: the generator is not the discriminator's, narrowed.
    """
    config.objective.name = "electra"
    config.objective.divider = max(1, config.model.hidden // model.hidden)
    config.objective.auxiliary_layers = model.layers
    expected = narrowed(config)
    for name in ("hidden", "heads", "ffn"):
        wanted, found = getattr(expected, name), getattr(model, name)
        if wanted != found:
            raise ConfigError(
                f"{where}: has {name} {found}; the discriminator's {config.objective.divider}th is {wanted}"
            )
    wanted, found = config.model.layer_norm_eps, model.layer_norm_eps
    if wanted != found:
        raise ConfigError(f"{where}: has layer_norm_eps {found}, the discriminator {wanted}; a run has one for both")
    tables, embedder = params["encoder"]["embedder"], dict(generator["encoder"]["embedder"])
    for name in SHARED:
        if not np.array_equal(tables[name], embedder.pop(name)):
            raise ConfigError(f"{where}: its table of {name} differs from the discriminator's; ELECTRA shares it")
    network = generator["encoder"] | {"embedder": embedder}
    return params | {"generator": network, "generator_head": generator["head"]}


def from_official(path: str | Path, dictionary: str | Path, workdir: str | Path) -> Config:
    """A checkpoint of TUPE's or MC-BERT's official code.

    Args:
        path: what fairseq saved.
        dictionary: `dict.txt` of the data it was trained on.
        workdir: to write.

    Returns:
        The run's config.

    Raises:
        ConfigError: one line that names the file and what is wrong in it.
    """
    content = pickled.read(path, "model", "args")
    weights, args = by_name(content["model"], f"{path}: its model"), content["args"]
    heads = args.get("encoder_attention_heads") if isinstance(args, dict) else None
    if type(heads) is not int:
        raise ConfigError(f"{path}: args.encoder_attention_heads is missing")

    def argument(name: str, default: Any, kinds: tuple[type, ...], ok: Callable[[Any], bool], allowed: str) -> Any:
        value = args.get(name, default)
        if type(value) in kinds and ok(value):
            return value
        raise ConfigError(f"{path}: args.{name}={' '.join(repr(value).split())[:60]}: must be {allowed}")

    number = (int, float)
    argument("activation_fn", "gelu", (str,), lambda x: x == "gelu", "'gelu'")
    tupe = not any(key.startswith("mc.") for key in weights)
    try:
        model, params = (fairseq.tupe if tupe else fairseq.mcbert)(weights, heads)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for name in ("dropout", "attention_dropout"):
        share = argument(name, getattr(model, name), number, lambda x: 0 <= x < 1, "in [0, 1)")
        setattr(model, name, float(share))
    config = imported_config(Path(path).stem, model)
    if not tupe:
        config.objective.name = "mcbert"
        config.objective.divider = max(1, model.hidden // params["table_map"]["bias"].shape[0])
        config.objective.auxiliary_layers = len(params["controller"]["layers"]["ffn_norm"]["scale"])
        default = config.objective.loss_weight
        weight = argument("loss_lamda", default, number, lambda x: 0 < x < 1e9, "in (0, 1e9)")
        config.objective.loss_weight = float(weight)
    tokens = params["encoder"]["embedder"]["tokens"]
    write(config, params, of_dictionary(Path(os.path.expanduser(dictionary)), len(tokens), tupe), workdir)
    return config


def imported_config(name: str, model: ModelConfig) -> Config:
    """The config of a run that could have made the model; of its training nothing is known."""
    config = Config(name=name, size="imported", model=replace(model))
    config.data.source = f"imported: {name}"
    config.data.sequence_length = model.max_positions
    return config


def write(config: Config, params: Params, vocabulary: Vocabulary, workdir: str | Path) -> None:
    """Puts the vocabulary in our order and writes the run."""
    params = reordered(params, vocabulary.order)
    config.data.vocab_size = len(vocabulary.order)
    config.data.lowercase = is_lowercase(vocabulary.values)
    write_run(config, params, workdir, vocabulary.values)


def reordered(params: Params, order: np.ndarray) -> Params:
    """The rows of the token table, and the biases of its pieces, in another order; new ones mean nothing."""

    def rows(table: np.ndarray, new: float) -> np.ndarray:
        picked = np.asarray(table, np.float32)[order]
        picked[order == NEW_ROW] = new
        return picked

    embedder = params["encoder"]["embedder"]
    changed: dict[str, Any] = {
        "encoder": params["encoder"] | {"embedder": embedder | {"tokens": rows(embedder["tokens"], 0.0)}}
    }
    for head in ("head", "generator_head"):
        if "bias" in params.get(head, {}):
            changed[head] = params[head] | {"bias": rows(params[head]["bias"], NEVER)}
    return params | changed


def write_run(config: Config, params: Params, workdir: str | Path, tokenizer: dict[str, Any] | None = None) -> None:
    """Writes config.json and a checkpoint of step 0 that holds the parameters and nothing else, whole or not at all.

    Args:
        config: of a run that would have these parameters.
        params: of its objective.
        workdir: to write; must not exist, or be empty.
        tokenizer: the content of `tokenizer.json`; None: the run's tokenizer is ours, and still to be put there.

    Raises:
        ConfigError: the folder holds something, or a parameter is not what the config says.
        CheckpointError: it cannot be written.
    """
    vocab_size = len(params["encoder"]["embedder"]["tokens"])
    shapes = jax.eval_shape(build(config, vocab_size).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), fitted(params, shapes, "the model to import"))
    with written_whole(workdir) as folder:
        checkpoints = Checkpointer(folder / "checkpoints", keep=1, keep_best=False)
        checkpoints.save(0, {"params": params}, NO_CORPUS)
        checkpoints.close()
        write_config(config, epath.Path(folder))
        if tokenizer is not None:
            write_json(folder / FILE_NAME, tokenizer)

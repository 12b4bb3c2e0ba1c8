"""Saved transformers models: what is read, and the one line that says why a folder is not."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxpretrain.config import Config, ConfigError
from jaxpretrain.interop import huggingface
from jaxpretrain.objectives.mlm import MLM

FIXTURES = Path(__file__).parents[1] / "parity"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    folder = tmp_path / "bert"
    shutil.copytree(FIXTURES / "hf_bert_mlm", folder)
    return folder


def change_config(folder: Path, **fields: Any) -> None:
    """`None` removes a field."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def change_weights(folder: Path, **arrays: np.ndarray | None) -> None:
    """Names with `__` for the dot; `None` removes an array."""
    path = folder / "model.safetensors"
    weights = safetensors.numpy.load_file(path) | {name.replace("__", "."): x for name, x in arrays.items()}
    safetensors.numpy.save_file({name: x for name, x in weights.items() if x is not None}, path)


def message(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        huggingface.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["hf_bert_mlm", "hf_electra_generator"])
def test_the_parameters_are_those_of_the_mlm_objective(name: str) -> None:
    config, params = huggingface.load(FIXTURES / name)
    objective = MLM(Config(model=config), 67)
    chex.assert_trees_all_equal_shapes(params, jax.eval_shape(objective.init, jax.random.key(0)))


def test_the_config_is_read() -> None:
    config, _ = huggingface.load(FIXTURES / "hf_electra_generator")
    assert (config.position, config.segments, config.embedding, config.max_positions) == ("absolute", 2, 16, 32)
    assert (config.layers, config.hidden, config.heads, config.ffn) == (3, 32, 4, 72)
    assert config.layer_norm_eps == 1e-12


def test_an_electra_as_wide_as_its_embeddings_has_no_projection(tmp_path: Path) -> None:
    source = FIXTURES / "hf_electra_discriminator"
    weights = safetensors.numpy.load_file(source / "model.safetensors")
    wide = {
        key: np.repeat(x, 2, axis=-1) if key.startswith("electra.embeddings.") else x
        for key, x in weights.items()
        if "embeddings_project" not in key
    }
    values = json.loads((source / "config.json").read_text()) | {"embedding_size": 32}
    config, params = huggingface.from_state(values, wide)
    assert config.embedding == 0
    assert "projection" not in params["encoder"]["embedder"]


def test_older_files_are_read(bert: Path) -> None:
    """Other names for a layer norm's arrays, a pooler, a tied copy of the table: the same model."""
    _, expected = huggingface.load(bert)
    weights = safetensors.numpy.load_file(bert / "model.safetensors")
    old = {key: x for key, x in weights.items() if "LayerNorm" not in key}
    for key, x in weights.items():
        if "LayerNorm" in key:
            old[key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = x
    old["bert.pooler.dense.weight"] = np.zeros((32, 32), np.float32)
    old["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
    old["bert.embeddings.position_ids"] = np.arange(32)[None]
    old["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].copy()
    old["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].copy()
    safetensors.numpy.save_file(old, bert / "model.safetensors")
    _, params = huggingface.load(bert)
    chex.assert_trees_all_equal(params, expected)


def test_half_precision_weights_become_float32(bert: Path) -> None:
    weights = safetensors.numpy.load_file(bert / "model.safetensors")
    half = {key: x.astype(np.float16) for key, x in weights.items()}
    safetensors.numpy.save_file(half, bert / "model.safetensors")
    _, params = huggingface.load(bert)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_bfloat16_weights_become_float32(bert: Path) -> None:
    weights = safetensors.numpy.load_file(bert / "model.safetensors")
    half = {key: x.astype(jax.numpy.bfloat16) for key, x in weights.items()}
    safetensors.numpy.save_file(half, bert / "model.safetensors")
    _, params = huggingface.load(bert)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    table = weights["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_allclose(params["encoder"]["embedder"]["tokens"], table, rtol=1e-2)


def test_a_table_that_is_not_tied_is_refused(bert: Path) -> None:
    change_weights(bert, cls__predictions__decoder__weight=np.zeros((67, 32), np.float32))
    assert "cls.predictions.decoder.weight: differs from bert.embeddings.word_embeddings.weight" in message(bert)


def test_missing_unknown_and_misshapen_weights_are_named(bert: Path) -> None:
    change_weights(bert, bert__extra=np.zeros(2, np.float32))
    assert "bert.extra: not a weight of this model" in message(bert)
    change_weights(bert, **{"bert__extra": None, "a\n\x1b[2J": np.zeros(2, np.float32)})
    assert r"a\n\x1b[2J: not a weight of this model" in message(bert)
    change_weights(bert, **{"a\n\x1b[2J": None})
    change_weights(bert, bert__extra=None, cls__predictions__bias=np.zeros(66, np.float32))
    assert "cls.predictions.bias: has shape [66], must be [67]" in message(bert)
    change_weights(bert, cls__predictions__bias=None)
    assert "cls.predictions.bias: missing" in message(bert)


def test_more_layers_than_the_config_says_are_refused(bert: Path) -> None:
    change_config(bert, num_hidden_layers=2)
    assert "bert.encoder.layer.2.attention" in message(bert)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["GPT2LMHeadModel"]),
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("hidden_size", None),
        ("hidden_size", "32"),
        ("vocab_size", None),
        ("num_attention_heads", 5),
        ("num_attention_heads", 2.0),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", True),
        ("embedding_size", 32.0),
        ("max_position_embeddings", 10**400),
        ("hidden_dropout_prob", 1),
        ("layer_norm_eps", 0),
    ],
)
def test_a_config_of_another_model_is_refused(bert: Path, field: str, value: Any) -> None:
    change_config(bert, **{field: value})
    assert ("heads=5" if value == 5 else "position_embeddings" if value == 10**400 else field) in message(bert)


def test_a_config_that_names_no_architecture(bert: Path) -> None:
    """Google's small BERTs: `model_type` at most, and no epsilon."""
    named = huggingface.load(bert)
    change_config(bert, architectures=None, layer_norm_eps=None)
    unnamed = huggingface.load(bert)
    assert unnamed[0] == named[0]
    chex.assert_trees_all_equal(unnamed[1], named[1])
    change_config(bert, model_type=None)
    assert "architectures=None: must be one of BertForMaskedLM" in message(bert)
    assert "where config.json has none, write there which it is" in message(bert)


@pytest.mark.parametrize("content", ["[" * 10**5, '{"hidden_size": NaN}', '{"hidden_size": 1e999}', '{"a": "\\ud800"}'])
def test_json_that_only_python_takes_for_json(bert: Path, content: str) -> None:
    (bert / "config.json").write_text(content)
    assert "config.json: cannot be read as JSON" in message(bert)


def test_a_named_pipe_is_not_waited_for(bert: Path) -> None:
    for name, part in (("model.safetensors", "not found"), ("config.json", "not a file")):
        (bert / name).unlink()
        os.mkfifo(bert / name)
        assert f"{name}: " in message(bert)
        assert part in message(bert)


@pytest.mark.parametrize("kind", ["int32", "complex64", "bool"])
def test_weights_must_be_floats(bert: Path, kind: str) -> None:
    change_weights(bert, cls__predictions__bias=np.zeros(67, kind))
    assert f"cls.predictions.bias: holds {kind}, must hold floats" in message(bert)


def test_weights_of_a_type_that_numpy_has_not(bert: Path) -> None:
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (bert / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "model.safetensors: cannot be read" in message(bert)


def test_unreadable_files_are_named(bert: Path, tmp_path: Path) -> None:
    assert "nowhere/config.json" in message(tmp_path / "nowhere")
    (bert / "model.safetensors").write_bytes(b"\x10" * 40)
    assert "model.safetensors: cannot be read" in message(bert)
    (bert / "model.safetensors").unlink()
    assert "model.safetensors: not found" in message(bert)
    (bert / "config.json").write_text("{")
    assert "config.json: cannot be read as JSON" in message(bert)
    (bert / "config.json").write_text("[]")
    assert "config.json: must hold a JSON object" in message(bert)

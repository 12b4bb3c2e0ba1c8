"""The same numbers as the official implementations and Hugging Face, from their weights. See README.md beside this."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.config import ModelConfig
from jaxpretrain.interop import fairseq, huggingface
from jaxpretrain.models.encoder import Encoder, compute_dtype
from jaxpretrain.models.heads import DiscriminatorHead, MLMHead

FOLDER = Path(os.environ.get("JAXPRETRAIN_PARITY") or Path(__file__).parent)
PAD = 1  # in fairseq's files
LOOPS = ("scan", "unroll")

pytestmark = pytest.mark.usefixtures("x64")


def found(*patterns: str) -> Any:
    """One parameter per file or folder. A folder of one's own need not hold every kind: its tests are then skipped."""
    paths = sorted(path for pattern in patterns for path in FOLDER.glob(pattern))
    return pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in paths])


def agree(actual: Any, reference: np.ndarray) -> None:
    """To 1e-6 for float64, to 1e-4 for float32, absolutely and relatively."""
    tolerance = {"float64": 1e-6, "float32": 1e-4}[reference.dtype.name]
    assert actual.shape == reference.shape
    np.testing.assert_allclose(np.asarray(actual), reference, rtol=tolerance, atol=tolerance)


def load_fairseq(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, int]]:
    """State dict, the other arrays, and the numbers of `config`."""
    arrays = dict(np.load(path))
    state = {key.removeprefix("state_dict/"): x for key, x in arrays.items() if key.startswith("state_dict/")}
    numbers = dict(zip(arrays["config_names"].tolist(), arrays["config"].tolist(), strict=True))
    return state, arrays, numbers


def run_encoder(config: ModelConfig, params: Any, tokens: np.ndarray, padding: np.ndarray, loop: str, **kw: Any) -> Any:
    config = dataclasses.replace(config, layer_loop=loop, dtype="float64")
    vocab_size = len(params["embedder"]["tokens"])
    encoder = Encoder(config, vocab_size, config.max_positions)
    tokens_, padding_ = tokens.astype(np.int32), jnp.asarray(padding)
    return jax.jit(encoder.apply)(params, tokens_, padding=padding_, **kw)


def mlm_logits(config: ModelConfig, head: Any, x: jax.Array, table: Any) -> jax.Array:
    config = dataclasses.replace(config, dtype="float64")
    return jax.jit(MLMHead(config, compute_dtype(config)).apply)({"params": head}, x, table)  # type: ignore


@found("tupe_a*.npz", "tupe_r*.npz")
def test_tupe_config_is_read_off_the_shapes(path: Path) -> None:
    state, arrays, numbers = load_fairseq(path)
    config, params = fairseq.tupe(state, numbers["heads"])
    assert config.position == ("tupe_r" if arrays["rel_pos"] else "tupe_a")
    for name in ("layers", "hidden", "heads", "ffn", "max_positions"):
        assert getattr(config, name) == numbers[name], name
    assert len(params["encoder"]["embedder"]["tokens"]) == numbers["vocab"]


@found("tupe_a*.npz", "tupe_r*.npz")
def test_tupe_position_bias(path: Path) -> None:
    state, arrays, numbers = load_fairseq(path)
    config, params = fairseq.tupe(state, numbers["heads"])
    encoder = Encoder(config, numbers["vocab"], config.max_positions)
    expected = arrays["position_bias"]
    for length in {expected.shape[-1], expected.shape[-1] // 2, 2, 1}:
        bias = jax.jit(encoder.position_terms, static_argnums=1)(params["encoder"], length).bias
        assert bias is not None
        agree(bias, expected[:, :length, :length])


@pytest.mark.parametrize("loop", LOOPS)
@found("tupe_a*.npz", "tupe_r*.npz")
def test_tupe_features_and_logits(path: Path, loop: str) -> None:
    state, arrays, numbers = load_fairseq(path)
    config, params = fairseq.tupe(state, numbers["heads"])
    tokens = arrays["tokens"]
    real = tokens != PAD
    features = run_encoder(config, params["encoder"], tokens, ~real, loop)
    logits = mlm_logits(config, params["head"], features, params["encoder"]["embedder"]["tokens"])
    agree(features[real], arrays["features"][real])
    agree(logits[real], arrays["logits"][real])


@found("tupe_a*.npz", "tupe_r*.npz")
def test_tupe_sequences_shorter_than_max_positions(path: Path) -> None:
    """Cut at its end and alone, a text gives what it gave with padding behind it."""
    state, arrays, numbers = load_fairseq(path)
    config, params = fairseq.tupe(state, numbers["heads"])
    lengths = (arrays["tokens"] != PAD).sum(axis=1)
    row = lengths.argmin()
    tokens = arrays["tokens"][row, : lengths[row]]
    if len(tokens) == config.max_positions:
        pytest.skip("no text is shorter than max_positions")
    features = run_encoder(config, params["encoder"], tokens[None], np.zeros((1, len(tokens)), bool), "unroll")
    agree(features[0], arrays["features"][row, : len(tokens)])


@pytest.mark.parametrize("loop", LOOPS)
@found("mcbert*.npz")
def test_mcbert_candidate_scores_of_the_main_network(path: Path, loop: str) -> None:
    state, arrays, numbers = load_fairseq(path)
    config, params = fairseq.mcbert(state, numbers["heads"])
    real = arrays["targets"] != special_id(arrays, "pad")
    features = run_encoder(config, params["encoder"], arrays["corrupted_tokens"], ~real, loop)
    logits = mlm_logits(config, params["head"], features, params["encoder"]["embedder"]["tokens"])
    scores = jnp.take_along_axis(logits, jnp.asarray(arrays["candidates"]), axis=-1)
    agree(scores[real], arrays["candidate_logits"][real])


@found("mcbert*.npz")
def test_mcbert_controller_scores_at_masked_positions(path: Path) -> None:
    state, arrays, numbers = load_fairseq(path)
    config, params = fairseq.mcbert(state, numbers["heads"])
    divider = numbers["controller_size_divider"]
    narrow = dataclasses.replace(
        config, hidden=config.hidden // divider, heads=config.heads // divider, ffn=config.ffn // divider
    )
    table_map = params["table_map"]
    table = params["encoder"]["embedder"]["tokens"] @ table_map["kernel"] + table_map["bias"]
    controller = dict(params["controller"], embedder=dict(params["controller"]["embedder"], tokens=table))
    real = arrays["targets"] != special_id(arrays, "pad")
    features = run_encoder(narrow, controller, arrays["masked_tokens"], ~real, "unroll")
    head = dict(params["controller_head"], bias=params["head"]["bias"])
    agree(mlm_logits(narrow, head, features, table)[arrays["mask"]], arrays["controller_mlm_logits"])


def special_id(arrays: dict[str, np.ndarray], name: str) -> int:
    return int(arrays["special_ids"][arrays["special_names"].tolist().index(name)])


@pytest.mark.parametrize("loop", LOOPS)
@found("hf_bert_mlm*/", "hf_electra_generator*/", "hf_electra_discriminator*/")
def test_huggingface_vectors_and_logits(path: Path, loop: str) -> None:
    """At padded positions too: they attend to the text like the others."""
    config, params = huggingface.load(path)
    expected = dict(np.load(path / "expected.npz"))
    padding = expected["attention_mask"] == 0
    segments = jnp.asarray(expected["token_type_ids"], jnp.int32)
    features = run_encoder(config, params["encoder"], expected["input_ids"], padding, loop, segments=segments)
    if "score" in params["head"]:
        head = DiscriminatorHead(config, jnp.dtype("float64"))
        logits: Any = head.apply({"params": params["head"]}, features)
    else:
        logits = mlm_logits(config, params["head"], features, params["encoder"]["embedder"]["tokens"])
    agree(features, expected["last_hidden_state"])
    agree(logits, expected["logits"])


@pytest.mark.skipif("JAXPRETRAIN_PARITY" in os.environ, reason="a folder of somebody's own")
def test_every_kind_is_here() -> None:
    """A pattern that finds nothing would test nothing, silently."""
    for name in ("tupe_a.npz", "tupe_r.npz", "mcbert.npz", "hf_bert_mlm", "hf_electra_generator"):
        assert (FOLDER / name).exists(), name
    assert (FOLDER / "hf_electra_discriminator").exists()

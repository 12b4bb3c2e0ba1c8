"""What the official checkpoints must hold, and what is said where they do not."""

from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxpretrain.config import Config, ConfigError
from jaxpretrain.interop import fairseq
from jaxpretrain.objectives.mlm import MLM

FIXTURES = Path(__file__).parents[1] / "parity"
ENCODER = "decoder.sentence_encoder"


def weights_of(name: str) -> dict[str, np.ndarray]:
    arrays = np.load(FIXTURES / name)
    return {key.removeprefix("state_dict/"): arrays[key] for key in arrays.files if key.startswith("state_dict/")}


@pytest.fixture
def tupe() -> dict[str, np.ndarray]:
    return weights_of("tupe_r.npz")


def fresh(config: Any, vocab_size: int) -> Any:
    """Shapes of the parameters that pre-training would start from."""
    objective = MLM(Config(model=config), vocab_size)
    return jax.eval_shape(objective.init, jax.random.key(0))


@pytest.mark.parametrize("name", ["tupe_a.npz", "tupe_r.npz"])
def test_the_parameters_are_those_of_the_mlm_objective(name: str) -> None:
    config, params = fairseq.tupe(weights_of(name), heads=4)
    chex.assert_trees_all_equal_shapes(params, fresh(config, 61))
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))


def test_mcbert_main_network_is_an_mlm() -> None:
    config, params = fairseq.mcbert(weights_of("mcbert.npz"), heads=6)
    chex.assert_trees_all_equal_shapes({name: params[name] for name in ("encoder", "head")}, fresh(config, 61))
    assert config.max_positions == 24
    assert "tokens" not in params["controller"]["embedder"]
    assert "bias" not in params["controller_head"]


def test_input_is_left_as_it_was(tupe: dict[str, np.ndarray]) -> None:
    before = set(tupe)
    fairseq.tupe(tupe, heads=4)
    assert set(tupe) == before


@pytest.mark.parametrize("key", sorted(weights_of("tupe_r.npz")))
def test_each_weight_is_needed(key: str) -> None:
    """All but the second copy of the token table, and the bias whose absence makes TUPE-A of it."""
    state = weights_of("tupe_r.npz")
    del state[key]
    if key in ("decoder.lm_head.weight", f"{ENCODER}.relative_attention_bias.weight"):
        fairseq.tupe(state, heads=4)
        return
    with pytest.raises(ConfigError) as error:
        fairseq.tupe(state, heads=4)
    name = ".".join(key.split(".")[:4]) if ".layers." in key else key
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", sorted(weights_of("tupe_r.npz")))
def test_each_weight_arrives(key: str) -> None:
    """Changing it changes exactly one parameter; the token table's second copy must then differ."""
    state = weights_of("tupe_r.npz")
    _, before = fairseq.tupe(state, heads=4)
    state[key] = state[key] + 1
    if key in ("decoder.lm_head.weight", f"{ENCODER}.embed_tokens.weight"):
        with pytest.raises(ConfigError, match=r"decoder\.lm_head\.weight: differs from .*embed_tokens\.weight"):
            fairseq.tupe(state, heads=4)
        return
    _, after = fairseq.tupe(state, heads=4)
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    assert sum(not np.array_equal(old, new) for old, new in pairs) == 1


def test_an_unknown_weight_is_named(tupe: dict[str, np.ndarray]) -> None:
    tupe["decoder.classification_heads.x.weight"] = np.zeros(3)
    with pytest.raises(ConfigError, match=r"decoder\.classification_heads\.x\.weight: not a weight of this model"):
        fairseq.tupe(tupe, heads=4)


def test_a_misshapen_weight_is_named(tupe: dict[str, np.ndarray]) -> None:
    key = f"{ENCODER}.layers.1.fc2.weight"
    tupe[key] = tupe[key][:, 1:]
    with pytest.raises(ConfigError, match=r"layers\.1\.fc2\.weight: has shape \[32, 79\], must be \[32, 80\]"):
        fairseq.tupe(tupe, heads=4)
    tupe[key] = tupe[key][0]
    with pytest.raises(ConfigError, match=r"layers\.1\.fc2\.weight"):
        fairseq.tupe(tupe, heads=4)


def test_a_model_without_width_or_positions(tupe: dict[str, np.ndarray]) -> None:
    with pytest.raises(ConfigError, match="the model has 0 positions, must have some"):
        fairseq.tupe(tupe | {f"{ENCODER}.pos.weight": np.zeros((1, 32))}, heads=4)
    with pytest.raises(ConfigError, match="heads=4: must be a divisor of the hidden size 0"):
        fairseq.tupe(tupe | {f"{ENCODER}.embed_tokens.weight": np.zeros((61, 0))}, heads=4)
    mcbert = weights_of("mcbert.npz")
    with pytest.raises(ConfigError, match="the model has 0 positions, must have some"):
        fairseq.mcbert(mcbert | {f"{ENCODER}.embed_positions.weight": np.zeros((1, 48))}, heads=6)


@pytest.mark.parametrize("heads", [0, 5, 64])
def test_heads_must_divide_the_width(tupe: dict[str, np.ndarray], heads: int) -> None:
    with pytest.raises(ConfigError, match=f"heads={heads}"):
        fairseq.tupe(tupe, heads)


def test_heads_must_fit_the_relative_bias(tupe: dict[str, np.ndarray]) -> None:
    with pytest.raises(ConfigError, match=r"relative_attention_bias\.weight: has shape \[33, 4\], must be \[33, 8\]"):
        fairseq.tupe(tupe, heads=8)


@pytest.mark.parametrize(
    "key",
    [
        "decoder.lm_head.embed_tokens.weight",
        "mc.sentence_encoder.embed_tokens.weight",
        "mc.lm_head.weight",
        "mc.lm_head.bias",
        "mc.lm_head.share_emb_pro.weight",
        "mc.lm_head.share_emb_pro.bias",
    ],
)
def test_mcbert_tied_arrays_must_be_equal(key: str) -> None:
    state = weights_of("mcbert.npz")
    state[key] = state[key] + 1
    with pytest.raises(ConfigError, match=f"^{key}: differs from"):
        fairseq.mcbert(state, heads=6)

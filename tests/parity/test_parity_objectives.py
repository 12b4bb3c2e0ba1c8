"""MC-BERT's whole loss, with the draws of its official implementation. (ELECTRA's outputs: test_parity.py.)"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpretrain.config import Config
from jaxpretrain.data.tokenizer import CLS, MASK, NEITHER, PAD, SEP
from jaxpretrain.interop import fairseq
from jaxpretrain.objectives import build
from jaxpretrain.objectives.mcbert import MCBERT, ask

FOLDER = Path(os.environ.get("JAXPRETRAIN_PARITY") or Path(__file__).parent)
SPECIAL = {"pad": PAD, "cls": CLS, "sep": SEP, "mask": MASK, "neither": NEITHER}

pytestmark = pytest.mark.usefixtures("x64")
every_file = pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name) for path in sorted(FOLDER.glob("mcbert*.npz"))]
)


@dataclasses.dataclass(frozen=True)
class Official:
    """A reference file in our ids: its special pieces stand elsewhere in the vocabulary."""

    arrays: dict[str, np.ndarray]
    ours: np.ndarray  # our id of each of theirs
    objective: MCBERT
    params: Any
    batch: dict[str, Array]
    real: np.ndarray

    def ids(self, name: str) -> Array:
        return jnp.asarray(self.ours[self.arrays[name]], jnp.int32)


def load(path: Path) -> Official:
    arrays = dict(np.load(path))
    state = {key.removeprefix("state_dict/"): x for key, x in arrays.items() if key.startswith("state_dict/")}
    numbers = dict(zip(arrays["config_names"].tolist(), arrays["config"].tolist(), strict=True))
    model, params = fairseq.mcbert(state, numbers["heads"])
    ours = renumbered(dict(zip(arrays["special_names"].tolist(), arrays["special_ids"].tolist(), strict=True)), arrays)
    for part, name in ((params["encoder"]["embedder"], "tokens"), (params["head"], "bias")):
        part[name] = part[name][np.argsort(ours)]

    config = Config(model=dataclasses.replace(model, dtype="float64"))
    config.objective.name, config.objective.divider = "mcbert", numbers["controller_size_divider"]
    config.objective.candidates = numbers["num_choices"]
    config.data.sequence_length = arrays["targets"].shape[1]
    objective = build(config, numbers["vocab"])
    assert isinstance(objective, MCBERT)

    tokens, mask = ours[arrays["targets"]], arrays["mask"]
    most = int(mask.sum(1).max())
    positions = np.argsort(~mask, axis=1, kind="stable")[:, :most]
    batch = {
        "tokens": tokens.astype(np.int32),
        "rows": np.arange(len(tokens), dtype=np.int32),
        "inputs": ours[arrays["masked_tokens"]].astype(np.int32),
        "masked": mask,
        "positions": positions,
        "labels": np.take_along_axis(tokens, positions, 1),
        "weights": np.take_along_axis(mask, positions, 1) / mask.sum(),
        "asked": (tokens != PAD) / (tokens != PAD).sum(),
    }
    return Official(arrays, ours, objective, params, jax.tree.map(jnp.asarray, batch), tokens != PAD)


def renumbered(special: dict[str, int], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """A permutation of the vocabulary that takes their special pieces to ours; the rest fill the gaps in order."""
    vocab_size = len(arrays["state_dict/decoder.sentence_encoder.embed_tokens.weight"])
    ours = np.full(vocab_size, -1)
    for name, theirs in special.items():
        ours[theirs] = SPECIAL[name]
    ours[ours < 0] = np.setdiff1d(np.arange(vocab_size), ours)
    return ours


def agree(actual: Any, reference: np.ndarray) -> None:
    """To 1e-6 for float64, to 1e-4 for float32, absolutely and relatively."""
    tolerance = {"float64": 1e-6, "float32": 1e-4}[reference.dtype.name]
    assert np.shape(actual) == reference.shape
    np.testing.assert_allclose(np.asarray(actual), reference, rtol=tolerance, atol=tolerance)


def controller(official: Official) -> Array:
    """Its scores at every position, over their vocabulary."""
    objective, batch = official.objective, official.batch

    @jax.jit
    def logits(params: Any) -> Array:
        table = objective.controller_table(params)
        x = objective.controller_contexts(params, table, batch["inputs"], batch["tokens"] == PAD, None)
        return objective.controller_logits(params, table, x)

    return logits(official.params)[..., official.ours]


@every_file
def test_parameters_are_those_that_training_starts_from(path: Path) -> None:
    """All of them, in these shapes: a checkpoint of the official code can be trained on."""
    official = load(path)
    fresh = jax.eval_shape(official.objective.init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: x.shape, official.params)
    assert shapes == jax.tree.map(lambda x: x.shape, fresh)
    assert all(np.asarray(x).dtype == np.float64 for x in jax.tree.leaves(official.params))


@every_file
def test_controller_scores_and_probabilities(path: Path) -> None:
    official = load(path)
    logits = controller(official)
    agree(logits[official.arrays["mask"]], official.arrays["controller_mlm_logits"])
    # At padding, fairseq's networks see zeros and ours the padding piece: nobody reads what they make of it.
    agree(jax.nn.softmax(logits)[official.real], official.arrays["controller_probs"][official.real])


@every_file
def test_questions(path: Path) -> None:
    official = load(path)
    questions = ask(official.ids("samples"), official.batch["tokens"], official.batch["masked"])
    np.testing.assert_array_equal(questions.inputs, official.ids("corrupted_tokens"))
    real = official.real
    np.testing.assert_array_equal(questions.candidates[real], official.ids("candidates")[real])
    np.testing.assert_array_equal(questions.answers[real], official.arrays["answer"][real])
    assert set(np.unique(official.arrays["answer"][real])) == {0, 1}


@every_file
def test_choice_scores(path: Path) -> None:
    official = load(path)
    objective, batch, real = official.objective, official.batch, official.real

    @jax.jit
    def scores(params: Any) -> Array:
        padding = batch["tokens"] == PAD
        x = objective.encoder.apply(params["encoder"], official.ids("corrupted_tokens"), padding=padding)
        return objective.choice_scores(params, x, official.ids("candidates"))

    agree(scores(official.params)[real], official.arrays["candidate_logits"][real])


@every_file
def test_losses(path: Path) -> None:
    official = load(path)
    objective, batch, arrays = official.objective, official.batch, official.arrays
    objective.config.objective.loss_weight = float(arrays["loss_weight"])

    @jax.jit
    def loss(params: Any) -> Any:
        logits = objective.fill(params, batch["inputs"], batch["positions"])
        value, aux = objective.loss_of(params, batch, None, None, logits, official.ids("samples"))
        return value, aux.metrics

    value, metrics = loss(official.params)
    controller_sum, num_masked = metrics["mlm_loss"]
    choice_sum, num_tokens = metrics["choice_loss"]
    assert (int(num_masked), int(num_tokens)) == (int(arrays["num_masked"]), int(arrays["num_tokens"]))
    agree(controller_sum, arrays["controller_loss_sum"])
    agree(choice_sum, arrays["multiple_choice_loss_sum"])
    # Theirs is a sum that the trainer divides by the number of masked positions; ours is divided already.
    agree(value * num_masked, arrays["total_loss"])


@pytest.mark.skipif("JAXPRETRAIN_PARITY" in os.environ, reason="a folder of somebody's own")
def test_there_is_a_file() -> None:
    """A pattern that finds nothing would test nothing, silently."""
    assert (FOLDER / "mcbert.npz").exists()

"""Every recipe, shrunken, builds and learns for two steps."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config import validate
from jaxpretrain.data.tokenizer import CLS, NEITHER, SEP
from jaxpretrain.objectives import build
from jaxpretrain.training import sharding
from jaxpretrain.training.optimizer import optimizer
from jaxpretrain.training.programs import state_program, step_program

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if "sized(" in path.read_text())  # of `train`
VOCAB = 208


@pytest.mark.parametrize("size", ["tiny", "large"])
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps(name: str, size: str):
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](size)
    model, length = config.model, 16
    model.layers, model.hidden, model.heads, model.ffn = 1, 32, 4, 64
    config.data.sequence_length, config.data.vocab_size, config.train.batch_size = length, VOCAB, 8
    config.optim.warmup_steps, config.train.short_length = 0, length // 2
    validate(config)
    mesh, objective, adam = sharding.make_mesh(config), build(config, VOCAB), optimizer(config)
    init, like = state_program(config, objective, adam, mesh, 8)
    state = init(0)
    tokens = np.random.default_rng(0).integers(NEITHER + 1, VOCAB, (8, length), dtype=np.int32)
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    batch = {"tokens": tokens, "rows": np.arange(8, dtype=np.int32)}
    if config.notes.enabled:
        batch["words"] = np.zeros_like(tokens)
    batch = sharding.put_batch(batch, sharding.batch_sharding(mesh))
    step = step_program(config, objective, adam, mesh, like)
    before = np.asarray(state.params["encoder"]["embedder"]["tokens"])
    for _ in range(2):
        state, metrics = step(state, batch)
        assert metrics["finite"]
        assert float(metrics["metrics"]["loss"][0]) > 0
    assert int(state.step) == 2
    assert (np.asarray(state.params["encoder"]["embedder"]["tokens"]) != before).any()

"""The objective that CONTRIBUTING.md adds as an example: it builds, trains with notes, and is evaluated."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain import config as configs
from jaxpretrain import objectives
from jaxpretrain.config import Config, validate
from jaxpretrain.data.tokenizer import CLS, NEITHER, PAD, SEP
from jaxpretrain.training import sharding
from jaxpretrain.training.optimizer import optimizer
from jaxpretrain.training.state import init_state
from jaxpretrain.training.step import eval_step, train_step

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / ".github/CONTRIBUTING.md").read_text()
FILE, LINE, RECIPE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
VOCAB, ROWS, LENGTH = 64, 16, 16


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Config:
    """The three blocks put where the page says, and the config that comes of it, made small."""
    monkeypatch.setattr(objectives, "OBJECTIVES", dict(objectives.OBJECTIVES))  # as it was, after the test
    file, folder = ModuleType("detection"), {}
    exec(compile(FILE, "detection.py", "exec"), file.__dict__)
    exec(compile(LINE, "objectives/__init__.py", "exec"), {"Detection": file.Detection, **vars(objectives)})
    monkeypatch.setattr(configs, "OBJECTIVES", (*configs.OBJECTIVES, "detection"))
    exec(compile(RECIPE, "configs/detection.py", "exec"), folder)
    config = folder["get_config"]()
    config.model = replace(config.model, layers=1, hidden=32, ffn=32, heads=2)
    config.data.sequence_length, config.train.batch_size = LENGTH, ROWS
    config.optim = replace(config.optim, learning_rate=1e-2, warmup_steps=1)
    return config


def batch_of(seed: int) -> dict[str, np.ndarray]:
    """Pieces that repeat in pairs, so that a random one can be told; some padding; a rare word of two pieces."""
    pairs = np.random.default_rng(seed).integers(NEITHER + 1, VOCAB, (ROWS, LENGTH // 2), dtype=np.int32)
    tokens = np.repeat(pairs, 2, axis=1)
    tokens[:, 0], tokens[:, -1], tokens[0, -3:] = CLS, SEP, PAD
    words = np.zeros_like(tokens)
    words[:, 2], words[:, 3] = 3, 2
    return {"tokens": tokens, "words": words, "rows": np.arange(ROWS, dtype=np.int32)}


def test_the_example_trains(recipe: Config):
    recipe.notes.enabled = True
    validate(recipe)
    objective, adam = objectives.build(recipe, VOCAB), optimizer(recipe)
    mesh = sharding.make_mesh(recipe, jax.devices()[:1])
    init = partial(init_state, objective=objective, optimizer=adam, config=recipe, note_rows=4)
    state = jax.jit(init)(0)
    function = partial(train_step, objective=objective, optimizer=adam, config=recipe, mesh=mesh)
    step = jax.jit(function)
    losses = []
    for number in range(30):
        state, metrics = step(state, batch_of(number))
        assert metrics["finite"]
        losses.append(float(metrics["metrics"]["loss"][0]))
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    evaluate = partial(eval_step, objective=objective, config=recipe, mask_key=jax.random.key(1))
    held_out = batch_of(99)
    metrics = jax.jit(evaluate)(state.params, state.notes, held_out, jnp.zeros(VOCAB))
    for name in (objective.headline, f"without_notes/{objective.headline}"):
        total, weight = metrics[name]
        assert np.isfinite(total)
        assert weight == (held_out["tokens"] != PAD).sum()

"""The scores that are drawn are those that the attention gets."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from jaxpretrain.config import Config, max_positions, sized
from jaxpretrain.data.build import prepare
from jaxpretrain.evaluation.positions import position_scores
from jaxpretrain.objectives import build
from jaxpretrain.training.checkpoint import Checkpointer
from jaxpretrain.training.optimizer import optimizer
from jaxpretrain.training.state import init_state
from jaxpretrain.training.workdir import write_run_files


def run_of(position: str, folder: Path, **fields: object) -> tuple[Config, dict, dict]:
    """Writes a run whose parameters are the first ones, doubled; gives both."""
    (folder / "text.txt").write_text("\n\n".join(f"a document, number {i} of them" for i in range(200)))
    config = sized("tiny")
    config.data.source, config.data.cache_dir, config.data.vocab_size = f"text:{folder}/text.txt", str(folder), 64
    config.data.sequence_length, config.model.position, config.train.seed = 16, position, 3
    config = replace(config, **fields)
    corpus = prepare(config.data, config.notes, progress=False)
    objective = build(config, corpus.vocab_size)
    state = init_state(3, objective=objective, optimizer=optimizer(config), config=config, note_rows=0)
    first = state.params
    state = replace(state, params=jax.tree.map(lambda x: 2 * x, first))
    write_run_files(config, corpus, epath.Path(folder))
    checkpoints = Checkpointer(folder / "checkpoints", keep=1, keep_best=False)
    checkpoints.save(1, state, {})
    checkpoints.close()
    return config, first, state.params


@pytest.mark.parametrize("position", ["relative", "absolute_untied", "tupe_a", "tupe_r"])
def test_before_and_after(position: str, tmp_path: Path):
    config, first, last = run_of(position, tmp_path)
    found = position_scores(tmp_path)
    assert found is not None
    encoder = build(config, 64).encoder
    for scores, params in zip(found, (first, last), strict=True):
        terms = encoder.position_terms(params["encoder"], max_positions(config))
        if position == "absolute_untied":  # p_i U_Q · p_j U_K / √(4d)
            query, key = np.asarray(terms.query), np.asarray(terms.key)
            expected = np.stack([query[:, h] @ key[:, h].T for h in range(2)]) / np.sqrt(4 * 64)
        else:
            expected = np.asarray(terms.bias)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(*found)


def test_however_the_attention_is_computed(tmp_path: Path):
    found = []
    for attention in ("plain", "blockwise"):
        (tmp_path / attention).mkdir()
        model = replace(sized("tiny").model, position="tupe_a", attention=attention)
        run_of("tupe_a", tmp_path / attention, model=model)
        found.append(position_scores(tmp_path / attention))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_none_where_there_is_none(tmp_path: Path):
    (tmp_path / "a").mkdir()
    run_of("absolute", tmp_path / "a")
    assert position_scores(tmp_path / "a") is None
    (tmp_path / "b").mkdir()
    run_of("tupe_a", tmp_path / "b", init_from="elsewhere")
    assert position_scores(tmp_path / "b") is None

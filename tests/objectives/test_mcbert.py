"""MC-BERT: its questions against a slow oracle, its loss by hand, where gradients go, what is never held, its FLOPs."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpretrain.config import Config, validate
from jaxpretrain.data.tokenizer import CLS, MASK, NEITHER, PAD, SEP
from jaxpretrain.models import heads
from jaxpretrain.objectives import build, sampling
from jaxpretrain.objectives import mcbert as module
from jaxpretrain.objectives.mcbert import MCBERT, Questions, ask, repeated

VOCAB, ROWS, LENGTH, DRAWS = 24, 8, 16, 5


def small(**fields: Any) -> Config:
    """Fields of `objective`."""
    config = Config()
    config.data.sequence_length = LENGTH
    config.model = dataclasses.replace(
        config.model, layers=1, hidden=16, ffn=32, dropout=0.0, attention_dropout=0.0, initializer_range=0.3
    )
    defaults = {"name": "mcbert", "mask_share": 1.0, "random_share": 0.0, "mask_rate": 0.3, "candidates": DRAWS}
    config.objective = dataclasses.replace(config.objective, **(defaults | fields))
    validate(config)
    return config


def batch_of(seed: int = 0) -> dict[str, Array]:
    """Some texts are padded."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(NEITHER + 1, VOCAB, (ROWS, LENGTH), dtype=np.int32)
    tokens[:, 0] = CLS
    for row in range(ROWS):
        end = LENGTH - (row % 4) * 3
        tokens[row, end - 1], tokens[row, end:] = SEP, PAD
    return {"tokens": jnp.asarray(tokens), "rows": jnp.arange(ROWS, dtype=jnp.int32)}


def built(**fields: Any) -> tuple[MCBERT, Any, dict[str, Array]]:
    """Objective, parameters, corrupted batch."""
    objective = build(small(**fields), VOCAB)
    assert isinstance(objective, MCBERT)
    params = jax.jit(objective.init)(jax.random.key(0))
    return objective, params, jax.jit(objective.corrupt)(batch_of(), jax.random.key(1))


def watch(objective: MCBERT, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The loss as a jitted function of (params, batch) that also gives its samples and questions."""
    seen: list[Any] = []

    def watched_ask(samples: Array, tokens: Array, masked: Array) -> Questions:
        questions = ask(samples, tokens, masked)
        seen.append((samples, questions))
        return questions

    monkeypatch.setattr(module, "ask", watched_ask)

    @jax.jit
    def run(params: Any, batch: dict[str, Array]) -> Any:
        seen.clear()
        loss, aux = objective.loss(params, batch, None, None)
        return loss, aux, *seen[0]

    return run


# --- questions ---


def slow_ask(samples: list, tokens: list, masked: list) -> tuple[list, list, list]:
    """One position at a time, as the paper tells it."""
    inputs, candidates, answers = [], [], []
    for drawn, token, hidden in zip(samples, tokens, masked, strict=True):
        seen = drawn[0] if hidden else token
        choice = [NEITHER, *drawn[1:]]
        answer = 0
        if seen != token:
            choice[1], answer = token, 1
        inputs.append(seen)
        candidates.append(choice)
        answers.append(answer)
    return inputs, candidates, answers


@pytest.mark.parametrize("draws", [2, 10])
def test_questions_are_those_of_a_slow_oracle(draws: int):
    rng = np.random.default_rng(draws)
    tokens, samples = rng.integers(0, 8, (30, 12)), rng.integers(0, 8, (30, 12, draws))
    masked = rng.random((30, 12)) < 0.5
    found = jax.jit(ask)(samples, tokens, masked)
    for row in range(30):
        expected = slow_ask(samples[row].tolist(), tokens[row].tolist(), masked[row].tolist())
        assert (found.inputs[row].tolist(), found.candidates[row].tolist(), found.answers[row].tolist()) == expected
    again = masked & (samples[..., 0] == tokens)
    assert again.sum() > 10
    assert (found.answers[again] == 0).all()
    assert (found.answers[~masked] == 0).all()
    assert found.answers.sum() == (masked & ~again).sum() > 100


def test_the_answer_is_among_the_candidates():
    """Where something was changed, the truth, and only there is it the answer; everywhere else `<neither>`."""
    rng = np.random.default_rng(1)
    tokens, samples = rng.integers(NEITHER + 1, 12, (40, 9)), rng.integers(0, 12, (40, 9, 4))
    questions = ask(jnp.asarray(samples), jnp.asarray(tokens), jnp.asarray(rng.random((40, 9)) < 0.6))
    answer = np.take_along_axis(np.asarray(questions.candidates), np.asarray(questions.answers)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(answer, np.where(questions.inputs != tokens, tokens, NEITHER))


def test_repeated_candidates_and_a_copy_of_the_truth_are_found():
    tokens = jnp.asarray([[7, 7, 7, 8]])
    candidates = jnp.asarray([[[NEITHER, 7, 9, 9], [NEITHER, 7, 9, 7], [NEITHER, 9, 7, 9], [NEITHER, 9, NEITHER, 6]]])
    questions = Questions(
        inputs=jnp.asarray([[7, 9, 7, 8]]), candidates=candidates, answers=jnp.asarray([[0, 1, 0, 0]])
    )
    expected = [[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 0]]
    np.testing.assert_array_equal(repeated(questions, tokens)[0], np.array(expected, bool))


def test_the_right_answer_is_never_left_out():
    rng = np.random.default_rng(2)
    tokens, samples = rng.integers(NEITHER + 1, 10, (60, 9)), rng.integers(0, 10, (60, 9, 10))
    questions = ask(jnp.asarray(samples), jnp.asarray(tokens), jnp.asarray(rng.random((60, 9)) < 0.5))
    out = np.asarray(repeated(questions, jnp.asarray(tokens)))
    assert out.any()
    assert not np.take_along_axis(out, np.asarray(questions.answers)[..., None], -1).any()


# --- the loss ---


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("where", ["all", "masked"])
def test_loss_and_metrics_are_those_of_the_scores(monkeypatch: pytest.MonkeyPatch, where: str, distinct: bool):
    objective, params, batch = built(candidates_at=where, distinct=distinct, loss_weight=7.0)
    loss, aux, samples, questions = watch(objective, monkeypatch)(params, batch)
    tokens, masked = np.asarray(batch["tokens"]), np.asarray(batch["inputs"]) == MASK
    assert samples.shape == (ROWS, LENGTH, DRAWS)
    scores = np.asarray(objective.choice_scores(params, aux.contexts, questions.candidates), np.float64)
    mlm, choice, right, original, kinds, entropy, fill_right = [], [], [], [], [], [], []
    logits = np.asarray(objective.fill(params, batch["inputs"], jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)))
    for row, place in np.ndindex(tokens.shape):
        if masked[row, place]:
            log_odds = log_softmax(logits[row, place].astype(np.float64))
            mlm.append(-log_odds[tokens[row, place]])
            entropy.append(-(np.exp(log_odds) * log_odds).sum())
            fill_right.append(log_odds.argmax() == tokens[row, place])
        if not (masked[row, place] if where == "masked" else tokens[row, place] != PAD):
            continue
        drawn = samples[row, place].tolist()
        _, [names], [answer] = slow_ask([drawn], [tokens[row, place]], [masked[row, place]])
        options = scores[row, place].copy()
        if distinct:
            copies = [
                names.index(name) < i or (answer == 0 and name == tokens[row, place]) for i, name in enumerate(names)
            ]
            options[copies] = -np.inf
        choice.append(-log_softmax(options)[answer])
        right.append(options.argmax() == answer)
        original.append(options[1:].argmax() == 0)
        kinds.append(answer)
    right, original, kinds = np.array(right), np.array(original), np.array(kinds)
    assert {0, 1} == set(kinds.tolist())
    expected = {
        "mlm_loss": (np.sum(mlm), len(mlm)),
        "mlm_accuracy": (np.sum(fill_right), len(mlm)),
        "mlm_probability": (np.exp(-np.array(mlm)).sum(), len(mlm)),
        "candidate_entropy": (np.sum(entropy), len(entropy)),
        "choice_loss": (np.sum(choice), len(choice)),
        "choice_accuracy": (right.sum(), len(right)),
        "choice_accuracy_changed": (right[kinds == 1].sum(), (kinds == 1).sum()),
        "choice_accuracy_original": (original[kinds == 1].sum(), (kinds == 1).sum()),
        "choice_accuracy_neither": (right[kinds == 0].sum(), (kinds == 0).sum()),
        "neither_share": ((kinds == 0).sum(), len(kinds)),
    }
    assert set(aux.metrics) == set(expected)
    for name, pair in expected.items():
        np.testing.assert_allclose(aux.metrics[name], pair, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, np.mean(mlm) + 7 * np.mean(choice), rtol=1e-5)
    if distinct:
        assert (np.asarray(repeated(questions, batch["tokens"])) & (tokens != PAD)[..., None]).any()


def test_everywhere_else_the_main_model_reads_the_text(monkeypatch: pytest.MonkeyPatch):
    objective, params, batch = built()
    _, _, samples, questions = watch(objective, monkeypatch)(params, batch)
    masked = np.asarray(batch["inputs"]) == MASK
    np.testing.assert_array_equal(masked, batch["masked"])
    np.testing.assert_array_equal(questions.inputs, np.where(masked, samples[..., 0], batch["tokens"]))


def test_candidates_at_masked_positions_are_those_of_all(monkeypatch: pytest.MonkeyPatch):
    """Drawn from the same softmax: where it is sharp, the same pieces; elsewhere no question is asked."""
    objective, params, batch = built(temperature=1e-4)
    everywhere = watch(objective, monkeypatch)(params, batch)[2]
    objective, params, batch = built(temperature=1e-4, candidates_at="masked")
    at_masks = watch(objective, monkeypatch)(params, batch)[2]
    masked = np.asarray(batch["masked"])
    np.testing.assert_array_equal(everywhere[masked], at_masks[masked])
    np.testing.assert_array_equal(at_masks[~masked], np.repeat(batch["tokens"][~masked][:, None], DRAWS, 1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_candidates_are_drawn_from_the_controllers_softmax(monkeypatch: pytest.MonkeyPatch, temperature: float):
    """At any position, masked or not, with the temperature: frequencies over many keys."""
    objective, params, batch = built(temperature=temperature, candidates=500)
    samples = np.asarray(watch(objective, monkeypatch)(params, batch)[2])
    everywhere = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    log_odds = log_softmax(np.asarray(objective.fill(params, batch["inputs"], everywhere), np.float64) / temperature)
    observed = np.stack([(samples == piece).mean(-1) for piece in range(VOCAB)], -1)
    expected = np.exp(log_odds)
    deviation = (observed - expected) / np.sqrt(expected * (1 - expected) / 500 + 1e-9)
    assert 0.9 < np.sqrt((deviation**2).mean()) < 1.1
    assert np.abs(deviation).max() < 9


def test_two_positions_and_two_rows_draw_apart(monkeypatch: pytest.MonkeyPatch):
    objective, params, batch = built()
    flat = jax.tree.map(jnp.zeros_like, params)
    samples = np.asarray(watch(objective, monkeypatch)(flat, batch)[2])
    assert len({draws.tobytes() for draws in samples.reshape(-1, DRAWS)}) == ROWS * LENGTH
    assert np.abs(np.bincount(samples.ravel(), minlength=VOCAB) / samples.size - 1 / VOCAB).max() < 0.03


def test_micro_batches_add_up(monkeypatch: pytest.MonkeyPatch):
    objective, params, batch = built()
    run = watch(objective, monkeypatch)
    whole = run(params, batch)[0]
    parts = [run(params, jax.tree.map(lambda x, part=part: x[part], batch))[0] for part in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)
    assert abs(parts[0] - parts[1]) > 1e-3


def test_padding_has_no_part(monkeypatch: pytest.MonkeyPatch):
    """Whatever the controller is shown at padding and whatever is drawn there."""
    objective, params, batch = built()
    run = watch(objective, monkeypatch)
    padding = batch["tokens"] == PAD
    one = run(params, batch)
    other = run(params, {**batch, "inputs": jnp.where(padding, NEITHER + 1, batch["inputs"])})
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    assert not np.asarray(batch["masked"])[padding].any()
    # A row of padding alone, as evaluation fills batches up with, weighs nothing and breaks nothing.
    empty = {**batch_of(), "tokens": batch["tokens"].at[3].set(PAD)}
    loss, aux, *_ = run(params, jax.jit(objective.corrupt)(empty, jax.random.key(1)))
    assert np.isfinite(loss)
    assert aux.metrics["choice_loss"][1] == (np.asarray(empty["tokens"]) != PAD).sum()


# --- gradients ---


def oracle_of_scores(x: np.ndarray, table: np.ndarray, candidates: np.ndarray, slopes: np.ndarray) -> Any:
    """Σ over places of slope · score: the scores, and the gradients by x and by the table, one place at a time."""
    scores, by_x, by_table = np.zeros(candidates.shape), np.zeros(x.shape), np.zeros(table.shape)
    for place in np.ndindex(candidates.shape):
        piece, slope = candidates[place], slopes[place]
        scores[place] = x[place[:-1]] @ table[piece]
        by_x[place[:-1]] += slope * table[piece]
        by_table[piece] += slope * x[place[:-1]]
    return scores, by_x, by_table


@pytest.mark.parametrize("shape", [(8, 5), (6, 4), (3, 7), (5,)])
def test_candidates_are_scored_and_learnt_from_as_by_hand(shape: tuple[int, ...]):
    """However the rows are dealt out to the devices; few pieces, so that many places add to one."""
    rng = np.random.default_rng(len(shape))
    x, table, slopes = rng.normal(size=(*shape, 6)), rng.normal(size=(9, 6)), rng.normal(size=(*shape, 4))
    candidates = rng.integers(0, 9, (*shape, 4))
    expected = oracle_of_scores(x, table, candidates, slopes)

    @jax.jit
    def run(x: Array, table: Array) -> Any:
        scores, pull = jax.vjp(lambda x, table: heads.candidate_scores(x, table, jnp.asarray(candidates)), x, table)
        return scores, *pull(jnp.asarray(slopes, jnp.float32))

    found = run(jnp.asarray(x, jnp.float32), jnp.asarray(table, jnp.float32))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    coarse = run(jnp.asarray(x, jnp.bfloat16), jnp.asarray(table, jnp.float32))
    assert [a.dtype for a in coarse] == [jnp.float32, jnp.bfloat16, jnp.float32]
    for ours, theirs in zip(coarse, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, atol=0.2)


@pytest.mark.usefixtures("x64")
def test_neither_is_scored_apart_and_as_any_candidate(monkeypatch: pytest.MonkeyPatch):
    """Of every position's candidates it is the first: added up by a scatter, all would meet in one row."""
    config = small()
    config.model.dtype = "float64"
    objective = MCBERT(config, VOCAB)
    params = jax.tree.map(lambda x: x.astype(np.float64), jax.jit(objective.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    params["head"]["bias"] = rng.normal(size=VOCAB)
    x, slopes = rng.normal(size=(ROWS, LENGTH, 16)), rng.normal(size=(ROWS, LENGTH, DRAWS))
    candidates = jnp.asarray(rng.integers(0, VOCAB, (ROWS, LENGTH, DRAWS))).at[..., 0].set(NEITHER)
    scattered, seen = heads.candidate_scores, []
    monkeypatch.setattr(heads, "candidate_scores", lambda *args: (seen.append(args[2].shape), scattered(*args))[1])

    def all_alike(params: Any, x: Array, candidates: Array) -> Any:
        return objective.head.apply({"params": params["head"]}, x, params["encoder"]["embedder"]["tokens"], candidates)

    def run(score: Any) -> Any:
        scores, pull = jax.vjp(lambda params, x: score(params, x, candidates), params, x)
        return scores, pull(slopes)

    found, expected = jax.jit(run, static_argnums=0)(objective.choice_scores), jax.jit(run, static_argnums=0)(all_alike)
    assert list(dict.fromkeys(seen)) == [(ROWS, LENGTH, DRAWS - 1), (ROWS, LENGTH, DRAWS)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), found, expected)


def test_devices_send_the_tables_gradient_once():
    """Each adds up its own rows; what goes between them is one sum of the table's size."""
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    rows, everywhere = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
    x = jax.ShapeDtypeStruct((16, 12, 8), jnp.float32, sharding=rows)
    candidates = jax.ShapeDtypeStruct((16, 12, 5), jnp.int32, sharding=rows)
    table = jax.ShapeDtypeStruct((50, 8), jnp.float32, sharding=everywhere)

    def loss(x: Array, table: Array, candidates: Array) -> Array:
        return jnp.sin(heads.candidate_scores(x, table, candidates)).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(rows, everywhere))
    text = str(gradient.lower(x, table, candidates).compile().as_text())
    sent = re.findall(r"= (\S+) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(", text)
    assert [shape.split("{")[0] for shape in sent] == ["f32[50,8]"]


def gradients(objective: MCBERT, params: Any, batch: Any, weight: float) -> Any:
    objective.config.objective.loss_weight = weight
    return jax.jit(jax.grad(lambda p: objective.loss(p, batch, None, None)[0]))(params)


def test_each_network_learns_from_its_own_loss_and_what_is_shared_from_both():
    objective, params, batch = built()
    controller_alone = gradients(objective, params, batch, 0.0)
    both = gradients(objective, params, batch, 50.0)

    def close(a: Any, b: Any) -> bool:
        return np.allclose(a, b, rtol=1e-4, atol=1e-6)

    # None through sampling: what is the controller's alone learns as if there were no choice.
    for part in ("controller", "controller_head", "table_map"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(both[part]):
            other = controller_alone[part]
            for key in path:
                other = other[key.key]
            assert close(leaf, other), path
            assert np.abs(leaf).max() > 0 or "attention" in str(path), path
    # The main model alone: nothing from the controller's loss.
    for path, leaf in jax.tree_util.tree_leaves_with_path({"e": both["encoder"], "h": both["head"]}):
        name = jax.tree_util.keystr(path)
        other = controller_alone["encoder" if path[0].key == "e" else "head"]
        for key in path[1:]:
            other = other[key.key]
        if name.endswith(("['tokens']", "['h']['bias']")):
            assert np.abs(other).max() > 1e-5, name
            assert not close(leaf, other), name
        else:
            assert not np.abs(other).any(), name


def test_the_table_learns_at_candidates_only_from_the_choice(monkeypatch: pytest.MonkeyPatch):
    """A piece that is neither seen nor a candidate gets no gradient from the main model."""
    objective, params, batch = built(candidates_at="masked", candidates=2)
    _, _, _, questions = watch(objective, monkeypatch)(params, batch)
    monkeypatch.undo()
    difference = jax.tree.map(
        jnp.subtract, gradients(objective, params, batch, 50.0), gradients(objective, params, batch, 0.0)
    )
    asked = np.asarray(batch["asked"]) > 0
    scored = set(np.asarray(questions.candidates)[asked].ravel().tolist())
    bias = np.asarray(difference["head"]["bias"])
    assert set(np.flatnonzero(np.abs(bias) > 1e-5).tolist()) <= scored
    assert scored < set(range(VOCAB))


# --- the quiz that a trained model can be given ---


@pytest.mark.parametrize("distinct", [False, True])
def test_the_quiz_offers_what_training_offers(distinct: bool):
    objective, params, _ = built(distinct=distinct, candidates=8)
    batch = batch_of()
    questions, scores = jax.jit(objective.quiz)(params, batch, jax.random.key(1))
    copies = np.asarray(repeated(questions, batch["tokens"]))
    assert copies.any()
    np.testing.assert_array_equal(np.isneginf(scores), copies & distinct)


# --- parameters ---


def test_what_is_shared_is_there_once():
    _, params, _ = built(divider=2)
    assert set(params) == {"encoder", "head", "controller", "controller_head", "table_map"}
    assert "tokens" not in params["controller"]["embedder"]
    assert "bias" not in params["controller_head"]
    assert params["table_map"]["kernel"].shape == (16, 8)
    assert params["controller"]["embedder"]["positions"].shape == (LENGTH, 8)
    assert params["controller"]["layers"]["ffn_in"]["kernel"].shape == (1, 8, 16)
    assert params["controller"]["layers"]["attention"]["qkv"]["kernel"].shape == (1, 8, 3, 1, 8)
    for width in (8, 16, 24):  # of the table: the controller's own, the blocks', another
        config = small(divider=2)
        config.model.embedding = width
        mapped = build(config, VOCAB)
        shapes = jax.eval_shape(mapped.init, jax.random.key(0))
        assert shapes["table_map"]["kernel"].shape == (width, 8)
        assert "projection" not in shapes["controller"]["embedder"]
        jax.eval_shape(mapped.loss, shapes, jax.eval_shape(mapped.corrupt, batch_of(), jax.random.key(0)), None, None)
    large = build(small(auxiliary_layers=3, divider=1), VOCAB)
    shapes = jax.eval_shape(large.init, jax.random.key(0))
    assert shapes["controller"]["layers"]["ffn_in"]["kernel"].shape == (3, 16, 32)


def test_fill_is_the_controllers():
    """It sees [MASK]s; the main model never does."""
    objective, params, batch = built()
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    before = objective.fill(params, batch["inputs"], positions)
    changed = {
        **params,
        "encoder": {**params["encoder"], "layers": jax.tree.map(jnp.zeros_like, params["encoder"]["layers"])},
    }
    np.testing.assert_array_equal(objective.fill(changed, batch["inputs"], positions), before)


# --- memory ---


def test_neither_all_scores_nor_all_candidate_vectors_are_held(monkeypatch: pytest.MonkeyPatch):
    """The compiled loss and gradient against a variant that holds them, by XLA's own account."""
    rows, length, hidden = 8, 64, 32
    shape = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = {"tokens": shape, "rows": jax.ShapeDtypeStruct((rows,), jnp.int32)}
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(sampling, "CPU_CHUNK", 8)

    def temporaries(vocab_size: int, draws: int) -> int:
        config = small(candidates=draws)
        config.model, config.data.sequence_length = dataclasses.replace(config.model, hidden=hidden), length
        objective = build(config, vocab_size)
        params = jax.eval_shape(objective.init, jax.random.key(0))
        corrupted = jax.eval_shape(objective.corrupt, batch, jax.random.key(0))
        gradient = jax.jit(jax.grad(lambda p, b: objective.loss(p, b, None, None)[0]))
        return gradient.lower(params, corrupted).compile().memory_analysis().temp_size_in_bytes

    def at_once(function: Any, sequences: Any, rows: int) -> Array:
        return function(*sequences)

    def gathered(x: Array, table: Array, candidates: Array) -> Array:
        return jnp.einsum("...e,...ke->...k", x, table[candidates])

    cases = [
        (sampling, "over_chunks", at_once, (4096, 10), 4 * rows * length * 4096),
        (heads, "candidate_scores", gathered, (256, 80), 4 * rows * length * 80 * hidden),
    ]
    for place, name, naive, size, held in cases:
        ours = temporaries(*size)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, naive)
            theirs = temporaries(*size)
        assert theirs - ours > 0.7 * held, name
        assert theirs > held, name

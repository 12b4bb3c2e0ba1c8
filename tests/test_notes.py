"""TNF's notes: against a numpy oracle, alone and in the step; no leaks, no gradient into the table, no second table."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpretrain import notes as notes_lib
from jaxpretrain.config import Config, validate
from jaxpretrain.data.tokenizer import MASK, NEITHER, PAD
from jaxpretrain.models.encoder import InputNotes
from jaxpretrain.notes import NONE, Notes
from jaxpretrain.objectives import OBJECTIVES, build
from jaxpretrain.objectives.mlm import MLM
from jaxpretrain.training import sharding
from jaxpretrain.training.optimizer import optimizer
from jaxpretrain.training.state import init_state
from jaxpretrain.training.step import eval_step, train_step

ROWS, LENGTH, VOCAB = 40, 24, 64


def oracle(
    table: np.ndarray, words: np.ndarray, contexts: np.ndarray, padding: np.ndarray, config: Any
) -> tuple[np.ndarray, dict[int, list[np.ndarray]]]:
    """The table after a step, and the contexts of each word."""
    met: dict[int, list[np.ndarray]] = {}
    for marks, x, pad in zip(words, contexts, padding, strict=True):
        for s in np.flatnonzero(marks % 2)[: config.capacity]:
            t = s + 1
            while t < len(marks) and marks[t] == marks[s] - 1:
                t += 1
            places = range(max(0, s - config.window), min(len(marks), t + config.window))
            met.setdefault(marks[s] // 2 - 1, []).append(x[[i for i in places if not pad[i]]].mean(0))
    table = table.copy()
    for word, notes in met.items():
        for _ in notes if config.repeats == "compound" else [0]:
            table[word] = (1 - config.rate) * table[word] + config.rate * np.mean(notes, 0)
    return table, met


def spans(marks: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(row of the table, first piece, one past the last) of a sequence's words."""
    starts = np.flatnonzero(marks % 2)
    for s in starts.tolist():
        t = s + 1
        while t < len(marks) and marks[t] and not marks[t] % 2:
            t += 1
        yield marks[s] // 2 - 1, s, t


def input_oracle(
    table: np.ndarray, words: np.ndarray, tokens: np.ndarray, inputs: np.ndarray, config: Any
) -> tuple[np.ndarray, np.ndarray]:
    """λ at each position that shows a note, [B, T], and the note, [B, T, H]."""
    weight = np.zeros(tokens.shape)
    vectors = np.zeros((*tokens.shape, table.shape[1]))
    for row, marks in enumerate(words):
        for word, s, t in list(spans(marks))[: config.capacity]:
            if (tokens[row, s:t] == inputs[row, s:t]).all():
                weight[row, s:t], vectors[row, s:t] = config.weight, table[word]
    return weight, vectors


def texts(seed: int, batch: int = 8, length: int = LENGTH, rows: int = ROWS, pieces: int = VOCAB) -> dict[str, Any]:
    """Random texts full of rare words: at both edges, side by side, one after itself, in padded and empty texts."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(NEITHER + 1, pieces, (batch, length), dtype=np.int32)
    words = np.zeros((batch, length), np.int32)
    for row in range(batch):
        end = length if row % 3 else int(rng.integers(3, length))
        place, word = 0, 0
        while place < end and row != 1:  # text 1 has no rare word
            size = int(rng.integers(1, 4))
            if place + size <= end and (rng.random() < 0.6 or place == 0 or place + size == end):
                word = word if rng.random() < 0.3 else int(rng.integers(rows))
                words[row, place : place + size] = 2 * (1 + word)
                words[row, place] += 1
            place += size
        tokens[row, end:] = PAD
    return {"tokens": tokens, "words": words, "rows": np.arange(batch, dtype=np.int32)}


def test_the_texts_have_what_the_tests_are_about():
    batches = [texts(seed) for seed in range(4)]
    found = [[list(spans(marks)) for marks in batch["words"]] for batch in batches]
    flat = [row for batch in found for row in batch]
    assert any(row and row[0][1] == 0 for row in flat)
    assert any(row and row[-1][2] == LENGTH for row in flat)
    assert any(a == b and e == s for row in flat for (a, _, e), (b, s, _) in itertools.pairwise(row))
    assert any(a != b and e == s for row in flat for (a, _, e), (b, s, _) in itertools.pairwise(row))
    assert any(t - s == 3 for row in flat for _, s, t in row)
    assert all(len({word for row in batch for word, _, _ in row}) < sum(map(len, batch)) for batch in found)
    assert all((batch["tokens"] == PAD).any() and not batch["words"][1].any() for batch in batches)


def whole_update(table: Any, batch: dict[str, Any], contexts: Any, config: Any) -> tuple[Notes, Array]:
    notes = Notes(table=jnp.asarray(table), written=jnp.full(len(table), -1, jnp.int32))

    @partial(jax.jit, static_argnums=(3, 4, 5, 6))
    def run(notes: Notes, words: Array, contexts: Array, window: int, rate: float, capacity: int, repeats: str) -> Any:
        occurrences = notes_lib.find(words, capacity)
        values = notes_lib.contexts_of(contexts, batch["tokens"] == PAD, occurrences, window)
        ids = occurrences.ids.reshape(-1)
        rule = replace(config, rate=rate, repeats=repeats)
        return notes_lib.update(notes, ids, values.reshape(len(ids), -1), 7, rule), occurrences.overflow

    contexts = jnp.asarray(contexts)
    return run(notes, batch["words"], contexts, config.window, config.rate, config.capacity, config.repeats)


def check_update(seed: int, dtype: Any, tolerance: float, **rules: Any) -> None:
    config = replace(Config().notes, **rules)
    batch, rng = texts(seed), np.random.default_rng(seed)
    table, contexts = rng.normal(size=(ROWS, 8)), rng.normal(size=(8, LENGTH, 8))
    table, contexts = table.astype(dtype), contexts.astype(dtype)
    after, overflow = whole_update(table, batch, contexts, config)
    expected, met = oracle(table.astype(float), batch["words"], contexts.astype(float), batch["tokens"] == PAD, config)
    assert after.table.dtype == dtype
    np.testing.assert_allclose(after.table, expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(np.flatnonzero(after.written == 7), sorted(met))
    assert np.isin(after.written, (-1, 7)).all()
    beyond = [max(0, len(list(spans(marks))) - config.capacity) for marks in batch["words"]]
    np.testing.assert_array_equal(overflow, beyond)


RULES = (
    {},
    {"window": 2, "rate": 0.4},
    {"window": 0, "rate": 1.0},
    {"window": 3, "repeats": "compound"},
    {"window": 1, "capacity": 3},
    {"window": 1, "capacity": 3, "repeats": "compound", "rate": 0.3},
    {"window": 2, "capacity": 100},
)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_steps_notes_are_the_oracles_in_64_bits(rules: dict[str, Any]):
    for seed in range(4):
        check_update(seed, np.float64, 1e-10, **rules)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_steps_notes_are_the_oracles_in_32_bits(rules: dict[str, Any]):
    check_update(0, np.float32, 1e-5, **rules)


def test_vectors_in_16_bits_are_averaged_in_32():
    batch, rng = texts(3), np.random.default_rng(3)
    config = replace(Config().notes, rate=1.0)
    contexts = jnp.asarray(1 + rng.normal(size=(8, LENGTH, 8)) / 64, jnp.bfloat16)
    table = np.zeros((ROWS, 8), np.float32)
    after, _ = whole_update(table, batch, contexts, config)
    expected, _ = oracle(table, batch["words"], np.asarray(contexts, float), batch["tokens"] == PAD, config)
    assert after.table.dtype == np.float32
    np.testing.assert_allclose(after.table, expected, rtol=0, atol=1e-5)


def test_a_batch_without_rare_words_changes_nothing():
    batch = texts(0)
    batch["words"][:] = 0
    table = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    after, overflow = whole_update(table, batch, np.ones((8, LENGTH, 8), np.float32), Config().notes)
    np.testing.assert_array_equal(after.table, table)
    assert (after.written == -1).all()
    assert not overflow.any()


@pytest.mark.parametrize("capacity", [3, 100])
def test_lookup_gives_a_note_where_the_whole_word_is_seen(capacity: int):
    config = replace(Config().notes, capacity=capacity, weight=0.25)
    table = np.random.default_rng(1).normal(size=(ROWS, 8)).astype(np.float32)
    notes = Notes(table=jnp.asarray(table), written=jnp.zeros(ROWS, jnp.int32))

    @jax.jit
    def run(words: Array, tokens: Array, inputs: Array) -> tuple[InputNotes, Array]:
        occurrences = notes_lib.find(words, capacity)
        shown = notes_lib.intact(occurrences, tokens, inputs)
        return notes_lib.lookup(notes, occurrences, tokens, inputs, config), shown

    for seed in range(4):
        batch, rng = texts(seed), np.random.default_rng(seed)
        tokens, words = batch["tokens"], batch["words"]
        changed = rng.random(tokens.shape) < 0.15
        inputs = np.where(changed, rng.choice([MASK, 9, 11], tokens.shape), tokens).astype(np.int32)
        found, shown = run(words, tokens, inputs)
        weight, vectors = input_oracle(table, words, tokens, inputs, config)
        np.testing.assert_allclose(found.weight, weight, rtol=1e-6)
        np.testing.assert_array_equal(np.where(weight[..., None] > 0, found.vectors, 0), vectors.astype(np.float32))
        whole = [[(tokens[r, s:t] == inputs[r, s:t]).all() for _, s, t in spans(words[r])][:capacity] for r in range(8)]
        assert shown.sum() == sum(map(sum, whole))
        assert 0 < shown.sum() < sum(map(len, whole))


# --- in the step ---


class Watched(MLM):
    """Shows what the encoder saw and made of it."""

    def loss(self, params: Any, batch: Any, notes: Any, key: Any) -> tuple[Array, Any]:
        loss, aux = super().loss(params, batch, notes, key)
        return loss, replace(aux, metrics=aux.metrics | {"watched": (aux.contexts, batch["inputs"])})


def small(**fields: Any) -> Config:
    config = Config()
    defaults = {
        "data__sequence_length": LENGTH,
        "model__layers": 1,
        "model__hidden": 16,
        "model__ffn": 32,
        "model__dropout": 0.0,
        "model__attention_dropout": 0.0,
        "model__initializer_range": 0.5,
        "notes__enabled": True,
        "notes__window": 3,
        "notes__capacity": 6,
        "train__batch_size": 32,
        "train__steps": 100,
        "optim__warmup_steps": 2,
        "optim__eps": 1e-2,  # or Adam makes steps of rounding errors
    }
    for name, value in (defaults | fields).items():
        room, _, leaf = name.partition("__")
        assert hasattr(getattr(config, room), leaf), name
        setattr(getattr(config, room), leaf, value)
    validate(config)
    return config


@dataclass
class Run:
    config: Config
    objective: Any
    step: jax.stages.Compiled
    state: Any
    place: Any


def start(config: Config, devices: int = 1, rows: int = ROWS, objective: Any = None, **options: Any) -> Run:
    """As the loop does it: state born sharded, step compiled ahead, state donated."""
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    objective, adam = objective or build(config, VOCAB), optimizer(config)
    init = partial(init_state, objective=objective, optimizer=adam, config=config, note_rows=rows)
    shapes = jax.eval_shape(init, 0)
    places = sharding.state_sharding(mesh, shapes, notes_sharded=config.notes.sharded)
    like, place = sharding.with_sharding(shapes, places), sharding.batch_sharding(mesh)
    batch = sharding.put_batch(texts(0, config.train.batch_size), place)
    function = partial(train_step, objective=objective, optimizer=adam, config=config, mesh=mesh)
    options = options or {"xla_backend_optimization_level": 0}  # compiles in half the time
    step = jax.jit(function, out_shardings=(places, None), donate_argnums=0).lower(like, batch).compile(options)
    state = jax.jit(init, out_shardings=places)(config.train.seed)
    return Run(config, objective, step, state, place)


def tables_of(run: Run, steps: int) -> list[np.ndarray]:
    """The table before, and after each step."""
    state, found = run.state, [np.array(run.state.notes.table)]
    for seed in range(steps):
        state, metrics = run.step(state, sharding.put_batch(texts(seed, run.config.train.batch_size), run.place))
        assert metrics["finite"]
        found.append(np.array(state.notes.table))
    return found


@pytest.fixture(scope="module")
def reference() -> list[np.ndarray]:
    """Tables of two steps on one device, whole batch."""
    config = small()
    return tables_of(start(config, objective=Watched(config, VOCAB)), 2)


@pytest.mark.parametrize("repeats", ["mean", "compound"])
def test_the_steps_notes_are_the_oracles(repeats: str, reference: list[np.ndarray]):
    config = small(notes__repeats=repeats)
    run = start(config, objective=Watched(config, VOCAB))
    batch, before = texts(0, 32), np.array(run.state.notes.table)
    params = jax.tree.map(jnp.copy, run.state.params)
    state, metrics = run.step(run.state, jax.tree.map(jnp.asarray, batch))
    contexts, inputs = map(np.asarray, metrics["metrics"]["watched"])
    padding = batch["tokens"] == PAD

    # What the encoder sees, from the oracle: words masked, kept and changed, with and without a note.
    assert ((inputs == MASK) & (batch["words"] > 0)).sum() > 10
    weight, vectors = input_oracle(before, batch["words"], batch["tokens"], inputs, config.notes)
    seen = InputNotes(vectors=jnp.asarray(vectors, jnp.float32), weight=jnp.asarray(weight, jnp.float32))
    again = jax.jit(run.objective.encoder.apply)(
        params["encoder"], jnp.asarray(inputs), padding=jnp.asarray(padding), notes=seen
    )
    np.testing.assert_allclose(contexts, again, atol=1e-5)

    expected, met = oracle(before.astype(float), batch["words"], contexts.astype(float), padding, config.notes)
    np.testing.assert_allclose(state.notes.table, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(state.notes.written == 1), sorted(met))
    counts = {name: float(metrics["metrics"][name][0]) for name in ("notes_read", "notes_written", "notes_overflow")}
    found = [list(spans(marks)) for marks in batch["words"]]
    shown = [(inputs[r, s:t] == batch["tokens"][r, s:t]).all() for r in range(32) for _, s, t in found[r][:6]]
    overflow = sum(max(0, len(row) - 6) for row in found)
    assert counts == {
        "notes_read": sum(shown),
        "notes_written": sum(map(len, met.values())),
        "notes_overflow": overflow,
    }
    assert 0 < sum(shown) < len(shown)
    assert overflow > 0
    if repeats == "mean":
        np.testing.assert_allclose(state.notes.table, reference[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("accumulation", "devices", "sharded"),
    [
        (2, 1, False),
        (4, 1, True),
        (1, 2, True),
        (4, 2, False),
        (1, 8, False),
        (2, 8, False),
        (1, 8, True),
        (4, 8, True),
    ],
)
def test_parts_and_devices_do_not_matter(accumulation: int, devices: int, sharded: bool, reference: list[np.ndarray]):
    config = small(train__accumulation=accumulation, notes__sharded=sharded, sharding__fsdp=min(devices, 2))
    run = start(config, devices)
    table = run.state.notes.table
    assert table.addressable_shards[0].data.size == table.size // (devices if sharded else 1)
    tables = tables_of(run, 2)
    np.testing.assert_array_equal(tables[0], reference[0])
    assert np.abs(tables[1] - tables[0]).max() > 1e-2
    for found, expected in zip(tables[1:], reference[1:], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_update_that_is_not_finite_writes_no_note():
    run = start(small())
    bias = run.state.params["head"]["bias"]
    head = {**run.state.params["head"], "bias": bias.at[7].set(jnp.nan)}
    state = replace(run.state, params={**run.state.params, "head": head})
    before = jax.tree.map(np.array, state.notes)
    state, metrics = run.step(state, jax.tree.map(jnp.asarray, texts(0, 32)))
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, state.notes, before)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_evaluation_reads_notes_and_leaves_them(name: str):
    config = small(objective__name=name, train__batch_size=8)
    objective = build(config, VOCAB)
    params = jax.jit(objective.init)(jax.random.key(0))
    notes = notes_lib.init(jax.random.key(1), ROWS, 16, 1.0)
    before = jax.tree.map(np.array, notes)
    evaluate = partial(eval_step, objective=objective, config=config, mask_key=jax.random.key(2))
    metrics = jax.jit(evaluate)(params, notes, texts(0), jnp.zeros(VOCAB))
    jax.tree.map(np.testing.assert_array_equal, notes, before)
    assert metrics["notes_read"][0] > 0
    assert metrics[objective.headline][0] != metrics[f"without_notes/{objective.headline}"][0]


@pytest.mark.parametrize(("devices", "sharded"), [(1, False), (8, False), (8, True)])
def test_the_table_is_updated_in_place(devices: int, sharded: bool):
    """No second table: not in the temporaries, not as a copy, not sent between devices."""
    config = small(notes__sharded=sharded, train__batch_size=16, model__hidden=64)
    run = start(config, devices, rows=60_000, xla_embed_ir_in_executable=False)
    rows = len(run.state.notes.table) // (devices if sharded else 1)
    size = rows * 64 * 4
    memory = run.step.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2
    text = run.step.as_text()
    shape = rf"f32\[{rows},64\]"
    assert re.search(shape, text)
    assert not re.search(rf"= {shape}\S* (copy|all-reduce|all-gather|copy-start|concatenate)\(", text)
    table = run.state.notes.table
    run.step(run.state, sharding.put_batch(texts(0, 16), run.place))
    assert table.is_deleted()


# --- leaks and gradients ---


@dataclass
class Spy:
    """An encoder that keeps what it is given and what it makes of it."""

    encoder: Any
    calls: list[tuple[Array, InputNotes, Array]]

    def apply(self, params: Any, tokens: Array, **kw: Any) -> Array:
        out = self.encoder.apply(params, tokens, **kw)
        self.calls.append((tokens, kw["notes"], out))
        return out


NETWORKS = [("mlm", "encoder"), ("electra", "generator"), ("electra", "encoder")]
NETWORKS += [("mcbert", "controller"), ("mcbert", "encoder")]
PIECES = NEITHER + 5  # four ordinary ones: many a draw is the original


@pytest.mark.parametrize(("name", "network"), NETWORKS)
def test_a_network_that_does_not_see_a_word_is_not_told(name: str, network: str):
    """Whether a note is there follows from the input alone, and one that is not there changes nothing."""
    config = small(objective__name=name, train__batch_size=24, notes__auxiliary_reads=True, objective__mask_rate=0.4)
    config.notes.capacity = LENGTH
    if name != "mlm":
        config.objective.mask_share, config.objective.random_share = 1.0, 0.0
    objective: Any = build(config, PIECES)
    params = jax.jit(objective.init)(jax.random.key(0))
    batch = texts(5, 24, rows=100, pieces=PIECES)
    tokens, words = batch["tokens"], batch["words"]
    corrupted = jax.jit(objective.corrupt)({**batch, "occurrences": notes_lib.find(words, LENGTH)}, jax.random.key(1))
    calls: list[tuple[Array, InputNotes, Array]] = []
    setattr(objective, network, Spy(getattr(objective, network), calls))

    @jax.jit
    def run(table: Array) -> tuple[Array, InputNotes, Array]:
        calls.clear()
        objective.loss(params, corrupted, Notes(table=table, written=jnp.zeros(len(table), jnp.int32)), None)
        return calls[0]

    table = np.random.default_rng(6).normal(size=(100, 16)).astype(np.float32)
    seen, found, out = map(jax.device_get, run(jnp.asarray(table)))
    weight, vectors = input_oracle(table, words, tokens, seen, config.notes)
    np.testing.assert_array_equal(found.weight, weight.astype(np.float32))
    width = vectors.shape[-1]
    if network != "controller":  # which reads them through its map
        np.testing.assert_array_equal(np.where(weight[..., None] > 0, found.vectors[..., :width], 0), vectors)

    # A chosen place that shows the original, kept or drawn, has its note like any other.
    chosen = np.zeros(tokens.shape, bool)
    np.put_along_axis(chosen, np.asarray(corrupted["positions"]), np.asarray(corrupted["weights"]) > 0, 1)
    again = chosen & (seen == tokens) & (words > 0)
    changed = (seen != tokens) & (words > 0)
    assert changed.sum() > 10
    assert (weight[changed] == 0).all()
    if network == "encoder":
        assert (weight[again] > 0).sum() > 3
    assert (weight[~chosen & (words > 0)] > 0).sum() > 10

    shown = {
        word for r, marks in enumerate(words) for word, s, t in spans(marks) if (seen[r, s:t] == tokens[r, s:t]).all()
    }
    hidden = {word for marks in words for word, _, _ in spans(marks)} - shown
    assert len(hidden) > 5
    other = table.copy()
    other[list(hidden)] = 9.0
    np.testing.assert_array_equal(run(jnp.asarray(other))[2], out)
    # The counter-check: notes that are shown do count.
    other = table.copy()
    other[list(shown)] = 9.0
    assert (np.asarray(run(jnp.asarray(other))[2]) != out).any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_gradient_flows_into_the_table(name: str):
    config = small(objective__name=name, train__batch_size=8, notes__auxiliary_reads=True)
    objective = build(config, VOCAB)
    params = jax.jit(objective.init)(jax.random.key(0))
    batch = texts(2)
    corrupted = jax.jit(objective.corrupt)(
        {**batch, "occurrences": notes_lib.find(batch["words"], 6)}, jax.random.key(1)
    )

    @jax.jit
    def loss_and_gradient(table: Array) -> tuple[Array, Array]:
        def loss(table: Array) -> Array:
            notes = Notes(table=table, written=jnp.zeros(ROWS, jnp.int32))
            value, aux = objective.loss(params, corrupted, notes, None)
            padding = corrupted["tokens"] == PAD
            return value + notes_lib.contexts_of(aux.contexts, padding, corrupted["occurrences"], 3).sum()

        return jax.value_and_grad(loss)(table)

    table = jax.random.normal(jax.random.key(3), (ROWS, 16))
    value, gradient = loss_and_gradient(table)
    np.testing.assert_array_equal(gradient, 0)
    assert loss_and_gradient(2 * table)[0] != value


def test_contexts_ask_nothing_of_the_encoder():
    batch = texts(2)
    occurrences = notes_lib.find(jnp.asarray(batch["words"]), 6)
    contexts = jnp.ones((8, LENGTH, 4))
    gradient = jax.jit(jax.grad(lambda x: notes_lib.contexts_of(x, batch["tokens"] == PAD, occurrences, 3).sum()))
    np.testing.assert_array_equal(gradient(contexts), 0)


@pytest.mark.usefixtures("x64")
def test_gradients_past_the_notes_are_those_of_differences():
    """Of the loss by the parameters, where a part λ of the input is a note; and by λ and the note themselves."""
    config = small(train__batch_size=8, model__dtype="float64", notes__weight=0.3)
    objective = build(config, VOCAB)
    batch, rng = texts(4), np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), jax.jit(objective.init)(jax.random.key(0)))
    corrupted = jax.jit(objective.corrupt)(
        {**batch, "occurrences": notes_lib.find(batch["words"], 6)}, jax.random.key(1)
    )
    notes = Notes(table=jnp.asarray(rng.normal(size=(ROWS, 16))), written=jnp.zeros(ROWS, jnp.int32))
    loss = jax.jit(lambda params: objective.loss(params, corrupted, notes, None)[0])
    check_gradient(loss, params, rng)

    padding = jnp.asarray(batch["tokens"] == PAD)
    weight, vectors = input_oracle(
        np.asarray(notes.table), batch["words"], batch["tokens"], np.asarray(corrupted["inputs"]), config.notes
    )

    @jax.jit
    def by_notes(notes: InputNotes) -> Array:
        x = objective.encoder.apply(params["encoder"], corrupted["inputs"], padding=padding, notes=notes)
        return jnp.sin(x + jnp.arange(16)).sum()

    check_gradient(by_notes, InputNotes(vectors=jnp.asarray(vectors), weight=jnp.asarray(weight)), rng)


def check_gradient(function: Any, at: Any, rng: np.random.Generator) -> None:
    """Along random directions, by central differences."""
    gradient = jax.jit(jax.grad(function))(at)
    for _ in range(3):
        way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), at)
        up, down = (function(jax.tree.map(lambda x, w, s=s: x + s * 1e-6 * w, at, way)) for s in (1, -1))
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, w: (g * w).sum(), gradient, way)))
        np.testing.assert_allclose((up - down) / 2e-6, along, rtol=1e-6, atol=1e-7)


def test_a_word_mark_of_no_word_reaches_no_row():
    """`NONE` lies outside of every table: it gathers nothing and scatters nothing."""
    table = jnp.ones((ROWS, 4))
    notes = Notes(table=table, written=jnp.full(ROWS, -1, jnp.int32))
    ids, values = jnp.full(5, NONE), jnp.full((5, 4), jnp.nan)
    after = jax.jit(lambda: notes_lib.update(notes, ids, values, jnp.asarray(1), Config().notes))()
    np.testing.assert_array_equal(after.table, table)
    assert (after.written == -1).all()


def test_summary_by_hand():
    table = jnp.asarray([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [50.0, 0.0]])  # the last row fills the table up
    written = jnp.asarray([10, 4, -1, -1])
    found = notes_lib.summary(Notes(table=table, written=written), jnp.asarray(12), 3)
    assert found["norm"] == pytest.approx(2.0)
    assert found["age"] == pytest.approx((2 + 8) / 2)
    assert found["share_written"] == pytest.approx(2 / 3)

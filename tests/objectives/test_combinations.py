"""Every position with every objective, with notes and without, on eight devices; the same on one; and a resume.

Compiling is all the time. So the thirty have the smallest shapes, no dropout and plain gradient descent (Adam is a
third of a small step's program); the few that are looked at closely have both.
"""

import functools
import itertools
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpretrain.config import OBJECTIVES, POSITIONS, Config, validate
from jaxpretrain.data.tokenizer import CLS, NEITHER, PAD, SEP
from jaxpretrain.models.encoder import fold_in
from jaxpretrain.objectives import build
from jaxpretrain.training import sharding
from jaxpretrain.training.checkpoint import Checkpointer
from jaxpretrain.training.optimizer import optimizer
from jaxpretrain.training.programs import state_program, step_program

VOCAB, ROWS, LENGTH = 32, 8, 8


def configured(position: str, objective: str, notes: bool, fsdp: int = 1) -> Config:
    config = Config()
    config.model = replace(config.model, position=position, layers=1, hidden=16, ffn=16, initializer_range=0.2)
    config.data.sequence_length, config.train.batch_size, config.train.steps = LENGTH, ROWS, 10
    config.objective.name, config.objective.mask_rate, config.objective.candidates = objective, 0.4, 3
    config.notes = replace(config.notes, enabled=notes, window=2, capacity=4, auxiliary_reads=True, sharded=True)
    config.optim = replace(config.optim, warmup_steps=1, eps=1e-2)  # else Adam makes steps of rounding errors
    config.sharding.fsdp = fsdp
    validate(config)
    return config


def batch_of(seed: int) -> dict[str, np.ndarray]:
    """Texts with words of two pieces, some of them rare, and padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(NEITHER + 1, VOCAB, (ROWS, LENGTH), dtype=np.int32)
    tokens[:, 0], tokens[:, -1], tokens[0, -2:] = CLS, SEP, PAD
    word = rng.integers(0, 6, (ROWS, 2), dtype=np.int32)
    words = np.zeros_like(tokens)
    for place in (1, 3):  # side by side
        marks = 2 * (1 + word[:, place // 2])
        words[:, place], words[:, place + 1] = marks + 1, marks
    return {"tokens": tokens, "words": words, "rows": np.arange(ROWS, dtype=np.int32)}


@dataclass
class Run:
    step: Any
    like: Any
    place: Any

    def start(self) -> Any:
        """Random weights, made without compiling anything."""
        rng = np.random.default_rng(0)

        def make(path: Any, like: Any) -> Any:
            name = jax.tree_util.keystr(path)
            if name == ".rng":
                return jax.device_put(jax.random.key(0), like.sharding)
            value = np.zeros(like.shape, like.dtype)
            if name.startswith((".params", ".notes.table")):
                value += (name.endswith("['scale']") + 0.2 * rng.normal(size=like.shape)).astype(like.dtype)
            return jax.device_put(value - (name == ".notes.written"), like.sharding)

        return jax.tree_util.tree_map_with_path(make, self.like)

    def states(self, steps: int, state: Any = None, first: int = 0) -> tuple[Any, list[Any], list[float]]:
        """The last state, all of them on the host, and the losses."""
        state = self.start() if state is None else state
        seen, losses = [host(state)], []
        for number in range(first, first + steps):
            state, metrics = self.step(state, sharding.put_batch(batch_of(number), self.place))
            assert metrics["finite"]
            assert all(np.isfinite(total) for total, _ in metrics["metrics"].values())
            losses.append(float(metrics["metrics"]["loss"][0]))
            seen.append(host(state))
        return state, seen, losses


def host(state: Any) -> Any:
    """A copy: what is donated is gone."""
    return jax.tree.map(np.array, replace(state, rng=jax.random.key_data(state.rng)))


def compiled(config: Config, devices: int, descent: optax.GradientTransformation) -> Run:
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    objective = build(config, VOCAB)
    _, like = state_program(config, objective, descent, mesh, 6)
    place = sharding.batch_sharding(mesh)
    batch = sharding.put_batch(batch_of(0), place)
    step = step_program(config, objective, descent, mesh, like).lower(like, batch).compile()
    return Run(step, like, place)


@functools.lru_cache(maxsize=2)  # compiled code holds thousands of memory maps, and a process may have 65,530
def closely(position: str, objective: str, devices: int, fsdp: int = 1) -> Run:
    """With notes, dropout and Adam."""
    config = configured(position, objective, True, fsdp)
    return compiled(config, devices, optimizer(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("position", "notes", "objective"), list(itertools.product(POSITIONS, (False, True), OBJECTIVES))
)
def test_every_combination_takes_two_steps_on_eight_devices(position: str, notes: bool, objective: str):
    config = configured(position, objective, notes)
    config.model.dropout = config.model.attention_dropout = 0.0
    _, (start, first, second), losses = compiled(config, 8, optax.sgd(0.1)).states(2)
    assert int(second.step) == 2
    assert np.isfinite(losses).all()
    still = [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.array_equal, start.params, first.params))
        if x
    ]
    # Added to every key, a vector shifts a query's scores all alike: the softmax does not see it.
    unseen = "['positions']['key']['bias']" if position == "absolute_untied" else "none"
    assert not [name for name in still if not name.endswith(unseen)]
    assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), second))
    if notes:
        written = np.flatnonzero(first.notes.written == 1)
        words = batch_of(0)["words"]
        np.testing.assert_array_equal(written, np.unique(words[words > 0] // 2 - 1))
        moved = (first.notes.table != start.notes.table).any(1)
        np.testing.assert_array_equal(np.flatnonzero(moved), written)
    else:
        assert second.notes is None


@pytest.mark.parametrize(("objective", "second"), [("electra", "generator"), ("mcbert", "controller")])
def test_no_two_networks_draw_the_same_dropout(objective: str, second: str):
    config = configured("absolute", objective, False)
    networks, seen = build(config, VOCAB), {}

    class Spy:
        def __init__(self, name: str) -> None:
            self.name, self.encoder = name, getattr(networks, name)

        def apply(self, params: Any, tokens: jax.Array, *, keys: jax.Array, **_: Any) -> jax.Array:
            seen[self.name] = keys
            return jnp.zeros((*tokens.shape, self.encoder.config.hidden))

    params = jax.jit(networks.init)(jax.random.key(0))
    batch = jax.jit(networks.corrupt)(batch_of(0), jax.random.key(1))
    networks.encoder, spied = Spy("encoder"), Spy(second)
    setattr(networks, second, spied)
    networks.loss(params, batch, None, jax.random.key(2))

    def drawn_from(keys: jax.Array) -> set[tuple[int, ...]]:
        """The embedder's key and each layer's three, of every row: as `Encoder.apply` and `Block` derive them."""
        each = [fold_in(keys, layer) for layer in range(4)]
        each += [jax.vmap(partial(jax.random.split, num=3))(of_layer).reshape(-1) for of_layer in each]
        return {tuple(words) for key in each for words in jax.random.key_data(key).tolist()}

    main, other = drawn_from(seen["encoder"]), drawn_from(seen[second])
    assert len(main) == len(other) == ROWS * 4 * 4
    assert not main & other


@pytest.mark.slow
@pytest.mark.parametrize(("position", "objective"), [("relative", "mlm"), ("tupe_a", "electra"), ("tupe_r", "mcbert")])
def test_eight_devices_learn_what_one_learns(monkeypatch: pytest.MonkeyPatch, position: str, objective: str):
    """With parameters and notes spread: the same losses, draws, parameters and notes."""
    monkeypatch.setattr(sharding, "SMALL", 1)
    alone, spread = closely(position, objective, 1), closely(position, objective, 8, 2)
    state, one, losses = alone.states(3)
    other, eight, spread_losses = spread.states(3)
    table = other.params["encoder"]["embedder"]["tokens"]
    assert table.addressable_shards[0].data.size == table.size // 2
    assert other.notes.table.addressable_shards[0].data.size == other.notes.table.size // 8
    assert len(state.notes.table.sharding.device_set) == 1
    np.testing.assert_allclose(spread_losses, losses, rtol=2e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), eight[1].params, one[1].params)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(b.notes.table, a.notes.table, atol=1e-5)
        np.testing.assert_array_equal(b.notes.written, a.notes.written)


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path):
    """Both networks, the optimizer's moments and the notes."""
    run = closely("tupe_r", "mcbert", 8, 2)
    state, _, _ = run.states(2)
    saver = Checkpointer(tmp_path / "checkpoints", keep=1, keep_best=False)
    saver.save(2, state, {})
    saver.wait()
    _, through, losses = run.states(2, state, 2)
    saver.close()
    reader = Checkpointer(tmp_path / "checkpoints", keep=1, keep_best=False)
    restored = reader.restore(run.like)
    assert restored is not None
    assert restored[0].notes.table.sharding == run.like.notes.table.sharding
    _, again, losses_again = run.states(2, restored[0], 2)
    reader.close()
    assert losses_again == losses
    assert losses[0] != losses[1]
    assert (through[0].notes.table != through[2].notes.table).any()
    jax.tree.map(np.testing.assert_array_equal, again, through)
    assert jnp.issubdtype(restored[0].rng.dtype, jax.dtypes.prng_key)

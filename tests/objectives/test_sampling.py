"""Draws from a softmax: how often each piece, never an impossible one, and the same whatever stands around it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpretrain.objectives import sampling
from jaxpretrain.objectives.sampling import draw, over_chunks, pick, uniforms

LAST = np.nextafter(np.float32(1), np.float32(0))  # the largest float below 1


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def count(logits: np.ndarray | jax.Array, draws: int, seed: int = 0) -> np.ndarray:
    """How often each piece is drawn at one position."""
    part = 8192
    sample = jax.jit(lambda key: draw(jnp.asarray(logits), jax.random.uniform(key, (part, 2))))
    keys = jax.random.split(jax.random.key(seed), -(-draws // part))
    return sum(np.bincount(np.asarray(sample(key)), minlength=len(logits)) for key in keys)


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Of a chi-square test; pieces too rare for it, fewer than ten expected, are pooled in order of frequency."""
    order = np.argsort(-probabilities, kind="stable")
    expected, observed = counts.sum() * probabilities[order], counts[order]
    cell = np.floor(np.cumsum(np.minimum(expected, 10)) / 10).astype(int)
    expected, observed = np.bincount(cell, expected), np.bincount(cell, observed)
    if expected[-1] < 5:  # what is left over joins the cell before
        expected, observed = (np.append(x[:-2], x[-2] + x[-1]) for x in (expected, observed))
    kept = expected > 0
    assert not observed[~kept].any()
    return float(stats.chisquare(observed[kept], expected[kept] * observed.sum() / expected.sum()).pvalue)


def rows(vocab_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    peaked = rng.normal(size=vocab_size)
    peaked[vocab_size // 3] = 3 + np.log(vocab_size)  # more than nine tenths there
    last = rng.normal(size=vocab_size)
    last[-1] = last.max() + 5
    return {
        "flat": np.zeros(vocab_size, np.float32),
        "normal": rng.normal(size=vocab_size).astype(np.float32),
        "zipf": -np.log(np.arange(1, vocab_size + 1)).astype(np.float32),
        "peaked": peaked.astype(np.float32),
        "heavy at the end": last.astype(np.float32),
        "one block off": np.where(np.arange(vocab_size) < min(256, vocab_size // 2), -np.inf, 0).astype(np.float32),
    }


@pytest.mark.parametrize("row", rows(8))
@pytest.mark.parametrize(("vocab_size", "draws"), [(32_768, 250_000), (61, 50_000), (257, 50_000)])
def test_frequencies_are_those_of_the_softmax(vocab_size: int, draws: int, row: str):
    logits = rows(vocab_size)[row]
    probabilities = softmax(logits)
    counts = count(logits, draws)
    assert not counts[probabilities == 0].any()
    assert 1e-3 < p_value(counts, probabilities) < 1 - 1e-6


def test_the_tail_of_a_peaked_row_keeps_its_share():
    """Beside one piece of 99.9 %, a float32 running sum over the whole row would lose or bend the rest."""
    logits = rows(32_768)["peaked"]
    logits[10_922] = np.log(np.exp(logits).sum() - np.exp(logits[10_922])) + np.log(999)
    tail = np.delete(np.arange(32_768), 10_922)
    counts = count(logits, 1_000_000)
    share = counts[tail].sum() / counts.sum()
    assert share == pytest.approx(1e-3, rel=0.15)
    halves = [counts[tail[:16_000]].sum(), counts[tail[16_000:]].sum()]
    probabilities = softmax(logits)
    expected = np.array([probabilities[tail[:16_000]].sum(), probabilities[tail[16_000:]].sum()])
    assert stats.chisquare(halves, expected / expected.sum() * sum(halves)).pvalue > 1e-3


def test_the_test_can_tell():
    """Drawing from a slightly different softmax fails."""
    logits = rows(61)["normal"]
    other = logits.copy()
    other[:30] += 0.15
    assert p_value(count(other, 50_000), softmax(logits)) < 1e-3


def test_draws_of_a_position_are_independent_of_each_other():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    numbers = jax.random.uniform(jax.random.key(3), (20_000, 4, 2))
    drawn = np.asarray(jax.jit(draw)(jnp.broadcast_to(logits, (20_000, 3)), numbers))
    for i, j in ((0, 1), (1, 2), (0, 3)):
        table = np.bincount(3 * drawn[:, i] + drawn[:, j], minlength=9).reshape(3, 3)
        assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("vocab_size", [6, 61, 256, 1000])
@pytest.mark.parametrize("nothing", [-np.inf, -1e30, -200.0])
def test_a_piece_of_probability_zero_is_never_drawn(vocab_size: int, nothing: float):
    """At the borders of the unit interval, too, and where only one piece is left."""
    rng = np.random.default_rng(vocab_size)
    positions = 300
    logits = rng.normal(scale=3, size=(positions, vocab_size)).astype(np.float32)
    impossible = rng.random((positions, vocab_size)) < np.linspace(0.05, 1, positions)[:, None]
    impossible[np.arange(positions), rng.integers(vocab_size, size=positions)] = False
    logits[impossible] = nothing
    edges = np.array([0, np.finfo(np.float32).tiny, 2**-24, 0.5, 1 - 2**-20, LAST], np.float32)
    numbers = np.stack(np.meshgrid(edges, edges), -1).reshape(-1, 2)
    numbers = np.concatenate([np.broadcast_to(numbers, (positions, *numbers.shape)), rng.random((positions, 64, 2))], 1)
    drawn = np.asarray(jax.jit(draw)(logits, numbers.astype(np.float32)))
    assert drawn.min() >= 0
    assert drawn.max() < vocab_size
    assert not np.take_along_axis(impossible, drawn, 1).any()


def test_rounding_of_a_running_sum_draws_nothing_impossible(monkeypatch: pytest.MonkeyPatch):
    """Parallel sums round differently at neighbouring places: they rise where nothing is added, and fall."""
    rng = np.random.default_rng(4)
    weights = rng.exponential(size=(64, 256)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.6] = 0
    weights[:, 200:] = 0
    weights[:, 7] = 1

    def rough(x: jax.Array, axis: int) -> jax.Array:
        exact = np.cumsum(np.asarray(x, np.float64), axis)
        return jnp.asarray(exact * (1 + 1e-6 * rng.normal(size=x.shape)), jnp.float32)

    monkeypatch.setattr(sampling.jnp, "cumsum", rough)
    uniform = np.concatenate([np.linspace(0, LAST, 300), np.full(50, LAST), np.linspace(1 - 1e-5, LAST, 50)])
    uniform = np.broadcast_to(uniform.astype(np.float32), (64, 400))
    every = np.broadcast_to(weights[:, None], (64, 400, 256))
    drawn = np.asarray(pick(jnp.asarray(every), jnp.asarray(uniform)))
    assert (np.take_along_axis(weights, drawn, 1) > 0).all()
    assert len(np.unique(drawn)) > 100


def test_at_zero_the_first_possible_piece_and_at_one_the_last():
    logits = np.full(700, -np.inf, np.float32)
    logits[[3, 300, 650]] = 0
    ends = np.array([[0, 0], [0, LAST], [LAST, 0], [0.5, 0.5]], np.float32)
    assert draw(jnp.asarray(logits), jnp.asarray(ends)).tolist() == [3, 3, 650, 300]


@pytest.mark.parametrize(("draws", "vocab_size"), [(1, 7), (2, 61), (3, 512), (10, 1)])
def test_shapes(draws: int, vocab_size: int):
    drawn = jax.eval_shape(draw, jnp.zeros((2, 3, vocab_size)), jnp.zeros((2, 3, draws, 2)))
    assert drawn.shape == (2, 3, draws)
    assert drawn.dtype == jnp.int32


def test_16_bit_logits_are_drawn_from_as_well():
    logits = jnp.asarray(rows(257)["normal"], jnp.bfloat16)
    counts = count(logits, 60_000)
    assert p_value(counts, softmax(np.asarray(logits, np.float32))) > 1e-3


# --- what stands around a position does not matter ---


def features(batch: int, length: int = 24, width: int = 8, vocab_size: int = 300):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(batch, length, width)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.normal(size=(width, vocab_size)).astype(np.float32))


def keys_of(batch: int) -> jax.Array:
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(9)))(jnp.arange(batch))


def sample(x: jax.Array, table: jax.Array, keys: jax.Array, rows: int) -> jax.Array:
    return over_chunks(lambda x, u: draw(x @ table, u), (x, uniforms(keys, x.shape[1], 5)), rows)


@pytest.mark.parametrize("chunk", [1, 40, 64, 10_000])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int):
    x, table = features(8)
    direct = jax.jit(lambda x, keys: draw(x @ table, uniforms(keys, 24, 5)))(x, keys_of(8))
    monkeypatch.setattr(sampling, "CPU_CHUNK", chunk)
    chunked = jax.jit(sample, static_argnums=3)(x, table, keys_of(8), 8)
    np.testing.assert_array_equal(chunked, direct)
    assert len(np.unique(direct)) > 100


@pytest.mark.parametrize("length", [1, 7, 19, 24])
def test_chunks_hold_every_position_once(monkeypatch: pytest.MonkeyPatch, length: int):
    """Two arrays, whatever their further axes; the function never sees more than it should."""
    monkeypatch.setattr(sampling, "CPU_CHUNK", 12)
    seen = []

    def function(x: jax.Array, y: jax.Array) -> jax.Array:
        seen.append(x.shape)
        return x[..., None] * 1000 + y

    x = jnp.arange(3 * length).reshape(3, length)
    y = jnp.arange(3 * length * 2).reshape(3, length, 2)
    out = over_chunks(function, (x, y), 3)
    np.testing.assert_array_equal(out, np.asarray(x)[..., None] * 1000 + np.asarray(y))
    assert all(rows == 3 and 3 * positions <= 12 for rows, positions in seen)


def test_batch_mates_do_not_matter():
    x, table = features(8)
    chunked = jax.jit(sample, static_argnums=3)
    together = chunked(x, table, keys_of(8), 8)
    np.testing.assert_array_equal(chunked(x[5:6], table, keys_of(8)[5:6], 1)[0], together[5])
    np.testing.assert_array_equal(chunked(x[::-1], table, keys_of(8)[::-1], 8)[::-1], together)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_do_not_matter(monkeypatch: pytest.MonkeyPatch, devices: int):
    """And each draws for its own rows: no device gets another's scores."""
    monkeypatch.setattr(sampling, "CPU_CHUNK", 16)
    x, table = features(16)
    alone = jax.jit(sample, static_argnums=3)(x, table, keys_of(16), 16)
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    spread = jax.NamedSharding(mesh, jax.P("data"))
    everywhere = jax.NamedSharding(mesh, jax.P())
    args = jax.device_put(x, spread), jax.device_put(table, everywhere), jax.device_put(keys_of(16), spread)
    compiled = jax.jit(sample, static_argnums=3, out_shardings=spread).lower(*args, 16 // devices).compile()
    np.testing.assert_array_equal(jax.device_get(compiled(*args)), alone)
    assert "all-gather" not in compiled.as_text()
    assert "all-to-all" not in compiled.as_text()


def test_uniforms_are_uniform_and_follow_their_key():
    keys = keys_of(4)
    numbers = np.asarray(uniforms(keys, 500, 10))
    assert numbers.shape == (4, 500, 10, 2)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers.reshape(-1, 2).T)[0, 1]) < 0.02
    np.testing.assert_array_equal(np.asarray(uniforms(keys[2:3], 500, 10))[0], numbers[2])
    assert len(np.unique(numbers)) > 0.99 * numbers.size


def test_no_gradient_is_asked_of_a_draw():
    """Pieces are whole numbers: what a loss made of them tells the logits nothing."""

    def loss(logits: jax.Array) -> jax.Array:
        return draw(logits, jnp.full((4, 3, 2), 0.3)).astype(jnp.float32).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(jnp.ones((4, 300))), 0)

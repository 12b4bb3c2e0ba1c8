"""Adam: the schedule at its corners, and six steps against ten lines of numpy. Muon: the same, and what it is for."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpretrain.config import OBJECTIVES, Config, OptimConfig, TrainConfig
from jaxpretrain.objectives import build
from jaxpretrain.training.optimizer import decayed, optimizer, schedule

PEAK, WARMUP, STEPS = 3e-4, 10, 100


def rates(decay: str = "linear", warmup: int = WARMUP, steps: int = STEPS) -> np.ndarray:
    """The rate of every step and of the one after the last."""
    config = Config(optim=OptimConfig(learning_rate=PEAK, warmup_steps=warmup, decay=decay), train=TrainConfig(steps))
    return np.array([float(jnp.asarray(schedule(config, PEAK)(step))) for step in range(steps + 1)])


@pytest.mark.parametrize(
    ("decay", "middle", "end"), [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)]
)
def test_schedule(decay: str, middle: float, end: float):
    found = rates(decay) / PEAK
    np.testing.assert_allclose(found[:WARMUP], np.arange(1, WARMUP + 1) / WARMUP, rtol=1e-5)
    np.testing.assert_allclose(found[[WARMUP, 55, STEPS]], [1.0, middle, end], rtol=1e-5, atol=1e-7)
    assert (np.diff(found[WARMUP:]) <= 1e-7).all()


def test_without_warmup_the_first_rate_is_the_peak():
    assert rates(warmup=0)[0] == pytest.approx(PEAK)


def test_a_warmup_longer_than_the_run_ends_with_it():
    found = rates(warmup=1000, steps=10)
    np.testing.assert_allclose(found[:10] / PEAK, np.arange(1, 11) / 10, rtol=1e-5)


def test_a_lengthened_run_follows_the_longer_schedule():
    short, long = rates(steps=100), rates(steps=190)
    np.testing.assert_allclose(short[:WARMUP], long[:WARMUP])
    assert short[100] == 0
    assert long[100] == pytest.approx(PEAK / 2)


PARAMS = {
    "dense": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]]), "bias": np.array([0.3, -0.2])},
    "norm": {"scale": np.ones(2)},
}


def grads_of(step: int) -> dict:
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda x: 2.0 * rng.normal(size=x.shape) + 0.1, PARAMS)


def numpy_adam(config: Config, steps: int) -> dict:
    """Kingma and Ba's Adam with a clipped gradient and Loshchilov and Hutter's decay."""
    o = config.optim
    params = jax.tree.map(np.copy, PARAMS)
    m, v = jax.tree.map(np.zeros_like, params), jax.tree.map(np.zeros_like, params)
    for t in range(1, steps + 1):
        grads = grads_of(t)
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
        scale = min(1.0, o.clip_norm / norm) if o.clip_norm else 1.0
        rate = o.learning_rate * min(
            t / o.warmup_steps, 1 - (t - 1 - o.warmup_steps) / (config.train.steps - o.warmup_steps)
        )
        for room, leaf in (("dense", "kernel"), ("dense", "bias"), ("norm", "scale")):
            g = scale * grads[room][leaf]
            m[room][leaf] = o.beta1 * m[room][leaf] + (1 - o.beta1) * g
            v[room][leaf] = o.beta2 * v[room][leaf] + (1 - o.beta2) * g**2
            step = m[room][leaf] / (1 - o.beta1**t) / (np.sqrt(v[room][leaf] / (1 - o.beta2**t)) + o.eps)
            decay = 0.0 if o.decay_mask and leaf != "kernel" else o.weight_decay
            params[room][leaf] = params[room][leaf] - rate * (step + decay * params[room][leaf])
    return params


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay_mask", [False, True])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 1e6])
def test_steps_are_those_of_the_papers(decay_mask: bool, clip_norm: float):
    config = Config()
    config.optim = OptimConfig(
        learning_rate=0.1, warmup_steps=2, weight_decay=0.5, clip_norm=clip_norm, decay_mask=decay_mask
    )
    config.optim.beta1, config.optim.beta2, config.optim.eps = 0.8, 0.98, 1e-4
    config.train.steps = 10
    adam, params = optimizer(config), jax.tree.map(jnp.asarray, PARAMS)
    state = adam.init(params)
    for t in range(1, 7):
        updates, state = adam.update(grads_of(t), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), params, numpy_adam(config, 6))


@pytest.mark.usefixtures("x64")
def test_it_is_what_optax_chains():
    """With its state, so that a checkpoint means the same; rounding aside."""
    config = Config()
    config.train.steps = 10
    o = config.optim
    chain = optax.chain(
        optax.clip_by_global_norm(o.clip_norm),
        optax.scale_by_adam(o.beta1, o.beta2, o.eps),
        optax.add_decayed_weights(o.weight_decay, mask=decayed if o.decay_mask else None),
        optax.scale_by_learning_rate(schedule(config, o.learning_rate)),
    )
    params, adam = jax.tree.map(jnp.asarray, PARAMS), optimizer(config)
    found, expected = adam.init(params), chain.init(params)
    for t in range(1, 5):
        updates, found = adam.update(grads_of(t), found, params)
        theirs, expected = chain.update(grads_of(t), expected, params)
        chex.assert_trees_all_close((updates, found), (theirs, expected), rtol=1e-6)


def test_where_gradients_are_not_finite_the_state_stays():
    params, adam = jax.tree.map(jnp.asarray, PARAMS), optimizer(Config())
    _, state = adam.update(grads_of(1), adam.init(params), params)
    bad = jax.tree.map(lambda x: x * jnp.nan, grads_of(2))
    chex.assert_trees_all_equal(adam.update(bad, state, params, finite=jnp.zeros((), bool))[1], state)


def test_a_step_of_the_optimizer_needs_no_second_state():
    """Moments and parameters are written where they are: on a CPU, no more than scalars beside them."""
    params = {"a": jnp.ones((512, 512)), "b": jnp.ones((512, 512))}
    adam = optimizer(Config())

    def step(params: Any, state: Any, grads: Any) -> Any:
        finite = jnp.isfinite(optax.tree.norm(grads))
        updates, state = adam.update(grads, state, params, finite=finite)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), optax.apply_updates(params, updates), params)
        return new, state

    program = jax.jit(step, donate_argnums=(0, 1)).lower(params, adam.init(params), params).compile()
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < params["a"].nbytes / 4


def test_decay_mask_leaves_out_biases_and_layer_norms():
    config = Config()
    config.model.position = "tupe_r"
    params = jax.eval_shape(build(config, 208).init, jax.random.key(0))
    for path, wanted in jax.tree_util.tree_leaves_with_path(decayed(params)):
        assert wanted == (path[-1].key not in ("bias", "scale")), path
    left_out = [not wanted for wanted in jax.tree.leaves(decayed(params))]
    assert any(left_out)
    assert not all(left_out)


def of_a_model(objective: str = "mlm") -> tuple[Config, Any, Any]:
    """A config with Muon, parameters of its model, and gradients that are small in most directions."""
    config = Config()
    config.optim = OptimConfig(name="muon", warmup_steps=0, decay="constant", weight_decay=0.0)
    config.objective.name, config.model.position = objective, "tupe_r"
    config.model.hidden, config.model.ffn = 32, 64
    rng, shapes = np.random.default_rng(0), jax.eval_shape(build(config, 208).init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.02 * rng.normal(size=x.shape), shapes)
    grads = jax.tree.map(lambda x: x**3, params)
    return config, params, grads


def as_matrices(kernel: Any, name: str) -> np.ndarray:
    """[L, D, 3, H, d], [L, H, d, D], [L, D, F] or [D, H, d] → what products multiply by, [..., in, out]."""
    if name == "qkv":
        return np.moveaxis(np.asarray(kernel).reshape(*kernel.shape[:3], -1), 2, 1)
    if name in ("query", "key"):
        return np.asarray(kernel).reshape(len(kernel), -1)
    return np.asarray(kernel).reshape(len(kernel), -1, kernel.shape[-1])


def matrices_of(tree: Any) -> dict[str, np.ndarray]:
    """Those of the encoder that are Muon's, or what belongs to them."""
    layers, positions = tree["encoder"]["layers"], tree["encoder"]["positions"]
    kernels = {name: layers["attention"][name]["kernel"] for name in ("qkv", "out")}
    kernels |= {name: layers[name]["kernel"] for name in ("ffn_in", "ffn_out")}
    kernels |= {name: positions[name]["kernel"] for name in ("query", "key")}
    return {name: as_matrices(kernel, name) for name, kernel in kernels.items()}


def numpy_muon(config: Config, matrix: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """One matrix [in, out] after a step with each gradient: Jordan's Muon, at a rate that falls from the first step."""
    o, m = config.optim, np.zeros_like(matrix)
    for t, g in enumerate(grads, 1):
        m = o.muon_beta * m + (1 - o.muon_beta) * g
        x = o.muon_beta * m / (1 - o.muon_beta ** (t + 1)) + (1 - o.muon_beta) * g / (1 - o.muon_beta**t)  # Nesterov's
        x = x / np.linalg.norm(x)
        for _ in range(5):  # Newton and Schulz
            s = x.T @ x
            x = 3.4445 * x + x @ (-4.7750 * s + 2.0315 * s @ s)
        x = max(1, x.shape[1] / x.shape[0]) ** 0.5 * x
        rate = o.muon_rate * (1 - (t - 1) / config.train.steps)
        matrix = matrix - rate * (x + o.weight_decay * matrix)
    return matrix


@pytest.mark.usefixtures("x64")
def test_steps_of_muon_are_those_of_its_author():
    config, params, _ = of_a_model()
    o = config.optim
    o.muon_rate, o.muon_beta, o.weight_decay, o.decay, o.clip_norm = 0.05, 0.8, 0.3, "linear", 0.0
    config.train.steps = 10
    rng, start = np.random.default_rng(1), matrices_of(params)
    grads = [jax.tree.map(lambda x: rng.normal(size=x.shape), params) for _ in range(3)]
    muon = optimizer(config)
    state, step = muon.init(params), jax.jit(muon.update)
    for g in grads:
        updates, state = step(g, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    given = [matrices_of(g) for g in grads]
    for name, found in matrices_of(params).items():
        for at in np.ndindex(found.shape[:-2]):
            expected = numpy_muon(config, start[name][at], [g[name][at] for g in given])
            np.testing.assert_allclose(found[at], expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_muon_moves_every_direction_of_a_matrix_as_far():
    config, params, grads = of_a_model()
    updates, _ = jax.jit(optimizer(config).update)(grads, optimizer(config).init(params), params)
    for name, each in matrices_of(updates).items():
        lengths = np.linalg.svd(each, compute_uv=False) / config.optim.muon_rate
        lengths /= max(1, each.shape[-1] / each.shape[-2]) ** 0.5
        assert np.median(lengths) == pytest.approx(0.9, abs=0.25), name  # Newton and Schulz, five rounds: 0.7 to 1.2
        assert lengths.max() < 1.3, name


OF_LAYERS = {f"layers/{name}/kernel" for name in ("attention/qkv", "attention/out", "ffn_in", "ffn_out")}
KERNELS = OF_LAYERS | {"positions/query/kernel", "positions/key/kernel"}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_muon_takes_the_kernels_of_layers_and_positions_and_adam_the_rest(objective: str):
    """The second network's too; biases, layer norms, tables and heads are Adam's."""
    config, params, grads = of_a_model(objective)
    config.optim.weight_decay = 0.1
    theirs = dataclasses.replace(config, optim=dataclasses.replace(config.optim, name="adam"))
    taken = []
    for chosen in (config, theirs):
        update = optimizer(chosen)
        state, found, step = update.init(params), None, jax.jit(update.update)
        for factor in (1.0, -2.0, 0.5):
            found, state = step(jax.tree.map(lambda x: factor * x, grads), state, params)  # noqa: B023
        taken.append(found)
    networks = {"encoder"} | ({"generator", "controller"} & params.keys())
    of_muon = {f"{network}/{kernel}" for network in networks for kernel in KERNELS}
    for (path, mine), (_, adams) in zip(*map(jax.tree_util.tree_leaves_with_path, taken), strict=True):
        name = "/".join(key.key for key in path)
        same = np.allclose(mine, adams, rtol=1e-4, atol=1e-9)
        assert same == (name not in of_muon), name
        of_muon.discard(name)
    assert not of_muon


def test_muon_keeps_its_state_where_gradients_are_not_finite():
    config, params, grads = of_a_model()
    update = optimizer(config)
    step = jax.jit(update.update)
    _, state = step(grads, update.init(params), params)
    bad = jax.tree.map(lambda x: x * jnp.nan, grads)
    chex.assert_trees_all_equal(step(bad, state, params, finite=jnp.zeros((), bool))[1], state)

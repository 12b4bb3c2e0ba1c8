"""Counted operations against counts by hand, and against XLA's."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxpretrain.config import OBJECTIVES, Config, sized
from jaxpretrain.data.masking import predictions_per_sequence
from jaxpretrain.objectives import build
from jaxpretrain.training.flops import PEAKS, matmul_flops, peak_flops, step_flops

A, B, C = 3, 5, 7
X, W = jax.ShapeDtypeStruct((A, B), jnp.float32), jax.ShapeDtypeStruct((B, C), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((B, B), jnp.float32)


def scanned(x, w):
    return lax.scan(lambda x, _: (x @ w, None), x, length=11)[0]


@pytest.mark.parametrize(
    ("function", "args", "flops"),
    [
        (jnp.matmul, (X, W), 2 * A * B * C),
        (lambda x: x + 1, (X,), 0),
        (scanned, (X, SQUARE), 11 * 2 * A * B * B),
        (jax.vmap(jnp.matmul, (None, 0)), (X, jax.ShapeDtypeStruct((9, B, C), jnp.float32)), 9 * 2 * A * B * C),
        (jax.jit(jnp.matmul), (X, W), 2 * A * B * C),
        (jax.grad(lambda x, w: (x @ w).sum(), (0, 1)), (X, W), 3 * 2 * A * B * C),
        (jax.grad(lambda x, w: scanned(x, w).sum()), (X, SQUARE), 2 * 11 * 2 * A * B * B),
        (lambda x, w: jnp.einsum("ab,bc->", x, w), (X, W), None),
        (lambda x, w: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: jnp.zeros((A, C))), (X, W), 2 * A * B * C),
    ],
)
def test_products_by_hand(function, args, flops: int | None):
    if flops is None:  # whatever einsum makes of it, no more than the plain product
        assert matmul_flops(function, *args) <= 2 * A * B * C
    else:
        assert matmul_flops(function, *args) == flops


def shapes_of(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "rows": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }


def counted(config: Config, vocab_size: int) -> int:
    params = jax.eval_shape(build(config, vocab_size).init, jax.random.key(0))
    return step_flops(config, vocab_size, params, shapes_of(config.train.batch_size, config.data.sequence_length))


def by_formula(config: Config, vocab_size: int) -> float:
    """Three times the forward products, and once those of MC-BERT's draws, which have no gradient."""
    model, rows, length = config.model, config.train.batch_size, config.data.sequence_length
    tokens, predicted = rows * length, rows * predictions_per_sequence(config.objective, length)

    def network(width: int, ffn: int) -> int:
        """Layers, and with untied positions two projections (one row more for [CLS]) and their product, once a step."""
        per_token = model.layers * (2 * (4 * width**2 + 2 * width * ffn) + 4 * width * length)
        positions = 2 * 2 * (length + 1) * width**2 + 2 * length**2 * width if model.position == "tupe_r" else 0
        return tokens * per_token + positions

    hidden, narrow = model.hidden, model.hidden // config.objective.divider
    main, second = network(hidden, model.ffn), network(narrow, model.ffn // config.objective.divider)
    if config.objective.name == "mlm":
        return 3 * (main + predicted * 2 * (hidden**2 + hidden * vocab_size))
    if config.objective.name == "electra":  # the generator's scores serve its loss and its draws
        head = tokens * 2 * (hidden**2 + hidden)
        generator = tokens * 2 * hidden * narrow + predicted * 2 * (narrow * hidden + hidden * vocab_size)
        return 3 * (main + second + head + generator)
    head = tokens * 2 * hidden**2  # then k products with candidates, which are no matrix product
    controller = 2 * vocab_size * hidden * narrow + predicted * 2 * (narrow**2 + narrow * vocab_size)
    return 3 * (main + second + head + controller) + tokens * 2 * (narrow**2 + narrow * vocab_size)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("size", "loop"), [("tiny", "unroll"), ("tiny", "scan"), ("base", "scan")])
@pytest.mark.parametrize("position", ["absolute", "tupe_r"])
def test_a_step_costs_what_the_formula_says(objective: str, size: str, position: str, loop: str):
    config = sized(size)
    config.objective.name, config.model.position, config.model.layer_loop = objective, position, loop
    vocab_size = config.data.vocab_size
    assert counted(config, vocab_size) == by_formula(config, vocab_size)


def test_what_is_computed_twice_counts_once():
    config = sized("tiny")
    plain = counted(config, 8192)
    config.model.remat = True
    assert counted(config, 8192) == plain


def test_muon_makes_its_matrices_orthogonal_in_five_rounds_of_three_products():
    config = sized("tiny")
    plain, width, ffn = counted(config, 8192), config.model.hidden, config.model.ffn
    config.optim.name = "muon"
    rounds = lambda short, long: 5 * (2 * 2 * short**2 * long + 2 * short**3)  # noqa: E731
    a_layer = 4 * rounds(width, width) + 2 * rounds(width, ffn)  # q, k, v and the way out are square
    assert counted(config, 8192) - plain == config.model.layers * a_layer


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("position", ["absolute", "tupe_r"])
def test_xla_counts_the_same(objective: str, position: str):
    """XLA sees a loop's body once: layers written out, and so few positions that the draws need no loop."""
    config = sized("base")
    config.objective.name, config.model.position = objective, position
    config.model.layers, config.model.layer_loop, config.model.dtype = 2, "unroll", "float32"
    rows, length, vocab_size = 2, 64, 4096
    config.train.batch_size, config.data.sequence_length = rows, length
    built = build(config, vocab_size)
    params = jax.eval_shape(built.init, jax.random.key(0))
    batch = shapes_of(rows, length)
    corrupted = jax.eval_shape(built.corrupt, batch, jax.random.key(0))
    gradient = jax.grad(lambda params, batch: built.loss(params, batch, None, None)[0])
    cost = jax.jit(gradient).lower(params, corrupted).cost_analysis()
    assert step_flops(config, vocab_size, params, batch) == pytest.approx(cost["flops"], rel=0.1)


def test_peak_of_a_cpu_is_measured_and_of_a_card_looked_up(monkeypatch: pytest.MonkeyPatch):
    assert peak_flops() > 1e6

    class Card:
        platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(jax, "devices", lambda: [Card])
    assert peak_flops() == PEAKS["NVIDIA H100"]
    known = {  # longest name first, and no part of a word
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H100 NVL": 835,
        "NVIDIA GH200 480GB": 989,
        "NVIDIA H200": 989,
        "NVIDIA B200": 2250,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA A100-SXM4-40GB": 312,
        "NVIDIA A10G": 70,
        "NVIDIA L4": 121,
        "NVIDIA L40": 181,
        "NVIDIA L40S": 362,
        "Tesla V100-SXM2-16GB": 15.7,
        "Tesla T4": 8.1,
        "TPU v4": 275,
        "TPU v5": 459,
        "TPU v5p": 459,
        "TPU v5e": 197,
        "TPU v5 lite": 197,
        "TPU v6e": 918,
        "TPU7x": 1154,
    }
    for Card.device_kind, peak in known.items():
        assert peak_flops() == peak * 1e12, Card.device_kind
    for Card.device_kind in ("NVIDIA L400", "TPU v51", "A card of tomorrow"):
        assert peak_flops() is None

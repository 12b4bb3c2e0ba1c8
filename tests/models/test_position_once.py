"""The position product is made once per forward pass: not per layer, not per example.

Counted in the traced program: matrix products of two things that come from the position table and from no word,
multiplied by the lengths of the scans around them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax

POSITION, WORD = "position", "word"
LOOPS = ("scan", "unroll")
KINDS = ("tupe_a", "tupe_r")


@dataclass(frozen=True)
class Product:
    """A matrix product of two functions of the position table."""

    times: int
    shape: tuple[int, ...]
    inside_a_scan: bool


def position_products(function: Callable[..., Any], params: Any, *words: Array) -> list[Product]:
    """All in `function(params, *words)`."""
    program = jax.make_jaxpr(function)(params, *words).jaxpr
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    origins = [{POSITION} if path == "['positions']['table']" else set() for path in paths]
    origins += [{WORD}] * (len(program.invars) - len(paths))
    found: list[Product] = []
    follow(program, [frozenset(origin) for origin in origins], 1, False, found)
    return found


def follow(
    program: Any, origins: list[frozenset[str]], times: int, in_scan: bool, found: list[Product]
) -> list[frozenset[str]]:
    """Where the outputs of a program come from; adds its products to `found`."""
    known = dict(zip(program.invars, origins, strict=True))
    for equation in program.eqns:
        sources = [frozenset() if hasattr(x, "val") else known.get(x, frozenset()) for x in equation.invars]
        name = equation.primitive.name
        bodies = [getattr(x, "jaxpr", x) for x in equation.params.values() if hasattr(getattr(x, "jaxpr", x), "eqns")]
        if name == "dot_general" and all(source == {POSITION} for source in sources):
            found.append(Product(times, equation.outvars[0].aval.shape, in_scan))
        if name == "scan":
            made = follow_scan(equation, sources, times, found)
        elif bodies:
            assert len(bodies) == 1, f"teach this test about {name}"
            made = follow(bodies[0], sources, times, in_scan, found)
        else:
            made = [frozenset().union(*sources)] * len(equation.outvars)
        known.update(zip(equation.outvars, made, strict=True))
    return [frozenset() if hasattr(x, "val") else known.get(x, frozenset()) for x in program.outvars]


def follow_scan(equation: Any, sources: list[frozenset[str]], times: int, found: list[Product]) -> list[frozenset[str]]:
    """The carry of one round is the next one's: first until nothing changes, then once more to count."""
    body, length = equation.params["jaxpr"].jaxpr, equation.params["length"]
    # What is scanned over loses its first axis inside; the names that jax gives the numbers change with its versions.
    carried = sum(x.aval.ndim == y.aval.ndim for x, y in zip(equation.outvars, body.outvars, strict=True))
    scanned = sum(x.aval.ndim > y.aval.ndim for x, y in zip(equation.invars, body.invars, strict=True))
    consts = len(body.invars) - carried - scanned
    while True:
        made = follow(body, sources, 1, True, [])
        carry = [old | new for old, new in zip(sources[consts:], made[:carried], strict=False)]
        if carry == sources[consts : consts + carried]:
            break
        sources = sources[:consts] + carry + sources[consts + carried :]
    return follow(body, sources, times * length, True, found)


def forward(encoder: Any) -> Callable[..., Array]:
    return lambda params, tokens, padding: encoder.apply(params, tokens, padding=padding)


def per_layer(encoder: Any) -> Callable[..., Array]:
    """What a usual implementation does: each layer makes its own."""

    def apply(params: Any, tokens: Array, padding: Array) -> Array:
        def step(x: Array, layer: tuple[Any, Array]) -> tuple[Array, None]:
            position = encoder.position_terms(params, tokens.shape[1])
            block = lambda x, padding: encoder.block.apply({"params": layer[0]}, x, position, padding, None)  # noqa: E731
            return jax.vmap(block)(x, padding), None

        embed = lambda tokens: encoder.embedder.apply({"params": params["embedder"]}, tokens, tokens, None, None)  # noqa: E731
        return encoder.over_layers(step, jax.vmap(embed)(tokens), params["layers"])

    return apply


def per_example(encoder: Any) -> Callable[..., Array]:
    """And each example its own."""

    def apply(params: Any, tokens: Array, padding: Array) -> Array:
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(tokens), *x.shape)), params["positions"])
        bias = jax.vmap(lambda positions: encoder.position_terms({"positions": positions}, tokens.shape[1]).bias)(
            copies
        )
        return bias.sum() + encoder.embedder.apply({"params": params["embedder"]}, tokens[0], tokens[0], None, None)

    return apply


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("position", KINDS)
def test_once_per_forward_pass(model: Callable[..., Any], position: str, loop: str, remat: bool) -> None:
    m = model(position=position, layer_loop=loop, remat=remat, layers=4)
    length = m.tokens.shape[1]
    products = position_products(forward(m.encoder), m.params, m.tokens, m.padding)
    assert products == [Product(times=1, shape=(2, length, length), inside_a_scan=False)]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("position", KINDS)
def test_the_counter_sees_a_product_in_each_layer(model: Callable[..., Any], position: str, loop: str) -> None:
    m = model(position=position, layer_loop=loop, layers=4)
    products = position_products(per_layer(m.encoder), m.params, m.tokens, m.padding)
    assert sum(product.times for product in products) == 4
    assert {product.inside_a_scan for product in products} == {loop == "scan"}


def test_the_layered_variant_is_right_only_wasteful(model: Callable[..., Any]) -> None:
    m = model(position="tupe_a")
    found = jax.jit(per_layer(m.encoder))(m.params, m.tokens, m.padding)
    np.testing.assert_allclose(found, m.apply(), rtol=1e-5, atol=1e-5)


def test_the_counter_sees_a_batch_dimension(model: Callable[..., Any]) -> None:
    m = model(position="tupe_a")
    products = position_products(per_example(m.encoder), m.params, m.tokens, m.padding)
    assert [(product.times, product.shape) for product in products] == [(1, (3, 2, 7, 7))]


def test_the_counter_follows_a_carry(model: Callable[..., Any]) -> None:
    """A thing that becomes positional in the first round only is counted from the second on: as in every round."""

    def square_later(params: Any, tokens: Array) -> Array:
        table = params["positions"]["table"]

        def step(x: Array, _: None) -> tuple[Array, None]:
            return (x @ x.T)[:, :1] + table, None

        return lax.scan(step, jnp.zeros_like(table), None, length=5)[0]

    m = model(position="tupe_a")
    assert [product.times for product in position_products(square_later, m.params, m.tokens)] == [5]

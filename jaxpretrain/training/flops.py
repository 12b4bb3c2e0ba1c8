"""Floating-point operations of a step, by counting its matrix products; and what the hardware could do."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from jaxpretrain.config import Config
from jaxpretrain.objectives import build
from jaxpretrain.objectives.base import Batch
from jaxpretrain.training.optimizer import optimizer

# Dense peak of one device in FLOP/s, by the first words of `device_kind` (vendors' data sheets): of bfloat16, or where
# there is none of float32, which models are then computed in.
PEAKS = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 15.7e12,
    "Tesla T4": 8.1e12,
    "TPU v2": 23e12,  # one core
    "TPU v3": 61e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1154e12,  # one core
}


def matmul_flops(function: Callable, *args: Any) -> int:
    """FLOPs of the matrix products in a function, 2 per multiply-add, with scans counted as often as they run.

    XLA's own count sees a scan's body once, and nothing inside a custom kernel.

    Args:
        function: traced, not run.
        args: arrays or `jax.ShapeDtypeStruct`s.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def step_flops(config: Config, vocab_size: int, params: Any, batch: Batch) -> int:
    """FLOPs of one step: as the model needs them, nothing recomputed, no padding of heads; and of Muon's products.

    Args:
        config: of the run.
        vocab_size: pieces.
        params: arrays, or their shapes.
        batch: a global batch, or its shapes.
    """
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=False, attention="plain"))
    objective = build(plain, vocab_size)
    corrupted = jax.eval_shape(objective.corrupt, batch, jax.random.key(0))

    def loss(params: Any, batch: Batch) -> Any:
        return objective.loss(params, batch, None, jax.random.key(0))[0]

    update = optimizer(config)
    state = jax.eval_shape(update.init, params)
    return matmul_flops(jax.grad(loss), params, corrupted) + matmul_flops(update.update, params, state, params)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * equation.outvars[0].aval.size
            continue
        times = equation.params["length"] if name == "scan" else 1
        inner = [_count(inner) for inner in jex_core.jaxprs_in_params(equation.params)]
        # Of a `cond`, one branch runs: the dearest counts.
        total += times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def peak_flops() -> float | None:
    """FLOP/s that one device can do at best: from the data sheet, or on a CPU measured with a product of 1024³.

    Returns:
        None for an accelerator that is not in the table.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        kinds = [kind for kind in PEAKS if re.match(rf"{kind}\b", device.device_kind)]
        return PEAKS[max(kinds, key=len)] if kinds else None
    x = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    # The devices of one CPU share its cores.
    return 2 * 1024**3 / min(seconds) / jax.device_count()

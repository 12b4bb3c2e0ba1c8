"""Adam as in the papers, and Muon for those who leave them: both from optax."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers

from jaxpretrain.config import Config

# Of a layer's kernels, and of those of the positions, U_Q and U_K, the axes that a product sums over and those that it
# makes. Along the others lie matrices of their own: the layers, and the three of `qkv`.
MATRICES = {
    ("layers", "qkv"): MuonDimensionNumbers((1,), (3, 4)),
    ("layers", "out"): MuonDimensionNumbers((1, 2), (3,)),
    ("layers", "ffn_in"): MuonDimensionNumbers((1,), (2,)),
    ("layers", "ffn_out"): MuonDimensionNumbers((1,), (2,)),
    ("positions", "query"): MuonDimensionNumbers((0,), (1, 2)),
    ("positions", "key"): MuonDimensionNumbers((0,), (1, 2)),
}
NEWTON_SCHULZ_ROUNDS = 5  # of three products each; more do not pay, says the paper


def schedule(config: Config, peak: float) -> optax.Schedule:
    """Learning rate by step: linear from 0 to the peak over `warmup_steps`, then decaying to 0 at `train.steps`."""
    optim, steps = config.optim, config.train.steps
    warmup = min(optim.warmup_steps, steps)
    rest = max(steps - warmup, 1)
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[optim.decay]
    # The first step counts as 1: a rate of 0 would waste it.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak * (warmup + 1) / max(warmup, 1), warmup)
    return optax.join_schedules([rise, after], [warmup])


def schedules(config: Config) -> dict[str, optax.Schedule]:
    """Those that the config's optimizer follows, by the field of their peak."""
    peaks = ("learning_rate", "muon_rate") if config.optim.name == "muon" else ("learning_rate",)
    return {peak: schedule(config, getattr(config.optim, peak)) for peak in peaks}


def decayed(params: Any) -> Any:
    """True for weights, false for biases and layer norms: the mask of `optim.decay_mask`."""

    def is_weight(path: tuple, _: Any) -> bool:
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_weight, params)


def optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """The one that `optim.name` says. Its `update` takes `finite`, bool []: where it is false, the state stays."""
    return {"adam": adam, "muon": muon}[config.optim.name](config)


def clipping(config: Config) -> optax.GradientTransformation:
    """To the gradient's global norm, `optim.clip_norm`; 0: none."""
    norm = config.optim.clip_norm
    return optax.clip_by_global_norm(norm) if norm else optax.identity()


def matrices(params: Any) -> Any:
    """How Muon sees each parameter: the kernels of the layers and positions as matrices; None: Adam's, as the rest is.

    Under Adam, at the rates that Muon allows, U_Q and U_K grow until a head sees nothing but `[CLS]` (docs/study.md).
    """

    def seen(path: tuple, _: Any) -> MuonDimensionNumbers | None:
        match [key.key for key in path]:
            case [_, room, *_, name, "kernel"]:  # such as encoder, layers, attention, qkv
                return MATRICES.get((room, name))
        return None

    return jax.tree_util.tree_map_with_path(seen, params)


def muon(config: Config) -> optax.GradientTransformationExtraArgs:
    """Clip, then Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the matrices of layers and positions.

    Their momentum is made nearly orthogonal before it is taken off, at a rate of its own: so a step moves all
    directions of a matrix about as far, also those that gradients seldom point to. All other parameters are Adam's.
    """
    optim = config.optim

    def owner(seen: MuonDimensionNumbers | None) -> str:
        return "adam" if seen is None else "muon"

    def owners(params: Any) -> Any:
        return jax.tree.map(owner, matrices(params), is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers))

    of_matrices = optax.contrib.muon(
        schedule(config, optim.muon_rate),
        ns_steps=NEWTON_SCHULZ_ROUNDS,
        beta=optim.muon_beta,
        weight_decay=optim.weight_decay,
        muon_weight_dimension_numbers=matrices,
    )

    def update(
        updates: Any, state: Any, params: Any = None, *, finite: Array | bool = True, **_: Any
    ) -> tuple[Any, Any]:
        updates, new = of_matrices.update(updates, state, params)
        return updates, jax.tree.map(partial(jnp.where, finite), new, state)

    kept = optax.GradientTransformationExtraArgs(of_matrices.init, update)
    of_the_rest = adam(replace(config, optim=replace(optim, clip_norm=0.0)))
    return optax.chain(clipping(config), optax.partition({"muon": kept, "adam": of_the_rest}, owners))


def adam(config: Config) -> optax.GradientTransformationExtraArgs:
    """Clip, Adam, decoupled weight decay, learning rate: in this order, as the official code does.

    It is what optax's four transformations are together, with their state, written so that a step reads and writes each
    parameter and moment once. Moments are selected as they are made, and directions are made of those that are kept:
    selected later, the old and the new ones would both have to be there.
    """
    optim, rate = config.optim, schedule(config, config.optim.learning_rate)
    chain = optax.chain(
        clipping(config),
        optax.scale_by_adam(optim.beta1, optim.beta2, optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=decayed if optim.decay_mask else None),
        optax.scale_by_learning_rate(rate),
    )

    def update(
        updates: Any, state: Any, params: Any = None, *, finite: Array | bool = True, **_: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        grads, kept = updates, partial(jnp.where, finite)
        clipped, adam, decay, scheduled = state
        factor = jnp.ones(())
        if optim.clip_norm:  # a factor, not a division: that would be too dear to be done wherever a gradient is read
            norm = optax.tree.norm(grads)
            factor = jnp.where(norm < optim.clip_norm, 1.0, optim.clip_norm / norm)
        mu = jax.tree.map(lambda m, g: kept(optim.beta1 * m + (1 - optim.beta1) * (factor * g), m), adam.mu, grads)
        nu = jax.tree.map(
            lambda v, g: kept(optim.beta2 * v + (1 - optim.beta2) * jnp.square(factor * g), v), adam.nu, grads
        )
        count, steps = (kept(counted + 1, counted) for counted in (adam.count, scheduled.count))
        now = jnp.asarray(rate(scheduled.count))
        mu_scale, nu_scale = (1 / (1 - beta**count) for beta in (optim.beta1, optim.beta2))

        def change(mu: Array, nu: Array, param: Array, decays: bool) -> Array:
            direction = mu * mu_scale / (jnp.sqrt(nu * nu_scale) + optim.eps)
            return -now * (direction + decays * optim.weight_decay * param)

        decays = decayed(params) if optim.decay_mask else jax.tree.map(lambda _: True, params)
        updates = jax.tree.map(change, mu, nu, params, decays)
        return updates, (clipped, adam._replace(count=count, mu=mu, nu=nu), decay, scheduled._replace(count=steps))

    return optax.GradientTransformationExtraArgs(chain.init, update)

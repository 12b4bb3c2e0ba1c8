"""Adam as in the papers, from optax."""

from typing import Any

import jax
import optax

from jaxpretrain.config import Config

BUDGET_WARMUP = 10  # where a budget gives the steps, one in so many of them warms up at most



def schedule(config: Config) -> optax.Schedule:
    """Learning rate by step: linear from 0 to the peak over `warmup_steps`, then decaying to 0 at `train.steps`."""
    optim, steps = config.optim, config.train.steps
    budget = config.train.budget_flops or config.train.budget_minutes
    peak, warmup = optim.learning_rate, min(optim.warmup_steps, steps // BUDGET_WARMUP if budget else steps)
    rest = max(steps - warmup, 1)
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[optim.decay]
    # The first step counts as 1: a rate of 0 would waste it.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak * (warmup + 1) / max(warmup, 1), warmup)
    return optax.join_schedules([rise, after], [warmup])


def decayed(params: Any) -> Any:
    """True for weights, false for biases and layer norms: the mask of `optim.decay_mask`."""

    def is_weight(path: tuple, _: Any) -> bool:
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_weight, params)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Clip, Adam, decoupled weight decay, learning rate: in this order, as the official code does."""
    optim = config.optim
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity(),
        optax.scale_by_adam(optim.beta1, optim.beta2, optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=decayed if optim.decay_mask else None),
        optax.scale_by_learning_rate(schedule(config)),
    )

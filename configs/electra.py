"""ELECTRA (arXiv 2003.10555): a generator proposes replacements, the model finds them.

    python -m jaxpretrain.train --config configs/electra.py
    python -m jaxpretrain.train --config configs/electra.py --config.model.position=tupe_r

The loss is the generator's MLM + 50 · the discriminator's; `eval/discriminator_loss` starts near 0.4 (all "original")
and falls below it once the model tells replaced pieces apart.
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "electra"
    config.objective.name = "electra"
    config.objective.mask_share, config.objective.random_share = 1.0, 0.0
    config.objective.divider = {"tiny": 2, "small": 4, "base": 3, "large": 4}[size]
    if size == "base":
        config.optim.learning_rate = 2e-4
    return config

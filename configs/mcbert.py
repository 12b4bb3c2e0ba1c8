"""MC-BERT (arXiv 2006.05744): a meta controller sets multiple-choice questions.

    python -m jaxpretrain.train --config configs/mcbert.py
    python -m jaxpretrain.train --config configs/mcbert.py --config.model.position=tupe_r

The loss is the controller's MLM + 50 · the choice's. `:base` is the paper's recipe: Adam (0.9, 0.98), no clipping, all
chosen positions [MASK], k = 10 with the reject option, a controller of a third of the width.
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "mcbert"
    config.objective.name = "mcbert"
    config.objective.mask_share, config.objective.random_share = 1.0, 0.0
    config.objective.divider = {"tiny": 2, "small": 2, "base": 3, "large": 4}[size]
    config.optim.beta2, config.optim.clip_norm = 0.98, 0.0
    return config

"""All three methods: untied positions, notes for rare words, and a meta controller's questions.

python -m jaxpretrain.train --config configs/tupe_tnf_mcbert.py
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "tupe_tnf_mcbert"
    config.model.position = "tupe_r"
    config.notes.enabled = True
    config.objective.name = "mcbert"
    config.objective.mask_share, config.objective.random_share = 1.0, 0.0
    config.objective.divider = {"tiny": 2, "small": 2, "base": 3, "large": 4}[size]
    config.optim.beta2, config.optim.clip_norm = 0.98, 0.0
    return config

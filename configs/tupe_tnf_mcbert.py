"""All three methods: untied positions, notes for rare words, and a meta controller's questions.

python -m jaxpretrain.train --config configs/tupe_tnf_mcbert.py
"""

from jaxpretrain.config import Config, sized, two_networks


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "tupe_tnf_mcbert"
    config.model.position = "tupe_r"
    config.notes.enabled = True
    two_networks(config, "mcbert")
    return config

"""ELECTRA (arXiv 2003.10555): a generator proposes replacements, the model finds them.

    python -m jaxpretrain.train --config configs/electra.py
    python -m jaxpretrain.train --config configs/electra.py --config.model.position=tupe_r

The loss is the generator's MLM + 50 (`tiny`: 10) · the discriminator's; `eval/discriminator_loss` starts near 0.4
(all "original") and falls below it once the model tells replaced pieces apart.
"""

from jaxpretrain.config import Config, sized, two_networks


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "electra"
    two_networks(config, "electra")
    return config

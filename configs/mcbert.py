"""MC-BERT (arXiv 2006.05744): a meta controller sets multiple-choice questions.

    python -m jaxpretrain.train --config configs/mcbert.py
    python -m jaxpretrain.train --config configs/mcbert.py --config.model.position=tupe_r

The loss is the controller's MLM + 50 (`tiny`: 10) · the choice's. `:base` is the paper's recipe: Adam (0.9, 0.98), no
clipping, all chosen positions [MASK], k = 10 with the reject option, a controller of a third of the width.
"""

from jaxpretrain.config import Config, sized, two_networks


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "mcbert"
    two_networks(config, "mcbert")
    return config

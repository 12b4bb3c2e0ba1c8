"""TUPE (arXiv 2006.15595): untied positional attention.

python -m jaxpretrain.train --config configs/tupe.py
python -m jaxpretrain.train --config configs/tupe.py --config.model.position=tupe_a
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "tupe"
    config.model.position = "tupe_r"
    return config

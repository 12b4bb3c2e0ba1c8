"""TUPE (arXiv 2006.15595): untied positional attention, with the relative bias (TUPE-R) or without (TUPE-A).

    python -m jaxpretrain.train --config configs/tupe.py
    python -m jaxpretrain.train --config configs/tupe.py --config.model.position=tupe_a

tiny   two CPU cores, some 4 minutes; held-out loss 4.45 nats for TUPE-R, 4.59 for TUPE-A (by frequency: 6.50)
small  one GPU; not run by us yet
base   the paper's run, a million steps of 256 × 512 tokens: a TPU slice or eight GPUs, days; not run by us yet. The
       paper's GLUE average: 85.04 (TUPE-R), 84.47 (TUPE-A)
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "tupe"
    config.model.position = "tupe_r"
    return config

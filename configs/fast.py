"""TUPE-R, with short sequences for the first half of the steps: the lowest final loss at `tiny`, 4.34 to TUPE-R's 4.45.

    python -m jaxpretrain.train --config configs/fast.py

It reaches TUPE-R's end with 1.5 times fewer FLOPs (docs/study.md, benchmarks/records/short-first-tiny); what it does at
other sizes is not known.
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "fast"
    config.model.position = "tupe_r"
    config.train.short_share = 0.5
    config.train.short_length = config.data.sequence_length // 4
    return config

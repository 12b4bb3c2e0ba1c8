"""The recipe that saved most of what was measured here: TUPE-R, with short sequences for the first half of the steps.

    python -m jaxpretrain.train --config configs/fast.py

Measured at `tiny` alone (docs/study.md, benchmarks/records/short-first-tiny); what it does at other sizes is not known.
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "fast"
    config.model.position = "tupe_r"
    config.train.short_share = 0.5
    config.train.short_length = config.data.sequence_length // 4
    return config

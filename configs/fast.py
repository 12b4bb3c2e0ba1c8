"""TUPE-R with Muon for the matrices and 40 % of the places masked: the lowest loss found at `tiny`.

    python -m jaxpretrain.train --config configs/fast.py

3.85 where TUPE-R ends at 4.45 after as many steps, each 1.6 times as dear in FLOPs here; Muon's share of that falls
with larger batches (docs/study.md, benchmarks/records/fast-tiny; one seed). What it does at other sizes is not known.
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "fast"
    config.model.position = "tupe_r"
    config.optim.name = "muon"
    config.objective.mask_rate = 0.4
    return config

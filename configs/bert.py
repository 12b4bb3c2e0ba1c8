"""BERT, the baseline: absolute positions (BERT-A), or with the T5 relative bias as well (BERT-R).

    python -m jaxpretrain.train --config configs/bert.py
    python -m jaxpretrain.train --config configs/bert.py --config.model.position=relative

tiny   two CPU cores, some 4 minutes; held-out loss 5.83 nats for BERT-A, 5.79 for BERT-R (by frequency: 6.50)
small  one GPU; not run by us yet
base   the recipe of arXiv 2006.15595, a million steps of 256 × 512 tokens: a TPU slice or eight GPUs, days; not run by
       us yet. The paper's GLUE average: 82.96 (BERT-A), 83.66 (BERT-R)
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "bert"
    return config

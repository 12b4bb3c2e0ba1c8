"""BERT, the baseline: absolute positions (BERT-A), or with the T5 relative bias (BERT-R).

python -m jaxpretrain.train --config configs/bert.py
python -m jaxpretrain.train --config configs/bert.py --config.model.position=relative
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "bert"
    return config

"""TNF (arXiv 2008.01466): notes for rare words, on BERT.

    python -m jaxpretrain.train --config configs/tnf.py
    python -m jaxpretrain.train --config configs/electra.py --config.notes.enabled=true

Notes need several passes over the text before they help: at 200k steps, some six passes, the paper's BERT with notes is
not ahead yet, while its ELECTRA with notes is.
"""

from jaxpretrain.config import Config, sized


def get_config(size: str = "tiny") -> Config:
    config = sized(size)
    config.name = "tnf"
    config.notes.enabled = True
    return config

"""What a model learns to predict. A new objective is a file here, a line in `OBJECTIVES` and a config."""

from jaxpretrain.config import Config
from jaxpretrain.objectives.base import Objective
from jaxpretrain.objectives.electra import ELECTRA
from jaxpretrain.objectives.mcbert import MCBERT
from jaxpretrain.objectives.mlm import MLM

OBJECTIVES: dict[str, type[Objective]] = {"mlm": MLM, "electra": ELECTRA, "mcbert": MCBERT}


def build(config: Config, vocab_size: int) -> Objective:
    """The objective that the config names."""
    return OBJECTIVES[config.objective.name](config, vocab_size)

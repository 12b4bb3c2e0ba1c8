"""What a model learns to predict. A new objective is a file here, a line in `OBJECTIVES` and a config."""

from jaxpretrain.config import Config
from jaxpretrain.objectives.base import Objective
from jaxpretrain.objectives.mlm import MLM

OBJECTIVES: dict[str, type[Objective]] = {"mlm": MLM}


def build(config: Config, vocab_size: int) -> Objective:
    """The objective that the config names."""
    return OBJECTIVES[config.objective.name](config, vocab_size)

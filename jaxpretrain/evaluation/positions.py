"""What a run's positions add to the attention, before and after training."""

import numpy as np
from etils import epath

from jaxpretrain.config import max_positions
from jaxpretrain.evaluation.trained import load_run
from jaxpretrain.models.position import score_scale
from jaxpretrain.training.state import init_params
from jaxpretrain.training.workdir import config_of


def position_scores(workdir: epath.PathLike, step: int | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores [heads, T, T], query by key, of the parameters that the run began with and of those it has.

    None where positions are part of the input (BERT's absolute ones), or the run began with another one's parameters.

    Raises:
        ConfigError: there is no run in the folder.
        CheckpointError: it has no intact checkpoint.
    """
    config = config_of(workdir)
    if config.init_from or config.model.position == "absolute":
        return None
    run, config = load_run(workdir, step), config.model
    found = []
    for params in (init_params(run.config.train.seed, run.objective), run.params):
        terms = run.objective.encoder.position_terms(params["encoder"], max_positions(run.config))
        scores = terms.bias
        if terms.query is not None and terms.key is not None:  # positions that words attend to as well
            scale = score_scale(config.position, config.hidden // config.heads)
            scores = np.einsum("qhd,khd->hqk", terms.query * scale, terms.key)
        found.append(np.asarray(scores, np.float32))
    return found[0], found[1]

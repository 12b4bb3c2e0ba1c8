"""Pre-training of text encoders: TUPE, TNF, MC-BERT and ELECTRA in JAX.

    import jaxpretrain

    model = jaxpretrain.load("runs/tupe-tiny")
    model.embed(["One sentence.", "Another one."])
    model.fill_mask("Returns the [MASK] of the list.")

Importing the package imports nothing else of it, so that `--help` does not wait for jax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from jaxpretrain.evaluation.trained import Trained

    __version__: str

__all__ = ["Model", "__version__", "load"]


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        run: the model with its config and tokenizer.
    """

    run: "Trained"

    def embed(self, texts: Sequence[str], batch_size: int = 32) -> "np.ndarray":
        """Sentence vectors, float32 [N, hidden]: the mean of the last layer over the pieces of each text."""
        from jaxpretrain.evaluation import trained

        return trained.embed(self.run, _several(texts, "embed"), batch_size)

    def fill_mask(self, text: str, top: int = 5) -> list[dict[str, float]]:
        """For each `[MASK]` in the text, the likeliest pieces and their probabilities, the likeliest first.

        Raises:
            ValueError: there is no `[MASK]` in the text, or one lies beyond the tokens that the model takes.
        """
        from jaxpretrain.evaluation import trained

        if trained.MASK_TEXT not in text:
            raise ValueError(f"no {trained.MASK_TEXT} in the text: put it where a piece is to be guessed")
        return trained.fill_masks(self.run, [text], top)[0]


def load(workdir: str | Path, step: int | None = None) -> Model:
    """The model of a run, trained here or imported.

    Args:
        workdir: the run's folder.
        step: a checkpoint; None: the best one by evaluation, else the newest.

    Raises:
        ConfigError: there is no run in the folder.
        CheckpointError: it has no intact checkpoint.
    """
    from jaxpretrain.evaluation import trained

    return Model(trained.load_run(workdir, step))


def _several(texts: Sequence[str], name: str) -> Sequence[str]:
    """Refuses a single text, which is a sequence of its characters."""
    if isinstance(texts, str):
        raise TypeError(f"{name} takes a list of texts: [text]")
    return texts


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jaxpretrain")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

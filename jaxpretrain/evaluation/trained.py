"""A trained model: read from a run's folder, and put to work on texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array

from jaxpretrain.config import Config, ConfigError, max_positions
from jaxpretrain.data.tokenizer import CLS, MASK, NEITHER, PAD, SEP, Tokenizer
from jaxpretrain.interop.foreign_tokenizer import load_tokenizer
from jaxpretrain.objectives import Objective, build
from jaxpretrain.training.checkpoint import restore_params
from jaxpretrain.training.workdir import config_of, fitted

MASK_TEXT = "[MASK]"


@dataclass(frozen=True)
class Trained:
    """A trained model, its tokenizer and where it came from. Its programs are compiled once for each shape."""

    config: Config
    tokenizer: Tokenizer
    objective: Objective
    params: Any
    step: int

    @cached_property
    def encode(self) -> Callable[[np.ndarray], Array]:
        """Tokens int [B, T] → contextual vectors [B, T, hidden]."""

        @jax.jit
        def encode(params: Any, tokens: Array) -> Array:
            return self.objective.encoder.apply(params, tokens, padding=tokens == PAD)

        return partial(encode, self.params["encoder"])

    @cached_property
    def best_pieces(self) -> Callable[[np.ndarray, np.ndarray, int], tuple[Array, Array]]:
        """Tokens int [B, T], positions int [B, P], k → probabilities and ids of the k likeliest pieces, [B, P, k]."""

        @partial(jax.jit, static_argnums=3)
        def best(params: Any, tokens: Array, positions: Array, top: int) -> tuple[Array, Array]:
            logits = self.objective.fill(params, tokens, positions)
            special = jnp.arange(logits.shape[-1]) <= NEITHER
            return jax.lax.top_k(jax.nn.softmax(jnp.where(special, -jnp.inf, logits)), top)

        return partial(best, self.params)


def load_run(workdir: epath.PathLike, step: int | None = None) -> Trained:
    """The model of a run.

    Args:
        workdir: the run's folder.
        step: a checkpoint; None: the best one by evaluation, else the newest.

    Raises:
        ConfigError: there is no run in the folder.
        CheckpointError: it has no intact checkpoint.
    """
    workdir = epath.Path(workdir)
    config = config_of(workdir)
    tokenizer = load_tokenizer(workdir)
    stored, found = restore_params(workdir / "checkpoints", "best" if step is None else step)
    anywhere = {"attention": "plain"} if config.model.attention == "fused" else {}  # not all devices have that kernel
    objective = build(replace(config, model=replace(config.model, **anywhere)), tokenizer.vocab_size)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    where = f"{workdir}: config.json and tokenizer do not fit the checkpoint of step {found}"
    params = jax.tree.map(jnp.asarray, fitted(stored, shapes, where))
    return Trained(config, tokenizer, objective, params, found)


def untrained(run: Trained) -> Trained:
    """The same network with fresh weights: what a score says without pre-training."""
    return replace(run, params=run.objective.init(jax.random.key(0)))


def to_ids(tokenizer: Tokenizer, text: str, limit: int) -> list[int]:
    """`[CLS] … [SEP]`, cut at `limit`; each typed [MASK] becomes the special piece."""
    parts = [tokenizer.encode(part).tolist() for part in text.split(MASK_TEXT)]
    ids = parts[0]
    for part in parts[1:]:
        ids = [*ids, MASK, *part]
    return [CLS, *ids[: limit - 2], SEP]


def batches(rows: Sequence[list[int]], size: int, limit: int) -> list[np.ndarray]:
    """Rows padded to a power of two (or the limit), `size` at a time, so that few shapes are compiled."""
    out = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        length = min(limit, 1 << max(len(row) - 1 for row in part).bit_length())
        tokens = np.full((len(part), length), PAD, np.int32)
        for i, row in enumerate(part):
            tokens[i, : len(row)] = row
        out.append(tokens)
    return out


def mean_of_pieces(vectors: Array, tokens: Array | np.ndarray) -> Array:
    """Sentence vectors: contextual ones, [B, T, hidden], averaged over the pieces of the text; float32 [B, hidden]."""
    here = ((tokens != PAD) & (tokens != CLS) & (tokens != SEP)).astype(jnp.float32)
    vectors = vectors.astype(jnp.float32)
    return (vectors * here[..., None]).sum(1) / jnp.maximum(here.sum(1, keepdims=True), 1)


def embed(run: Trained, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """Sentence vectors, float32 [N, hidden]: the mean of the last layer over the sentence's pieces."""
    rows = [to_ids(run.tokenizer, text, max_positions(run.config)) for text in texts]
    found = []
    for tokens in batches(rows, batch_size, max_positions(run.config)):
        found.append(np.asarray(mean_of_pieces(run.encode(tokens), tokens)))
    return np.concatenate(found) if found else np.zeros((0, run.config.model.hidden), np.float32)


def fill_masks(run: Trained, texts: Sequence[str], top: int = 5, batch_size: int = 32) -> list[list[dict[str, float]]]:
    """For each text, for each of its `[MASK]`s: the likeliest pieces and their probabilities.

    Of the `top` pieces, those that read alike (a mark with and without a space before it) count as one.

    Raises:
        ConfigError: a `[MASK]` lies where the text is cut.
    """
    rows = [to_ids(run.tokenizer, text, max_positions(run.config)) for text in texts]
    top = min(top, run.tokenizer.vocab_size)
    for number, (text, row) in enumerate(zip(texts, rows, strict=True), 1):
        if (kept := row.count(MASK)) < text.count(MASK_TEXT):
            longest = max_positions(run.config)
            raise ConfigError(
                f"text {number}, {' '.join(text.split())[:60]!r}: {MASK_TEXT} number {kept + 1} lies beyond the "
                f"{longest} tokens that the model takes: shorten the text"
            )
    answers: list[list[dict[str, float]]] = []
    for tokens in batches(rows, batch_size, max_positions(run.config)):
        masks = [np.flatnonzero(row == MASK) for row in tokens]
        positions = np.zeros((len(tokens), max(1, *map(len, masks))), np.int32)
        for row, found in zip(positions, masks, strict=True):
            row[: len(found)] = found
        probabilities, pieces = jax.device_get(run.best_pieces(tokens, positions, top))
        for i, found in enumerate(masks):
            answers.append([_answer(run.tokenizer, pieces[i, j], probabilities[i, j]) for j in range(len(found))])
    return answers


def _answer(tokenizer: Tokenizer, pieces: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    answer: dict[str, float] = {}
    for piece, probability in zip(pieces, probabilities.tolist(), strict=True):
        text = shown(tokenizer, piece)
        answer[text] = answer.get(text, 0.0) + probability
    return dict(sorted(answer.items(), key=lambda item: -item[1]))


def shown(tokenizer: Tokenizer, piece: int) -> str:
    """A piece as a person reads it: no mark for the space before it, a hyphen where it goes on inside a word."""
    text = tokenizer.id_to_piece(int(piece))
    bare = text.removeprefix("▁") or text
    return f"-{bare}" if bare == text and text.isalnum() else bare

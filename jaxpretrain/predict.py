"""Asks a trained encoder.

    python -m jaxpretrain.predict --workdir runs/tupe-tiny "Returns the [MASK] of the list."
    python -m jaxpretrain.predict --workdir runs/tupe-tiny --embed "One sentence." "Another one."
    python -m jaxpretrain.predict --workdir runs/tnf-tiny --notes "algorithm"
    python -m jaxpretrain.predict --workdir runs/mcbert-tiny --quiz "Returns the length of the list."

Without sentences as arguments it reads them from standard input, one a line.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax import Array

from jaxpretrain import cli
from jaxpretrain.config import Config, ConfigError
from jaxpretrain.data import rare_words
from jaxpretrain.data.tokenizer import CLS, MASK, NEITHER, PAD, SEP, Tokenizer
from jaxpretrain.objectives import Objective, build
from jaxpretrain.objectives.mcbert import MCBERT
from jaxpretrain.training.checkpoint import restore_params
from jaxpretrain.training.workdir import read_config

MASK_TEXT = "[MASK]"

TOP = flags.DEFINE_integer("top", 5, "Pieces shown for each [MASK].", lower_bound=1)
EMBED = flags.DEFINE_bool("embed", False, "Print sentence vectors (mean of the last layer) instead of filling masks.")
NOTES = flags.DEFINE_bool("notes", False, "List the words whose notes are nearest to those of the words given (TNF).")
QUIZ = flags.DEFINE_bool("quiz", False, "Show the meta controller's questions about the sentences, and the answers.")
SEED = flags.DEFINE_integer("seed", 0, "Of the masks and draws of --quiz.")
JSON = flags.DEFINE_bool("json", False, "One JSON object a line.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; default the best one, else the newest.")
BATCH = flags.DEFINE_integer("batch_size", 32, "Sentences at a time.", lower_bound=1)


@dataclass(frozen=True)
class Loaded:
    """A trained model, its tokenizer and where it came from."""

    config: Config
    tokenizer: Tokenizer
    objective: Objective
    params: Any
    step: int


def load_run(workdir: epath.PathLike, step: int | None = None) -> Loaded:
    """The model of a run.

    Args:
        workdir: the run's folder.
        step: a checkpoint; None: the best one by evaluation, else the newest.

    Raises:
        ConfigError: there is no run in the folder.
        CheckpointError: it has no intact checkpoint.
    """
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    if config is None:
        raise ConfigError(f"--workdir={workdir}: no config.json there; give a folder that jaxpretrain.train wrote")
    tokenizer = Tokenizer.load(str(workdir))
    stored, found = restore_params(workdir / "checkpoints", "best" if step is None else step)
    objective = build(config, tokenizer.vocab_size)
    # A checkpoint keeps no empty branches, such as the positions of a model that only adds them to its input.
    structure = jax.tree.structure(jax.eval_shape(objective.init, jax.random.key(0)))
    params = jax.tree.unflatten(structure, map(jnp.asarray, jax.tree.leaves(stored)))
    return Loaded(config, tokenizer, objective, params, found)


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


def encoder_of(run: Loaded) -> Callable[[np.ndarray], Array]:
    """Tokens [B, T] → contextual vectors [B, T, hidden]."""
    objective = run.objective

    @jax.jit
    def encode(tokens: Array) -> Array:
        return objective.encoder.apply(objective.main(run.params), tokens, padding=tokens == PAD)

    return encode


def max_length(run: Loaded) -> int:
    """Tokens that the model has positions for."""
    return run.config.model.max_positions or run.config.data.sequence_length


def fill_masks(run: Loaded, texts: Sequence[str], top: int = 5, batch_size: int = 32) -> list[list[dict[str, float]]]:
    """For each text, for each of its `[MASK]`s: the likeliest pieces and their probabilities."""
    rows = [to_ids(run.tokenizer, text, max_length(run)) for text in texts]

    @jax.jit
    def best(tokens: Array, positions: Array) -> tuple[Array, Array]:
        logits = run.objective.fill(run.params, tokens, positions)
        special = jnp.arange(logits.shape[-1]) <= NEITHER
        return jax.lax.top_k(jax.nn.softmax(jnp.where(special, -jnp.inf, logits)), top)

    answers: list[list[dict[str, float]]] = []
    for tokens in batches(rows, batch_size, max_length(run)):
        masks = [np.flatnonzero(row == MASK) for row in tokens]
        positions = np.zeros((len(tokens), max(1, *map(len, masks))), np.int32)
        for row, found in zip(positions, masks, strict=True):
            row[: len(found)] = found
        probabilities, pieces = jax.device_get(best(tokens, positions))
        for i, found in enumerate(masks):
            answers.append(
                [
                    {
                        shown(run.tokenizer, piece): float(p)
                        for piece, p in zip(pieces[i, j], probabilities[i, j], strict=True)
                    }
                    for j in range(len(found))
                ]
            )
    return answers


def shown(tokenizer: Tokenizer, piece: int) -> str:
    """A piece as a person reads it: no mark for the space before it, a hyphen where it goes on inside a word."""
    text = tokenizer.id_to_piece(int(piece))
    bare = text.removeprefix("▁") or text
    return f"-{bare}" if bare == text and text.isalnum() else bare


def embed(run: Loaded, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """Sentence vectors, float32 [N, hidden]: the mean of the last layer over the sentence's pieces."""
    encode, rows = encoder_of(run), [to_ids(run.tokenizer, text, max_length(run)) for text in texts]
    found = []
    for tokens in batches(rows, batch_size, max_length(run)):
        here = jnp.asarray((tokens != PAD) & (tokens != CLS) & (tokens != SEP), jnp.float32)
        vectors = encode(tokens).astype(jnp.float32)
        found.append(np.asarray((vectors * here[..., None]).sum(1) / jnp.maximum(here.sum(1, keepdims=True), 1)))
    return np.concatenate(found) if found else np.zeros((0, run.config.model.hidden), np.float32)


def nearest_notes(workdir: epath.PathLike, words: Sequence[str], top: int, step: int | None = None) -> list[dict]:
    """For each word, those whose notes have the largest cosine with its own.

    Raises:
        ConfigError: the run has no notes, or no note for a word.
    """
    path = epath.Path(workdir) / rare_words.FILE_NAME
    if not path.exists():
        raise ConfigError(f"--workdir={workdir}: a run without notes (notes.enabled)")
    known = rare_words.read(Path(path))
    notes, _ = restore_params(epath.Path(workdir) / "checkpoints", "best" if step is None else step, subtree="notes")
    written = notes["written"][: len(known)] >= 0
    table = notes["table"][: len(known)]
    table = table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-12)
    rows = {word: row for row, word in enumerate(known)}
    found = []
    for word in words:
        if word not in rows:
            raise ConfigError(f"{word!r} is not among the {len(known):,} rare words of {path}")
        cosine = np.where(written, table @ table[rows[word]], -1.0)
        nearest = [i for i in np.argsort(-cosine) if i != rows[word]][:top]
        found.append({"word": word, "nearest": {known[i]: float(cosine[i]) for i in nearest}})
    return found


def quiz(run: Loaded, text: str, seed: int = 0) -> list[dict[str, Any]]:
    """A sentence's questions: at each position the piece shown, the candidates, the answer and the model's choice.

    Raises:
        ConfigError: the run has no meta controller.
    """
    objective, tokenizer = run.objective, run.tokenizer
    if not isinstance(objective, MCBERT):
        raise ConfigError(f"--quiz: objective.name={run.config.objective.name!r} sets no questions; mcbert does")
    tokens = jnp.asarray([to_ids(tokenizer, text, max_length(run))])
    batch = {"tokens": tokens, "rows": jnp.zeros(1, jnp.int32)}
    questions, scores = jax.device_get(objective.quiz(run.params, batch, jax.random.key(seed)))
    chosen = scores.argmax(-1)
    names = [
        [tokenizer.id_to_piece(piece).replace("▁", " ").strip() or "▁" for piece in row]
        for row in questions.candidates[0]
    ]
    return [
        {
            "piece": tokenizer.id_to_piece(int(tokens[0, i])),
            "shown": tokenizer.id_to_piece(questions.inputs[0, i]),
            "candidates": names[i],
            "answer": int(questions.answers[0, i]),
            "choice": int(chosen[0, i]),
        }
        for i in range(1, tokens.shape[1] - 1)
    ]


def print_quiz(text: str, questions: list[dict[str, Any]]) -> None:
    """The questions as a table; where the controller changed a piece, it is marked."""
    print(text)
    for q in questions:
        right = "✓" if q["choice"] == q["answer"] else "✗"
        change = "" if q["piece"] == q["shown"] else f" (was {q['piece']})"
        others = ", ".join(name for i, name in enumerate(q["candidates"]) if i != q["choice"])
        print(f"  {right} {q['shown'] + change:<28} chose {q['candidates'][q['choice']]:<14} not {others}")


def main(argv: Sequence[str]) -> None:
    """Answers about the sentences given."""
    texts = list(argv[1:]) or [line.rstrip("\n") for line in sys.stdin]
    if cli.WORKDIR.value is None:
        raise ConfigError("--workdir is missing: a folder that jaxpretrain.train wrote")
    if NOTES.value:
        for found in nearest_notes(cli.WORKDIR.value, texts, TOP.value, STEP.value):
            line = "   ".join(f"{word} {cosine:.2f}" for word, cosine in found["nearest"].items())
            print(json.dumps(found, ensure_ascii=False) if JSON.value else f"{found['word']}: {line}")
        return
    run = load_run(cli.WORKDIR.value, STEP.value)
    if QUIZ.value:
        for text in texts:
            questions = quiz(run, text, SEED.value)
            if JSON.value:
                print(json.dumps({"text": text, "questions": questions}, ensure_ascii=False))
            else:
                print_quiz(text, questions)
        return
    if EMBED.value:
        for text, vector in zip(texts, embed(run, texts, BATCH.value), strict=True):
            values = [round(float(x), 6) for x in vector]
            print(json.dumps({"text": text, "vector": values}) if JSON.value else " ".join(map(str, values)))
        return
    if not any(MASK_TEXT in text for text in texts):
        raise ConfigError(f"no {MASK_TEXT} in the text: put it where a piece is to be guessed, or ask for --embed")
    for text, answers in zip(texts, fill_masks(run, texts, TOP.value, BATCH.value), strict=True):
        if JSON.value:
            print(json.dumps({"text": text, "masks": answers}, ensure_ascii=False))
            continue
        print(text)
        for answer in answers:
            print("   " + "   ".join(f"{piece} {100 * p:.1f} %" for piece, p in answer.items()))


if __name__ == "__main__":
    cli.run_plain(main)

"""Asks a trained encoder.

    python -m jaxpretrain.predict --workdir runs/tupe-tiny "Returns the [MASK] of the list."
    python -m jaxpretrain.predict --workdir runs/tupe-tiny --embed "One sentence." "Another one."
    python -m jaxpretrain.predict --workdir runs/tnf-tiny --notes "monday"
    python -m jaxpretrain.predict --workdir runs/mcbert-tiny --quiz "Returns the length of the list."
    python -m jaxpretrain.predict --workdir runs/tupe-tiny/finetuned/MRPC rows.tsv

Without sentences as arguments it reads them from standard input, one a line. A fine-tuned model labels the rows of a
tab-separated file with a header.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from absl import flags
from etils import epath

from jaxpretrain import cli
from jaxpretrain.config import ConfigError, max_positions
from jaxpretrain.evaluation import finetuned
from jaxpretrain.evaluation.finetuned import Finetuned, label
from jaxpretrain.evaluation.finetuning import predictions
from jaxpretrain.evaluation.tasks import cell, read_rows
from jaxpretrain.evaluation.trained import MASK_TEXT, Trained, embed, fill_masks, load_run, to_ids
from jaxpretrain.objectives.mcbert import MCBERT
from jaxpretrain.training.workdir import notes_of_run

flags.declare_key_flag("workdir")
TOP = flags.DEFINE_integer("top", 5, "Pieces shown for each [MASK].", lower_bound=1)
EMBED = flags.DEFINE_bool("embed", False, "Print sentence vectors (mean of the last layer) instead of filling masks.")
NOTES = flags.DEFINE_bool("notes", False, "List the words whose notes are nearest to those of the words given (TNF).")
QUIZ = flags.DEFINE_bool("quiz", False, "Show the meta controller's questions about the sentences, and the answers.")
SEED = flags.DEFINE_integer("seed", 0, "Of the masks and draws of --quiz.")
JSON = flags.DEFINE_bool("json", False, "One JSON object a line.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; default the best one, else the newest.")
BATCH = flags.DEFINE_integer("batch_size", 32, "Sentences at a time.", lower_bound=1)


def nearest_notes(workdir: epath.PathLike, words: Sequence[str], top: int, step: int | None = None) -> list[dict]:
    """For each word, those whose notes have the largest cosine with its own.

    Raises:
        ConfigError: the run has no notes, or no note for a word.
    """
    known, table, written = notes_of_run(workdir, step)
    table = table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-12)
    rows = {word: row for row, word in enumerate(known)}
    found = []
    for word in words:
        if word not in rows:
            raise ConfigError(f"{word!r} is not among the {len(known):,} rare words of {workdir}")
        if written[rows[word]] < 0:
            raise ConfigError(f"{word!r}: no note yet; no step up to here met that word")
        cosine = table @ table[rows[word]]
        nearest = [i for i in np.argsort(-cosine) if i != rows[word] and written[i] >= 0][:top]
        found.append({"word": word, "nearest": {known[i]: float(cosine[i]) for i in nearest}})
    return found


def quiz(run: Trained, text: str, seed: int = 0) -> list[dict[str, Any]]:
    """A sentence's questions: at each position the piece shown, the candidates, the answer and the model's choice.

    Raises:
        ConfigError: the run has no meta controller.
    """
    objective, tokenizer = run.objective, run.tokenizer
    if not isinstance(objective, MCBERT):
        raise ConfigError(f"--quiz: objective.name={run.config.objective.name!r} sets no questions; mcbert does")
    tokens = jnp.asarray([to_ids(tokenizer, text, max_positions(run.config))])
    batch = {"tokens": tokens, "rows": jnp.zeros(1, jnp.int32)}
    questions, scores = jax.device_get(jax.jit(objective.quiz)(run.params, batch, jax.random.key(seed)))
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


def label_rows(model: Finetuned, path: str) -> list[dict[str, Any]]:
    """A fine-tuned model's answers to the rows of a file: `label` and `probabilities`, or the `score` of a regression.

    Raises:
        ConfigError: a bad row, with its line number.
    """
    task = model.finetuner.task
    examples = read_rows(path, task)
    outputs = label(model, examples)
    answers = predictions(outputs, task)
    found: list[dict[str, Any]] = []
    for number, texts, answer, scores in zip(examples.ids, examples.texts, answers, outputs, strict=True):
        row: dict[str, Any] = {"id": number, "text": list(texts)}
        if task.classes:
            shown_shares = dict(zip(task.classes, scipy.special.softmax(scores).tolist(), strict=True))
            row |= {"label": task.classes[answer], "probabilities": shown_shares}
        else:
            row["score"] = float(answer)
        found.append(row)
    return found


def print_rows(rows: list[dict[str, Any]], decimals: int = 4) -> None:
    """Tab-separated: id, label and its probability, or id and score."""
    if rows and "score" in rows[0]:
        print("id\tscore")
        for row in rows:
            print(f"{cell(row['id'])}\t{row['score']:.{decimals}f}")
        return
    print("id\tlabel\tprobability")
    for row in rows:
        print(f"{cell(row['id'])}\t{cell(row['label'])}\t{row['probabilities'][row['label']]:.4f}")


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
    if cli.WORKDIR.value is None:
        raise ConfigError("--workdir is missing: a folder that jaxpretrain.train wrote")
    if (epath.Path(cli.WORKDIR.value) / finetuned.FILE_NAME).exists():
        if len(argv) < 2:
            raise ConfigError("a fine-tuned model labels the rows of a file: predict --workdir … FILE.tsv")
        if asked := next(
            (flag.name for flag in (EMBED, NOTES, QUIZ, STEP) if flag.value is not None and flag.value is not False), ""
        ):
            raise ConfigError(f"--{asked}: is for the folder of a pre-training run; a fine-tuned model labels rows")
        model = finetuned.load_finetuned(cli.WORKDIR.value)
        for path in argv[1:]:
            if not epath.Path(path).exists():
                raise ConfigError(
                    f"{path!r}: no such file; a fine-tuned model labels rows: predict --workdir … FILE.tsv"
                )
            rows = label_rows(model, path)
            if JSON.value:
                print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
            else:
                print_rows(rows, model.finetuner.task.decimals)
        return
    given = [os.fsencode(text) for text in argv[1:]] or sys.stdin.buffer
    texts = [line.decode(errors="replace").removesuffix("\n").removesuffix("\r") for line in given]
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

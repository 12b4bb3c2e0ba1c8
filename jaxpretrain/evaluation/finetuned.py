"""The folder of a fine-tuning: what was asked, what came of each trial, and the best model."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxpretrain.config import Config, ConfigError, FinetuneConfig, changed_fields, from_dict, max_positions, to_dict
from jaxpretrain.data import rare_words
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.evaluation.finetuning import Finetuner, Result, Trial, all_outputs, for_one
from jaxpretrain.evaluation.labelled import bucketed
from jaxpretrain.evaluation.tasks import Examples, Task
from jaxpretrain.interop.foreign_tokenizer import load_tokenizer
from jaxpretrain.notes import Notes
from jaxpretrain.training.checkpoint import Checkpointer, restore_params
from jaxpretrain.training.storage import write_whole
from jaxpretrain.training.workdir import fitted

FILE_NAME = "finetuned.json"
TRIALS = "trials.jsonl"


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned model."""

    finetuner: Finetuner
    tokenizer: Tokenizer
    rare: list[str]  # words that have notes
    params: Any
    notes: Notes | None


def mark(tree: Any) -> str:
    """By which arrays are known again, hexadecimal."""
    found = hashlib.blake2b(digest_size=8)
    for x in jax.tree.leaves(tree):
        array = np.asarray(x)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def describe(
    workdir: epath.Path, finetuner: Finetuner, tokenizer: Tokenizer, rare: list[str], step: int, marks: dict[str, str]
) -> None:
    """Writes what `load_finetuned` needs besides the checkpoint, or checks that it is the same.

    Args:
        workdir: of the fine-tuning.
        finetuner: of the task.
        tokenizer: of the model.
        rare: words that have notes.
        step: of the checkpoint that trials start from.
        marks: its `mark`, `checkpoint`, and that of the rows, `rows`: trials that are compared share both.

    Raises:
        ConfigError: saying what differs; nothing is overwritten.
    """
    path = workdir / FILE_NAME
    if path.exists():
        about = _read(workdir)
        known, first = _finetuner(about, path), about.get("marks", marks)
        differing = changed_fields(known.config, finetuner.config)
        if "marks" not in about:  # of an earlier version: names are all that is known
            before, now = to_dict(known.config), to_dict(finetuner.config)
            names = ("init_from", "step", "task")
            differing += [f"{name}: {before[name]!r} → {now[name]!r}" for name in names if before[name] != now[name]]
        if differing:
            raise ConfigError(
                f"{workdir} holds a fine-tuning with another config ({'; '.join(differing)}): give another --workdir"
            )
        if changed_fields(known.run, finetuner.run) or first["checkpoint"] != marks["checkpoint"]:
            raise ConfigError(
                f"{workdir}: its first trials started from another model, of step {about.get('step', 'unknown')}, "
                f"not from this one of step {step}: give another --workdir"
            )
        if (known.steps, known.task, first["rows"]) != (finetuner.steps, finetuner.task, marks["rows"]):
            raise ConfigError(
                f"{workdir}: the task's rows, or what this version makes of them, are not those of its first trials: "
                "give another --workdir"
            )
    about = {
        "config": to_dict(finetuner.config),
        "run": to_dict(finetuner.run),
        "vocab_size": finetuner.vocab_size,
        "task": asdict(finetuner.task),
        "steps": finetuner.steps,
        "step": step,
        "marks": marks,
    }
    tokenizer.save(str(workdir))
    if rare:
        (workdir / rare_words.FILE_NAME).write_text("".join(f"{word}\t0\n" for word in rare), encoding="utf-8")
    write_whole(path, (json.dumps(about, indent=2) + "\n").encode())


def _read(workdir: epath.Path) -> dict[str, Any]:
    path = workdir / FILE_NAME
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: epath.Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} is damaged ({error}): fine-tune anew in another --workdir")


def _finetuner(about: dict[str, Any], path: epath.Path) -> Finetuner:
    try:
        return Finetuner(
            from_dict(about["config"], FinetuneConfig),
            from_dict(about["run"], Config),
            about["vocab_size"],
            from_dict(about["task"], Task),
            about["steps"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error


def read_trials(workdir: epath.Path) -> list[Result]:
    """The trials that are done; a last line that was cut off does not count."""
    path = workdir / TRIALS
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
            names = ("learning_rate", "seed", "epoch", "scores", "last", "finite")
            sound = values["sound" if "sound" in values else "finite"]  # an earlier version did not tell them apart
            found.append(Result(*(values[name] for name in names), sound=sound))
        except (ValueError, TypeError, KeyError):  # stopped while it was written, or damaged: that trial runs again
            continue
    return found


def write_trials(workdir: epath.Path, task: Task, results: list[Result]) -> None:
    """Writes all trials, a JSON object a line; whole or not at all."""
    lines = [
        json.dumps(
            {
                "task": task.name,
                "learning_rate": result.rate,
                "seed": result.seed,
                "epoch": result.epoch,
                "scores": result.scores,
                "last": result.last,
                "finite": result.finite,
                "sound": result.sound,
            }
        )
        for result in results
    ]
    write_whole(workdir / TRIALS, "".join(line + "\n" for line in lines).encode())


def save_best(workdir: epath.Path, number: int, params: Any, notes: Notes | None, score: float) -> None:
    """Keeps a trial's model, if it is the best so far.

    Args:
        workdir: of the fine-tuning.
        number: of the trial, from 1.
        params: of encoder and head.
        notes: of the run, where they are kept.
        score: on the dev rows.
    """
    checkpoints = Checkpointer(workdir / "checkpoints", keep=1, keep_best=False)
    state = {"params": params} | ({} if notes is None else {"notes": {"table": notes.table, "written": notes.written}})
    checkpoints.save(number, state, {}, metric=-score)
    checkpoints.close()


def load_finetuned(workdir: epath.PathLike) -> Finetuned:
    """The best model of a fine-tuning.

    Raises:
        ConfigError: there is none in the folder.
        CheckpointError: its checkpoint is missing or damaged.
    """
    workdir = epath.Path(workdir)
    if not (workdir / FILE_NAME).exists():
        raise ConfigError(f"--workdir={workdir}: no {FILE_NAME} there; give a folder that jaxpretrain.finetune wrote")
    finetuner = _finetuner(_read(workdir), workdir / FILE_NAME)
    tokenizer = load_tokenizer(workdir)
    stored, _ = restore_params(workdir / "checkpoints", "best")
    hidden = finetuner.run.model.hidden
    fresh = jax.eval_shape(
        lambda key: {
            "encoder": finetuner.encoder.init(key),
            "head": finetuner.head.init(key, jnp.zeros(hidden), None)["params"],
        },
        jax.random.key(0),
    )
    params = jax.tree.map(jnp.asarray, fitted(stored, fresh, f"{workdir}: {FILE_NAME} does not fit the checkpoint"))
    notes, rare = None, []
    if finetuner.config.notes != "drop":
        values, _ = restore_params(workdir / "checkpoints", "best", subtree="notes")
        notes = Notes(jnp.asarray(values["table"]), jnp.asarray(values["written"]))
        rare = rare_words.read(workdir / rare_words.FILE_NAME)  # type: ignore[arg-type]
    return Finetuned(finetuner, tokenizer, rare, params, notes)


def label(model: Finetuned, examples: Examples) -> np.ndarray:
    """The model's scores for rows, float32 [N, classes], or [N, 1] of a regression."""
    finetuner = model.finetuner
    limit = min(finetuner.config.max_length, max_positions(finetuner.run))
    buckets = bucketed(examples, model.tokenizer, model.rare, limit, finetuner.task)
    one = Trial(model.params, None, model.notes, *(jnp.zeros(()) for _ in range(3)))
    one = jax.tree.map(lambda x: x[None], one)
    return all_outputs(jax.jit(for_one(finetuner.predict, (0, None, None))), one, buckets)[0]

"""A run's folder: its name, which run it belongs to, and what lies beside the checkpoints."""

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from jaxpretrain.config import Config, ConfigError, changed_fields, flatten, from_dict, is_free, short_name, to_dict
from jaxpretrain.data import rare_words
from jaxpretrain.data import tokenizer as tokenizers
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.data.sources.files import check_file
from jaxpretrain.training import hosts
from jaxpretrain.training.checkpoint import restore_params
from jaxpretrain.training.storage import is_local, write_whole

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without them say


def workdir_name(config: Config, recipe: Config) -> str:
    """`runs/NAME-SIZE`, with the overrides of the recipe that change the result: `runs/bert-tiny-position=relative`."""
    return "runs/" + "-".join([config.name, config.size, *overrides(config, recipe)])


def overrides(config: Any, recipe: Any) -> list[str]:
    """The fields of a config that change the result and differ from its recipe's, as `position=relative`."""
    before, after = flatten(recipe), flatten(config)
    return [
        f"{short_name(name, after)}={plain(str(value))}"
        for name, value in after.items()
        if value != before[name] and not is_free(config, name)
    ]


def plain(text: str) -> str:
    """A text as part of a folder's name: itself, or, where a shell might read it otherwise, its words and a digest."""
    name = text.replace("/", "_").replace(" ", "")
    if re.fullmatch(r"[\w.,=+@-]*", name):
        return name
    words = "-".join(re.findall(r"[^\W_]+", text))[-60:].strip("-")
    return f"{words}-{hashlib.blake2b(repr(text).encode(), digest_size=3).hexdigest()}"


def read_config(workdir: epath.Path) -> Config | None:
    """The resolved config of the run in a folder; None where there is no run.

    Raises:
        ConfigError: config.json is damaged, or from another version.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    check_file(path)
    try:
        values = json.loads(path.read_text())
        if "architectures" in values or "model_type" in values:
            raise ConfigError(
                f"{path} is of a Hugging Face model: python -m jaxpretrain.convert --from_huggingface makes a run of it"
            )
        return from_dict(values)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it, or give another --workdir") from error


def config_of(workdir: epath.PathLike) -> Config:
    """The config of a run.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    config = read_config(epath.Path(workdir))
    if config is None:
        raise ConfigError(f"{workdir}: no config.json there; give the folder of a run, as jaxpretrain.train writes it")
    return config


def check_workdir(config: Config, workdir: epath.Path) -> None:
    """Whether the run in a folder, if there is one, is the one that the config describes.

    Raises:
        ConfigError: naming the fields that differ; nothing is overwritten.
    """
    known = read_config(workdir)
    if known is not None:
        differing = changed_fields(known, config)
        if differing:
            raise ConfigError(
                f"{workdir} holds a run with another config ({'; '.join(differing)}): give another --workdir"
            )
    elif workdir.exists() and any(workdir.glob("checkpoints/*")):
        raise ConfigError(f"{workdir} has checkpoints but no config.json: restore it, or give another --workdir")


def digest(config: Config) -> str:
    """Of a config's fields, hexadecimal."""
    return hashlib.blake2b(json.dumps(to_dict(config), sort_keys=True).encode(), digest_size=8).hexdigest()


def write_config(config: Config, workdir: epath.Path) -> None:
    """Writes config.json whole or not at all."""
    write_whole(workdir / "config.json", (json.dumps(to_dict(config), indent=2) + "\n").encode())


def write_run_files(config: Config, corpus: Corpus, workdir: epath.Path) -> None:
    """What a run's folder holds from the start: config.json, the tokenizer and, with notes, their words."""
    write_config(config, workdir)
    files = [corpus.tokenizer_path] + ([corpus.folder / rare_words.FILE_NAME] if config.notes.enabled else [])
    for file in files:
        write_whole(workdir / file.name, file.read_bytes())


@contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Makes a folder, and holds it against a second run on this machine until the block or the process ends.

    Of what was made for it, what is still empty then goes again: nothing is left of a run that never began.

    Raises:
        ConfigError: another process holds it, or it cannot be made or written.
    """
    if not is_local(workdir) or not hosts.first():  # buckets have no locks
        workdir.mkdir(parents=True, exist_ok=True)
        yield
        return
    lock = Path(workdir) / ".lock"
    with ExitStack() as stack:
        try:
            made = [place for place in (lock, *lock.parents) if not place.exists()]
            stack.callback(_remove_empty, [folder for folder in made if folder != lock])
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock.open("a"))
        except OSError as error:
            why = "not a folder" if isinstance(error, FileExistsError) else error.strerror or error
            raise ConfigError(
                f"--workdir={workdir}: cannot be written ({why}): make it writable, or give another"
            ) from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                logging.warning("%s: has no locks (%s): see that no other run uses it", workdir, error.strerror)
            held = os.path.samestat(os.fstat(file.fileno()), lock.stat())  # else its holder took it away meanwhile
        except (BlockingIOError, PermissionError, FileNotFoundError):  # shares say EACCES of what another holds
            held = False
        if not held:
            raise ConfigError(f"{workdir} is in use by another run: wait for it or give another --workdir")
        if lock in made:
            stack.callback(lock.unlink, missing_ok=True)  # before it is closed: nobody else holds it
        yield


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # the first that is not empty ends it
        for folder in folders:
            folder.rmdir()


def corpus_marks(corpus: Corpus, config: Config) -> dict[str, str]:
    """What a checkpoint keeps of its corpus, for `check_resume`: the fingerprints of what the run reads of it."""
    return {"corpus": corpus.fingerprint} | ({"notes": corpus.note_fingerprint} if config.notes.enabled else {})


def check_resume(config: Config, marks: dict[str, str], workdir: epath.Path, host: dict[str, Any], step: int) -> None:
    """Whether a checkpoint can go on under this config and corpus.

    Raises:
        ConfigError: it cannot.
    """
    for name, mark in marks.items():
        what = "text" if name == "corpus" else "dictionary of rare words"
        if host[name] != mark:
            raise ConfigError(
                f"data.source={config.data.source!r}: the {what} is not the one that {workdir} was trained on so far "
                f"(fingerprint {mark[:12]}, was {host[name][:12]}): restore it, or start anew in another --workdir, "
                f"with --config.init_from={workdir} --config.data.tokenizer={workdir / tokenizers.FILE_NAME} to keep "
                f"what was learnt"
            )
    if step > config.train.steps:
        raise ConfigError(f"train.steps={config.train.steps}: {workdir} is already at step {step}; it can only go up")


def check_pieces(workdir: str, corpus: Corpus) -> None:
    """Whether the tables of another run have the corpus' pieces as their rows: equal shapes do not tell.

    Raises:
        ConfigError: they have not; it names the way out.
    """
    path = epath.Path(workdir) / tokenizers.FILE_NAME
    if not path.exists():
        raise ConfigError(
            f"init_from={workdir!r}: no {path.name} there: give the workdir of a run that jaxpretrain.train made; "
            f"an imported model comes with a tokenizer of another kind, and can be fine-tuned only"
        )
    theirs, ours = (tokenizers.Tokenizer.load(file) for file in (path, corpus.tokenizer_path))
    pieces, wanted = ([words.id_to_piece(i) for i in range(words.vocab_size)] for words in (theirs, ours))
    if pieces != wanted:
        raise ConfigError(
            f"init_from={workdir!r}: its tokenizer has other pieces than the one of this run: "
            f"go on with it by --config.data.tokenizer={path}"
        )


def params_of_run(config: Config, like: Any) -> Any:
    """The best parameters of the run `init_from`; with `init_encoder_only` or another objective, the encoder's alone.

    Args:
        config: of this run.
        like: of all its parameters, a tree of `jax.ShapeDtypeStruct` with shardings.

    Returns:
        Placed as `like`; heads and second networks are left out where the encoder alone is taken.

    Raises:
        ConfigError: naming the parameter that does not fit.
    """
    workdir = epath.Path(config.init_from)
    values, _ = restore_params(workdir / "checkpoints", "best")
    theirs = read_config(workdir)
    if config.init_encoder_only or (theirs is not None and theirs.objective.name != config.objective.name):
        like, values = ({"encoder": params["encoder"]} for params in (like, values))
    found = fitted(values, like, f"init_from={config.init_from!r}")
    return jax.tree.map(lambda x, value: jax.device_put(value.astype(x.dtype), x.sharding), like, found)


def fitted(values: Any, like: Any, where: str) -> Any:
    """Values in the tree of `like`: a checkpoint keeps no empty branches, such as positions without parameters.

    Raises:
        ConfigError: beginning with `where`, and naming a parameter that has another shape, or is there or here alone.
    """
    wanted, found = _by_name(like), _by_name(values)
    for name in sorted(wanted.keys() | found.keys()):
        here, there = (str(tree[name].shape) if name in tree else "absent" for tree in (wanted, found))
        if here != there:
            raise ConfigError(f"{where}: parameter {name} is {there} there and {here} in the config")
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])


def notes_of_run(workdir: epath.PathLike, step: int | None = None) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What a run has noted down.

    Args:
        workdir: the run's folder.
        step: a checkpoint; None: the best one by evaluation, else the newest.

    Returns:
        The N rare words; their notes, float32 [N, H]; and the step each was last written at, int32 [N], -1: never.

    Raises:
        ConfigError: the run has no notes.
        CheckpointError: it has no intact checkpoint.
    """
    path = epath.Path(workdir) / rare_words.FILE_NAME
    if not path.exists():
        raise ConfigError(f"--workdir={workdir}: a run without notes (notes.enabled)")
    words = rare_words.read(Path(path))
    notes, _ = restore_params(epath.Path(workdir) / "checkpoints", "best" if step is None else step, subtree="notes")
    return words, notes["table"][: len(words)], notes["written"][: len(words)]  # the table may have more, to divide


def _by_name(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

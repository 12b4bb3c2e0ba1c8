"""Checkpoints, whole or not there, whose damage is noticed: `checkpoints/STEP/{state/, host.json, digests.json}`.

Orbax writes the arrays (`state/`). It restores flipped bits without a word, so `digests.json` holds size and BLAKE2 of
every file; it is written last and is the commit mark: a folder without it is unfinished. This needs no rename of
folders, which object stores (`gs://`) do not have.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)

STATE, HOST, DIGESTS = "state", "host.json", "digests.json"
CHUNK = 1 << 22  # bytes hashed at a time


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or used; its message is one line: the path, what is wrong, the way out."""


# Orbax tells its progress, and its failures with a stack trace, through absl's logger. What matters of it is raised
# as a CheckpointError; the records of other libraries pass.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


class Checkpointer:
    """The checkpoints of one run. Every process of the run makes one and calls it at the same steps.

    Args:
        folder: the run's `checkpoints` folder, local or `gs://`; made by the first save.
        keep: newest checkpoints that are kept, at least 1.
        keep_best: keep the one with the lowest metric too.
    """

    def __init__(self, folder: epath.PathLike, *, keep: int, keep_best: bool):
        self.folder = _absolute(folder)
        self.keep = keep
        self.keep_best = keep_best
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._current: int | None = None  # the step that this object saved or restored last

    def save(self, step: int, state: Any, host: dict[str, Any], *, metric: float | None = None) -> None:
        """Starts a save, and returns once `state` may be donated; a save still under way is waited for first.

        Saving the step that was just saved or restored again does nothing. Another checkpoint of the same step is
        renamed (never deleted), an unfinished one is replaced.

        Args:
            step: number of the training step.
            state: pytree of arrays (typed keys too), on any mesh.
            host: what else the run must remember, ready for JSON.
            metric: lower is better; None or not finite: never the best.

        Raises:
            CheckpointError: for this save or the one before it.
        """
        self.wait()
        if step == self._current:
            return
        folder = _at(self.folder, step)
        with _one_line(folder, "save"):
            if jax.process_index() == 0:
                if (folder / DIGESTS).exists():
                    log.warning("%s was there before: set aside as %s", folder, _set_aside(folder, "replaced").name)
                folder.rmtree(missing_ok=True)
                folder.mkdir(parents=True, exist_ok=True)
                _write_json(folder / HOST, {"step": step, "metric": _finite(metric), "host": host})
            arrays = traverse_util.unflatten_dict({name: _data(x) for name, x in _named(state).items()})
            self._orbax.save(folder / STATE, args=ocp.args.PyTreeSave(arrays))
        self._pending = self._background.submit(self._commit, step)
        self._current = step

    def wait(self) -> None:
        """Waits until the last save is committed and older ones are removed.

        Raises:
            CheckpointError: if that save failed in the background.
        """
        if self._pending is None:
            return
        error = self._pending.exception()
        self._pending = None
        if error is not None:
            self._current = None
            raise error

    def steps(self) -> list[int]:
        """The committed steps, ascending."""
        return _steps(self.folder)

    def best(self) -> int | None:
        """The committed step with the lowest metric, the newest of equals; None if none has a metric."""
        return _best(self.folder)

    def restore(
        self, like: Any, step: int | None = None, *, check: Callable[[dict[str, Any], int], None] | None = None
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest intact checkpoint, or that of `step`, as `(state, host)`; None if there is none.

        A damaged one is reported, set aside as `STEP.damaged`, and the one before it used.

        Args:
            like: the state as a tree of `jax.ShapeDtypeStruct` with the shardings to restore to.
            step: this one and no other; later ones stay, and are newer to the next restore.
            check: called with `host` and the step before arrays are read: whoever knows better than a shape that does
                not fit why this run cannot go on raises it there.

        Raises:
            CheckpointError: if there are checkpoints but none is intact, or it does not fit `like`.
        """
        self.wait()
        found, damaged = _newest_intact(self.folder, step)
        if found is None:
            return None
        folder = _at(self.folder, found)
        with _one_line(folder, "restore"):
            host = json.loads((folder / HOST).read_text())["host"]
        if check is not None:
            check(host, found)
        with _one_line(folder, "restore"):
            state = _read_state(folder, like)
        if jax.process_index() == 0:
            for other in damaged:  # only now: were none intact, everything would stay where it is
                self._put_damaged_aside(_at(self.folder, other))
        self._current = found
        return state, host

    def close(self) -> None:
        """Waits, and ends the background thread. Raises what `wait` raises."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._orbax.close()

    def _commit(self, step: int) -> None:
        folder = _at(self.folder, step)
        with _one_line(folder, "save"):
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                digests = _digests(folder)
                _write_json(folder / DIGESTS, {"files": digests, "self": _digest_of(digests)})
        if jax.process_index() == 0:
            with _one_line(self.folder, "remove old checkpoints"):
                self._remove_older(step)

    def _remove_older(self, step: int) -> None:
        """Deletes what is older than `step`, which is committed, and not kept, or was left unfinished by a kill."""
        kept = {*self.steps()[-self.keep :], self.best() if self.keep_best else None}
        for folder in _folders(self.folder):
            if int(folder.name) < step and int(folder.name) not in kept:
                (folder / DIGESTS).unlink(missing_ok=True)  # the mark first: half a checkpoint never looks whole
                folder.rmtree()

    def _put_damaged_aside(self, folder: epath.Path) -> None:
        try:
            log.warning("%s is set aside as %s", folder, _set_aside(folder, "damaged").name)
        except OSError as e:  # a folder that may only be read: good enough to restore from
            log.warning("%s cannot be set aside: %s", folder, e.strerror or e)


def restore_params(
    folder: epath.PathLike, step: int | Literal["best"] | None = None, *, subtree: str = "params"
) -> tuple[dict[str, Any], int]:
    """Parameters of any run, without knowing its optimizer: nested dicts of numpy arrays, and the step they are of.

    Args:
        folder: that run's `checkpoints` folder; it is not written to.
        step: a step, the best one, or (None) the newest. Unless a number is given, one before it is used, with a
            warning, where this is damaged.
        subtree: field of the state that is read.

    Raises:
        CheckpointError: if there is none, or none is intact.
    """
    root = _absolute(folder)
    found, _ = _newest_intact(root, step)
    if found is None:
        raise CheckpointError(f"{root}: no checkpoint in here; is this the workdir of a run that has saved one?")
    path = _at(root, found)
    with _one_line(path, "restore"):
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        stored = _stored(reader, path)
        wanted = traverse_util.unflatten_dict({name: x for name, x in stored.items() if name[0] == subtree})
        if not wanted:
            raise CheckpointError(f"{path}: holds no {subtree!r}, only {', '.join(sorted({n[0] for n in stored}))}")
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        return reader.restore(path / STATE, args=args)[subtree], found


# The state as a tree of names. Orbax gets nested dicts only, so a checkpoint does not depend on the classes of the
# optimizer's state, and its parameters can be read without them.


def _named(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves by path: `("opt_state", "0", "mu", …)`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> Any:
    """An array as what is stored: typed keys as their words."""
    return jax.random.key_data(x) if _is_key(x) else x


def _data_like(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if not _is_key(x):
        return x
    words = jax.eval_shape(jax.random.key_data, x)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=x.sharding)  # the words of a key are not split


def _from_data(x: Any, like: jax.ShapeDtypeStruct) -> Any:
    if not _is_key(like):
        return x
    keys = jax.random.wrap_key_data(x, impl=jax.random.key_impl(jnp.empty((), like.dtype)))
    return keys if like.sharding is None else jax.device_put(keys, like.sharding)


def _stored(reader: ocp.Checkpointer, folder: epath.Path) -> dict[tuple[str, ...], Any]:
    """Shape and dtype of every array in a checkpoint, by path."""
    metadata: Any = reader.metadata(folder / STATE)
    return traverse_util.flatten_dict(metadata.item_metadata.tree)


def _read_state(folder: epath.Path, like: Any) -> Any:
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    wanted = {name: _data_like(x) for name, x in _named(like).items()}
    stored = _stored(reader, folder)
    for name in stored.keys() ^ wanted.keys():
        where = "lacks" if name in wanted else "has, and this run has not,"
        raise CheckpointError(f"{folder}: {where} {'/'.join(name)}: was it written with another model or optimizer?")
    for name, x in wanted.items():  # orbax would cast
        have, want = (stored[name].shape, np.dtype(stored[name].dtype)), (x.shape, np.dtype(x.dtype))
        if have != want:
            raise CheckpointError(f"{folder}: {'/'.join(name)} is {have[1]}{have[0]}, this run has {want[1]}{want[0]}")
    item = traverse_util.unflatten_dict(wanted)
    args = ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
    read = traverse_util.flatten_dict(reader.restore(folder / STATE, args=args))
    leaves = [_from_data(read[name], x) for name, x in _named(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


# Folders


def _absolute(folder: epath.PathLike) -> epath.Path:
    path = epath.Path(folder)
    return path if "://" in os.fspath(path) else path.expanduser().resolve()


def _at(root: epath.Path, step: int) -> epath.Path:
    return root / f"{step:08d}"


def _folders(root: epath.Path) -> list[epath.Path]:
    """Those of steps, committed or not."""
    if not root.exists():
        return []
    return sorted((f for f in root.iterdir() if f.name.isdecimal() and len(f.name) >= 8), key=lambda f: int(f.name))


def _steps(root: epath.Path) -> list[int]:
    return [int(f.name) for f in _folders(root) if (f / DIGESTS).exists()]


def _best(root: epath.Path) -> int | None:
    metrics: dict[int, float] = {}
    for step in _steps(root):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged: not the best
            metric = json.loads((_at(root, step) / HOST).read_text())["metric"]
            if isinstance(metric, float | int):
                metrics[step] = metric
    return min(metrics, key=lambda step: (metrics[step], -step), default=None)


def _set_aside(folder: epath.Path, why: str) -> epath.Path:
    target, n = folder.parent / f"{folder.name}.{why}", 1
    while target.exists():
        n += 1
        target = folder.parent / f"{folder.name}.{why}{n}"
    return folder.rename(target)


def _newest_intact(root: epath.Path, step: int | Literal["best"] | None) -> tuple[int | None, list[int]]:
    """The step to use (None: nothing there), and the damaged ones passed over; every process gets the same step.

    Raises:
        CheckpointError: if there are some but none is intact, or the one asked for is missing or damaged.
    """
    found, damaged, error = -1, [], None
    if jax.process_index() == 0:
        try:
            found, damaged = _search(root, step)
        except CheckpointError as e:
            found, error = -2, e
    if jax.process_count() > 1:
        found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if found == -2:
        raise error or CheckpointError(f"{root}: the first process found no intact checkpoint; see its message")
    return (None if found == -1 else found), damaged


def _search(root: epath.Path, step: int | Literal["best"] | None) -> tuple[int, list[int]]:
    with _one_line(root, "read"):
        steps = _steps(root)
        for folder in _folders(root):
            if int(folder.name) not in steps:
                log.warning("%s is unfinished (no %s): ignored", folder, DIGESTS)
        candidates = steps[::-1]
        if step == "best" and (best := _best(root)) is not None:
            candidates = [best, *(s for s in candidates if s != best)]
        elif isinstance(step, int):
            if step not in steps:
                raise CheckpointError(f"{_at(root, step)}: no such checkpoint; there are {steps or 'none'}")
            candidates = [step]
        damaged: list[int] = []
        problem = None
        for candidate in candidates:
            problem = _damage(_at(root, candidate))
            if problem is None:
                return candidate, damaged
            log.warning("%s is damaged: %s", _at(root, candidate), problem)
            damaged.append(candidate)
    if damaged:
        way_out = "bring back a copy, or move the folder away to start over"
        raise CheckpointError(f"{_at(root, damaged[-1])}: {problem}; no intact checkpoint is left: {way_out}")
    return -1, []


# Files


def _files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path


def _digest(path: epath.Path) -> list[int | str]:
    """Size in bytes and BLAKE2b of a file."""
    size, digest = 0, hashlib.blake2b(digest_size=16)
    with path.open("rb") as f:
        while chunk := f.read(CHUNK):
            size += len(chunk)
            digest.update(chunk)
    return [size, digest.hexdigest()]


def _digest_of(digests: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(digests).encode(), digest_size=16).hexdigest()


def _digests(folder: epath.Path) -> dict[str, list[int | str]]:
    with ThreadPoolExecutor(4) as pool:  # hashing and reading release the interpreter's lock
        names, paths = zip(*((name, path) for name, path in _files(folder) if name != DIGESTS), strict=True)
        return dict(zip(names, pool.map(_digest, paths), strict=True))


def _damage(folder: epath.Path) -> str | None:
    """What is wrong with a committed checkpoint; None: it is as it was written."""
    try:
        digests = json.loads((folder / DIGESTS).read_text())
        written = digests["files"]
        if digests["self"] != _digest_of(written):
            return f"{DIGESTS} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as e:
        return f"{DIGESTS} cannot be read ({e})"

    def check(name: str) -> str | None:
        try:
            size, digest = _digest(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as e:
            return f"{name} cannot be read ({e})"
        if size != written[name][0]:
            return f"{name} has {size} bytes instead of {written[name][0]}"
        return None if digest == written[name][1] else f"{name} is not what was written (its digest differs)"

    with ThreadPoolExecutor(4) as pool:
        return next((problem for problem in pool.map(check, written) if problem), None)


def _write_json(path: epath.Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    text = json.dumps(value, indent=1, allow_nan=False)
    if "://" in os.fspath(path):
        path.write_text(text)  # an object appears when it is complete
        return
    temporary = f"{os.fspath(path)}.tmp"
    with open(temporary, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def _finite(metric: float | None) -> float | None:
    return None if metric is None or not math.isfinite(metric) else float(metric)


# What storage says (tensorstore wraps it in a long message), and the way out.
_WAYS_OUT = {
    "No space left on device": "free some space or choose another workdir",
    "Disk quota exceeded": "free some space or choose another workdir",
    "File too large": "raise the limit on file sizes or choose another workdir",
    "Read-only file system": "choose a workdir that can be written",
    "Permission denied": "choose a workdir that can be written",
    "Not a directory": "a file is where a folder is needed; move it away",
    "File exists": "a file is where a folder is needed; move it away",
}


@contextlib.contextmanager
def _one_line(path: epath.Path, action: str) -> Iterator[None]:
    """Turns what orbax, tensorstore and the file system raise into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError) as e:
        reason = " ".join(str(e).split())[:300] or type(e).__name__
        for known, way_out in _WAYS_OUT.items():
            if known in str(e):
                reason = f"{known}; {way_out}"
                break
        raise CheckpointError(f"{path}: cannot {action}: {reason}") from e

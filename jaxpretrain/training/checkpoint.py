"""Saving and restoring checkpoints with orbax: in the background, whole or not there, damage noticed.

What they are on disk: `checkpoint_files.py`.
"""

import json
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from jaxpretrain.training import checkpoint_files as files
from jaxpretrain.training import hosts
from jaxpretrain.training.checkpoint_files import CheckpointError

log = logging.getLogger(__name__)

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
        self.folder = files.absolute(folder)
        self.keep = keep
        self.keep_best = keep_best
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._saves = 0
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
        folder = files.at(self.folder, step)
        with files.one_line(folder, "save"):
            if jax.process_index() == 0:
                if (folder / files.DIGESTS).exists():
                    log.warning(
                        "%s was there before: set aside as %s", folder, files.set_aside(folder, "replaced").name
                    )
                folder.rmtree(missing_ok=True)
                folder.mkdir(parents=True, exist_ok=True)
                files.write_json(folder / files.HOST, {"step": step, "metric": _finite(metric), "host": host})
            self._saves += 1
            hosts.wait(f"for the folder of save {self._saves}")
            arrays = traverse_util.unflatten_dict({name: _data(x) for name, x in _named(state).items()})
            self._orbax.save(folder / files.STATE, args=ocp.args.PyTreeSave(arrays))
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
        return files.committed_steps(self.folder)

    def best(self) -> int | None:
        """The committed step with the lowest metric, the newest of equals; None if none has a metric."""
        return files.best_step(self.folder)

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
        found, damaged = files.newest_intact(self.folder, step)
        if found is None:
            return None
        folder = files.at(self.folder, found)
        with files.one_line(folder, "restore"):
            host = json.loads((folder / files.HOST).read_text())["host"]
        if check is not None:
            check(host, found)
        with files.one_line(folder, "restore"):
            state = _read_state(folder, like)
        if jax.process_index() == 0:
            for other in damaged:  # only now: were none intact, everything would stay where it is
                self._put_damaged_aside(files.at(self.folder, other))
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
        folder = files.at(self.folder, step)
        with files.one_line(folder, "save"):
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                files.commit(folder)
        if jax.process_index() == 0:
            with files.one_line(self.folder, "remove old checkpoints"):
                self._remove_older(step)

    def _remove_older(self, step: int) -> None:
        """Deletes what is older than `step`, which is committed, and not kept, or was left unfinished by a kill."""
        kept = {*self.steps()[-self.keep :], self.best() if self.keep_best else None}
        for folder in files.folders(self.folder):
            if int(folder.name) < step and int(folder.name) not in kept:
                (folder / files.DIGESTS).unlink(missing_ok=True)  # the mark first: half a checkpoint never looks whole
                folder.rmtree()

    def _put_damaged_aside(self, folder: epath.Path) -> None:
        try:
            log.warning("%s is set aside as %s", folder, files.set_aside(folder, "damaged").name)
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
    root = files.absolute(folder)
    found, _ = files.newest_intact(root, step)
    if found is None:
        raise CheckpointError(f"{root}: no checkpoint in here; is this the workdir of a run that has saved one?")
    path = files.at(root, found)
    with files.one_line(path, "restore"):
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        stored = _stored(reader, path)
        wanted = traverse_util.unflatten_dict({name: x for name, x in stored.items() if name[0] == subtree})
        if not wanted:
            raise CheckpointError(f"{path}: holds no {subtree!r}, only {', '.join(sorted({n[0] for n in stored}))}")
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        return reader.restore(path / files.STATE, args=args)[subtree], found


def _finite(metric: float | None) -> float | None:
    return None if metric is None or not math.isfinite(metric) else float(metric)


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
    metadata: Any = reader.metadata(folder / files.STATE)
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
    read = traverse_util.flatten_dict(reader.restore(folder / files.STATE, args=args))
    leaves = [_from_data(read[name], x) for name, x in _named(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

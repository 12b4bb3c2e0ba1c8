"""What a checkpoint is on disk, and which of a run's are intact: `checkpoints/STEP/{state/, host.json, digests.json}`.

Orbax writes the arrays (`state/`). It restores flipped bits without a word, so `digests.json` holds size and BLAKE2 of
every file; it is written last and is the commit mark: a folder without it is unfinished. This needs no rename of
folders, which object stores (`gs://`) do not have.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jaxpretrain.data.sources.files import check_file
from jaxpretrain.training.storage import is_local, write_whole

log = logging.getLogger(__name__)

STATE, HOST, DIGESTS = "state", "host.json", "digests.json"
CHUNK = 1 << 22  # bytes hashed at a time


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or used; its message is one line: the path, what is wrong, the way out."""


# Folders


def absolute(folder: epath.PathLike) -> epath.Path:
    """The folder wherever the process goes; `gs://` as it is."""
    path = epath.Path(folder)
    return path.expanduser().resolve() if is_local(path) else path


def at(root: epath.Path, step: int) -> epath.Path:
    """The folder of a step."""
    return root / f"{step:08d}"


def folders(root: epath.Path) -> list[epath.Path]:
    """Those of steps, committed or not."""
    if not root.exists():
        return []
    return sorted((f for f in root.iterdir() if f.name.isdecimal() and len(f.name) >= 8), key=lambda f: int(f.name))


def committed_steps(root: epath.Path) -> list[int]:
    """Ascending."""
    return [int(f.name) for f in folders(root) if (f / DIGESTS).exists()]


def best_step(root: epath.Path) -> int | None:
    """The committed step with the lowest metric, the newest of equals; None if none has a metric."""
    metrics: dict[int, float] = {}
    for step in committed_steps(root):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged: not the best
            metric = json.loads((at(root, step) / HOST).read_text())["metric"]
            if isinstance(metric, float | int):
                metrics[step] = metric
    return min(metrics, key=lambda step: (metrics[step], -step), default=None)


def set_aside(folder: epath.Path, why: str) -> epath.Path:
    """Renames a folder to `STEP.why`, or `STEP.why2` where that is taken."""
    target, n = folder.parent / f"{folder.name}.{why}", 1
    while target.exists():
        n += 1
        target = folder.parent / f"{folder.name}.{why}{n}"
    return folder.rename(target)


def newest_intact(root: epath.Path, step: int | Literal["best"] | None) -> tuple[int | None, list[int]]:
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
    with one_line(root, "read"):
        steps = committed_steps(root)
        for folder in folders(root):
            if int(folder.name) not in steps:
                log.warning("%s is unfinished (no %s): ignored", folder, DIGESTS)
        candidates = steps[::-1]
        if step == "best" and (best := best_step(root)) is not None:
            candidates = [best, *(s for s in candidates if s != best)]
        elif isinstance(step, int):
            if step not in steps:
                raise CheckpointError(f"{at(root, step)}: no such checkpoint; there are {steps or 'none'}")
            candidates = [step]
        damaged: list[int] = []
        problem = None
        for candidate in candidates:
            problem = _damage(at(root, candidate))
            if problem is None:
                return candidate, damaged
            log.warning("%s is damaged: %s", at(root, candidate), problem)
            damaged.append(candidate)
    if damaged:
        way_out = "bring back a copy, or move the folder away to start over"
        raise CheckpointError(f"{at(root, damaged[-1])}: {problem}; no intact checkpoint is left: {way_out}")
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
    check_file(path)  # a pipe or a device would be read for ever
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


def commit(folder: epath.Path) -> None:
    """Marks a checkpoint as whole: nothing in it changes from now on."""
    digests = _digests(folder)
    write_json(folder / DIGESTS, {"files": digests, "self": _digest_of(digests)})


def _damage(folder: epath.Path) -> str | None:
    """What is wrong with a committed checkpoint; None: it is as it was written."""
    try:
        digests = json.loads((folder / DIGESTS).read_text())
        written = digests["files"]
        if digests["self"] != _digest_of(written):
            return f"{DIGESTS} is not what was written"
        if any(".." in name.split("/") or name.startswith("/") for name in written):
            return f"{DIGESTS} names files outside the folder"
        written = {name: (size, digest) for name, (size, digest) in written.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
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


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False).encode())


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
def one_line(path: epath.Path, action: str) -> Iterator[None]:
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

"""Several processes that train as one: how they find each other, wait, agree, and end when one of them is gone.

Each runs the same program on its own devices and its own rows of every batch. The first one (number 0) writes; all of
them write checkpoints, to one folder that all can reach.
"""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from jaxpretrain.config import ConfigError, first_line

HEARTBEAT_SECONDS = 60  # without one, a process counts as gone
GRACE_SECONDS = 3
LOST = 75  # exit code where another process is gone: starting again may help
_LONGEST_WAIT_MS = 7 * 24 * 3600 * 1000  # for the first process to prepare a corpus

# What a process is asked between steps, and the batch carries to all the others: the highest counts.
GO_ON, SAVE, STOP = 0, 1, 2


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several. Comes before anything else that jax does.

    Args:
        coordinator: `HOST:PORT` of the first process. None: jax finds it, and the rest, as on TPU pods, under SLURM,
            Open MPI and Kubernetes.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        ConfigError: they are not found, or do not answer.
    """
    # Its own handler of SIGTERM would come before ours, which saves first; the batch tells the others (`STOP`).
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # where the devices are CPUs
    try:
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        hint = "" if coordinator else "; where jax cannot find them: --coordinator=HOST:PORT --processes=N --process=I"
        raise ConfigError(f"--distributed: the processes do not come together: {first_line(error)}{hint}") from error
    if not first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # one tells what happens


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


@contextmanager
def first_one_first(what: str) -> Iterator[None]:
    """The block runs in the first process, then in all others at once: what it leaves on a shared disk, they find."""
    if not first():
        wait(what)
    yield
    if first():
        wait(what)


def wait(what: str) -> None:
    """Until all processes are here. Each wait of a run has a name of its own."""
    multihost.get_barrier_sync_fn()(key=f"jaxpretrain {what}", timeout_ms=_LONGEST_WAIT_MS)


def of_first(value: float) -> float:
    """The first process's value: for what is measured, such as times."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(value))) if jax.process_count() > 1 else value


def check_same(field: str, digest: str) -> None:
    """That what the processes found each for themselves is the same.

    Args:
        field: the setting that decides it.
        digest: hexadecimal, at least 7 digits.

    Raises:
        ConfigError: in those that found something else than the first.
    """
    if jax.process_count() > 1:
        mine = np.int32(int(digest[:7], 16))
        if mine != multihost_utils.broadcast_one_to_all(mine):
            raise ConfigError(f"{field}: process {jax.process_index()} found something else than the first process")


@contextmanager
def watched(advice: str) -> Iterator[None]:
    """Ends the process when another one is gone, with one line; without it, leaving would wait for the lost one.

    Where a collective operation notices nothing (GPU, TPU), jax ends the process after `HEARTBEAT_SECONDS`.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _of_connection(str(error)):
            raise
        leave(f"error: process {jax.process_index()} of {jax.process_count()}: another one is gone; {advice}", LOST)


def leave(message: str, code: int) -> NoReturn:
    """Says a line and ends this process at once.

    A usual exit would wait for other processes, which may be waiting for this one; and what a library has left half
    done (orbax, on a full disk) would have its say after the line, with stack traces.
    """
    with suppress(OSError):  # a pipe that nobody reads any more
        sys.stdout.flush()
    stderr, sys.stderr = sys.stderr, io.StringIO()  # where other threads speak from now on
    time.sleep(0.1)  # what they are in the middle of saying comes first
    print(message, file=stderr, flush=True)
    if jax.distributed.is_initialized() and first():
        time.sleep(GRACE_SECONDS)  # jax ends the others when this one is gone: they may say first what is wrong
    os._exit(code)


def _of_connection(message: str) -> bool:
    signs = ("gloo", "nccl", "connection", "socket closed", "coordination", "unavailable", "heartbeat", "deadline")
    return any(sign in message.lower() for sign in signs)

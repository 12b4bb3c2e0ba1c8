"""The C library's heap: what compiling took goes back to the system, what a step took stays for the next one.

On CPUs a compiled program takes its temporary memory as one block, and frees it at its end. glibc gets a large block
from the system anew each time, and the kernel fills it page by page: at 2 × 128 a quarter of a step
(docs/performance.md).
"""

import ctypes
from contextlib import suppress

import jax

# Of glibc's malloc.h. A system or library without them is left as it is.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def _call(function: str, *arguments: int) -> None:
    with suppress(AttributeError, OSError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def run_in_this_thread() -> None:
    """Lets computations on one CPU device run in the thread that asks for them; comes before jax has a backend.

    Other threads' heaps hold 64 MiB at most: what is larger would come from the system each time, whatever it is told.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory() -> None:
    """Gives back to the system what is free now, and on CPUs keeps what is freed later; comes after compiling."""
    _call("malloc_trim", 0)
    if jax.default_backend() == "cpu":
        _call("mallopt", _MMAP_MAX, 0)
        _call("mallopt", _TRIM_THRESHOLD, -1)  # never

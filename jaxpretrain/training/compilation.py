"""The second start of a run compiles nothing."""

import os
import stat
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs in a folder that only the user can write: code is run from it.

    `JAX_COMPILATION_CACHE_DIR` (jax's own setting) wins; a folder that others could write is not used.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxpretrain-compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written: compile anew, nothing is lost
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

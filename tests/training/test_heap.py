"""What glibc's heap keeps and what it gives back, in processes of their own: its settings stay."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, other rules")

GIVEN_BACK = """
import os
from pathlib import Path
from jaxpretrain.training.heap import keep_freed_memory
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
blocks = [bytes(10_000) for _ in range(20_000)]
del blocks[:-1]  # the last one keeps the library from giving back the rest by itself
before = resident()
keep_freed_memory()
print(before - resident())
"""

KEPT = """
import resource, sys
import jax, jax.numpy as jnp
from jaxpretrain.training.heap import keep_freed_memory, run_in_this_thread
if sys.argv[1] == "told":
    run_in_this_thread()
x = jnp.ones((3000, 3000))
step = jax.jit(lambda x: jnp.tanh(x + x[:, :8] @ x[:8]), donate_argnums=0).lower(x).compile()
assert step.memory_analysis().temp_size_in_bytes >= x.nbytes
if sys.argv[1] == "told":
    keep_freed_memory()
fresh = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize()
before = fresh()
for _ in range(40):
    x = step(x).block_until_ready()
print((fresh() - before) // x.nbytes)
"""


def printed(script: str, *arguments: str) -> int:
    return int(subprocess.run([sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE).stdout)


def test_what_is_free_after_compiling_is_given_back():
    assert printed(GIVEN_BACK) > 100e6


def test_steps_do_not_fetch_their_temporary_memory_anew():
    """How many times 40 steps fetch as much from the system as one of them needs."""
    assert printed(KEPT, "not told") > 30
    assert printed(KEPT, "told") < 10

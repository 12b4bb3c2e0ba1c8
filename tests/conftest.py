"""What every test runs in: eight CPU devices, a private compilation cache, prepared corpora shared by the workers."""

import contextlib
import fcntl
import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest


def private_cache(name: str) -> Path | None:
    """A folder that outlives the session and only this user can write: compiled code is run from it. None if taken."""
    path = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return path if mine else None


# Before the first import of jax: the environment is read then, and commands that tests start inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A compiled test runs for milliseconds, so what counts is compiling: both together make it three times as fast.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
without_emitters = version("jaxlib").startswith("0.10.")  # the flag is gone from later ones, which end at unknown flags
os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false" if without_emitters else ""
# Compiling is most of the suite's time, and a second session finds it done. (Fewer threads for XLA gain nothing.)
if cache := private_cache("jaxpretrain-tests"):
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

# A shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A first call compiles: no deadline. The same examples in every run: a red test stays red until it is repaired.
hypothesis.settings.register_profile("jaxpretrain", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxpretrain")


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one worker per usable core, as far as memory for that many compilers is likely."""
    return min(len(os.sched_getaffinity(0)), 16)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `quick` what a new jax is likely to break: all that calls it directly, less the tests marked `slow`."""
    rooms = [Path(__file__).parent / room for room in ("data", "models", "objectives", "training")]
    for item in items:
        if any(item.path.is_relative_to(room) for room in rooms) and not item.get_closest_marker("slow"):
            item.add_marker("quick")


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A temporary folder of this session, one for all workers."""
    base = tmp_path_factory.getbasetemp()
    path = (base if worker_id == "master" else base.parent) / "shared"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def exclusive(shared_tmp: Path) -> Callable[[str], contextlib.AbstractContextManager[None]]:
    """`with exclusive("python-docs"): …` lets one worker at a time in: the first one prepares, the others find it."""

    @contextlib.contextmanager
    def hold(name: str) -> Iterator[None]:
        with open(shared_tmp / f"{name}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    return hold


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`wait_until("it has begun", begun, process)`: at most two minutes, in which the processes must live."""

    def wait(what: str, reached: Callable[[], object], *processes: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 120
        while not reached():
            for process in processes:
                assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"waited two minutes until {what}"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session", autouse=True)
def corpus_cache(shared_tmp: Path) -> Iterator[Path]:
    """Where corpora are prepared: never the user's own cache, and once for all workers."""
    path = shared_tmp / "corpora"
    path.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPRETRAIN_CACHE", str(path))
        yield path


@pytest.fixture(scope="session")
def parity() -> Path:
    """The reference numbers: `JAXPRETRAIN_PARITY`, or the ones in the repository."""
    return Path(os.environ.get("JAXPRETRAIN_PARITY") or Path(__file__).parent / "parity")


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped() -> Iterator[None]:
    """Each compiled program holds memory maps, of which a process may have only so many (65,530 by default)."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types in this test alone."""
    with jax.enable_x64(True):
        yield

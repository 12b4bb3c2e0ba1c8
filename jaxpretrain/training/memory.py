"""A device's memory: what a compiled step needs of it, and one line where it does not suffice."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import jax

from jaxpretrain.config import ConfigError, first_line

_LESS = (
    "a larger train.accumulation, model.remat=true or a smaller train.batch_size needs less (in a new --workdir, where "
    "the run has begun); a smaller eval.batch_size, where it was the held-out text"
)


def needed(programs: Iterable[jax.stages.Compiled]) -> int | None:
    """Bytes on each device of the program that needs most, its arguments included; None: not known."""
    return max(
        (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            for program in programs
            if (memory := program.memory_analysis()) is not None
        ),
        default=None,
    )


def check(size: int | None) -> None:
    """Whether that many bytes are there, as far as the device tells.

    Raises:
        ConfigError: they are not.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if size and limit and size > limit:
        raise ConfigError(f"training needs {size / 2**30:.2f} GiB of a device that has {limit / 2**30:.2f}: {_LESS}")


@contextmanager
def exhausted_in_one_line() -> Iterator[None]:
    """A device's memory that is used up, while compiling or later.

    Raises:
        ConfigError: for what jax says of it.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(f"{first_line(error).rstrip('.')}: {_LESS}") from error

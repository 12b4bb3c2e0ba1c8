"""A trace of a few steps: what the devices and the host do when."""

from types import TracebackType
from typing import Self

import jax
from etils import epath


class Profile:
    """Traces the steps after `first` with jax.profiler, `count` of them, for TensorBoard or Perfetto; none if 0."""

    def __init__(self, folder: epath.PathLike, first: int, count: int) -> None:
        self._folder, self._first, self._last = str(folder), first + 1, first + count
        self._runs = False

    def before(self, step: int) -> None:
        """To be called before each step."""
        if step > self._last:
            self._stop()
        elif step == self._first:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # an event for every call of Python would slow the host down
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._runs = True

    def _stop(self) -> None:
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

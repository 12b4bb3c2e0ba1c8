"""Numbers of a run over its steps: `metrics.jsonl`, and the same as TensorBoard events under `tensorboard/`."""

import io
import json
import logging
import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import jax
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import masked_crc32c

from jaxpretrain.data.sources.files import check_file
from jaxpretrain.training.storage import is_local, write_whole

log = logging.getLogger(__name__)

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
UPLOAD_SECONDS = 60.0  # between uploads to an object store, where a file is written whole each time


class MetricWriter:
    """Writes one JSON object a line, `{"step": 50, "train/loss": 7.1, …}`, steps ascending, none twice.

    A line is in the file when `write` returns; on an object store within a minute, or after `flush`. Only the first
    process writes. Values that are not finite become null, so that the file stays JSON.

    Args:
        workdir: folder of the run, local or `gs://`; made if it is not there.
        resume_step: the step the run goes on from; what an earlier start wrote after it is cut off. None: a new run.

    Raises:
        OSError: naming the file, when it cannot be written (so does `write`).
    """

    def __init__(self, workdir: epath.PathLike, resume_step: int | None = None):
        self._lines: _File | None = None
        if jax.process_index() != 0:
            return
        workdir = epath.Path(workdir)
        path = workdir / METRICS
        kept = [line for line in _parse(path) if resume_step is not None and line["step"] <= resume_step]
        write_whole(path, b"".join(map(_encode, kept)))
        self._lines = _File(path)
        self._last: dict[str, Any] = kept[-1] if kept else {"step": -1}
        if resume_step and self._last["step"] < resume_step:  # a line is written before every save
            log.warning("%s ends at step %d, before the checkpoint: a gap stays", path, max(self._last["step"], 0))
        self._last_start = self._lines.end - (len(_encode(kept[-1])) if kept else 0)

        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        write_whole(workdir / TENSORBOARD / name, b"")
        self._events = _File(workdir / TENSORBOARD / name)
        self._event(Event(file_version="brain.Event:2"))
        # TensorBoard then hides what earlier files hold from this step on.
        start = 0 if resume_step is None else resume_step + 1
        self._event(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds numbers (Python's, or arrays without dimensions) at `step`; they join what is there at the same step.

        Raises:
            ValueError: if a later step was written before.
            OSError: naming the file, as on a full disk.
        """
        if self._lines is None:
            return
        if step < self._last["step"]:
            raise ValueError(f"metrics of step {step} after those of step {self._last['step']}")
        numbers = {name: _number(value) for name, value in values.items()}
        if step == self._last["step"]:
            line = self._last | numbers
        else:
            line = {"step": step} | numbers
            self._last_start = self._lines.end
        self._lines.write(_encode(line), at=self._last_start)
        self._last = line
        scalars = [Summary.Value(tag=name, simple_value=x) for name, x in numbers.items() if x is not None]
        self._event(Event(step=step, summary=Summary(value=scalars)))

    def flush(self) -> None:
        """Uploads now, where that is needed."""
        if self._lines is not None:
            self._lines.upload()
            self._events.upload()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._lines is not None:
            self.flush()
            for file in (self._lines.file, self._events.file):
                with suppress(OSError):  # it tries once more what `write` could not write, and said so
                    file.close()
            self._lines = None

    def _event(self, event: Event) -> None:
        """Appends one record; tensorboardX's own writer is a thread, and on a full disk a hang instead of an error."""
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        record = length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
        self._events.write(record, at=self._events.end)


class Average:
    """Means over steps of metrics that come as (sum, weight) pairs."""

    def __init__(self):
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, pairs: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds one step's pairs, `{"train/loss": (sum, weight)}`."""
        for name, (total, weight) in pairs.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + float(total), before[1] + float(weight))

    def take(self) -> dict[str, float]:
        """The means since the last call, without those of no weight; starts anew."""
        sums, self._sums = self._sums, {}
        return {name: total / weight for name, (total, weight) in sums.items() if weight}


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, without a torn last one; empty if there is no such file."""
    return _parse(epath.Path(workdir) / METRICS)


def add_to_lines(workdir: epath.PathLike, values: Mapping[int, Mapping[str, Any]]) -> None:
    """Adds numbers to the steps of a run that does not train now; a step without a line gets one."""
    lines = {line["step"]: line for line in read(workdir)}
    for step, numbers in values.items():
        of_step = lines.get(step, {"step": step})
        lines[step] = of_step | {name: _number(value) for name, value in numbers.items()}
    write_whole(epath.Path(workdir) / METRICS, b"".join(_encode(lines[step]) for step in sorted(lines)))


def _parse(path: epath.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    check_file(path)
    lines = []
    rows = path.read_bytes().split(b"\n")
    for number, row in enumerate(rows, 1):
        try:
            line = json.loads(row)
            if not isinstance(line["step"], int):
                raise TypeError
            lines.append(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            if number < len(rows):  # the last one is empty, or was torn by a kill
                log.warning("%s: line %d is not a line of metrics: left out", path, number)
    return lines


def _number(value: Any) -> int | float | None:
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


# Files: local ones are appended to, objects (`gs://`) have no append and are kept in memory and written whole.


class _File:
    """A file that grows at its end, where its last piece may be written anew."""

    def __init__(self, path: epath.Path):
        self.path = path
        self.file: BinaryIO = open(path, "r+b") if is_local(path) else io.BytesIO(path.read_bytes())  # noqa: SIM115
        self.end = self.file.seek(0, os.SEEK_END)  # bytes
        self.uploaded = time.monotonic()

    def write(self, data: bytes, at: int) -> None:
        try:
            self.file.seek(at)
            self.file.write(data)
            self.file.flush()
            if at + len(data) < self.end:
                self.file.truncate()
        except OSError as e:
            raise OSError(e.errno, e.strerror or str(e), os.fspath(self.path)) from e
        self.end = at + len(data)
        if time.monotonic() - self.uploaded > UPLOAD_SECONDS:
            self.upload()

    def upload(self) -> None:
        if isinstance(self.file, io.BytesIO):
            self.path.write_bytes(self.file.getvalue())
            self.uploaded = time.monotonic()

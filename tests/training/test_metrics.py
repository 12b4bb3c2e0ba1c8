"""Metrics: valid JSON whatever the numbers, no step twice, no line of a future that did not happen."""

import json
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from jaxpretrain.training import metrics
from jaxpretrain.training.metrics import Average, MetricWriter, read


def written(workdir: epath.PathLike, steps: list[int], resume_step: int | None = None) -> None:
    writer = MetricWriter(workdir, resume_step)
    for step in steps:
        writer.write(step, {"train/loss": step / 8})
    writer.close()


def events(workdir: Path) -> list[list[Any]]:
    """The events of each TensorBoard file, oldest first, every checksum checked."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, position, records = path.read_bytes(), 0, []
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            body = data[position + 12 : position + 12 + length]
            assert struct.unpack_from("<I", data, position + 8)[0] == masked_crc32c(data[position : position + 8])
            assert struct.unpack_from("<I", data, position + 12 + length)[0] == masked_crc32c(body)
            records.append(Event.FromString(body))
            position += 16 + length
        found.append(records)
    return found


@pytest.mark.quick
def test_a_line_is_readable_at_once(tmp_path: Path):
    writer = MetricWriter(tmp_path / "run")
    assert read(tmp_path / "run") == []
    writer.write(50, {"train/loss": np.float32(7.25), "total/tokens": 10**15, "eval/mlm_loss": jnp.float32(0.5)})
    expected = {"step": 50, "train/loss": 7.25, "total/tokens": 10**15, "eval/mlm_loss": 0.5}
    assert read(tmp_path / "run") == [expected]
    assert (tmp_path / "run/metrics.jsonl").read_text() == json.dumps(expected) + "\n"
    assert read(tmp_path / "no-run") == []


def test_values_at_the_same_step_share_a_line(tmp_path: Path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"a": 1})
    writer.write(2, {"a": 2.123456789})
    writer.write(2, {"b": 3})
    writer.write(2, {"a": 4})  # shorter than what was there
    assert (tmp_path / "metrics.jsonl").read_text().endswith('\n{"step": 2, "a": 4, "b": 3}\n')
    writer.write(3, {"a": 5})
    expected = [{"step": 1, "a": 1}, {"step": 2, "a": 4, "b": 3}, {"step": 3, "a": 5}]
    assert read(tmp_path) == expected
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="step 2 after those of step 3"):
        writer.write(2, {"a": 0})


def test_values_that_are_not_finite_are_null(tmp_path: Path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"nan": float("nan"), "inf": jnp.float32(jnp.inf), "minus": -np.inf, "one": 1.0})
    writer.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "nan": None, "inf": None, "minus": None, "one": 1.0}


def test_resume_cuts_what_came_after(tmp_path: Path):
    written(tmp_path, [0, 10, 20, 30])
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    written(tmp_path, [20, 25], resume_step=20)
    after = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert after[:3] == before[:3]
    assert [line["step"] for line in read(tmp_path)] == [0, 10, 20, 25]
    written(tmp_path, [30], resume_step=27)
    assert [line["step"] for line in read(tmp_path)] == [0, 10, 20, 25, 30]
    written(tmp_path, [0])  # a new run in the same workdir
    assert [line["step"] for line in read(tmp_path)] == [0]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_a_line_nested_too_deep_is_left_out(tmp_path: Path):
    written(tmp_path, [10, 20])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
    assert [line["step"] for line in read(tmp_path)] == [10, 20]


def test_torn_last_line_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    written(tmp_path, [10, 20, 30])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    start = whole.rindex(b"{")
    for end in range(start, len(whole) - 1):  # at every byte a kill may have cut it
        path.write_bytes(whole[:end])
        assert [line["step"] for line in read(tmp_path)] == [10, 20]
    written(tmp_path, [30], resume_step=20)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1])  # only the line's end is missing: nothing is lost, and no two lines are glued
    written(tmp_path, [40], resume_step=30)
    assert [line["step"] for line in read(tmp_path)] == [10, 20, 30, 40]
    assert not caplog.records


def test_a_bad_line_in_the_middle_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    written(tmp_path, [10, 20])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 10', b'"stop": 10'))
    assert [line["step"] for line in read(tmp_path)] == [20]
    assert "line 1 is not a line of metrics" in caplog.text


def test_tensorboard_events(tmp_path: Path):
    written(tmp_path, [10, 20])
    written(tmp_path, [20], resume_step=10)
    first, second = events(tmp_path)
    assert [event.file_version for event in (first[0], second[0])] == ["brain.Event:2"] * 2
    assert [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in first[2:]] == [
        (10, "train/loss", 1.25),
        (20, "train/loss", 2.5),
    ]
    assert (second[1].step, second[1].session_log.status) == (11, 1)  # START: hides the first file's step 20
    assert [e.step for e in second[2:]] == [20]


def test_full_disk_names_the_file(tmp_path: Path):
    writer = MetricWriter(tmp_path)
    assert writer._lines is not None
    writer._lines.file = open("/dev/full", "r+b")  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"), closing(writer):
        writer.write(1, {"a": 1})


def test_workdir_that_cannot_be_made_names_it(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        MetricWriter(tmp_path / "file")


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    written(tmp_path / "run", [1, 2])
    assert not (tmp_path / "run").exists()


def test_object_store_is_rewritten_per_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`gs://` paths that end in memory: there is no append."""
    memory = MemoryFileSystem()
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: memory)
    try:
        writer = MetricWriter("gs://bucket/run")
        writer.write(10, {"a": 1})
        assert read("gs://bucket/run") == []
        writer.flush()
        assert read("gs://bucket/run") == [{"step": 10, "a": 1}]
        monkeypatch.setattr(metrics, "UPLOAD_SECONDS", 0.0)
        writer.write(10, {"b": 2})
        writer.write(20, {"a": 3})
        assert read("gs://bucket/run") == [{"step": 10, "a": 1, "b": 2}, {"step": 20, "a": 3}]
        writer.close()
        written("gs://bucket/run", [30], resume_step=10)
        assert [line["step"] for line in read("gs://bucket/run")] == [10, 30]
        sizes = [path.stat().length for path in epath.Path("gs://bucket/run/tensorboard").iterdir()]
        assert len(sizes) == 2
        assert min(sizes) > 50
    finally:
        memory.store.clear()


def test_average_of_sums_and_weights():
    average = Average()
    average.add({"loss": (jnp.float32(6.0), jnp.int32(2)), "accuracy": (1, 4)})
    average.add({"loss": (3.0, 1), "empty": (0.0, 0)})
    assert average.take() == {"loss": 3.0, "accuracy": 0.25}
    assert average.take() == {}
    average.add({"loss": (float("nan"), 1.0)})
    assert np.isnan(average.take()["loss"])


def test_a_file_that_was_cut_is_reported(tmp_path, caplog: pytest.LogCaptureFixture):
    written(epath.Path(tmp_path), [10, 20, 30])
    written(epath.Path(tmp_path), [40], resume_step=30)
    assert not caplog.text
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:60])
    written(epath.Path(tmp_path), [50], resume_step=40)
    assert "metrics.jsonl ends at step 10, before the checkpoint: a gap stays" in caplog.text

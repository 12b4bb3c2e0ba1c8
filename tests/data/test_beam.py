"""`prepare` with Apache Beam, on its local runner in Python (DirectRunner would first fetch another one)."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from etils import epath
from etils.epath.backend import fsspec_backend
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from jaxpretrain.config import ConfigError, DataConfig
from jaxpretrain.data import beam, passes
from jaxpretrain.data import corpus as corpus_source
from jaxpretrain.data.build import prepare
from jaxpretrain.data.corpus import Unit
from jaxpretrain.data.prepared import Corpus
from tests.data.conftest import NOTES, paragraphs

LOCAL = "--runner=FnApiRunner"
ROOT = Path(__file__).parents[2]

collect = beam.collect

needs_beam = pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="needs the extra beam")


def small(text: Path | str, cache: Path) -> DataConfig:
    return DataConfig(source=f"text:{text}", vocab_size=300, held_out=0.1, cache_dir=str(cache), workers=1)


@needs_beam
@pytest.mark.parametrize(
    ("flags", "held_out"),
    [
        (f"{LOCAL} --direct_runner_bundle_repeat=1", 0.1),  # each unit twice
        (LOCAL, 0.0001),  # words are counted twice: one document must be held out
        pytest.param(f"{LOCAL} --direct_num_workers=2 --direct_running_mode=multi_processing", 0.1,
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_same_bytes(flags: str, held_out: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus_source, "UNIT_BYTES", 40_000)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n\n".join(paragraphs(600, seed=ord(name[0]))))
    here = replace(small(tmp_path / "*.txt", tmp_path / "here"), held_out=held_out)
    there = replace(here, cache_dir=str(tmp_path / "there"))
    machines = beam.machines(f"{flags} --temp_location={tmp_path / 'exchange'}")
    notes = replace(NOTES, max_count=10_000)
    made = [prepare(here, notes, progress=False), prepare(there, notes, progress=False, machines=machines)]
    assert len(made[0].train_shards) > 5
    assert made[0].rare_words.train_occurrences > 1000
    files = [{path.name: path.read_bytes() for path in corpus.folder.iterdir()} for corpus in made]
    assert files[0] == files[1]
    assert list((tmp_path / "there").iterdir()) == [made[1].folder]
    assert list((tmp_path / "exchange").iterdir()) == []


@needs_beam
def test_a_bucket(text_file: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Folders are no more than parts of names there. This one is in memory; a real one was not tried."""
    filesystem = {"gcs": MemoryFileSystem(), "file": LocalFileSystem()}
    monkeypatch.setattr(type(fsspec_backend), "_get_filesystem", lambda _, name: filesystem[name])
    MemoryFileSystem.store.clear()
    put = []
    monkeypatch.setattr(beam, "collect", lambda *task: put.append(list(MemoryFileSystem.store)) or collect(*task))
    config = small(text_file, tmp_path)
    made = prepare(config, NOTES, progress=False, machines=beam.machines(f"{LOCAL} --temp_location=gs://bucket/folder"))
    assert any(re.search("gs:/*bucket/folder/.*/00000-.*/train-00000.bin", name) for name in put[-1])
    assert MemoryFileSystem.store == {}
    assert made.folder.name == corpus.folder.name
    assert (made.folder / "manifest.json").read_bytes() == (corpus.folder / "manifest.json").read_bytes()


@pytest.fixture
def unit(text_file: Path, tmp_path: Path) -> Unit:
    return corpus_source.plan(corpus_source.resolve(f"text:{text_file}"), tmp_path, None)[0]


@pytest.fixture
def step(tmp_path: Path) -> epath.Path:
    path = epath.Path(tmp_path / "step")
    path.mkdir()
    return path


count = partial(passes.count_unit, lowercase=True, below=passes.HASH_RANGE // 3)


def collected(step: epath.Path, tmp_path: Path, name: str) -> tuple[object, bytes]:
    (tmp_path / name).mkdir()
    found = beam.collect(step, tmp_path / name, 0)
    assert isinstance(found, passes.Counted)
    return replace(found, spill=Path(found.spill.name)), found.spill.read_bytes()


def test_a_unit_done_twice_at_once(unit: Unit, step: epath.Path, tmp_path: Path):
    seen = []

    def slowly(unit: Unit, index: int, folder: Path) -> passes.Counted:
        found = count(unit, index, folder)
        beam.work(count, str(step), [], (index, unit))  # another machine begins later and is done earlier
        seen.append(collected(step, tmp_path, "first"))
        return found

    beam.work(slowly, str(step), [], (0, unit))
    seen.append(collected(step, tmp_path, "second"))
    direct = count(unit, 0, tmp_path)
    assert seen == [(replace(direct, spill=Path(direct.spill.name)), direct.spill.read_bytes())] * 2
    assert len(list(step.glob("00000-*"))) == 2


def test_a_unit_whose_machine_dies(unit: Unit, step: epath.Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def die(*_: object, **__: object) -> None:
        raise OSError("the machine is gone")

    for method in ("copy", "write_text", "replace"):  # while it brings the files, before it says so, while it does
        with monkeypatch.context() as patch:
            patch.setattr(type(step), method, die)
            with pytest.raises(OSError, match="gone"):
                beam.work(count, str(step), [], (0, unit))
        with pytest.raises(ConfigError, match="nothing came of unit 0"):
            beam.collect(step, tmp_path, 0)
    beam.work(count, str(step), [], (0, unit))
    direct = count(unit, 0, tmp_path)
    found = collected(step, tmp_path, "whole")
    assert found == (replace(direct, spill=Path(direct.spill.name)), direct.spill.read_bytes())


def test_warnings_and_counts_survive(step: epath.Path, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 here\n\n" + b"and more text\n\n" * 5)
    unit = corpus_source.plan(corpus_source.resolve(f"text:{path}"), tmp_path, None)[0]
    beam.work(count, str(step), [], (0, unit))
    (tmp_path / "scratch").mkdir()
    found = beam.collect(step, tmp_path / "scratch", 0)
    assert found == replace(count(unit, 0, tmp_path), spill=tmp_path / "scratch/words-00000-00000.tsv")
    assert found.warnings[str(path), "characters are not UTF-8 and were replaced"] == 1


@needs_beam
def test_text_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"some text\n\n\0\n")
    cache = tmp_path / "cache"
    with pytest.raises(ConfigError, match=r"data.source: .*a.txt is binary.*\(on a worker of Beam, which must reach"):
        prepare(small(tmp_path / "a.txt", cache), NOTES, progress=False, machines=beam.machines(LOCAL))
    assert list(cache.iterdir()) == []


@needs_beam
def test_a_pipeline_that_fails(unit: Unit, tmp_path: Path):
    def broken(*_: object) -> passes.Counted:
        raise MemoryError("no memory\nleft")

    with (
        beam.machines(LOCAL)(tmp_path) as over,
        pytest.raises(ConfigError, match=r"^--beam: counting failed: .*(no memory|left)"),
    ):
        over(broken, [unit], "counting")


@needs_beam
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "it names no runner, as in --beam='--runner=DirectRunner'"),
        ("--runner=NoRunner", "Unexpected pipeline runner: NoRunner"),
        (f"{LOCAL} --direct_num_workers=two", "argument --direct_num_workers: invalid int value: 'two'"),
        ("--runner='", "No closing quotation"),
        ("--runner=DataflowRunner --region=nowhere", "Missing|apache_beam.gcp"),
    ],
)
def test_flags_that_cannot_work(flags: str, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match=rf"^--beam=.*{message}") as caught:
        beam.machines(flags)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


@needs_beam
def test_a_folder_that_cannot_be_written(text_file: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    machines = beam.machines(f"{LOCAL} --temp_location={tmp_path}/file/folder")
    with pytest.raises(
        ConfigError, match=r"^--beam: cannot write to --temp_location=.*/file/folder: .*Not a directory"
    ):
        prepare(small(text_file, tmp_path / "cache"), NOTES, progress=False, machines=machines)


def test_without_beam(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ConfigError, match=r"^--beam needs Apache Beam .*: pip install 'jaxpretrain\[beam\]'$"):
        beam.machines(LOCAL)


@needs_beam  # with which an older protobuf comes
def test_a_module_that_reads_models_may_be_imported_first():
    command = [sys.executable, "-c", "import jaxpretrain.interop.fast_tokenizer"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


@needs_beam
@pytest.mark.slow
def test_the_command(text_file: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "jaxpretrain.prepare",
        "--config",
        "configs/bert.py",
        "--config.data.vocab_size=300",
    ]
    command += [f"--config.data.source=text:{text_file}", f"--config.data.cache_dir={tmp_path}"]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "env": os.environ | {"JAX_PLATFORMS": "cpu"}}
    done = subprocess.run([*command, f"--beam={LOCAL}"], **options)
    assert done.returncode == 0, done.stderr
    assert "documents     300" in done.stdout
    wrong = subprocess.run([*command, "--beam=--runner=NoRunner"], **options)
    assert wrong.returncode == 2
    assert re.fullmatch(r"error: --beam='--runner=NoRunner': Unexpected pipeline runner: NoRunner\..*\n", wrong.stderr)

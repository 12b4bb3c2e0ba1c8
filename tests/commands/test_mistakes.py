"""Mistakes: one line that names what is wrong and the way out, no stack trace, an exit code, nothing overwritten."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from jaxpretrain.cli import _one_line, _wrong_field
from jaxpretrain.config import Config, FinetuneConfig

TRAIN = [sys.executable, "-m", "jaxpretrain.train"]
BERT = [*TRAIN, "--config", "configs/bert.py"]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([*BERT, "--config.train.stepz=3"], ["'train.stepz'", "train.steps"]),
        ([*BERT, "--config.nonsense=3"], ["'nonsense'"]),
        ([*BERT, "--config.train.steps=many"], ["train.steps", "many"]),
        ([*BERT, "--config.optim.learning_rate=fast"], ["optim.learning_rate", "fast"]),
        ([*BERT, "--config.model.remat=perhaps"], ["model.remat", "true or false, not 'perhaps'"]),
        ([*BERT, "--config.notes=true"], ["--config.notes.FIELD=VALUE"]),
        ([*BERT, "--config.model.heads=3"], ["model.heads=3", "model.hidden=128"]),
        ([*BERT, "--config.model.position=alibi"], ["model.position='alibi'", "tupe_r"]),
        ([*BERT, "--config.model.max_positions=64"], ["data.sequence_length=128", "model.max_positions=64"]),
        ([*TRAIN, "--config", "configs/bart.py"], ["configs/bart.py", "no such file", "configs/NAME.py"]),
        ([*TRAIN, "--config", "configs/bert.py:huge"], ["'huge'", "tiny, small, base, large"]),
        (TRAIN, ["--config", "configs/tupe.py"]),
        ([*TRAIN, "--config="], ["--config: Path to config file is an empty string"]),
        ([*TRAIN, "configs/bert.py"], ["'configs/bert.py'", "--config configs/tupe.py"]),
        ([*BERT, "--wrkdir=x"], ["wrkdir"]),
        ([*BERT, "train.steps=3"], ["'train.steps=3'", "--config.FIELD=VALUE"]),
        ([*BERT, "--config.data.source=text:/nowhere/*.txt"], ["data.source", "/nowhere/*.txt"]),
        ([*BERT, "--config.data.source=http://x"], ["data.source", "python-docs", "text:"]),
        ([*BERT, "--processes=2", "--process=0"], ["--coordinator=HOST:PORT"]),
        ([*BERT, "--config.data.tokenizer=/nowhere.model"], ["data.tokenizer", "/nowhere.model"]),
    ],
    ids=lambda value: value[-1].split("/")[-1] if value[0] == sys.executable else "",
)
def test_a_wrong_command(args: list[str], parts: list[str], run, tmp_path: Path):
    workdir = [] if any(arg.startswith("--wrkdir") for arg in args) else ["--workdir", str(tmp_path / "run")]
    done = run([*args[:3], *workdir, *args[3:]])
    error = done.error()
    assert done.code == 2
    assert all(part in error for part in parts), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "field", "message"),
    [
        (Config, "train.stepz", "'train.stepz': did you mean train.steps?"),
        (Config, "model.num_heads", "'model.num_heads': did you mean model.heads?"),
        (Config, "optim.lr", "'optim.lr': did you mean optim.learning_rate?"),
        (Config, "nonsense", "'nonsense': jaxpretrain/config.py lists what each command has"),
        (Config, "epochs", "'epochs', which is one of finetune's: did you mean train.steps?"),
        (Config, "task", "'task', which is one of finetune's: jaxpretrain/config.py lists what each command has"),
        (FinetuneConfig, "train.steps", "'train.steps', which is one of train's: did you mean epochs?"),
        (FinetuneConfig, "train.batch_size", "'train.batch_size', which is one of train's: did you mean batch_size?"),
        (FinetuneConfig, "model.heads", "'model.heads', which is one of train's: jaxpretrain/config.py lists what"),
        (FinetuneConfig, "notes.enabled", "'notes.enabled', which is one of train's: jaxpretrain/config.py lists what"),
        (FinetuneConfig, "tsk", "'tsk': did you mean task?"),
    ],
)
def test_a_field_that_is_not_there(kind: type, field: str, message: str):
    assert _wrong_field([f"--config.{field}=3"], kind).startswith(f"the config has no field {message}")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["data.source", "documents"]),
        (b"\n \n\n", ["data.source", "documents"]),
        (b"One document alone.", ["data.source", "documents"]),
        (bytes(range(256)) * 100, ["data.source", "binary"]),
        (b"A few words here.\n\nAnd some more there, in another document.\n", ["data.s", "train.batch_size=8"]),
    ],
    ids=["empty", "blank", "one document", "binary", "too little"],
)
def test_a_corpus_that_cannot_serve(content: bytes, parts: list[str], command, run, tmp_path: Path):
    file = tmp_path / "corpus.txt"
    file.write_bytes(content)
    args = command("train", "--workdir", tmp_path / "runs" / "one", f"--config.data.source=text:{file}")
    error = run(args).error()
    assert all(part in error for part in parts), error
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_does_not_divide_among_devices(command, run, tmp_path: Path):
    args = command("train", "--workdir", tmp_path / "run", "--config.train.batch_size=12")
    error = run(args, devices=8).error()
    assert "train.batch_size=12" in error
    assert "8" in error


@pytest.mark.parametrize("below", ["file/run", "file", "proc"])
def test_a_workdir_that_cannot_be_written(below: str, command, run, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    workdir = Path("/proc/run") if below == "proc" else tmp_path / below
    assert str(workdir) in run(command("train", "--workdir", workdir)).error()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_cache_folder_that_cannot_be_written(command, run, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    args = command("train", "--workdir", tmp_path / "run", f"--config.data.cache_dir={tmp_path / 'file'}")
    assert "data.cache_dir" in run(args).error()


def test_init_from_nothing(command, run, tmp_path: Path):
    args = command("train", "--workdir", tmp_path / "run", f"--config.init_from={tmp_path / 'nowhere'}")
    assert str(tmp_path / "nowhere") in run(args).error()


def test_a_workdir_of_another_config(finished: Path, command, run, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    args = command("train", "--workdir", workdir, "--config.model.layers=2", "--config.train.seed=5")
    error = run(args).error()
    assert "model.layers: 1 → 2" in error
    assert "train.seed: 0 → 5" in error
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_disk_that_fills_up(command, run, tmp_path: Path):
    """No file may grow beyond 48 KiB: configs and metrics fit, a checkpoint does not."""
    # jax would leave torn files in the compilation cache of all tests: it is read only.
    limited = ["sh", "-c", 'ulimit -f 96; export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1e9; exec "$@"', "-"]
    done = run([*limited, *command("train", "--workdir", tmp_path / "run")])
    assert done.code == 2
    assert done.lines[-1].startswith("error: ")
    assert "checkpoints" in done.lines[-1]
    assert not (tmp_path / "run" / "DONE").exists()
    # With room again, the same command begins anew and ends well.
    done = run(command("train", "--workdir", tmp_path / "run"))
    assert done.code == 0, done.err


def test_a_full_disk_at_any_place(run):
    script = "from jaxpretrain import cli; cli.run_plain(lambda _: print('x', file=open('/dev/full', 'w'), flush=True))"
    done = run([sys.executable, "-c", script])
    assert "No space left on device; free some space, then give the same command again" in done.error()
    assert done.code == 2


def test_a_step_that_is_not_finite(command, run, tmp_path: Path):
    flags = ["--config.optim.learning_rate=999", "--config.optim.warmup_steps=0"]
    done = run(command("train", "--workdir", tmp_path / "run", *flags))
    assert done.code != 0
    assert "Traceback" not in done.err
    assert re.match(r"error: step \d+: ", done.lines[-1])
    assert "not finite" in done.lines[-1]


def test_names_from_a_hostile_file_do_not_reach_the_terminal():
    assert _one_line("a\nb \x1b[2J\u202e \udcff é") == "a b \\x1b[2J\\u202e \\udcff é"
    assert _one_line("a" * 5000 + "z" * 5000) == "a" * 1000 + " … " + "z" * 1000


def test_names_in_warnings_neither(command, run, tmp_path: Path):
    name = tmp_path / "a\x1b[2J\nb.txt"
    name.write_bytes(b"\xff" + b"some words of no use\n\n" * 100)
    source = f"--config.data.source=text:{tmp_path}/*.txt"
    done = run([*BERT, source, "--config.train.steps=1", "--config.train.batch_size=1", "--workdir", tmp_path / "run"])
    assert "\x1b" not in done.err
    assert r"a\x1b[2J b.txt" in done.err


def test_a_name_that_is_no_text_is_printed(command, run, finished: Path, tmp_path: Path):
    out = tmp_path / "out\udcff"
    done = run(command("compare", finished, "--out", out))
    assert done.code == 0, done.err
    assert r"out\udcff: compare.md" in done.out


def test_help_tells_of_the_config(run):
    done = run([*TRAIN, "--help"])
    assert done.code == 0
    assert "--config" in done.out
    assert "--workdir" in done.out
    assert "python -m jaxpretrain.train --config configs/tupe.py" in done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize("config", [["--config", "configs/bert.py"], ["--config=configs/bert.py:tiny"]])
def test_recipes_are_found_from_any_folder(config: list[str], run, tmp_path: Path):
    error = run([*TRAIN, *config, "--config.model.heads=3"], cwd=tmp_path).error()
    assert "model.heads=3" in error
    # One's own file of that name comes first.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "bert.py").write_text("def get_config(size=''):\n    return {'name': 'mine'}\n")
    assert "makes a dict" in run([*TRAIN, *config], cwd=tmp_path).error()

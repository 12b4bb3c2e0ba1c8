"""The training loop: what it leaves behind, and that stopping it at any point changes nothing."""

import gzip
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jaxpretrain import cli, train
from jaxpretrain.config import ConfigError
from jaxpretrain.data.build import prepare
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.evaluation import heldout
from jaxpretrain.evaluation.trained import load_run
from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.training import flops, metrics, programs
from jaxpretrain.training.checkpoint import restore_params
from jaxpretrain.training.workdir import locked
from tests.commands.conftest import NOTES

TIMES = ("speed/", "total/seconds")


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    """The metrics, apart from times."""
    return [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in metrics.read(workdir)]


def state_of(workdir: Path, step: int) -> dict[str, Any]:
    return {part: restore_params(workdir / "checkpoints", step, subtree=part)[0] for part in ("params", "opt_state")}


def checkpoints_of(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def assert_same_run(one: Path, other: Path, step: int = 30) -> None:
    """Bit for bit: parameters, optimizer, metrics, result."""
    jax.tree.map(np.testing.assert_array_equal, state_of(one, step), state_of(other, step))
    assert lines_of(one) == lines_of(other)
    assert (one / "DONE").read_text() == (other / "DONE").read_text()


def stopped_after(step: int, finished: Path, workdir: Path) -> Path:
    """A copy of the finished run as a kill would have left it, some time after the save of `step`."""
    shutil.copytree(finished, workdir)
    (workdir / "DONE").unlink()
    for folder in (workdir / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    return workdir


def let_losses_rise(headline: str, patch: pytest.MonkeyPatch) -> None:
    """Held-out losses become 1, 2 and 3: the first checkpoint is the best one."""
    evaluate, losses = heldout.Evaluation.__call__, iter([1.0, 2.0, 3.0])

    def rising(self: heldout.Evaluation, state: Any) -> dict[str, float]:
        return evaluate(self, state) | {f"eval/{headline}": next(losses)}

    patch.setattr(heldout.Evaluation, "__call__", rising)


# --- what a run leaves ---


def test_files_of_a_run(finished: Path):
    assert {path.name for path in finished.iterdir()} >= {
        "DONE",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "tokenizer.model",
    }
    assert checkpoints_of(finished) == ["00000010", "00000020", "00000030"]
    assert json.loads((finished / "config.json").read_text())["train"]["steps"] == 30
    assert Tokenizer.load(finished).vocab_size <= 200


def test_metrics_have_the_promised_names(finished: Path):
    lines = metrics.read(finished)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    training = {"train/loss", "train/mlm_loss", "train/mlm_accuracy", "train/learning_rate", "train/grad_norm"}
    totals = {"speed/tokens_per_second", "speed/step_ms", "total/tokens", "total/flops", "total/seconds"}
    evaluation = {"eval/mlm_loss", "eval/mlm_accuracy", "eval/unigram_loss"}
    for line in lines:
        assert set(line) >= training | totals
        assert (evaluation <= set(line)) == (line["step"] % 10 == 0)
        assert line["total/tokens"] == line["step"] * 8 * 16
        assert all(value is not None for value in line.values())
    seconds = [line["total/seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert lines[-1]["train/learning_rate"] == pytest.approx(3e-3 / 25)
    assert json.loads((finished / "DONE").read_text())["eval/mlm_loss"] == lines[-1]["eval/mlm_loss"]


def test_tensorboard_shows_the_same(finished: Path):
    [path] = (finished / "tensorboard").iterdir()
    data, tags = path.read_bytes(), set()
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        tags |= {(event.step, value.tag) for value in event.summary.value}
        data = data[16 + length :]
    assert {(5, "train/loss"), (30, "eval/mlm_loss"), (30, "total/flops")} <= tags


def test_utilization_is_the_share_of_what_all_devices_could_do(
    tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flops, "peak_flops", lambda: 1e9)
    run_train(tiny(**{"train.steps": 10, "eval.every": 0}), tmp_path)
    before, line = metrics.read(tmp_path)
    seconds = 5 * line["speed/step_ms"] / 1e3
    assert line["speed/mfu"] == pytest.approx((line["total/flops"] - before["total/flops"]) / seconds / 8e9)


def test_checkpoints_by_the_clock(tiny, run_train, tmp_path: Path):
    fields = {"checkpoint.every_steps": 0, "checkpoint.keep": 99, "eval.every": 0}
    run_train(tiny(**fields, **{"checkpoint.every_minutes": 1e-9}), tmp_path / "often")
    assert len(checkpoints_of(tmp_path / "often")) > 3
    run_train(tiny(**fields, **{"checkpoint.every_minutes": 1e9}), tmp_path / "seldom")
    assert checkpoints_of(tmp_path / "seldom") == ["00000030"]


@pytest.mark.parametrize(("keep_best", "kept"), [(False, ["00000030"]), (True, ["00000010", "00000030"])])
def test_only_the_newest_and_the_best_are_kept(
    keep_best: bool, kept: list[str], tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    let_losses_rise("mlm_loss", monkeypatch)
    run_train(tiny(**{"checkpoint.keep": 1, "checkpoint.keep_best": keep_best}), tmp_path)
    assert checkpoints_of(tmp_path) == kept


def test_the_end_tells_how_to_go_on(finished: Path, tiny, run_train, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    result = run_train(tiny(), finished)
    assert result["eval/mlm_loss"] == metrics.read(finished)[-1]["eval/mlm_loss"]
    out = capsys.readouterr().out
    assert "is done: 30 steps" in out
    assert "--config.train.steps=60" in out
    assert f"python -m jaxpretrain.predict --workdir {finished} " in out
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_notes_of_what_is_likely_a_mistake(tiny, run_train, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = {"data.held_out": 0.001, "train.steps": 10, "eval.every": 0}
    run_train(tiny(**few, **{"optim.warmup_steps": 8}), tmp_path / "run")
    out = capsys.readouterr().out
    assert "held-out tokens say little" in out
    assert "rises for 8 steps and has 2 to fall: --config.optim.warmup_steps=1 " in out
    run_train(tiny(**few, **{"optim.warmup_steps": 5}), tmp_path / "other")
    assert "to fall" not in capsys.readouterr().out


# --- stopping and going on ---


def test_a_killed_run_with_muon_ends_like_one_that_was_not(tiny, run_train, tmp_path: Path):
    config = tiny(**{"optim.name": "muon"})
    run_train(config, tmp_path / "undisturbed")
    workdir = stopped_after(10, tmp_path / "undisturbed", tmp_path / "run")
    run_train(config, workdir)
    assert_same_run(workdir, tmp_path / "undisturbed")
    assert metrics.read(workdir)[-1]["train/muon_rate"] == pytest.approx(config.optim.muon_rate / 25)


@pytest.mark.parametrize("step", [10, 20])
def test_a_killed_run_ends_like_one_that_was_not(step: int, finished: Path, tiny, run_train, tmp_path: Path):
    workdir = stopped_after(step, finished, tmp_path / "run")
    run_train(tiny(), workdir)
    assert_same_run(workdir, finished)


def test_killed_between_the_last_save_and_done(finished: Path, tiny, run_train, tmp_path: Path):
    workdir = stopped_after(30, finished, tmp_path / "run")
    result = run_train(tiny(), workdir)
    assert result["eval/mlm_loss"] == pytest.approx(metrics.read(finished)[-1]["eval/mlm_loss"])
    assert_same_run(workdir, finished)


def test_killed_before_the_first_save(finished: Path, tiny, run_train, tmp_path: Path):
    workdir = stopped_after(0, finished, tmp_path / "run")
    run_train(tiny(), workdir)
    assert_same_run(workdir, finished)


def test_one_flipped_bit_is_reported_and_the_checkpoint_before_used(
    finished: Path, tiny, run_train, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    workdir = stopped_after(20, finished, tmp_path / "run")
    newest = workdir / "checkpoints" / "00000020"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    run_train(tiny(), workdir)
    assert "00000020" in caplog.text
    assert "digest differs" in caplog.text
    assert "00000020.damaged" in checkpoints_of(workdir)
    assert_same_run(workdir, finished)


def test_stopped_where_an_evaluation_is_due(tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopping does not wait for it: the next start makes up for it."""
    config = tiny(**{"train.log_every": 1, "eval.every": 5})
    run_train(config, tmp_path / "undisturbed")
    write = metrics.MetricWriter.write

    def stop(self: metrics.MetricWriter, step: int, values: dict) -> None:
        write(self, step, values)
        if step == 17:  # the batch of step 19 has the wish, and the loop obeys it after step 20
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricWriter, "write", stop)
        with pytest.raises(SystemExit):
            run_train(config, tmp_path / "run")
    last = metrics.read(tmp_path / "run")[-1]
    assert last["step"] == 20
    assert "eval/mlm_loss" not in last
    run_train(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_on_another_number_of_devices_to_rounding(finished: Path, command, run, tmp_path: Path):
    workdir = stopped_after(10, finished, tmp_path / "run")
    done = run(command("train", "--workdir", workdir), devices=1)
    assert done.code == 0, done.err
    assert "goes on from step 10" in done.out
    for here, there in zip(lines_of(workdir), lines_of(finished), strict=True):
        assert here == pytest.approx(there, rel=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
        state_of(workdir, 30)["params"],
        state_of(finished, 30)["params"],
    )


def test_spread_over_devices_and_passes_to_rounding(tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The parameters, the notes and the rows of a step are divided; then a part of it goes on undivided."""
    wide = {"model.hidden": 128, "model.ffn": 128, "train.batch_size": 16, "eval.batch_size": 16}  # narrower is whole
    fields = wide | NOTES | {"train.accumulation": 2, "notes.sharded": True}
    divided, state_program = [], train.state_program

    def watched(*args: Any) -> Any:
        init, like = state_program(*args)
        for part in like.params, like.notes:
            divided.append(any(x.sharding.shard_shape(x.shape) != x.shape for x in jax.tree.leaves(part)))
        return init, like

    monkeypatch.setattr(train, "state_program", watched)
    run_train(tiny(**wide, **NOTES), tmp_path / "plain")
    run_train(tiny(**fields, **{"sharding.fsdp": 2}), tmp_path / "spread")
    workdir = stopped_after(10, tmp_path / "spread", tmp_path / "run")
    run_train(tiny(**fields, **{"sharding.fsdp": 1}), workdir)
    assert divided == [False, False, True, True, False, True]
    for found in lines_of(tmp_path / "spread"), lines_of(workdir):
        for here, there in zip(found, lines_of(tmp_path / "plain"), strict=True):
            assert here == pytest.approx(there, rel=1e-3, abs=1e-3)


def test_a_finished_run_is_lengthened(finished: Path, tiny, run_train, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    run_train(tiny(**{"train.steps": 40}), workdir)
    lines = lines_of(workdir)
    assert lines[:6] == lines_of(finished)
    assert [line["step"] for line in lines[6:]] == [35, 40]
    seconds, step_ms = ([line[name] for line in metrics.read(workdir)] for name in ("total/seconds", "speed/step_ms"))
    assert np.diff(seconds) == pytest.approx(5 * np.array(step_ms[1:]) / 1e3)  # training's alone, over both starts
    # The longer schedule: 35 of 40 steps, five of them warm-up.
    assert lines[6]["train/learning_rate"] == pytest.approx(3e-3 * (40 - 34) / 35, rel=1e-3)
    assert json.loads((workdir / "DONE").read_text())["step"] == 40
    with pytest.raises(ConfigError, match=r"train\.steps=30: .* already at step 40"):
        run_train(tiny(), workdir)


def test_step_and_evaluation_compile_once(tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(programs, "train_step", chex.assert_max_traces(programs.train_step, n=1))
    monkeypatch.setattr(heldout, "eval_step", chex.assert_max_traces(heldout.eval_step, n=1))
    seen = {}
    table = train.print_table
    monkeypatch.setattr(train, "print_table", lambda *args: (seen.update(enumerate(args)), table(*args)))
    run_train(tiny(), tmp_path / "run")
    # The state is donated: its bytes are those of the arguments, not a second copy.
    shapes, [compiled] = seen[3], seen[5].values()
    bytes_of_state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((shapes.params, shapes.opt_state)))
    assert compiled.memory_analysis().alias_size_in_bytes >= bytes_of_state


def test_attention_that_the_gpu_does_not_have_is_told_before_the_text_is_prepared(
    tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(train, "prepare", lambda *_, **__: pytest.fail("prepared"))
    with pytest.raises(ConfigError, match=r"model\.attention='fused': needs an NVIDIA GPU"):
        run_train(tiny(**{"model.attention": "fused", "model.attention_dropout": 0.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Small:
    """A device with a mebibyte."""

    @staticmethod
    def memory_stats() -> dict[str, int]:
        return {"bytes_limit": 2**20}


def test_a_step_that_does_not_fit_is_told_before_the_run_begins(
    tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checked = train.memory.check

    def check(size: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(jax, "local_devices", lambda: [Small])
            checked(2**19)
            checked(size)

    monkeypatch.setattr(train.memory, "check", check)
    told = r"^training needs \d\.\d\d GiB of a device that has 0\.00: .*train\.accumulation, .*eval\.batch_size"
    with pytest.raises(ConfigError, match=told):
        run_train(tiny(**{"model.hidden": 256, "model.ffn": 1024}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("message", ["RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore", "INTERNAL: a bug"])
def test_memory_that_is_used_up_later_is_one_line(
    tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
):
    def fail(*_: Any) -> None:
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(heldout.Evaluation, "__call__", fail)
    with pytest.raises(jax.errors.JaxRuntimeError if "bug" in message else ConfigError) as caught:
        run_train(tiny(**{"train.steps": 1}), tmp_path / "run")
    if "bug" not in message:
        assert "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes: a larger train.accumulation, " in str(
            caught.value
        )
        assert "\n" not in str(caught.value)


# --- from another run ---


def test_init_from_starts_with_the_best_parameters(finished: Path, tiny, run_train, tmp_path: Path):
    fields = {"train.steps": 1, "optim.learning_rate": 1e-30, "optim.weight_decay": 0.0}
    run_train(tiny(**fields, init_from=str(finished)), tmp_path / "run")
    best = state_of(finished, json.loads((finished / "DONE").read_text())["step"])["params"]
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path / "run", 1)["params"], best)


def test_init_from_another_objective_takes_the_encoder(finished: Path, tiny, run_train, tmp_path: Path, capsys):
    fields = {"train.steps": 1, "optim.learning_rate": 1e-30, "optim.weight_decay": 0.0, "train.seed": 7}
    other = fields | {"objective.name": "electra", "objective.divider": 1}
    run_train(tiny(**other, init_from=str(finished)), tmp_path / "run")
    assert f"{finished} has another objective: its encoder is taken, not generator, generator_head, head" in (
        capsys.readouterr().out
    )
    run_train(tiny(**other), tmp_path / "fresh")
    run, fresh = (state_of(tmp_path / name, 1)["params"] for name in ("run", "fresh"))
    best = state_of(finished, json.loads((finished / "DONE").read_text())["step"])["params"]
    # An update of 1e-30 shows in what is 0.
    chex.assert_trees_all_close(run, fresh | {"encoder": best["encoder"]}, rtol=0, atol=1e-20)


def test_init_from_another_architecture_names_the_parameter(finished: Path, tiny, run_train, tmp_path: Path):
    config = tiny(**{"model.ffn": 128, "init_from": str(finished)})
    with pytest.raises(ConfigError, match=r"init_from=.*ffn_in/bias is \(1, 64\) there and \(1, 128\)"):
        run_train(config, tmp_path / "run")


def test_init_from_on_other_text_goes_on_with_its_tokenizer(
    finished: Path, text: Path, tiny, run_train, tmp_path: Path
):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().translate(str.maketrans("aeiou", "eioua")))
    fields = {"train.steps": 1, "optim.learning_rate": 1e-30, "optim.weight_decay": 0.0}
    config = tiny(**fields, init_from=str(finished), **{"data.source": f"text:{other}"})
    # Shapes would not tell.
    assert prepare(config.data, config.notes, progress=False).vocab_size == Tokenizer.load(finished).vocab_size
    with pytest.raises(ConfigError, match=r"init_from=.*other pieces.*--config\.data\.tokenizer=.*/tokenizer\.model"):
        run_train(config, tmp_path / "run")
    config.data.tokenizer = str(finished / "tokenizer.model")
    run_train(config, tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == (finished / "tokenizer.model").read_bytes()
    best = state_of(finished, json.loads((finished / "DONE").read_text())["step"])["params"]
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path / "run", 1)["params"], best)


def test_init_from_an_imported_model_is_refused(finished: Path, tiny, run_train, tmp_path: Path):
    imported = tmp_path / "imported"
    shutil.copytree(finished, imported)
    (imported / "tokenizer.model").rename(imported / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"init_from=.*no tokenizer\.model there.*fine-tuned only"):
        run_train(tiny(init_from=str(imported)), tmp_path / "run")


# --- what must not be mixed ---


def test_a_run_of_another_config_is_left_alone(finished: Path, tiny, run_train):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"train\.seed: 0 → 1"):
        run_train(tiny(**{"train.seed": 1}), finished)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_another_text_under_a_run_is_noticed(finished: Path, text: Path, tiny, run_train, tmp_path: Path):
    mine = tmp_path / "mine.txt"
    shutil.copy(text, mine)
    config = tiny(**{"data.source": f"text:{mine}"})
    workdir = stopped_after(20, finished, tmp_path / "run")
    values = json.loads((workdir / "config.json").read_text())
    values["data"]["source"] = config.data.source
    (workdir / "config.json").write_text(json.dumps(values))
    mine.write_text(text.read_text() + "\n" + text.read_text().split("\n\n")[7] + "\n")
    with pytest.raises(ConfigError, match=r"data\.source=.*: the text is not the one that"):
        run_train(config, workdir)
    assert checkpoints_of(workdir) == ["00000010", "00000020"]
    mine.write_text(text.read_text())  # the same text again, however new the file
    run_train(config, workdir)
    jax.tree.map(np.testing.assert_array_equal, state_of(workdir, 30), state_of(finished, 30))


def test_a_damaged_prepared_corpus_is_prepared_again(
    finished: Path, tiny, run_train, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = tiny(**{"data.cache_dir": str(tmp_path / "cache")})
    workdir = stopped_after(20, finished, tmp_path / "run")
    run_train(config, workdir)
    [shard] = (tmp_path / "cache").glob("*/train-00000.bin")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    again = stopped_after(20, finished, tmp_path / "again")
    caplog.clear()
    run_train(config, again)
    assert "train-00000.bin is damaged" in caplog.text
    assert_same_run(again, finished)


@pytest.mark.parametrize("rates", [{"optim.learning_rate": 999.0}, {"optim.name": "muon", "optim.muon_rate": 999.0}])
def test_a_step_that_is_not_finite_stops_the_run(tiny, run_train, tmp_path: Path, rates: dict[str, Any]):
    fields = rates | {"optim.warmup_steps": 0, "checkpoint.every_steps": 1}
    with pytest.raises(cli.Failure, match=r"step \d+|steps \d+") as caught:
        run_train(tiny(**fields), tmp_path / "run")
    assert "\n" not in str(caught.value)
    steps = [int(name) for name in checkpoints_of(tmp_path / "run")]
    for step in steps:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state_of(tmp_path / "run", step)["params"]))
    assert 1 <= len(steps) < 30
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_second_run_on_the_same_workdir_is_refused(finished: Path, tiny, run_train):
    with locked(finished), pytest.raises(ConfigError, match="in use by another run"):
        run_train(tiny(), finished)


@pytest.mark.parametrize(("objective", "judged"), [("mlm", True), ("electra", False), ("mcbert", False)])
def test_the_best_checkpoint(tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective, judged):
    """By held-out loss; but where a second network makes the task harder, the newest. Here losses rise."""
    let_losses_rise(OBJECTIVES[objective].headline, monkeypatch)
    questions = {"objective.mask_share": 1.0, "objective.random_share": 0.0} if objective != "mlm" else {}
    run_train(tiny(**{"objective.name": objective, "objective.divider": 1} | questions), tmp_path)
    assert load_run(tmp_path).step == (10 if judged else 30)


def test_short_sequences_first(tiny, run_train, tmp_path: Path):
    """Twelve of 30 steps of 16 x 8 pieces, then 8 x 16; stopped on either side of the border it ends bit for bit so."""
    fields = {"train.short_share": 0.4, "train.short_length": 8, "train.log_every": 1}
    config = tiny(**fields, **NOTES, **{"notes.capacity": 4, "checkpoint.every_steps": 5})
    run_train(config, tmp_path / "undisturbed")
    for kept in (5, 15):
        workdir = stopped_after(kept, tmp_path / "undisturbed", tmp_path / f"from-{kept}")
        run_train(config, workdir)
        assert_same_run(workdir, tmp_path / "undisturbed")
    # Lengthened, it is as if the border had lain later; what was spent stays spent.
    config.train.steps = 36
    run_train(config, tmp_path / "undisturbed")
    each = np.diff([line["total/flops"] for line in metrics.read(tmp_path / "undisturbed")], prepend=0)
    assert each.tolist() == [each[0]] * 12 + [each[-1]] * 24
    assert each[0] != each[-1]


def test_a_profile_of_some_steps(finished: Path, tiny, tmp_path: Path, command, run):
    workdir = stopped_after(10, finished, tmp_path / "run")
    done = run(command("train", "--workdir", workdir, "--profile=3"))
    assert done.code == 0, done.err
    [trace] = (workdir / "profile").glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(steps) == ["21", "22", "23"]

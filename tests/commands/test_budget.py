"""Runs whose steps follow from what they may cost."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.training import budget, metrics


def steps_of(workdir: Path) -> int:
    return json.loads((workdir / "config.json").read_text())["train"]["steps"]


def test_flops_are_spent_and_not_more(tiny, run_train, tmp_path: Path):
    allowed = 2e9
    run_train(tiny(**{"train.budget_flops": allowed, "eval.every": 0}), tmp_path)
    last = metrics.read(tmp_path)[-1]
    assert last["step"] == steps_of(tmp_path)
    assert last["total/flops"] <= allowed < last["total/flops"] * (1 + 1 / last["step"])
    assert last["train/learning_rate"] < 3e-3 / 5  # it fell with the budget's steps, not with train.steps


def test_flops_of_short_sequences_first(tiny, run_train, tmp_path: Path):
    """Both kinds of step are counted for what they are."""
    fields = {"train.budget_flops": 2e9, "train.short_share": 0.5, "train.short_length": 8, "train.log_every": 1}
    run_train(tiny(**fields, **{"eval.every": 0, "checkpoint.every_steps": 0}), tmp_path)
    spent = [0, *(line["total/flops"] for line in metrics.read(tmp_path))]
    each = [after - before for before, after in pairwise(spent)]
    half = round(len(each) / 2)
    assert len(set(each[:half])) == len(set(each[half:])) == 1
    assert each[0] < each[-1]  # attention sees half as far
    assert spent[-1] <= 2e9 < spent[-1] + each[-1]


def test_minutes_are_measured_once(tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(budget, "_LEAST_SECONDS", 0.1)
    fields = {"train.budget_minutes": 0.01, "optim.warmup_steps": 2, "eval.every": 0, "checkpoint.every_steps": 0}
    config = tiny(**fields)
    measured = budget._seconds_per_step

    def slow(*args) -> float:
        assert 1e-4 < measured(*args) < 1
        return 0.0999

    monkeypatch.setattr(budget, "_seconds_per_step", slow)
    run_train(config, tmp_path)
    assert steps_of(tmp_path) == 6
    monkeypatch.setattr(budget, "_seconds_per_step", lambda *_: pytest.fail("measured again"))
    run_train(config, tmp_path)
    run_train(tiny(**fields | {"train.budget_minutes": 0.02}), tmp_path)
    assert steps_of(tmp_path) == 12


def test_steps_are_timed_as_training_takes_them(tiny, run_train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A step is waited for once the next is sent off."""
    monkeypatch.setattr(budget, "_WARM_STEPS", 1)
    monkeypatch.setattr(budget, "_TIMED_STEPS", 4)
    monkeypatch.setattr(budget, "_LEAST_SECONDS", 0)
    events, put, wait = [], budget.sharding.put_batch, jax.block_until_ready

    def recorded_wait(metrics: Any) -> None:
        events.extend(["wait"] if metrics else [])
        wait(metrics)

    measured = budget._seconds_per_step

    def measure(*args: Any) -> float:
        with monkeypatch.context() as patch:
            patch.setattr(budget.sharding, "put_batch", lambda *args: (events.append("step"), put(*args))[1])
            patch.setattr(jax, "block_until_ready", recorded_wait)
            measured(*args)
        return 0.1

    monkeypatch.setattr(budget, "_seconds_per_step", measure)
    fields = {"train.budget_minutes": 0.01, "optim.warmup_steps": 2, "eval.every": 0, "checkpoint.every_steps": 0}
    run_train(tiny(**fields), tmp_path)
    assert events == ["step", "wait", "step", *["step", "wait"] * 3, "wait"]


def test_a_budget_that_a_warm_up_would_use_up(tiny, run_train, tmp_path: Path):
    """A rate that has hardly reached its peak when it must fall is no schedule."""
    fields = {"train.budget_flops": 2e9, "optim.warmup_steps": 1000, "eval.every": 0, "checkpoint.every_steps": 0}
    with pytest.raises(ConfigError, match=r"optim\.warmup_steps=1000: is more than half of the \d+ steps") as caught:
        run_train(tiny(**fields), tmp_path)
    [fewer] = re.findall(r"--config\.optim\.warmup_steps=(\d+)", str(caught.value))
    run_train(tiny(**fields | {"optim.warmup_steps": int(fewer)}), tmp_path)
    assert metrics.read(tmp_path)[-1]["train/learning_rate"] < 3e-3 / 5


def test_a_budget_below_one_step(tiny, run_train, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"train\.budget_flops=1: must be more than one step takes"):
        run_train(tiny(**{"train.budget_flops": 1.0}), tmp_path)


def test_one_budget_at_a_time(tiny):
    with pytest.raises(ConfigError, match=r"train\.budget_minutes"):
        tiny(**{"train.budget_flops": 1e9, "train.budget_minutes": 1.0})

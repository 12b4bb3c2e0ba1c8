"""The README's first command, at fewer steps and a smaller width: real English goes in, the loss falls."""

import sys
from pathlib import Path

import pytest

from jaxpretrain.training import metrics


@pytest.mark.slow
def test_loss_falls_on_the_default_corpus(run, tmp_path: Path):
    args = [
        sys.executable,
        "-m",
        "jaxpretrain.train",
        "--config",
        "configs/tupe.py",
        "--workdir",
        str(tmp_path / "run"),
    ]
    fields = {
        "train.steps": 60,
        "train.log_every": 10,
        "optim.warmup_steps": 10,
        "data.sequence_length": 64,
        "eval.examples": 64,
        "model.layers": 1,
    }
    done = run(args + [f"--config.{name}={value}" for name, value in fields.items()])
    assert done.code == 0, done.err
    losses = [line["train/loss"] for line in metrics.read(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.5
    assert "held-out mlm loss" in done.out
    assert "guessing by frequency alone" in done.out
    [question] = [line for line in done.out.splitlines() if "jaxpretrain.predict" in line]
    assert str(tmp_path / "run") in question
    answer = run(
        [sys.executable, "-m", "jaxpretrain.predict", "--workdir", str(tmp_path / "run"), "The [MASK] of a list."]
    )
    assert answer.code == 0, answer.err
    assert "%" in answer.out

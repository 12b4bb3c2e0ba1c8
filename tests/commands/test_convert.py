"""Models on their way in and out, by the command."""

import json
import shutil
from pathlib import Path

import pytest

PARITY = Path(__file__).parents[1] / "parity"


def test_a_run_becomes_a_folder_for_transformers(finished: Path, command, run, tmp_path: Path) -> None:
    done = run(command("convert", "--to_huggingface", finished, tmp_path / "out", "--step", 10))
    assert done.code == 0, done.err
    assert "BertForMaskedLM, opened by AutoModelForMaskedLM" in done.out
    assert "from step 10 of" in done.out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_size"] == 32
    card = (tmp_path / "out" / "README.md").read_text()
    assert "10 steps of 8 sequences: 1,280 tokens" in card
    assert "| mlm_loss |" in card  # what was measured at that step


def test_a_run_becomes_programs(finished: Path, command, run, tmp_path: Path) -> None:
    done = run(command("convert", "--to_stablehlo", finished, tmp_path / "out", "--step", 10))
    assert done.code == 0, done.err
    assert "out/embed.stablehlo" in done.out
    assert "from step 10 of" in done.out
    assert "Step 10 of the run" in (tmp_path / "out" / "README.md").read_text()
    assert "is not empty" in run(command("convert", "--to_stablehlo", finished, tmp_path / "out")).error()


def test_a_foreign_model_becomes_a_run(command, run, tmp_path: Path) -> None:
    shutil.copytree(PARITY / "hf_bert_mlm", tmp_path / "bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog"]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(pieces))
    done = run(command("convert", "--from_huggingface", tmp_path / "bert", tmp_path / "run"))
    assert done.code == 0, done.err
    assert "mlm, absolute, 3 x 32, 4 heads, 68 pieces" in done.out
    pytest.importorskip("tokenizers", reason="needs the library tokenizers, of pip install 'jaxpretrain[hf]'")
    done = run(command("predict", "--workdir", tmp_path / "run", "--json", "the [MASK]"))
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["masks"][0]) == 5


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ([], "give one of --to_huggingface RUN"),
        (["--from_huggingface", "x", "out", "--step", "3"], "--step: goes with --to_huggingface and --to_stablehlo"),
        (["--to_stablehlo", "x"], "give OUT_FOLDER after it, not 0 arguments"),
        (["--from_official", "x.pt", "out"], "give DICT and OUT_WORKDIR after it, not 1 arguments"),
        (["--from_huggingface", "/nowhere", "out"], "/nowhere/config.json: cannot be read"),
    ],
)
def test_a_wrong_command(args: list[str], part: str, command, run) -> None:
    assert part in run(command("convert", *args)).error()

"""Each notebook, executed from its first cell to its last at a size that takes seconds."""

import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra colab")
nbclient = pytest.importorskip("nbclient", reason="needs the extra colab")
pytest.importorskip("ipykernel", reason="needs the extra colab")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
SMALL = (
    "--config.data.sequence_length=32 --config.data.vocab_size=512 --config.model.layers=1 --config.model.hidden=32 "
    "--config.model.ffn=64 --config.optim.warmup_steps=5 --config.eval.examples=64 --config.eval.every=10 "
    "--config.train.log_every=10 --config.checkpoint.every_steps=10"
)
# What a test sets in place of the values in the cell tagged `parameters`.
PARAMETERS = {
    "pretrain_tupe": {"STEPS": 30, "SETTINGS": SMALL},
    "compare_methods": {"STEPS": 30, "SETTINGS": SMALL},
    "finetune_glue": {
        "STEPS": 30,
        "TASK": "tsv:{folder}/train.tsv,{folder}/dev.tsv",
        "SETTINGS": "--config.seeds=2 --config.epochs=1 --config.learning_rates='(1e-3,)' --config.max_length=16",
    },
    "notes_explorer": {"STEPS": 30, "SETTINGS": f"{SMALL} --config.notes.single_piece=true --config.notes.min_count=5"},
    "quiz": {"STEPS": 30, "SETTINGS": SMALL},
}
PICTURES = {"pretrain_tupe": 2, "compare_methods": 2, "finetune_glue": 1, "notes_explorer": 2, "quiz": 1}


def test_all_are_here():
    assert {path.stem for path in NOTEBOOKS} == set(PARAMETERS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stripped_and_addressed(path: Path):
    """No outputs in git; the badge and the clone name the one address of pyproject.toml, and the file itself."""
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    assert [cell.metadata.get("tags") for cell in book.cells if cell.metadata.get("tags")] == [["parameters"]]
    text = "\n".join(cell.source for cell in book.cells)
    assert f'REPOSITORY = "{REPOSITORY}"' in text
    name = REPOSITORY.removeprefix("https://github.com/")
    assert re.findall(r"colab\.research\.google\.com/github/([^)]+)\)", text) == [f"{name}/blob/main/colab/{path.name}"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    book = nbformat.read(path, as_version=4)
    [parameters] = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in PARAMETERS[path.stem].items():
        assert re.search(rf"^{name} = ", parameters.source, re.M), name
        value = value.format(folder=tmp_path) if isinstance(value, str) else value
        parameters.source += f"\n{name} = {value!r}"
    for name in ("train", "dev"):
        rows = [f"{'good fine' if i % 2 else 'bad awful'} number {i}\t{i % 2}" for i in range(64)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "error: " not in printed, printed  # a command that fails does not stop a notebook
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[path.stem]
    if folder := os.environ.get("JAXPRETRAIN_NOTEBOOKS_OUT"):  # to be looked at
        Path(folder).mkdir(parents=True, exist_ok=True)
        nbformat.write(book, Path(folder) / path.name)

"""A run as programs: another process, in which this package cannot be imported, gets our vectors and scores."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.data.tokenizer import CLS, PAD, SEP
from jaxpretrain.evaluation.trained import embed, load_run
from jaxpretrain.interop import serving
from jaxpretrain.interop.export import networks

RUNS = {
    "absolute": {},
    "relative": {"model__position": "relative", "model__segments": 2, "model__embedding": 24},
    "absolute_untied": {"model__position": "absolute_untied"},
    "electra": {"objective__name": "electra"},
    "electra-tupe_r": {"objective__name": "electra", "model__position": "tupe_r"},
    "mcbert-tupe_a": {"objective__name": "mcbert", "model__position": "tupe_a"},
}
SHAPES = ((3, 40, 5), (2, 9, 1))  # texts, tokens, positions: as long as the model, and another
ALONE = """
import sys
sys.modules |= dict.fromkeys(("jaxpretrain", "flax", "torch", "transformers"))  # importing them is an error now
import jax, jax.export, numpy as np

def program(folder, name):
    with open(f"{folder}/{name}.stablehlo", "rb") as file:
        return jax.jit(jax.export.deserialize(bytearray(file.read())).call)

for folder in sys.argv[1:]:
    weights, given, found = dict(np.load(f"{folder}/weights.npz")), np.load(f"{folder}.given.npz"), {}
    encode, embed, fill_mask = (program(folder, name) for name in ("encode", "embed", "fill_mask"))
    for i in range(2):
        tokens, positions = given[f"tokens{i}"], given[f"positions{i}"]
        found |= {f"encode{i}": encode(weights, tokens), f"embed{i}": embed(weights, tokens)}
        found[f"fill_mask{i}"] = fill_mask(weights, tokens, positions)
    np.savez(f"{folder}.found.npz", **found)
try:
    import jaxpretrain
except ImportError:
    print("alone")
"""


def alone(code: str, *args: object, folder: Path) -> str:
    """The output of a program in a process of its own, started in a folder."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_vectors_and_scores_without_this_package(make_run, tmp_path: Path) -> None:
    runs = {name: load_run(make_run(**fields)) for name, fields in RUNS.items()}
    rng = np.random.default_rng(1)
    given = {}
    for name, run in runs.items():
        serving.serve(run, tmp_path / name)
        for i, (texts, length, places) in enumerate(SHAPES):
            tokens = rng.integers(6, run.tokenizer.vocab_size, (texts, length), np.int32)
            tokens[:, 0], tokens[:, -1] = CLS, SEP
            tokens[0, length // 2 :] = PAD
            given[name, i] = tokens, rng.integers(0, length, (texts, places), np.int32)
        arrays = {f"{kind}{i}": given[name, i][k] for i in range(2) for k, kind in enumerate(("tokens", "positions"))}
        np.savez(tmp_path / f"{name}.given.npz", **arrays)
    assert alone(ALONE, *(tmp_path / name for name in RUNS), folder=tmp_path) == "alone\n"
    for name, run in runs.items():
        found = np.load(tmp_path / f"{name}.found.npz")
        for i in range(2):
            tokens, positions = given[name, i]
            vectors = np.asarray(run.encode(tokens))
            here = (tokens > SEP)[..., None]  # no [PAD], [CLS], [SEP]; there are no [UNK]s
            expected = {
                "encode": vectors,
                "embed": (vectors * here).sum(1) / here.sum(1),
                "fill_mask": np.asarray(jax.jit(run.objective.fill)(run.params, tokens, positions)),
            }
            for kind, values in expected.items():
                actual = found[f"{kind}{i}"]
                assert actual.dtype == np.float32
                np.testing.assert_allclose(actual, values, atol=1e-5, rtol=1e-5, err_msg=f"{name}: {kind}, {i}")
                assert np.abs(values).max() > 0.5  # noise large enough to tell


def test_the_example_of_the_folder(make_run, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the library tokenizers, of pip install 'jaxpretrain[hf]'")
    run = load_run(make_run(model__position="tupe_r"))
    serving.serve(run, tmp_path / "out")
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 10
    alone(
        f'import sys\nsys.modules["jaxpretrain"] = None\n{code}\nnp.save("vectors.npy", vectors)',
        folder=tmp_path / "out",
    )
    vectors = np.load(tmp_path / "out" / "vectors.npy")
    np.testing.assert_allclose(vectors, embed(run, ["One sentence.", "And another one."]), atol=1e-5)


def test_the_files(make_run, tmp_path: Path) -> None:
    programs = serving.serve(load_run(make_run(objective__name="electra", model__position="tupe_r")), tmp_path / "out")
    assert list(programs) == ["embed", "encode", "fill_mask"]
    names = {"README.md", "jaxpretrain.json", "tokenizer.json", "weights.npz"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {f"{name}.stablehlo" for name in programs}
    for name in programs:
        content = (tmp_path / "out" / f"{name}.stablehlo").read_bytes()
        assert b".py" not in content  # no files of the machine that wrote it
        exported = jax.export.deserialize(bytearray(content))
        assert {"cpu", "cuda", "tpu"} <= set(exported.platforms)
    weights = np.load(tmp_path / "out" / "weights.npz")
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert "encoder/embedder/tokens" in weights
    assert "filler/embedder/tokens" not in weights  # ELECTRA's networks share it


def test_what_is_too_long_is_refused(make_run, tmp_path: Path) -> None:
    serving.serve(load_run(make_run()), tmp_path / "out")
    exported = jax.export.deserialize(bytearray((tmp_path / "out" / "embed.stablehlo").read_bytes()))
    weights = dict(np.load(tmp_path / "out" / "weights.npz"))
    with pytest.raises(ValueError, match="shape"):
        exported.call(weights, np.full((1, 41), 9, np.int32))


def test_nothing_is_overwritten_and_nothing_is_left_half_done(make_run, tmp_path: Path, monkeypatch) -> None:
    run = load_run(make_run())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        serving.serve(run, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setattr(serving, "readme", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        serving.serve(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- ONNX, as docs/interchange.md makes it ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{}, {"model__position": "relative"}, {"model__position": "tupe_r", "objective__name": "electra"}],
    ids=["absolute", "relative", "electra-tupe_r"],
)
def test_onnx(exported, tmp_path: Path, fields: dict[str, str]) -> None:
    for library in ("torch", "transformers", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="needs what pip install 'jaxpretrain[onnx]' brings")
    run, folder = exported(**fields)
    page = (Path(__file__).parents[2] / "docs" / "interchange.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page[page.index("### ONNX") :], re.DOTALL)[:2]
    write, read = (block.replace("OUT_FOLDER", str(folder / networks(run)[0].folder)) for block in blocks)
    alone(write, folder=tmp_path)
    others = 'import sys\nsys.modules |= dict.fromkeys(("jaxpretrain", "jax", "torch", "transformers"))\n'
    alone(f'{others}{read}\nnp.save("vectors.npy", vectors)', folder=tmp_path)
    vectors = np.load(tmp_path / "vectors.npy")
    np.testing.assert_allclose(vectors, embed(run, ["One sentence.", "And another one."]), atol=1e-5)

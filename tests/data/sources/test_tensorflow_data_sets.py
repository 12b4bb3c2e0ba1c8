"""With real builders, written in ArrayRecord."""

import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.data import corpus
from jaxpretrain.data.corpus import documents, plan, resolve
from jaxpretrain.data.sources.source import Warnings
from jaxpretrain.data.sources.tensorflow_data_sets import library
from tests.data.conftest import read


def _write_data_set(folder: Path, name: str, features: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    tfds = library()

    def info(self: Any) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    builder = type(
        name,
        (tfds.core.GeneratorBasedBuilder,),
        {
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": info,
            "_split_generators": lambda self, manager: {
                "train": self._generate_examples(rows),
                "test": self._generate_examples(rows[:3]),
            },
            "_generate_examples": lambda self, some: enumerate(some),
            "__module__": __name__,
        },
    )
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tfds = library()
    folder = tmp_path_factory.mktemp("tfds")
    text = tfds.features.Text()
    rows = [f"the tale of ship {i}, très belle" for i in range(100)]
    _write_data_set(folder, "Tales", {"text": text, "title": text}, [{"text": r, "title": "no"} for r in rows])
    _write_data_set(folder, "Reviews", {"review": text, "stars": np.int64}, [{"review": r, "stars": 5} for r in rows])
    _write_data_set(folder, "Pairs", {"first": text, "second": text}, [{"first": r, "second": r} for r in rows])
    _write_data_set(folder, "Stars", {"stars": np.int64}, [{"stars": 5} for _ in rows])
    return folder


@pytest.fixture
def data_sets(tfds_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library().core.constants, "DATA_DIR", str(tfds_folder))  # the variable is read at import


@pytest.mark.parametrize("name", ["tales", "reviews", "tales@train", "tales:1.0.0"])
@pytest.mark.usefixtures("data_sets")
def test_tfds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    units = plan(resolve(f"tfds:{name}"), tmp_path, None)
    assert len(units) > 1
    found = [d for unit in units for d in documents(unit, Warnings())]
    assert sorted(found) == sorted(f"the tale of ship {i}, très belle" for i in range(100))


@pytest.mark.usefixtures("data_sets")
def test_tfds_splits_and_slices(tmp_path: Path):
    assert len(read("tfds:tales@test", tmp_path)) == 3
    assert len(read("tfds:tales@train[:10%]", tmp_path)) == 10
    assert len(read("tfds:tales@test+tfds:reviews@test", tmp_path)) == 6


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:tales@valid", r"tfds:tales@valid': split 'valid' is not one of .*train"),
        ("tfds:pairs", r"tfds:pairs': needs one text feature, or one named 'text'; it has first, second"),
        ("tfds:stars", r"tfds:stars': .* it has none"),
        ("tfds:no_such_data_set", r"tfds:no_such_data_set': .*not found"),
        ("tfds:huggingface:tales", r"tfds:huggingface:tales': it is of a namespace"),
    ],
)
@pytest.mark.usefixtures("data_sets")
def test_tfds_mistakes(source: str, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message) as caught:
        read(source, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="needs a missing apache_beam")
@pytest.mark.usefixtures("data_sets")
def test_a_missing_extra_is_named(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"wikipedia/20230601.en' .*apache_beam: pip install 'jaxpretrain\[wikipedia\]'"
    ):
        read("tfds:wikipedia/20230601.en", tmp_path)


@pytest.mark.usefixtures("data_sets")
def test_a_data_set_that_is_not_prepared_leaves_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    resolve("tfds:glue/cola")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["when it is found", "while it is read"])
def test_no_class_that_a_data_set_names_is_run(
    when: str, tfds_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nor where TFDS does not know the code of the data set, and has its files alone."""
    folder = tmp_path / "sets"
    shutil.copytree(tfds_folder / "tales", folder / "unknown")
    monkeypatch.setattr(library().core.constants, "DATA_DIR", str(folder))
    (tmp_path / "of_the_data_set.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    units = plan(resolve("tfds:unknown"), tmp_path, None)
    path = folder / "unknown/1.0.0/features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["text"]["pythonClassName"] = "of_the_data_set.Text"
    path.write_text(json.dumps(features))
    with pytest.raises(ConfigError, match=r"name the Python class 'of_the_data_set\.Text'"):
        next(documents(units[0], Warnings())) if when == "while it is read" else resolve("tfds:unknown")
    assert not (tmp_path / "was run").exists()

"""Runs without training: parameters that are all different, and a tokenizer of the text at hand."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpretrain.config import Config, validate
from jaxpretrain.data import text, tokenizer
from jaxpretrain.evaluation.trained import Trained, load_run
from jaxpretrain.interop.imported import write_run
from jaxpretrain.objectives import build

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Returns the length of the list; raises a ValueError if it is empty.",
    "In 1998 about 1,000,000 people (or so) read the Éditions françaises — “naïve” ones, too!",
    "Ελληνικά ΣΟΦΟΣ σοφός, русский текст, 日本語のテキスト, ﬁne ligatures and ½ fractions.",
    "aaa aaaa aaaaa hahaha hahahaha 0000 00000 snake_case_names __init__ www.example.org/a?b=c&d",
]
SMALL = {
    "data.sequence_length": 24,
    "model.hidden": 32,
    "model.heads": 4,
    "model.ffn": 48,
    "model.max_positions": 40,
    "model.relative_max_distance": 20,
    "model.relative_buckets": 16,
}


def configured(**fields: Any) -> Config:
    """A small config with some fields changed; `model__position` for `model.position`."""
    config = Config()
    for name, value in (SMALL | {name.replace("__", "."): value for name, value in fields.items()}).items():
        room, leaf = name.split(".")
        assert hasattr(getattr(config, room), leaf), name
        setattr(getattr(config, room), leaf, value)
    validate(config)
    return config


def train_tokenizer(folder: Path, kind: str, lowercase: bool, vocab_size: int = 300) -> tokenizer.Tokenizer:
    """On the sentences."""
    counts = Counter(word for line in SENTENCES for word in text.words(text.normalise(line, lowercase)))
    words = sorted((word, 7 * count) for word, count in counts.items())
    return tokenizer.train(words, folder, vocab_size=vocab_size, kind=kind, lowercase=lowercase)


@pytest.fixture(autouse=True, scope="session")
def own_code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies a model's code before it runs it: not into the user's cache. It never asks the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tokenizer.Tokenizer]:
    """`tokenizers("bpe", True)`: trained once a session."""
    known: dict[tuple[str, bool], tokenizer.Tokenizer] = {}

    def get(kind: str, lowercase: bool) -> tokenizer.Tokenizer:
        if (kind, lowercase) not in known:
            known[kind, lowercase] = train_tokenizer(tmp_path_factory.mktemp("tokenizer"), kind, lowercase)
        return known[kind, lowercase]

    return get


@pytest.fixture(scope="session")
def make_run(tokenizers, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_run(model__position="tupe_r")`: the folder of a run whose parameters are noise, biases and all."""

    def make(**fields: Any) -> Path:
        config = configured(**fields)
        words = tokenizers(config.data.tokenizer_type, config.data.lowercase)
        shapes = jax.eval_shape(build(config, words.vocab_size).init, jax.random.key(0))
        rng = np.random.default_rng(0)

        def noise(path: Any, leaf: Any) -> np.ndarray:
            around = 1.0 if path[-1].key == "scale" else 0.0
            return (around + rng.normal(0, 0.15, leaf.shape)).astype(np.float32)

        params = jax.tree_util.tree_map_with_path(noise, shapes)
        workdir = tmp_path_factory.mktemp("run") / "workdir"
        write_run(config, params, workdir)
        words.save(workdir)
        return workdir

    return make


@pytest.fixture(scope="session")
def exported(make_run, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Trained, Path]]:
    """`exported(objective__name="electra")`: a run and its folder for transformers."""
    from jaxpretrain.interop.export import export

    known: dict[str, tuple[Trained, Path]] = {}

    def get(**fields: Any) -> tuple[Trained, Path]:
        key = repr(sorted(fields.items()))
        if key not in known:
            workdir = make_run(**fields)
            run, folder = load_run(workdir), tmp_path_factory.mktemp("exported") / "folder"
            export(run, workdir, folder)
            known[key] = run, folder
        return known[key]

    return get

import random
from pathlib import Path

import pytest

from jaxpretrain.config import ConfigError, DataConfig, NotesConfig
from jaxpretrain.data.build import prepare
from jaxpretrain.data.corpus import documents, plan, resolve
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.data.sources.source import Warnings

WORDS = [
    "ship",
    "sea",
    "wind",
    "sail",
    "captain",
    "harbour",
    "island",
    "storm",
    "night",
    "morning",
    "light",
    "water",
    "stone",
    "river",
    "mountain",
    "letter",
    "friend",
    "house",
    "window",
    "garden",
    "bread",
    "table",
    "silver",
    "morning",
    "journey",
    "silence",
    "voice",
    "answer",
    "question",
    "reason",
    "matter",
]
NOTES = NotesConfig(min_count=10, max_count=320, single_piece=True)  # half of the words above


def paragraphs(count: int, seed: int = 0) -> list[str]:
    """Sentences of made-up English, no two alike."""
    rng = random.Random(seed)
    return [
        f"The {' and the '.join(rng.choices(WORDS, k=rng.randint(3, 30)))} of number {i}, said the {rng.choice(WORDS)}."
        for i in range(count)
    ]


def read(source: str, tmp_path: Path, warnings: Warnings | None = None) -> list[str]:
    """All documents of a source."""
    units = plan(resolve(source), tmp_path, None)
    return [document for unit in units for document in documents(unit, Warnings() if warnings is None else warnings)]


def mistake(source: str, tmp_path: Path) -> str:
    """The one line that a source which cannot be read is refused with."""
    with pytest.raises(ConfigError) as caught:
        read(source, tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 documents of two paragraphs."""
    lines = paragraphs(600)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join("\n".join(lines[i : i + 2]) for i in range(0, 600, 2)))
    return path


@pytest.fixture(scope="session")
def corpus(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    cache = tmp_path_factory.mktemp("cache")
    config = DataConfig(source=f"text:{text_file}", vocab_size=300, held_out=0.1, cache_dir=str(cache))
    return prepare(config, NOTES, progress=False)

"""What the studies share: training what is not trained yet, and reading what came of it."""

import importlib.metadata
import os
import platform
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SMALL = {  # fields of a config: a network and pieces for runs of seconds, on `made_up_text`
    "data.sequence_length": 16,
    "data.vocab_size": 200,
    "data.held_out": 0.1,
    "model.layers": 1,
    "model.hidden": 32,
    "model.ffn": 64,
}


def made_up_text(documents: int = 150) -> str:
    """Sentences whose words go together in pairs, so that there is something to learn."""
    rng = random.Random(0)
    words = ["".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)) for _ in range(60)]
    sentence = lambda: " ".join(f"{words[2 * i]} {words[2 * i + 1]}" for i in rng.choices(range(30), k=5))  # noqa: E731
    return "\n\n".join("\n".join(f"{sentence()}." for _ in range(4)) for _ in range(documents)) + "\n"


def train_missing(runs: Mapping[Path, Sequence[str]]) -> None:
    """Trains each workdir's run, by its arguments of `jaxpretrain.train`, unless it is done; may be stopped at will."""
    for workdir, arguments in runs.items():
        if not (workdir / "DONE").exists():
            subprocess.run(
                [sys.executable, "-m", "jaxpretrain.train", *arguments, "--workdir", str(workdir)], check=True
            )


def machine() -> str:
    """Cores and versions, a phrase."""
    version = importlib.metadata.version("jax")
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}, jax {version}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def write_record(folder: Path, title: str, about: str, body: str, files: Mapping[str, bytes | str]) -> None:
    """Writes README.md and the files beside it, and prints the page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = f"# {title}\n\n{about}\n\n{body}\n"
    (folder / "README.md").write_text(page)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    print(page)

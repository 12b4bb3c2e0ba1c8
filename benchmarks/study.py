"""What the studies share: training what is not trained yet, and reading what came of it."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


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

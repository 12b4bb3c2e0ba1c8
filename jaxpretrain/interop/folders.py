"""Folders that are written whole or not at all."""

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpretrain.config import ConfigError
from jaxpretrain.training.storage import is_local


@contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` at the end and vanishes if something fails.

    Where `folder` is there already, empty, it is filled at the end, file by file: a shell may stand in it, or it may be
    another disk's.

    Raises:
        ConfigError: `folder` holds something, or lies in a bucket.
    """
    if not is_local(folder):
        raise ConfigError(f"{folder}: give a folder on this machine, and copy it to the bucket")
    folder = Path(folder).expanduser().resolve()  # "." has no name, and nothing can be renamed to a link
    there = folder.exists()
    if there and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty; give a new folder")
    partial = (folder if there else folder.parent) / f".{folder.name}.{secrets.token_hex(4)}"
    partial.mkdir(parents=True)
    try:
        yield partial
        if there:
            for path in partial.iterdir():
                path.rename(folder / path.name)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes an object, characters as they are."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

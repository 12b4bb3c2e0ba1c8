"""Files that are there whole or not at all, on disks and in buckets (`gs://`)."""

import os

from etils import epath


def is_local(path: epath.PathLike) -> bool:
    """Whether it lies on a file system: buckets have neither locks nor a way to append."""
    return "://" not in os.fspath(path)


def write_whole(path: epath.PathLike, data: bytes) -> None:
    """Gives a file its contents in one go: whoever reads it, and whatever happens, finds the old or the new ones.

    Raises:
        OSError: naming the file.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):
        path.write_bytes(data)  # an object appears when it is complete
        return
    temporary = f"{os.fspath(path)}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error

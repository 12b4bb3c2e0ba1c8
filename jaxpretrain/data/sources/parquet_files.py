"""`parquet:GLOB[#COLUMN]`: Parquet files, a document a row, of which only the column of the text is read."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources import columns, files
from jaxpretrain.data.sources.source import Part, Warnings, split_off

_BATCH = 256  # rows; the longest documents have a megabyte or more


@dataclass(frozen=True)
class RowGroups:
    """Row groups of a Parquet file, from `start` to before `end`."""

    path: str
    column: str
    start: int
    end: int
    size: int

    def documents(self, warnings: Warnings) -> Iterator[str]:
        """One per row, or more if it is too long; one that is null or blank is skipped and counted."""
        groups = list(range(self.start, self.end))
        with _opened(self.path) as file:
            for batch in file.iter_batches(_BATCH, row_groups=groups, columns=[self.column], use_threads=False):
                yield from columns.documents(batch.column(0), self.column, self.path, warnings)


def resolve(value: str) -> Part:
    """Finds the files.

    Raises:
        ConfigError: when there are none.
    """
    return files.find("parquet", value, split_off(value, "#")[0])


def pieces(part: Part, unit_bytes: int) -> Iterator[RowGroups]:
    """Cuts the files between row groups, near every `unit_bytes` of what they hold.

    Raises:
        ConfigError: when a file is damaged or has no such column.
    """
    for path in part.files:
        with _opened(path) as file:
            column = columns.choose(split_off(part.value, "#")[1], file.schema_arrow, f"data.source: {path}")
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            start = size = 0
            for end, group in enumerate(groups, 1):
                size += group.total_byte_size  # all columns: to ask for one in a damaged file may end the process
                if size >= unit_bytes or end == len(groups):
                    yield RowGroups(path, column, start, end, size)
                    start, size = end, 0


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """An open Parquet file; what goes wrong with it becomes one line."""
    import pyarrow as pa  # slow to import, and few runs need it
    import pyarrow.parquet as pq

    try:
        # With a buffer, pages are read as they are needed, not whole row groups.
        with (
            files.opened(path, lambda: open(path, "rb")) as file,
            pq.ParquetFile(file, buffer_size=files.BLOCK) as parquet,
        ):
            yield parquet
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"data.source: {path} is damaged, or not a Parquet file: {reason}") from error

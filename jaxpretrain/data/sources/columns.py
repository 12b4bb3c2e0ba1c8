"""Columns of text in Arrow tables: which one is meant, and its documents."""

from collections.abc import Iterator
from typing import Any

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources.source import Warnings, cut_document, printable


def choose(wanted: str, schema: Any, where: str) -> str:
    """The column of an Arrow schema to read: the one wanted, else `text`, else the only one of strings.

    Raises:
        ConfigError: when there is none, beginning with `where`.
    """
    import pyarrow as pa

    texts = [field.name for field in schema if _is_text(field.type, pa.types)]
    column = wanted or ("text" if "text" in texts or len(texts) != 1 else texts[0])
    if column not in texts:
        choices = (
            f"there are {', '.join(map(printable, texts))}: name one, #COLUMN"
            if texts
            else "it has no column of strings at all"
        )
        raise ConfigError(f"{where} has no column {column!r} of strings; {choices}")
    return column


def _is_text(type_: Any, types: Any) -> bool:
    if types.is_dictionary(type_):
        type_ = type_.value_type
    return types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)


def documents(values: Any, column: str, where: str, warnings: Warnings) -> Iterator[str]:
    """The documents in an Arrow array of strings; one that is null or blank is skipped and counted."""
    for text in values.to_pylist():
        if text and not text.isspace():
            yield from cut_document(text)
        else:
            warnings[where, f"rows without text in {column!r} were skipped"] += 1

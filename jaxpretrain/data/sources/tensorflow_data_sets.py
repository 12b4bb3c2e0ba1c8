"""`tfds:NAME[@SPLIT]`: TensorFlow Datasets, through ArrayRecord and without TensorFlow."""

import contextlib
import functools
import importlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxpretrain.config import ConfigError, first_line
from jaxpretrain.data.sources.source import Part, Warnings, cut_document


@dataclass(frozen=True)
class Records:
    """Records of a prepared split."""

    folder: str
    split: str
    feature: str
    start: int
    end: int
    size: int

    def documents(self, warnings: Warnings) -> Iterator[str]:
        """One per record, or more if it is too long."""
        builder: Any = library().builder_from_directory(self.folder)
        records = builder.as_data_source(split=self.split)
        for index in range(self.start, self.end):
            value = records[index][self.feature]
            yield from cut_document(as_text(value))


def as_text(value: bytes | str) -> str:
    """A record's text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def download(builder: Any, name: str, instead: str = "") -> None:
    """Prepares a data set if TFDS has not yet.

    Args:
        builder: of the data set.
        name: what the error calls it.
        instead: another way, for the end of the error.

    Raises:
        ConfigError: it cannot be downloaded.
    """
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    if not builder.is_prepared():
        try:
            builder.download_and_prepare()
        except (OSError, DownloadError, NonMatchingChecksumError) as error:  # no network is an OSError
            raise ConfigError(f"{name} cannot be downloaded ({first_line(error)}){instead}") from error


def resolve(value: str) -> Part:
    """Finds the data set.

    Raises:
        ConfigError: when there is none of this name.
    """
    name, split = _name_and_split(value)
    return Part("tfds", value, (_builder(name).info.full_name, split))


def pieces(part: Part, unit_bytes: int) -> Iterator[Records]:
    """Cuts the split into ranges of records; the data set is prepared if TFDS has not yet.

    Raises:
        ConfigError: when it cannot be prepared, has no such split or no text.
    """
    name, split = _name_and_split(part.value)
    builder = _builder(name)
    _prepare_data_set(builder, name)
    feature = _text_feature(builder, name)
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        choices = ", ".join(builder.info.splits)
        raise ConfigError(f"data.source='tfds:{part.value}': split {split!r} is not one of {choices}") from error
    total, size = info.num_examples, max(info.num_bytes, 1)
    step = max(1, total * unit_bytes // size)
    for start in range(0, total, step):
        end = min(total, start + step)
        yield Records(str(builder.data_dir), split, feature, start, end, size * (end - start) // total)


def _name_and_split(value: str) -> tuple[str, str]:
    name, _, split = value.partition("@")
    return name, split or "train"


@functools.cache
def library() -> Any:
    """TensorFlow Datasets, held to its own classes: those that a data set's files name would be imported, and so run.

    It does not look into its bucket either, which is closed: each look would leave a temporary folder. Slow to import,
    and few runs need it.
    """
    import tensorflow_datasets as tfds

    connector: Any = tfds.features.FeatureConnector
    found = connector.cls_from_name

    def of_library(name: str) -> Any:
        if not name.startswith("tensorflow_datasets."):
            raise ConfigError(f"the data set's files name the Python class {name!r}; only TFDS's own are run")
        return found(name)

    connector.cls_from_name = staticmethod(of_library)
    info: Any = tfds.core.DatasetInfo
    info.initialize_from_bucket = lambda self: None
    return tfds


def _builder(name: str) -> Any:
    """The builder of a data set.

    Raises:
        ConfigError: when there is none of this name.
    """
    tfds = library()
    top = re.split(r"[/:]", name)[0]
    for room in ("text", "translate", "question_answering", "summarization"):
        # Builders of the older kind are found only after their module was imported.
        try:
            importlib.import_module(f"tensorflow_datasets.{room}.{top}")
        except ModuleNotFoundError:
            continue
    try:
        if tfds.core.naming.parse_builder_name_kwargs(name)[0].namespace:
            raise ConfigError("it is of a namespace, whose code would be fetched and run")
        with contextlib.suppress(tfds.core.DatasetNotFoundError):
            return tfds.builder(name, file_format="array_record", try_gcs=False)
        return tfds.builder(name, try_gcs=False)  # one whose code is elsewhere: read from its prepared files
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"data.source='tfds:{name}': {first_line(error)}") from error


def _prepare_data_set(builder: Any, name: str) -> None:
    if builder.is_prepared():
        return
    if isinstance(builder, library().core.BeamBasedBuilder):
        # Asked before the download: the builder itself would find out hours later.
        for module in ("apache_beam", "mwparserfromhell"):
            if not importlib.util.find_spec(module):
                raise ConfigError(
                    f"data.source='tfds:{name}' must be generated first, and that needs {module}: "
                    "pip install 'jaxpretrain[wikipedia]'"
                )
    try:
        download(builder, f"data.source='tfds:{name}'")
    except ImportError as error:
        raise ConfigError(f"data.source='tfds:{name}' cannot be generated: {first_line(error)}") from error


def _text_feature(builder: Any, name: str) -> str:
    texts = [key for key, feature in builder.info.features.items() if isinstance(feature, library().features.Text)]
    if "text" in texts:
        return "text"
    if len(texts) != 1:
        choices = ", ".join(texts) or "none"
        raise ConfigError(f"data.source='tfds:{name}': needs one text feature, or one named 'text'; it has {choices}")
    return texts[0]

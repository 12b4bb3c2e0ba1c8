"""`hf:NAME[/CONFIG][@SPLIT][#COLUMN]`: data sets of the Hugging Face hub, or of a folder in its layout, streamed."""

import contextlib
import glob
import importlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources import columns, files
from jaxpretrain.data.sources.source import Part, Warnings, split_off

_BATCH = 256  # rows
_MOST_PIECES = 256
_LETTING_GO = 0.1  # seconds


@dataclass(frozen=True)
class Shards:
    """Some shards of a stream. It travels itself: opening it anew would list the files of the data set again."""

    stream: Any
    column: str
    source: str  # as the user wrote it
    size: int

    def documents(self, warnings: Warnings) -> Iterator[str]:
        """One per row, or more if it is too long; one that is null or blank is skipped and counted."""
        with _one_line(self.source):
            for table in self.stream.iter(batch_size=_BATCH):
                yield from columns.documents(table.column(self.column), self.column, self.source, warnings)
        # Arrow's threads let go of a file after its last row, and abort a process that ends first (apache/arrow#45214).
        time.sleep(_LETTING_GO)


def resolve(value: str) -> Part:
    """Finds the folder, or asks the hub for the newest commit of the data set.

    Raises:
        ConfigError: when there is no such folder or data set, the hub cannot be reached, or `datasets` is missing.
    """
    source = f"hf:{value}"
    _library("datasets", source)
    name, _, _ = _parse(value)
    if not _is_folder(name):
        return Part("hf", value, _commit(source, name))
    if not os.path.isdir(os.path.expanduser(name)):
        raise ConfigError(f"data.source={source!r}: {name} is not a folder (jsonl:GLOB and parquet:GLOB take files)")
    return files.find("hf", value, f"{glob.escape(name)}/**")


def pieces(part: Part, unit_bytes: int) -> Iterator[Shards]:
    """Opens the stream and shares out its shards.

    Raises:
        ConfigError: when it cannot be opened, has no such config, split or column.
    """
    source = f"hf:{part.value}"
    datasets = _library("datasets", source)
    name, split, wanted = _parse(part.value)
    with _one_line(source):
        if _is_folder(name):
            path = os.path.abspath(os.path.expanduser(name))
            if Path(path, "dataset_dict.json").exists() or Path(path, "state.json").exists():
                raise ConfigError(f"data.source={source!r} was written by save_to_disk; write it with to_parquet")
            builder = datasets.load_dataset_builder(path)
        else:
            repository, config, commit = part.identity
            path = f"hf://datasets/{repository}"  # never a folder of that name
            builder = datasets.load_dataset_builder(path, config or None, revision=commit)
        stream = builder.as_streaming_dataset(split)
        column = columns.choose(wanted, _schema(stream), f"data.source={source!r}")
        if hasattr(builder.config, "columns"):  # Parquet: the others are not even fetched
            builder.config.columns = [column]
            stream = builder.as_streaming_dataset(split)
        stream = stream.select_columns(column).with_format("arrow")
        count = min(stream.num_shards, _MOST_PIECES)
        info = (builder.info.splits or {}).get(split)
        total = sum(map(files.text_size, part.files)) or (info and info.num_bytes) or count * unit_bytes
        for index in range(count):
            yield Shards(stream.shard(count, index), column, source, total // count)


def _parse(value: str) -> tuple[str, str, str]:
    """Name, split and column."""
    rest, column = split_off(value, "#")
    name, split = split_off(rest, "@")
    return name, split or "train", column


def _is_folder(name: str) -> bool:
    return name.startswith((".", "/", "~"))


def _library(name: str, source: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"data.source={source!r} needs the library datasets: pip install 'jaxpretrain[hf]'"
        ) from error


def _schema(stream: Any) -> Any:
    """Of the stream's features, or of its first row where nothing describes them."""
    if stream.features:
        return stream.features.arrow_schema
    for table in stream.with_format("arrow").iter(batch_size=1):
        return table.schema
    return ()


def _readings(name: str) -> list[tuple[str, str]]:
    """What may be meant: repository and config."""
    match name.split("/"):
        case [_]:
            return [(name, "")]
        case [first, second]:
            return [(name, ""), (first, second)]
        case [user, repository, config]:
            return [(f"{user}/{repository}", config)]
    return []


def _commit(source: str, name: str) -> tuple[str, str, str]:
    """Repository, config and the newest commit; without a network, the one that was newest when it was last asked for.

    Raises:
        ConfigError: when no reading of the name is a data set on the hub, or the hub cannot be reached.
    """
    hub, errors = _library("huggingface_hub", source), _library("huggingface_hub.errors", source)
    unreachable = None
    for repository, config in _readings(name):
        offline = unreachable is not None  # one wait for the network is enough
        try:
            if "/" not in repository and not offline:  # an old name, without its user
                repository = hub.HfApi().dataset_info(repository).id
            # The card is small and loading wants it anyway; its folder in the hub's cache is named by the commit.
            card = hub.hf_hub_download(repository, "README.md", repo_type="dataset", local_files_only=offline)
            return repository, config, Path(card).parent.name
        except errors.LocalEntryNotFoundError as error:
            unreachable = error
        except errors.EntryNotFoundError:  # it has none
            with _one_line(source):
                return repository, config, hub.HfApi().dataset_info(repository).sha
        except errors.GatedRepoError as error:
            raise ConfigError(
                f"data.source={source!r}: its owner grants access, at https://huggingface.co/datasets/{repository}; "
                "then log in with `hf auth login`"
            ) from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            continue
        except (OSError, errors.HTTPError) as error:
            unreachable = error
    if unreachable:
        raise ConfigError(
            f"data.source={source!r}: the Hugging Face hub cannot be reached, and this data set was not read before"
        ) from unreachable
    raise ConfigError(
        f"data.source={source!r}: no such data set on the Hugging Face hub, or a private one "
        "(`hf auth login` shows it yours; a folder is written ./NAME)"
    )


@contextlib.contextmanager
def _one_line(source: str) -> Iterator[None]:
    """What the libraries say goes wrong, in one line."""
    import pyarrow as pa

    datasets, errors, yaml = (_library(name, source) for name in ("datasets", "huggingface_hub.errors", "yaml"))
    try:
        yield
    except ConfigError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
        pa.ArrowException,
        yaml.YAMLError,
        datasets.exceptions.DatasetsError,
        errors.HTTPError,
    ) as error:
        raise ConfigError(f"data.source={source!r}: {' '.join(str(error).split())[:400]}") from error

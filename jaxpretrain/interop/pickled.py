"""What PyTorch saved (`.pt`, `.bin`), read without PyTorch and without running anything that the file asks for.

Such a file is a pickle, which can name any function of any module and have it called. This reader knows the few names
that tensors are made of; a file that names another is refused. What it gives is dicts, lists, numbers, strings and
numpy arrays.
"""

import math
import os
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources.files import check_file
from jaxpretrain.data.sources.source import printable

DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# Of a training run's clocks, settings and random states nothing is needed: their objects become empty ones.
IGNORED = ("fairseq.", "numpy.", "_codecs.", "torch.device", "torch.float", "torch.long")
OLD_MAGIC, OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files written before PyTorch 1.6

# Of the pickle format, what PyTorch does not write: buffers outside the file, or made as long as it says before a byte
# of them is read.
UNUSED = (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)

MOST_NAMES = 8  # of one storage, about: arrays may be as many times larger than the file, through names for the same

Bytes = Callable[["_Storage"], np.ndarray]  # a storage's content


def _load_list(length: int) -> Callable[[Any], None]:
    """What reads a list of the last `length` values of the stack."""

    def load(reader: Any) -> None:
        reader.stack[-length:] = [reader.stack[-length:]]

    return load


_READERS = {code: f for code, f in pickle._Unpickler.dispatch.items() if bytes([code]) not in UNUSED}
# Tuples become lists, which cannot be keys: to hash forty tuples that each hold the one before twice takes for ever.
_READERS |= {pickle.EMPTY_TUPLE[0]: _READERS[pickle.EMPTY_LIST[0]], pickle.TUPLE[0]: _READERS[pickle.LIST[0]]}
_READERS |= {code[0]: _load_list(i) for i, code in enumerate((pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), 1)}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Python's own reader, not the one in C, which takes as much memory as a file says that it needs."""

    dispatch: ClassVar = _READERS


class _Refused(Exception):
    """A name that no tensor needs."""


# What a pickle gets hold of, it can change where Python lets it: these have no attributes that can be set.


class _Storage(NamedTuple):
    """A run of numbers in the file."""

    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """A view of a storage; read only where it is asked for."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: str | Path, *parts: str) -> Any:
    """The content of a file, or those entries of the dict that it holds.

    Args:
        path: written by `torch.save`, in the format of any version.
        parts: entries; only their arrays are read.

    Raises:
        ConfigError: the file cannot be read, lacks an entry, or asks for what this reader does not do.
    """
    path = Path(os.path.expanduser(path))
    try:
        check_file(path)
        with path.open("rb") as file:
            content, numbers = _read_zip(file) if zipfile.is_zipfile(path) else _read_old(file)
            if parts:
                for part in parts:
                    if not isinstance(content, dict) or part not in content:
                        raise ConfigError(f"{path}: holds no {part!r}")
                content = {part: content[part] for part in parts}
            return _arrays(content, numbers, MOST_NAMES * path.stat().st_size)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _Refused as error:
        raise ConfigError(f"{path}: refused, it asks for {error}, which no tensor needs") from error
    # All that a damaged pickle or archive makes of it; nothing else runs in the block above.
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        struct.error,
        OverflowError,
        RuntimeError,
        MemoryError,
    ) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: is damaged, or was not written by torch.save") from error


def _read_zip(file: IO[bytes]) -> tuple[Any, Bytes]:
    """The format since PyTorch 1.6: an archive with the pickle and a file per storage."""
    archive = zipfile.ZipFile(file)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise ValueError  # PyTorch compresses nothing; a small file must not unfold to a large one
    names = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(names) != 1:
        raise ValueError
    folder = names[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError

    def numbers(storage: _Storage) -> np.ndarray:
        return np.frombuffer(archive.read(f"{folder}data/{storage.key}"), storage.dtype, storage.length)

    with archive.open(names[0]) as stream:
        return _unpickler(stream).load(), numbers


def _read_old(file: IO[bytes]) -> tuple[Any, Bytes]:
    """The format before: pickles one after another, then the storages."""
    if _unpickler(file).load() != OLD_MAGIC or _unpickler(file).load() != OLD_VERSION:
        raise ValueError
    if not _unpickler(file).load()["little_endian"]:
        raise ValueError
    size = os.fstat(file.fileno()).st_size
    storages: dict[str, _Storage] = {}
    content = _unpickler(file, storages).load()
    places: dict[str, int] = {}
    for key in _unpickler(file).load():
        [count] = struct.unpack("<q", file.read(8))
        if key not in storages or count != storages[key].length:
            raise ValueError
        places[key] = file.tell()
        if file.seek(count * storages[key].dtype.itemsize, 1) > size:
            raise ValueError

    def numbers(storage: _Storage) -> np.ndarray:
        file.seek(places[storage.key])
        return np.frombuffer(file.read(storage.length * storage.dtype.itemsize), storage.dtype, storage.length)

    return content, numbers


def _unpickler(file: IO[bytes], storages: dict[str, _Storage] | None = None) -> _Unpickler:
    """A reader of one pickle; it notes the storages it meets.

    The classes and functions that a pickle gets are made anew for each: it could set attributes of theirs.
    """

    class Ignored:
        """Takes everything and keeps nothing."""

        def __init__(self, *_: Any) -> None: ...

        def __setstate__(self, _: Any) -> None: ...

        def __setitem__(self, *_: Any) -> None: ...

        def append(self, _: Any) -> None: ...

        def extend(self, _: Any) -> None: ...

    class Arguments(Namespace):
        """fairseq keeps the command line of a run."""

    def tensor(storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise ValueError
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))

    def parameter(data: Any, *_: Any) -> Any:
        return data

    known: dict[str, Any] = {
        "collections.OrderedDict": OrderedDict,
        "argparse.Namespace": Arguments,
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": parameter,
        "torch.Size": lambda sizes=(): list(sizes),
    }

    class Unpickler(_Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if module == "torch" and name in DTYPES:
                return name  # not the type: a pickle could change it for the whole process
            if full in known:
                return known[full]
            if full.startswith(IGNORED):
                return Ignored
            raise _Refused(printable(full))

        def persistent_load(self, pid: Any) -> _Storage:
            kind, dtype, key, _, count, *view = pid
            if kind != "storage" or not isinstance(key, str) or any(view):
                raise ValueError
            storage = _Storage(key, DTYPES[dtype], int(count))
            if storages is not None:
                storages[storage.key] = storage
            return storage

    return Unpickler(file, encoding="utf-8")


def _arrays(content: Any, numbers: Bytes, limit: int) -> Any:
    """The content with arrays for tensors, and dicts for what was a command line.

    What the content holds in several places is made once: lists that each name the one before twice stay small.
    """
    made: dict[int, Any] = {}
    size = 0

    def make(value: Any) -> Any:
        if id(value) not in made:
            made[id(value)] = new(value)
        return made[id(value)]

    def new(value: Any) -> Any:
        nonlocal size
        if isinstance(value, _Tensor):
            array = _array(value, numbers(value.storage))
            size += array.nbytes
            if size > limit:
                raise ValueError
            return array
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, dict):
            return {key: make(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [make(entry) for entry in value]
        return value

    return make(content)


def _array(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """A copy of the view, which must lie inside its storage."""
    shape, strides = tensor.shape, tensor.strides
    if len(shape) != len(strides) or min((*shape, *strides, tensor.offset), default=0) < 0:
        raise ValueError
    size = math.prod(shape)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if size > len(numbers) or (size and last >= len(numbers)):
        raise ValueError
    if not size:
        return np.zeros(shape, numbers.dtype)
    steps = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], shape, steps).copy()

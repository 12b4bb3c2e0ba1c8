"""PyTorch's files without PyTorch: arrays come out, and nothing that a file asks for is run."""

import argparse
import contextlib
import io
import os
import pickle
import random
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.interop import pickled

REASON = "needs PyTorch, which pip install 'jaxpretrain[hf]' brings"
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before-1.6"])


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason=REASON)


def message(path: Path, *parts: str) -> str:
    with pytest.raises(ConfigError) as error:
        pickled.read(path, *parts)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@FORMATS
def test_arrays_of_all_kinds(torch, tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = OrderedDict(
        plain=base,
        view=base[1:3, ::2],
        transposed=base.T,
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(base + 1),
        half=base.half(),
        brain=base.bfloat16(),
        double=base.double(),
        flags=base > 3,
        **{f"int{kind.itemsize}": base.to(kind) for kind in (torch.int8, torch.int16, torch.int32, torch.int64)},
        byte=base.to(torch.uint8),
    )
    torch.save({"model": tensors, "step": 7}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = pickled.read(tmp_path / "x.pt")
    assert found["step"] == 7
    assert list(found["model"]) == list(tensors)
    for name, tensor in tensors.items():
        array = found["model"][name]
        assert array.shape == tuple(tensor.shape), name
        assert array.flags.c_contiguous
        assert array.flags.owndata or array.base is None
        assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(np.float64), tensor.detach().double().numpy())


@FORMATS
def test_what_fairseq_keeps_besides(torch, tmp_path: Path, monkeypatch, zipped: bool) -> None:
    """Its own objects become empty ones, whatever they are; only what is asked for is read."""
    module = types.ModuleType("fairseq.meters")
    module.Meter = Meter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.meters", module)
    monkeypatch.setattr(Meter, "__module__", "fairseq.meters")
    args = argparse.Namespace(encoder_attention_heads=4, data="x")
    state = {
        "args": args,
        "model": {"w": torch.ones(2)},
        "extra_state": {"meter": Meter(), "val_loss": np.float64(3.0), "rng": np.arange(3)},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(2)}}, "device": torch.device("cpu")},
        "dtype": torch.float32,
    }
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = pickled.read(tmp_path / "x.pt", "args", "model")
    assert found["args"] == vars(args)
    np.testing.assert_array_equal(found["model"]["w"], np.ones(2))
    assert "holds no 'weights'" in message(tmp_path / "x.pt", "weights")


class Meter:
    """Stands for an object of fairseq's, whose class is not there when the file is read."""


def archive(path: Path, content: bytes, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", content)
        for name, data in files.items():
            file.writestr(f"a/data/{name.removeprefix('s')}", data)
    return path


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (os.system, ("touch {}",)),
        (eval, ("open('{}', 'w')",)),
        (exec, ("open('{}', 'w')",)),
        (open, ("{}", "w")),
        (getattr, ("x", "upper")),
        (__import__, ("antigravity",)),
        (os.mkdir, ("{}",)),
    ],
)
def test_a_hostile_file_is_refused(tmp_path: Path, function: Any, args: tuple) -> None:
    trace = tmp_path / "trace"
    filled = [arg.format(trace) if isinstance(arg, str) else arg for arg in args]
    bad = pickle.dumps({"model": Call(function, *filled)}, 2)
    assert "refused, it asks for" in message(archive(tmp_path / "x.pt", bad))
    old = pickle.dumps(pickled.OLD_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + bad
    (tmp_path / "old.pt").write_bytes(old)
    assert "refused, it asks for" in message(tmp_path / "old.pt")
    assert not trace.exists()


def test_the_refusal_names_the_function(tmp_path: Path) -> None:
    bad = pickle.dumps(Call(os.system, "true"), 2)
    assert "posix.system, which no tensor needs" in message(archive(tmp_path / "x.pt", bad))


def test_a_name_inside_a_known_module_is_refused(tmp_path: Path) -> None:
    for name in (b"ctorch.serialization\nload\n.", b"ctorch\nload\n.", b"ccollections\nabc\n.", b"cargparse\n_os\n."):
        assert "refused" in message(archive(tmp_path / "x.pt", name))


def tensor_pickle(storage: tuple, offset: int, shape: tuple, strides: tuple) -> bytes:
    """A pickle of one tensor, whatever its numbers say."""
    stream = io.BytesIO()

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.pid if isinstance(obj, Stored) else None

        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, Global):
                self.write(b"c" + obj.name.encode() + b"\n")
            else:
                super().save(obj, save_persistent_id)

    pickler = Pickler(stream, 2)
    pickler.write(b"\x80\x02")
    pickler.save(Global("torch._utils\n_rebuild_tensor_v2"))
    pickler.save((Stored(("storage", Global("torch\nFloatStorage"), *storage)), offset, shape, strides, False))
    pickler.write(b"R.")
    return stream.getvalue()


class Global:
    """A name in a pickle."""

    def __init__(self, name: str):
        self.name = name


class Stored:
    """A storage in a pickle."""

    def __init__(self, pid: tuple):
        self.pid = pid


def a_tensor(folder: Path) -> Path:
    content = tensor_pickle(("0", "cpu", 6), 1, (2, 2), (3, 1))
    return archive(folder / "tensor.pt", content, s0=np.arange(6, dtype=np.float32).tobytes())


def test_a_tensor_by_hand(tmp_path: Path) -> None:
    """Without PyTorch."""
    np.testing.assert_array_equal(pickled.read(a_tensor(tmp_path)), [[1, 2], [4, 5]])


@pytest.mark.parametrize(
    ("storage", "offset", "shape", "strides"),
    [
        (("0", "cpu", 6), 3, (2, 2), (3, 1)),  # ends behind the storage
        (("0", "cpu", 6), -1, (2,), (1,)),
        (("0", "cpu", 6), 0, (2,), (-1,)),
        (("0", "cpu", 6), 0, (10**12,), (0,)),
        (("0", "cpu", 10**12), 0, (2,), (1,)),
        (("0", "cpu", 6), 0, (2, 2), (1,)),
        (("1", "cpu", 6), 0, (2,), (1,)),
        (("../../etc/passwd", "cpu", 6), 0, (2,), (1,)),
    ],
)
def test_numbers_that_point_elsewhere_are_damage(tmp_path: Path, storage, offset, shape, strides) -> None:
    content = tensor_pickle(storage, offset, shape, strides)
    path = archive(tmp_path / "x.pt", content, s0=np.arange(6, dtype=np.float32).tobytes())
    assert "is damaged" in message(path)


def opcodes(*parts: bytes | str) -> bytes:
    """A pickle from its opcodes; a string is a name, as `torch.FloatStorage`."""
    names = (
        b"c" + b"\n".join(part.encode().rsplit(b".", 1)) + b"\n" if isinstance(part, str) else part for part in parts
    )
    return b"\x80\x02" + b"".join(names) + b"."


@pytest.mark.parametrize("name", ["torch.BFloat16Storage", "torch.FloatStorage"])
def test_a_file_changes_no_type_of_the_process(tmp_path: Path, name: str) -> None:
    """A dtype takes a new state in place, bfloat16's even another size: arrays would reach beyond their memory."""
    dtype = pickled.DTYPES[name.removeprefix("torch.")]
    before = dtype.itemsize, dtype.str, dtype.metadata
    state = pickle.dumps((4, "|", None, None, None, 100, 1, 0, {"a": 1}), 2)[2:-1]
    message(archive(tmp_path / "x.pt", opcodes(name, state, pickle.BUILD)))
    assert (dtype.itemsize, dtype.str, dtype.metadata) == before


@pytest.mark.parametrize(
    "known",
    ["collections.OrderedDict", "argparse.Namespace", "torch._utils._rebuild_tensor_v2", "torch.Size", "numpy.x"],
)
@pytest.mark.parametrize("made", [b"", b")R"], ids=["itself", "its result"])
def test_a_file_changes_nothing_that_it_is_given(tmp_path: Path, known: str, made: bytes) -> None:
    state = pickle.dumps({"x": 1, "__init__": 2, "__class__": 3, "key": 4}, 2)[2:-1]
    with contextlib.suppress(ConfigError):
        pickled.read(archive(tmp_path / "x.pt", opcodes(known, made, state, pickle.BUILD)))
    assert not hasattr(OrderedDict, "x")
    assert argparse.Namespace(y=1).y == 1
    np.testing.assert_array_equal(pickled.read(a_tensor(tmp_path)), [[1, 2], [4, 5]])


def test_what_names_itself_twice_at_every_level_stays_small(tmp_path: Path) -> None:
    double = b"2" + pickle.TUPLE2  # DUP
    assert message(archive(tmp_path / "key.pt", opcodes(b"}", b"N", pickle.TUPLE1, double * 60, b"Ns")))
    size = opcodes(
        b"}", b"N", pickle.TUPLE1, *[b"q\x010", "torch.Size", b"h\x01", double, pickle.TUPLE1, b"R"] * 60, b"Ns"
    )
    assert message(archive(tmp_path / "size.pt", size))
    found = pickled.read(archive(tmp_path / "x.pt", opcodes(b"N", pickle.TUPLE1, double * 60)))
    for _ in range(60):
        assert found[0] is found[1]
        found = found[0]
    assert found == [None]


def test_many_names_of_one_storage_are_refused(tmp_path: Path) -> None:
    tensor = tensor_pickle(("0", "cpu", 1000), 0, (1000,), (1,))[2:-1]
    data = bytes(4000)
    tied = pickled.read(archive(tmp_path / "tied.pt", opcodes(b"](", tensor * 4, b"e"), s0=data))
    assert [len(array) for array in tied] == [1000] * 4
    assert "is damaged" in message(archive(tmp_path / "x.pt", opcodes(b"](", tensor * 100, b"e"), s0=data))


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    assert "cannot be read: not a file" in message(tmp_path / "x.pt")
    assert "cannot be read: not a file" in message(Path("/dev/zero"))


def test_nobody_s_home(tmp_path: Path) -> None:
    assert "No such file" in message(Path("~nobody-of-this-name/x.pt"))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02.", pickle.dumps(1), b"\x80\x02" + b"(" * 5000])
def test_other_files_are_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert "is damaged, or was not written by torch.save" in message(tmp_path / "x.pt")
    archive(tmp_path / "y.pt", content[:2])
    assert "is damaged" in message(tmp_path / "y.pt")


def test_cut_files_are_damaged(torch, tmp_path: Path) -> None:
    for zipped in (True, False):
        path = tmp_path / "x.pt"
        torch.save({"w": torch.arange(1000.0)}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in (len(whole) // 2, len(whole) - 20, 30):
            path.write_bytes(whole[:size])
            message(path)


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_are_damage_or_numbers(tmp_path: Path, seed: int) -> None:
    """Never another error."""
    rng = random.Random(seed)
    content = tensor_pickle(("0", "cpu", 6), 1, (2, 2), (3, 1))
    whole = archive(tmp_path / "x.pt", content, s0=bytes(24)).read_bytes()
    old = b"".join(pickle.dumps(x, 2) for x in (pickled.OLD_MAGIC, pickled.OLD_VERSION, {"little_endian": True}))
    old += content + pickle.dumps(["0"], 2) + (6).to_bytes(8, "little") + bytes(24)
    for _ in range(150):
        changed = bytearray(rng.choice([whole, old]))
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        (tmp_path / "x.pt").write_bytes(changed)
        with contextlib.suppress(ConfigError):
            pickled.read(tmp_path / "x.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", pickle.dumps(1, 2))
    assert "is damaged" in message(tmp_path / "x.pt")


def test_no_file(tmp_path: Path) -> None:
    assert "No such file" in message(tmp_path / "x.pt")

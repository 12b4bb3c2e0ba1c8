"""Foreign weights, name by name: each is taken once, with the shape that the model needs; none may be left over.

The functions take from a dict of arrays (a copy that the caller gives up); those that begin with `put` fill one, the
other way round. PyTorch keeps a linear map as [out, in]; the kernels here are [in, out].
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources.source import printable

Params = Any  # a nested dict of arrays
State = dict[str, np.ndarray]


def by_name(content: Any, where: str) -> State:
    """What a file holds, if that is a dict of arrays.

    Raises:
        ConfigError: beginning with `where`, if it is not.
    """
    if isinstance(content, dict) and all(isinstance(k, str) and isinstance(x, np.ndarray) for k, x in content.items()):
        return content
    raise ConfigError(f"{where}: must hold arrays by name")


def shape_of(state: Mapping[str, np.ndarray], key: str, rank: int) -> tuple[int, ...]:
    """The shape of an array of `rank` dimensions.

    Raises:
        ConfigError: naming the key, if it is missing or of another rank.
    """
    if key not in state:
        raise ConfigError(f"{key}: missing from the weights")
    shape = state[key].shape
    if len(shape) != rank:
        raise ConfigError(f"{key}: has shape {list(shape)}, must have {rank} dimensions")
    return shape


def take(state: State, key: str, *shape: int) -> np.ndarray:
    """Removes an array from `state` and returns it; 16-bit floats become 32-bit ones.

    Raises:
        ConfigError: naming the key, if it is missing, of another shape, or not of floats.
    """
    found = shape_of(state, key, len(shape))
    if found != shape:
        raise ConfigError(f"{key}: has shape {list(found)}, must be {list(shape)}")
    value = state.pop(key)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ConfigError(f"{key}: holds {value.dtype.name}, must hold floats")
    return value.astype(np.float32) if value.dtype.itemsize < 4 else value


def drop_tied(state: State, key: str, to: str, value: np.ndarray) -> None:
    """Removes a second copy of a shared array, if there is one.

    Raises:
        ConfigError: naming the key, if the copies differ: the model has one array for both.
    """
    if key in state and not np.array_equal(take(state, key, *value.shape), value):
        raise ConfigError(f"{key}: differs from {to}, must be tied to it")


def check_empty(state: State) -> None:
    """Every array must have found its place.

    Raises:
        ConfigError: naming the first one that did not.
    """
    if state:
        more = f" (and {len(state) - 1} more)" if len(state) > 1 else ""
        raise ConfigError(f"{printable(min(state))}: not a weight of this model{more}")


def dense(state: State, name: str, inputs: int, outputs: int) -> Params:
    """A linear map with its bias."""
    kernel = take(state, f"{name}.weight", outputs, inputs).T
    return {"kernel": kernel, "bias": take(state, f"{name}.bias", outputs)}


def norm(state: State, name: str, width: int) -> Params:
    """A layer norm."""
    return {"scale": take(state, f"{name}.weight", width), "bias": take(state, f"{name}.bias", width)}


def to_heads(linear: Params, heads: int) -> Params:
    """A map to all heads at once, [D, D], as one to each: [D, heads, d]."""
    return {name: x.reshape(*x.shape[:-1], heads, -1) for name, x in linear.items()}


def from_heads(linear: Params, heads: int) -> Params:
    """A map from all heads at once, [D, D], as one from each: [heads, d, D]."""
    return {"kernel": linear["kernel"].reshape(heads, -1, linear["kernel"].shape[-1]), "bias": linear["bias"]}


def fuse_qkv(query: Params, key: Params, value: Params, heads: int) -> Params:
    """Three maps [D, D] as one [D, 3, heads, d]."""
    maps = [to_heads(linear, heads) for linear in (query, key, value)]
    return {name: np.stack([linear[name] for linear in maps], axis=-3) for name in ("kernel", "bias")}


def stack(layers: list[Params]) -> Params:
    """The layers' parameters, along a first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def count_layers(state: State, prefix: str) -> int:
    """How many layers `PREFIX.0.…`, `PREFIX.1.…`, … there are.

    Raises:
        ConfigError: naming the prefix, if there is none.
    """
    count = 0
    while any(key.startswith(f"{prefix}.{count}.") for key in state):
        count += 1
    if not count:
        raise ConfigError(f"{prefix}.0: missing from the weights")
    return count


def check_heads(heads: int, hidden: int) -> None:
    """Heads must share the width evenly.

    Raises:
        ConfigError: if they do not.
    """
    if heads < 1 or hidden < 1 or hidden % heads:
        raise ConfigError(f"heads={heads!r}: must be a divisor of the hidden size {hidden}")


def put(state: State, key: str, value: Any) -> None:
    """Adds an array, as float32 in C order: what a `.safetensors` file holds."""
    state[key] = np.ascontiguousarray(value, np.float32)


def put_dense(state: State, name: str, linear: Params) -> None:
    """Adds a linear map [in, out] with its bias."""
    put(state, f"{name}.weight", np.asarray(linear["kernel"]).T)
    put(state, f"{name}.bias", linear["bias"])


def put_norm(state: State, name: str, norm: Params) -> None:
    """Adds a layer norm."""
    put(state, f"{name}.weight", norm["scale"])
    put(state, f"{name}.bias", norm["bias"])


def joined(linear: Params, *, inputs: bool = False) -> Params:
    """A map to each head, [D, heads, d], as one to all: [D, D]; with `inputs` a map from each, [heads, d, D]."""
    kernel, bias = np.asarray(linear["kernel"]), np.asarray(linear["bias"])
    if inputs:
        return {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": bias}
    return {"kernel": kernel.reshape(kernel.shape[0], -1), "bias": bias.reshape(-1)}


def put_layers(state: State, prefix: str, layers: Params, names: Mapping[str, str]) -> None:
    """Adds the stacked layers as `PREFIX.0.…`, `PREFIX.1.…`, …

    Args:
        state: is filled.
        prefix: of all layers.
        layers: an encoder's, along a first axis.
        names: what `query`, `key`, `value`, `out`, `attention_norm`, `ffn_in`, `ffn_out` and `ffn_norm` are called.
    """
    for i in range(len(layers["ffn_norm"]["scale"])):
        layer = jax.tree.map(lambda leaf: np.asarray(leaf)[i], layers)  # noqa: B023
        name = {ours: f"{prefix}.{i}.{theirs}" for ours, theirs in names.items()}
        qkv = layer["attention"]["qkv"]
        for j, part in enumerate(("query", "key", "value")):
            one = {"kernel": qkv["kernel"][:, j], "bias": qkv["bias"][j]}
            put_dense(state, name[part], joined(one))
        put_dense(state, name["out"], joined(layer["attention"]["out"], inputs=True))
        for part in ("ffn_in", "ffn_out"):
            put_dense(state, name[part], layer[part])
        for part in ("attention_norm", "ffn_norm"):
            put_norm(state, name[part], layer[part])

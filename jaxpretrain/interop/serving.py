"""A run as programs for anything that has jax: StableHLO, weights and a fast tokenizer, and nothing of this package.

Batch and length stay open. What would be the same in every call is done here, once: the positional part of the
attention, which holds no word, is stored at its full length and cut to that of the text; MC-BERT's controller has its
token table mapped; and each layer's weights lie apart, since a program that slices their stack copies them every time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import Array, export

import jaxpretrain
from jaxpretrain.config import max_positions, to_dict
from jaxpretrain.data.tokenizer import MASK, NEITHER, PAD
from jaxpretrain.evaluation.trained import Trained, mean_of_pieces
from jaxpretrain.interop.export import Network, networks
from jaxpretrain.interop.fast_tokenizer import tokenizer_json
from jaxpretrain.interop.folders import write_json, written_whole
from jaxpretrain.interop.weights import Params
from jaxpretrain.models.encoder import Encoder
from jaxpretrain.models.heads import MLMHead, take_positions
from jaxpretrain.models.position import PositionTerms

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WEIGHTS = "weights.npz"  # numpy's own format: whoever has jax can read it


@dataclass(frozen=True)
class Program:
    """What is served.

    Attributes:
        function: of the parameters and the inputs.
        inputs: the shape of each by name, in letters: b texts of t tokens, p of them asked for. All are int32.
        output: its shape, float32.
        meaning: of the output.
    """

    function: Callable[..., Array]
    inputs: dict[str, str]
    output: str
    meaning: str


class ServedEncoder(Encoder):
    """An encoder that is given what `prepared` makes of its parameters."""

    def position_terms(self, params: Params, length: int) -> PositionTerms:
        terms = {name: x[:, :length, :length] if name == "bias" else x[:length] for name, x in params["terms"].items()}
        return PositionTerms(**terms)

    def over_layers(self, step: Callable, x: Array, layers: list[Params]) -> Array:
        for index, layer in enumerate(layers, 1):
            x, _ = step(x, (layer, index))
        return x


def prepared(encoder: Encoder, params: Params) -> Params:
    """An encoder's parameters with its position terms, at full length, and its layers one by one."""
    terms: Any = encoder.positions.apply({"params": params["positions"]}, encoder.max_positions)
    return {
        "embedder": params["embedder"],
        "terms": {name: x for name, x in vars(terms).items() if isinstance(x, Array)},
        "layers": [jax.tree.map(lambda x: x[i], params["layers"]) for i in range(encoder.config.layers)],  # noqa: B023
    }


def serve(run: Trained, folder: str | Path) -> dict[str, Program]:
    """Writes the folder, whole or not at all.

    Args:
        run: what `load_run` read.
        folder: to write; must not exist, or be empty.

    Returns:
        The programs written, by name.

    Raises:
        ConfigError: the folder holds something, or the tokenizer cannot be expressed.
    """
    longest = max_positions(run.config)
    with written_whole(folder) as partial:
        write_json(partial / "tokenizer.json", tokenizer_json(run.tokenizer))
        write_json(partial / "jaxpretrain.json", to_dict(run.config))
        params, found = programs(run)
        weights, names = by_name(params)
        np.savez(partial / WEIGHTS, **weights)  # pyright: ignore[reportArgumentType]  # any name is free but allow_pickle
        letters = export.SymbolicScope([f"t <= {longest}"])
        for name, program in found.items():
            inputs = [
                jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=letters), jnp.int32)
                for shape in program.inputs.values()
            ]

            def call(weights: dict[str, Array], *inputs: Array, function: Callable = program.function) -> Array:
                return function(jax.tree.map(weights.__getitem__, names), *inputs)

            with without_paths():
                exported = export.export(jax.jit(call), platforms=PLATFORMS)(weights, *inputs)
            (partial / f"{name}.stablehlo").write_bytes(exported.serialize())
        (partial / "README.md").write_text(readme(run, found), encoding="utf-8")
    return found


def programs(run: Trained) -> tuple[Params, dict[str, Program]]:
    """The parameters of all programs, and the programs."""
    found = networks(run)
    main, filler = found[0], found[-1]  # of a masked language model the same
    encoder, fillers_encoder = served(main, run), served(filler, run)
    head = MLMHead(fillers_encoder.config, jnp.dtype("float32"))
    params = {"encoder": prepared(encoder, main.encoder), "head": filler.head}
    if filler is not main:
        params["filler"] = prepared(fillers_encoder, filler.encoder)

    def encode(params: Params, tokens: Array) -> Array:
        return encoder.apply(params["encoder"], tokens, padding=tokens == PAD)

    def embed(params: Params, tokens: Array) -> Array:
        return mean_of_pieces(encode(params, tokens), tokens)

    def fill_mask(params: Params, tokens: Array, positions: Array) -> Array:
        network = params.get("filler", params["encoder"])
        x = fillers_encoder.apply(network, tokens, padding=tokens == PAD)
        return head.apply({"params": params["head"]}, take_positions(x, positions), network["embedder"]["tokens"])  # type: ignore

    tokens, hidden, pieces = {"tokens": "b, t"}, run.config.model.hidden, run.tokenizer.vocab_size
    return params, {
        "embed": Program(embed, tokens, f"b, {hidden}", "a vector for each text: the mean over its pieces"),
        "encode": Program(encode, tokens, f"b, t, {hidden}", "a vector for each token, in its context"),
        "fill_mask": Program(
            fill_mask, tokens | {"positions": "b, p"}, f"b, p, {pieces}", "a score for each piece at each position"
        ),
    }


def served(network: Network, run: Trained) -> ServedEncoder:
    """A network's encoder in float32, whatever the machine that exports."""
    config = replace(network.config, dtype="float32", attention="plain", remat=False)
    return ServedEncoder(config, run.tokenizer.vocab_size, config.max_positions)


def by_name(params: Params) -> tuple[dict[str, np.ndarray], Params]:
    """The arrays, float32, by names such as `encoder/layers/0/…`, and the tree of these names; a shared array once."""
    names: dict[int, str] = {}
    tree = jax.tree_util.tree_map_with_path(
        lambda path, x: names.setdefault(id(x), jax.tree_util.keystr(path, simple=True, separator="/")), params
    )
    arrays = dict(zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True))
    return {name: np.asarray(x, np.float32) for name, x in arrays.items()}, tree


@contextmanager
def without_paths() -> Iterator[None]:
    """Programs would name the files of this machine that each operation came from."""
    before = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]  # set at import
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def readme(run: Trained, found: dict[str, Program]) -> str:
    """The text of `README.md`."""
    config = run.config
    rows = []
    for name, program in found.items():
        inputs = ", ".join(f"`{key}` int32 [{shape}]" for key, shape in program.inputs.items())
        rows.append(f"| `{name}.stablehlo` | {inputs} | float32 [{program.output}]: {program.meaning} |")
    return README.format(
        title=f"{config.name}-{config.size}",
        longest=max_positions(config),
        rows="\n".join(rows),
        pad=PAD,
        mask=MASK,
        special=NEITHER,
        weights=WEIGHTS,
        platforms=", ".join(PLATFORMS),
        step=run.step,
        jaxpretrain=jaxpretrain.__version__,
        jax=jax.__version__,
        jaxlib=jaxlib.__version__,
    )


README = """\
# {title}, for serving

Programs with their weights. They run where jax does, without the code that made them:
`pip install jax flatbuffers tokenizers` (flatbuffers is what jax reads programs with).

| program | inputs, after the weights | output |
| --- | --- | --- |
{rows}

- `tokens`: ids of b texts, each `[CLS] … [SEP]`, then {pad} up to the length t, at most {longest}.
  `tokenizer.json` makes them. Any b and t will do. The first call with new ones compiles, so pad to a few lengths.
- `positions`: where scores are wanted in each text, such as at its `[MASK]`s (id {mask}).
  Pieces 0 to {special} are special ones and never the answer: look at the scores after them.
- `{weights}`: float32, as is all that a program computes; GPUs and TPUs multiply with fewer bits.

```python
import jax, jax.export, numpy as np
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_padding()
tokenizer.enable_truncation({longest})
weights = jax.device_put(dict(np.load("{weights}")))
embed = jax.jit(jax.export.deserialize(bytearray(open("embed.stablehlo", "rb").read())).call)
tokens = np.array([text.ids for text in tokenizer.encode_batch(["One sentence.", "And another one."])], np.int32)
vectors = np.asarray(embed(weights, tokens))
```

Step {step:,} of the run that `jaxpretrain.json` describes.
Written by jaxpretrain {jaxpretrain} with jax {jax} and jaxlib {jaxlib}, for {platforms}.

jax promises to run programs up to six months older than itself, and refuses older ones from 0.11.1 on: before you take
a newer jax than that, export the run again.
"""

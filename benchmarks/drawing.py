"""Drawing candidates: ours against as many calls of `jax.random.categorical`, in turns in one process.

    python benchmarks/drawing.py [--positions 4096] [--vocab 32768] [--draws 10] [--hidden 128] [--rounds 5]

Two tasks: from given scores [positions, vocab], and from vectors [positions, hidden] and a table [vocab, hidden], as
MC-BERT's meta controller draws, where ours never holds the scores of all positions. `categorical` is called once per
draw, and its memory is that of one call: all in one program would take ten times as much. Prints a table, and one line
of JSON with the machine's state. The aim is 50 times faster in a twentieth of the memory.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jaxpretrain.objectives.sampling import draw, over_chunks, uniforms


def tasks(args: argparse.Namespace) -> dict[str, tuple[Callable[..., Array], tuple[Array, ...]]]:
    """Name → function and its arguments."""
    rows = args.positions // args.length
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (rows, args.length, args.hidden))
    table = jax.random.normal(keys[1], (args.vocab, args.hidden)) * args.hidden**-0.5
    row_keys = jax.random.split(keys[2], rows)
    logits = jax.jit(lambda x, table: x @ table.T)(x, table)

    def ours_of_logits(logits: Array, keys: Array) -> Array:
        return over_chunks(draw, (logits, uniforms(keys, args.length, args.draws)), rows)

    def ours_of_vectors(x: Array, table: Array, keys: Array) -> Array:
        numbers = uniforms(keys, args.length, args.draws)
        return over_chunks(lambda x, u: draw(x @ table.T, u), (x, numbers), rows)

    def product(x: Array, table: Array) -> Array:
        """What both need: the scores alone, a chunk at a time."""
        return over_chunks(lambda x: (x @ table.T).max(-1), (x,), rows)

    return {
        "scores given, ours": (ours_of_logits, (logits, row_keys)),
        "scores given, categorical": (jax.random.categorical, (keys[3], logits)),
        "from vectors, ours": (ours_of_vectors, (x, table, row_keys)),
        "the product in chunks": (product, (x, table)),
        "the product at once": (lambda x, table: x @ table.T, (x, table)),
    }


def seconds_of(compiled: Callable[..., Any], args: tuple[Array, ...], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(compiled(*args))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("positions", 4096), ("length", 128), ("vocab", 32768), ("draws", 10), ("hidden", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5, help="of ours, in turns with the rest")
    args = parser.parse_args()

    load = os.getloadavg()
    todo = tasks(args)
    compiled = {name: jax.jit(f).lower(*a).compile() for name, (f, a) in todo.items()}
    memory = {name: c.memory_analysis().temp_size_in_bytes for name, c in compiled.items()}
    times: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(args.rounds):
        for name, (_, arguments) in todo.items():
            theirs = "categorical" in name
            if not (theirs and turn % 2):  # the slow one in every other turn
                times[name].append(seconds_of(compiled[name], arguments, args.draws if theirs else 1))
    # Scores that exist as a whole are memory of theirs as well, where they are not given.
    slow = min(times["scores given, categorical"])
    times["from vectors, categorical"] = [slow + t for t in times["the product at once"]]
    scores = 4 * args.positions * args.vocab
    memory["from vectors, categorical"] = memory["scores given, categorical"] + scores
    best = {name: min(t) for name, t in times.items()}

    print(f"{args.positions} positions x {args.vocab} pieces, {args.draws} draws, hidden {args.hidden}")
    print(f"{'':<28}{'best s':>9}{'median s':>10}{'temp MB':>9}")
    for name, t in times.items():
        print(f"{name:<28}{min(t):>9.3f}{statistics.median(t):>10.3f}{memory[name] / 1e6:>9.1f}")
    ratios = {}
    for task in ("scores given", "from vectors"):
        ours, theirs = f"{task}, ours", f"{task}, categorical"
        faster, smaller = best[theirs] / best[ours], memory[theirs] / memory[ours]
        ratios[task] = {"times_faster": faster, "times_less_memory": smaller}
        print(f"{task}: {faster:.0f} times faster in 1/{smaller:.0f} of the memory")
    record = {
        "arguments": vars(args),
        "seconds": times,
        "temp_bytes": memory,
        "ratios": ratios,
        "load_average": {"before": load, "after": os.getloadavg()},
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jax.lib.__version__},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()

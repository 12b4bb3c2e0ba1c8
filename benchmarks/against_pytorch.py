"""A training step of ours against Hugging Face's on PyTorch: same network, batch, dropout, optimizer and masks.

    pip install torch==2.13.0 && pip install -e ".[hf]"
    python benchmarks/against_pytorch.py --out benchmarks/records/against-pytorch

Each step lives in a process of its own; they take turns, one step each a round, so that neither library's threads meet
the other's. `stock` is `BertForMaskedLM` as it comes (scaled-dot-product attention, the whole vocabulary's scores at
every position), `masked only` scores the chosen positions alone, as ours does. `ours, memory anew` is our step where
the C library gets its temporary memory from the system each time (training/heap.py). Run it on an idle machine: the
load before and after is recorded.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from study import command, machine, table, write_record

SIZES = {  # layers, width, heads, batch, vocabulary
    "2 × 128": (2, 128, 2, 32, 8192),
    "6 × 256": (6, 256, 4, 16, 32768),
    "12 × 768": (12, 768, 12, 4, 32768),
}
OURS, ANEW = "ours", "ours, memory anew"
STEPS = (OURS, ANEW, "PyTorch, stock", "PyTorch, masked only", "PyTorch, masked only, compiled")
LENGTH, MASKED, DROPOUT = 128, 20, 0.1
REST = 0.3  # seconds between steps


def ours(kind: str, layers: int, width: int, heads: int, batch: int, vocab: int) -> Callable[[], object]:
    """One step of BERT with absolute positions, with everything that training does in it."""
    import jax
    from step_time import VARIANTS, make, of_size

    from jaxpretrain.training.heap import run_in_this_thread

    if kind != ANEW:
        run_in_this_thread()
    size = {"layers": layers, "hidden": width, "heads": heads, "batch": batch, "length": LENGTH}
    variant = make(of_size(VARIANTS["BERT-A"], **size), vocab, notes=1000)
    print(json.dumps({"flops": variant.flops}), flush=True)

    def step() -> None:
        variant.state, metrics = variant.step(variant.state, variant.batch)
        jax.block_until_ready(metrics)

    return step


def theirs(kind: str, layers: int, width: int, heads: int, batch: int, vocab: int) -> Callable[[], object]:
    """One step of `BertForMaskedLM` with AdamW and a clipped gradient."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
        attn_implementation="sdpa",
    )
    model = BertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    tokens = torch.randint(6, vocab, (batch, LENGTH))
    chosen = torch.stack([torch.randperm(LENGTH)[:MASKED] for _ in range(batch)])
    labels = torch.full_like(tokens, -100).scatter(1, chosen, tokens.gather(1, chosen))
    inputs = tokens.scatter(1, chosen, 4)

    def loss() -> torch.Tensor:
        if kind.endswith("stock"):
            return model(input_ids=inputs, labels=labels).loss
        x = model.bert(input_ids=inputs)[0]
        x = x.gather(1, chosen[..., None].expand(-1, -1, width))
        return cross_entropy(model.cls(x).flatten(0, 1), tokens.gather(1, chosen).flatten())

    if kind.endswith("compiled"):
        loss = torch.compile(loss)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def work(kind: str, size: str) -> None:
    """Takes a step for every line it is sent, and answers with its seconds."""
    step = (ours if kind in (OURS, ANEW) else theirs)(kind, *SIZES[size])
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        print(time.perf_counter() - begin, flush=True)


def matrix_peak() -> float:
    """FLOP/s of the machine's own float32 matrix product, the best of several."""
    from jaxpretrain.training import flops

    return flops.peak_flops()


class Worker:
    """A step in its own process."""

    def __init__(self, kind: str, size: str) -> None:
        command = [sys.executable, __file__, "--work", kind, size]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.flops = 0
        for line in self.process.stdout:
            if line.startswith("{"):
                self.flops = json.loads(line)["flops"]
            elif line.strip() == "ready":
                self.works = True
                return
        self.works = False

    def step(self) -> float:
        """Seconds; the threads of the one before, which wait for more to do for a while, have gone to sleep."""
        time.sleep(REST)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(size: str, rounds: int) -> tuple[dict[str, np.ndarray], int]:
    """Seconds of each step that works here, [rounds], and the FLOPs of one of ours."""
    workers = {kind: Worker(kind, size) for kind in STEPS}
    working = {kind: worker for kind, worker in workers.items() if worker.works}
    seconds = np.array([[worker.step() for worker in working.values()] for _ in range(rounds)])
    for worker in workers.values():
        worker.end()
    return dict(zip(working, seconds.T, strict=True)), workers[OURS].flops


def main() -> None:
    """Measures all sizes, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--work", nargs=2, metavar=("STEP", "SIZE"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/against-pytorch"))
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    load, rows, record = os.getloadavg()[0], [], {}
    peak = matrix_peak()
    for size in options.sizes:
        seconds, flops = measure(size, options.rounds)
        record[size] = {"flops": flops, "seconds": {kind: values.tolist() for kind, values in seconds.items()}}
        batch, vocab = SIZES[size][3:]
        share = flops / float(np.median(seconds[OURS])) / peak
        cells = [f"{size}, batch {batch}, {vocab:,} pieces", f"{1e3 * np.median(seconds[OURS]):,.0f}", f"{share:.0%}"]
        for kind in STEPS[1:]:
            ratios = seconds[kind] / seconds[OURS] if kind in seconds else None
            cells.append("does not run" if ratios is None else f"{np.median(ratios):.2f}")
        rows.append(cells)
    about = (
        f"A step of BERT, T {LENGTH}, {MASKED} of them masked, dropout {DROPOUT}, float32, AdamW, clipped gradient. "
        f"{machine()}, torch {version('torch')}, transformers {version('transformers')}, {platform.system()}; "
        f"{options.rounds} rounds, medians; matrix product {peak / 1e9:,.0f} GFLOP/s (1024³, float32); "
        f"load before {load:.2f}, after {os.getloadavg()[0]:.2f}."
    )
    head = ["size", "ours, ms", "of the matrix product's peak", *(f"{kind}, over ours" for kind in STEPS[1:])]
    body = f"{table(head, rows)}\n\nAbove 1: ours is faster.\n\n`{command()}`"
    files = {"seconds.json": json.dumps(record | {"peak": peak}, indent=1) + "\n"}
    write_record(options.out, "A step against PyTorch", about, body, files)


if __name__ == "__main__":
    main()

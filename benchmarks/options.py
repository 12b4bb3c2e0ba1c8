"""Options that leave the papers' recipe, each alone and some together: held-out loss at equal tokens, `tiny`.

    python benchmarks/options.py --runs runs/options

The setting of docs/study.md with a quarter of its budget, and rates that were searched for none. Trains what is not
trained yet (stop it and start it again at will), one run to a core, then writes the record.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from methods import FAST, LOSS, METHODS, SETTING, spread
from study import command, labelled, machine, table, train_missing_together, write_record

from jaxpretrain.config import OptimConfig
from jaxpretrain.evaluation.curves import Method
from jaxpretrain.evaluation.pictures import png

STEPS, RATE = 1_500, 2e-3
TOKENS = STEPS * SETTING["train.batch_size"] * SETTING["data.sequence_length"]
HALF = {"train.batch_size": 32, "train.steps": 2 * STEPS, "optim.learning_rate": RATE / 2**0.5, "eval.batch_size": 64}
PAPERS = "the papers' recipe"
OPTIONS: dict[str, dict[str, Any]] = {
    PAPERS: {},
    "25 % masked": {"objective.mask_rate": 0.25},
    "40 % masked": {"objective.mask_rate": 0.4},
    "55 % masked": {"objective.mask_rate": 0.55},
    "Muon": {"optim.name": "muon"},
    "Muon, 40 % masked": FAST,
    "half the batch, twice the steps": HALF,
    "short sequences first": {"train.short_share": 0.5, "train.short_length": 8},
    "beta2 0.98": {"optim.beta2": 0.98},
    "twice the learning rate": {"optim.learning_rate": 2 * RATE},
    "cosine decay": {"optim.decay": "cosine"},
}
NETWORKS = ("BERT-A", "TUPE-R")


def arguments(network: str, option: str, seed: int | str) -> list[str]:
    """Of the training command of one run; warm-up a twenty-fourth of the steps, and 24 evaluations."""
    fields: dict[str, Any] = {"train.steps": STEPS, "optim.learning_rate": RATE, "train.seed": seed}
    fields |= SETTING | METHODS[network] | OPTIONS[option]
    every = fields["train.steps"] // 24
    fields |= {"optim.warmup_steps": every, "eval.every": every, "checkpoint.every_steps": 0, "checkpoint.keep": 1}
    return ["--config", "configs/bert.py", *(f"--config.{name}={value}" for name, value in fields.items())]


def main() -> None:
    """Trains, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/options"), help="where the runs live")
    parser.add_argument("--only", nargs="+", choices=OPTIONS, default=list(OPTIONS), metavar="OPTION")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/options-tiny"))
    options = parser.parse_args()
    shown = list(dict.fromkeys([PAPERS, *options.only]))

    def workdir(network: str, option: str, seed: int) -> Path:
        words = option.replace(",", "").replace("'", "").replace("%", "percent").split()
        return options.runs / "-".join([network, *words, f"seed{seed}"]).lower()

    every = [(network, option, seed) for seed in options.seeds for option in shown for network in NETWORKS]
    train_missing_together([{workdir(*run): arguments(*run)} for run in every])
    found = {
        (network, option): labelled(option, [workdir(network, option, seed) for seed in options.seeds], LOSS)
        for option in shown
        for network in NETWORKS
    }
    flops = {key: float(method.curves[0].flops[-1]) for key, method in found.items()}
    rows = [
        [
            option,
            *(ends(found[network, option]) for network in NETWORKS),
            *(f"{flops[network, option] / flops[network, PAPERS]:.2f}" for network in NETWORKS),
        ]
        for option in shown
    ]
    head = ["", *(f"{network}, held-out loss" for network in NETWORKS), *(f"{n}, FLOPs" for n in NETWORKS)]
    about = (
        f"Held-out MLM loss in nats after {TOKENS / 1e6:.2f} million tokens of python-docs in 1,024 pieces, as "
        f"{STEPS:,} steps of 64 × 32 and at a learning rate of {RATE:g} unless a row says otherwise (Muon's "
        f"{OptimConfig().muon_rate:g}); two layers × 128, seeds {', '.join(map(str, options.seeds))}. Held-out text is "
        "masked at 4 of 32 places for all. In training that is 4 (the papers' recipe), 8 (25 %), 12 (40 %) or 16 "
        f"(55 %). FLOPs over those of {PAPERS}. {machine()}, a core to a run."
    )
    each = f"`python -m jaxpretrain.train {' '.join(arguments(NETWORKS[0], PAPERS, 'SEED'))}`"
    fields = "\n".join(
        f"- {option}: {' '.join(f'`--config.{k}={v}`' for k, v in OPTIONS[option].items()) or 'as it is'}"
        for option in shown
    )
    body = f"{table(head, rows)}\n\n![held-out loss](options.png)\n\nA run: {each}\n\n{fields}\n\nAll: `{command()}`"
    write_record(options.out, "Options at tiny", about, body, {"options.png": png(drawn(found, shown))})


def ends(method: Method) -> str:
    """The last losses: their mean, and range over seeds."""
    losses = np.array([curve.value[-1] for curve in method.curves])
    return spread(losses) if len(losses) > 1 else f"{losses[0]:.3f}"


def drawn(found: dict[tuple[str, str], Method], shown: list[str]) -> Figure:
    """The ends as dots, a row to an option; the lines are the papers' recipe."""
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(shown)), dpi=120, layout="constrained")
    axes = figure.subplots()
    for network, colour in zip(NETWORKS, ("#999999", "#0072b2"), strict=True):
        for i, option in enumerate(shown):
            losses = [curve.value[-1] for curve in found[network, option].curves]
            axes.plot(losses, [i] * len(losses), "o", color=colour, label=network if i == 0 else None)
        axes.axvline(np.mean([c.value[-1] for c in found[network, PAPERS].curves]), color=colour, linewidth=1)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"held-out MLM loss after {TOKENS / 1e6:.2f} million tokens (nats)")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    main()

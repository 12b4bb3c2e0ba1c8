"""Draws the figures of these pages with the package's own functions: python docs/figures.py"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from jaxpretrain.config import NotesConfig
from jaxpretrain.evaluation.pictures import svg
from jaxpretrain.notes import around, find, init, intact, lookup

FOLDER = Path(__file__).parent / "figures"
GREY, BLUE, ORANGE, WHITE = "#e8e8e8", "#56b4e9", "#e69f00", "#ffffff"


def tnf() -> Figure:
    """Two occurrences of one rare word; a piece of the second is masked."""
    pieces = [
        "[CLS]",
        "a",
        "mito",
        "chond",
        "rion",
        "feeds",
        "the",
        "cell",
        ":",
        "each",
        "mito",
        "chond",
        "rion",
        "has",
        "its",
        "own",
        "dna",
        "[SEP]",
    ]
    tokens = np.arange(len(pieces))[None]
    words = np.zeros_like(tokens)
    for start in (2, 10):
        words[0, start : start + 3] = 2
        words[0, start] += 1
    seen = tokens.copy()
    seen[0, 11] = -1
    config = NotesConfig(window=4)
    occurrences = find(jnp.asarray(words), 2)
    mixed = np.asarray(lookup(init(jax.random.key(0), 1, 4, 1.0), occurrences, tokens, seen, config).weight[0])
    contexts = np.asarray(around(occurrences, len(pieces), config.window)[0])
    whole = np.asarray(intact(occurrences, tokens, seen)[0])

    shown = [piece if token >= 0 else "[MASK]" for piece, token in zip(pieces, seen[0], strict=True)]
    rows = [
        ("text", pieces, [ORANGE if mark else GREY for mark in words[0]]),
        ("what the model sees", shown, [ORANGE if mark else GREY for mark in words[0]]),
        (
            "mixed into the input",
            [f"{1 - w:g} x + {w:g} note" if w else "x" for w in mixed],
            [BLUE if w else WHITE for w in mixed],
        ),
        ("context of the first", [""] * len(pieces), [BLUE if c else WHITE for c in contexts[0]]),
        ("context of the second", [""] * len(pieces), [BLUE if c else WHITE for c in contexts[1]]),
    ]
    figure = Figure(figsize=(13, 3.9), dpi=100, layout="constrained")
    axes = figure.subplots()
    for y, (title, texts, colours) in enumerate(rows):
        axes.text(-0.3, -y, title, ha="right", va="center", fontsize=12)
        for x, (text, colour) in enumerate(zip(texts, colours, strict=True)):
            box = FancyBboxPatch((x + 0.06, -y - 0.32), 0.88, 0.64, boxstyle="round,pad=0.02", fc=colour, ec="#777777")
            axes.add_patch(box)
            small = len(text) > 7
            axes.text(x + 0.5, -y, text.replace(" + ", "\n+ "), ha="center", va="center", fontsize=7.5 if small else 10)
    state = ["is whole: its note is read", "has a masked piece: no note"]
    for number, start in enumerate((2, 10)):
        axes.text(start + 1.5, 0.62, state[0 if whole[number] else 1], ha="center", fontsize=10.5)
    axes.text(
        len(pieces) / 2,
        -5.0,
        "the encoder's outputs over each context (here k = 4) are averaged, and the mean of both moves the note by γ",
        ha="center",
        fontsize=11,
    )
    axes.set_xlim(-4.2, len(pieces) + 0.1)
    axes.set_ylim(-5.3, 1.0)
    axes.set_axis_off()
    return figure


def main() -> None:
    """Writes all figures."""
    FOLDER.mkdir(exist_ok=True)
    for figure in (tnf,):
        (FOLDER / f"{figure.__name__}.svg").write_bytes(svg(figure()))


if __name__ == "__main__":
    main()

"""Draws the figures of these pages with the package's own functions: python docs/figures.py"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from jaxpretrain.config import ModelConfig, NotesConfig
from jaxpretrain.data.tokenizer import NEITHER
from jaxpretrain.evaluation.pictures import svg
from jaxpretrain.models.position import Positions, score_scale
from jaxpretrain.notes import around, find, init, intact, lookup
from jaxpretrain.objectives.mcbert import ask

FOLDER = Path(__file__).parent / "figures"
GREY, BLUE, ORANGE, WHITE = "#e8e8e8", "#56b4e9", "#e69f00", "#ffffff"


def tupe() -> Figure:
    """One head's scores for made-up vectors and projections: BERT's four terms, and below them what TUPE adds up."""
    pieces = ["[CLS]", "the", "cat", "and", "the", "dog", "slept", "."]
    length, width = len(pieces), 8
    rng = np.random.default_rng(3)
    vectors = {piece: rng.normal(size=width) for piece in dict.fromkeys(pieces)}
    words = normed(np.stack([vectors[piece] for piece in pieces]))
    turn = 2 * np.pi * np.arange(length + 1)[:, None] / np.array([7, 11, 18, 40])
    table = np.concatenate([np.sin(turn), np.cos(turn)], 1)
    table[:2] = rng.normal(size=(2, width))  # the two rows for [CLS], equation 9
    query, key = np.eye(width) + 0.2 * rng.normal(size=(2, width, width))
    shared = {
        "table": table,
        "norm": {"scale": np.ones(width), "bias": np.zeros(width)},
        "query": {"kernel": query[:, None], "bias": np.zeros((1, width))},
        "key": {"kernel": key[:, None], "bias": np.zeros((1, width))},
        "relative": np.append(1.2 - 0.5 * (np.arange(32) % 16), 0.8)[:, None],  # by T5's buckets, and one for [CLS]
    }

    def bias(position: str) -> np.ndarray:
        terms = Positions(ModelConfig(position=position, hidden=width, heads=1), length)
        return np.asarray(terms.apply({"params": jax.tree.map(jnp.float32, shared)}, length).bias[0])

    pairs = [(q, k) for q in (words, normed(table[1:])) for k in (words, normed(table[1:]))]
    bert = [score_scale("absolute", width) * (q @ query) @ (k @ key).T for q, k in pairs]
    apart = score_scale("tupe_r", width) * (words @ query) @ (words @ key).T
    absolute = bias("tupe_a")
    relative = bias("tupe_r") - absolute
    rows = {
        "BERT-A": [*bert, None, sum(bert)],
        "TUPE-R": [apart, None, None, absolute, relative, apart + absolute + relative],
    }
    columns = ["word to word", "word to place", "place to word", "place to place", "distance", "score"]
    below = [
        ["$W^Q, W^K$", "the same $W^Q, W^K$", "the same", "the same", "", "one product of the sums"],
        ["$W^Q, W^K$ of each layer", "", "", "$U^Q, U^K$ of all layers", "T5's buckets", ""],
    ]
    figure = Figure(figsize=(13, 5.8), dpi=100)
    grid = figure.subplots(
        2, 6, gridspec_kw={"left": 0.135, "right": 0.985, "top": 0.9, "bottom": 0.17, "hspace": 0.35}
    )
    for y, (method, panels) in enumerate(rows.items()):
        for x, (panel, title, said) in enumerate(zip(panels, columns, below[y], strict=True)):
            axes = grid[y, x]
            axes.set_label(f"{method}: {title}")
            axes.set(xticks=[], yticks=[], xlim=(-0.5, length - 0.5), ylim=(length - 0.5, -0.5), aspect="equal")
            if y == 0:
                axes.text(0.5, 1.07, title, ha="center", fontsize=12, transform=axes.transAxes)
            if panel is None:
                axes.set_axis_off()
                continue
            axes.imshow(panel, cmap="RdBu_r", vmin=-5, vmax=5)
            axes.set_xlabel(said, fontsize=10.5)
            sign = "=" if x == 5 else "+" if x else ""
            axes.text(-0.1, 0.5, sign, ha="center", va="center", fontsize=16, transform=axes.transAxes)
        grid[y, 0].set_yticks(range(length), pieces, fontsize=9)
        grid[y, 0].text(-0.62, 0.5, method, ha="center", va="center", fontsize=14, transform=grid[y, 0].transAxes)
    for axes in grid[1, 3:5]:
        axes.add_patch(Rectangle((-0.5, -0.5), length, 1, fill=False, ec="black", lw=1.8, clip_on=False))
        axes.add_patch(Rectangle((-0.5, -0.5), 1, length, fill=False, ec="black", lw=1.8, clip_on=False))
    left, right = grid[1, 3].get_position().x0, grid[1, 4].get_position().x1
    figure.text(
        (left + right) / 2,
        0.035,
        "one bias: computed once, added in every layer and example;\nits row and column of [CLS] are learned numbers",
        ha="center",
        fontsize=11,
    )
    return figure


def normed(vectors: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and variance 1, as a layer norm makes them."""
    vectors = vectors - vectors.mean(-1, keepdims=True)
    return vectors / vectors.std(-1, keepdims=True)


def mcbert() -> Figure:
    """Questions about one text, from made-up draws; two pieces are masked, and one of them is drawn as it was."""
    text = ["[CLS]", "the", "cat", "slept", "on", "the", "mat", "[SEP]"]
    drawn = [  # by place: candidates in the order of the draws
        ["[CLS]", "[CLS]", "[CLS]", "[CLS]"],
        ["the", "a", "the", "his"],
        ["dog", "cat", "man", "dog"],
        ["sat", "slept", "was", "lay"],
        ["on", "in", "on", "by"],
        ["the", "the", "a", "this"],
        ["mat", "bed", "floor", "mat"],
        ["[SEP]", "[SEP]", "[SEP]", "[SEP]"],
    ]
    names = sorted({piece for row in [text, *drawn] for piece in row})
    names = ["?"] * NEITHER + ["<neither>"] + names
    ids = {name: number for number, name in enumerate(names)}
    tokens = np.array([[ids[piece] for piece in text]])
    samples = np.array([[[ids[piece] for piece in row] for row in drawn]])
    masked = np.isin(np.arange(len(text)), (2, 6))[None]
    questions = jax.tree.map(np.asarray, ask(jnp.asarray(samples), jnp.asarray(tokens), jnp.asarray(masked)))
    shown, answers, candidates = questions.inputs[0], questions.answers[0], questions.candidates[0]

    plain = [GREY] * len(text)
    k = samples.shape[-1]
    rows = [
        ("text", text, plain),
        (
            "the controller sees",
            ["[MASK]" if mask else piece for piece, mask in zip(text, masked[0], strict=True)],
            [ORANGE if mask else GREY for mask in masked[0]],
        ),
        *[
            (
                f"it draws, {('first', 'second', 'third', 'fourth')[i]}",
                [row[i] for row in drawn],
                [ORANGE if i == 0 and mask else WHITE for mask in masked[0]],
            )
            for i in range(k)
        ],
        (
            "the main model sees",
            [names[token] for token in shown],
            [ORANGE if mask else GREY for mask in masked[0]],
        ),
        *[
            (
                f"candidate {i}",
                [names[token] for token in candidates[:, i]],
                [BLUE if answer == i else WHITE for answer in answers],
            )
            for i in range(k)
        ],
    ]
    figure = Figure(figsize=(12, 6.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    gaps = {2: 0.25, 6: 0.5, 7: 0.75}  # before these rows
    offset = 0.0
    for number, (title, texts, colours) in enumerate(rows):
        offset = gaps.get(number, offset)
        y = -number - offset
        axes.text(-0.2, y, title, ha="right", va="center", fontsize=12)
        for x, (piece, colour) in enumerate(zip(texts, colours, strict=True)):
            box = FancyBboxPatch((x + 0.06, y - 0.32), 0.88, 0.64, boxstyle="round,pad=0.02", fc=colour, ec="#777777")
            axes.add_patch(box)
            axes.text(x + 0.5, y, piece, ha="center", va="center", fontsize=11)
    for x, mask in enumerate(masked[0]):
        if mask:
            said = "changed: the answer is the original" if answers[x] else "drawn as it was: unchanged"
            axes.text(x + 0.5, 0.62, said, ha="center", fontsize=10.5)
    axes.text(
        len(text) / 2,
        -len(rows) - 0.6,
        "here k = 4; the answers are blue; in the masked places the first draw goes into the main model's input",
        ha="center",
        fontsize=11,
    )
    axes.set_xlim(-2.4, len(text) + 0.1)
    axes.set_ylim(-len(rows) - 0.9, 1.0)
    axes.set_axis_off()
    return figure


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
    for figure in (tupe, tnf, mcbert):
        (FOLDER / f"{figure.__name__}.svg").write_bytes(svg(figure()))


if __name__ == "__main__":
    main()

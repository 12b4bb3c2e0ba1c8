"""The figures of the pages are drawn by the package's functions; what is drawn is what they say."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch

DOCS = Path(__file__).parents[2] / "docs"
BLUE = (0x56 / 255, 0xB4 / 255, 0xE9 / 255)


@pytest.fixture(scope="module")
def figures() -> dict:
    return runpy.run_path(str(DOCS / "figures.py"))


def test_notes_are_mixed_in_where_the_word_is_whole_and_contexts_reach_as_far_as_the_window(figures):
    axes = figures["tnf"]().axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    blue = [box for box in boxes if box.get_facecolor()[:3] == pytest.approx(BLUE)]
    by_row = {}
    for box in blue:
        by_row.setdefault(round(-box.get_y() - 0.32), []).append(round(box.get_x() - 0.06))
    assert by_row == {2: [2, 3, 4], 3: list(range(9)), 4: list(range(6, 17))}


def panels(figure) -> dict[str, np.ndarray]:
    return {axes.get_label(): np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images}


def test_bert_adds_four_terms_and_tupe_two_and_a_bias_in_which_cls_stands_apart(figures):
    found = panels(figures["tupe"]())
    methods = {name: [found[key] for key in found if key.startswith(name)] for name in ("BERT-A", "TUPE-R")}
    assert {name: len(them) for name, them in methods.items()} == {"BERT-A": 5, "TUPE-R": 4}
    for *terms, score in methods.values():
        np.testing.assert_allclose(sum(terms), score, rtol=1e-5)
    np.testing.assert_allclose(found["TUPE-R: word to word"] * 2**0.5, found["BERT-A: word to word"])
    for title in ("TUPE-R: place to place", "TUPE-R: distance"):
        assert np.ptp(found[title][0]) == np.ptp(found[title][1:, 0]) == pytest.approx(0, abs=1e-6)
        assert np.ptp(found[title][1:, 1:]) > 1
    distance = found["TUPE-R: distance"][1:, 1:]
    np.testing.assert_allclose(distance[1:, 1:], distance[:-1, :-1], atol=1e-6)  # it depends on j - i alone


def test_a_changed_place_asks_for_the_original_and_every_other_for_neither(figures):
    axes = figures["mcbert"]().axes[0]
    words = {(round(text.get_position()[0] - 0.5), text.get_position()[1]): text.get_text() for text in axes.texts}
    lines = sorted({y for x, y in words if x == 0 and (1, y) in words}, reverse=True)
    text, masked, first, *others = [[words[x, y] for x in range(8)] for y in lines]
    draws, shown, candidates = others[:3], others[3], others[4:]
    assert [place for place, piece in enumerate(masked) if piece == "[MASK]"] == [2, 6]
    assert shown == [first[x] if x in (2, 6) else piece for x, piece in enumerate(text)]
    assert (text[2] != shown[2], text[6] == shown[6]) == (True, True)
    assert candidates[0] == ["<neither>"] * 8
    assert candidates[1] == [text[2] if x == 2 else piece for x, piece in enumerate(draws[0])]
    assert candidates[2:] == draws[1:]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    blue = [box for box in boxes if box.get_facecolor()[:3] == pytest.approx(BLUE)]
    answers = {round(box.get_x() - 0.06): lines.index(pytest.approx(box.get_y() + 0.32)) - 7 for box in blue}
    assert answers == {x: int(x == 2) for x in range(8)}


def test_every_figure_is_drawn_and_every_one_that_a_page_shows_is_there(figures):
    drawn = {path.name for path in (DOCS / "figures").iterdir()}
    assert drawn == {"tnf.svg", "tupe.svg", "mcbert.svg"}
    shown = {name for page in DOCS.glob("*.md") for name in re.findall(r"figures/(\w+\.svg)", page.read_text())}
    assert shown == drawn

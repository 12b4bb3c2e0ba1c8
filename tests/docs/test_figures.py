"""The figures of the pages are drawn by the package's functions; what is drawn is what they say."""

import runpy
from pathlib import Path

import pytest
from matplotlib.patches import FancyBboxPatch

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def figures() -> dict:
    return runpy.run_path(str(DOCS / "figures.py"))


def test_notes_are_mixed_in_where_the_word_is_whole_and_contexts_reach_as_far_as_the_window(figures):
    axes = figures["tnf"]().axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    blue = [box for box in boxes if box.get_facecolor()[:3] == pytest.approx((0x56 / 255, 0xB4 / 255, 0xE9 / 255))]
    by_row = {}
    for box in blue:
        by_row.setdefault(round(-box.get_y() - 0.32), []).append(round(box.get_x() - 0.06))
    assert by_row == {2: [2, 3, 4], 3: list(range(9)), 4: list(range(6, 17))}


def test_every_figure_that_a_page_shows_is_there(figures):
    drawn = {path.name for path in (DOCS / "figures").iterdir()}
    shown = {name for page in DOCS.glob("*.md") for name in drawn if f"figures/{name}" in page.read_text()}
    assert shown == drawn == {"tnf.svg"}

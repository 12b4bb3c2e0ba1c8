import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpretrain.data.text import LONGEST_WORD, SPACE, normalise, words

ANY = st.text(st.characters(codec=None), max_size=200)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Two\u00a0words\t\nof\r\n text ", "two words of text"),
        ("ﬁne ① ＡＢＣ x²", "fine 1 abc x2"),
        ("zero\u200bwidth\ufeff soft\u00adhyphen \u202eright to left", "zerowidth softhyphen right to left"),
        ("NUL\0 ESC\x1b[0m \x1c", "nul esc[0m"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("a▁b", "a_b"),
        ("ΟΔΟΣ ΣΑΣ", "οδοσ σασ"),
        ("İstanbul", "i\u0307stanbul"),
        ("H\u0331 W\u030a İ\u0323", "ẖ ẘ ị\u0307"),  # one character when small, two when capital
        ("", ""),
        (" \u2028\x85 ", ""),
    ],
)
def test_normal_form(text: str, normal: str):
    assert normalise(text, lowercase=True) == normal


def test_case_is_kept_when_asked():
    assert normalise("ΣΑΣ The Cat", lowercase=False) == "ΣΑΣ The Cat"


@given(ANY, st.booleans())
def test_normalising_twice_changes_nothing(text: str, lowercase: bool):
    normal = normalise(text, lowercase)
    assert normalise(normal, lowercase) == normal
    normal.encode()


@given(ANY, st.characters(categories=("Lu", "Lt")), st.text(st.characters(categories=("Mn",)), max_size=3))
def test_capitals_with_marks_have_one_small_form(before: str, capital: str, marks: str):
    normal = normalise(before + capital + marks, lowercase=True)
    assert normalise(normal, lowercase=True) == normal
    assert unicodedata.is_normalized("NFKC", normal)


@given(st.text(st.sampled_from("eé가\u1161\u0301\u0316\u0f73\u0344\u3099!½\U0001d165"), min_size=60, max_size=300))
def test_long_runs_of_marks_are_what_nfkc_makes_of_them(text: str):
    assert normalise(text, lowercase=False) == " ".join(unicodedata.normalize("NFKC", text).split())


def test_a_million_marks_take_no_time():
    """Python's own NFKC would sort them for a quarter of an hour."""
    assert normalise("a" + "\u0315\u0316" * 500_000, lowercase=True) == "a" + "\u0316" * 500_000 + "\u0315" * 500_000


@given(ANY)
def test_words_give_the_text_back(text: str):
    normal = normalise(text, lowercase=True)
    cut = words(normal)
    assert "".join(cut).replace(SPACE, " ") == (" " + normal if normal else "")
    assert all(0 < len(word.removeprefix(SPACE)) <= LONGEST_WORD for word in cut)


@given(ANY)
def test_no_word_reaches_over_a_space(text: str):
    normal = normalise(text, lowercase=True)
    assert words(normal) == [word for chunk in normal.split() for word in words(chunk)]


def test_marks_stand_alone():
    assert words("don't stop (now), 3.5€ naïve…") == [
        "▁don",
        "'",
        "t",
        "▁stop",
        "▁(",
        "now",
        ")",
        ",",
        "▁3",
        ".",
        "5",
        "€",
        "▁naïve",
        "…",
    ]


def test_classes_are_those_of_unicode():
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        kind = unicodedata.category(character)
        if kind in ("Cs", "Cf") or (kind == "Cc" and not character.isspace()):
            assert normalise(f"a{character}b", False) == "ab"
        elif kind[0] in "PS":
            assert words(f"a{character}b") == ["▁a", character, "b"]
        elif not character.isspace():
            assert words(f"a{character}b") == [f"▁a{character}b"]


def test_a_run_without_spaces_is_cut():
    text = "語" * 200
    assert [len(word) for word in words(text)] == [65, 64, 64, 8]

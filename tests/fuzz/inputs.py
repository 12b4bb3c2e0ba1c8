"""Hostile inputs: strategies that know what the formats look like, and what breaks those who read them."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

from jaxpretrain.data.tokenizer import SPECIAL_PIECES

# Special pieces in every spelling, with invisible characters between, and what other libraries call theirs.
SPECIAL = [
    *SPECIAL_PIECES,
    *(piece.lower() for piece in SPECIAL_PIECES),
    *("▁" + piece for piece in SPECIAL_PIECES),
    *("\u200b".join(piece) for piece in SPECIAL_PIECES),
    *(
        "［ＭＡＳＫ］",
        "[ MASK ]",
        "[MASK\u200d]",
        "\u202e]KSAM[",
        "[\u00adMASK]",
        "[MASK][MASK]",
        "\\[MASK\\]",
        "&#91;MASK]",
    ),
    *("<s>", "</s>", "<unk>", "<pad>", "<mask>", "<0x0A>", "▁", "▁▁", "\u2585", "<|endoftext|>", "<extra_id_0>"),
]
NASTY = [
    *(
        "\0",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\x1b[2J",
        "\x85",
        "\u2028",
        "\u2029",
        "\ufeff",
        "\ufffd",
        "\ufffe",
        "\U0010ffff",
    ),
    *("\u200b", "\u200d", "\u200f", "\u202e", "\u2066", "\u00ad", "\u034f", "\ufe0f", "\U000e0041"),  # invisible, bidi
    *("\ud800", "\udfff", "\udc80", "\udcff"),  # lone surrogates
    *(
        "e\u0301",
        "é",
        "H\u0331",
        "\u0344",
        "\u0f73",
        "\u1e9e",
        "İ",
        "ς",
        "Σ",
        "ﬁ",
        "ﷺ",
        "½",
        "①",
        "Ａ",
        "\u1112\u1161\u11ab",
    ),
    *(
        "한국어",
        "日本語",
        "中文字",
        "ไทย",
        "العربية",
        "עברית",
        "हिन्दी",
        "👩\u200d👩\u200d👧",
        "🏴",
        "\ue000",
        "\U000f0000",
    ),
    *(
        "'",
        '"',
        '""',
        "`",
        "$x$",
        "{}",
        "%s",
        "\\",
        "|",
        "#",
        "@",
        "+",
        "-",
        "--",
        "*",
        "?",
        "[a]",
        "~",
        "/",
        "..",
        "&",
        "<b>",
    ),
    *("1e999", "-0", "nan", "NaN", "inf", "٣", "0x1F", "1_000", "1e39", "label", "text", "score", "\u3000", "\xa0"),
]
WORDS = ["the", "ship", "sails", "over", "sea", "sailor", "winds", "Reading", "organisms", "don't", "3.5"]

characters = st.characters(codec=None)  # all categories, lone surrogates too


def texts(longest: int = 40, surrogates: bool = True) -> st.SearchStrategy[str]:
    """Words among special pieces, nasty characters, runs of marks and anything at all."""
    marks = st.text(st.characters(categories=("Mn", "Mc", "Me")), min_size=1, max_size=100)
    part = st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(WORDS),
        st.sampled_from(SPECIAL),
        st.sampled_from(NASTY),
        st.text(characters, max_size=8),
        marks,
        st.builds(lambda c, n: c * n, characters, st.sampled_from([2, 63, 64, 65, 200])),
    )
    joined = st.builds(
        lambda parts, space: space.join(parts),
        st.lists(part, max_size=longest),
        st.sampled_from(["", " ", " ", "\n", "\u200b"]),
    )
    return joined if surrogates else joined.map(lambda text: text.encode(errors="ignore").decode())


def names() -> st.SearchStrategy[str]:
    """Of files and folders: whatever a file system takes."""
    return (
        texts(4)
        .map(lambda name: name.replace("/", "_").replace("\0", "").encode("utf-8", "surrogatepass")[:60])
        .map(lambda name: name.decode("utf-8", "surrogateescape"))
        .filter(lambda name: name.strip(".") != "")
    )


# Numbers that are none, too large, or of another type; and what is nested too deep.
ODD = [None, True, False, 0, -1, 1, 2, 2.0, 0.5, 10**30, 10**400, -(10**400), 1e308, 5e-324, float("nan"), float("inf")]
ODD += ["", "x", "0", [], {}, [[]], [None], {"": None}, ["a", 1], {"type": 3}, {"a": {"b": {}}}]
DEEP = ["[" * 100_000, '{"a":' * 980 + "1" + "}" * 980, "[" * 980 + "]" * 980]


def json_values() -> st.SearchStrategy[Any]:
    """What a JSON file may hold where something else is expected."""
    leaves = st.sampled_from(ODD) | texts(3) | st.integers() | st.floats()
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(2), inner, max_size=3), max_leaves=6
    )


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A value of JSON with one to three of its parts gone, doubled, renamed or replaced."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        rooms: list[tuple[Any, Any]] = []
        stack = [value]
        while stack:
            room = stack.pop()
            keys = list(room) if isinstance(room, dict) else list(range(len(room))) if isinstance(room, list) else []
            # Of many alike, such as the pieces of a vocabulary, the first few and the last.
            keys = keys if len(keys) < 20 else [*keys[:8], *keys[-2:]]
            rooms += [(room, key) for key in keys]
            stack += [room[key] for key in keys if isinstance(room[key], dict | list)]
        if not rooms:
            return copy.deepcopy(draw(json_values()))
        room, key = draw(st.sampled_from(rooms))
        how = draw(st.sampled_from(["replace", "replace", "remove", "other", "rename"]))
        if how == "replace":
            room[key] = copy.deepcopy(draw(json_values()))  # which may be changed in turn
        elif how == "remove":
            del room[key]
        elif how == "other":
            elsewhere, at = draw(st.sampled_from(rooms))
            room[key] = copy.deepcopy(elsewhere[at])
        elif isinstance(room, dict):
            room[draw(texts(2))] = room.pop(key)
    return value


@st.composite
def json_texts(draw: st.DrawFn, value: Any) -> str:
    """The text of a changed value; now and then damaged, doubled or much too deep."""
    text = json.dumps(draw(changed(value)), ensure_ascii=draw(st.booleans()))
    how = draw(st.sampled_from(["whole"] * 6 + ["cut", "twice", "deep"]))
    if how == "cut":
        text = text[: draw(st.integers(0, len(text)))]
    elif how == "twice" and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ", " + text[1:]  # every key twice
    elif how == "deep":
        text = draw(st.sampled_from(DEEP))
    return text


@st.composite
def damaged(draw: st.DrawFn, content: bytes, words: tuple[bytes, ...] = ()) -> bytes:
    """Bytes with up to four of them, or of their runs, changed, gone, doubled, or put elsewhere."""
    data = bytearray(content)
    numbers = (
        [bytes(n) for n in (1, 4, 8)] + [b"\xff" * n for n in (1, 4, 8)] + [b"\x7f\xff\xff\xff", b"\x80", b"\x00\x01"]
    )
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 50, 1000]))
        how = draw(st.sampled_from(["flip", "set", "insert", "remove", "double", "move", "cut"]))
        if how == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "set":
            new = draw(st.sampled_from([*numbers, *words]) | st.binary(min_size=1, max_size=8))
            data[place : place + len(new)] = new
        elif how == "insert":
            data[place:place] = draw(st.sampled_from([*numbers, *words]) | st.binary(min_size=1, max_size=8))
        elif how == "remove":
            del data[place : place + length]
        elif how == "double":
            data[place:place] = data[place : place + length]
        elif how == "move":
            run = data[place : place + length]
            del data[place : place + length]
            to = draw(st.integers(0, len(data)))
            data[to:to] = run
        elif how == "cut":
            del data[place:]
    return bytes(data)


def not_utf8(text: str) -> bytes:
    """A text as bytes: escaped ones as they were, other lone surrogates as the bytes that are forbidden for them."""
    return text.encode("utf-8", "surrogatepass")


OVERLONG = [
    b"\xc0\x80",
    b"\xc1\xbf",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xf4\x90\x80\x80",
    b"\xed\xa0\x80",
    b"\xff\xfe",
    b"\x80" * 9,
]

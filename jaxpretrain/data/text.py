"""Normal form of text, and its cut into words: the unit that is counted, tokenised and, in TNF, noted.

Models leave for Hugging Face with their tokenizer, so both functions are what a fast tokenizer can express:

    normalizers.Sequence([
        Replace(Regex(r"[[\\p{Cc}\\p{Cf}\\p{Cs}]&&[^\\t-\\r\\x{85}]]"), ""),
        NFKC(),
        Replace("Σ", "σ"), Lowercase(), NFKC(),               # with lowercase=True
        Replace("▁", "_"),
        Replace(Regex(r"\\s+"), " "), Strip(), Prepend(" "),
    ])
    pre_tokenizers.Sequence([
        Split(Regex(r" ?[^\\s\\p{P}\\p{S}]{1,64}| ?[\\p{P}\\p{S}]"), "isolated"),
        Metaspace(replacement="▁", prepend_scheme="never", split=False),
    ])
"""

import functools
import itertools
import re
import sys
import unicodedata

SPACE = "▁"  # SentencePiece's mark of a word's start
LONGEST_WORD = 64  # characters; longer runs, and scripts without spaces, are cut so that each cut is a word


@functools.cache
def _runs() -> list[tuple[str, int, int]]:
    """(category, first, last) of the characters that follow each other and share their Unicode category."""
    found, first = [], 0
    for category, run in itertools.groupby(map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))):
        last = first + sum(1 for _ in run) - 1
        found.append((category, first, last))
        first = last + 1
    return found


@functools.cache  # made on first use: most commands start without text, and a million characters are looked at
def _removed() -> dict[int, None]:
    """Controls (NUL, ESC, …), formats (zero-width space and joiners, BOM, soft hyphen, …) and lone surrogates.

    The controls from tab to return, and NEL, are white space.
    """
    runs = [range(first, last + 1) for category, first, last in _runs() if category in ("Cc", "Cf", "Cs")]
    return dict.fromkeys(set(itertools.chain(*runs)) - {*range(0x09, 0x0E), 0x85})


@functools.cache
def _word() -> re.Pattern[str]:
    marks = "".join(f"\\U{first:08x}-\\U{last:08x}" for category, first, last in _runs() if category[0] in "PS")
    return re.compile(f" ?[^\\s{marks}]{{1,{LONGEST_WORD}}}| ?[{marks}]")


_LONG_RUN = re.compile(r"[^\w\s]{64,}")  # where a run of combining marks may be that no language has


def normalise(text: str, lowercase: bool) -> str:
    """Compatibility forms unified (NFKC), invisible characters gone, one space wherever there was white space.

    "▁" becomes "_": it would read as a space. "Σ" is lowered by hand: `str.lower` makes it "ς" at the end of a word.
    A small letter may be one character with its mark ("ẖ") where the capital is two, hence NFKC again.
    """
    if text.isascii():  # NFKC leaves it as it is
        text = text.translate(_removed())
    else:
        characters = set(text)  # a few dozen: looking at each of them takes less than one pattern over the text
        if not _removed().keys().isdisjoint(map(ord, characters)):
            text = text.translate(_removed())
        if any(map(unicodedata.combining, characters)):
            text = _LONG_RUN.sub(_in_order, text)
        text = unicodedata.normalize("NFKC", text)
    if lowercase:
        text = unicodedata.normalize("NFKC", text.replace("Σ", "σ").lower())
    return " ".join(text.replace(SPACE, "_").split())


def _in_order(run: re.Match[str]) -> str:
    """Combining marks in the order that NFKC gives them: Python's takes time quadratic in their number to find it."""
    marks = "".join(unicodedata.normalize("NFKD", mark) for mark in run[0])
    found: list[str] = []
    for _, group in itertools.groupby(marks, lambda mark: unicodedata.combining(mark) > 0):
        found += sorted(group, key=unicodedata.combining)
    return "".join(found)


def words(normal: str) -> list[str]:
    """Cuts normalised text into words; joined, they give it back with "▁" before each word that followed a space.

    A punctuation mark or symbol is a word of its own. The first word has its "▁" too.
    """
    if not normal:
        return []
    if normal.isalnum() and len(normal) <= LONGEST_WORD:  # most of what stands between two spaces
        return [SPACE + normal]
    return [word.replace(" ", SPACE) for word in _word().findall(" " + normal)]

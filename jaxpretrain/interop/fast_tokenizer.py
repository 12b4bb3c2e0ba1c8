"""Our tokenizer as Hugging Face's: `tokenizer.json`, which the `tokenizers` library runs without any code of ours.

The rules of `data/text.py` become normalizers and pre-tokenizers; the SentencePiece model becomes a `Unigram` or `BPE`
model over the same pieces with the same ids. Where the two still differ: docs/interchange.md.
"""

import unicodedata
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from jaxpretrain.config import ConfigError
from jaxpretrain.data.text import LONGEST_WORD, SPACE
from jaxpretrain.data.tokenizer import CLS, MASK, PAD, SEP, SPECIAL_PIECES, UNK, Tokenizer
from jaxpretrain.interop.foreign_tokenizer import ForeignTokenizer, fast

# `<neither>` is a piece like any other there: a text that names it must not become it.
NAMES = {PAD: "pad_token", UNK: "unk_token", CLS: "cls_token", SEP: "sep_token", MASK: "mask_token"}

INVISIBLE = r"[[\p{Cc}\p{Cf}\p{Cs}]&&[^\t-\r\x{85}]]"
WORDS = rf" ?[^\s\p{{P}}\p{{S}}]{{1,{LONGEST_WORD}}}| ?[\p{{P}}\p{{S}}]"

# Characters with compatibility forms that the library's NFKC tables are too old to know, up to Unicode 17: one, or the
# first and the last of a range.
LATER_FORMS = ("\u32ff", "\ua7f1\ua7f4", "\uab69", "\U00010781\U000107ba", "\U0001ccd6\U0001ccf9")
LATER_FORMS += ("\U0001e030\U0001e06d", "\U0001f16c", "\U0001fbf0\U0001fbf9")


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`.

    Raises:
        ConfigError: the SentencePiece model has pieces of a kind that a fast tokenizer has not.
    """
    ours = {"added_tokens": [added_token(i) for i in NAMES], "post_processor": post_processor()}
    if isinstance(tokenizer, ForeignTokenizer):
        return tokenizer.values | ours
    normalizer = {"type": "Sequence", "normalizers": normalizers(tokenizer.lowercase)}
    pre_tokenizer = {"type": "Sequence", "pretokenizers": pre_tokenizers()}
    decoder = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False}
    return fast(model(tokenizer), normalizer, pre_tokenizer, decoder) | ours


def tokenizer_config(longest: int, segments: bool) -> dict[str, Any]:
    """The content of `tokenizer_config.json`.

    Args:
        longest: positions of the model.
        segments: whether the model tells the two texts of a pair apart.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
        **special_tokens_map(),
        "added_tokens_decoder": {
            str(i): {name: value for name, value in added_token(i).items() if name != "id"} for i in NAMES
        },
    }


def special_tokens_map() -> dict[str, str]:
    """The content of `special_tokens_map.json`, which older versions read."""
    return {name: SPECIAL_PIECES[i] for i, name in NAMES.items()}


def added_token(piece: int) -> dict[str, Any]:
    """A piece that is looked for in the raw text."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": piece, "content": SPECIAL_PIECES[piece], **plain, "special": True}


def normalizers(lowercase: bool) -> list[dict[str, Any]]:
    """`text.normalise`, and the space that `text.words` puts before the first word."""
    later = (chr(code) for span in LATER_FORMS for code in range(ord(span[0]), ord(span[-1]) + 1))
    forms = ((character, unicodedata.normalize("NFKC", character)) for character in later)
    return [
        replace({"Regex": INVISIBLE}, ""),
        *(replace({"String": character}, form) for character, form in forms if form != character),
        {"type": "NFKC"},
        *([replace({"String": "Σ"}, "σ"), {"type": "Lowercase"}, {"type": "NFKC"}] if lowercase else []),
        replace({"String": SPACE}, "_"),
        replace({"Regex": r"\s+"}, " "),
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Prepend", "prepend": " "},
    ]


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """A normalizer that replaces what a pattern finds."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def pre_tokenizers() -> list[dict[str, Any]]:
    """`text.words`."""
    return [
        {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False},
    ]


def post_processor() -> dict[str, Any]:
    """`[CLS] text [SEP]`, and `[CLS] first [SEP] second [SEP]` with type 1 for the second text and its [SEP]."""

    def special(piece: int, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": SPECIAL_PIECES[piece], "type_id": kind}}

    def text(name: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": kind}}

    single = [special(CLS, 0), text("A", 0), special(SEP, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), special(SEP, 1)],
        "special_tokens": {
            SPECIAL_PIECES[i]: {"id": SPECIAL_PIECES[i], "ids": [i], "tokens": [SPECIAL_PIECES[i]]} for i in (CLS, SEP)
        },
    }


def model(tokenizer: Tokenizer) -> dict[str, Any]:
    """The pieces, and how a word is cut into them."""
    proto: Any = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]  # made at import
    parsed = proto.FromString(tokenizer.model)
    kinds = proto.SentencePiece
    for piece in parsed.pieces:
        if piece.type not in (kinds.NORMAL, kinds.UNKNOWN, kinds.CONTROL):
            kind = kinds.Type.Name(piece.type).lower().replace("_", "-")
            raise ConfigError(f"tokenizer: the piece {piece.piece!r} is {kind}, which a fast tokenizer cannot express")
    # A special piece never wins: no word holds its spelling. 0.0 keeps it out of the lowest score, from which the
    # score of an unknown character is reckoned.
    pieces = [(piece.piece, piece.score if piece.type == kinds.NORMAL else 0.0) for piece in parsed.pieces]
    if parsed.trainer_spec.model_type == parsed.trainer_spec.UNIGRAM:
        return {"type": "Unigram", "unk_id": UNK, "vocab": [list(pair) for pair in pieces], "byte_fallback": False}
    if parsed.trainer_spec.model_type == parsed.trainer_spec.BPE:
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": SPECIAL_PIECES[UNK],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: i for i, (piece, _) in enumerate(pieces)},
            "merges": merges(pieces),
        }
    raise ConfigError("tokenizer: its model_type is neither unigram nor bpe, and a fast tokenizer has no other")


def merges(pieces: list[tuple[str, float]]) -> list[list[str]]:
    """The pairs that BPE joins, the first ones first.

    SentencePiece joins the two neighbours whose union has the best score, however the union is cut in two. So each
    piece gives all its cuts, next to each other in the order.
    """
    ordinary = pieces[len(SPECIAL_PIECES) :]
    known = {piece for piece, _ in ordinary}
    found = []
    for piece, _ in sorted(ordinary, key=lambda pair: -pair[1]):
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found += [[left, right] for left, right in cuts if left in known and right in known]
    return found

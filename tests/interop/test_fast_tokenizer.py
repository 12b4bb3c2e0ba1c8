"""`tokenizer.json` cuts text as ours does, and says what it cannot express."""

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources.pydocs import modules, paragraphs_of
from jaxpretrain.data.text import normalise
from jaxpretrain.data.tokenizer import MASK, SPECIAL_PIECES, Tokenizer
from jaxpretrain.evaluation.trained import to_ids
from jaxpretrain.interop.fast_tokenizer import tokenizer_json

REASON = "needs the library tokenizers, which pip install 'jaxpretrain[hf]' brings"
KINDS = pytest.mark.parametrize(("kind", "lowercase"), [(k, low) for k in ("unigram", "bpe") for low in (True, False)])

HOSTILE = [
    "",
    " \t\n\r\x0b\x0c\x85\u2028\u2029\u3000\xa0",
    "\x00a\x01b\x7f\x1b[0m \x1c\x1d\x1e\x1f",
    "a\u200bb\u200dc\ufeffd\u00ade\u2060f \u180e",
    "😀😃👨‍👩‍👧 🇫🇷 ✌🏽",
    "e\u0301 a\u0323\u0302 \u0300\u0301 a" + "\u0300" * 70,
    "▁ ▁▁ a▁b ▁the",
    "Σ ΟΔΥΣΣΕΥΣ ΣΑΣ. σς 𝚺",
    "x" * 10_000,
    "dog" * 3_000 + " " + "日本語" * 200,
    "İstanbul ıi ǅ ẞß ŉ ﬃ ½ ² ℌ K Å ﷺ",
    "\ufffd\ufffe\uffff \ue000 \U0010ffff \U000e0001",
    "!!!???...--- ¨´ ‱ a.b,c;d",
    "hahahahaha aaaaaaa 0000000000",
    "< neither > <neither> [ MASK ] [MASK [mask] MASK]",
    "ไทยแลนด์ 가각 ᄀ ᅡ ١٢٣ ⅷ ⒈",
    "㋿ a\ua7f2b \uab69\u0301 x\U000107a5 \U0001f16c \U0001fbf1\U0001fbf9",
]


@pytest.fixture
def fast(tokenizers):
    """`fast("bpe", True)`: ours, and the library's from its file."""
    library = pytest.importorskip("tokenizers", reason=REASON)

    def get(kind: str, lowercase: bool) -> tuple[Tokenizer, Any]:
        ours = tokenizers(kind, lowercase)
        return ours, library.Tokenizer.from_str(json.dumps(tokenizer_json(ours)))

    return get


def check(ours: Tokenizer, theirs: Any, texts: list[str]) -> int:
    """The same ids, text by text; returns how many."""
    found = [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=False)]
    for text, ids in zip(texts, found, strict=True):
        assert ids == ours.encode(text).tolist(), repr(text[:200])
    return sum(map(len, found))


@KINDS
def test_hostile_text(fast, kind: str, lowercase: bool) -> None:
    assert check(*fast(kind, lowercase), HOSTILE) > 200


@KINDS
def test_prose_of_the_python_docs(fast, kind: str, lowercase: bool) -> None:
    named = [module for module in modules() if Path(module).stem in ("argparse", "typing", "unicodedata", "decimal")]
    texts = [paragraph for module in named for document in paragraphs_of(module) for paragraph in document]
    assert check(*fast(kind, lowercase), texts) > 2_000


@KINDS
def test_text_made_up_of_all_characters(fast, kind: str, lowercase: bool) -> None:
    """Those that this Python's Unicode knows, alone and in a row."""
    rng = random.Random(0)
    known = [c for c in map(chr, range(0x11_0000)) if unicodedata.category(c) not in ("Cs", "Cn")]
    texts = ["".join(rng.choices(known, k=rng.randint(1, 40))) for _ in range(1_500)]
    texts += [f"x{c}y" for c in known if not 0x3400 <= ord(c) <= 0x10_FFFF or c in "𝚺🇫"]
    assert check(*fast(kind, lowercase), texts) > 20_000


@pytest.mark.parametrize("lowercase", [True, False])
def test_the_normal_form_of_every_character(fast, lowercase: bool) -> None:
    """Also of those whose compatibility form is newer than the library's tables."""
    _, theirs = fast("unigram", lowercase)
    changed = [c for c in map(chr, range(0x11_0000)) if unicodedata.normalize("NFKC", c) != c]
    assert len(changed) > 4_000
    found = {c: theirs.normalizer.normalize_str(f"x{c}y") for c in changed}
    assert {c: form for c, form in found.items() if form != " " + normalise(f"x{c}y", lowercase)} == {}


@hypothesis.given(text=st.text(alphabet="thequickbrown fox.-'\u0301\n", max_size=60))
@hypothesis.settings(
    max_examples=150, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_text_of_known_characters(fast, text: str) -> None:
    check(*fast("bpe", True), [text])


@KINDS
def test_a_typed_mask_is_the_special_piece(fast, kind: str, lowercase: bool) -> None:
    ours, theirs = fast(kind, lowercase)
    for text in ("the [MASK] fox", "[MASK]", "a[MASK]b [MASK][MASK].", " [MASK] ", "[mask] [MASK"):
        ids = theirs.encode(text).ids
        assert ids == to_ids(ours, text, 512)
        assert ids.count(MASK) == text.count("[MASK]")


def test_decoding(fast) -> None:
    ours, theirs = fast("unigram", True)
    for text in ("The quick fox, and the dog.", "[MASK] dogs"):
        ids = theirs.encode(text).ids
        assert theirs.decode(ids, skip_special_tokens=False).startswith("[CLS]")
    ids = ours.encode("the quick fox does not mind.").tolist()
    assert theirs.decode(ids) == ours.decode(ids) == "the quick fox does not mind."


def test_ids_and_names_of_the_special_pieces(fast) -> None:
    _, theirs = fast("unigram", True)
    assert [theirs.token_to_id(piece) for piece in SPECIAL_PIECES] == list(range(6))
    assert [
        piece
        for piece in SPECIAL_PIECES
        if theirs.encode(piece, add_special_tokens=False).ids == [theirs.token_to_id(piece)]
    ] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_content_is_json(tokenizers, kind: str) -> None:
    """Without the library: it is written by hand."""
    ours = tokenizers(kind, True)
    values = tokenizer_json(ours)
    assert json.loads(json.dumps(values)) == values
    assert len(values["model"]["vocab"]) == ours.vocab_size


def changed(ours: Tokenizer, **kinds: int) -> Tokenizer:
    """The tokenizer with a field of the trainer's, or the last piece's type, set."""
    proto: Any = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
    parsed = proto.FromString(ours.model)
    if "piece" in kinds:
        parsed.pieces[-1].type = kinds["piece"]
    if "model" in kinds:
        parsed.trainer_spec.model_type = kinds["model"]
    return Tokenizer(parsed.SerializeToString())


def test_what_cannot_be_expressed_is_refused(tokenizers) -> None:
    ours = tokenizers("unigram", True)
    with pytest.raises(ConfigError, match="is user-defined, which a fast tokenizer cannot express"):
        tokenizer_json(changed(ours, piece=4))
    with pytest.raises(ConfigError, match="neither unigram nor bpe"):
        tokenizer_json(changed(ours, model=4))

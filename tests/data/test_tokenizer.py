import io
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from jaxpretrain.config import ConfigError
from jaxpretrain.data import tokenizer as tokenizers
from jaxpretrain.data.text import normalise, words
from jaxpretrain.data.tokenizer import SPECIAL_PIECES, UNK, Tokenizer, adopt, train

TEXT = (
    "The ship sails over the sea, and the sea carries the ship. Ships are carried by seas (and by winds). "
    "A sailor reads the wind; the winds read no sailors. Reading and sailing, sailing and reading: all organisms sail. "
) * 20


def _train(folder: Path, kind: str = "unigram", lowercase: bool = True, vocab_size: int = 200) -> Tokenizer:
    counts = Counter(words(normalise(TEXT, lowercase)))
    return train(sorted(counts.items()), folder, vocab_size=vocab_size, kind=kind, lowercase=lowercase)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _train(tmp_path_factory.mktemp("tokenizer"), request.param)


def test_special_ids():
    assert SPECIAL_PIECES == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<neither>")
    names = ("PAD", "UNK", "CLS", "SEP", "MASK", "NEITHER")
    assert [getattr(tokenizers, name) for name in names] == [0, 1, 2, 3, 4, 5]


def test_special_pieces_have_these_ids(tokenizer: Tokenizer):
    assert [tokenizer.id_to_piece(i) for i in range(6)] == list(SPECIAL_PIECES)
    assert [tokenizer.is_special(i) for i in (0, 5, 6)] == [True, True, False]


@pytest.mark.parametrize("text", [*SPECIAL_PIECES, "the [MASK] sails", "<s> </s> <unk> <pad>", "[CLS]ship[SEP]"])
def test_special_pieces_never_come_out_of_text(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert len(ids)
    assert set(ids[ids < len(SPECIAL_PIECES)]) <= {UNK}


@given(st.text(st.characters(codec=None), max_size=100))
def test_only_unk_comes_out_of_any_text(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert set(ids[ids < len(SPECIAL_PIECES)]) <= {UNK}


def test_decode_gives_the_text_back(tokenizer: Tokenizer):
    text = "the sailor reads, and the winds (all) sail."
    assert tokenizer.decode(tokenizer.encode(text.upper())) == text


def test_decode_shows_masks_and_hides_the_frame(tokenizer: Tokenizer):
    ids = [2, *tokenizer.encode("the ship"), 4, *tokenizer.encode("the sea"), 3, 0, 0]
    assert tokenizer.decode(ids) == "the ship [MASK] the sea"


@pytest.mark.parametrize("text", [TEXT[:300], "", "unseen Zebras: quizzically!", "a" * 300, "海が青い" * 40])
def test_encoding_is_word_by_word(tokenizer: Tokenizer, text: str):
    ids, processor = tokenizer.encode(text), sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    assert ids.dtype == np.int32
    cut = words(normalise(text, True))
    apart = [processor.encode(word) for word in cut]
    assert ids.tolist() == [i for of_word in apart for i in of_word]
    assert [tokenizer.pieces_in(word) for word in cut] == [len(of_word) for of_word in apart]


def test_the_cache_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    expected = tokenizer.encode(TEXT)
    monkeypatch.setattr(tokenizers, "_CACHED", 3)
    small = Tokenizer(tokenizer.model)
    np.testing.assert_array_equal(small.encode(TEXT), expected)
    assert len(small._ids_of_chunk) <= 3


def test_frequent_whole_words_are_pieces(tokenizer: Tokenizer):
    # They end where the word ends, always: SentencePiece's own start set for unigram would not hold them.
    assert [tokenizer.id_to_piece(i) for i in tokenizer.encode("the organisms (")] == ["▁the", "▁organisms", "▁("]


@pytest.mark.parametrize("lowercase", [True, False])
def test_the_file_alone_is_the_tokenizer(tmp_path: Path, lowercase: bool):
    made = _train(tmp_path, lowercase=lowercase)
    path = made.save(tmp_path)
    assert path == tmp_path / "tokenizer.model"
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.model"]
    for place in (path, tmp_path):
        loaded = Tokenizer.load(place)
        assert loaded.lowercase == lowercase
        np.testing.assert_array_equal(loaded.encode(TEXT), made.encode(TEXT))
    assert (made.encode("SHIP")[0] == made.encode("ship")[0]) == lowercase


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_is_deterministic(tmp_path: Path, kind: str):
    first, second = tmp_path / "a", tmp_path / "longer-name"
    first.mkdir()
    second.mkdir()
    assert _train(first, kind).model == _train(second, kind).model


def test_small_text_gives_fewer_pieces(tokenizer: Tokenizer, tmp_path: Path):
    assert _train(tmp_path, vocab_size=8192).vocab_size < 300
    assert tokenizer.vocab_size <= 200


def test_too_few_pieces_for_the_characters(tmp_path: Path):
    counts = [(chr(0x4E00 + i), 1) for i in range(200)]
    with pytest.raises(ConfigError, match=r"data.vocab_size=100: .*206"):
        train(counts, tmp_path, vocab_size=100, kind="unigram", lowercase=True)
    assert not list(tmp_path.iterdir())


def _own_model(path: Path, **options: object) -> Path:
    text = path.with_suffix(".txt")
    text.write_text("\n".join(TEXT.split(". ")))
    model = io.BytesIO()
    settings = {
        "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3,
        "pad_piece": "[PAD]", "unk_piece": "[UNK]", "bos_piece": "[CLS]", "eos_piece": "[SEP]",
        "control_symbols": ["[MASK]", "<neither>"],
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=2,
        **(settings | options),
    )
    path.write_bytes(model.getvalue())
    return path


def test_a_model_of_ones_own(tmp_path: Path):
    path = _own_model(tmp_path / "own.model")
    tokenizer = adopt(path, lowercase=False)
    assert tokenizer.decode(tokenizer.encode("The ship sails over the sea")) == "The ship sails over the sea"
    assert not any(tokenizer.id_to_piece(i).startswith("▁▁") for i in tokenizer.encode("The ship"))
    assert tokenizer.id_to_piece(tokenizer.encode("sea")[0]).startswith("▁")


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"control_symbols": ["<neither>", "[MASK]"]}, r"\[MASK\] at id 4"),
        ({"control_symbols": [], "user_defined_symbols": ["[MASK]", "<neither>"]}, r"\[MASK\] at id 4"),
        ({"pad_piece": "<pad>"}, r"\[PAD\] at id 0"),
    ],
)
def test_a_model_without_the_special_pieces(tmp_path: Path, options: dict[str, object], missing: str):
    path = _own_model(tmp_path / "own.model", **options)
    with pytest.raises(ConfigError, match=rf"data.tokenizer: .*own.model .*{missing}; .*--control_symbols"):
        adopt(path, lowercase=True)


def test_files_that_are_no_tokenizers(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data.tokenizer: cannot read .*missing.model: No such file"):
        adopt(tmp_path / "missing.model", lowercase=True)
    for content in (b"", b"\xff\xfehello", b"plain text, no model"):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad.model is not a SentencePiece model"):
            adopt(tmp_path / "bad.model", lowercase=True)
    own = _own_model(tmp_path / "own.model")
    with pytest.raises(ConfigError, match=r"own.model was not written by"):
        Tokenizer.load(own)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.pieces.append(model.pieces[-1]), "already defined"),
        (lambda model: model.pieces.add(piece=""), "must not be empty"),
        (lambda model: model.pieces.add(piece="x", score=float("nan")), "NaN"),
        (lambda model: model.pieces.add(piece="x" * 10_000), "too long"),
    ],
)
def test_models_that_sentencepiece_refuses(tmp_path: Path, change: Callable[[Any], Any], reason: str):
    path = _train(tmp_path).save(tmp_path)
    model = tokenizers._Model.FromString(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    for call in (Tokenizer.load, partial(adopt, lowercase=True)):
        with pytest.raises(ConfigError, match=rf"tokenizer.model is not a SentencePiece model: .*{reason}"):
            call(path)


def test_a_piece_that_is_no_text(tmp_path: Path):
    path = _train(tmp_path).save(tmp_path)
    path.write_bytes(path.read_bytes().replace("▁sea".encode(), b"\xff" * 6, 1))
    with pytest.raises(ConfigError, match=r"is not a SentencePiece model: .*can't decode byte 0xff"):
        adopt(path, lowercase=True)


@pytest.mark.parametrize("call", [Tokenizer.load, lambda path: adopt(path, lowercase=True)])
def test_a_normaliser_whose_name_is_no_text(tmp_path: Path, call):
    path = _train(tmp_path).save(tmp_path)
    whole = path.read_bytes()
    assert whole.count(b"jaxpretrain") == 1
    path.write_bytes(whole.replace(b"jaxpretrain", b"\xff" * 11))
    with pytest.raises(ConfigError, match=r"is not a SentencePiece model: the name of its normaliser is not UTF-8"):
        call(path)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"cannot read .*pipe: not a file"):
        adopt(tmp_path / "pipe", lowercase=True)
    with pytest.raises(ConfigError, match=r"cannot read .*pipe: not a file"):
        Tokenizer.load(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"cannot read ~nobody-of-this-name/x: No such file"):
        adopt("~nobody-of-this-name/x", lowercase=True)


def test_case_of_a_tokenizer_of_ours_is_checked(tmp_path: Path):
    path = _train(tmp_path, lowercase=True).save(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.lowercase=False"):
        adopt(path, lowercase=False)
    assert adopt(path, lowercase=True).model == path.read_bytes()

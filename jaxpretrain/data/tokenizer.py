"""Word pieces: a SentencePiece model that is trained on word counts and encodes word by word.

The special pieces have fixed ids and never come out of text. The model file is all there is: what text must go through
before it (lower case or not) stands in the model's own `normalizer_spec.name`.
"""

import heapq
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import sentencepiece
from etils import epath
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from jaxpretrain.config import ConfigError
from jaxpretrain.data import text as text_rules
from jaxpretrain.data.sources.files import check_file

_T = TypeVar("_T")
_Model: Any = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]  # made at import

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<neither>")
PAD, UNK, CLS, SEP, MASK, NEITHER = range(len(SPECIAL_PIECES))
FILE_NAME = "tokenizer.model"

# A tokenizer of one's own is trained with these.
SPECIAL_OPTIONS = (
    "--pad_id=0 --unk_id=1 --bos_id=2 --eos_id=3 --pad_piece=[PAD] --unk_piece=[UNK] --bos_piece=[CLS] "
    "--eos_piece=[SEP] --control_symbols=[MASK],<neither>"
)

_FORMAT = "jaxpretrain/1"
_CACHED = 1 << 18  # entries of a cache, 40 MB or so; novels take 4 % longer than with twice as many
_TRAINING_THREADS = 8  # fixed: the sums of EM are rounded by thread, and the same text must give the same model
_SEED_WORDS = 50_000  # most frequent words whose substrings unigram training starts from
_SEED_PIECES = 300_000
_LONGEST_PIECE = 16  # characters


class Cache(dict[str, _T], Generic[_T]):
    """text -> what a function makes of it, filled as texts are met. By Zipf's law nearly every look-up is a hit."""

    def __init__(self, function: Callable[[str], _T]):
        super().__init__()
        self._function = function

    def __missing__(self, text: str) -> _T:
        if len(self) >= _CACHED:
            self.clear()
        value = self._function(text)
        if len(text) <= text_rules.LONGEST_WORD:
            self[text] = value
        return value


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, model: bytes):
        """Takes the bytes of a model file that `train` or `adopt` made."""
        parsed = _Model.FromString(model)
        self.model = model
        self.lowercase = parsed.normalizer_spec.name == f"{_FORMAT}/lowercase"
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._ids_of_word = Cache(self._encode_word)
        self._ids_of_chunk = Cache(self._encode_chunk)

    @classmethod
    def load(cls, path: epath.PathLike) -> "Tokenizer":
        """Reads a tokenizer that this package wrote: the file, or the folder it lies in.

        Raises:
            ConfigError: when the file is missing or something else.
        """
        path = epath.Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        model = _read(path, "tokenizer")
        if not _parse(model, path, "tokenizer").normalizer_spec.name.startswith(_FORMAT + "/"):
            raise ConfigError(f"tokenizer: {path} was not written by this version of jaxpretrain")
        return cls(model)

    def save(self, folder: str | Path) -> Path:
        """Writes `tokenizer.model`, all that `load` needs, and returns its path."""
        path = Path(folder) / FILE_NAME
        path.write_bytes(self.model)
        return path

    @property
    def vocab_size(self) -> int:
        """Number of pieces, the special ones included."""
        return self._processor.vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [tokens]; no special pieces but [UNK] in it."""
        return self.encode_normal(text_rules.normalise(text, self.lowercase))

    def encode_normal(self, normal: str) -> np.ndarray:
        """`encode` for text that went through `normalise` already."""
        return np.frombuffer(b"".join(self.encode_chunks(normal.split(" ") if normal else [])), np.int32)

    def encode_chunks(self, chunks: list[str]) -> list[bytes]:
        """Ids of each of the parts between the spaces of normalised text, as the bytes of int32."""
        return list(map(self._ids_of_chunk.__getitem__, chunks))

    def pieces_in(self, word: str) -> int:
        """Number of pieces of a word as `words` cuts it, "▁" included."""
        return len(self._ids_of_word[word]) // 4

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids. [UNK] and [MASK] are written out, the other special pieces left out."""
        shown = []
        for i in map(int, ids):
            if i in (UNK, MASK):
                shown.append(text_rules.SPACE + SPECIAL_PIECES[i])
            elif not self.is_special(i):
                shown.append(self.id_to_piece(i))
        return "".join(shown).replace(text_rules.SPACE, " ").strip()

    def id_to_piece(self, piece_id: int) -> str:
        """The piece as it stands in the vocabulary, "▁" for a space."""
        return self._processor.id_to_piece(int(piece_id))

    def is_special(self, piece_id: int) -> bool:
        """Whether an id is one of `SPECIAL_PIECES`."""
        return 0 <= piece_id < len(SPECIAL_PIECES)

    def _encode_word(self, word: str) -> bytes:
        return np.array(self._processor.encode(word), np.int32).tobytes()

    def _encode_chunk(self, chunk: str) -> bytes:
        """Ids of what stands between two spaces: no word reaches over a space, so chunks are encoded one by one."""
        return b"".join(map(self._ids_of_word.__getitem__, text_rules.words(chunk)))


def train(counts: Iterable[tuple[str, int]], folder: Path, *, vocab_size: int, kind: str, lowercase: bool) -> Tokenizer:
    """Trains on word counts.

    Args:
        counts: words as `words` cuts them, each once, in an order that depends on the text alone.
        folder: scratch files are written there, and removed.
        vocab_size: pieces at most, special ones included; a small text gives fewer.
        kind: `unigram` or `bpe`.
        lowercase: recorded in the model; the words are lower-cased already.

    Raises:
        ConfigError: when the text has more different characters than pieces are allowed, or next to nothing in it.
    """
    words_file, seeds_file = folder / "words.train.tsv", folder / "seeds.train.tsv"
    characters: Counter[str] = Counter()
    frequent: list[tuple[int, str]] = []  # a heap, or as long as it is short a plain list
    with words_file.open("w", encoding="utf-8", newline="\n") as file:
        for word, count in counts:
            file.write(f"{word}\t{count}\n")
            for character in word:
                characters[character] += count
            if len(frequent) < _SEED_WORDS:
                heapq.heappush(frequent, (count, word))
            else:
                heapq.heappushpop(frequent, (count, word))
    options = {}
    if kind == "unigram":
        # SentencePiece's own start set holds only what occurs with two different continuations. Our words end at
        # punctuation, so a whole word such as "▁organisms" is not in it and can never become a piece.
        _write_seeds(seeds_file, frequent, characters)
        options["seed_sentencepieces_file"] = str(seeds_file)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=str(words_file),
            input_format="tsv",
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=0.9999,
            max_sentencepiece_length=_LONGEST_PIECE,
            max_sentence_length=16 * text_rules.LONGEST_WORD,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            pad_id=PAD,
            unk_id=UNK,
            bos_id=CLS,
            eos_id=SEP,
            pad_piece=SPECIAL_PIECES[PAD],
            unk_piece=SPECIAL_PIECES[UNK],
            bos_piece=SPECIAL_PIECES[CLS],
            eos_piece=SPECIAL_PIECES[SEP],
            control_symbols=list(SPECIAL_PIECES[MASK:]),
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"data.vocab_size={vocab_size}: SentencePiece cannot train on this text: {_reason(error)}"
        ) from error
    finally:
        words_file.unlink(missing_ok=True)
        seeds_file.unlink(missing_ok=True)
    parsed = _Model.FromString(model.getvalue())
    parsed.trainer_spec.ClearField("input")  # scratch paths: the same text must give the same bytes
    parsed.trainer_spec.ClearField("seed_sentencepieces_file")
    return _with_rules(parsed, lowercase)


def adopt(path: str | Path, lowercase: bool) -> Tokenizer:
    """Takes a SentencePiece model of the user's own, under our normalisation and word rules.

    Raises:
        ConfigError: when the file is missing, not a model, or lacks the special pieces at their ids.
    """
    path = Path(os.path.expanduser(path))
    parsed = _parse(_read(path, "data.tokenizer"), path, "data.tokenizer")
    kinds = _Model.SentencePiece
    for i, name in enumerate(SPECIAL_PIECES):
        kind = kinds.UNKNOWN if i == UNK else kinds.CONTROL
        if i >= len(parsed.pieces) or parsed.pieces[i].piece != name or parsed.pieces[i].type != kind:
            raise ConfigError(
                f"data.tokenizer: {path} does not have the special piece {name} at id {i}; "
                f"train it with spm_train {SPECIAL_OPTIONS}"
            )
    name = parsed.normalizer_spec.name
    if name.startswith(_FORMAT + "/") and (name == f"{_FORMAT}/lowercase") != lowercase:
        raise ConfigError(f"data.lowercase={lowercase}: {path} was trained with {not lowercase}")
    return _with_rules(parsed, lowercase)


def _with_rules(parsed: Any, lowercase: bool) -> Tokenizer:
    """The model with `words` and `normalise` in place of its own normalisation."""
    spec = parsed.normalizer_spec
    spec.name = f"{_FORMAT}/lowercase" if lowercase else f"{_FORMAT}/cased"
    spec.precompiled_charsmap = b""
    spec.add_dummy_prefix = False
    spec.remove_extra_whitespaces = False
    return Tokenizer(parsed.SerializeToString(deterministic=True))


def _write_seeds(path: Path, frequent: list[tuple[int, str]], characters: Counter[str]) -> None:
    """Writes the pieces that unigram training chooses among: all characters, and the heaviest substrings of words."""
    substrings: Counter[str] = Counter()
    for count, word in frequent:
        for start in range(len(word)):
            for end in range(start + 2, min(len(word), start + _LONGEST_PIECE) + 1):
                substrings[word[start:end]] += count
    weights = [(count * len(piece), piece) for piece, count in substrings.items() if count > 1]
    weights = heapq.nlargest(_SEED_PIECES, weights) + [(count, piece) for piece, count in characters.items()]
    weights.sort(reverse=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{piece}\t{weight}\n" for weight, piece in weights)


def _read(path: Path | epath.Path, field: str) -> bytes:
    try:
        check_file(path)
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field}: cannot read {path}: {error.strerror}") from error


def _parse(model: bytes, path: Path | epath.Path, field: str) -> Any:
    try:
        parsed = _Model.FromString(model)
        if not parsed.pieces:
            raise DecodeError("it has no pieces")
        if isinstance(parsed.normalizer_spec.name, bytes):  # what protobuf makes of a string that is no UTF-8
            raise DecodeError("the name of its normaliser is not UTF-8")
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        _ = [processor.id_to_piece(i) for i in range(processor.vocab_size())]  # they may be no UTF-8
    except (DecodeError, UnicodeDecodeError, RuntimeError) as error:
        raise ConfigError(f"{field}: {path} is not a SentencePiece model: {_reason(error)}") from error
    return parsed


def _reason(error: Exception) -> str:
    """Of "INTERNAL: file.cc(1) [condition] what is wrong", the last part."""
    return str(error).rsplit("] ", 1)[-1].split("\n")[0]

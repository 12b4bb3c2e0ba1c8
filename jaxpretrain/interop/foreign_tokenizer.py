"""Tokenizers that other models came with, as `tokenizer.json` in a run's folder, run by the library `tokenizers`.

A run's special pieces have fixed ids. A foreign vocabulary is put in that order: first our six, then its other pieces
in their own order; `order` says which row of the model's tables goes where.
"""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jaxpretrain.config import ConfigError
from jaxpretrain.data.sources.files import check_file
from jaxpretrain.data.text import SPACE
from jaxpretrain.data.tokenizer import CLS, MASK, NEITHER, PAD, SEP, SPECIAL_PIECES, UNK, Tokenizer
from jaxpretrain.interop.folders import write_json

FILE_NAME = "tokenizer.json"
NEW_ROW = -1  # in an order: a piece that the foreign vocabulary has not

# fairseq's names of the special pieces, by our ids.
FAIRSEQ = {PAD: "<pad>", UNK: "<unk>", CLS: "<s>", SEP: "</s>", MASK: "<mask>", NEITHER: "<neither>"}
TUPE_NAMES = ("<file>", "<email>", "<url>")  # TUPE's dictionary has these besides, before those of the file


@dataclass(frozen=True)
class Vocabulary:
    """A foreign tokenizer in our order.

    Attributes:
        values: the content of `tokenizer.json`, without special pieces: no text becomes one.
        order: int [V], for each of our ids the row of the foreign tables; `NEW_ROW` for a piece that it has not.
    """

    values: dict[str, Any]
    order: np.ndarray


class ForeignTokenizer(Tokenizer):
    """Text to ids and back, by the rules of another library."""

    def __init__(self, values: dict[str, Any]):
        """Takes the content of a `tokenizer.json`.

        Raises:
            ConfigError: the library `tokenizers` is not installed, or refuses the content.
        """
        try:
            library = importlib.import_module("tokenizers")
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{FILE_NAME}: this model's tokenizer needs the library tokenizers: pip install 'jaxpretrain[hf]'"
            ) from error
        self.values = values
        try:
            self._runtime = library.Tokenizer.from_str(json.dumps(values))
        except Exception as error:  # the library's errors have no class of their own
            raise ConfigError(f"{FILE_NAME}: is no tokenizer: {' '.join(str(error).split())[:200]}") from error
        self.lowercase = is_lowercase(values)
        model = values["model"]
        vocab = model["vocab"]  # a list of pairs in a Unigram model
        self._pieces = dict(enumerate(p for p, _ in vocab)) if isinstance(vocab, list) else {vocab[p]: p for p in vocab}
        self._inside = model.get("continuing_subword_prefix") or ""  # marks a piece that goes on inside a word
        self._marks_start = model["type"] in ("Unigram", "BPE")

    def save(self, folder: str | Path) -> Path:
        """Writes `tokenizer.json`, all that `load_tokenizer` needs, and returns its path."""
        path = Path(folder) / FILE_NAME
        write_json(path, self.values)
        return path

    @property
    def vocab_size(self) -> int:
        """Number of pieces, the special ones included."""
        return len(self._pieces)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [tokens]; no special pieces but [UNK] in it."""
        valid = text.encode("utf-8", "ignore").decode("utf-8")  # lone surrogates, which the library cannot take
        return np.array(self._runtime.encode(valid, add_special_tokens=False).ids, np.int32)

    def encode_chunks(self, chunks: list[str]) -> list[bytes]:
        """Ids of each of the parts between the spaces of a text, as the bytes of int32."""
        return [self.encode(chunk).tobytes() for chunk in chunks]

    def pieces_in(self, word: str) -> int:
        """Number of pieces of a word."""
        return len(self.encode(word.replace(SPACE, " ")))

    def id_to_piece(self, piece_id: int) -> str:
        """The piece as ours are written: "▁" for a space before it, nothing where it goes on inside a word."""
        piece = self._pieces[int(piece_id)]
        if self._marks_start or self.is_special(piece_id):
            return piece
        if self._inside and piece.startswith(self._inside):
            return piece.removeprefix(self._inside)
        return SPACE + piece


def is_lowercase(values: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` makes no difference between capital and small letters."""
    steps = values["normalizer"] or {}
    steps = steps.get("normalizers", [steps])  # a sequence, or one
    return any(step.get("lowercase") or step.get("type") == "Lowercase" for step in steps)


def load_tokenizer(workdir: epath.PathLike) -> Tokenizer:
    """The tokenizer of a run: ours, or the one that an imported model came with.

    Raises:
        ConfigError: it is missing or damaged, or needs a library that is not installed.
    """
    path = epath.Path(workdir) / FILE_NAME
    return ForeignTokenizer(read_json(path)) if path.exists() else Tokenizer.load(workdir)


def of_folder(folder: Path, rows: int) -> Vocabulary:
    """The tokenizer of a Hugging Face folder: one that is in our order as it is, else BERT's WordPiece.

    Raises:
        ConfigError: it is missing, damaged, or of another kind.
    """
    try:
        found = _of_folder(folder, rows)
        is_lowercase(found.values)  # what it looks at is there
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{folder / FILE_NAME}: is damaged, or of another kind than BERT's") from error
    return found


def _of_folder(folder: Path, rows: int) -> Vocabulary:
    """The same, and an error of any kind for what is not where the format has it."""
    path = folder / FILE_NAME
    values = read_json(path) if path.exists() else {}
    model = values.get("model") or {}
    vocab = model.get("vocab") or {}
    if model.get("type") not in ("Unigram", "BPE"):
        return of_wordpiece(folder, rows)
    pieces = [piece for piece, _ in vocab] if isinstance(vocab, list) else sorted(vocab, key=vocab.__getitem__)
    if tuple(pieces[: len(SPECIAL_PIECES)]) != SPECIAL_PIECES:
        raise ConfigError(f"{path}: is neither BERT's kind nor one that jaxpretrain wrote")
    if len(pieces) != rows:
        raise ConfigError(f"{path}: has {len(pieces)} pieces, and the model has {rows}")
    if isinstance(vocab, dict):
        check_rows(vocab, rows, str(path))
    # Truncation and padding, which transformers may have saved as last used, are left out with the special pieces.
    steps = (values.get(name) for name in ("normalizer", "pre_tokenizer", "decoder"))
    return Vocabulary(fast(model, *steps), np.arange(rows))


def of_wordpiece(folder: Path, rows: int) -> Vocabulary:
    """The WordPiece tokenizer of a BERT's or ELECTRA's folder.

    Args:
        folder: with `tokenizer.json`, or `vocab.txt` and perhaps `tokenizer_config.json`.
        rows: of the model's token table.

    Raises:
        ConfigError: naming the file, where it is missing, damaged, or of a tokenizer of another kind.
    """
    normal = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    if (folder / FILE_NAME).exists():
        values = read_json(folder / FILE_NAME)
        model, normalizer = values.get("model") or {}, values.get("normalizer") or {}
        cut = values.get("pre_tokenizer") or {}
        untyped = "WordPiece" if "max_input_chars_per_word" in model else None  # bert-base-uncased's own file
        kinds = model.get("type", untyped), normalizer.get("type"), cut.get("type")
        if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
            raise ConfigError(f"{folder / FILE_NAME}: is a tokenizer of another kind than BERT's: {kinds}")
        vocab: dict[str, int] = dict(model["vocab"])
        normal |= {name: normalizer[name] for name in normalizer if name != "type"}
        prefix, longest = model["continuing_subword_prefix"], model["max_input_chars_per_word"]
    else:
        try:
            check_file(folder / "vocab.txt")
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{folder}: holds neither {FILE_NAME} nor a vocab.txt that can be read") from error
        lines = lines if lines[-1] else lines[:-1]
        vocab = {piece.removesuffix("\r"): row for row, piece in enumerate(lines)}
        path = folder / "tokenizer_config.json"
        options = read_json(path) if path.exists() else {}
        normal |= {
            "lowercase": bool(options.get("do_lower_case", True)),
            "strip_accents": options.get("strip_accents"),
            "handle_chinese_chars": bool(options.get("tokenize_chinese_chars", True)),
        }
        prefix, longest = "##", 100
    names = {i: name for i, name in enumerate(SPECIAL_PIECES) if i != NEITHER or name in vocab}
    pieces, order = in_our_order(vocab, names, rows, str(folder))
    model = {
        "type": "WordPiece",
        "unk_token": SPECIAL_PIECES[UNK],
        "continuing_subword_prefix": prefix,
        "max_input_chars_per_word": longest,
        "vocab": {piece: i for i, piece in enumerate(pieces)},
    }
    decoder = {"type": "WordPiece", "prefix": prefix, "cleanup": False}
    return Vocabulary(fast(model, normal, {"type": "BertPreTokenizer"}, decoder), order)


def of_dictionary(path: Path, rows: int, tupe: bool) -> Vocabulary:
    """fairseq's dictionary: text must come as its pieces, with spaces between them.

    The official models cut text with Moses' scripts and fastBPE, which write such lines (`lon@@ don`). As in fairseq, a
    special piece named in the text is that piece.

    Args:
        path: `dict.txt`, a piece and its count a line.
        rows: of the model's token table.
        tupe: whether the model is TUPE's, whose dictionary has more special names.

    Raises:
        ConfigError: the file cannot be read, or is not the one that the model was trained with.
    """
    names = ["<s>", "<pad>", "</s>", "<unk>", *(TUPE_NAMES if tupe else ())]
    try:
        check_file(path)
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from error
    for number, line in enumerate(lines, 1):
        piece, space, count = line.rpartition(" ")
        if line and (not space or not count.strip().isdecimal()):
            raise ConfigError(f"{path}: line {number} must be a piece, a space and a count, not {line[:60]!r}")
        if line:
            names.append(piece)
    names += [name for name in ("<mask>", *(() if tupe else ("<neither>",))) if name not in names]
    if len(names) != rows:
        raise ConfigError(f"{path}: makes {len(names)} pieces, and the model has {rows}: is it another model's?")
    vocab = {name: i for i, name in enumerate(names)}
    if len(vocab) != len(names):
        raise ConfigError(f"{path}: names a piece twice")
    special = {i: name for i, name in FAIRSEQ.items() if name in vocab}
    pieces, order = in_our_order(vocab, special, rows, str(path))
    model = {
        "type": "WordLevel",
        "unk_token": SPECIAL_PIECES[UNK],
        "vocab": {piece: i for i, piece in enumerate(pieces)},
    }
    return Vocabulary(fast(model, None, {"type": "WhitespaceSplit"}, None), order)


def in_our_order(vocab: dict[str, int], special: dict[int, str], rows: int, where: str) -> tuple[list[str], np.ndarray]:
    """The pieces by our ids, and the foreign row of each.

    Args:
        vocab: foreign pieces and their rows.
        special: the foreign name of each of our special pieces; those left out get a row of their own.
        rows: of the foreign tables; one without a piece gets a name that no text makes.
        where: for the error.

    Raises:
        ConfigError: a special piece, or a row, is missing.
    """
    for name in special.values():
        if name not in vocab:
            raise ConfigError(f"{where}: the vocabulary has no {name}")
    check_rows(vocab, rows, where)
    by_row = {row: piece for piece, row in vocab.items()}
    first = [vocab[special[i]] if i in special else NEW_ROW for i in range(len(SPECIAL_PIECES))]
    rest = [row for row in range(rows) if row not in first]
    pieces = [*SPECIAL_PIECES, *(by_row.get(row, f"[row {row}]") for row in rest)]
    if len(set(pieces)) != len(pieces):
        raise ConfigError(f"{where}: the vocabulary names a piece that is one of {', '.join(SPECIAL_PIECES)} here")
    return pieces, np.array(first + rest)


def check_rows(vocab: dict[str, int], rows: int, where: str) -> None:
    """Each piece has a row of its own.

    Raises:
        ConfigError: one has none.
    """
    if not all(type(row) is int and row >= 0 for row in vocab.values()) or len(set(vocab.values())) < len(vocab):
        raise ConfigError(f"{where}: the vocabulary must give each piece a number of its own")
    if max(vocab.values()) >= rows:
        raise ConfigError(f"{where}: the vocabulary has {max(vocab.values()) + 1} pieces, and the model has {rows}")


def fast(model: dict[str, Any], normalizer: Any, pre_tokenizer: Any, decoder: Any) -> dict[str, Any]:
    """The content of a `tokenizer.json` in which no text becomes a special piece."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def read_json(path: Any) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        check_file(path)
        values = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()  # Python takes more for JSON than others do
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a JSON object")
    return values

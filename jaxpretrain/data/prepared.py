"""A prepared corpus: a cache folder of token streams, written by `build.py`. It holds

    manifest.json          settings, numbers, digest of every file
    tokenizer.model
    counts.npy             int64 [V]: how often each id occurs in the training stream
    notes.tsv              the rare words (`rare_words.py`) with their counts in the training text, a line a row
    train-00000.bin …      the training stream, cut anywhere
    valid-00000.bin …      the held-out stream
    train.occurrences.npy  uint32 [3, n] (int64 for a long stream): where rare words stand in the training stream, in
                           order; the place of the first piece, one past the last, and the row
    valid.occurrences.npy  … in the held-out stream

A stream is the ids of all documents, a [SEP] after each, as little-endian uint16 (uint32 for more than 65,536 pieces).
Examples are cut out of it when it is read (`batches.py`), so one cache serves every sequence length.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.data import rare_words
from jaxpretrain.data import tokenizer as tokenizers

FORMAT = 3  # of the cache folder, and of everything that decides what is in it


@dataclass(frozen=True)
class RareWords:
    """The note dictionary in numbers."""

    min_count: int  # the range used, both included
    max_count: int
    words: int  # with a letter, in the training text: what the range depends on
    rows: int  # rare words
    train_occurrences: int
    valid_occurrences: int
    sentences: int  # of the training text, or a sample of it
    sentences_with: int  # in which a rare word starts
    examples: list[str]  # from the most to the least frequent


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, verified."""

    folder: Path
    tokenizer_path: Path
    vocab_size: int
    fingerprint: str  # of the content: equal for equal tokenizer and streams
    documents: int
    held_out_documents: int
    text_bytes: int  # UTF-8, normalised
    train_tokens: int
    valid_tokens: int
    train_shards: tuple[Path, ...]
    valid_shards: tuple[Path, ...]
    train_occurrences: Path
    valid_occurrences: Path
    note_rows: int  # rare words in the note dictionary
    note_fingerprint: str  # of the dictionary and the places of its words
    rare_words: RareWords = field(compare=False, repr=False)
    counts: np.ndarray = field(compare=False, repr=False)  # int64 [V], of the training stream

    def note_words(self) -> list[str]:
        """The words of the note dictionary, row by row."""
        return rare_words.read(self.folder / rare_words.FILE_NAME)


def load(folder: Path) -> Corpus:
    """Opens a cache folder after checking every byte of it against its manifest.

    Raises:
        ValueError: naming the file that is missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files: dict[str, str] = manifest["files"]
        intact = manifest.pop("digest") == digest_of(manifest) and not any("/" in name for name in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged") from error
    if not intact:
        raise ValueError(f"{path} is damaged")
    with ThreadPoolExecutor() as threads:
        digests = threads.map(digest_of_file, [folder / name for name in files])
        for name, digest in zip(files, digests, strict=True):
            if digest != files[name]:
                raise ValueError(f"{folder / name} is damaged")

    def shards(split: str) -> tuple[Path, ...]:
        return tuple(folder / name for name in sorted(files) if name.startswith(f"{split}-"))

    counts = np.load(folder / "counts.npy")
    return Corpus(
        folder=folder,
        tokenizer_path=folder / tokenizers.FILE_NAME,
        vocab_size=len(counts),
        fingerprint=manifest["fingerprint"],
        documents=manifest["documents"],
        held_out_documents=manifest["held_out_documents"],
        text_bytes=manifest["text_bytes"],
        train_tokens=manifest["train_tokens"],
        valid_tokens=manifest["valid_tokens"],
        train_shards=shards("train"),
        valid_shards=shards("valid"),
        train_occurrences=folder / occurrences_name("train"),
        valid_occurrences=folder / occurrences_name("valid"),
        note_rows=manifest["rare_words"]["rows"],
        note_fingerprint=manifest["note_fingerprint"],
        rare_words=RareWords(**manifest["rare_words"]),
        counts=counts,
    )


def stream_dtype(vocab_size: int) -> np.dtype[Any]:
    """Type of the ids in a stream."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def occurrences_name(split: str) -> str:
    """Of the file with the places of rare words."""
    return f"{split}.occurrences.npy"


def digest_of(value: Any) -> str:
    """Of what can be written as JSON."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """Of the content; empty for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""  # no file has this digest

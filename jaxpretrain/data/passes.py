"""The two passes over a unit of the source, each a function that any process can run: counting its words, encoding it.

Both read the unit and what `build.py` has put into a folder, and write into that folder, under names that hold the
unit's number. Beside each stands what joins the results of all units.
"""

import contextlib
import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxpretrain.data import corpus as corpus_source
from jaxpretrain.data import rare_words
from jaxpretrain.data import tokenizer as tokenizers
from jaxpretrain.data.corpus import Unit
from jaxpretrain.data.prepared import digest_of_file, occurrences_name, stream_dtype
from jaxpretrain.data.sources.source import Warnings
from jaxpretrain.data.text import normalise, words

HASH_RANGE = 1 << 64  # of documents
_COUNTED_CHUNKS = 1 << 20  # different ones held in memory by a process
_COUNTED_CHARACTERS = 1 << 28
_SAMPLED_TOKENS = 1 << 24  # in which sentences are counted


@dataclass(frozen=True)
class Counted:
    """What counting a unit found."""

    documents: int
    text_bytes: int
    lowest: int  # hash of a document
    highest: int
    spill: Path  # sorted `word<TAB>count<TAB>count in training documents` lines
    warnings: Warnings

    def record(self) -> dict[str, Any]:
        """For JSON; the folder is left out."""
        return vars(self) | {"spill": self.spill.name, "warnings": [[*key, n] for key, n in self.warnings.items()]}

    @classmethod
    def of_record(cls, record: dict[str, Any], folder: Path) -> "Counted":
        """Of what JSON gave back, the files now in `folder`."""
        warnings = Warnings({(path, what): n for path, what, n in record["warnings"]})
        return cls(**record | {"spill": folder / record["spill"], "warnings": warnings})


@dataclass(frozen=True)
class Encoded:
    """What encoding a unit wrote."""

    tokens: dict[str, int]  # by split
    documents: dict[str, int]
    digests: dict[str, str]  # by file name
    counts: np.ndarray  # int64 [V], of the training stream

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"counts": self.counts.tolist()}

    @classmethod
    def of_record(cls, record: dict[str, Any], folder: Path) -> "Encoded":
        """Of what JSON gave back; the files have the same names in every folder."""
        fields: dict[str, Any] = record | {"counts": np.array(record["counts"], np.int64)}
        return cls(**fields)


# --- counting words ---


def count_unit(unit: Unit, index: int, scratch: Path, lowercase: bool, below: int) -> Counted:
    """Counts the words of a unit, exactly and in bounded memory; those of held-out documents separately too."""
    warnings = Warnings()
    counts: Counter[str] = Counter()  # of what stands between spaces: far fewer look-ups than words
    held_out: Counter[str] = Counter()
    spills: list[Path] = []
    documents = text_bytes = characters = 0
    lowest, highest = HASH_RANGE, 0
    for document in corpus_source.documents(unit, warnings):
        normal = normalise(document, lowercase)
        if not normal:
            continue
        data = normal.encode()
        documents += 1
        text_bytes += len(data)
        position = _hash(data)
        lowest, highest = min(lowest, position), max(highest, position)
        chunks = normal.split(" ")
        counts.update(chunks)
        if position < below:
            held_out.update(chunks)
        characters += len(normal)
        if len(counts) > _COUNTED_CHUNKS or characters > _COUNTED_CHARACTERS:
            spills.append(_spill(counts, held_out, scratch / f"words-{index:05d}-{len(spills):05d}.tsv"))
            counts.clear()
            held_out.clear()
            characters = 0
    spills.append(_spill(counts, held_out, scratch / f"words-{index:05d}-{len(spills):05d}.tsv"))
    merged = spills[0]
    if len(spills) > 1:
        merged = scratch / f"words-{index:05d}.tsv"
        merge_counts(spills, merged, 0)
    return Counted(documents, text_bytes, lowest, highest, merged, warnings)


def _hash(normal: bytes) -> int:
    """Of a document; decides whether it is held out."""
    return int.from_bytes(hashlib.blake2b(normal, digest_size=8).digest())


def _spill(chunks: Counter[str], held_out: Counter[str], path: Path) -> Path:
    counts = _count_words(chunks)
    less = _count_words(held_out)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{word}\t{count}\t{count - less.get(word, 0)}\n" for word, count in sorted(counts.items()))
    return path


def _count_words(chunks: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word in words(chunk):
            counts[word] += count
    return counts


def read_counts(path: Path) -> Iterator[tuple[str, int, int]]:
    """Words with their counts in all documents and in the training documents, in the order of the file."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            word, count, in_training = line.rstrip("\n").split("\t")
            yield word, int(count), int(in_training)


def training_counts(path: Path) -> Iterator[tuple[str, int]]:
    """Words with their counts in the training documents."""
    return ((word, in_training) for word, _, in_training in read_counts(path))


def merge_counts(spills: list[Path], path: Path, budget: int) -> int:
    """Merges sorted counts into one sorted file, and removes them.

    Returns:
        The lowest count such that all words that occur as often take at most `budget` bytes.
    """
    bytes_by_count: Counter[int] = Counter()

    def write(word: str, count: int, in_training: int) -> None:
        if count:
            file.write(f"{word}\t{count}\t{in_training}\n")
            bytes_by_count[count] += len(word.encode()) + 1

    with path.open("w", encoding="utf-8", newline="\n") as file:
        current, total, training = "", 0, 0
        for word, count, in_training in heapq.merge(*map(read_counts, spills)):
            if word != current:
                write(current, total, training)
                current, total, training = word, 0, 0
            total += count
            training += in_training
        write(current, total, training)
    for spill in spills:
        spill.unlink()
    lowest = max(bytes_by_count, default=1)
    for count in sorted(bytes_by_count, reverse=True):
        budget -= bytes_by_count[count]
        if budget < 0:
            break
        lowest = count
    return lowest


# --- encoding ---


@lru_cache(1)
def _encoder(scratch: Path) -> tuple[tokenizers.Tokenizer, rare_words.Finder]:
    tokenizer = tokenizers.Tokenizer.load(scratch)
    return tokenizer, rare_words.Finder(tokenizer, rare_words.read(scratch / rare_words.FILE_NAME))


def encode_unit(unit: Unit, index: int, scratch: Path, below: int) -> Encoded:
    """Writes the two streams of a unit, and where rare words are; documents with a hash below `below` are held out."""
    tokenizer, finder = _encoder(scratch)
    dtype = stream_dtype(tokenizer.vocab_size)
    end = np.array([tokenizers.SEP], dtype).tobytes()
    tokens = {"train": 0, "valid": 0}
    documents = {"train": 0, "valid": 0}
    paths = {split: scratch / _shard(split, index) for split in tokens}
    occurrences = {split: scratch / _occurrences(split, index) for split in tokens}
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(path.open("wb")) for split, path in paths.items()}
        places = {split: stack.enter_context(path.open("wb")) for split, path in occurrences.items()}
        for document in corpus_source.documents(unit, Warnings()):
            normal = normalise(document, tokenizer.lowercase)
            if not normal:
                continue
            split = "valid" if _hash(normal.encode()) < below else "train"
            ids, found = finder.encode(normal)
            files[split].write(ids.astype(dtype).tobytes() + end)
            if found:
                places[split].write((np.array(found, np.int64) + _shift(tokens[split])).tobytes())
            tokens[split] += len(ids) + 1
            documents[split] += 1
    counts = _counts_of_ids(paths["train"], dtype, tokenizer.vocab_size)
    digests = {}
    for split, path in paths.items():
        if tokens[split]:
            digests[path.name] = digest_of_file(path)
        else:
            path.unlink()
    return Encoded(tokens, documents, digests, counts)


def _counts_of_ids(path: Path, dtype: np.dtype, vocab_size: int) -> np.ndarray:
    """int64 [V]; of the file, as a document is short beside the vocabulary."""
    counts = np.zeros(vocab_size, np.int64)
    with path.open("rb") as file:
        while len(ids := np.fromfile(file, dtype, 1 << 20)):
            counts += np.bincount(ids, minlength=vocab_size)
    return counts


def _shard(split: str, index: int) -> str:
    return f"{split}-{index:05d}.bin"


# --- rare words ---


def _occurrences(split: str, index: int) -> str:
    """File of a unit's rare words: int64 [n, 3], places counted from the unit's start."""
    return f"{split}-{index:05d}.occurrences"


def _shift(places: int) -> np.ndarray:
    """What is added to (start, end, row) when so many tokens come before."""
    return np.array([places, places, 0])


def join_occurrences(encoded: list[Encoded], split: str, scratch: Path) -> int:
    """Makes one file of the places of rare words in all units, and returns their number."""
    item = 3 * 8  # bytes, as units write them
    paths = [scratch / _occurrences(split, index) for index in range(len(encoded))]
    total = sum(path.stat().st_size for path in paths) // item
    dtype = np.dtype("<u4" if sum(unit.tokens[split] for unit in encoded) < 1 << 32 else "<i8")
    done = first = 0
    with (scratch / occurrences_name(split)).open("wb") as joined:
        # Not a memory map: its pages would stay with this process until all is written.
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (3, total)}
        np.lib.format.write_array_header_1_0(joined, header)
        begin = joined.tell()
        for unit, path in zip(encoded, paths, strict=True):
            with path.open("rb") as file:
                while data := file.read(item << 16):
                    found = np.frombuffer(data, np.int64).reshape(-1, 3) + _shift(first)
                    for row, values in enumerate(found.T.astype(dtype)):
                        joined.seek(begin + (row * total + done) * dtype.itemsize)
                        joined.write(values.tobytes())
                    done += len(found)
            path.unlink()
            first += unit.tokens[split]
    return total


def count_sentences(encoded: list[Encoded], tokenizer: tokenizers.Tokenizer, scratch: Path) -> tuple[int, int]:
    """Sentences in the beginnings of the training shards, and those of them that hold a rare word."""
    places = np.load(scratch / occurrences_name("train"), mmap_mode="r")[0]
    sentences = rare_words.Sentences(tokenizer)
    total = with_rare = first = 0
    for index, unit in enumerate(encoded):
        if unit.tokens["train"]:
            limit = min(unit.tokens["train"], _SAMPLED_TOKENS // len(encoded))
            ids = np.fromfile(scratch / _shard("train", index), stream_dtype(tokenizer.vocab_size), limit)
            begin, end = np.searchsorted(places, np.array([first, first + limit], places.dtype))
            here = sentences.count(ids, places[begin:end].astype(np.int64) - first)
            total, with_rare = total + here[0], with_rare + here[1]
        first += unit.tokens["train"]
    return total, with_rare

"""`prepare`: from the source to a cache folder of token streams, with whatever number of processes.

Words are counted, the tokenizer is trained on the counts, rare words are chosen by them, the text is encoded. The bytes
written depend on the text and the settings alone. A cache folder holds

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

import contextlib
import hashlib
import heapq
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from jaxpretrain.config import ConfigError, DataConfig, NotesConfig
from jaxpretrain.data import corpus as corpus_source
from jaxpretrain.data import rare_words
from jaxpretrain.data import tokenizer as tokenizers
from jaxpretrain.data.corpus import Unit
from jaxpretrain.data.text import normalise, words

FORMAT = 2  # of the cache folder, and of everything that decides what is in it
_POOL_FROM = 8 << 20  # bytes of text from which starting processes pays
_COUNTED_CHUNKS = 1 << 20  # different ones held in memory by a process
_COUNTED_CHARACTERS = 1 << 28
_HASH_RANGE = 1 << 64
_SAMPLED_TOKENS = 1 << 24  # in which sentences are counted
_ABANDONED = 24 * 3600  # seconds without a new file, after which an unfinished folder is removed

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


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


@dataclass(frozen=True)
class _Counted:
    """What counting a unit found."""

    documents: int
    text_bytes: int
    lowest: int  # hash of a document
    highest: int
    spill: Path  # sorted `word<TAB>count<TAB>count in training documents` lines
    warnings: list[str]


@dataclass(frozen=True)
class _Encoded:
    """What encoding a unit wrote."""

    tokens: dict[str, int]  # by split
    documents: dict[str, int]
    digests: dict[str, str]  # by file name
    counts: np.ndarray
    occurrences: dict[str, Path]  # by split: int64 [n, 3], places counted from the unit's start


def prepare(config: DataConfig, notes: NotesConfig, *, progress: bool = True) -> Corpus:
    """Opens the prepared corpus of a config, building it when it is not in the cache or damaged there.

    Args:
        config: the data part of a validated config.
        notes: its notes part, which says what words are rare. They are found for runs without notes too: held-out
            losses are compared near rare words and elsewhere.
        progress: show bars on standard error.

    Raises:
        ConfigError: one line that names the field, when the source, the tokenizer or the cache folder cannot serve, or
            notes are on and no word is rare.
    """
    corpus = _prepare(config, notes, progress)
    if notes.enabled and not corpus.note_rows:
        rare = corpus.rare_words
        raise ConfigError(
            f"notes.min_count={notes.min_count}: no word of {'one' if notes.single_piece else 'two'} or more pieces "
            f"occurs {rare.min_count} to {rare.max_count} times in the training text; lower it, or turn notes off"
        )
    return corpus


def _prepare(config: DataConfig, notes: NotesConfig, progress: bool) -> Corpus:
    parts = corpus_source.resolve(config.source)
    own = tokenizers.adopt(config.tokenizer, config.lowercase) if config.tokenizer else None
    settings = _settings(config, notes, own)
    settings["source"] = [[part.kind, part.value, part.identity] for part in parts]
    key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
    slug = "".join(c if c.isalnum() else "-" for c in config.source.replace("text:", "").replace("tfds:", ""))[-40:]
    folder = _cache_dir(config) / f"{slug.strip('-')}-{key}"
    if folder.is_dir():
        try:
            return load(folder)
        except ValueError as error:
            _log.warning("%s; the corpus is prepared again", error)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _build(config, notes, parts, own, settings, scratch, progress)
            _put_in_place(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir={str(folder.parent)!r}: cannot write the prepared corpus: {error.strerror or error}"
        ) from error
    return load(folder)


def load(folder: Path) -> Corpus:
    """Opens a cache folder after checking every byte of it against its manifest.

    Raises:
        ValueError: naming the file that is missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files: dict[str, str] = manifest["files"]
        intact = manifest.pop("digest") == _digest_of(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged") from error
    if not intact:
        raise ValueError(f"{path} is damaged")
    with ThreadPoolExecutor() as threads:
        digests = threads.map(_digest_of_file, [folder / name for name in files])
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
        train_occurrences=folder / _occurrences_name("train"),
        valid_occurrences=folder / _occurrences_name("valid"),
        note_rows=manifest["rare_words"]["rows"],
        note_fingerprint=manifest["note_fingerprint"],
        rare_words=RareWords(**manifest["rare_words"]),
        counts=counts,
    )


def stream_dtype(vocab_size: int) -> np.dtype[Any]:
    """Type of the ids in a stream."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _settings(config: DataConfig, notes: NotesConfig, own: tokenizers.Tokenizer | None) -> dict[str, Any]:
    """What decides the content of the cache, besides the source."""
    settings: dict[str, Any] = {"format": FORMAT, "lowercase": config.lowercase, "held_out": config.held_out}
    settings["notes"] = [notes.min_count, notes.max_count, notes.single_piece]
    if own:
        settings["tokenizer"] = hashlib.blake2b(own.model).hexdigest()
    else:
        for name in ("vocab_size", "tokenizer_type", "tokenizer_sample_mb"):
            settings[name] = getattr(config, name)
    return settings


def _cache_dir(config: DataConfig) -> Path:
    folder = config.cache_dir or os.environ.get("JAXPRETRAIN_CACHE") or "~/.cache/jaxpretrain"
    return Path(folder).expanduser()


def _build(
    config: DataConfig,
    notes: NotesConfig,
    parts: list[corpus_source.Part],
    own: tokenizers.Tokenizer | None,
    settings: dict[str, Any],
    scratch: Path,
    progress: bool,
) -> None:
    """Fills `scratch` with the files of a cache folder."""
    size = sum(os.path.getsize(file) for part in parts for file in part.files)
    alone = size < _POOL_FROM and all(part.kind == "text" for part in parts)
    with _pool(1 if alone else config.workers or os.cpu_count() or 1) as pool:
        with _bar("reading", 1, progress) as bar:
            units = corpus_source.plan(parts, scratch, pool)
            bar.update()
        below = int(config.held_out * _HASH_RANGE)
        counted = _count(units, scratch, config.lowercase, below, pool, progress)
        documents = sum(unit.documents for unit in counted)
        if documents < 2:
            raise ConfigError(
                f"data.source={config.source!r} holds {documents} documents: two are needed at least, "
                "one to train on and one to evaluate with (a blank line ends a document)"
            )
        lowest, highest = min(unit.lowest for unit in counted), max(unit.highest for unit in counted)
        if lowest == highest:
            raise ConfigError(
                f"data.source={config.source!r} holds 1 different document, {documents} times: two are needed"
            )
        if not lowest < below <= highest:
            # However small the corpus, one document is held out and one is not. The training text is another then.
            below = min(max(below, lowest + 1), highest)
            counted = _count(units, scratch, config.lowercase, below, pool, progress)
        for warning in (warning for unit in counted for warning in unit.warnings):
            _log.warning(warning)
        merged = scratch / "words.tsv"
        budget = _merge_counts([unit.spill for unit in counted], merged, config.tokenizer_sample_mb << 20)
        with _bar("tokenizer", 1, progress) as bar:
            tokenizer = own or tokenizers.train(
                ((word, count) for word, count, _ in _read_counts(merged) if count >= budget),
                scratch,
                vocab_size=config.vocab_size,
                kind=config.tokenizer_type,
                lowercase=config.lowercase,
            )
            bar.update()
        tokenizer.save(scratch)
        with _bar("rare words", 1, progress) as bar:
            training = partial(_training_counts, merged)
            total = rare_words.total_words(training)
            low, high = rare_words.count_range(notes, total)
            chosen = rare_words.choose(training, low, high, tokenizer, notes.single_piece)
            rare_words.write(chosen, scratch / rare_words.FILE_NAME)
            bar.update()
        merged.unlink()
        encoded = _over_units(
            _encode_unit, [(unit, i, scratch, below) for i, unit in enumerate(units)], pool, "encoding", progress
        )
    (scratch / "python-docs.txt").unlink(missing_ok=True)
    np.save(scratch / "counts.npy", sum((unit.counts for unit in encoded), np.zeros(tokenizer.vocab_size, np.int64)))
    files = {name: _digest_of_file(scratch / name) for name in (tokenizers.FILE_NAME, "counts.npy")}
    for unit in encoded:
        files |= unit.digests
    occurrences = {split: _join_occurrences(encoded, split, scratch) for split in ("train", "valid")}
    sentences, sentences_with = _count_sentences(encoded, tokenizer, scratch)
    rare = RareWords(
        min_count=low,
        max_count=high,
        words=total,
        rows=len(chosen),
        train_occurrences=occurrences["train"],
        valid_occurrences=occurrences["valid"],
        sentences=sentences,
        sentences_with=sentences_with,
        examples=[chosen[i][0] for i in range(0, len(chosen), max(1, len(chosen) // 10))][:10],
    )
    note_files = {
        name: _digest_of_file(scratch / name)
        for name in (rare_words.FILE_NAME, _occurrences_name("train"), _occurrences_name("valid"))
    }
    manifest = {
        "settings": settings,
        "documents": documents,
        "held_out_documents": sum(unit.documents["valid"] for unit in encoded),
        "text_bytes": sum(unit.text_bytes for unit in counted),
        "train_tokens": sum(unit.tokens["train"] for unit in encoded),
        "valid_tokens": sum(unit.tokens["valid"] for unit in encoded),
        "rare_words": asdict(rare),
        "files": files | note_files,
        "fingerprint": _digest_of(files),
        "note_fingerprint": _digest_of(note_files),
    }
    manifest["digest"] = _digest_of(manifest)
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _put_in_place(scratch: Path, folder: Path) -> None:
    """Renames the finished folder, in place of a damaged one; one that another process finished meanwhile stays."""
    scratch.chmod(0o755)
    with contextlib.suppress(ValueError):
        load(folder)
        return
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


# --- processes ---


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    """Processes to share units among; none for one worker. Left early, it ends them at once."""
    if workers == 1:
        yield None
        return
    before = set(multiprocessing.active_children())
    # Spawned, not forked: JAX may be running threads here. A spawned process imports the parent's __main__, which may
    # load JAX there too, or run a script that has no `if __name__ == "__main__"` again: so it is shown an empty one.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ConfigError(
                f"data.workers={workers}: a process was killed while preparing, probably for want of memory; use fewer"
            ) from error
        raise
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _over_units(
    function: Callable[..., _T], tasks: list[tuple[Any, ...]], pool: Executor | None, title: str, progress: bool
) -> list[_T]:
    """`function(*task)` for every task, whose first member is a unit; results in the order of the tasks."""
    sizes = [sum(piece.size for piece in task[0]) for task in tasks]
    with _bar(title, sum(sizes), progress, unit="B", unit_scale=True) as bar:
        if pool is None:
            results = []
            for task, size in zip(tasks, sizes, strict=True):
                results.append(function(*task))
                bar.update(size)
            return results
        futures = {pool.submit(function, *task): size for task, size in zip(tasks, sizes, strict=True)}
        for future in as_completed(futures):
            future.result()
            bar.update(futures[future])
        return [future.result() for future in futures]


def _bar(title: str, total: int, progress: bool, **options: Any) -> "tqdm[Any]":
    return tqdm(desc=title, total=total, disable=not progress, leave=False, **options)


# --- counting words ---


def _count(
    units: list[Unit], scratch: Path, lowercase: bool, below: int, pool: Executor | None, progress: bool
) -> list[_Counted]:
    tasks = [(unit, i, scratch, lowercase, below) for i, unit in enumerate(units)]
    return _over_units(_count_unit, tasks, pool, "counting words", progress)


def _count_unit(unit: Unit, index: int, scratch: Path, lowercase: bool, below: int) -> _Counted:
    """Counts the words of a unit, exactly and in bounded memory; those of held-out documents separately too."""
    warnings: list[str] = []
    counts: Counter[str] = Counter()  # of what stands between spaces: far fewer look-ups than words
    held_out: Counter[str] = Counter()
    spills: list[Path] = []
    documents = text_bytes = characters = 0
    lowest, highest = _HASH_RANGE, 0
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
        _merge_counts(spills, merged, 0)
    return _Counted(documents, text_bytes, lowest, highest, merged, warnings)


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


def _read_counts(path: Path) -> Iterator[tuple[str, int, int]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            word, count, in_training = line.rstrip("\n").split("\t")
            yield word, int(count), int(in_training)


def _training_counts(path: Path) -> Iterator[tuple[str, int]]:
    return ((word, in_training) for word, _, in_training in _read_counts(path))


def _merge_counts(spills: list[Path], path: Path, budget: int) -> int:
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
        for word, count, in_training in heapq.merge(*map(_read_counts, spills)):
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


def _encode_unit(unit: Unit, index: int, scratch: Path, below: int) -> _Encoded:
    """Writes the two streams of a unit, and where rare words are; documents with a hash below `below` are held out."""
    tokenizer, finder = _encoder(scratch)
    dtype = stream_dtype(tokenizer.vocab_size)
    end = np.array([tokenizers.SEP], dtype).tobytes()
    tokens = {"train": 0, "valid": 0}
    documents = {"train": 0, "valid": 0}
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    paths = {split: scratch / f"{split}-{index:05d}.bin" for split in tokens}
    occurrences = {split: scratch / f"{split}-{index:05d}.occurrences" for split in tokens}
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(path.open("wb")) for split, path in paths.items()}
        places = {split: stack.enter_context(path.open("wb")) for split, path in occurrences.items()}
        for document in corpus_source.documents(unit, []):
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
            if split == "train":
                counts += np.bincount(ids, minlength=len(counts))
    counts[tokenizers.SEP] += documents["train"]
    digests = {}
    for split, path in paths.items():
        if tokens[split]:
            digests[path.name] = _digest_of_file(path)
        else:
            path.unlink()
    return _Encoded(tokens, documents, digests, counts, occurrences)


# --- rare words ---


def _occurrences_name(split: str) -> str:
    return f"{split}.occurrences.npy"


def _shift(places: int) -> np.ndarray:
    """What is added to (start, end, row) when so many tokens come before."""
    return np.array([places, places, 0])


def _join_occurrences(encoded: list[_Encoded], split: str, scratch: Path) -> int:
    """Makes one file of the places of rare words in all units, and returns their number."""
    item = 3 * 8  # bytes, as units write them
    total = sum(unit.occurrences[split].stat().st_size for unit in encoded) // item
    dtype = "<u4" if sum(unit.tokens[split] for unit in encoded) < 1 << 32 else "<i8"
    joined = np.lib.format.open_memmap(scratch / _occurrences_name(split), "w+", dtype, (3, total))
    done = first = 0
    for unit in encoded:
        with unit.occurrences[split].open("rb") as file:
            while data := file.read(item << 16):
                found = np.frombuffer(data, np.int64).reshape(-1, 3)
                joined[:, done : done + len(found)] = (found + _shift(first)).T
                done += len(found)
        unit.occurrences[split].unlink()
        first += unit.tokens[split]
    joined.flush()
    return total


def _count_sentences(encoded: list[_Encoded], tokenizer: tokenizers.Tokenizer, scratch: Path) -> tuple[int, int]:
    """Sentences in the beginnings of the training shards, and those of them that hold a rare word."""
    places = np.load(scratch / _occurrences_name("train"), mmap_mode="r")[0]
    sentences = sentences_with = first = 0
    for index, unit in enumerate(encoded):
        if unit.tokens["train"]:
            limit = min(unit.tokens["train"], _SAMPLED_TOKENS // len(encoded))
            ids = np.fromfile(scratch / f"train-{index:05d}.bin", stream_dtype(tokenizer.vocab_size), limit)
            begin, end = np.searchsorted(places, np.array([first, first + limit], places.dtype))
            here = rare_words.sentences(ids, places[begin:end].astype(np.int64) - first, tokenizer)
            sentences, sentences_with = sentences + here[0], sentences_with + here[1]
        first += unit.tokens["train"]
    return sentences, sentences_with


# --- digests ---


def _digest_of(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""  # no file has this digest

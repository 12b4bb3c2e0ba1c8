"""`prepare`: from the source to a prepared corpus (`prepared.py`), with whatever number of processes or machines.

Words are counted, the tokenizer is trained on the counts, rare words are chosen by them, the text is encoded. The bytes
written depend on the text and the settings alone. Counting and encoding are functions of a unit (`passes.py`): how they
are run over all units is the one thing that varies, here or on the machines of others (`beam.py`).
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from jaxpretrain.config import ConfigError, DataConfig, NotesConfig
from jaxpretrain.data import corpus as corpus_source
from jaxpretrain.data import passes, rare_words
from jaxpretrain.data import tokenizer as tokenizers
from jaxpretrain.data.corpus import Unit
from jaxpretrain.data.prepared import FORMAT, Corpus, RareWords, digest_of, digest_of_file, load, occurrences_name
from jaxpretrain.data.sources import pydocs
from jaxpretrain.data.sources.source import Warnings

_POOL_FROM = 8 << 20  # bytes of text from which starting processes pays
_RAREST = 20_000_000  # a word rarer than one in so many teaches the tokenizer nothing: so its sample stops growing
_ABANDONED = 24 * 3600  # seconds without a new file, after which an unfinished folder is removed

_log = logging.getLogger(__name__)
_Found = TypeVar("_Found", passes.Counted, passes.Encoded)


class Over(Protocol):
    """Runs a pass over all units: each as `run(unit, its number, a folder)`; results in the order of the units.

    In the folder are the files that `build.py` has made so far, and what the pass writes there is brought to it.
    """

    def __call__(self, run: Callable[[Unit, int, Path], _Found], units: list[Unit], title: str) -> list[_Found]: ...


Machines = Callable[[Path], contextlib.AbstractContextManager[Over]]  # of the folder that is built


def prepare(
    config: DataConfig, notes: NotesConfig, *, progress: bool = True, machines: Machines | None = None
) -> Corpus:
    """Opens the prepared corpus of a config, building it when it is not in the cache or damaged there.

    Args:
        config: the data part of a validated config.
        notes: its notes part, which says what words are rare. They are found for runs without notes too: held-out
            losses are compared near rare words and elsewhere.
        progress: show bars on standard error.
        machines: what runs the passes over the text instead of `data.workers` processes, as `beam.machines` makes it.

    Raises:
        ConfigError: one line that names the field, when the source, the tokenizer or the cache folder cannot serve, or
            notes are on and no word is rare.
    """
    corpus = _prepare(config, notes, progress, machines)
    if notes.enabled and not corpus.note_rows:
        rare = corpus.rare_words
        raise ConfigError(
            f"notes.min_count={notes.min_count}: no word of {'one' if notes.single_piece else 'two'} or more pieces "
            f"occurs {rare.min_count} to {rare.max_count} times in the training text; lower it, or turn notes off"
        )
    return corpus


def _prepare(config: DataConfig, notes: NotesConfig, progress: bool, machines: Machines | None) -> Corpus:
    parts = corpus_source.resolve(config.source)
    own = tokenizers.adopt(config.tokenizer, config.lowercase) if config.tokenizer else None
    settings = _settings(config, notes, own)
    settings["source"] = [[part.kind, part.value, part.identity] for part in parts]
    key = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
    folder = _cache_dir(config) / f"{corpus_source.slug(config.source)}-{key}"
    with contextlib.suppress(ValueError):
        return load(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if folder.is_dir():
                try:
                    return load(folder)  # another process was faster
                except ValueError as error:
                    _log.warning("%s; the corpus is prepared again", error)
            for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > _ABANDONED:
                        shutil.rmtree(left, ignore_errors=True)
            scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
            try:
                scratch.mkdir()  # not by tempfile, which lets nobody else read it
                _build(config, notes, parts, own, settings, scratch, progress, machines)
                _put_in_place(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir={str(folder.parent)!r}: cannot write the prepared corpus: {error.strerror or error}"
        ) from error
    return load(folder)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of the processes on this machine that would prepare the same text, one at a time."""
    path = folder.with_name(f".{folder.name}.lock")
    with contextlib.ExitStack() as stack:
        while True:
            lock = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning("%s: another process is preparing it; waiting", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:  # no locks on this file system: each for itself, and the last one's folder stays
                break
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    break  # else its holder took the file away
        stack.callback(path.unlink, missing_ok=True)
        yield


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
    machines: Machines | None,
) -> None:
    """Fills `scratch` with the files of a cache folder."""
    size = sum(os.path.getsize(file) for part in parts for file in part.files)
    small = size < _POOL_FROM and all(part.files for part in parts)
    workers = 0 if small else config.workers or os.cpu_count() or 1
    here = contextlib.nullcontext(partial(_over_units, workers, scratch, progress))
    with machines(scratch) if machines else here as over:
        with _pool(workers, f"data.workers={workers}") as pool:
            units = corpus_source.plan(parts, scratch, pool, progress)
        below = int(config.held_out * passes.HASH_RANGE)
        counted = _count(units, config.lowercase, below, over)
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
            counted = _count(units, config.lowercase, below, over)
        for (path, what), count in sum((unit.warnings for unit in counted), Warnings()).items():
            _log.warning("%s: %s %s", path, f"{count:,}", what)
        merged = scratch / "words.tsv"
        least = passes.merge_counts([unit.spill for unit in counted], merged, config.tokenizer_sample_mb << 20)
        training = partial(passes.training_counts, merged)
        total = rare_words.total_words(training)
        with _bar("tokenizer", 1, progress) as bar:
            if own:
                own.save(scratch)
            else:
                train = partial(_train, config, merged, max(least, total // _RAREST), scratch)
                # Training takes some 40 bytes a character, and a process keeps much of what it once had.
                with _pool(0 if small else 1, f"data.tokenizer_sample_mb={config.tokenizer_sample_mb}") as pool:
                    pool.submit(train).result() if pool else train()
            tokenizer = own or tokenizers.Tokenizer.load(scratch)
            bar.update()
        with _bar("rare words", 1, progress) as bar:
            low, high = rare_words.count_range(notes, total)
            chosen = rare_words.choose(training, low, high, tokenizer, notes.single_piece)
            rare_words.write(chosen, scratch / rare_words.FILE_NAME)
            bar.update()
        merged.unlink()
        encoded = over(partial(passes.encode_unit, below=below), units, "encoding")
    (scratch / pydocs.FILE_NAME).unlink(missing_ok=True)
    np.save(scratch / "counts.npy", sum((unit.counts for unit in encoded), np.zeros(tokenizer.vocab_size, np.int64)))
    files = {name: digest_of_file(scratch / name) for name in (tokenizers.FILE_NAME, "counts.npy")}
    for unit in encoded:
        files |= unit.digests
    occurrences = {split: passes.join_occurrences(encoded, split, scratch) for split in ("train", "valid")}
    sentences, sentences_with = passes.count_sentences(encoded, tokenizer, scratch)
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
        name: digest_of_file(scratch / name)
        for name in (rare_words.FILE_NAME, occurrences_name("train"), occurrences_name("valid"))
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
        "fingerprint": digest_of(files),
        "note_fingerprint": digest_of(note_files),
    }
    manifest["digest"] = digest_of(manifest)
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _put_in_place(scratch: Path, folder: Path) -> None:
    """Renames the finished folder, in place of a damaged one; one that another process finished meanwhile stays."""
    with contextlib.suppress(ValueError):
        load(folder)
        return
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _count(units: list[Unit], lowercase: bool, below: int, over: Over) -> list[passes.Counted]:
    return over(partial(passes.count_unit, lowercase=lowercase, below=below), units, "counting words")


def _train(config: DataConfig, merged: Path, least: int, scratch: Path) -> None:
    """Writes a tokenizer that is trained on the words which occur `least` times or more."""
    counts = ((word, count) for word, count, _ in passes.read_counts(merged) if count >= least)
    tokenizers.train(
        counts, scratch, vocab_size=config.vocab_size, kind=config.tokenizer_type, lowercase=config.lowercase
    ).save(scratch)


# --- processes ---


@contextlib.contextmanager
def _pool(workers: int, setting: str) -> Iterator[Executor | None]:
    """Processes to share units among, or none; left early, it ends them at once.

    Each pass has its own: what one took in memory is given back before the next.

    Raises:
        ConfigError: when one is killed; `setting` is what to lower then.
    """
    if not workers:
        yield None
        return
    before = set(multiprocessing.active_children())
    # Spawned, not forked: JAX may be running threads here. A spawned process imports the parent's __main__, which may
    # load JAX there too, or run a script that has no `if __name__ == "__main__"` again: so it is shown an empty one.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    # Python's tracker of semaphores starts here. It removes what a process that is stopped leaves, and need not say so.
    sys.warnoptions.append("ignore:resource_tracker")
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    sys.warnoptions.pop()
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ConfigError(
                f"{setting}: a process was killed while preparing, probably for want of memory; lower it"
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
    workers: int,
    scratch: Path,
    progress: bool,
    run: Callable[[Unit, int, Path], _Found],
    units: list[Unit],
    title: str,
) -> list[_Found]:
    """`Over` with so many processes, or in this one; all of them work in `scratch`."""
    sizes = [sum(piece.size for piece in unit) for unit in units]
    bar = _bar(title, sum(sizes), progress, unit="B", unit_scale=True)
    with bar, _pool(workers, f"data.workers={workers}") as pool:
        if pool is None:
            results = []
            for index, (unit, size) in enumerate(zip(units, sizes, strict=True)):
                results.append(run(unit, index, scratch))
                bar.update(size)
            return results
        futures = {
            pool.submit(run, unit, i, scratch): size for i, (unit, size) in enumerate(zip(units, sizes, strict=True))
        }
        for future in as_completed(futures):
            future.result()
            bar.update(futures[future])
        return [future.result() for future in futures]


def _bar(title: str, total: int, progress: bool, **options: Any) -> "tqdm[Any]":
    return tqdm(desc=title, total=total, disable=not progress, leave=False, **options)

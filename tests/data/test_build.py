import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpretrain.config import ConfigError, DataConfig
from jaxpretrain.data import build, passes
from jaxpretrain.data import corpus as corpus_source
from jaxpretrain.data import tokenizer as tokenizers
from jaxpretrain.data.build import prepare
from jaxpretrain.data.prepared import Corpus, digest_of, digest_of_file, load, stream_dtype
from jaxpretrain.data.text import normalise, words
from jaxpretrain.data.tokenizer import SEP, Tokenizer
from tests.data.conftest import NOTES, paragraphs


def stream(corpus: Corpus, split: str) -> np.ndarray:
    shards = corpus.train_shards if split == "train" else corpus.valid_shards
    dtype = stream_dtype(corpus.vocab_size)
    return np.concatenate([np.fromfile(path, dtype) for path in shards]).astype(np.int32)


def texts(corpus: Corpus, split: str) -> list[str]:
    """The documents of a stream, decoded."""
    ids = stream(corpus, split)
    tokenizer = Tokenizer.load(corpus.folder)
    return [tokenizer.decode(document) for document in np.split(ids, np.flatnonzero(ids == SEP))]


def small(text_file: Path, cache: Path) -> DataConfig:
    return DataConfig(source=f"text:{text_file}", vocab_size=300, held_out=0.1, cache_dir=str(cache))


def test_the_umask_holds_for_the_folder_too(text_file: Path, tmp_path: Path):
    before = os.umask(0o027)
    try:
        folder = prepare(small(text_file, tmp_path), NOTES, progress=False).folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


def test_streams_hold_every_document_once(corpus: Corpus, text_file: Path):
    expected = [normalise(document, True) for document in text_file.read_text().split("\n\n")]
    train, valid = (list(filter(None, texts(corpus, split))) for split in ("train", "valid"))
    assert Counter(train + valid) == Counter(expected)
    assert set(train).isdisjoint(valid)
    assert train == [document for document in expected if document in set(train)]
    assert 10 <= len(valid) <= 50
    assert corpus.documents == 300
    assert corpus.held_out_documents == len(valid)
    assert corpus.text_bytes == sum(len(document.encode()) for document in expected)


def test_numbers_of_tokens(corpus: Corpus):
    train, valid = stream(corpus, "train"), stream(corpus, "valid")
    assert (corpus.train_tokens, corpus.valid_tokens) == (len(train), len(valid))
    np.testing.assert_array_equal(corpus.counts, np.bincount(train, minlength=corpus.vocab_size))
    assert train[-1] == valid[-1] == SEP


def test_held_out_by_content(text_file: Path, tmp_path: Path):
    """The same document is held out wherever it stands, and copies of it stay on one side."""
    documents = text_file.read_text().split("\n\n")
    path = tmp_path / "other.txt"
    path.write_text("\n\n".join(reversed([*documents, *documents])))
    first = prepare(small(text_file, tmp_path), NOTES, progress=False)
    second = prepare(small(path, tmp_path), NOTES, progress=False)
    assert set(texts(second, "valid")) == set(texts(first, "valid"))
    assert set(texts(second, "train")).isdisjoint(set(texts(second, "valid")) - {""})


@pytest.mark.slow
def test_workers_and_units_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n\n".join(paragraphs(1000, seed=ord(name[0]))))
    monkeypatch.setattr(corpus_source, "UNIT_BYTES", 20_000)
    monkeypatch.setattr(build, "_POOL_FROM", 0)
    made = []
    for workers in (1, 2, 3):
        config = replace(small(tmp_path / "*.txt", tmp_path / f"cache{workers}"), workers=workers)
        made.append(prepare(config, NOTES, progress=False))
    assert len(made[0].train_shards) > 5
    for other in made[1:]:
        assert other.fingerprint == made[0].fingerprint
        for path in made[0].folder.iterdir():
            assert (other.folder / path.name).read_bytes() == path.read_bytes(), path.name
    monkeypatch.setattr(corpus_source, "UNIT_BYTES", 1 << 30)
    whole = prepare(small(tmp_path / "*.txt", tmp_path / "whole"), NOTES, progress=False)
    np.testing.assert_array_equal(stream(whole, "train"), stream(made[0], "train"))


def test_counts_are_exact_when_spilled(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(passes, "_COUNTED_CHUNKS", 20)
    unit = corpus_source.plan(corpus_source.resolve(f"text:{text_file}"), tmp_path, None)[0]
    below = passes.HASH_RANGE // 3
    counted = passes.count_unit(unit, 0, tmp_path, True, below)
    expected, training = Counter(), Counter()
    for document in text_file.read_text().split("\n\n"):
        normal = normalise(document, True)
        expected.update(words(normal))
        if passes._hash(normal.encode()) >= below:
            training.update(words(normal))
    assert 0 < training.total() < expected.total()
    found = list(passes.read_counts(counted.spill))
    assert found == [(word, count, training[word]) for word, count in sorted(expected.items())]
    merged = tmp_path / "merged.tsv"
    copy = shutil.copy(counted.spill, tmp_path / "copy.tsv")
    lowest = passes.merge_counts([counted.spill, Path(copy)], merged, 100)
    twice = [(word, 2 * count, 2 * training[word]) for word, count in sorted(expected.items())]
    assert list(passes.read_counts(merged)) == twice
    kept = [word for word, count, _ in passes.read_counts(merged) if count >= lowest]
    assert kept
    assert sum(len(word.encode()) + 1 for word in kept) <= 100
    assert not counted.spill.exists()


def test_a_second_time_it_is_only_opened(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = prepare(small(text_file, tmp_path), NOTES, progress=False)
    monkeypatch.setattr(build, "_build", lambda *args: pytest.fail("built again"))
    assert prepare(small(text_file, tmp_path), NOTES, progress=False) == first
    # Another length, other workers: the same cache.
    assert prepare(replace(small(text_file, tmp_path), sequence_length=64, workers=3), NOTES, progress=False) == first


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 200},
        {"lowercase": False},
        {"held_out": 0.2},
        {"tokenizer_type": "bpe"},
        {"tokenizer_sample_mb": 1},
    ],
)
def test_settings_that_matter_have_a_cache_of_their_own(
    text_file: Path, tmp_path: Path, corpus: Corpus, change: dict[str, object]
):
    other = prepare(replace(small(text_file, tmp_path), **change), NOTES, progress=False)
    assert other.folder.name != corpus.folder.name


@pytest.mark.parametrize("change", [{"min_count": 11}, {"max_count": 321}, {"single_piece": False}])
def test_so_do_the_settings_that_choose_rare_words(
    text_file: Path, tmp_path: Path, corpus: Corpus, change: dict[str, Any]
):
    other = prepare(small(text_file, tmp_path), replace(NOTES, **change), progress=False)
    assert other.folder.name != corpus.folder.name
    assert other.fingerprint == corpus.fingerprint


@pytest.mark.parametrize(
    "name",
    [
        "train-00000.bin",
        "valid-00000.bin",
        "tokenizer.model",
        "counts.npy",
        "notes.tsv",
        "train.occurrences.npy",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_cache_is_noticed_and_built_again(
    text_file: Path, tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
):
    made = prepare(small(text_file, tmp_path), NOTES, progress=False)
    path = made.folder / name
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 4]) + content[-19:])
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=rf"{path} is damaged"):
        load(made.folder)
    with caplog.at_level(logging.WARNING):
        again = prepare(small(text_file, tmp_path), NOTES, progress=False)
    assert caplog.messages == [f"{path} is damaged; the corpus is prepared again"]
    assert again == made
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [made.folder.name]


def test_fingerprint_is_of_the_content(text_file: Path, tmp_path: Path, corpus: Corpus):
    copy = Path(shutil.copy(text_file, tmp_path / "copy.txt"))
    assert prepare(small(copy, tmp_path / "a"), NOTES, progress=False).fingerprint == corpus.fingerprint
    copy.write_text(copy.read_text() + "\n\nOne more.")
    assert prepare(small(copy, tmp_path / "a"), NOTES, progress=False).fingerprint != corpus.fingerprint


@pytest.mark.parametrize("held_out", [0.0001, 0.9999])
def test_two_documents_give_one_to_each_split(tmp_path: Path, held_out: float):
    path = tmp_path / "two.txt"
    path.write_text("the first document sails\n\nthe second document sinks")
    made = prepare(replace(small(path, tmp_path), held_out=held_out), NOTES, progress=False)
    assert (made.documents, made.held_out_documents) == (2, 1)
    assert min(made.train_tokens, made.valid_tokens) > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds 0 documents: two are needed"),
        (" \n\n\u200b\n", "holds 0 documents: two are needed"),
        ("one line\nand another", "holds 1 documents: two are needed"),
        ("the same\n\nthe  same", "holds 1 different document"),
    ],
)
def test_too_few_documents(tmp_path: Path, content: str, message: str):
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        prepare(small(path, tmp_path / "cache"), NOTES, progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written(text_file: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data.cache_dir=.*: cannot write .*: (Not a directory|File exists)"):
        prepare(small(text_file, tmp_path / "file"), NOTES, progress=False)


def test_a_full_disk(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(build.np, "save", full)
    with pytest.raises(
        ConfigError, match=r"data.cache_dir=.*: cannot write the prepared corpus: No space left on device"
    ):
        prepare(small(text_file, tmp_path), NOTES, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_cache_dir_from_the_environment(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path / "there"))
    made = prepare(replace(small(text_file, tmp_path), cache_dir=""), NOTES, progress=False)
    assert made.folder.parent == tmp_path / "there"


def test_bad_bytes_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 here\n\n" + b"and more text\n\n" * 5)
    with caplog.at_level(logging.WARNING):
        prepare(small(path, tmp_path), NOTES, progress=False)
    assert caplog.messages == [f"{path}: 1 characters are not UTF-8 and were replaced"]


def test_a_tokenizer_of_ones_own(text_file: Path, tmp_path: Path, corpus: Corpus):
    config = replace(small(text_file, tmp_path), tokenizer=str(corpus.tokenizer_path), vocab_size=9999)
    made = prepare(config, NOTES, progress=False)
    assert made.vocab_size == corpus.vocab_size
    np.testing.assert_array_equal(stream(made, "train"), stream(corpus, "train"))


def test_the_tokenizer_is_trained_in_a_process_of_its_own(
    text_file: Path, tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build, "_POOL_FROM", 0)
    monkeypatch.setattr(tokenizers, "train", lambda *args, **options: pytest.fail("its memory would stay here"))
    made = prepare(replace(small(text_file, tmp_path), workers=1), NOTES, progress=False)
    assert made.fingerprint == corpus.fingerprint
    with pytest.raises(ConfigError, match=r"^data.vocab_size=10: SentencePiece cannot train on this text: [^\n]*$"):
        prepare(replace(small(text_file, tmp_path), vocab_size=10), NOTES, progress=False)


def test_the_tokenizers_sample_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "_RAREST", 10_000)
    train, samples = tokenizers.train, []

    def watched(counts: Iterator[tuple[str, int]], folder: Path, **options: Any) -> Tokenizer:
        samples.append(list(counts))
        return train(samples[-1], folder, **options)

    monkeypatch.setattr(tokenizers, "train", watched)
    path = tmp_path / "a.txt"
    for documents in (400, 4000):  # each brings a new word, its number
        path.write_text("\n\n".join(paragraphs(documents)))
        prepare(small(path, tmp_path), NOTES, progress=False)
    few, many = ({word for word, _ in sample} for sample in samples)
    assert len(few) > 400
    assert many < few
    assert {"▁the", "▁ship", "▁number"} <= many


SCRIPT = """
import sys, time
import jaxpretrain.data.corpus as corpus_source
from jaxpretrain.config import DataConfig, NotesConfig
from jaxpretrain.data import build

# No `if __name__ == "__main__"` on purpose.
corpus_source.UNIT_BYTES = 2_000
build._POOL_FROM = 0
print("started", flush=True)
data = DataConfig(source=sys.argv[1], vocab_size=300, cache_dir=sys.argv[2], workers=2)
corpus = build.prepare(data, NotesConfig(), progress=False)
print("done", corpus.documents, "jax" in sys.modules, flush=True)
"""

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_processes_do_not_run_the_script_again_or_import_jax(text_file: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), f"text:{text_file}", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=True)
    assert done.stdout.split("\n") == ["started", "done 300 False", ""]
    assert done.stderr == ""


COUNTING, TRAINING = "words-*", "words.train.tsv"  # what lies in the scratch folder meanwhile


@pytest.fixture
def preparing(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that prepares much text with others, in a group of its own, and the cache. What is left is killed."""
    script, cache = tmp_path / "script.py", tmp_path / "cache"
    script.write_text(SCRIPT)
    (tmp_path / "many.txt").write_text("\n\n".join(paragraphs(20_000)))
    command = [sys.executable, str(script), f"text:{tmp_path / 'many.txt'}", str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True, env=ENVIRONMENT)  # fmt: skip
    yield process, cache
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [COUNTING, TRAINING])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(preparing: tuple[subprocess.Popen[str], Path], wait_until, sent: signal.Signals, stage: str):
    process, cache = preparing
    wait_until(f"{stage} is there", lambda: list(cache.glob(f".*/{stage}")), process)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.kill()
    process.wait(timeout=20)
    assert process.returncode != 0
    deadline = time.monotonic() + 10
    while _group_alive(process.pid):  # no worker is left behind
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not [path for path in cache.iterdir() if not path.name.startswith(".")]
    if sent == signal.SIGINT:
        assert list(cache.iterdir()) == []


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_of_two_that_want_the_same_text_one_prepares_it(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    built, inside = [], threading.Event()
    build_it = build._build

    def slowly(*args: Any) -> None:
        built.append(args)
        inside.set()
        while "another process is preparing it" not in caplog.text:
            time.sleep(0.01)
        build_it(*args)

    monkeypatch.setattr(build, "_build", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(prepare, small(text_file, tmp_path), NOTES, progress=False)
        assert inside.wait(60)
        second = pool.submit(prepare, small(text_file, tmp_path), NOTES, progress=False)
        assert first.result().fingerprint == second.result().fingerprint
    assert len(built) == 1
    assert list(tmp_path.iterdir()) == [first.result().folder]


def test_what_a_killed_process_left_is_removed_later(text_file: Path, tmp_path: Path, corpus: Corpus):
    old, new = (tmp_path / f".{corpus.folder.name}.{name}" for name in ("old", "new"))
    for path in (old, new):
        path.mkdir()
    os.utime(old, (0, 0))
    prepare(small(text_file, tmp_path), NOTES, progress=False)
    assert not old.exists()
    assert new.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "setting"), [(COUNTING, "data.workers=2"), (TRAINING, "data.tokenizer_sample_mb=64")]
)
def test_a_process_that_is_killed(preparing: tuple[subprocess.Popen[str], Path], wait_until, stage: str, setting: str):
    process, cache = preparing
    wait_until(f"{stage} is there", lambda: list(cache.glob(f".*/{stage}")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert f"ConfigError: {setting}: a process was killed while preparing" in errors
    assert list(cache.iterdir()) == []


def test_the_same_documents_in_another_kind_of_file_are_the_same_tokens(tmp_path: Path):
    documents = ["\n".join(lines) for lines in zip(*[iter(paragraphs(300))] * 2, strict=True)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"n": n, "text": d}) + "\n" for n, d in enumerate(documents)))
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet")
    made = [
        prepare(replace(small(tmp_path, tmp_path), source=f"{kind}:{tmp_path}/a.{end}"), NOTES, progress=False)
        for kind, end in (("text", "txt"), ("jsonl", "jsonl"), ("parquet", "parquet"))
    ]
    assert len({corpus.folder for corpus in made}) == 3
    assert len({(corpus.fingerprint, corpus.note_fingerprint, corpus.documents) for corpus in made}) == 1


def test_rows_without_text_are_reported_once_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    rows = [{"text": text} for text in paragraphs(200)]
    rows[::10] = [{"text": None}] * 20
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(corpus_source, "UNIT_BYTES", 2000)
    with caplog.at_level(logging.WARNING):
        made = prepare(replace(small(path, tmp_path), source=f"jsonl:{path}", workers=1), NOTES, progress=False)
    assert len(made.train_shards) > 5
    assert caplog.messages == [f"{path}: 20 rows without text in 'text' were skipped"]


def test_manifest_tells_what_it_is(corpus: Corpus, text_file: Path):
    manifest = json.loads((corpus.folder / "manifest.json").read_text())
    assert manifest["settings"]["source"][0][:2] == ["text", str(text_file)]
    assert sorted(manifest["files"]) == sorted(p.name for p in corpus.folder.iterdir() if p.name != "manifest.json")


def test_a_manifest_names_no_file_elsewhere(corpus: Corpus, tmp_path: Path):
    shutil.copytree(corpus.folder, tmp_path / "corpus")
    path = tmp_path / "corpus/manifest.json"
    manifest = json.loads(path.read_text())
    other = tmp_path / "other"
    other.write_bytes(b"12")
    manifest["files"]["train-/../../other"] = digest_of_file(other)
    del manifest["digest"]
    path.write_text(json.dumps(manifest | {"digest": digest_of(manifest)}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        load(tmp_path / "corpus")

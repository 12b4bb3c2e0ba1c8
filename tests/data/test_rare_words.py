import random
import re
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from jaxpretrain import notes
from jaxpretrain.config import ConfigError, DataConfig, NotesConfig
from jaxpretrain.data import corpus as corpus_source
from jaxpretrain.data import rare_words
from jaxpretrain.data.batches import eval_batches, train_batches
from jaxpretrain.data.build import prepare
from jaxpretrain.data.prepared import Corpus
from jaxpretrain.data.tokenizer import CLS, PAD, SEP, Tokenizer
from tests.data.conftest import paragraphs
from tests.data.test_build import small, stream, texts

RANGE = NotesConfig(min_count=3, max_count=50)
WINDOW = 32
Mark = tuple[int, str]  # token, and the rare word it belongs to with the number of its occurrence; "" for none


def made_up(count: int, seed: int = 0) -> list[str]:
    """Documents with words that occur 1 to 40 times, in all manners of writing."""
    rng = random.Random(seed)
    lines = [line.split() for line in paragraphs(count, seed)]
    for number in range(80):
        word = "".join([rng.choice("bdgkptvz") + rng.choice("aeiou") for _ in "123"])
        ways = f'{word} {word.upper()} "{word}" ({word}) {word}, x_{word} {word}.{word}! {word}{number} {word}-{word}'
        ways = [*ways.split(), f"{word} {word}", f"“{word}… {word}”", f"{word}'s"]
        for _ in range(rng.randint(1, 40)):
            line = rng.choice(lines)
            line.insert(rng.randint(0, len(line)), rng.choice(ways))
    return [" ".join(line) for line in lines]


def pieces_of_few(text: Path, cache: Path) -> DataConfig:
    """Settings with so few pieces that hardly a word is one."""
    return replace(small(text, cache), vocab_size=110)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return made_up(400)


@pytest.fixture(scope="module")
def rare(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("rare")
    (folder / "text.txt").write_text("\n\n".join(documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_source, "UNIT_BYTES", 10_000)
        return prepare(pieces_of_few(folder / "text.txt", folder / "cache"), RANGE, progress=False)


def cut(document: str) -> list[str]:
    """The words of a document of this file, "▁" before those that follow a space or nothing."""
    text = document.lower().replace("…", "...")
    return [
        ("▁" if match.start() == 0 or text[match.start() - 1] == " " else "") + match[0]
        for match in re.finditer(r"[a-z0-9]+|[^a-z0-9 ]", text)
    ]


class Oracle:
    """Slow and plain: dictionary and marks from the raw text."""

    def __init__(self, documents: list[str], corpus: Corpus, config: NotesConfig):
        processor = sentencepiece.SentencePieceProcessor(model_file=str(corpus.tokenizer_path))
        known = {"".join(text.split()) for text in texts(corpus, "train")}
        self.split = ["train" if "".join(cut(d)).replace("▁", "") in known else "valid" for d in documents]
        counts = Counter(
            word.strip("▁")
            for document, split in zip(documents, self.split, strict=True)
            if split == "train"
            for word in cut(document)
        )
        self.words = {
            word: count
            for word, count in counts.items()
            if config.min_count <= count <= config.max_count
            and re.search("[a-z]", word)
            and (config.single_piece or min(len(processor.encode("▁" + word)), len(processor.encode(word))) > 1)
        }
        self.streams: dict[str, list[Mark]] = {"train": [], "valid": []}
        occurrence = 0
        for document, split in zip(documents, self.split, strict=True):
            for word in cut(document):
                occurrence += 1
                name = f"{occurrence} {word.strip('▁')}" if word.strip("▁") in self.words else ""
                self.streams[split] += [(piece, name) for piece in processor.encode(word)]
            self.streams[split].append((SEP, ""))

    def windows(self, split: str, length: int) -> list[tuple[list[int], list[tuple[str, int, int]]]]:
        """Of each sequence the tokens, and the rare words in it that are not cut with their first place and end."""
        marks = self.streams[split]
        names = Counter(name for _, name in marks)
        inner = length - 2
        sequences = []
        for first in range(0, len(marks) - inner + 1, inner):
            window = [(CLS, ""), *marks[first : first + inner], (SEP, "")]
            here = [name for _, name in window]
            whole = [name for name in dict.fromkeys(here) if name and here.count(name) == names[name]]
            found = [(name.split()[1], here.index(name), here.index(name) + here.count(name)) for name in whole]
            sequences.append(([token for token, _ in window], found))
        return sequences


@pytest.fixture(scope="module")
def oracle(documents: list[str], rare: Corpus) -> Oracle:
    return Oracle(documents, rare, RANGE)


def test_the_dictionary(rare: Corpus, oracle: Oracle):
    expected = sorted(oracle.words.items(), key=lambda item: (-item[1], item[0]))
    lines = (rare.folder / "notes.tsv").read_text().splitlines()
    assert lines == [f"{word}\t{count}" for word, count in expected]
    assert rare.note_words() == [word for word, _ in expected]
    assert rare.note_rows == len(expected) > 40
    assert len(rare.train_shards) > 3
    # Some occur in both splits, some are rare only because the held-out text does not count.
    assert oracle.split.count("valid") > 20
    for split in ("train", "valid"):
        ids = [piece for piece, _ in oracle.streams[split]]
        np.testing.assert_array_equal(stream(rare, split), ids)


def marks_of(corpus: Corpus, length: int, found: list[tuple[str, int, int]]) -> list[int]:
    marks = [0] * length
    for word, start, end in found:
        row = corpus.note_words().index(word)
        marks[start:end] = [2 * (1 + row) + 1] + [2 * (1 + row)] * (end - start - 1)
    return marks


@pytest.mark.parametrize("length", [8, WINDOW, 64])
def test_marks_of_the_held_out_text(rare: Corpus, oracle: Oracle, length: int):
    expected = oracle.windows("valid", length)
    batches = list(eval_batches(rare, batch_size=8, sequence_length=length, examples=10**9))
    tokens, words = (np.concatenate([batch[name] for batch in batches]) for name in ("tokens", "words"))
    assert words.dtype == np.int32
    np.testing.assert_array_equal(tokens[: len(expected)], [window for window, _ in expected])
    np.testing.assert_array_equal(words[: len(expected)], [marks_of(rare, length, found) for _, found in expected])
    assert (tokens[len(expected) :] == PAD).all()
    assert (words[len(expected) :] == 0).all()
    whole = sum(len(found) for _, found in expected)
    assert 0 < whole < len({name for _, name in oracle.streams["valid"]})  # some are cut


@pytest.mark.parametrize("length", [8, WINDOW, 64])
def test_an_epoch_has_the_marks_of_the_text(rare: Corpus, oracle: Oracle, length: int):
    expected = sorted((window, marks_of(rare, length, found)) for window, found in oracle.windows("train", length))
    steps = -(-len(expected) // 8)
    batches = list(islice(train_batches(rare, batch_size=8, sequence_length=length, seed=3), steps))
    rows = [pair for batch in batches for pair in zip(batch["tokens"].tolist(), batch["words"].tolist(), strict=True)]
    assert sorted(rows[: len(expected)]) == expected


def test_notes_find_what_is_there(rare: Corpus, oracle: Oracle):
    words = rare.note_words()
    expected = {tuple(window): found for window, found in oracle.windows("train", WINDOW)}
    seen = 0
    for batch in islice(train_batches(rare, batch_size=8, sequence_length=WINDOW, seed=0), 30):
        occurrences = notes.find(jnp.asarray(batch["words"]), 16)
        for i, tokens in enumerate(batch["tokens"]):
            there = occurrences.ids[i] != notes.NONE
            places = zip(
                occurrences.ids[i][there], occurrences.starts[i][there], occurrences.ends[i][there], strict=True
            )
            assert [(words[row], start, end) for row, start, end in places] == expected[tuple(tokens.tolist())]
            seen += there.sum()
    assert seen > 100
    assert len({name for pairs in expected.values() for name, *_ in pairs}) > 40


def test_neighbours_of_one_word(rare: Corpus, oracle: Oracle):
    pairs = 0
    for _, found in oracle.windows("train", WINDOW):
        pairs += sum(a[0] == b[0] and a[2] == b[1] for a, b in pairwise(found))
    assert pairs > 10


def test_words_of_one_piece(documents: list[str], rare: Corpus, oracle: Oracle):
    source = rare.folder.parents[1] / "text.txt"
    config = replace(RANGE, single_piece=True)
    other = prepare(pieces_of_few(source, rare.folder.parent), config, progress=False)
    more = Oracle(documents, other, config)
    assert set(other.note_words()) == set(more.words) > set(oracle.words)
    # The tokens are the same, their fingerprint too.
    assert other.folder != rare.folder
    assert other.note_fingerprint != rare.note_fingerprint
    np.testing.assert_array_equal(stream(other, "train"), stream(rare, "train"))


@pytest.mark.parametrize("change", [{"min_count": 4}, {"max_count": 20}, {"single_piece": True}])
def test_the_range_has_its_own_fingerprint(text_file: Path, tmp_path: Path, change: dict[str, int]):
    base = NotesConfig(min_count=5, max_count=320)
    one, two = (prepare(small(text_file, tmp_path), c, progress=False) for c in (base, replace(base, **change)))
    assert one.fingerprint == two.fingerprint
    assert (one.note_fingerprint == two.note_fingerprint) == (one.note_words() == two.note_words())
    # What does not shape the dictionary opens the same folder.
    assert prepare(small(text_file, tmp_path), replace(base, weight=0.3, window=4), progress=False) == one


@pytest.mark.parametrize("held_out", [0.0001, 0.9999])
def test_counts_are_of_the_training_text_when_the_split_is_forced(tmp_path: Path, held_out: float):
    (tmp_path / "two.txt").write_text("zebus graze zebus graze\n\nzebus sleep zebus sleep")
    config = replace(small(tmp_path / "two.txt", tmp_path), held_out=held_out)
    made = prepare(config, NotesConfig(min_count=2, max_count=3, single_piece=True), progress=False)
    training = "sleep" if "sleep" in "".join(texts(made, "train")) else "graze"
    assert (made.folder / "notes.tsv").read_text() == f"{training}\t2\nzebus\t2\n"
    assert (made.rare_words.train_occurrences, made.rare_words.valid_occurrences) == (4, 2)


def test_places_of_a_long_stream_are_read_the_same(rare: Corpus, tmp_path: Path):
    np.save(tmp_path / "wide.npy", np.load(rare.train_occurrences).astype("<i8"))
    settings: dict[str, Any] = {"batch_size": 8, "sequence_length": WINDOW, "seed": 0}
    other = train_batches(replace(rare, train_occurrences=tmp_path / "wide.npy"), **settings)
    for one, two in islice(zip(train_batches(rare, **settings), other, strict=False), 20):
        np.testing.assert_array_equal(one["words"], two["words"])


def test_no_rare_words(tmp_path: Path, text_file: Path):
    config = NotesConfig(min_count=100_000, max_count=100_000)
    made = prepare(small(text_file, tmp_path), config, progress=False)
    assert made.note_rows == 0
    assert made.note_words() == []
    assert not next(train_batches(made, batch_size=4, sequence_length=WINDOW, seed=0))["words"].any()
    with pytest.raises(ConfigError, match=r"notes.min_count=100000: no word of two or more pieces occurs 100000 to"):
        prepare(small(text_file, tmp_path), replace(config, enabled=True), progress=False)


@pytest.mark.parametrize(
    ("total", "expected"), [(0, (5, 25)), (10**6, (5, 25)), (35 * 10**6, (10, 50)), (3_500_000_000, (100, 500))]
)
def test_range_by_the_size_of_the_text(total: int, expected: tuple[int, int]):
    assert rare_words.count_range(NotesConfig(), total) == expected
    assert rare_words.count_range(NotesConfig(min_count=7), total) == (7, 35)
    assert rare_words.count_range(NotesConfig(min_count=1, max_count=3), total) == (1, 3)
    with pytest.raises(ConfigError, match=rf"notes.max_count=3: must be at least the {expected[0]} that"):
        rare_words.count_range(NotesConfig(max_count=3), total)


def test_scripts_without_spaces(tmp_path: Path):
    """A run between punctuation is the word there is."""
    rng = random.Random(0)
    runs = ["".join(rng.choices("日本語中文字大小山川水火木金土", k=6)) for _ in range(40)]
    text = "\n\n".join("。".join(rng.choices(runs, k=8)) + "。" for _ in range(60))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    config = DataConfig(source=f"text:{tmp_path / 'a.txt'}", vocab_size=30, held_out=0.1, cache_dir=str(tmp_path))
    made = prepare(config, NotesConfig(min_count=2, max_count=12), progress=False)
    assert set(made.note_words()) <= set(runs)
    assert made.note_rows > 10
    batch = next(train_batches(made, batch_size=4, sequence_length=64, seed=0))
    tokenizer, words = Tokenizer.load(made.folder), made.note_words()
    found = notes.find(jnp.asarray(batch["words"]), 16)
    for i, tokens in enumerate(batch["tokens"]):
        for row, start, end in zip(found.ids[i], found.starts[i], found.ends[i], strict=True):
            if row != notes.NONE:
                assert tokenizer.decode(tokens[start:end]) == words[row]


def test_report(rare: Corpus, oracle: Oracle):
    report = rare.rare_words
    for split, found in (("train", report.train_occurrences), ("valid", report.valid_occurrences)):
        assert found == len({name for _, name in oracle.streams[split]} - {""})
    assert (report.min_count, report.max_count, report.rows) == (3, 50, rare.note_rows)
    assert 0 < report.sentences_with < report.sentences
    assert set(report.examples) <= set(rare.note_words())
    assert len(report.examples) == 10


def test_sentences(rare: Corpus):
    tokenizer = Tokenizer.load(rare.folder)

    def ids_of(*documents: str) -> np.ndarray:
        return np.concatenate([[*tokenizer.encode(document), SEP] for document in documents])

    ids = ids_of("The ship. The sea! The wind... 3.5 said the captain", 'The "sail." And the night.', "")
    sentences = rare_words.Sentences(tokenizer)
    assert sentences.count(ids, np.array([], int))[0] == 6
    first = len(tokenizer.encode("The ship."))
    assert sentences.count(ids, np.array([0, first - 1, first, len(ids) - 3])) == (6, 3)

"""What must hold whatever comes in: each target is a property, and a strategy of inputs for it.

A reader gives a result that fits its input, or one line that names what is wrong. It never raises anything else, takes
no more memory than its input deserves, and no text becomes a special piece.
"""

import atexit
import bz2
import collections
import contextlib
import csv
import functools
import glob
import gzip
import io
import json
import logging
import lzma
import pickle
import shutil
import tempfile
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import zstandard
from hypothesis import strategies as st

from jaxpretrain import compare
from jaxpretrain.config import Config, ConfigError, DataConfig, NotesConfig, to_dict
from jaxpretrain.data import corpus as sources
from jaxpretrain.data import prepared, rare_words
from jaxpretrain.data.build import prepare
from jaxpretrain.data.sources.source import Warnings
from jaxpretrain.data.text import LONGEST_WORD, SPACE, normalise, words
from jaxpretrain.data.tokenizer import CLS, MASK, SEP, SPECIAL_PIECES, UNK, Tokenizer, adopt, train
from jaxpretrain.evaluation import tasks
from jaxpretrain.evaluation.labelled import bucketed
from jaxpretrain.evaluation.trained import MASK_TEXT, Trained, embed, fill_masks, load_run, to_ids
from jaxpretrain.interop import foreign_tokenizer, huggingface, imported, pickled
from jaxpretrain.predict import print_rows
from jaxpretrain.training.checkpoint_files import CheckpointError
from tests.fuzz.inputs import OVERLONG, WORDS, changed, damaged, json_texts, names, not_utf8, texts
from tests.interop.test_pickled import archive, opcodes, tensor_pickle

PARITY = Path(__file__).parents[1] / "parity"
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

ANSWERS: set[str] = set()  # what `answer` met
TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {}
EXAMPLES: dict[str, tuple[Callable[[], Any], ...]] = {}  # of the targets that answer


def target(
    strategy: st.SearchStrategy[Any], *examples: Callable[[], Any]
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Registers a property with its inputs, and makers of some: the first is sound, another must be refused."""

    def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
        TARGETS[check.__name__] = strategy, check
        if examples:
            EXAMPLES[check.__name__] = examples
        return check

    return register


def answer(call: Callable[[], Any], name: str = "") -> Any:
    """What a call gives; None where it refuses in one line, which a file's name alone may break."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            found = call()
        except (ConfigError, CheckpointError) as error:
            line = str(error)
        else:
            ANSWERS.add("given")
            return found
    ANSWERS.add("refused")
    assert line.strip()
    assert "\n" not in line.replace(name or "\0", ""), line
    return None


def fresh(name: str) -> Path:
    """An empty folder."""
    path = FOLDER / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


@functools.cache
def tokenizer(kind: str = "unigram", lowercase: bool = True) -> Tokenizer:
    """Trained on little, with some of everything in it."""
    text = "The ship sails over the sea, and the sea carries it. Sailors (and winds) read [MASK] <neither>! 海が青い é "
    counts = collections.Counter(words(normalise(text * 20 + " ".join(WORDS), lowercase)))
    return train(sorted(counts.items()), FOLDER, vocab_size=150, kind=kind, lowercase=lowercase)


# --- text ---


@target(st.tuples(texts(), st.booleans()))
def normal_form(given: tuple[str, bool]) -> None:
    """A normal form is one: the same again, valid Unicode, composed, without what is invisible; words give it back."""
    text, lowercase = given
    normal = normalise(text, lowercase)
    assert normalise(normal, lowercase) == normal
    assert unicodedata.is_normalized("NFKC", normal)
    normal.encode()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in normal)
    assert normal.split() == (normal.split(" ") if normal else [])
    cut = words(normal)
    assert "".join(cut).replace(SPACE, " ") == (" " + normal if normal else "")
    assert all(0 < len(word.removeprefix(SPACE)) <= LONGEST_WORD for word in cut)


@target(st.tuples(texts(), st.sampled_from(["unigram", "bpe"]), st.booleans()))
def tokens(given: tuple[str, str, bool]) -> None:
    """No special piece comes out of text but [UNK]; all ways to encode agree; what is known comes out as it went in."""
    text, kind, lowercase = given
    words_ = tokenizer(kind, lowercase)
    ids = words_.encode(text)
    assert set(ids[ids < len(SPECIAL_PIECES)]) <= {UNK}
    assert ids.size == 0 or ids.max() < words_.vocab_size
    normal = normalise(text, lowercase)
    rare = ["ship", "sea", "mask", "neither", "the"]
    found, places = rare_words.Finder(words_, rare).encode(normal)
    np.testing.assert_array_equal(ids, found)
    for start, end, row in places:
        assert 0 <= start < end <= len(ids)
        if UNK not in ids[start:end]:
            assert words_.decode(ids[start:end]) == rare[row]
    assert len(places) == sum(word.removeprefix(SPACE) in rare for word in words(normal))
    if UNK not in ids:
        assert words_.decode(ids) == normal


@target(st.tuples(texts(), st.integers(0, 3), st.integers(2, 40)))
def typed_masks(given: tuple[str, int, int]) -> None:
    """What `predict` asks about: exactly the typed [MASK]s are special, and the frame."""
    text, more, limit = given
    text = MASK_TEXT.join([text, *["x"] * more])
    ids = to_ids(tokenizer(), text, 10**9)
    assert (ids[0], ids[-1]) == (CLS, SEP)
    inside = np.array(ids[1:-1], int)
    assert (inside == MASK).sum() == text.count(MASK_TEXT)
    assert set(inside[inside < len(SPECIAL_PIECES)]) <= {UNK, MASK}
    assert to_ids(tokenizer(), text, limit) == [CLS, *ids[1:-1][: limit - 2], SEP]


@target(st.lists(st.tuples(texts(10), texts(10)), min_size=1, max_size=5))
def labelled_rows(given: list[tuple[str, str]]) -> None:
    """Rows for fine-tuning: as long as asked, one frame each, no other special piece."""
    examples = tasks.Examples([str(i) for i in range(len(given))], list(given), None)
    for bucket in bucketed(examples, tokenizer(), ["ship"], 24, tasks.GLUE["RTE"]):
        for row, segments in zip(bucket.tokens, bucket.segments, strict=True):
            assert (row == SEP).sum() == 2
            assert (row == MASK).sum() == 0
            assert (row[segments == 1] == SEP).sum() == 1


# --- files of text ---


def compressed(name: str, data: bytes) -> bytes:
    """As the ending of a name says."""
    ways = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
    return ways.get(Path(name).suffix, bytes)(data)


ENDINGS = ["", "", ".gz", ".bz2", ".xz", ".zst"]


def documents(source: str, unit_bytes: int) -> tuple[list[str], Warnings]:
    """Read in pieces of about so many bytes."""
    found, kept = Warnings(), sources.UNIT_BYTES
    sources.UNIT_BYTES = unit_bytes
    try:
        units = sources.plan(sources.resolve(source), FOLDER, None)
        return [document for unit in units for document in sources.documents(unit, found)], found
    finally:
        sources.UNIT_BYTES = kept


@target(
    st.tuples(st.lists(texts(10), max_size=8), names(), st.sampled_from(ENDINGS), st.sampled_from([50, 1 << 20])),
    lambda: (["The ship.", "The sea."], "x", ".gz", 50),
    lambda: (["The ship\0."], "x", "", 50),
)
def plain_files(given: tuple[list[str], str, str, int]) -> None:
    """Every character of valid UTF-8 arrives in order, under any name, compressed or cut anywhere; or one line."""
    rows, name, ending, unit_bytes = given
    text = "\n\n".join(rows)
    path = fresh("plain") / f"{name}.txt{ending}"
    path.write_bytes(compressed(path.name, not_utf8(text)))
    found = answer(lambda: documents(f"text:{glob.escape(str(path))}", unit_bytes), name)
    if found is None:
        assert "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)
        return
    same = lambda text: "".join(text.removeprefix("\ufeff").split())  # noqa: E731
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert same("".join(found[0])).replace("\ufeff", "") == same(text).replace("\ufeff", "")


@st.composite
def spoilt_files(draw: st.DrawFn) -> tuple[str, bytes]:
    kind = draw(st.sampled_from(["txt", "jsonl"]))
    rows = draw(st.lists(texts(6), min_size=1, max_size=6))
    lines = rows if kind == "txt" else [json.dumps({"text": row}, ensure_ascii=False) for row in rows]
    content = not_utf8("\n\n".join(lines))
    ending = draw(st.sampled_from(ENDINGS))
    if draw(st.booleans()):
        content = draw(damaged(content, tuple(OVERLONG)))
        return f"x.{kind}{ending}", compressed(ending, content)
    return f"x.{kind}{ending}", draw(
        damaged(compressed(ending, content), (content[:9], b"\x1f\x8b", b"BZh9", b"\x28\xb5\x2f\xfd"))
    )


@target(spoilt_files(), lambda: ("x.txt", b"The ship.\n\nThe sea."))
def damaged_files(given: tuple[str, bytes]) -> None:
    """Damage gives documents or one line."""
    name, content = given
    path = FOLDER / name
    path.write_bytes(content)
    for unit_bytes in (1 << 20, 50):
        found = answer(lambda: documents(f"{'jsonl' if 'jsonl' in name else 'text'}:{path}", unit_bytes))  # noqa: B023
        assert found is None or all(isinstance(document, str) and document for document in found[0])


ROW = {"text": "The ship.", "meta": {"title": "a", "deep": {"er": "b"}}, "a.b": "c", "n": 1, "many": ["d"]}


@target(
    st.tuples(
        st.lists(json_texts(ROW), min_size=1, max_size=4),
        st.sampled_from(["", "#meta.title", "#a.b", "#meta.deep.er.x"]),
    ),
    lambda: ([json.dumps(ROW)], ""),
)
def json_lines(given: tuple[list[str], str]) -> None:
    """The field of every row that has it, or one line that names file and line."""
    rows, field = given
    path = FOLDER / "rows.jsonl"
    path.write_bytes(not_utf8("\n".join(rows)))
    found = answer(lambda: documents(f"jsonl:{path}{field}", 1 << 20))
    if found is None or field:
        return
    expected = [json.loads(row).get("text") for row in rows if row.strip()]
    assert found[0] == [text for text in expected if text and not text.isspace()]


def as_parquet(rows: list[str | None], kind: pa.DataType, compression: str) -> bytes:
    table = pa.table({"text": pa.array(rows, pa.string()).cast(kind), "n": list(range(len(rows)))})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=3, compression=compression)
    return out.getvalue()


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str | None], bytes, bool]:
    rows = draw(st.lists(texts(6, surrogates=False) | st.none(), max_size=8))
    kind = draw(st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]))
    content = as_parquet(rows, kind, draw(st.sampled_from(["none", "snappy", "zstd", "gzip"])))
    spoil = draw(st.booleans())
    return rows, draw(damaged(content, (b"PAR1", b"text"))) if spoil else content, spoil


@target(tables(), lambda: (["The ship."], as_parquet(["The ship."], pa.string(), "zstd"), False))
def parquet_files(given: tuple[list[str | None], bytes, bool]) -> None:
    """The texts as they were written; of a damaged file documents or one line."""
    rows, content, spoilt = given
    path = FOLDER / "x.parquet"
    path.write_bytes(content)
    found = answer(lambda: documents(f"parquet:{path}", 100))
    if not spoilt:
        assert found is not None
        assert found[0] == [row for row in rows if row and not row.isspace()]


@st.composite
def corpora(draw: st.DrawFn) -> tuple[str, list[str], dict[str, Any]]:
    rows = draw(st.lists(texts(30), min_size=2, max_size=12))
    settings = {
        "lowercase": draw(st.booleans()),
        "tokenizer_type": draw(st.sampled_from(["unigram", "bpe"])),
        "vocab_size": draw(st.sampled_from([64, 300, 70_000])),
        "held_out": draw(st.sampled_from([0.01, 0.5])),
    }
    return draw(names()), rows, settings


SETTINGS = {"lowercase": True, "tokenizer_type": "unigram", "vocab_size": 300, "held_out": 0.5}


@target(
    corpora(),
    lambda: ("x", ["The ship sails.", "The sea carries it."], SETTINGS),
    lambda: ("x", [" ", ""], SETTINGS),
)
def prepared_corpora(given: tuple[str, list[str], dict[str, Any]]) -> None:
    """A prepared corpus holds what the text says: every document once, ended by [SEP], no other special piece."""
    name, rows, settings = given
    folder = fresh("corpus")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    source = f"jsonl:{glob.escape(str(path))}#text"
    config = DataConfig(source=source, cache_dir=str(folder / "cache"), **settings)
    notes = NotesConfig(min_count=1, max_count=3, single_piece=True)
    corpus = answer(lambda: prepare(config, notes, progress=False), name)
    if corpus is None:
        return
    words_ = Tokenizer.load(corpus.tokenizer_path)
    dtype = prepared.stream_dtype(corpus.vocab_size)
    streams = [
        np.concatenate([np.fromfile(shard, dtype) for shard in shards])
        for shards in (corpus.train_shards, corpus.valid_shards)
    ]
    np.testing.assert_array_equal(corpus.counts, np.bincount(streams[0], minlength=corpus.vocab_size))
    ids = np.concatenate(streams)
    assert set(ids[ids < len(SPECIAL_PIECES)]) <= {UNK, SEP}
    found = sorted(
        part.tolist() for stream in streams for part in np.split(stream, np.flatnonzero(stream == SEP) + 1) if len(part)
    )
    normal = [text for text in (normalise(row, config.lowercase) for row in rows) if text]
    assert found == sorted([*words_.encode_normal(text).tolist(), SEP] for text in normal)
    assert (corpus.documents, corpus.train_tokens + corpus.valid_tokens) == (len(normal), len(ids))
    assert min(map(len, streams)) > 0
    rare = corpus.note_words()
    for stream, places in zip(streams, (corpus.train_occurrences, corpus.valid_occurrences), strict=True):
        for start, end, row in np.load(places).T.astype(int):
            if UNK not in stream[start:end]:
                assert words_.decode(stream[start:end]) == rare[row]


# --- rows with labels ---


def tab_separated(rows: list[tuple[str, ...]], quoted: bool = True) -> str:
    out = io.StringIO()
    writer = csv.writer(out, "excel-tab", lineterminator="\n") if quoted else None
    for row in rows:
        writer.writerow(row) if writer else out.write("\t".join(row) + "\n")
    return out.getvalue()


CELL = texts(4, surrogates=False).map(lambda text: text.replace("\0", "") + "x")
LABEL = st.sampled_from(["0", "1", "yes", "1.5", "1e999", "nan", "٣", "-0", " 1 ", "1e30"]) | CELL


@target(st.lists(st.tuples(CELL, LABEL, CELL), min_size=1, max_size=12), lambda: [("a", "0", "b"), ("c", "1", "d")])
def tsv_rows(given: list[tuple[str, str, str]]) -> None:
    """A table that a spreadsheet would write comes back cell by cell, or one line says what is wrong with it."""
    path = FOLDER / "rows.tsv"
    path.write_bytes(tab_separated([("text", "label", "id"), *given]).encode())
    data = answer(lambda: tasks.load(f"tsv:{path},{path}"))
    if data is None:
        return
    assert [texts_ for (texts_,) in data.train.texts] == [row[0] for row in given]
    assert data.train.ids == [row[2] for row in given]
    if data.task.classes:
        assert [data.task.classes[i] for i in data.train.labels] == [row[1].strip() for row in given]
    else:
        assert np.isfinite(data.train.labels).all()


TABLE = tab_separated([("text_a", "text_b", "label"), *((f"a{i}", f'"b\t{i}', str(i % 2)) for i in range(20))])


@target(
    damaged(TABLE.encode(), (b"\t", b'"', b"\r", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf", *OVERLONG)),
    lambda: TABLE.encode(),
)
def damaged_tsv(content: bytes) -> None:
    """Rows of equal number, or one line."""
    path = FOLDER / "damaged.tsv"
    path.write_bytes(content)
    data = answer(lambda: tasks.load(f"tsv:{path}"))
    if data is not None:
        assert len(data.train.texts) == len(data.train.ids) == len(data.train.labels)
    answer(lambda: tasks.read_rows(path, tasks.GLUE["MRPC"]))


@target(st.lists(st.tuples(texts(3, surrogates=False), CELL, st.floats(0, 1)), min_size=1, max_size=5))
def labelled_output(given: list[tuple[str, str, float]]) -> None:
    """What `predict` prints about rows is a table that says the same."""
    rows = [{"id": id_, "label": label, "probabilities": {label: p}} for id_, label, p in given]
    out = io.StringIO(newline="")
    with contextlib.redirect_stdout(out):
        print_rows(rows)
    found = list(csv.reader(io.StringIO(out.getvalue(), newline=""), "excel-tab"))
    assert [tuple(row[:2]) for row in found[1:]] == [(id_, label) for id_, label, _ in given]


# --- models from elsewhere ---


@functools.cache
def pickles() -> tuple[bytes, bytes]:
    """A file of each format, and the bytes they are made of."""
    content = tensor_pickle(("0", "cpu", 6), 1, (2, 2), (3, 1))
    zipped = archive(FOLDER / "seed.pt", content, s0=bytes(24)).read_bytes()
    old = b"".join(pickle.dumps(x, 2) for x in (pickled.OLD_MAGIC, pickled.OLD_VERSION, {"little_endian": True}))
    return zipped, old + content + pickle.dumps(["0"], 2) + (6).to_bytes(8, "little") + bytes(24)


OPCODES = [
    *(
        b"(",
        b"t",
        b")",
        b"\x85",
        b"\x86",
        b"\x87",
        b"]",
        b"l",
        b"e",
        b"a",
        b"}",
        b"d",
        b"s",
        b"u",
        b"N",
        b"\x88",
        b"2",
        b"0",
    ),
    *(
        b"R",
        b"b",
        b"o",
        b"\x81",
        b"\x92",
        b"Q",
        b"q\x00",
        b"h\x00",
        b"q\x01",
        b"h\x01",
        b"\x94",
        b"\x8f",
        b"\x90",
        b"\x91",
    ),
    *(
        b"K\x01",
        b"J\xff\xff\xff\xff",
        b"M\xff\xff",
        b"\x8a\x02\xff\x7f",
        b"X\x01\x00\x00\x00a",
        b"U\x07storage",
        b"C\x01x",
    ),
    *(b"X\x07\x00\x00\x00storage", b"X\x0c\x00\x00\x00FloatStorage", b"X\x01\x00\x00\x000", b"X\x03\x00\x00\x00cpu"),
    *(
        b"\x93",
        b"\x82\x01",
        b"\x95" + bytes(8),
        b"B\xff\xff\xff\x7f",
        b"\x96" + b"\xff" * 8,
        b"\x8b\xff\xff\xff\x7f",
        b"P1\n",
        b"I01\n",
    ),
]
NAMES = [
    "collections.OrderedDict",
    "argparse.Namespace",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
]
NAMES += [
    "torch.Size",
    "torch.FloatStorage",
    "torch.BFloat16Storage",
    "numpy.core.multiarray._reconstruct",
    "os.system",
    "builtins.eval",
]


@st.composite
def torch_files(draw: st.DrawFn) -> tuple[bytes, bool]:
    zipped, old = pickles()
    if draw(st.booleans()):
        return draw(damaged(draw(st.sampled_from([zipped, old])), (*OPCODES, b"../../x", b"a/data.pkl"))), False
    program = draw(st.lists(st.sampled_from(OPCODES) | st.sampled_from(NAMES), max_size=30))
    tensor = tensor_pickle(("0", "cpu", 6), 1, (2, 2), (3, 1))[2:-1]
    program = [tensor if part == b"0" and draw(st.booleans()) else part for part in program]
    return opcodes(*program), True


@target(torch_files(), lambda: (pickles()[0], False))
def torch_pickles(given: tuple[bytes, bool]) -> None:
    """Arrays and plain values, or one line; nothing of the process is changed."""
    content, bare = given
    path = FOLDER / "x.pt"
    if bare:
        archive(path, content, s0=bytes(24))
    else:
        path.write_bytes(content)
    answer(lambda: pickled.read(path))
    for name, dtype in pickled.DTYPES.items():
        assert dtype.itemsize == {"Double": 8, "Long": 8, "Float": 4, "Int": 4}.get(
            name.removesuffix("Storage"), dtype.itemsize
        )
        assert dtype.itemsize in (1, 2, 4, 8)
        assert dtype.metadata is None
    assert list(collections.OrderedDict(a=1)) == ["a"]


@functools.cache
def bert() -> tuple[dict[str, Any], bytes, list[str]]:
    folder = PARITY / "hf_bert_mlm"
    config = json.loads((folder / "config.json").read_text())
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "ship",
        "##s",
        *letters,
        *(f"##{c}" for c in letters),
    ]
    return config, (folder / "model.safetensors").read_bytes(), [*pieces, "##é", "海"][:67]


@st.composite
def model_configs(draw: st.DrawFn) -> str:
    return draw(json_texts(bert()[0]))


@functools.cache
def bert_weights() -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(PARITY / "hf_bert_mlm" / "model.safetensors")


@target(model_configs(), lambda: json.dumps(bert()[0]))
def foreign_configs(text: str) -> None:
    """A `config.json` gives a model that its weights fit, or one line."""
    path = FOLDER / "config.json"
    path.write_bytes(not_utf8(text))

    def read() -> Any:
        return huggingface.from_state(foreign_tokenizer.read_json(path), bert_weights())

    found = answer(read)
    if found is not None:
        assert all(type(getattr(found[0], name)) is int for name in ("layers", "hidden", "heads", "ffn", "segments"))


@st.composite
def weight_files(draw: st.DrawFn) -> bytes:
    content = bert()[1]
    size = int.from_bytes(content[:8], "little")
    if draw(st.booleans()):
        return draw(
            damaged(content, (b'"F32"', b'"BF16"', b'"F8_E4M3"', b'"shape":[', b'"data_offsets":[', b"__metadata__"))
        )
    header = json.loads(content[8 : 8 + size])
    kind = draw(st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "BOOL", "C64", "F4"]))
    few = {name: header[name] for name in sorted(header)[:3]} | {
        "x": {"dtype": kind, "shape": [2], "data_offsets": [0, 8]}
    }
    new = draw(json_texts(few)).encode(errors="surrogatepass")
    return len(new).to_bytes(8, "little") + new + content[8 + size : 8 + size + draw(st.sampled_from([0, 8, 5000]))]


@target(weight_files(), lambda: bert()[1])
def foreign_weights(content: bytes) -> None:
    """A `.safetensors` file gives this model's arrays, or one line."""
    folder = fresh("weights")
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text(json.dumps(bert()[0]))
    found = answer(lambda: huggingface.load(folder))
    assert found is None or found[1]["encoder"]["embedder"]["tokens"].shape == (67, 32)


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[str, bytes]:
    pieces = bert()[2]
    if draw(st.booleans()):
        options = draw(json_texts({"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}))
        return {
            "vocab.txt": draw(
                damaged("\n".join(pieces).encode(), (b"\n", b"\r", b"[MASK]\n", b"[PAD]\n", b"\xff", *OVERLONG))
            ),
            "tokenizer_config.json": not_utf8(options),
        }
    vocab = {piece: i for i, piece in enumerate(pieces)}
    piece_model = {
        "type": "WordPiece",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "unk_token": "[UNK]",
    }
    values = {
        "normalizer": {
            "type": "BertNormalizer",
            "lowercase": True,
            "clean_text": True,
            "strip_accents": None,
            "handle_chinese_chars": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": piece_model | {"vocab": vocab},
    }
    if draw(st.booleans()):
        ours = [*SPECIAL_PIECES, *(piece for piece in pieces if piece not in SPECIAL_PIECES)][:67]
        models = [
            {"type": "Unigram", "unk_id": 1, "vocab": [[piece, -1.0 * i] for i, piece in enumerate(ours)]},
            {"type": "BPE", "unk_token": "[UNK]", "merges": [], "vocab": {piece: i for i, piece in enumerate(ours)}},
        ]
        lower = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
        values = {
            "normalizer": lower,
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": draw(st.sampled_from(models)),
        }
    return {"tokenizer.json": not_utf8(draw(json_texts({"version": "1.0"} | values)))}


@target(
    st.tuples(vocabularies(), texts(10)),
    lambda: (
        {"vocab.txt": "\n".join(bert()[2]).encode(), "tokenizer_config.json": b'{"do_lower_case": true}'},
        "A ship",
    ),
)
def foreign_vocabularies(given: tuple[dict[str, bytes], str]) -> None:
    """A foreign vocabulary fills our order row by row and becomes no special piece in text; or one line."""
    files, text = given
    folder = fresh("vocabulary")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    found = answer(lambda: foreign_tokenizer.of_folder(folder, 67))
    if found is None:
        return
    order = found.order[found.order != foreign_tokenizer.NEW_ROW]
    assert sorted(order) == list(range(67))
    assert found.values["added_tokens"] == []
    written = json.dumps(found.values, ensure_ascii=False, allow_nan=False).encode()
    try:
        import tokenizers  # noqa: F401
    except ModuleNotFoundError:
        return
    runtime = answer(lambda: foreign_tokenizer.ForeignTokenizer(json.loads(written)))
    if (
        runtime is not None
        and found.values["model"]["type"] == "WordPiece"
        and "[" not in str(found.values["model"]["continuing_subword_prefix"])
    ):
        ids = runtime.encode(text)
        assert set(ids[ids < len(SPECIAL_PIECES)]) <= {UNK}


DICTIONARY = "".join(f"w{i} {100 - i}\n" for i in range(53))


@target(
    damaged(
        DICTIONARY.encode(),
        (b"\n", b" ", b"[MASK] 1\n", b"<s> 1\n", b"<mask> 3\n", b"\xff", b"\r", "٣".encode(), *OVERLONG),
    ),
    lambda: DICTIONARY.encode(),
)
def dictionaries(content: bytes) -> None:
    """fairseq's `dict.txt` fills our order row by row, or one line."""
    path = FOLDER / "dict.txt"
    path.write_bytes(content)
    for tupe in (True, False):
        found = answer(lambda: foreign_tokenizer.of_dictionary(path, 61, tupe))  # noqa: B023
        assert found is None or sorted(found.order[found.order != foreign_tokenizer.NEW_ROW]) == list(range(61))


@functools.cache
def official() -> dict[str, np.ndarray]:
    arrays = np.load(PARITY / "tupe_r.npz")
    return {key.removeprefix("state_dict/"): arrays[key] for key in arrays.files if key.startswith("state_dict/")}


ARGS = {
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "loss_lamda": 20.0,
}


CHANGES = st.tuples(
    st.sampled_from(sorted(official())), st.sampled_from(["gone", "empty", "row", "flat", "whole", "kind"])
)


@target(st.tuples(changed(ARGS), st.lists(CHANGES, max_size=2)), lambda: (ARGS, []))
def official_checkpoints(given: tuple[Any, list[tuple[str, str]]]) -> None:
    """What fairseq saved becomes a run's folder, or one line and no folder."""
    args, changes = given
    weights: dict[Any, Any] = dict(official())
    for name, how in changes:
        x = weights.get(name)
        if not isinstance(x, np.ndarray) or how == "gone":
            weights.pop(name, None)
        else:
            other = {"empty": x[:0], "row": x[:1], "flat": x.reshape(-1), "whole": x.astype(int), "kind": 3}
            weights[name] = other[how]
    workdir = FOLDER / "official"
    shutil.rmtree(workdir, ignore_errors=True)
    kept, write = imported.pickled.read, imported.write
    imported.pickled.read = lambda *_: {"model": weights, "args": args}
    imported.write = lambda config, params, vocabulary, folder: imported.reordered(params, vocabulary.order)
    (FOLDER / "whole.txt").write_text(DICTIONARY)
    try:
        config = answer(lambda: imported.from_official(FOLDER / "x.pt", FOLDER / "whole.txt", workdir))
    finally:
        imported.pickled.read, imported.write = kept, write
    if config is not None:
        assert 0 <= config.model.dropout < 1
        assert config.model.heads == args["encoder_attention_heads"]


@st.composite
def piece_models(draw: st.DrawFn) -> bytes:
    return draw(
        damaged(tokenizer().model, (b"\x0a\x05\x0a\x01x\x18\x04", b"[MASK]", b"\xe2\x96\x81", b"\x00\x00\xc0\x7f"))
    )


@target(st.tuples(piece_models(), texts(6)), lambda: (tokenizer().model, "The ship"))
def sentencepiece_models(given: tuple[bytes, str]) -> None:
    """A SentencePiece model encodes text without special pieces, or one line."""
    content, text = given
    path = FOLDER / "tokenizer.model"
    path.write_bytes(content)
    for call in (lambda: Tokenizer.load(path), lambda: adopt(path, lowercase=True)):
        words_ = answer(call)
        if words_ is not None:
            ids = words_.encode(text)
            assert ids.size == 0 or 0 <= ids.min() <= ids.max() < words_.vocab_size
            words_.decode(ids)


# --- runs ---


@functools.cache
def run() -> Path:
    """A run of one small layer."""
    import jax

    from jaxpretrain.objectives import build
    from tests.interop.conftest import configured

    config = configured(model__layers=1)
    words_ = tokenizer()
    params = jax.jit(build(config, words_.vocab_size).init)(jax.random.key(0))
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=FOLDER))  # processes of a campaign share FOLDER
    imported.write_run(config, params, folder)
    words_.save(folder)
    return folder


@functools.cache
def model() -> Trained:
    return load_run(run())


@target(st.lists(texts(12), min_size=8, max_size=16), lambda: ["The ship"], lambda: [100 * "The ship " + MASK_TEXT])
def predictions(given: list[str]) -> None:
    """Vectors are finite, probabilities are ones, answers no special pieces, one for each [MASK]: or one clear line."""
    assert np.isfinite(embed(model(), [*given, ""])).all()
    given = [MASK_TEXT + text for text in given]
    for text in given:
        found_all = answer(lambda text=text: fill_masks(model(), [text], top=3))
        if found_all is None:
            continue
        [answers] = found_all
        assert len(answers) == text.count(MASK_TEXT)
        for found in answers:
            assert 0 < sum(found.values()) <= 1 + 1e-5
            assert not set(found) & set(SPECIAL_PIECES)


@st.composite
def spoilt_checkpoints(draw: st.DrawFn) -> tuple[str, bytes]:
    folder = run() / "checkpoints"
    files = sorted(path.relative_to(run()).as_posix() for path in folder.rglob("*") if path.is_file())
    name = draw(st.sampled_from([*files, "checkpoints/00000000/digests.json", "checkpoints/00000000/host.json"]))
    content = (run() / name).read_bytes()
    if name.endswith(".json") and draw(st.booleans()):
        return name, not_utf8(draw(json_texts(json.loads(content))))
    return name, draw(damaged(content))


@target(spoilt_checkpoints(), lambda: ("config.json", (run() / "config.json").read_bytes()))
def checkpoints(given: tuple[str, bytes]) -> None:
    """A checkpoint that is not what was written is refused in one line."""
    name, content = given
    folder = FOLDER / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run(), folder)
    (folder / name).write_bytes(content)
    logging.disable(logging.CRITICAL)
    try:
        found = answer(lambda: load_run(folder))
    finally:
        logging.disable(logging.NOTSET)
    assert found is None or "digests" in name or content == (run() / name).read_bytes()


LINE = {
    "step": 50,
    "total/tokens": 100,
    "total/flops": 1e6,
    "total/seconds": 0.5,
    "train/loss": 3.0,
    "eval/mlm_loss": 2.5,
}


@st.composite
def metric_files(draw: st.DrawFn) -> list[bytes]:
    runs = []
    for seed in range(draw(st.integers(1, 2))):
        lines = [LINE | {"step": 50 * i, "eval/mlm_loss": 5.0 - i * (seed + 1)} for i in range(4)]
        texts_ = [json.dumps(line) for line in lines] + draw(st.lists(json_texts(LINE), max_size=3))
        runs.append(not_utf8("\n".join(draw(st.permutations(texts_)))))
    return runs


@target(
    metric_files(),
    lambda: [b"".join(json.dumps(LINE | {"step": n}).encode() + b"\n" for n in (50, 100))],
    lambda: [b""],
)
def compared_runs(given: list[bytes]) -> None:
    """Runs whose metrics say anything are compared, in a table and in JSON, or one line."""
    logging.disable(logging.CRITICAL)
    folders = []
    for i, content in enumerate(given):
        folder = fresh(f"compared-{i}")
        config = Config(name=f"run{i}")
        config.train.seed, config.model.layers = i, 1 + len(content) % 2
        (folder / "config.json").write_text(json.dumps(to_dict(config)))
        (folder / "metrics.jsonl").write_bytes(content)
        folders.append(str(folder))
    try:
        found = answer(lambda: compare.compare(folders))
        if found is not None:
            assert len({line.count("|") for line in compare.markdown(found).splitlines() if line.startswith("|")}) == 1
            json.loads(compare.as_json(found), parse_constant=lambda name: 1 / 0)
    finally:
        logging.disable(logging.NOTSET)

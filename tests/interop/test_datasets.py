"""`hf:` sources: folders in the hub's layout, and a hub that this file serves itself."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpretrain.config import DataConfig
from jaxpretrain.data import build, corpus
from jaxpretrain.data.build import prepare
from jaxpretrain.data.corpus import documents, plan, resolve
from jaxpretrain.data.sources.source import Warnings
from tests.data.conftest import NOTES, mistake, paragraphs, read

datasets = pytest.importorskip("datasets", reason="needs the extra hf")

ROOT = Path(__file__).parents[2]


def write(path: Path, texts: list[Any], column: str = "text", **others: Any) -> None:
    """Rows in the format that the file's name ends with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({**others, column: texts}), path, row_group_size=10)
    else:
        path.write_text("".join(json.dumps({**others, column: text}) + "\n" for text in texts))


def texts(name: str, count: int = 30) -> list[str]:
    return [f"{name} {i}\n\ntrès belle" for i in range(count)]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_folder(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "books"
    for i in range(3):
        write(folder / f"data/train-{i:05d}-of-00003.{suffix}", texts(f"train {i}"))
    write(folder / f"data/test-00000-of-00001.{suffix}", texts("test", 5))
    expected = [text for i in range(3) for text in texts(f"train {i}")]
    assert read(f"hf:{folder}", tmp_path) == expected
    assert read(f"hf:{folder}@test", tmp_path) == texts("test", 5)
    assert read(f"hf:{folder}@test+train#text", tmp_path) == texts("test", 5) + expected
    assert read(f"hf:{folder}@test+hf:{folder}", tmp_path) == texts("test", 5) + expected
    monkeypatch.chdir(tmp_path)
    assert read("hf:./books", tmp_path) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("hf:~/books", tmp_path) == expected


def test_lines_of_text_files_are_documents(tmp_path: Path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("one\ntwo\n\nthree\n")
    warnings = Warnings()
    assert read(f"hf:{tmp_path}/books", tmp_path, warnings) == ["one", "two", "three"]
    assert warnings == {(f"hf:{tmp_path}/books", "rows without text in 'text' were skipped"): 1}


def test_columns(tmp_path: Path):
    write(tmp_path / "one/a.parquet", ["a", None, " "], "body", n=[1, 2, 3])
    write(tmp_path / "two/a.parquet", ["a"], "text", title=["t"], n=[1])
    write(tmp_path / "three/a.jsonl", ["a"], "body", title="t", n=1)
    write(tmp_path / "four/a.jsonl", [1])
    warnings = Warnings()
    assert read(f"hf:{tmp_path}/one", tmp_path, warnings) == ["a"]
    assert list(warnings.values()) == [2]
    assert read(f"hf:{tmp_path}/two", tmp_path) == ["a"]
    assert read(f"hf:{tmp_path}/two#title", tmp_path) == ["t"]
    assert read(f"hf:{tmp_path}/three#body", tmp_path) == ["a"]
    there = "there are title, body: name one, #COLUMN"
    assert f"hf:{tmp_path}/three' has no column 'text' of strings; {there}" in mistake(f"hf:{tmp_path}/three", tmp_path)
    assert f"three#n' has no column 'n' of strings; {there}" in mistake(f"hf:{tmp_path}/three#n", tmp_path)
    assert "it has no column of strings at all" in mistake(f"hf:{tmp_path}/four", tmp_path)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_processes_share_the_shards(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = paragraphs(400)
    for i in range(4):
        write(tmp_path / "books" / f"{i}.{suffix}", lines[100 * i : 100 * (i + 1)])
    (tmp_path / "a.txt").write_text("\n\n".join(lines))
    config = DataConfig(vocab_size=300, held_out=0.1, workers=1)
    text, whole = (
        prepare(replace(config, source=source, cache_dir=str(tmp_path / "whole")), NOTES, progress=False)
        for source in (f"text:{tmp_path}/a.txt", f"hf:{tmp_path}/books")
    )
    assert text.fingerprint == whole.fingerprint
    monkeypatch.setattr(build, "_POOL_FROM", 0)
    monkeypatch.setattr(corpus, "UNIT_BYTES", 1000)
    units = plan(resolve(f"hf:{tmp_path}/books"), tmp_path, None)
    assert [len(list(documents(unit, Warnings()))) for unit in units] == [100, 100, 100, 100]
    config = replace(config, source=f"hf:{tmp_path}/books")
    alone, shared = (
        prepare(replace(config, cache_dir=str(tmp_path / str(n)), workers=n), NOTES, progress=False) for n in (1, 2)
    )
    assert alone.folder.name == shared.folder.name == whole.folder.name
    assert alone.fingerprint == shared.fingerprint
    assert len(shared.train_shards) == 4


def test_a_changed_folder_has_another_identity(tmp_path: Path):
    path = tmp_path / "books/a.jsonl"
    write(path, ["one"])
    before = resolve(f"hf:{tmp_path}/books")
    assert resolve(f"hf:{tmp_path}/books") == before
    (tmp_path / "books/.hidden").write_text("not read, and not looked at")
    assert resolve(f"hf:{tmp_path}/books") == before
    os.utime(path, ns=(1, 1))
    assert resolve(f"hf:{tmp_path}/books") != before


def _torn(folder: Path) -> None:
    write(folder / "a.jsonl", ["good"] * 3)
    (folder / "a.jsonl").write_text((folder / "a.jsonl").read_text() + '{"text": \n')


def _zeros(folder: Path) -> None:
    write(folder / "a.parquet", texts("a", 1000))
    content = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(content[:100] + bytes(300) + content[400:])


def _other_columns(folder: Path) -> None:
    write(folder / "a.jsonl", ["good"])
    write(folder / "b.jsonl", [3], "number")


def _saved(folder: Path) -> None:
    folder.rmdir()
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(folder))


def _script(folder: Path) -> None:
    write(folder / "a.jsonl", ["good"])
    (folder / "books.py").write_text("raise SystemExit('it was run')")


def _card(folder: Path) -> None:
    write(folder / "a.jsonl", ["good"])
    (folder / "README.md").write_text("---\nconfigs: [: {\n---\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.rmdir, "is not a folder (jsonl:GLOB and parquet:GLOB take files)"),
        (Path.exists, "no file matches"),
        (lambda folder: (folder / "a.xyz").write_text("?"), "No (supported) data files found"),
        (lambda folder: (folder / "a.parquet").write_text("no table"), "not a parquet file"),
        (_torn, "JSON"),
        (_zeros, "eserializ"),
        (_other_columns, "column names don't match"),
        (_saved, "was written by save_to_disk; write it with to_parquet"),
        (_script, "scripts are no longer supported"),
        (_card, "expected the node content"),
    ],
    ids=["missing", "empty", "no data", "no table", "torn", "zeros", "other columns", "saved", "script", "card"],
)
def test_a_folder_that_cannot_be_read(make: Callable[[Path], Any], message: str, tmp_path: Path):
    folder = tmp_path / "books"
    folder.mkdir()
    make(folder)
    line = mistake(f"hf:{folder}", tmp_path)
    assert line.startswith(f"data.source='hf:{folder}'")
    assert message in line


@pytest.mark.parametrize("split", ["valid", "train[:10%]"])
def test_a_wrong_split(split: str, tmp_path: Path):
    write(tmp_path / "books/train.jsonl", ["a"])
    write(tmp_path / "books/test.jsonl", ["a"])
    line = mistake(f"hf:{tmp_path}/books@{split}", tmp_path)
    assert line.endswith(f"Bad split: {split}. Available splits: ['train', 'test']")


# --- a hub ---


def _table(name: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts(name), "other": [os.urandom(500_000)] * 30}), file, use_dictionary=False)
    return file.getvalue()


OLD, NEW = "a" * 40, "b" * 40
CARD = b"---\nconfigs:\n- config_name: x\n  data_files: x/*.jsonl\n- config_name: y\n  data_files: y/*.jsonl\n---\n"
COMMITS = {
    "me/books": {
        OLD: {"README.md": b"# Books", **{f"data/train-{i}-of-2.parquet": _table(f"old {i}") for i in range(2)}},
        NEW: {"README.md": b"# Books", "data/train-0-of-1.parquet": _table("new")},
    },
    "me/parts": {OLD: {"README.md": CARD, "x/a.jsonl": b'{"text": "in x"}\n', "y/a.jsonl": b'{"text": "in y"}\n'}},
    "me/bare": {OLD: {"train.jsonl": b'{"text": "bare"}\n'}},
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as reading takes. `parts` is an old name of `me/parts`."""

    main: dict[str, str]  # the newest commits
    sent: list[tuple[str, int]]  # path and bytes

    def log_message(self, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).removeprefix("/api").removeprefix("/datasets/")
        name, what, rest = path, "info", ""
        for word in ("resolve", "tree", "revision"):
            if f"/{word}/" in path:
                name, what, rest = *path.split(f"/{word}/", 1)[:1], word, path.split(f"/{word}/", 1)[1]
        if name == "parts":
            return self.answer(307, Location=self.path.replace("/parts", "/me/parts", 1))
        if name not in COMMITS:
            return self.answer(401, X_Error_Code="RepoNotFound")
        commit, _, inside = rest.partition("/")
        commit = commit if commit in COMMITS[name] else self.main[name]
        files = COMMITS[name][commit]
        if what in ("info", "revision"):
            return self.answer(200, json.dumps({"id": name, "sha": commit, "siblings": [], "tags": []}).encode())
        if what == "tree":
            folder = inside + "/" if inside else ""
            below = {file: file.removeprefix(folder).split("/") for file in files if file.startswith(folder)}
            entries: list[dict[str, Any]] = [
                {"type": "file", "path": file, "size": len(files[file]), "oid": "0"}
                for file, names in below.items()
                if len(names) == 1
            ]
            folders = {names[0] for names in below.values() if len(names) > 1}
            entries += [{"type": "directory", "path": folder + name, "oid": "0"} for name in folders]
            if not entries:
                return self.answer(404, X_Error_Code="EntryNotFound")
            return self.answer(200, json.dumps(entries).encode())
        if inside not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = files[inside]
        headers = {"ETag": hashlib.sha1(content).hexdigest(), "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not (asked := self.headers.get("Range")):
            return self.answer(200, content, **headers)
        start, end = map(int, asked.removeprefix("bytes=").split("-"))
        return self.answer(206, content[start : end + 1], **headers)

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.sent.append((self.path, len(body)))


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    Hub.main = {"me/books": OLD, "me/parts": OLD, "me/bare": OLD}
    Hub.sent = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from pathlib import Path
from jaxpretrain.config import ConfigError
from jaxpretrain.data.corpus import documents, plan, resolve
from jaxpretrain.data.sources.source import Warnings

for source in sys.argv[1:]:
    try:
        parts = resolve(source)
        print(json.dumps(parts[0].identity), flush=True)
        units = plan(parts, Path(), None)
        print(json.dumps([document for unit in units for document in documents(unit, Warnings())]), flush=True)
    except ConfigError as error:
        print(json.dumps(str(error)), flush=True)
"""


@pytest.fixture
def ask(hub: ThreadingHTTPServer, tmp_path: Path) -> Callable[..., list[Any]]:
    """Reads sources in a process of its own: the libraries take the hub's address when they are imported."""

    def ask(*sources: str, offline: bool = False) -> list[Any]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "1" if offline else "0",
        }
        command = [sys.executable, "-c", SCRIPT, *sources]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=tmp_path)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


@pytest.mark.slow
def test_a_hub(ask: Callable[..., list[Any]], tmp_path: Path):
    write(tmp_path / "me/books/a.jsonl", ["a folder of the same name, which is not asked for"])
    assert ask("hf:me/books", "hf:me/parts/y", "hf:me/bare@train#text", "hf:parts/x") == [
        ["me/books", "", OLD],
        texts("old 0") + texts("old 1"),
        ["me/parts", "y", OLD],
        ["in y"],
        ["me/bare", "", OLD],
        ["bare"],
        ["me/parts", "x", OLD],
        ["in x"],
    ]
    # Of the tables the text and the footers were fetched, in blocks of 5 MB, not the other column.
    fetched = sum(size for path, size in Hub.sent if path.endswith(".parquet"))
    assert 0 < fetched < 0.5 * sum(len(content) for content in COMMITS["me/books"][OLD].values())
    # Streamed: of data nothing is kept.
    assert {path.suffix for path in (tmp_path / "home").rglob("*")}.isdisjoint({".arrow", ".parquet", ".jsonl"})


@pytest.mark.slow
def test_mistakes_that_the_hub_tells_of(ask: Callable[..., list[Any]]):
    found = ask("hf:me/nothing", "hf:me/nothing/x", "hf:nothing", "hf:a/b/c/d", "hf:me/parts", "hf:me/parts/z")
    lines = [line for line in found if isinstance(line, str)]
    messages = [*["no such data set on the Hugging Face hub"] * 4, "['x', 'y']", "'z' not found. Available: ['x', 'y']"]
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert message in line
        assert "\n" not in line


@pytest.mark.slow
def test_the_stream_is_of_the_commit_that_names_the_cache(
    ask: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
):
    def answer_then_push(self: Hub) -> None:
        answer(self)
        if self.command == "GET" and self.path.endswith("/resolve/main/README.md"):
            self.main["me/books"] = NEW

    answer = Hub.do_GET
    monkeypatch.setattr(Hub, "do_GET", answer_then_push)
    old = [["me/books", "", OLD], texts("old 0") + texts("old 1")]
    assert ask("hf:me/books", "hf:me/books") == [*old, ["me/books", "", NEW], texts("new")]
    # Without a network the newest commit is the one that was newest: what is prepared is found.
    assert ask("hf:me/books", offline=True)[0] == ["me/books", "", NEW]


@pytest.mark.slow
def test_without_a_network(ask: Callable[..., list[Any]]):
    sources = ["hf:me/books", "hf:me/books/config", "hf:books"]
    why = "the Hugging Face hub cannot be reached, and this data set was not read before"
    assert ask(*sources, offline=True) == [f"data.source={source!r}: {why}" for source in sources]

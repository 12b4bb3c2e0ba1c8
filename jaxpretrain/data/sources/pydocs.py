"""The default corpus: English prose that lies on every machine this package runs on.

The topics that Python keeps for `help()`, and the docstrings, other strings and comments of the standard library and of
our dependencies. Sources are parsed, never imported. What is not prose (code, tables, signatures) goes, and what is
said twice goes too.
"""

import ast
import inspect
import platform
import re
import sysconfig
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
from tqdm import tqdm

# Distributions that pyproject.toml asks for, and what these ask for themselves: they are there on every machine.
DISTRIBUTIONS = (
    "absl-py",
    "array_record",
    "chex",
    "etils",
    "flax",
    "grain",
    "importlib_resources",
    "jax",
    "jaxlib",
    "ml_collections",
    "ml_dtypes",
    "msgpack",
    "numpy",
    "opt_einsum",
    "optax",
    "orbax-checkpoint",
    "safetensors",
    "scipy",
    "sentencepiece",
    "simple-parsing",
    "tensorboardX",
    "tensorflow-datasets",
    "tensorstore",
    "toolz",
    "tqdm",
    "treescope",
    "zstandard",
)

FILE_NAME = "python-docs.txt"

_SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "__pycache__"}
_TOPICS = ("pydoc_data/topics.py", "pydoc_data/module_docs.py")

_SHORTEST = 30  # characters that can hold a sentence
_COMMENT = re.compile(r"(?m)^[ \t]*#.*\n(?:[ \t]*#.*\n)+")
_ITEM = re.compile(r"(?:[*+\-•]|\(?\d{1,2}[.)]|:\w+(?: [\w*]+)?:|\.\. \w+:: ?(?:\d[\w.]*)?|\.\. \[\w+\])\s+")
_NAMED = re.compile(r"\*{0,2}`{0,2}[\w.*, ]{1,40}`{0,2}(?: ?\([^)]*\))? ?:\s+(?=\S)")  # Google: `axis: The axis …`
_TYPED = re.compile(r"[\w*., `\[\]]+ : ")  # NumPy: `axis : int`, its text follows on the next line
_ROLE = re.compile(r":[\w:+]+:`~?([^`<]+?)(?:\s*<[^>`]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^>`]*>`_{1,2}|\[([^\]]+)\]\([^)]*\)")
_QUOTED = re.compile(r"`{1,2}~?([^`]+)`{1,2}_{0,2}")
_STRONG = re.compile(r"(?<!\w)(\*{1,2})(?=\S)([^*]+?)(?<=\S)\1(?!\w)")
_REFERENCE = re.compile(r"\s*\[[\w#*]{1,12}\]_")
_HEADER = re.compile(r"[A-Z][\w ]{2,30}:")  # Google: `Args:`, its items follow
_RULE = re.compile(r"[\s=\-~^*+#|_.\"']{3,}")
_CODE = re.compile(r"[=_{}<>\[\]\\|$/@#~^+]|\(\)|->|::")
_COMMON = (
    "the a an of to in is are be and or if that this for with it as on by not from which can will when has was "
    "have may should must into at than used its all any been such only"
)
_STOP_WORDS = frozenset(_COMMON.split())
_SHINGLE = 6  # words
_POWERS = np.array([pow(0x9E3779B97F4A7C15, i, 1 << 64) for i in range(_SHINGLE)], np.uint64)


def identity() -> list[str]:
    """What decides the corpus: the versions of Python and of the distributions."""
    return [f"python=={platform.python_version()}"] + [
        f"{name}=={version}" for name in DISTRIBUTIONS if (version := _version(name))
    ]


def gather(scratch: Path, pool: Executor | None, progress: bool = False) -> Path:
    """Writes the prose into one text file; what was said before is dropped, in the order of the files."""
    sources = modules()
    found = pool.map(paragraphs_of, sources, chunksize=32) if pool else map(paragraphs_of, sources)
    seen = Seen()
    path = scratch / FILE_NAME
    with path.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        for texts in tqdm(found, "reading", len(sources), unit="file", disable=not progress, leave=False):
            for document in texts:
                if new := [paragraph for paragraph in document if seen.add(paragraph)]:
                    file.write("\n".join(new) + "\n\n")
    return path


def modules() -> list[Path]:
    """The source files to read, in a fixed order."""
    standard = Path(sysconfig.get_path("stdlib"))
    found = [path for path in standard.rglob("*.py") if _wanted(path.relative_to(standard))]
    found.sort()
    for name in DISTRIBUTIONS:
        if not _version(name):
            continue
        files = [file for file in metadata.files(name) or [] if file.suffix in (".py", ".pyi") and _wanted(Path(file))]
        # A stub repeats the module beside it.
        names = {str(file) for file in files}
        found += sorted(
            path
            for file in files
            if not (file.suffix == ".pyi" and str(file)[:-1] in names) and (path := Path(str(file.locate()))).is_file()
        )
    return found


def paragraphs_of(path: Path) -> list[list[str]]:
    """The prose of one source file: documents, each a list of paragraphs.

    A module is one document; each of Python's help topics is one too.
    """
    try:
        source = path.read_bytes()
        tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError, RecursionError):  # a template, another Python's syntax
        return []
    strings = list(_strings(tree))
    if path.as_posix().endswith(_TOPICS):
        texts = [[text] for text in strings]
    else:
        texts = [[*strings, *_comments(source.decode("utf-8", "replace"))]]
    documents = []
    for document in texts:
        paragraphs = (paragraph for text in document for paragraph in _paragraphs(inspect.cleandoc(text)))
        if prose := [paragraph for paragraph in paragraphs if _is_prose(paragraph)]:
            documents.append(prose)
    return documents


class Seen:
    """What the corpus has said already, as hashes of runs of six words. Decides in the order in which it is asked."""

    def __init__(self) -> None:
        self._shingles: set[int] = set()

    def add(self, paragraph: str) -> bool:
        """Whether at least half of the paragraph's runs of words are new; if so, they are remembered."""
        hashes = np.array([_hash(word) for word in re.findall(r"\w+", paragraph.lower())], np.uint64)
        if len(hashes) < _SHINGLE:
            return False
        windows = np.lib.stride_tricks.sliding_window_view(hashes, _SHINGLE)
        shingles = set((windows * _POWERS).sum(1, dtype=np.uint64).tolist())
        if 2 * len(shingles & self._shingles) > len(shingles):
            return False
        self._shingles |= shingles
        return True


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _wanted(path: Path) -> bool:
    stem = path.stem
    is_test = stem.startswith("test_") or stem.endswith(("_test", "_tests")) or stem == "conftest"
    return not is_test and not _SKIPPED_FOLDERS.intersection(path.parts) and ".." not in path.parts


@lru_cache(1 << 16)
def _hash(word: str) -> int:
    # Two checksums make 64 bits. Python's own hash differs from process to process.
    data = word.encode("utf-8", "replace")
    return zlib.crc32(data) << 32 | zlib.adler32(data)


def _strings(tree: ast.Module) -> Iterator[str]:
    """String constants in the order of the source: docstrings, and documentation that is kept in variables.

    f-strings are left out: what is between their fields is seldom a sentence.
    """
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and len(node.value) >= _SHORTEST:
                yield node.value
        elif not isinstance(node, ast.JoinedStr):
            stack.extend(reversed(list(ast.iter_child_nodes(node))))


def _comments(source: str) -> Iterator[str]:
    """Comments of at least two lines."""
    for match in _COMMENT.finditer(source):
        yield re.sub(r"(?m)^[ \t]*#[#!:]*[ ]?", "", match.group())


def _paragraphs(text: str) -> Iterator[str]:
    """Cuts a docstring into paragraphs, lists into their items; code blocks, doctests, tables and headings left out."""
    lines: list[str] = []
    indent = 0
    code_indent = -1  # lines indented deeper than this are code, as after "::"
    after_code = False
    for line in [*text.expandtabs().split("\n"), ""]:
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        if code_indent >= 0 and stripped:
            if depth > code_indent:
                continue
            code_indent = -1
        if stripped.startswith((">>>", "...", "$ ", "```", "+--", "|")):
            after_code = True  # and what follows up to the blank line is the output
        if not stripped or _RULE.fullmatch(stripped) or after_code:
            if stripped and lines and not after_code:
                lines.pop()  # the rule underlines a heading
            if lines:
                yield _clean(lines)
            lines = []
            after_code = after_code and bool(stripped)
            continue
        if _HEADER.fullmatch(stripped):
            if lines:
                yield _clean(lines)
            lines = []
            continue
        item = _ITEM.match(stripped)
        typed = _TYPED.match(stripped) and (not lines or depth <= indent)
        named = _NAMED.match(stripped) if not lines or depth <= indent else None
        if lines and (item or typed or named or depth < indent):
            yield _clean(lines)
            lines = []
        if typed:
            continue
        if not lines:
            indent = depth
        head = item or named
        lines.append(stripped[head.end() :] if head else stripped)
        if stripped.endswith("::") or stripped.startswith((".. code", ".. math", ".. plot", ".. image", ".. table")):
            if stripped.startswith(".. "):
                lines.pop()
            code_indent = depth


def _clean(lines: list[str]) -> str:
    """One line of plain text, its markup taken off."""
    text = " ".join(lines)
    text = _ROLE.sub(r"\1", text)
    text = _LINK.sub(r"\1\2", text)
    text = _QUOTED.sub(r"\1", text)
    text = _STRONG.sub(r"\2", text)
    text = _REFERENCE.sub("", text)
    if text.endswith("::"):
        text = text[:-1]
    return " ".join(text.split())


def _is_prose(text: str) -> bool:
    """Whether a paragraph reads like English sentences: long enough, mostly letters, joined by the usual words."""
    words = text.split()
    if len(words) < (6 if text[-1:] in tuple(".!?:)\"'") else 10) or not text[0].isalnum():
        return False
    letters = sum(map(str.isalpha, text)) + len(words) - 1
    joining = sum(word.lower() in _STOP_WORDS for word in words)
    return (
        letters >= 0.85 * len(text)
        and 4 * len(words) <= len(text) <= 12 * len(words)
        and joining >= max(2, 0.15 * len(words))
        and len(_CODE.findall(text)) <= 0.15 * len(words)
    )

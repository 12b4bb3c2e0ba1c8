"""README and pages: commands are taken, code is code, links lead somewhere, tables are true, the site is built."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from jaxpretrain.config import Config, FinetuneConfig, flatten

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / ".github/CONTRIBUTING.md",
    ROOT / ".github/SECURITY.md",
    ROOT / "CHANGELOG.md",
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")

# What stands for something else in a command. Names of files and folders need no entry: nothing is opened.
PLACEHOLDERS = {"$JOB_COMPLETION_INDEX": "0", "…": "RUN"}
NAMES_OF_FILES = (".tsv", ".py", ".md", ".safetensors", ".npy", ".json")

# Run once for all commands: what takes long to import is imported once, each line gets a process of its own. A config
# must validate; a command without one must get as far as reading the run that it is given.
CHECK = """
import importlib, json, os, sys
import jaxpretrain.evaluation.finetuned, jaxpretrain.evaluation.trained, jaxpretrain.interop.imported
from absl import flags
from jaxpretrain import cli
from jaxpretrain.config import Config, FinetuneConfig, validate, validate_finetune

READERS = {"predict": ["load_run", "notes_of_run"], "compare": ["compare"], "convert": ["load_run", "from_huggingface",
           "from_official"]}

class Reached(Exception): ...

def reached(*_, **__):
    raise Reached

def check(name, args):
    sys.argv = [name, *args]
    module = importlib.import_module(f"jaxpretrain.{name}")
    rest = flags.FLAGS(sys.argv)
    if name in READERS:
        for reader in READERS[name]:
            getattr(module, reader)
            setattr(module, reader, reached)
        try:
            module.main(rest)
        except Reached:
            return
        raise ValueError("it ends before it reads a run")
    config = cli.CONFIG.value
    kind, check = (FinetuneConfig, validate_finetune) if name == "finetune" else (Config, validate)
    if len(rest) > 1 or not isinstance(config, kind):
        raise ValueError(f"{rest[1:]}, {type(config).__name__}")
    check(config)

errors = []
for name, args in json.load(sys.stdin):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as out:
            try:
                check(name, args)
            except BaseException as error:
                out.write(f"{type(error).__name__}: {error}")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        errors.append(result.read())
    os.wait()
print(json.dumps(errors))
"""


@dataclass(frozen=True)
class Page:
    """A page taken apart: its blocks of code by kind, code inside sentences, and the text with neither."""

    blocks: list[tuple[str, str]]
    spans: list[str]
    prose: str


def read(path: Path) -> Page:
    text = path.read_text()
    blocks = FENCE.findall(text)
    text = FENCE.sub("", text)
    for block in INDENTED.findall(text):
        blocks.append(("bash" if re.match(r" +(python|pip|bash|mkdocs) ", block) else "", block))
    text = INDENTED.sub("", text)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return Page(blocks, spans, re.sub(r"`[^`]+`", "", text))


def arguments(line: str) -> list[str]:
    """What a shell would give the command, up to the end of it."""
    for short, full in PLACEHOLDERS.items():
        line = line.replace(short, full)
    try:
        return shell_words(line)
    except ValueError:  # the quotes around the whole command end here
        return shell_words(line.rstrip().removesuffix("'").removesuffix('"'))


def shell_words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    ends = [i for i, word in enumerate(words) if word and not set(word) - set("&|;<>")]
    return words[: ends[0]] if ends else words


def commands(page: Page) -> list[tuple[str, list[str]]]:
    found = []
    for text in [*(block for _, block in page.blocks), *page.spans]:
        text = re.sub(r"\\\n|\n +(?=--)", " ", text)
        for name, line in re.findall(r"python -m jaxpretrain\.(\w+)([^\n]*)", text):
            found.append((name, arguments(line)))
    return found


def errors_of(lines: list[tuple[str, list[str]]]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK],
        cwd=ROOT,
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_command_is_taken_and_wrong_ones_are_not():
    lines = {}  # → where it stands
    for path in PAGES:
        for name, args in commands(read(path)):
            assert importlib.util.find_spec(f"jaxpretrain.{name}"), f"{path.name}: jaxpretrain.{name}"
            if args:  # else it is only named
                lines.setdefault((name, *args), path.name)
    assert len(lines) > 50
    wrong = [
        ("train", ["--config", "configs/tupe.py", "--config.train.stepz=3"]),
        ("train", ["--config", "configs/tupe.py", "--config.model.position=alibi"]),
        ("train", ["--config", "configs/tupe.py:huge"]),
        ("train", ["--config", "configs/tupe.py", "runs/tupe-tiny"]),
        ("prepare", ["--config", "configs/glue.py"]),
        ("finetune", ["--config", "configs/glue.py", "--config.task=MRPC"]),
        ("predict", ["--workdir", "runs/tupe-tiny", "--topp", "3"]),
        ("convert", ["--to_huggingface", "runs/tupe-tiny"]),
        ("compare", ["runs/tupe-tiny", "--htm=1"]),
    ]
    found = errors_of([*((name, list(args)) for name, *args in lines), *wrong])
    right, refused = found[: len(lines)], found[len(lines) :]
    bad = {
        f"{page}: {shlex.join(line)}": error for (line, page), error in zip(lines.items(), right, strict=True) if error
    }
    assert bad == {}
    assert all(refused), refused


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_is_code(path: Path):
    for kind, block in read(path).blocks:
        if kind == "python":
            compile(block, str(path), "exec")
        if kind == "bash":
            done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
            assert done.returncode == 0, f"{done.stderr}{block}"
        for script in re.findall(r"python ((?:benchmarks|docs)/\S+\.py)", block):
            assert (ROOT / script).exists(), script


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them and, by `.mkdocs.yml`, the site."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = base = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
        number = 0
        while slug in found:
            number += 1
            slug = f"{base}-{number}"
        found.add(slug)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path: Path):
    text = INDENTED.sub("", FENCE.sub("", path.read_text()))
    for target in LINK.findall(text):
        if re.match(r"\w+:", target):
            assert target.startswith("https://"), target
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.is_relative_to(ROOT), target
        assert place.exists(), target
        if anchor:
            assert place.suffix == ".md", target
            made = anchors(place) | ({"settings"} if place.name == "api.md" else set())
            assert anchor in made, f"{target}: {sorted(made)}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_fields_that_are_named_exist(path: Path):
    known = {*flatten(Config()), *flatten(FinetuneConfig())}
    rooms = "|".join({name.partition(".")[0] for name in flatten(Config()) if "." in name})
    for span in read(path).spans:
        field = re.fullmatch(rf"(?:--config\.)?((?:{rooms})\.[a-z_0-9]+)(?:=\S+)?", span)
        if field and not span.endswith(NAMES_OF_FILES):
            assert field[1] in known, span


def test_recipes_are_as_reproduce_says():
    config, checked = None, 0
    for line in (ROOT / "docs/reproduce.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[2] == "field":
            file, _, size = cells[3].strip("`").partition(":")
            recipe = runpy.run_path(str(ROOT / file))["get_config"]
            config = flatten(recipe(size) if size else recipe())
        elif config and len(cells) == 4 and cells[2].startswith("`"):
            assert str(config[cells[2].strip("`")]) == cells[3].strip("`"), line
            checked += 1
        elif not line.startswith("|"):
            config = None
    assert checked > 45


def test_numbers_on_tupe_are_the_record_s():
    record = (ROOT / "benchmarks/records/positions-tiny/README.md").read_text()
    rows = re.findall(r"^(\| (?:BERT|TUPE)-[AR] \| \d.*) \|$", (ROOT / "docs/tupe.md").read_text(), re.M)
    assert len(rows) == 4
    assert all(row in record for row in rows)


def test_one_address_and_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    owner = PROJECT["urls"]["Repository"].rsplit("/", 1)[0]
    for path in PAGES:
        for address in re.findall(rf"{re.escape(owner)}/[\w.-]+", path.read_text()):
            assert address == PROJECT["urls"]["Repository"], path


def test_issue_forms_are_forms():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        for part in form["body"]:
            assert part["type"] in ("markdown", "textarea")
            assert ("value" if part["type"] == "markdown" else "label") in part["attributes"]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))), reason="needs the extra docs"
)
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path):
    command = ["mkdocs", "build", "--strict", "-f", ".mkdocs.yml", "-d", str(tmp_path)]  # --quiet counts no warnings
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in tmp_path.glob("*.html")} == {
        "404",
        *(path.stem for path in (ROOT / "docs").glob("*.md")),
    }
    assert not list(tmp_path.rglob("*.py"))
    settings = (tmp_path / "api.html").read_text()
    for name in (*flatten(Config()), *flatten(FinetuneConfig())):
        assert f"--config.{name}<" in settings
    for path in tmp_path.glob("*.html"):
        page = path.read_text()
        loaded = re.findall(r"""<(?:script|img|iframe)[^>]* src=["']?([^"' >]+)""", page)
        loaded += re.findall(r"""<link[^>]* href=["']?([^"' >]+)[^>]*stylesheet""", page)
        assert [address for address in loaded if re.match(r"(https?:)?//", address)] == []
        for address in loaded:
            assert address.startswith("data:") or (tmp_path / address.partition("?")[0].lstrip("/")).exists(), address

"""What .mkdocs.yml cannot say: links out of docs/, pictures of records, the table of settings.

The pages are written for a reader on GitHub, where `../jaxpretrain/notes.py` is right. On the site such a link leads to
the repository, whose address stands in pyproject.toml and nowhere else.
"""

import ast
import io
import posixpath
import re
import tokenize
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "jaxpretrain/config.py"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>\.\./[^)\s]+)\)")


def on_config(config: Any) -> Any:
    """The repository's address, in the footer. (As `repo_url` the theme would ask GitHub for its stars.)"""
    config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": REPOSITORY, "name": "Repository"}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """The site has a copy of each record's pictures."""
    for picture in sorted((ROOT / "benchmarks/records").glob("*/*.png")):
        uri = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave docs/ lead to the repository, or to the copy of a picture; settings become tables."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def led(match: re.Match[str]) -> str:
        path, mark, anchor = match["target"].partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        place = "tree" if (ROOT / path).is_dir() else "blob"
        target = posixpath.relpath(path, folder.removeprefix("docs").lstrip("/") or ".")
        if not match["image"]:
            target = f"{REPOSITORY}/{place}/main/{path}{mark}{anchor}"
        return f"{match['image']}[{match['text']}]({target})"

    return LINK.sub(led, markdown).replace("<!-- settings -->", settings())


def settings() -> str:
    """Every field of the config: its flag, its default, and the comment that stands with it in config.py."""
    source = CONFIG.read_text()
    comments: dict[int, str] = {}
    alone: set[int] = set()  # lines with nothing but a comment
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    tree = ast.parse(source)
    choices = _choices(tree)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and node.decorator_list}
    rooms = {ast.unparse(f.annotation): f.target.id for f in _fields(classes["Config"])}  # type: ignore[union-attr]
    parts = []
    for name in ("Config", *[name for name in rooms if name in classes], "FinetuneConfig"):
        node = classes[name]
        parts += [f"\n### {name}\n", f"{ast.get_docstring(node)}\n", "| flag | default | |", "| --- | --- | --- |"]
        for field in _fields(node):
            leaf, default = field.target.id, ast.unparse(field.value)  # type: ignore[union-attr,arg-type]
            if default.startswith("field("):
                continue
            before = field.lineno - 1
            while before in alone:
                before -= 1
            said = [comments[line] for line in (*range(before + 1, field.lineno), field.lineno) if line in comments]
            dotted = f"{rooms[name]}.{leaf}" if name in rooms else leaf
            text = " ".join(said) or choices.get(dotted, "")
            for mark in "|*":
                text = text.replace(mark, f"\\{mark}")
            parts.append(f"| `--config.{dotted}` | `{default}` | {text.replace('<', '&lt;')} |")
    return "\n".join(parts) + "\n"


def _choices(tree: ast.Module) -> dict[str, str]:
    """What `validate` allows, by field: `one_of("model.position", POSITIONS)`."""
    values = {
        node.targets[0].id: ast.literal_eval(node.value)  # type: ignore[union-attr]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "one_of"]
    return {ast.literal_eval(call.args[0]): ", ".join(values[ast.unparse(call.args[1])]) for call in calls}


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [item for item in node.body if isinstance(item, ast.AnnAssign)]

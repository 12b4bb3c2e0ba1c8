"""The launchers of docs/scale.md, as far as a single machine can check them: syntax, flags, configs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/scale.md").read_text()
FENCED = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)
INDENTED = re.findall(r"\n\n((?: {4}.+\n)+)", re.sub(r"```.*?```", "", PAGE, flags=re.S))
BLOCKS = [*FENCED, *(("bash", block) for block in INDENTED)]


CHECK = """
import sys
from absl import flags
from jaxpretrain import cli, train
from jaxpretrain.config import validate
assert flags.FLAGS(sys.argv)[1:] == []
validate(cli.CONFIG.value)
"""


def commands(text: str) -> list[str]:
    """The training commands in a block, with the lines that they go on over."""
    text = re.sub(r"\\\n|\n +(?=--)", " ", text)
    return re.findall(r"python -m jaxpretrain\.train[^\n'#]*", text)


def test_there_are_as_many_as_the_page_says():
    assert [kind for kind, _ in BLOCKS] == ["bash", "bash", "yaml", "bash", "bash"]
    assert all(len(commands(block)) == 1 for _, block in BLOCKS)


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "bash"])
def test_shell_is_shell(block: str):
    done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_kubernetes_gets_objects():
    [text] = [block for kind, block in BLOCKS if kind == "yaml"]
    service, job = yaml.safe_load_all(text)
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4


@pytest.mark.parametrize("line", sorted({line for _, block in BLOCKS for line in commands(block)}))
def test_flags_and_configs(line: str):
    """Parsed by the command's own flags; the config is validated."""
    arguments = shlex.split(line.replace("$JOB_COMPLETION_INDEX", "0"))[3:]
    done = subprocess.run([sys.executable, "-c", CHECK, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

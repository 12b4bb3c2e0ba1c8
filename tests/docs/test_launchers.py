"""The launchers of docs/scale.md: how many, and Kubernetes' objects. `test_pages.py` has syntax, flags and configs."""

import re
from pathlib import Path

import yaml

PAGE = (Path(__file__).parents[2] / "docs/scale.md").read_text()
FENCED = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)
INDENTED = re.findall(r"\n\n((?: {4}.+\n)+)", re.sub(r"```.*?```", "", PAGE, flags=re.S))
BLOCKS = [*FENCED, *(("bash", block) for block in INDENTED)]


def test_there_are_as_many_as_the_page_says():
    assert [kind for kind, _ in BLOCKS] == ["bash", "bash", "yaml", "bash", "bash"]
    assert all(block.count("python -m jaxpretrain.train ") == 1 for _, block in BLOCKS)


def test_kubernetes_gets_objects():
    [text] = [block for kind, block in BLOCKS if kind == "yaml"]
    service, job = yaml.safe_load_all(text)
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4

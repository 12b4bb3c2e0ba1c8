"""The package as installed: what importing it brings along, and that it says which version it is."""

import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxpretrain

pytestmark = pytest.mark.quick

IMPORT_ALL = """
import importlib, json, sys

class Refuse:
    # Packages that cannot be had, and the modules that ask for them. A dependency may ask: tensorboardX does.
    def find_spec(self, name, path=None, target=None):
        if name in refused:
            frame = sys._getframe(1)
            while frame.f_globals["__name__"].startswith("importlib"):
                frame = frame.f_back
            asking.append(frame.f_globals["__name__"])
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

refused, modules, asking = sys.argv[1].split(","), sys.argv[2:], []
sys.meta_path.insert(0, Refuse())
for name in modules:
    importlib.import_module(name)
print(json.dumps([sorted({name.partition(".")[0] for name in sys.modules}), asking]))
"""
HEAVY = ("tensorflow", "torch", "keras", "apache_beam")


def imported(*modules: str, folder: Path | None = None) -> tuple[set[str], list[str]]:
    """Imports modules in a fresh interpreter that has none of the heavy packages, installed or not.

    Returns:
        The top-level packages in memory then, and the modules that asked for a heavy one.
    """
    command = [sys.executable, "-c", IMPORT_ALL, ",".join(HEAVY), *modules]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packages, asking = json.loads(done.stdout.splitlines()[-1])
    return set(packages), asking


def assert_light(*modules: str, folder: Path | None = None) -> None:
    """Modules import without a heavy package, and none of ours asks for one."""
    _, asking = imported(*modules, folder=folder)
    assert not [name for name in asking if name.partition(".")[0] in ("jaxpretrain", *modules)]


MODULES = [module.name for module in pkgutil.walk_packages(jaxpretrain.__path__, "jaxpretrain.")]
COMMANDS = [name for name in MODULES if "flags.DEFINE" in Path(importlib.util.find_spec(name).origin).read_text()]


def test_library_imports_without_tensorflow_or_torch():
    library = [name for name in MODULES if name not in COMMANDS]
    assert "jaxpretrain.config" in library
    assert_light(*library)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_imports_without_tensorflow_or_torch(command: str):
    # One at a time: commands are programs of their own, and may give the same name to a flag.
    assert_light(command)


@pytest.mark.parametrize("line", ["import torch", "import torch.nn", "from tensorflow import io"])
def test_a_module_that_needs_them_is_noticed(line: str, tmp_path: Path):
    (tmp_path / "needs.py").write_text(line)
    with pytest.raises(AssertionError, match="No module named"):
        assert_light("needs", folder=tmp_path)
    (tmp_path / "asks.py").write_text(f"try:\n    {line}\nexcept ImportError:\n    pass")
    with pytest.raises(AssertionError, match="asks"):
        assert_light("asks", folder=tmp_path)


def test_package_and_config_import_without_jax():
    # `--help` and a mistake in a config are answered at once; jax takes seconds.
    packages, _ = imported("jaxpretrain", "jaxpretrain.config")
    assert not packages & {"jax", "flax", "orbax", "tensorflow_datasets"}


def test_installed_version_is_the_one_of_this_checkout():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version("jaxpretrain") == project["version"]


def test_eight_devices_and_caches_of_our_own(corpus_cache: Path):
    assert jax.device_count() == 8
    assert os.environ["JAXPRETRAIN_CACHE"] == str(corpus_cache)
    assert not corpus_cache.is_relative_to(Path.home() / ".cache")


@pytest.mark.usefixtures("x64")
def test_x64_fixture_widens():
    assert jnp.zeros(1).dtype == jnp.float64
    assert jax.jit(lambda: jnp.arange(3.0))().dtype == jnp.float64


def test_x64_fixture_ends_with_its_test():
    assert jnp.zeros(1).dtype == jnp.float32

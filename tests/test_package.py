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
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def packages_loaded_by(*modules: str) -> set[str]:
    """Top-level packages in memory after importing `modules` in a fresh interpreter."""
    command = [sys.executable, "-c", IMPORT_ALL, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


MODULES = [module.name for module in pkgutil.walk_packages(jaxpretrain.__path__, "jaxpretrain.")]
COMMANDS = [name for name in MODULES if "flags.DEFINE" in Path(importlib.util.find_spec(name).origin).read_text()]
HEAVY = {"tensorflow", "torch", "keras", "apache_beam"}


def test_library_imports_without_tensorflow_or_torch():
    library = [name for name in MODULES if name not in COMMANDS]
    assert "jaxpretrain.config" in library
    assert not packages_loaded_by(*library) & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_command_imports_without_tensorflow_or_torch(command: str):
    # One at a time: commands are programs of their own, and may give the same name to a flag.
    assert not packages_loaded_by(command) & HEAVY


def test_package_and_config_import_without_jax():
    # `--help` and a mistake in a config are answered at once; jax takes seconds.
    assert not packages_loaded_by("jaxpretrain", "jaxpretrain.config") & {"jax", "flax", "orbax", "tensorflow_datasets"}


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

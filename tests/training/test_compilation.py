"""The compilation cache: code is run from it, so only the user may write there."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from jaxpretrain.training.compilation import use_compilation_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of jax that is not set, and a home of our own."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "jaxpretrain-compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def used() -> str | None:
    use_compilation_cache()
    return jax.config.values["jax_compilation_cache_dir"]


def test_the_folder_is_the_users_alone(cache: Path):
    assert used() == str(cache)
    assert cache.stat().st_mode & 0o777 == 0o700


def test_jaxs_own_setting_wins(cache: Path, tmp_path: Path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert used() == str(tmp_path)
    assert not cache.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(cache: Path, mode: int):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    assert not used()


def test_a_home_that_cannot_be_written_is_no_error(cache: Path):
    cache.parent.write_text("a file where a folder is wanted")
    assert not used()

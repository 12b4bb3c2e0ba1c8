"""What needs no library; the rest is in tests/interop/test_datasets.py."""

import sys

import pytest

from jaxpretrain.config import ConfigError
from jaxpretrain.data.corpus import resolve


@pytest.mark.parametrize("source", ["hf:me/books", "hf:./books", "hf:~/books@test#body"])
def test_a_missing_library_is_named(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = rf"data.source='{source}' needs the library datasets: pip install 'jaxpretrain\[hf\]'"
    with pytest.raises(ConfigError, match=message):
        resolve(source)

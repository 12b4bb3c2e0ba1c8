import textwrap
from pathlib import Path

import pytest

from jaxpretrain.data.sources import pydocs
from jaxpretrain.data.sources.pydocs import Seen, paragraphs_of

MODULE = '''
"""Tools for the reading of letters and the keeping of books.

The module opens a book and *reads* the letters in it,
each in turn, with :func:`~letters.read` or ``letters.skip``.

>>> read("a book that is not prose at all")
"and the output of it is not prose either"

Heading of this section
=======================

Use it as follows, and the code will not be in the corpus::

    this is code that is indented in the text of the docs

* The first item of the list is a sentence of its own.
* The second item of the list is one too, as
  it goes on in the next line.
"""

HELP = "The number of letters that are read from a book before it is closed."
ERROR = f"could not read the {HELP} of the book and the letters in it"

# A comment of two lines can be a sentence, and this
# is one that is long enough to be kept.
# Copyright
x = 1  # A comment on one line is seldom one, so it is left out of the text.

def read(book, count=1):
    """Returns the letters of a book in the order of their dates.

    Args:
        book: The book that the letters are in, open for reading.
        count: short

    Parameters
    ----------
    book : str or file-like object
        The name of the book, or a file that has been opened already.
    """
'''


def test_prose_is_kept_and_the_rest_is_not(tmp_path: Path):
    path = tmp_path / "letters.py"
    path.write_text(MODULE)
    assert paragraphs_of(path) == [
        [
            "Tools for the reading of letters and the keeping of books.",
            "The module opens a book and reads the letters in it, each in turn, with letters.read or letters.skip.",
            "Use it as follows, and the code will not be in the corpus:",
            "The first item of the list is a sentence of its own.",
            "The second item of the list is one too, as it goes on in the next line.",
            "The number of letters that are read from a book before it is closed.",
            "Returns the letters of a book in the order of their dates.",
            "The book that the letters are in, open for reading.",
            "The name of the book, or a file that has been opened already.",
            "A comment of two lines can be a sentence, and this is one that is long enough to be kept. Copyright",
        ]
    ]


@pytest.mark.parametrize("source", ["def broken(:\n", "\0", "x = 1\n", '"""Short."""'])
def test_files_without_prose(tmp_path: Path, source: str):
    path = tmp_path / "a.py"
    path.write_text(source)
    assert paragraphs_of(path) == []


def test_what_was_said_is_dropped():
    seen = Seen()
    text = "Returns the sum of the elements of an array along the given axis, in the type of the array."
    assert seen.add(text)
    assert not seen.add(text)
    assert not seen.add(text.upper().replace(",", ";"))
    assert not seen.add(text.replace("Returns", "Computes").replace("the array.", "the input."))
    assert not seen.add(textwrap.shorten(text, 70))
    assert seen.add("Raises an error when the two shapes of its arguments cannot be broadcast together.")


def test_modules_are_those_of_the_installed_packages():
    modules = pydocs.modules()
    assert len(set(modules)) == len(modules) > 2000
    names = {path.as_posix().split("site-packages/")[-1] for path in modules}
    assert "jax/_src/numpy/lax_numpy.py" in names
    assert any(name.endswith("/pydoc_data/topics.py") for name in names)
    assert not any("/tests/" in name for name in names)
    assert modules == pydocs.modules()


def test_identity_names_versions():
    identity = pydocs.identity()
    assert identity[0].startswith("python==3.")
    assert any(entry.startswith("jax==") for entry in identity)


def test_every_distribution_is_installed():
    assert [name for name in pydocs.DISTRIBUTIONS if not pydocs._version(name)] == []

"""Preparing a corpus beforehand: what the command prints, and that it does nothing twice."""

import sys
from pathlib import Path

from jaxpretrain.data.text import normalise


def test_it_prints_what_there_is_and_does_nothing_twice(text: Path, run, tmp_path: Path):
    config = ["--config", "configs/bert.py", f"--config.data.cache_dir={tmp_path}", f"--config.data.source=text:{text}"]
    command = [sys.executable, "-m", "jaxpretrain.prepare", *config, "--config.data.vocab_size=200"]
    first = run(command)
    assert first.code == 0, first.err
    [folder] = tmp_path.iterdir()
    rows = [line for line in first.out.splitlines() if not line.startswith(" ")]
    found = {row[:14].strip(): row[14:] for row in rows}
    assert list(found) == [
        *("source", "documents", "tokens", "text", "vocabulary", "rare words", "fingerprint", "folder")
    ]
    documents = text.read_text().split("\n\n")
    assert found["source"] == f"text:{text}"
    assert found["documents"].startswith(f"{len(documents)}, ")
    assert found["text"].startswith(f"{sum(len(normalise(document, True)) for document in documents):,} bytes, ")
    assert found["folder"] == str(folder)
    assert (folder / "manifest.json").exists()

    places = [tmp_path, *folder.iterdir()]  # the first would tell of a folder that came and went
    before = [path.stat().st_mtime_ns for path in places]
    again = run(command)
    assert again.out == first.out
    assert [path.stat().st_mtime_ns for path in places] == before

"""What the studies share: training what is not trained yet, and reading what came of it."""

import importlib.metadata
import os
import platform
import queue
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from jaxpretrain.evaluation.curves import Method, read_methods

SMALL = {  # fields of a config: a network and pieces for runs of seconds, on `made_up_text`
    "data.sequence_length": 16,
    "data.vocab_size": 200,
    "data.held_out": 0.1,
    "model.layers": 1,
    "model.hidden": 32,
    "model.ffn": 64,
}


def made_up_text(documents: int = 150) -> str:
    """Sentences whose words go together in pairs, so that there is something to learn."""
    rng = random.Random(0)
    words = ["".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)) for _ in range(60)]
    sentence = lambda: " ".join(f"{words[2 * i]} {words[2 * i + 1]}" for i in rng.choices(range(30), k=5))  # noqa: E731
    return "\n\n".join("\n".join(f"{sentence()}." for _ in range(4)) for _ in range(documents)) + "\n"


def all_done(job: Mapping[Path, Sequence[str]]) -> None:
    """Ends the program where a run has failed."""
    for workdir in missing(job):
        sys.exit(f"{workdir}: the run failed; {workdir}.log tells how")


def train_missing_together(
    jobs: Sequence[Mapping[Path, Sequence[str]]], after: Callable[[Mapping[Path, Sequence[str]]], object] = all_done
) -> None:
    """As `train_missing`, a job to a core: for networks so small that two cores are no twice as fast as one.

    Args:
        jobs: the runs of each follow one another. What a run prints goes to a file beside its workdir.
        after: called with each job that has ended; a run without DONE has failed, and those after it were left out.
    """
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def train(job: Mapping[Path, Sequence[str]]) -> None:
        core = cores.get()
        try:
            for workdir, started in missing(job).items():
                workdir.parent.mkdir(parents=True, exist_ok=True)
                with open(f"{workdir}.log", "ab") as log:
                    if subprocess.run(["taskset", "-c", str(core), *started], stdout=log, stderr=log).returncode:
                        break
        finally:
            cores.put(core)
        after(job)

    with ThreadPoolExecutor(cores.qsize()) as pool:
        bar = tqdm(pool.map(train, jobs), total=len(jobs), unit="job", desc="training", smoothing=0, disable=not jobs)
        list(bar)


def train_missing(runs: Mapping[Path, Sequence[str]]) -> None:
    """Trains each workdir's run, by its arguments of `jaxpretrain.train`, unless it is done; may be stopped at will."""
    for command in missing(runs).values():
        subprocess.run(command, check=True)


def missing(runs: Mapping[Path, Sequence[str]]) -> dict[Path, list[str]]:
    """The training commands of the runs that are not done, by workdir."""
    return {
        workdir: [sys.executable, "-m", "jaxpretrain.train", *arguments, "--workdir", str(workdir)]
        for workdir, arguments in runs.items()
        if not (workdir / "DONE").exists()
    }


def labelled(label: str, seeds: Iterable[Path], metric: str) -> Method:
    """The runs of one method, a workdir for each seed, as `compare` reads them, by the name that a record gives it."""
    (method,) = read_methods([str(workdir) for workdir in seeds], metric)
    return replace(method, label=label)


def machine() -> str:
    """Cores and versions, a phrase."""
    version = importlib.metadata.version("jax")
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}, jax {version}"


def command(**shown: str) -> str:
    """The command that is running, as it was given: for the record that it writes.

    Args:
        shown: by option, what stands for its value (a path of one machine). `--out` and where runs live are left out.
    """
    words, option = ["python", f"benchmarks/{Path(sys.argv[0]).name}"], ""
    for word in sys.argv[1:]:
        if word.startswith("--"):
            option, _, value = word.partition("=")
            given = [option, *([value] if value else [])]
        else:
            given = [word]
        if option not in ("--out", "--runs", "--work", "--about"):
            name = option.removeprefix("--").replace("-", "_")
            words += [w if w == option else shown.get(name) or shlex.quote(w) for w in given]
    return " ".join(words)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def write_record(folder: Path, title: str, about: str, body: str, files: Mapping[str, bytes | str]) -> None:
    """Writes README.md and the files beside it, and prints the page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = f"# {title}\n\n{about}\n\n{body}\n"
    (folder / "README.md").write_text(page)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    print(page)

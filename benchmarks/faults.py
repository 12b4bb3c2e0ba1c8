"""Faults: what a run survives, what it says, and whether its end is that of a run that nothing disturbed.

    python benchmarks/faults.py --out benchmarks/records/faults

A small run of all three methods is killed at moments of every kind, one kill after another until it is through; then
each of the other faults. After every fault the same command is started again. A run counts as *equal* when parameters,
optimizer state, notes, metrics (times aside) and result are bit for bit those of the undisturbed run. Mounts a small
disk for two of the faults, which needs root; without it they are left out, and said to be.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from study import SMALL, machine, made_up_text, table, write_record
from tqdm import tqdm

from jaxpretrain.training import metrics
from jaxpretrain.training.checkpoint import restore_params

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 300, 50  # of a run, and between its checkpoints
PATIENCE = 120  # seconds
SETTINGS = SMALL | {
    "notes.single_piece": True,
    "notes.min_count": 1,
    "notes.max_count": 100_000,
    "train.steps": STEPS,
    "train.batch_size": 8,
    "train.log_every": 1,
    "optim.warmup_steps": 5,
    "eval.every": EVERY,
    "eval.examples": 256,
    "checkpoint.every_steps": EVERY,
    "checkpoint.every_minutes": 0.0,
    "checkpoint.keep": 3,
}


@dataclass
class Case:
    """One fault that was tried."""

    fault: str
    where: str  # which file, which moment
    said: str  # the last line of what was reported, if anything was
    lost: int  # steps taken that had to be taken again
    finished: bool
    equal: bool
    told: bool = False  # whether what was said names what the end lacks

    @property
    def silent(self) -> bool:
        """Whether the end is another one and nobody was told."""
        return self.finished and not self.equal and not self.told


@dataclass
class Place:
    """A folder to try faults in: the text, prepared corpora, compiled programs and runs."""

    folder: Path
    rng: random.Random
    cases: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.folder / "text.txt"
        self.text.write_text(made_up_text(400))

    def command(self, workdir: Path, cache: Path | None = None, **changed: object) -> list[str]:
        """Of training, without the interpreter."""
        settings = SETTINGS | {"data.source": f"text:{self.text}", "data.cache_dir": cache or self.folder / "corpora"}
        settings |= {name.replace("__", "."): value for name, value in changed.items()}
        fields = [f"--config.{name}={value}" for name, value in settings.items()]
        return ["--config", str(ROOT / "configs/tupe_tnf_mcbert.py"), "--workdir", str(workdir), *fields]

    def start(self, args: list[str], code: str = "", compiled: Path | None = None) -> subprocess.Popen[str]:
        """Starts training; `code` runs first in the same process."""
        run = "import runpy; runpy.run_module('jaxpretrain.train', run_name='__main__', alter_sys=True)"
        launch = ["-c", f"{code}\n{run}"] if code else ["-m", "jaxpretrain.train"]
        found = {"JAX_COMPILATION_CACHE_DIR": str(compiled or self.folder / "compiled")}
        found |= {f"JAX_PERSISTENT_CACHE_{name}": "0" for name in ("MIN_COMPILE_TIME_SECS", "MIN_ENTRY_SIZE_BYTES")}
        pipe = subprocess.PIPE
        environment = os.environ | found | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        return subprocess.Popen(
            [sys.executable, *launch, *args], stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment
        )

    def run(self, args: list[str], code: str = "") -> tuple[int, str, str]:
        """Trains to the end: exit code and what was written."""
        process = self.start(args, code)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err

    def undisturbed(self) -> dict:
        """What the end of every run must be."""
        workdir = self.folder / "undisturbed"
        if not (workdir / "DONE").exists():
            code, _, err = self.run(self.command(workdir))
            assert code == 0, err
        return result_of(workdir)

    def stopped(self) -> Path:
        """A run that was killed somewhere after its third checkpoint was whole: to copy, not to change."""
        workdir = self.folder / "stopped"
        if not workdir.exists():
            process = self.start(self.command(workdir))
            wait_until(process, lambda: committed(workdir) >= 3 * EVERY)
            process.kill()
            process.communicate()
        return workdir

    def again(self, args: list[str], code: str = "") -> str:
        """Starts a run until it is through, thrice at most; what the first start wrote."""
        first, done = "", False
        for _ in range(3):
            exit_code, out, _ = self.run(args, code)
            first, done = first or out, exit_code == 0
            if done:
                break
        return first

    def plain(self, said: str) -> str:
        """Without the folder's place and name, which the name of a corpus has too."""
        return said.replace(str(self.folder), "…").replace(f"{self.folder.name.replace('_', '-')}-", "")

    def note(self, fault: str, where: str, said: str, lost: int, workdir: Path, told: bool = False) -> Case:
        """Adds a case, after whose repair the run has been started again and has ended."""
        finished = (workdir / "DONE").exists()
        equal = finished and same(result_of(workdir), self.undisturbed())
        self.cases.append(Case(fault, where, self.plain(said), lost, finished, equal, told))
        shutil.rmtree(workdir, ignore_errors=True)
        return self.cases[-1]


def result_of(workdir: Path) -> dict:
    """All that must not depend on faults."""
    parts = {
        part: restore_params(workdir / "checkpoints", STEPS, subtree=part)[0]
        for part in ("params", "opt_state", "notes")
    }
    lines = [
        {k: v for k, v in line.items() if not k.startswith(("speed/", "total/seconds"))}
        for line in metrics.read(workdir)
    ]
    return {"state": parts, "lines": lines, "done": json.loads((workdir / "DONE").read_text())}


def same(one: dict, other: dict) -> bool:
    """Bit for bit."""

    def leaves(tree: dict, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
        for name, value in sorted(tree.items()):
            yield from leaves(value, f"{path}/{name}") if isinstance(value, dict) else [(f"{path}/{name}", value)]

    arrays = [[(name, x.dtype, x.tobytes()) for name, x in leaves(result["state"])] for result in (one, other)]
    return arrays[0] == arrays[1] and one["lines"] == other["lines"] and one["done"] == other["done"]


def logged(workdir: Path) -> int:
    """The last step in the metrics; 0 before the first."""
    return max((line["step"] for line in metrics.read(workdir)), default=0)


def committed(workdir: Path) -> int:
    """The newest checkpoint; 0 where there is none."""
    return max((int(mark.parent.name) for mark in (workdir / "checkpoints").glob("*/digests.json")), default=0)


def wait_until(process: subprocess.Popen[str], reached: Callable[[], object]) -> bool:
    """False: the process ended first. One that does neither for too long is killed."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if reached():
            return True
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the moment to disturb a run has not come in {PATIENCE} s: {process.communicate()}")
        time.sleep(0.001)
    return False


def last_line(err: str) -> str:
    """Of what was said, bars aside."""
    rows = [row.strip() for row in re.split(r"[\r\n]+", err)]
    return next((row for row in reversed(rows) if row and not re.search(r"\[\d+:\d\d.*\]$", row)), "")


def resumed_from(out: str) -> int:
    found = re.search(r"goes on from step ([\d,]+)", out)
    return int(found[1].replace(",", "")) if found else 0


# --- kill -9 ---


def moments(place: Place, workdir: Path, cache: Path) -> dict[str, tuple[Callable[[], object], float]]:
    """When to kill: what has been reached by then, and up to how many seconds later."""
    begun = time.perf_counter()
    step = min(logged(workdir) + place.rng.randint(1, EVERY), STEPS - 1)
    saved = committed(workdir)

    def unfinished() -> bool:
        folders = (workdir / "checkpoints").glob("*[0-9]")
        return any(int(folder.name) > saved and not (folder / "digests.json").exists() for folder in folders)

    return {
        "preparing": (lambda: any(cache.glob(".*")), 0.3),
        "starting": (lambda: True, 2.5),
        "compiling": (lambda: time.perf_counter() - begun > 1 and (workdir / "tokenizer.model").exists(), 1.0),
        "in a step": (lambda: logged(workdir) >= step, 0.01),
        "evaluating": (lambda: logged(workdir) % EVERY == EVERY - 1, 0.1),
        "writing a checkpoint": (unfinished, 0.04),
        "finishing": (lambda: logged(workdir) >= STEPS, 0.15),
    }


def kills(place: Place, life: int) -> None:
    """One run, killed at a moment of each kind, in the order in which a run comes to them, and once at random."""
    workdir, cache = place.folder / f"life-{life}", place.folder / f"corpora-{life}"
    compiled = place.folder / f"compiled-{life}"  # its own: the first start compiles
    args = place.command(workdir, cache)
    early, middle = ["preparing", "starting", "compiling"], ["in a step", "evaluating", "writing a checkpoint"]
    order = [*early, *place.rng.sample(middle, 3), place.rng.choice(middle), "finishing"]
    tried, before = [], 0
    for moment in [*order, ""]:
        process = place.start(args, compiled=compiled)
        killed = False
        if moment:
            reached, delay = moments(place, workdir, cache)[moment]
            if wait_until(process, reached):
                time.sleep(place.rng.uniform(0, delay))
                process.kill()
                killed = process.wait() == -signal.SIGKILL
        out, err = process.communicate(timeout=600)
        if tried and tried[-1][3] is None and (out or not killed):
            tried[-1][3] = before - resumed_from(out)  # what the kill before cost
        before = logged(workdir)
        if killed:
            tried.append([moment, f"step {before}", last_line(err), None])
        elif process.returncode:
            tried.append([moment, f"step {before}: exit {process.returncode}", last_line(err), None])
        if (workdir / "DONE").exists():
            break
    code, _, err = place.run(args)
    finished = code == 0 and (workdir / "DONE").exists()
    equal = finished and same(result_of(workdir), place.undisturbed())
    for moment, where, said, lost in tried:
        said = place.plain(said or last_line(err) * (code != 0))
        place.cases.append(Case(f"kill -9, {moment}", where, said, lost or 0, finished, equal))
    for folder in (workdir, cache, compiled):
        shutil.rmtree(folder, ignore_errors=True)


def signals(place: Place, number: signal.Signals) -> Case:
    """SIGTERM, Ctrl-C: nothing is lost."""
    workdir = place.folder / "signalled"
    args = place.command(workdir)
    process = place.start(args)
    step = place.rng.randint(3, STEPS - EVERY)
    wait_until(process, lambda: logged(workdir) >= step)
    process.send_signal(number)
    out, _ = process.communicate(timeout=600)
    before = logged(workdir)
    _, again, _ = place.run(args)
    return place.note(number.name, f"step {before}", last_line(out), before - resumed_from(again), workdir)


# --- files ---


def flip(path: Path, rng: random.Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    """Cut anywhere."""
    os.truncate(path, rng.randrange(path.stat().st_size))


DAMAGES = {"one bit flipped": flip, "truncated": truncate}


def between_starts(
    place: Place,
    fault: str,
    where: str,
    spoil: Callable[[Path], object] = lambda _: None,
    mend: Callable[[Path], object] = lambda _: None,
    sign: str = "",
    told: str = "",
    **how: object,
) -> Case:
    """A stopped run is spoilt and started; if that is refused, it is mended and started as ever.

    Args:
        sign: in the line that is expected to be said; empty: the last one.
        told: in that line, if it says what the end will lack.
        how: the first start is made, as `Place.command` takes it.
    """
    workdir = Path(shutil.copytree(place.stopped(), place.folder / "spoilt"))
    before = logged(workdir)
    spoil(workdir)
    code, out, err = place.run(place.command(workdir, **how))
    said = next((line for line in err.splitlines() if sign in line), "") if sign else last_line(err)
    if code:
        mend(workdir)
        _, out, _ = place.run(place.command(workdir))
    return place.note(fault, where, said, before - resumed_from(out), workdir, bool(told) and told in said)


def newest_files(place: Place) -> list[str]:
    """Of the newest whole checkpoint of the stopped run."""
    newest = place.stopped() / "checkpoints" / f"{committed(place.stopped()):08d}"
    return [str(path.relative_to(newest)) for path in sorted(newest.rglob("*")) if path.is_file()]


def damaged_checkpoint(place: Place, damage: str, name: str) -> Case:
    """A file of the newest checkpoint is not what was written: the one before is used."""
    newest = f"{committed(place.stopped()):08d}"
    spoil = lambda workdir: DAMAGES[damage](workdir / "checkpoints" / newest / name, place.rng)  # noqa: E731
    return between_starts(place, f"checkpoint: {damage}", re.sub(r"[0-9a-f]{32}", "…", name), spoil, sign=newest)


def damaged_run_file(place: Place, name: str, kept: int | None = None) -> Case:
    """A file beside the checkpoints: used or refused, never half read. Cut after so many bytes; None: anywhere."""
    original = (place.stopped() / name).read_bytes()

    def cut(workdir: Path) -> None:
        truncate(workdir / name, place.rng) if kept is None else os.truncate(workdir / name, kept)

    return between_starts(
        place,
        "file of a run: truncated",
        name,
        spoil=cut,
        mend=lambda workdir: (workdir / name).write_bytes(original),
        sign=name,
        told="a gap stays",
    )


def damaged_corpus(place: Place, damage: str, name: str) -> Case:
    """A file of a prepared corpus is not what was written: noticed before a step is taken with it."""
    with corpora(place) as cache:
        [path] = cache.glob(f"*/{name}")
        DAMAGES[damage](path, place.rng)
        return between_starts(place, f"prepared corpus: {damage}", name, sign="damaged", cache=cache)


@contextmanager
def corpora(place: Place) -> Iterator[Path]:
    """A copy of the prepared corpora, for as long as it lasts."""
    cache = Path(shutil.copytree(place.folder / "corpora", place.folder / "other-corpora"))
    try:
        yield cache
    finally:
        shutil.rmtree(cache)


# --- what changes underneath ---


def bringing_back(path: Path) -> Callable[[], None]:
    """What brings a file back as it is now, its time too: a corpus that was prepared from it stays that of it."""
    kept, status = path.read_bytes(), path.stat()

    def bring_back() -> None:
        path.write_bytes(kept)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return bring_back


def another_text(place: Place) -> Case:
    """The text has changed since the run was stopped; then it is brought back."""
    bring_back = bringing_back(place.text)
    with corpora(place) as cache:
        try:
            place.text.write_text(place.text.read_text().replace("a", "e", 50))
            return between_starts(place, "text changed between starts", "", mend=lambda _: bring_back(), cache=cache)
        finally:
            bring_back()


def text_changes_meanwhile(place: Place) -> Case:
    """The text and the prepared corpus go while a run reads them."""
    workdir, cache = place.folder / "meanwhile", place.folder / "meanwhile-corpora"
    bring_back = bringing_back(place.text)
    process = place.start(place.command(workdir, cache))
    wait_until(process, lambda: logged(workdir) >= EVERY)
    place.text.write_text("gone")
    shutil.rmtree(cache)
    _, err = process.communicate(timeout=600)
    bring_back()
    before = logged(workdir)
    out = place.again(place.command(workdir, cache)) if process.returncode else ""
    lost = before - resumed_from(out) if out else 0
    shutil.rmtree(cache, ignore_errors=True)
    return place.note("text and prepared corpus deleted during a run", "", last_line(err), lost, workdir)


def another_config(place: Place) -> Case:
    """The same workdir, another model."""
    return between_starts(place, "config that differs", "model.hidden", model__hidden=64)


def another_version(place: Place) -> Case:
    """config.json has a field that this version does not know."""
    kept = (place.stopped() / "config.json").read_text()
    return between_starts(
        place,
        "run of another version",
        "config.json",
        spoil=lambda workdir: (workdir / "config.json").write_text(json.dumps(json.loads(kept) | {"of_tomorrow": 1})),
        mend=lambda workdir: (workdir / "config.json").write_text(kept),
    )


def another_format(place: Place) -> Case:
    """A prepared corpus of another version lies in the cache."""
    with corpora(place) as cache:
        [path] = cache.glob("*/manifest.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
        return between_starts(place, "prepared corpus of another version", "", sign="damaged", cache=cache)


def several_runs(place: Place) -> Case:
    """Three commands on one workdir at the same moment, preparing the same corpus."""
    workdir, cache = place.folder / "several", place.folder / "several-corpora"
    processes = [place.start(place.command(workdir, cache)) for _ in range(3)]
    ends = [process.communicate(timeout=600) for process in processes]
    refused = [last_line(err) for process, (_, err) in zip(processes, ends, strict=True) if process.returncode]
    said = refused[0] if len(refused) == 2 and len(set(refused)) == 1 else f"{len(refused)} refused: {refused}"
    shutil.rmtree(cache, ignore_errors=True)
    return place.note("three runs started on one workdir", "", said, 0, workdir)


def two_prepare(place: Place) -> Case:
    """Two runs prepare the same corpus, and one of them is killed."""
    workdir, other, cache = place.folder / "prepares", place.folder / "prepares-too", place.folder / "two-corpora"
    first, second = place.start(place.command(other, cache)), place.start(place.command(workdir, cache))
    wait_until(first, lambda: any(cache.glob(".*")))
    time.sleep(place.rng.uniform(0, 0.3))
    first.kill()
    first.communicate()
    _, err = second.communicate(timeout=600)
    for folder in (other, cache):
        shutil.rmtree(folder, ignore_errors=True)
    return place.note("killed while another prepares the same corpus", "", last_line(err), 0, workdir)


# --- clocks and numbers ---

CLOCK = """
import time
real, begun = time.time, time.perf_counter()
time.time = lambda: real() + ({by} if time.perf_counter() > begun + {after} else 0)
"""
NAN = """
import copy
import jax.numpy as jnp
import jaxpretrain.training.step as module
whole = module.train_step
def broken(state, batch, *, objective, **others):
    one = copy.copy(objective)
    def loss(*args):
        value, aux = objective.loss(*args)
        return jnp.where(state.step == {step}, jnp.nan, 1.0) * value, aux
    one.loss = loss
    return whole(state, batch, objective=one, **others)
module.train_step = broken
"""


def clock(place: Place) -> Case:
    """The wall clock jumps at some moment of every start, by an hour to a year, forwards or backwards."""
    workdir, cache = place.folder / "clock", place.folder / "clock-corpora"
    by = place.rng.choice([-1, 1]) * place.rng.choice([3600, 90_000, 3e7])
    code = CLOCK.format(by=by, after=place.rng.uniform(1, 10))
    code_of_exit, _, err = place.run(place.command(workdir, cache), code)
    before = logged(workdir)
    out = place.again(place.command(workdir, cache), code) if code_of_exit else ""
    shutil.rmtree(cache, ignore_errors=True)
    lost = before - resumed_from(out) if out else 0
    return place.note("clock jumps", f"by {by / 3600:+,.0f} hours", last_line(err) * (code_of_exit != 0), lost, workdir)


def nan(place: Place) -> Case:
    """The loss of one batch is not a number; the next start meets a sound one, as after a fault of the hardware."""
    workdir, step = place.folder / "nan", place.rng.randint(EVERY + 1, STEPS - 1)
    code, _, err = place.run(place.command(workdir), NAN.format(step=step))
    before = logged(workdir)
    _, out, _ = place.run(place.command(workdir))
    said = last_line(err) if code else "nothing was noticed"
    return place.note("NaN in one batch", f"step {step + 1}", said, before - resumed_from(out), workdir)


# --- disks ---


class NoDisk(Exception):
    """A fault that cannot be tried here."""


@contextmanager
def disk(place: Place, kib: int) -> Iterator[Path]:
    """A file system of its own. Raises NoDisk where it cannot be mounted."""
    folder = place.folder / "disk"
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True).returncode:
        raise NoDisk("mounting a disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def full_disk(place: Place) -> Case:
    """The disk is full at a moment that its size decides; then there is room again."""
    kib = place.rng.randint(400, 2000)
    with disk(place, kib) as folder:
        workdir = folder / "run"
        code, _, err = place.run(place.command(workdir))
        before = logged(workdir)
        remount(folder, "size=1g")
        _, out, _ = place.run(place.command(workdir))
        said = last_line(err) if code else "it was large enough"
        return place.note("disk full", f"{kib} KiB, step {before}", said, before - resumed_from(out), workdir)


def read_only(place: Place) -> Case:
    """The disk may only be read when the run is to go on; then it may be written again."""
    with disk(place, 1 << 20) as folder:
        workdir = Path(shutil.copytree(place.stopped(), folder / "run"))
        before = logged(workdir)
        remount(folder, "ro")
        _, _, err = place.run(place.command(workdir))
        remount(folder, "rw")
        _, out, _ = place.run(place.command(workdir))
        return place.note("read-only", "", last_line(err), before - resumed_from(out), workdir)


# --- all of them ---


def others(place: Place, times: int) -> list[Callable[[], object]]:
    """Every fault but kill -9, as often as it is to be tried."""
    todo: list[Callable[[], object]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        todo += [lambda number=number: signals(place, number)] * times
    [corpus] = (place.folder / "corpora").iterdir()
    for damage in DAMAGES:
        todo += [lambda d=damage, n=name: damaged_checkpoint(place, d, n) for name in newest_files(place)]
        todo += [lambda d=damage, n=path.name: damaged_corpus(place, d, n) for path in sorted(corpus.iterdir())]
    todo += [lambda n=name: damaged_run_file(place, n) for name in ("config.json", "metrics.jsonl", "tokenizer.model")]
    single = [another_text, text_changes_meanwhile, another_config, another_version, another_format, several_runs]
    single += [two_prepare, clock, nan, full_disk, read_only]
    return todo + [lambda f=fault: f(place) for fault in single for _ in range(times)]


def summary(cases: list[Case]) -> list[list[str]]:
    """A row a fault."""
    rows = []
    for fault in dict.fromkeys(case.fault for case in cases):
        here = [case for case in cases if case.fault == fault]
        said = next((case.said for case in here if case.said), "")
        said = said if len(said) < 160 else f"{said[:157]}…"
        silent = sum(case.silent for case in here)
        survived = f"{sum(case.finished for case in here)}"
        rows.append([fault, f"{len(here)}", survived, f"{max(case.lost for case in here)}", f"{silent}", said])
    return rows


def main() -> None:
    """Tries them all, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=7, help="runs that are killed eight times each")
    parser.add_argument("--times", type=int, default=3, help="how often each other fault is tried")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and places")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/faults"))
    options = parser.parse_args()
    begun = time.perf_counter()
    left_out: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), random.Random(options.seed))
        place.undisturbed()
        todo = [lambda life=life: kills(place, life) for life in range(options.lives)] + others(place, options.times)
        for fault in tqdm(todo, unit="fault"):
            try:
                fault()
            except NoDisk as error:
                left_out.append(str(error))
            except Exception as error:  # the others are tried all the same, and this one is no success
                place.cases.append(Case("the campaign itself", "", f"{type(error).__name__}: {error}", 0, False, False))
    cases = place.cases
    killed = [case for case in cases if case.fault.startswith("kill -9")]
    silent = [case for case in cases if case.silent]
    about = (
        f"{len(cases)} faults, {len(killed)} of them kill -9. Runs that ended bit for bit like the undisturbed one: "
        f"{sum(case.equal for case in cases)}; not at all: {sum(not case.finished for case in cases)}; otherwise, and "
        f"it was said: {len([case for case in cases if case.finished and not case.equal]) - len(silent)}, and it was "
        f"not: {len(silent)}. At most the interval between checkpoints is lost, and the steps that were taken while "
        "the newest one was being written: at these few milliseconds a step, up to twice the interval. "
        f"A run: {STEPS} steps of TUPE-R, notes and MC-BERT, a checkpoint every {EVERY} steps; seed {options.seed}; "
        f"{(time.perf_counter() - begun) / 60:.0f} minutes. {machine()}."
    )
    head = ["fault", "tried", "survived", "most steps lost", "silent errors", "what was said, for example"]
    command = f"python benchmarks/faults.py --lives {options.lives} --times {options.times}"
    body = f"{table(head, summary(cases))}\n\n`{command}`: every case is in `cases.json`."
    if left_out:
        body += f"\n\nLeft out: {len(left_out)} ({'; '.join(sorted(set(left_out)))})."
    files = {"cases.json": json.dumps([asdict(case) for case in cases], indent=1, ensure_ascii=False) + "\n"}
    write_record(options.out, "Faults", about, body, files)
    sys.exit(bool(silent) or not all(case.finished for case in cases))


if __name__ == "__main__":
    main()

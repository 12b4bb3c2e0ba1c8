"""The long form of the fuzz tests: every target for a while, with new inputs each time, and a record of what was found.

    python -m tests.fuzz.campaign --minutes 20 --out benchmarks/records/fuzz

Each target runs in a process of its own: to crash it, or not to end, is a finding too. What was found before, and the
test beside the code that holds its repair, stands in `repaired.md` in the record's folder.
"""

import argparse
import multiprocessing
import random
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis

from benchmarks.study import machine, table, write_record
from tests.fuzz.targets import ANSWERS, TARGETS

LINES = 30  # of a finding, shown
BATCH = 100  # inputs, which grow from small to large
PATIENCE = 120  # seconds over its time after which a target is held to hang


def fuzz(name: str, seconds: float, out: Connection) -> None:
    """Runs a target for so long and sends what came of it, again and again; the first finding ends it."""
    strategy, check = TARGETS[name]
    counts: Counter[str] = Counter()
    begin = time.monotonic()

    def counted(given: Any) -> None:
        if time.monotonic() - begin < seconds or not counts["inputs"]:
            ANSWERS.clear()
            check(given)
            counts["inputs"] += 1
            counts["refused"] += {"refused"} == ANSWERS

    settings = hypothesis.settings(
        max_examples=BATCH,
        database=None,
        derandomize=False,
        deadline=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    finding = ""
    while time.monotonic() - begin < seconds and not finding:
        try:
            hypothesis.seed(random.getrandbits(64))(settings(hypothesis.given(strategy)(counted)))()
        except BaseException:
            finding = traceback.format_exc()
        out.send((counts, finding))


def run(name: str, seconds: float) -> tuple[Counter[str], float, str]:
    """Inputs, seconds and finding of a target in a process of its own."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=fuzz, args=(name, seconds, theirs))
    begin = time.monotonic()
    process.start()
    theirs.close()
    counts, finding = Counter(), ""
    try:
        while ours.poll(seconds + PATIENCE):  # since it last told
            counts, finding = ours.recv()
        finding = "does not end"
        process.kill()
    except EOFError:
        process.join()
        finding = finding or (f"ended with {process.exitcode}" if process.exitcode else "")
    return counts, time.monotonic() - begin, finding


def main() -> None:
    """Runs the targets and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="in all")
    parser.add_argument("--out", type=Path, required=True, help="the record's folder")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), help="some, by name; default all")
    arguments = parser.parse_args()
    rows, findings, total, begin = [], [], 0, time.monotonic()
    for name in arguments.targets:
        counts, seconds, finding = run(name, 60 * arguments.minutes / len(arguments.targets))
        total += counts["inputs"]
        rows.append(
            [name, f"{counts['inputs']:,}", f"{counts['refused']:,}", f"{seconds:.0f}", "1" if finding else "0"]
        )
        print(rows[-1], flush=True)
        if finding:
            print(finding, flush=True)
            findings.append(f"### {name}\n\n```\n" + "\n".join(finding.strip().splitlines()[-LINES:]) + "\n```")
    about = (
        f"`python -m tests.fuzz.campaign --minutes {arguments.minutes:g}`: {total:,} inputs in "
        f"{(time.monotonic() - begin) / 60:.0f} minutes on {machine()}. What each target holds is said in "
        "[`tests/fuzz/targets.py`](../../../tests/fuzz/targets.py); a refused input got one line that says why."
    )
    head = ["target", "inputs", "refused", "seconds", "findings"]
    repaired = arguments.out / "repaired.md"
    parts = [table(head, rows), "## Findings of this run", "\n\n".join(findings) or "None."]
    parts += ["## Found and repaired before", repaired.read_text().strip()] if repaired.exists() else []
    write_record(arguments.out, "Hostile inputs", about, "\n\n".join(parts), {})


if __name__ == "__main__":
    main()

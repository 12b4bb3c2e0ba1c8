"""From the command to the first step of training, by what is there already: text prepared, programs compiled, a run.

    python benchmarks/startup.py --out benchmarks/records/startup

Each time is of a whole `python -m jaxpretrain.train` until its first step is in metrics.jsonl. Run it on an idle
machine: the load is recorded.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from study import command, machine, table, write_record

from jaxpretrain.training import metrics

STARTS = {  # what is kept from the starts before: the corpus, compiled programs, the run
    "nothing": (),
    "the text prepared": ("corpora",),
    "prepared and compiled": ("corpora", "compiled"),
    "a stopped run, resumed": ("corpora", "compiled", "run"),
}


def first_step(folder: Path, recipe: str) -> float:
    """Seconds from the command to a step that was not there before; the run is then stopped, its state saved."""
    workdir = folder / "run"
    before = len(metrics.read(workdir)) if workdir.exists() else 0
    environment = os.environ | {
        "JAXPRETRAIN_CACHE": str(folder / "corpora"),
        "XDG_CACHE_HOME": str(folder / "compiled"),
    }
    command = [sys.executable, "-m", "jaxpretrain.train", "--config", recipe, "--config.train.log_every=1"]
    begin = time.perf_counter()
    with open(folder / "said", "ab") as said:
        process = subprocess.Popen([*command, "--workdir", str(workdir)], stdout=said, stderr=said, env=environment)
        while not (workdir / metrics.METRICS).exists() or len(metrics.read(workdir)) <= before:
            if process.poll() is not None:
                raise SystemExit((folder / "said").read_text()[-2000:])
            time.sleep(0.05)
        seconds = time.perf_counter() - begin
        process.send_signal(signal.SIGTERM)
        process.wait()
    return seconds


def main() -> None:
    """Starts, then writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tupe.py")
    parser.add_argument("--times", type=int, default=3, help="how often each start is measured, but for the first")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/startup"))
    options = parser.parse_args()
    load, found = os.getloadavg()[0], {}
    with tempfile.TemporaryDirectory() as name:
        for start, kept in STARTS.items():
            found[start] = []
            for _ in range(options.times if kept else 1):
                for part in {"corpora", "compiled", "run"} - set(kept):
                    subprocess.run(["rm", "-rf", str(Path(name) / part)], check=True)
                found[start].append(first_step(Path(name), options.config))
    rows = [
        [start, f"{np.median(seconds):.1f}", f"{min(seconds):.1f} – {max(seconds):.1f}"]
        for start, seconds in found.items()
    ]
    about = (
        f"Seconds from the command to the end of the first step, `{options.config}`, text python-docs: median and "
        f"range of {options.times} starts (one with nothing). {machine()}; load before {load:.2f}."
    )
    body = f"{table(['what is there', 'seconds', 'range'], rows)}\n\n`{command()}`"
    write_record(options.out, "Starting", about, body, {"startup.json": json.dumps(found, indent=1) + "\n"})


if __name__ == "__main__":
    main()

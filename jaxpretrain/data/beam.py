"""`prepare` on many machines: Apache Beam runs the two passes over the text, on whatever runner the user has.

A pass is a pipeline without results: `Create(units) | Map(work)`. Workers need not share a disk with this machine: what
goes between is files in an exchange folder, on a disk or in a bucket,

    STEP/inputs/            tokenizer.model and notes.tsv, for the second pass
    STEP/UNIT-ATTEMPT/      what an attempt at a unit wrote; ATTEMPT is random
    STEP/UNIT.json          what it found, and which attempt it was; gets this name when all of that is there

Beam may do a unit twice, at once too: attempts share no file and find the same, so the one that is named last may win.
Everything else (joining, tokenizer, rare words) is done on this machine, as without Beam.
"""

import contextlib
import importlib
import io
import json
import logging
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from etils import epath

from jaxpretrain.config import ConfigError
from jaxpretrain.data import rare_words
from jaxpretrain.data import tokenizer as tokenizers
from jaxpretrain.data.build import Machines, Over
from jaxpretrain.data.corpus import Unit
from jaxpretrain.data.passes import Counted, Encoded

_INPUTS = (tokenizers.FILE_NAME, rare_words.FILE_NAME)
_FOUND = {kind.__name__: kind for kind in (Counted, Encoded)}
_FETCHING = 16  # threads

Run = Callable[[Unit, int, Path], Counted | Encoded]


def machines(flags: str) -> Machines:
    """What `prepare` takes to run its passes with Beam.

    Args:
        flags: Beam's pipeline options as on a command line, `--runner=NAME` among them. The exchange folder is made in
            `--temp_location`, or without it in the folder that is built: for runners on this machine.

    Raises:
        ConfigError: when Beam is missing, or does not take the flags.
    """
    options, folder = _parse(flags)

    @contextlib.contextmanager
    def exchanging(scratch: Path) -> Iterator[Over]:
        exchange = epath.Path(folder or scratch) / f"exchange{scratch.name}"
        try:
            exchange.mkdir(parents=True)
        except (OSError, ImportError) as error:  # a bucket needs a library
            raise ConfigError(f"--beam: cannot write to --temp_location={folder or scratch}: {error}") from error
        try:
            yield partial(_over, options, exchange, scratch)
        finally:
            with contextlib.suppress(OSError):  # a worker that was given up may still be writing
                exchange.rmtree()

    return exchanging


def _parse(flags: str) -> tuple[Any, str]:
    """Beam's options, checked by Beam, and the temporary folder among them."""
    said = io.StringIO()
    logging.disable(logging.WARNING)  # Beam tells of what it could do if more were installed
    try:
        beam: Any = importlib.import_module("apache_beam")
        known: Any = importlib.import_module("apache_beam.options.pipeline_options")
    except ImportError as error:
        raise ConfigError(f"--beam needs Apache Beam ({error}): pip install 'jaxpretrain[beam]'") from error
    finally:
        logging.disable(logging.NOTSET)
    try:
        with contextlib.redirect_stderr(said):  # its parser prints a page and exits
            options = known.PipelineOptions(shlex.split(flags))
            options.get_all_options()  # parses those too that it would parse later
            if not options.view_as(known.StandardOptions).runner:
                raise ValueError("it names no runner, as in --beam='--runner=DirectRunner'")
            shutil.rmtree(beam.Pipeline(options=options).local_tempdir)
    except SystemExit as error:
        raise ConfigError(f"--beam={flags!r}: {said.getvalue().strip().splitlines()[-1]}") from error
    except Exception as error:  # each runner has its own
        raise ConfigError(f"--beam={flags!r}: {_reason(error)}") from error
    return options, options.view_as(known.GoogleCloudOptions).temp_location or ""


def _reason(error: BaseException) -> str:
    """What an error of Beam's says, without the stack traces of other machines in it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if any("Traceback" in line for line in lines) else " ".join(lines)


def _over(options: Any, exchange: epath.Path, scratch: Path, run: Run, units: list[Unit], title: str) -> list[Any]:
    """`Over` with a pipeline."""
    beam: Any = importlib.import_module("apache_beam")
    step = exchange / uuid.uuid4().hex
    inputs = [name for name in _INPUTS if (scratch / name).exists()]
    try:
        (step / "inputs").mkdir(parents=True)
        for name in inputs:
            epath.Path(scratch / name).copy(step / "inputs" / name)
        with beam.Pipeline(options=options) as pipeline:
            tasks = pipeline | beam.Create(list(enumerate(units)))  # spreads them over the workers
            _ = tasks | title >> beam.Map(partial(work, run, str(step), inputs))
        with ThreadPoolExecutor(_FETCHING) as threads:
            return list(threads.map(partial(collect, step, scratch), range(len(units))))
    except ConfigError:
        raise
    except Exception as error:  # each runner has its own
        raise ConfigError(f"--beam: {title} failed: {_reason(error)}") from error


def work(run: Run, step: str, inputs: list[str], task: Any) -> None:
    """Does a unit of a pass, on any machine: brings the inputs, runs the pass, takes what it wrote to the exchange.

    A mistake of the user's (a file that cannot be read) is a result too: Beam would try it again.
    """
    index, unit = task
    attempt = epath.Path(step) / f"{index:05d}-{uuid.uuid4().hex}"
    attempt.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        for name in inputs:
            (epath.Path(step) / "inputs" / name).copy(Path(folder) / name)
        try:
            found = run(unit, index, Path(folder))
            record: dict[str, Any] = {type(found).__name__: found.record()}
        except ConfigError as error:
            record = {"error": f"{error} (on a worker of Beam, which must reach the same text as this machine)"}
        record["files"] = sorted(path.name for path in Path(folder).iterdir() if path.name not in inputs)
        for name in record["files"]:
            epath.Path(folder, name).copy(attempt / name)
    record["attempt"] = attempt.name
    (attempt / "record.json").write_text(json.dumps(record))
    (attempt / "record.json").replace(epath.Path(step) / f"{index:05d}.json")


def collect(step: epath.Path, scratch: Path, index: int) -> Counted | Encoded:
    """Brings what an attempt at a unit wrote to `scratch`, and returns what it found.

    Raises:
        ConfigError: what the attempt ended with, or that there was none.
    """
    try:
        record = json.loads((step / f"{index:05d}.json").read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"--beam: the pipeline is over, and nothing came of unit {index} to {step}") from error
    if "error" in record:
        raise ConfigError(record["error"])
    for name in record["files"]:
        # Into this folder only, whatever a record says. Words may have been counted before.
        (step / record["attempt"] / name).copy(scratch / Path(name).name, overwrite=True)
    (kind,) = _FOUND.keys() & record.keys()
    return _FOUND[kind].of_record(record[kind], scratch)

"""What every command shares: the `--config` flag, one line for a mistake, and no stack trace."""

import difflib
import errno
import io
import logging as stdlib_logging
import re
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from absl import app, flags, logging
from ml_collections import config_flags

from jaxpretrain.config import Config, ConfigError, FinetuneConfig, flatten, validate
from jaxpretrain.training import hosts
from jaxpretrain.training.checkpoint_files import CheckpointError

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe and size, configs/NAME.py:SIZE (tiny, small, base, large); any field is changed by a flag of its own, "
    "--config.FIELD=VALUE, and jaxpretrain/config.py lists them. Configs are Python: run only yours.",
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "A run's folder. Default of train: runs/NAME-SIZE, of finetune: INIT_FROM/finetuned/TASK, each with the overrides "
    "that change the result.",
)


_SHOWN = 1000  # characters of a message, from its beginning and from its end
_AnyConfig = TypeVar("_AnyConfig")
_MEANT = {  # by names that are written otherwise
    "steps": ("epochs",),
    "epochs": ("train.steps",),
    "lr": ("optim.learning_rate", "learning_rates"),
}
_IN_OTHER_WORDS = {  # what libraries say of a flag
    r"invalid literal for int\(\) with base 10:": "not a whole number:",
    r"\('Non-boolean argument to boolean flag', (.*)\)": r"must be true or false, not \1",
    r"Configuration is not available because of an earlier failure to load: ": "--config: ",
}


class Failure(RuntimeError):
    """A run that cannot go on; its message is one line for the user."""


def recipe() -> Any:
    """The config that the recipe's file gives, before any override."""
    path, _, size = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(size) if size else get_config()


def fail(message: object, code: int = 2) -> NoReturn:
    """Prints one line on stderr and ends the program."""
    hosts.leave(f"error: {_one_line(str(message))}", code)


def run(main: Callable[[_AnyConfig], None], kind: type[_AnyConfig] = Config, check: Callable = validate) -> None:
    """Parses the flags, checks the config and calls `main` with it; for commands that take `--config`.

    Expected mistakes (config, files, a stopped run) end with one line on stderr and a non-zero exit code.

    Args:
        main: the command.
        kind: the class of its configs.
        check: raises a `ConfigError` for a field that cannot work.
    """

    def with_config(_: list[str]) -> None:
        config = CONFIG.value
        if config is None:
            raise ConfigError(f"--config is missing: for example --config {_example(kind)}")
        getattr(config, "name", None)  # where the recipe failed, this tells why
        if not isinstance(config, kind):
            raise ConfigError(
                f"--config: the recipe makes a {type(config).__name__}, and this command needs {kind.__name__}, "
                f"as from {_example(kind)}"
            )
        check(config)
        main(config)

    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])  # shown by --help
    _run(with_config, kind)


def run_plain(main: Callable[[list[str]], None]) -> None:
    """The same for commands without a config: `main` gets the arguments, the program's name first."""
    _run(main, None)


def _run(main: Callable[[list[str]], None], kind: type | None) -> None:
    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(_with_recipe(argv))
        except SystemExit as done:
            helped = any(argument.startswith(("--help", "-help")) for argument in argv)
            raise SystemExit(0 if helped else done.code) from None  # absl calls help that was given a failure
        except (flags.Error, KeyError, AttributeError, ValueError, TypeError, OSError) as error:
            wrong = _wrong_field(argv, kind or Config)
            if not wrong and isinstance(error, KeyError | AttributeError):  # what ml_collections says of a field
                wrong = f"--config: the recipe is for another command: try --config {_example(kind or Config)}"
            return fail(wrong or error)
        if kind and len(rest) > 1:
            return fail(
                f"unexpected argument {rest[1]!r}: a recipe is given as --config {_example(kind)}, "
                "a field as --config.FIELD=VALUE"
            )
        return rest

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # jax tells of every backend that it did not find
        logging.get_absl_handler().setFormatter(_Printable("%(levelname)s: %(message)s"))
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text, nor terminals know all
        try:
            main(argv)
        except (ConfigError, Failure, CheckpointError, OSError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)  # may come without the file's name
            fail(f"{error}; free some space, then give the same command again" if full else error)
        except KeyboardInterrupt:  # outside the training loop, which saves first
            fail("interrupted", 130)

    app.run(guarded, flags_parser=parse)


def _with_recipe(argv: list[str]) -> list[str]:
    """Where there is no `configs/…` here, the recipe of that name that comes with the package."""

    def located(value: str) -> str:
        path, colon, size = value.partition(":")
        package = Path(__file__).parent
        places = (package, package.parent) if path.startswith("configs/") else ()  # inside in a wheel, else beside
        file = next((place / path for place in (Path(), *places) if (place / path).is_file()), path)
        return f"{file}{colon}{size}"

    found = argv[:]
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            if equals:
                found[i] = f"{flag}={located(value)}"
            elif i + 1 < len(argv):
                found[i + 1] = located(argv[i + 1])
    return found


def _example(kind: type) -> str:
    return "configs/tupe.py" if kind is Config else "configs/glue.py"


def _wrong_field(argv: list[str], kind: type) -> str:
    """What is wrong with the first field that such a config does not have; empty: it has all of them."""
    names = [arg.removeprefix("--config.").partition("=")[0] for arg in argv if arg.startswith("--config.")]
    known = flatten(kind())
    unknown = [name for name in names if name not in known]
    if not unknown:
        return ""
    name = unknown[0]
    if any(field.startswith(f"{name}.") for field in known):
        return f"config.{name} has fields of its own: set them as --config.{name}.FIELD=VALUE"
    other, command = (FinetuneConfig, "finetune") if kind is Config else (Config, "train")
    foreign = name in flatten(other())
    close = [field for field in _MEANT.get(name.rpartition(".")[2], ()) if field in known]
    close = close or _like(name, known, 0.8 if foreign else 0.6)
    whose = f", which is one of {command}'s" if foreign else ""
    hint = f"did you mean {' or '.join(close)}?" if close else "jaxpretrain/config.py lists what each command has"
    return f"the config has no field {name!r}{whose}: {hint}"


def _like(name: str, known: Iterable[str], cutoff: float) -> list[str]:
    """The fields whose last part is that of a name, else those where it is much like it."""
    last = name.rpartition(".")[2]
    leaves = {field: field.rpartition(".")[2] for field in known}
    same = difflib.get_close_matches(last, leaves.values(), n=3, cutoff=cutoff)
    same = [last] if last in same else same
    return [field for field, leaf in leaves.items() if leaf in same]


def _one_line(message: str) -> str:
    """An error in a config's file comes with its whole stack trace: what counts is the end of it."""
    if "Traceback" in message or "Configuration is not available" in message:
        message = message.strip().splitlines()[-1].removeprefix("jaxpretrain.config.ConfigError: ")
        missing = re.search(r"No such file or directory: '(.*)'", message)
        message = f"--config={missing[1]}: no such file; recipes are configs/NAME.py[:SIZE]" if missing else message
    message = " ".join(message.split())  # so that the words of libraries are found
    for theirs, ours in _IN_OTHER_WORDS.items():
        message = re.sub(theirs, ours, message)
    return _printable(message)


def _printable(message: str) -> str:
    """Names and values may come from a hostile file: no control character, and no flood, reaches the terminal."""
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    return message if len(message) <= 2 * _SHOWN else f"{message[:_SHOWN]} … {message[-_SHOWN:]}"


class _Printable(stdlib_logging.Formatter):
    """What is logged: of ours a line, of jax, which may explain itself at length, as many as it has."""

    def format(self, record: stdlib_logging.LogRecord) -> str:
        lines = super().format(record)
        return "\n".join(map(_printable, lines.splitlines() if record.name.startswith("jax.") else [lines]))

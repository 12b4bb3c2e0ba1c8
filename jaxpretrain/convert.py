"""Moves models between this package and others.

    python -m jaxpretrain.convert --to_huggingface runs/tupe-tiny OUT_FOLDER
    python -m jaxpretrain.convert --from_huggingface FOLDER OUT_WORKDIR
    python -m jaxpretrain.convert --from_huggingface DISCRIMINATOR --generator GENERATOR OUT_WORKDIR
    python -m jaxpretrain.convert --from_official FILE.pt DICT OUT_WORKDIR
    python -m jaxpretrain.convert --to_stablehlo runs/tupe-tiny OUT_FOLDER

What each gives, and what it does not: docs/interchange.md.
"""

from collections.abc import Sequence

from absl import flags

from jaxpretrain import cli
from jaxpretrain.config import Config, ConfigError
from jaxpretrain.evaluation.trained import load_run
from jaxpretrain.interop.export import class_of, export
from jaxpretrain.interop.imported import from_huggingface, from_official
from jaxpretrain.interop.serving import serve

TO_HUGGINGFACE = flags.DEFINE_string("to_huggingface", None, "A run's folder, to be written for transformers.")
TO_STABLEHLO = flags.DEFINE_string("to_stablehlo", None, "A run's folder, to be written as programs to serve with jax.")
FROM_HUGGINGFACE = flags.DEFINE_string("from_huggingface", None, "A folder that transformers wrote: BERT or ELECTRA.")
FROM_OFFICIAL = flags.DEFINE_string("from_official", None, "A checkpoint of TUPE's or MC-BERT's official code.")
GENERATOR = flags.DEFINE_string(
    "generator", None, "With --from_huggingface of a discriminator: its generator's folder."
)
STEP = flags.DEFINE_integer(
    "step", None, "With --to_huggingface or --to_stablehlo: the checkpoint; default the best one, else the newest."
)


def main(argv: Sequence[str]) -> None:
    """Converts one model.

    Raises:
        ConfigError: the flags do not go together, or the model cannot be converted.
    """
    ways = (TO_HUGGINGFACE, TO_STABLEHLO, FROM_HUGGINGFACE, FROM_OFFICIAL)
    given = [flag.name for flag in ways if flag.value is not None]
    if len(given) != 1:
        raise ConfigError(
            "give one of --to_huggingface RUN, --to_stablehlo RUN, --from_huggingface FOLDER, --from_official FILE.pt"
        )
    [name] = given
    if GENERATOR.value is not None and name != "from_huggingface":
        raise ConfigError("--generator: goes with --from_huggingface")
    if STEP.value is not None and not name.startswith("to_"):
        raise ConfigError("--step: goes with --to_huggingface and --to_stablehlo")
    wanted = ("OUT_FOLDER",) if name.startswith("to_") else ("OUT_WORKDIR",)
    if name == "from_official":
        wanted = ("DICT", *wanted)
    if len(argv) != 1 + len(wanted):
        raise ConfigError(f"--{name}: give {' and '.join(wanted)} after it, not {len(argv) - 1} arguments")
    out = argv[-1]
    if TO_HUGGINGFACE.value is not None:
        run = load_run(TO_HUGGINGFACE.value, STEP.value)
        for network in export(run, TO_HUGGINGFACE.value, out):
            print(f"{out}/{network.folder}".rstrip("/") + f": {class_of(network)}, opened by {network.auto}")
        print(f"from step {run.step:,} of {TO_HUGGINGFACE.value}")
    elif TO_STABLEHLO.value is not None:
        run = load_run(TO_STABLEHLO.value, STEP.value)
        for program in serve(run, out):
            print(f"{out}/{program}.stablehlo")
        print(f"from step {run.step:,} of {TO_STABLEHLO.value}; how to call them: {out}/README.md")
    elif FROM_HUGGINGFACE.value is not None:
        say(from_huggingface(FROM_HUGGINGFACE.value, out, GENERATOR.value), out)
    elif FROM_OFFICIAL.value is not None:
        say(from_official(FROM_OFFICIAL.value, argv[1], out), out)


def say(config: Config, out: str) -> None:
    """What was imported, and what can be done with it."""
    model = config.model
    print(
        f"{out}: {config.objective.name}, {model.position}, {model.layers} x {model.hidden}, {model.heads} heads, "
        f"{config.data.vocab_size:,} pieces"
    )
    print(
        "for jaxpretrain.predict, jaxpretrain.finetune and jaxpretrain.load; not for training on (docs/interchange.md)"
    )


if __name__ == "__main__":
    cli.run_plain(main)

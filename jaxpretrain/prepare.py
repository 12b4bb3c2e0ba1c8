"""Prepares the corpus of a config: text -> tokenizer and packed tokens in the cache.

    python -m jaxpretrain.prepare --config configs/bert.py[:SIZE] [--config.data.FIELD=VALUE …] [--beam='--runner=… …']

Training does this by itself; the command is for doing it beforehand, on many machines, and for a look at the numbers.
"""

from absl import flags

from jaxpretrain.cli import run
from jaxpretrain.config import Config
from jaxpretrain.data.build import prepare

BEAM = flags.DEFINE_string(
    "beam",
    None,
    "Runs the passes over the text with Apache Beam, whose own options all go into this one: "
    "--beam='--runner=DataflowRunner --temp_location=gs://BUCKET/FOLDER …' (the workers exchange files there).",
)


def main(config: Config) -> None:
    """Prepares, and prints what there is."""
    machines = None
    if BEAM.value is not None:
        from jaxpretrain.data import beam  # an extra

        machines = beam.machines(BEAM.value)
    corpus = prepare(config.data, config.notes, machines=machines)
    tokens = corpus.train_tokens + corpus.valid_tokens
    print(f"source        {config.data.source}")
    print(f"documents     {corpus.documents:,}, {corpus.held_out_documents:,} of them held out")
    print(f"tokens        {corpus.train_tokens:,} to train on, {corpus.valid_tokens:,} held out")
    print(f"text          {corpus.text_bytes:,} bytes, {corpus.text_bytes / tokens:.2f} per token")
    print(f"vocabulary    {corpus.vocab_size:,} pieces")
    rare = corpus.rare_words
    print(
        f"rare words    {rare.rows:,} that occur {rare.min_count} to {rare.max_count} times; "
        f"{rare.train_occurrences:,} occurrences to train on, {rare.valid_occurrences:,} held out"
    )
    print(f"              in {rare.sentences_with / max(rare.sentences, 1):.1%} of the sentences")
    print(f"              {', '.join(rare.examples) or 'none'}")
    print(f"fingerprint   {corpus.fingerprint}")
    print(f"folder        {corpus.folder}")


if __name__ == "__main__":
    run(main)

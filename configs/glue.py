"""Fine-tuning on GLUE, or on a table of your own, from a pre-training run.

    python -m jaxpretrain.finetune --config configs/glue.py:tiny --config.init_from=runs/tupe-tiny \\
        --config.task=MRPC --config.data_dir=GLUE
    python -m jaxpretrain.finetune --config configs/glue.py:tiny --config.init_from=runs/tupe-tiny \\
        --config.task=tsv:reviews.tsv

`base` is the papers' protocol: rates 2e-5 to 5e-5, 5 seeds, batches of 32, 10 epochs (5 for the large tasks), texts of
512 tokens at most, the best epoch by dev score, the median over seeds at the best rate. Narrower models learn at higher
rates; `tiny` and `small` cut texts at 128.
"""

from jaxpretrain.config import SIZES, ConfigError, FinetuneConfig


def get_config(size: str = "base") -> FinetuneConfig:
    if size not in SIZES:
        raise ConfigError(f"size {size!r} is not one of {', '.join(SIZES)} (as in --config configs/glue.py:tiny)")
    config = FinetuneConfig(size=size)
    if size == "tiny":
        config.learning_rates = (1e-4, 3e-4, 1e-3)
    elif size == "small":
        config.learning_rates = (5e-5, 1e-4, 3e-4)
    else:
        config.max_length = 512
    return config

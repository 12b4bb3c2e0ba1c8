"""Every setting of a run: the dataclasses, their defaults, the sizes, and `validate`.

A recipe in `configs/` starts from `sized(SIZE)` and changes a few fields; the command line changes more of them
(`--config.optim.learning_rate=3e-4`). Nothing else in the package holds a default.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

POSITIONS = ("absolute", "relative", "absolute_untied", "tupe_a", "tupe_r")
OBJECTIVES = ("mlm", "electra", "mcbert")
CANDIDATE_POSITIONS = ("all", "masked")
REPEATS = ("mean", "compound")
DTYPES = ("auto", "float32", "bfloat16")  # in tests float64 too
ATTENTIONS = ("plain", "blockwise", "fused")
LAYER_LOOPS = ("auto", "scan", "unroll")
TOKENIZERS = ("unigram", "bpe")
OPTIMIZERS = ("adam", "muon")
DECAYS = ("linear", "cosine", "constant")
SIZES = ("tiny", "small", "base", "large")
SELECTS = ("best", "last")
FINETUNE_NOTES = ("drop", "fixed", "updated")
GRIDS = ("auto", "vmap", "loop")
SOURCES = (
    "python-docs, text:GLOB, jsonl:GLOB[#FIELD], parquet:GLOB[#COLUMN], tfds:NAME[@SPLIT] or "
    "hf:NAME[/CONFIG][@SPLIT][#COLUMN], several joined by +"
)


class ConfigError(ValueError):
    """A setting that cannot work; its message is one line: field, value, what is allowed."""


def first_line(error: Exception) -> str:
    """What a library says, for a message of one line."""
    return str(error).strip().split("\n")[0]


@dataclass
class DataConfig:
    """Text and how it becomes token sequences."""

    source: str = "python-docs"  # or text:, jsonl:, parquet:, tfds:, hf:, several joined by + (docs/data.md)
    sequence_length: int = 128  # tokens per example, [CLS] and [SEP] included
    vocab_size: int = 8192  # pieces, the six special ones included
    lowercase: bool = True
    tokenizer: str = ""  # a SentencePiece .model of your own; empty: trained on the corpus
    tokenizer_type: str = "unigram"  # unigram | bpe
    tokenizer_sample_mb: int = 64  # MB of different words, the most frequent ones, that the tokenizer is trained on
    held_out: float = 0.02  # share of documents kept for evaluation
    cache_dir: str = ""  # prepared corpora; empty: $JAXPRETRAIN_CACHE or ~/.cache/jaxpretrain
    workers: int = 0  # processes that prepare; 0: one per core


@dataclass
class ModelConfig:
    """The encoder."""

    position: str = "absolute"
    untie_cls: bool = True  # TUPE: [CLS] has its own two position scores (paper's eq. 9)
    layers: int = 2
    hidden: int = 128
    heads: int = 2
    ffn: int = 512
    embedding: int = 0  # width of the token table; 0: hidden, another width adds a projection
    max_positions: int = 0  # longest sequence; 0: data.sequence_length
    segments: int = 0  # rows of the segment table; 0: none (imported models have 2)
    relative_buckets: int = 32
    relative_max_distance: int = 128
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    dtype: str = "auto"  # of matrix products; auto: bfloat16 on TPU and GPU (from capability 8), float32 elsewhere
    attention: str = "plain"  # plain | blockwise (long sequences) | fused (cuDNN on GPU; refuses attention_dropout)
    layer_loop: str = "auto"  # scan | unroll; auto: unroll on CPU up to 12 layers without remat, else scan
    remat: bool = False  # recompute each layer in the backward pass: a fifth of its memory, up to a third more products


@dataclass
class ObjectiveConfig:
    """What the model learns to predict."""

    name: str = "mlm"
    mask_rate: float = 0.15  # share of a sequence's positions that are predicted
    mask_share: float = 0.8  # of these: become [MASK]
    random_share: float = 0.1  # of these: become a random piece; the rest stay as they are
    # ELECTRA's generator and MC-BERT's meta controller, the second network:
    divider: int = 2  # its width, heads and FFN are the model's, divided
    auxiliary_layers: int = 0  # its depth; 0: the model's
    loss_weight: float = 50.0  # of the main model's loss; the second network's counts 1
    temperature: float = 1.0  # of the softmax that pieces are drawn from
    # MC-BERT's questions:
    candidates: int = 10  # k, <neither> included
    candidates_at: str = "all"  # all | masked: where questions are asked
    distinct: bool = False  # leave repeated candidates, and the truth among the wrong ones, out of the choice


@dataclass
class NotesConfig:
    """TNF's note dictionary."""

    enabled: bool = False
    weight: float = 0.5  # λ, the note's share of the input
    rate: float = 0.1  # γ, the context's share of the updated note
    window: int = 16  # k, pieces either side that belong to a context
    # Occurrences in the training text that make a word rare. 0: 100 * sqrt(words / 3.5e9), at least 5; and 5 times that
    min_count: int = 0
    max_count: int = 0
    single_piece: bool = False  # words of one piece may have notes too
    capacity: int = 16  # occurrences a sequence, at most (more are neither read nor written); sizes: an eighth of it
    repeats: str = "mean"  # mean | compound: what several occurrences of a word in one step do
    sharded: bool = False  # rows spread over all devices instead of a copy on each
    auxiliary_reads: bool = False  # the generator or meta controller reads notes too


@dataclass
class OptimConfig:
    """Adam, or Muon and Adam, with decoupled weight decay, a clipped gradient and a warm-up."""

    name: str = "adam"  # adam | muon: Muon for the matrices of layers and positions, Adam for the rest
    learning_rate: float = 1e-3  # the peak, of Adam
    muon_rate: float = 0.01  # the same of Muon
    muon_beta: float = 0.95  # Muon's momentum; beta1, beta2 and eps are Adam's
    warmup_steps: int = 250
    decay: str = "linear"  # linear | cosine | constant: from the peak at the end of the warm-up to 0 at train.steps
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    decay_mask: bool = False  # leave biases and layer norms out of weight decay
    clip_norm: float = 1.0  # global norm of the gradient; 0: no clipping


@dataclass
class TrainConfig:
    """Length of the run and size of a step."""

    steps: int = 2500
    budget_flops: float = 0.0  # sets steps to what so many FLOPs allow; 0: steps stays as it is
    budget_minutes: float = 0.0  # the same for minutes of training, by the speed of the first steps
    batch_size: int = 16  # sequences per step over all devices
    short_share: float = 0.0  # of the steps: the first take short sequences, as many tokens a step
    short_length: int = 32  # tokens of these
    accumulation: int = 1  # micro-batches that one step is split into
    seed: int = 0
    log_every: int = 50  # steps


@dataclass
class EvalConfig:
    """Held-out evaluation."""

    every: int = 500  # steps; 0: only at the end
    examples: int = 1024  # sequences, at most
    batch_size: int = 0  # 0: as many as are in one pass of a step, train.batch_size / train.accumulation
    masked: float = 0.15  # share of positions predicted there, whatever it is in training: so that runs compare


@dataclass
class CheckpointConfig:
    """When the state is saved and how many saves are kept."""

    every_steps: int = 500  # 0: not by steps
    every_minutes: float = 10.0  # 0: not by time
    keep: int = 2  # newest ones; the best by evaluation is kept besides
    keep_best: bool = True


@dataclass
class ShardingConfig:
    """Devices: the mesh is (data, fsdp) and a batch is split over both."""

    fsdp: int = 1  # devices that one copy of the parameters is spread over


@dataclass
class Config:
    """One run."""

    name: str = "bert"  # of the recipe; names the default workdir
    size: str = "tiny"
    init_from: str = ""  # workdir of a run whose parameters to start from
    init_encoder_only: bool = False  # of these the encoder's alone, as with another objective
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    notes: NotesConfig = field(default_factory=NotesConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)


@dataclass
class FinetuneConfig:
    """Fine-tuning: a grid of learning rates and seeds, each a trial. The defaults are the papers' protocol."""

    name: str = "glue"
    size: str = "base"
    init_from: str = ""  # workdir of the pre-training run
    step: int = 0  # its checkpoint; 0: the best one, else the newest
    untrained: bool = False  # the same network with fresh weights: what the labels alone teach
    task: str = ""  # CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI, several or GLUE | tsv:TRAIN[,DEV[,TEST]]
    columns: tuple[str, ...] = ()  # of tsv files: the one or two with text, where they have other names than usual
    label: str = ""  # of tsv files: the column with the label
    data_dir: str = ""  # folder in GLUE's own layout; empty: TensorFlow Datasets
    max_length: int = 128  # tokens per example, at most; longer ones are cut
    learning_rates: tuple[float, ...] = (2e-5, 3e-5, 4e-5, 5e-5)
    seeds: int = 5
    batch_size: int = 32
    epochs: int = 0  # 0: 5 for MNLI, QNLI and QQP, 10 for the rest
    warmup: float = 0.06  # share of the steps; the rate then falls linearly to 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    select: str = "best"  # best | last: the epoch whose dev score counts
    notes: str = "drop"  # drop | fixed (TNF-F) | updated (TNF-U): what becomes of a run's notes
    grid: str = "auto"  # vmap | loop; auto: one after another on a CPU without at_once, as one program else
    at_once: int = 0  # trials in one program; 0: as many as memory holds


# Fields that do not shape the result: they may differ when a run resumes, and do not enter a workdir's name.
FREE_ON_RESUME = (
    "name",
    "size",
    "init_from",  # read once, at step 0
    "init_encoder_only",
    "data.cache_dir",
    "data.workers",
    "train.steps",  # upwards
    "train.budget_flops",
    "train.budget_minutes",
    "train.log_every",
    "eval.every",
    "eval.examples",
    "eval.batch_size",
    "checkpoint.every_steps",
    "checkpoint.every_minutes",
    "checkpoint.keep",
    "checkpoint.keep_best",
    "sharding.fsdp",
)

# Of a fine-tuning: its grid may grow, and no trial depends on how many run at once.
# What it starts from and what it reads is known by its bytes, not by its name (evaluation/finetuned.py).
FREE_IN_GRID = (
    "name",
    "size",
    "init_from",
    "step",
    "task",
    "columns",
    "label",
    "data_dir",
    "learning_rates",
    "seeds",
    "grid",
    "at_once",
)


def sized(size: str) -> Config:
    """The plain BERT recipe (absolute positions, MLM) at one of `SIZES`.

    Raises:
        ConfigError: for an unknown size.
    """
    config = Config(size=size)
    model, data, train, optim = config.model, config.data, config.train, config.optim
    if size == "tiny":  # minutes on two CPU cores
        # 0.02 is for width 768; √(768 / width) times as much keeps the products of a narrow model as large, and the
        # long plateau before attention starts to work is half as long. Three passes over the text need no dropout.
        model.initializer_range, model.dropout, model.attention_dropout = 0.05, 0.0, 0.0
    elif size == "small":  # an hour on a GPU, a night on a workstation
        model.initializer_range = 0.035
        model.layers, model.hidden, model.heads, model.ffn = 6, 256, 4, 1024
        data.vocab_size = 16384
        train.steps, train.batch_size = 100_000, 128
        optim.learning_rate, optim.warmup_steps = 5e-4, 5_000
    elif size in ("base", "large"):  # the paper's run (arXiv 2006.15595, section 4.1)
        model.layers, model.hidden, model.heads, model.ffn = 12, 768, 12, 3072
        data.sequence_length, data.vocab_size = 512, 32768
        data.source, data.tokenizer_type = "tfds:wikipedia/20230601.en", "bpe"
        data.tokenizer_sample_mb, data.held_out = 1024, 0.001
        train.steps, train.batch_size = 1_000_000, 256
        optim.learning_rate, optim.warmup_steps = 1e-4, 10_000
        if size == "large":
            model.layers, model.hidden, model.heads, model.ffn = 24, 1024, 16, 4096
            model.remat = True
    else:
        raise ConfigError(f"size {size!r} is not one of {', '.join(SIZES)} (as in --config configs/tupe.py:small)")
    config.notes.capacity = data.sequence_length // 8
    if size != "tiny":
        train.log_every, config.eval.every = 100, 5_000
        config.checkpoint.every_steps, config.checkpoint.every_minutes = 5_000, 30.0
    return config


def two_networks(config: Config, objective: str) -> None:
    """ELECTRA's or MC-BERT's recipe for a config that `sized` made, in place."""
    size, optim = config.size, config.optim
    config.objective.name = objective
    config.objective.mask_share, config.objective.random_share = 1.0, 0.0
    small, base = {"electra": (4, 3), "mcbert": (2, 3)}[objective]
    config.objective.divider = {"tiny": 2, "small": small, "base": base, "large": 4}[size]
    if size == "tiny":
        # At 2,048 tokens a step both networks leave their first plateau, frequencies alone, only with fewer pieces to
        # learn, a second network that the main one's loss does not drown, and short sequences, where attention that
        # has learnt nothing yet mixes in few pieces besides the neighbours (docs/mcbert.md).
        config.data.vocab_size, config.objective.loss_weight = 1024, 10.0
        config.data.sequence_length, config.train.batch_size, config.eval.examples = 32, 64, 4096
        config.notes.capacity, config.train.steps = config.data.sequence_length // 8, 6000
    elif objective == "mcbert":
        optim.beta2, optim.clip_norm = 0.98, 0.0
    elif size == "base":
        optim.learning_rate = 2e-4


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A config as `{"model.layers": 2, …}`, in the order of definition."""
    flat = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[prefix + f.name] = value
    return flat


def short_name(name: str, names: Iterable[str]) -> str:
    """A field's name without its room, `position` of `model.position`, unless others of the names end alike."""
    leaf = name.rsplit(".", 1)[-1]
    return leaf if sum(other.rsplit(".", 1)[-1] == leaf for other in names) <= 1 else name


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], cls: Any = Config) -> Any:
    """The config that `to_dict` wrote.

    A field that this version does not know is an error; one that the file lacks gets its default, but `eval.masked`
    what it was before it had a field, the training's rate.

    Raises:
        ConfigError: naming the field.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = set(values) - set(fields)
    if unknown:
        raise ConfigError(f"{cls.__name__} has no field {sorted(unknown)[0]!r}: was it written by another version?")
    kwargs = {}
    if cls is Config and all(isinstance(values.get(room), dict) for room in ("objective", "eval")):
        values = values | {
            "eval": {"masked": values["objective"].get("mask_rate", ObjectiveConfig.mask_rate)} | values["eval"]
        }
    for name, value in values.items():
        kind = fields[name].type
        kinds = (float, int) if kind is float else (kind,)
        if dataclasses.is_dataclass(kind):
            kwargs[name] = from_dict(value, kind)
        elif kind in (bool, int, float, str) and type(value) not in kinds:
            raise ConfigError(f"{name}={value!r}: must be of type {kind.__name__}")
        else:
            kwargs[name] = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
    return cls(**kwargs)


def is_free(config: Any, name: str) -> bool:
    """Whether a field of a `Config` or `FinetuneConfig` may change without changing the result."""
    if not isinstance(config, Config):
        return name in FREE_IN_GRID
    return is_unread(config, name) or name in FREE_ON_RESUME


def is_unread(config: Config, name: str) -> bool:
    """Whether nothing looks at a field, whatever it says."""
    return name.startswith("optim.muon_") and config.optim.name != "muon"


def changed_fields(old: Any, new: Any) -> list[str]:
    """The fields that shape the result and differ, as `model.layers: 2 → 4`."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before[name]!r} → {after[name]!r}"
        for name in before
        if before[name] != after[name] and not is_free(new, name)
    ]


def max_positions(config: Config) -> int:
    """The longest sequence that the model has positions for."""
    return config.model.max_positions or config.data.sequence_length


def narrowed(config: Config) -> ModelConfig:
    """The second network: a generator (ELECTRA) or meta controller (MC-BERT), the model divided by `divider`.

    The generator reads the model's token table as it is, the controller mapped to its own width.
    """
    model, objective = config.model, config.objective
    return dataclasses.replace(
        model,
        embedding=(model.embedding or model.hidden) if objective.name == "electra" else 0,
        hidden=model.hidden // objective.divider,
        heads=model.heads // objective.divider,
        ffn=model.ffn // objective.divider,
        layers=objective.auxiliary_layers or model.layers,
    )


def validate(config: Config) -> None:
    """Checks every field, alone and against the others.

    Raises:
        ConfigError: one line that names the field, its value and what is allowed.
    """

    values = flatten(config)
    model, data, train, optim = config.model, config.data, config.train, config.optim
    objective, notes = config.objective, config.notes

    def check(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise ConfigError(f"{name}={values[name]!r}: must be {allowed}")

    def one_of(name: str, choices: tuple[str, ...]) -> None:
        check(values[name] in choices, name, "one of " + ", ".join(choices))

    def at_least(least: int, *names: str) -> None:
        for name in names:
            check(values[name] >= least, name, f"at least {least}" if least else "0 or more")

    for name, value in values.items():
        check(not isinstance(value, float) or math.isfinite(value), name, "a finite number")
    one_of("model.position", POSITIONS)
    one_of("model.dtype", DTYPES)
    one_of("model.attention", ATTENTIONS)
    one_of("model.layer_loop", LAYER_LOOPS)
    one_of("objective.name", OBJECTIVES)
    one_of("optim.name", OPTIMIZERS)
    one_of("optim.decay", DECAYS)
    one_of("data.tokenizer_type", TOKENIZERS)
    one_of("objective.candidates_at", CANDIDATE_POSITIONS)
    one_of("notes.repeats", REPEATS)
    at_least(0, "model.embedding", "model.max_positions", "model.segments", "data.workers", "eval.every")
    at_least(0, "optim.warmup_steps", "optim.clip_norm", "eval.batch_size", "objective.auxiliary_layers")
    at_least(0, "checkpoint.every_steps", "checkpoint.every_minutes", "train.budget_flops", "train.budget_minutes")
    at_least(0, "notes.window", "notes.min_count", "notes.max_count")
    at_least(1, "model.layers", "model.hidden", "model.heads", "model.ffn", "train.steps", "train.batch_size")
    at_least(1, "train.accumulation", "train.log_every", "eval.examples", "checkpoint.keep", "sharding.fsdp")
    at_least(1, "data.tokenizer_sample_mb", "objective.divider", "notes.capacity")
    at_least(2, "objective.candidates")
    at_least(8, "data.sequence_length", "train.short_length")
    for name in ("model.dropout", "model.attention_dropout", "train.short_share"):
        check(0 <= values[name] < 1, name, "in [0, 1)")
    for name in ("objective.mask_rate", "eval.masked", "data.held_out", "notes.weight"):
        check(0 < values[name] < 1, name, "in (0, 1)")
    for name in ("model.layer_norm_eps", "model.initializer_range", "objective.loss_weight", "objective.temperature"):
        check(values[name] > 0, name, "above 0")
    check(model.hidden % model.heads == 0, "model.heads", f"a divisor of model.hidden={model.hidden}")
    buckets = model.relative_buckets
    check(buckets >= 4 and buckets % 4 == 0, "model.relative_buckets", "a multiple of 4")
    exact = buckets // 4
    check(model.relative_max_distance > exact, "model.relative_max_distance", f"above {exact}")
    if model.attention == "fused":
        check(model.attention_dropout == 0, "model.attention_dropout", "0 with model.attention='fused'")
    if train.short_share:
        length, short = data.sequence_length, train.short_length
        check(short < length and length % short == 0, "train.short_length", f"a part of data.sequence_length={length}")
    if model.max_positions:
        limit = f"at most model.max_positions={model.max_positions}"
        check(data.sequence_length <= model.max_positions, "data.sequence_length", limit)
    check(64 <= data.vocab_size <= 2**31 - 1, "data.vocab_size", "at least 64")
    check(bool(data.source.strip()), "data.source", SOURCES)
    check(0 <= objective.mask_share <= 1, "objective.mask_share", "in [0, 1]")
    rest = 1 - objective.mask_share
    check(0 <= objective.random_share <= rest + 1e-9, "objective.random_share", f"in [0, {rest:.3g}]")
    if objective.name != "mlm":
        for name in ("model.hidden", "model.heads", "model.ffn"):
            check(values[name] % objective.divider == 0, "objective.divider", f"a divisor of {name}={values[name]}")
    if notes.enabled:
        check(model.embedding in (0, model.hidden), "model.embedding", f"model.hidden={model.hidden} with notes")
    check(0 < notes.rate <= 1, "notes.rate", "in (0, 1]")
    if notes.max_count:
        least = f"at least notes.min_count={notes.min_count}, or 0"
        check(notes.max_count >= notes.min_count, "notes.max_count", least)
    for name in ("optim.learning_rate", "optim.muon_rate"):
        check(0 < values[name] < 1000, name, "above 0, and below 1,000")
    # In these bounds a finite gradient makes a finite update in float32 (`training/step.py`).
    for name in ("optim.beta1", "optim.beta2", "optim.muon_beta"):
        check(0 <= values[name] <= 1 - 1e-6, name, "in [0, 0.999999]")
    check(1e-30 <= optim.eps < 1, "optim.eps", "in [1e-30, 1)")
    check(0 <= optim.weight_decay < 1000, "optim.weight_decay", "0 or more, and below 1,000")
    divisor = f"a multiple of train.accumulation={train.accumulation}"
    check(not (train.budget_flops and train.budget_minutes), "train.budget_minutes", "0 with train.budget_flops")
    check(train.batch_size % train.accumulation == 0, "train.batch_size", divisor)
    check(0 <= train.seed < 2**31, "train.seed", "in [0, 2³¹)")


def validate_finetune(config: FinetuneConfig) -> None:
    """Checks every field.

    Raises:
        ConfigError: one line that names the field, its value and what is allowed.
    """

    def check(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise ConfigError(f"{name}={getattr(config, name)!r}: must be {allowed}")

    check(bool(config.init_from), "init_from", "the workdir of a pre-training run")
    check(bool(config.task), "task", "a GLUE task such as MRPC, or tsv:FILE")
    check(config.select in SELECTS, "select", "one of " + ", ".join(SELECTS))
    check(config.notes in FINETUNE_NOTES, "notes", "one of " + ", ".join(FINETUNE_NOTES))
    check(config.grid in GRIDS, "grid", "one of " + ", ".join(GRIDS))
    rates = config.learning_rates
    numbers = all(isinstance(rate, int | float) and 0 < rate < math.inf for rate in rates)
    check(len(rates) > 0 and numbers, "learning_rates", "one or more numbers above 0")
    check(len(set(rates)) == len(rates), "learning_rates", "different from each other")
    for name in ("seeds", "batch_size"):
        check(getattr(config, name) >= 1, name, "at least 1")
    for name in ("step", "epochs", "weight_decay", "clip_norm", "at_once"):
        check(getattr(config, name) >= 0, name, "0 or more")
    check(config.max_length >= 8, "max_length", "at least 8")
    for name in ("warmup", "dropout", "attention_dropout"):
        check(0 <= getattr(config, name) < 1, name, "in [0, 1)")

"""Settings: every recipe at every size is valid, every rule names what it forbids."""

import dataclasses
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config import (
    FREE_IN_GRID,
    FREE_ON_RESUME,
    SIZES,
    Config,
    ConfigError,
    FinetuneConfig,
    OptimConfig,
    changed_fields,
    flatten,
    from_dict,
    is_free,
    sized,
    to_dict,
    validate,
    validate_finetune,
)
from jaxpretrain.training.workdir import workdir_name

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if "sized(" in path.read_text())  # of `train`


def recipe(name: str, size: str = "tiny") -> Config:
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](size)


def changed(field: str, value: Any, config: Any = None) -> Any:
    config = config or Config()
    *rooms, leaf = field.split(".")
    target = config
    for room in rooms:
        target = getattr(target, room)
    assert hasattr(target, leaf), field
    setattr(target, leaf, value)
    return config


# --- recipes ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_at_every_size(name: str, size: str):
    config = recipe(name, size)
    validate(config)
    assert (config.name, config.size) == (name, size)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_command(name: str):
    source = (ROOT / "configs" / f"{name}.py").read_text()
    assert source.startswith('"""')
    assert f"python -m jaxpretrain.train --config configs/{name}.py" in source.split('"""')[1]


@pytest.mark.parametrize("name", RECIPES)
def test_default_size_is_tiny(name: str):
    get_config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]
    assert get_config() == get_config("tiny")


def test_an_unknown_size_is_named():
    with pytest.raises(ConfigError, match=r"size 'huge' .* tiny, small, base, large"):
        sized("huge")


def test_base_is_the_papers_run():
    config = sized("base")
    flat = flatten(config)
    paper = {
        "model.layers": 12,
        "model.hidden": 768,
        "model.heads": 12,
        "model.ffn": 3072,
        "model.dropout": 0.1,
        "model.attention_dropout": 0.1,
        "data.vocab_size": 32768,
        "data.sequence_length": 512,
        "train.steps": 1_000_000,
        "train.batch_size": 256,
        "optim.learning_rate": 1e-4,
        "optim.warmup_steps": 10_000,
        "optim.decay": "linear",
        "optim.beta1": 0.9,
        "optim.beta2": 0.999,
        "optim.eps": 1e-6,
        "optim.weight_decay": 0.01,
        "optim.decay_mask": False,
        "optim.clip_norm": 1.0,
        "notes.capacity": 64,
        "objective.mask_rate": 0.15,
        "objective.mask_share": 0.8,
        "objective.random_share": 0.1,
    }
    assert {name: flat[name] for name in paper} == paper


@pytest.mark.parametrize("size", SIZES)
def test_the_recipe_of_fine_tuning(size: str):
    config = recipe("glue", size)
    assert isinstance(config, FinetuneConfig)
    config.init_from, config.task = "runs/x", "MRPC"
    validate_finetune(config)
    assert from_dict(json.loads(json.dumps(to_dict(config))), FinetuneConfig) == config
    assert set(FREE_IN_GRID) <= set(flatten(config))
    grown = dataclasses.replace(config, seeds=9, learning_rates=(1.0,))
    assert changed_fields(config, grown) == []
    assert changed_fields(config, dataclasses.replace(config, epochs=3)) == ["epochs: 0 → 3"]


def test_the_papers_protocol_of_fine_tuning():
    config = recipe("glue", "base")
    assert config.learning_rates == (2e-5, 3e-5, 4e-5, 5e-5)
    assert (config.seeds, config.batch_size, config.warmup, config.weight_decay) == (5, 32, 0.06, 0.01)


def finetuning() -> FinetuneConfig:
    return FinetuneConfig(init_from="runs/x", task="MRPC")


# --- names and files ---


def test_default_workdir_is_recipe_and_size():
    assert workdir_name(recipe("tupe"), recipe("tupe")) == "runs/tupe-tiny"


def test_workdir_tells_the_overrides_that_change_the_result():
    config = changed("model.position", "relative")
    assert workdir_name(config, Config()) == "runs/bert-tiny-position=relative"
    config.train.seed, config.train.steps, config.checkpoint.keep = 3, 7, 9
    assert workdir_name(config, Config()) == "runs/bert-tiny-position=relative-seed=3"


def test_workdir_of_a_path_or_a_name_used_twice_is_one_readable_folder():
    config = changed("data.tokenizer", "runs/tupe-tiny/tokenizer.model")
    assert workdir_name(config, Config()) == "runs/bert-tiny-tokenizer=runs_tupe-tiny_tokenizer.model"
    sources = (
        "text:~/my books/*.txt",
        "text:~/my books/?.txt",
        "text:" + 99 * "Bücher/" + "*.txt",
        "text:\udcff $(x)'\"",
    )
    names = [workdir_name(changed("data.source", source), Config()) for source in sources]
    assert names[0].startswith("runs/bert-tiny-source=text-my-books-txt-")
    assert len(set(names)) == len(names)
    assert all(len(name) < 100 and re.fullmatch(r"runs/[\w.,=+@-]+", name) for name in names), names
    assert workdir_name(changed("objective.name", "mcbert"), Config()) == "runs/bert-tiny-objective.name=mcbert"


def test_runs_of_different_results_have_different_workdirs():
    shaping = [name for name in flatten(Config()) if not is_free(Config(), name)]
    assert len(shaping) == len(flatten(Config())) - len(FREE_ON_RESUME) - 2  # Muon's two
    names = {workdir_name(changed(name, "other"), Config()) for name in shaping}
    assert len(names) == len(shaping)


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_survives_json(name: str):
    config = recipe(name, "base")
    config.optim.learning_rate = 1.5e-4
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_field_of_another_version_is_named_and_a_missing_one_has_its_default():
    values = to_dict(changed("model.layers", 5))
    del values["model"]["heads"]
    assert from_dict(values).model == dataclasses.replace(Config().model, layers=5)
    assert from_dict(values).eval == Config().eval
    del values["eval"]["masked"]
    values["objective"]["mask_rate"] = 0.4  # held-out text was masked at the training's rate
    assert from_dict(values).eval.masked == 0.4
    values["model"]["wings"] = 2
    with pytest.raises(ConfigError, match="wings"):
        from_dict(values)


@pytest.mark.parametrize("value", ["2", 2.0, None, True, [2]])
def test_a_field_of_another_type_is_named(value: Any):
    values = to_dict(Config())
    values["model"]["layers"] = value
    with pytest.raises(ConfigError, match=r"layers=.*: must be of type int"):
        from_dict(values)
    values["model"]["layers"], values["model"]["dropout"] = 2, 0  # a whole number will do for a float
    assert from_dict(values).model.dropout == 0


def test_changed_fields_are_those_that_shape_the_result():
    assert changed_fields(Config(), Config()) == []
    assert changed_fields(Config(), changed("model.layers", 4)) == ["model.layers: 2 → 4"]
    assert changed_fields(Config(), changed("optim.muon_rate", 0.5)) == []  # Adam's runs do not read it
    muon = changed("optim.name", "muon")
    assert changed_fields(muon, Config()) == ["optim.name: 'muon' → 'adam'"]
    assert len(changed_fields(muon, dataclasses.replace(muon, optim=OptimConfig(name="muon", muon_rate=0.5)))) == 1
    for name in FREE_ON_RESUME:
        assert name in flatten(Config())
        assert changed_fields(Config(), changed(name, "other")) == []


def test_every_field_that_may_change_is_about_running_not_learning():
    rooms = {name.partition(".")[0] for name in FREE_ON_RESUME}
    assert not rooms & {"model", "objective", "optim", "notes"}


# --- rules ---

BAD = [
    ("model.position", "alibi"),
    ("model.dtype", "float16"),
    ("model.attention", "flash"),
    ("model.layer_loop", "while"),
    ("model.layers", 0),
    ("model.hidden", 0),
    ("model.heads", 3),
    ("model.heads", 0),
    ("model.ffn", -1),
    ("model.embedding", -1),
    ("model.max_positions", -1),
    ("model.segments", -1),
    ("model.relative_buckets", 30),
    ("model.relative_buckets", 0),
    ("model.relative_max_distance", 8),
    ("model.dropout", 1.0),
    ("model.dropout", -0.1),
    ("model.attention_dropout", 1.5),
    ("model.layer_norm_eps", 0.0),
    ("model.initializer_range", 0.0),
    ("data.source", " "),
    ("data.sequence_length", 4),
    ("data.vocab_size", 63),
    ("data.tokenizer_type", "wordpiece"),
    ("data.tokenizer_sample_mb", 0),
    ("data.held_out", 0.0),
    ("data.held_out", 1.0),
    ("data.workers", -1),
    ("objective.name", "gpt"),
    ("objective.mask_rate", 0.0),
    ("objective.mask_rate", 1.0),
    ("eval.masked", 0.0),
    ("eval.masked", 1.0),
    ("objective.divider", 0),
    ("objective.candidates", 1),
    ("objective.candidates_at", "changed"),
    ("objective.loss_weight", 0.0),
    ("objective.temperature", 0.0),
    ("notes.weight", 0.0),
    ("notes.weight", 1.0),
    ("notes.rate", 0.0),
    ("notes.rate", 1.1),
    ("notes.capacity", 0),
    ("notes.repeats", "median"),
    ("objective.mask_share", 1.1),
    ("objective.random_share", 0.3),
    ("objective.random_share", -0.1),
    ("optim.learning_rate", 0.0),
    ("optim.learning_rate", float("nan")),
    ("optim.learning_rate", float("inf")),
    ("optim.warmup_steps", -1),
    ("optim.decay", "step"),
    ("optim.beta1", 1.0),
    ("optim.beta2", -0.1),
    ("optim.eps", 0.0),
    ("optim.weight_decay", -0.01),
    ("optim.name", "sgd"),
    ("optim.muon_rate", 0.0),
    ("optim.muon_rate", float("inf")),
    ("optim.muon_beta", 1.0),
    ("optim.clip_norm", -1.0),
    ("train.steps", 0),
    ("train.batch_size", 0),
    ("train.accumulation", 0),
    ("train.seed", -1),
    ("train.seed", 2**31),
    ("train.log_every", 0),
    ("train.short_share", -0.1),
    ("train.short_share", 1.0),
    ("train.short_length", 4),
    ("eval.every", -1),
    ("eval.examples", 0),
    ("eval.batch_size", -1),
    ("checkpoint.every_steps", -1),
    ("checkpoint.every_minutes", -1.0),
    ("train.budget_flops", float("inf")),
    ("model.dtype", "float64"),
    ("checkpoint.keep", 0),
    ("sharding.fsdp", 0),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_named(field: str, value: Any):
    with pytest.raises(ConfigError) as caught:
        validate(changed(field, value))
    message = str(caught.value)
    assert message.startswith(f"{field}={value!r}: must be ")
    assert "\n" not in message


def test_rules_between_fields():
    config = changed("model.max_positions", 64)
    with pytest.raises(ConfigError, match=r"data\.sequence_length=128: .* model\.max_positions=64"):
        validate(config)
    config = changed("train.accumulation", 3)
    with pytest.raises(ConfigError, match=r"train\.batch_size=16: .* train\.accumulation=3"):
        validate(config)
    config = changed("train.short_share", 0.5)
    config.train.short_length = 48
    with pytest.raises(ConfigError, match=r"train\.short_length=48: .* data\.sequence_length=128"):
        validate(config)
    config.train.short_length = 64
    validate(config)
    config = changed("model.attention", "fused")
    with pytest.raises(ConfigError, match=r"model\.attention_dropout=0\.1: .* 0 with model\.attention='fused'"):
        validate(config)
    config.model.attention_dropout = 0.0
    validate(config)
    config = changed("objective.divider", 3)
    validate(config)
    config.objective.name = "mcbert"
    with pytest.raises(ConfigError, match=r"objective\.divider=3: .* a divisor of model\.hidden=128"):
        validate(config)
    config.model = dataclasses.replace(config.model, hidden=384, heads=3, ffn=513)
    validate(config)
    config.model.ffn = 512
    with pytest.raises(ConfigError, match=r"objective\.divider=3: .* a divisor of model\.ffn=512"):
        validate(config)
    config.model.heads = 4
    with pytest.raises(ConfigError, match=r"objective\.divider=3: .* a divisor of model\.heads=4"):
        validate(config)
    config = changed("model.embedding", 64)
    validate(config)
    config.notes.enabled = True
    with pytest.raises(ConfigError, match=r"model\.embedding=64: .* model\.hidden=128 with notes"):
        validate(config)
    config = changed("notes.max_count", 9)
    config.notes.min_count = 9
    validate(config)
    config.notes.min_count = 10
    with pytest.raises(ConfigError, match=r"notes\.max_count=9: .* at least notes\.min_count=10, or 0"):
        validate(config)
    config = changed("train.budget_flops", 1e15)
    validate(config)
    config.train.budget_minutes = 1.0
    with pytest.raises(ConfigError, match=r"train\.budget_minutes=1\.0: .* 0 with train\.budget_flops"):
        validate(config)


BAD_FOR_FINETUNING = [
    ("init_from", ""),
    ("task", ""),
    ("max_length", 7),
    ("learning_rates", ()),
    ("learning_rates", (0.0,)),
    ("learning_rates", (float("inf"),)),
    ("learning_rates", ("1e-3",)),
    ("learning_rates", (1e-3, 2e-3, 1e-3)),
    ("seeds", 0),
    ("batch_size", 0),
    ("warmup", 1.0),
    ("dropout", 1.0),
    ("attention_dropout", 1.0),
    ("notes", "kept"),
]


@pytest.mark.parametrize(("field", "value"), BAD_FOR_FINETUNING)
def test_a_bad_value_of_fine_tuning_is_named(field: str, value: Any):
    with pytest.raises(ConfigError) as caught:
        validate_finetune(changed(field, value, finetuning()))
    message = str(caught.value)
    assert message.startswith(f"{field}={value!r}: must be ")
    assert "\n" not in message


def test_fine_tuning_takes_the_ends_of_each_range():
    nothing = dict.fromkeys(("weight_decay", "clip_norm", "warmup", "dropout", "attention_dropout"), 0.0)
    validate_finetune(dataclasses.replace(finetuning(), **nothing, max_length=8, seeds=1, batch_size=1, step=0))


FREE_TEXT = {"name", "size", "init_from", "data.source", "data.tokenizer", "data.cache_dir"}
FREE_TEXT_OF_FINETUNING = {"name", "size", "init_from", "task", "label", "data_dir"}


@pytest.mark.parametrize(
    ("make", "check", "free"),
    [(Config, validate, FREE_TEXT), (finetuning, validate_finetune, FREE_TEXT_OF_FINETUNING)],
    ids=["training", "fine-tuning"],
)
def test_every_number_and_every_choice_has_a_rule(
    make: Callable[[], Any], check: Callable[[Any], None], free: set[str]
):
    """A new field without a check shows here."""
    unchecked = set()
    for name, value in flatten(make()).items():
        if isinstance(value, bool | tuple):
            continue
        try:
            check(changed(name, "?" if isinstance(value, str) else type(value)(-7), make()))
        except ConfigError:
            continue
        unchecked.add(name)
    assert unchecked == free

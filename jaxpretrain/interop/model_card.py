"""The model card of an exported run: what it is, what it learnt from, how well, and how to open it."""

import json
from pathlib import Path

from jaxpretrain.config import Config, max_positions, to_dict
from jaxpretrain.training import metrics

METHODS = {
    "absolute": "positions added to the input (BERT)",
    "relative": "positions added to the input, and T5's relative bias",
    "absolute_untied": "positions added to queries and keys",
    "tupe_a": "TUPE-A: word and position scores apart (arXiv 2006.15595)",
    "tupe_r": "TUPE-R: word and position scores apart, and a relative bias (arXiv 2006.15595)",
}
OBJECTIVES = {
    "mlm": "masked language modelling (arXiv 1810.04805)",
    "electra": "replaced token detection (ELECTRA, arXiv 2003.10555)",
    "mcbert": "multiple choice set by a meta controller (MC-BERT, arXiv 2006.05744)",
}
NOTES = (
    "| notes | trained with TNF (arXiv 2008.01466). The notes are not part of this model: "
    "its scores are those called `without_notes` |"
)
OF_TASKS = ("eval/glue/", "eval/glue_rate/", "eval/probe/")  # `finetune --every` writes them beside the run's own
ROLES = {
    "": "the encoder",
    "discriminator": "the encoder: tells which tokens were replaced",
    "generator": "the small network that fills `[MASK]`s",
    "controller": "the small network that fills `[MASK]`s",
}


def model_card(config: Config, workdir: str | Path, step: int, networks: list[tuple[str, str, str]]) -> str:
    """The text of `README.md`.

    Args:
        config: of the run.
        workdir: of the run: its `metrics.jsonl` is read.
        step: the checkpoint.
        networks: folder, class, and the `Auto…` class that opens it with its head.
    """
    objective, model, data = config.objective.name, config.model, config.data
    folder, _, auto = next(entry for entry in networks if entry[2] == "AutoModelForMaskedLM")
    remote = any(name.startswith("JaxPretrain") for _, name, _ in networks)
    loads = ", trust_remote_code=True" if remote else ""
    subfolder = f', subfolder="{folder}"' if folder else ""
    case, longest = "lower-cased" if data.lowercase else "cased", f"| longest sequence | {max_positions(config)} tokens"
    if config.size == "imported":  # of its training nothing is known
        title, origin, shown = config.name, "trained elsewhere and converted by jaxpretrain", config.model
        training = [f"{longest} |", f"| data and training | not known; text is {case} |"]
    else:
        title, origin, shown = f"{config.name}-{config.size}", "pre-trained with jaxpretrain", config
        sequences, tokens = config.train.batch_size, step * config.train.batch_size * data.sequence_length
        training = [
            f"{longest}; trained on {data.sequence_length} |",
            f"| data | `{data.source}`, {case} |",
            f"| training | {step:,} steps of {sequences} sequences: {tokens:,} tokens |",
        ]
    tags = ["jaxpretrain", model.position.replace("_", "-"), objective]
    if config.notes.enabled:
        tags.append("tnf")
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask" if objective == "mlm" else "pipeline_tag: feature-extraction",
        *(['mask_token: "[MASK]"'] if objective == "mlm" else []),
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
        "",
        f"# {title}",
        "",
        f"A text encoder {origin}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| objective | {OBJECTIVES[objective]} |",
        f"| positions | {METHODS[model.position]} |",
        f"| size | {model.layers} layers, width {model.hidden}, {model.heads} heads, feed-forward {model.ffn} |",
        *training,
        *([NOTES] if config.notes.enabled else []),
        "",
        "## Held-out scores",
        "",
        *scores(workdir, step),
        "",
        "## Use",
        "",
        "| folder | class | what it is |",
        "| --- | --- | --- |",
        *(f"| `{name or '.'}` | `{found}` | {ROLES[name]} |" for name, found, _ in networks),
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{subfolder}{loads})',
        f'model = {auto}.from_pretrained("FOLDER"{subfolder}{loads})',
        'logits = model(**tokenizer("one [MASK] here", return_tensors="pt")).logits',
        "```",
        "",
        *(["The model's code lies in the folder; `trust_remote_code=True` runs it: read it first.", ""] * remote),
        "For fine-tuning, `AutoModel` and `AutoModelForSequenceClassification` open the encoder the same way.",
        "",
        "## Config",
        "",
        "```json",
        json.dumps(to_dict(shown), indent=2, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(lines)


def scores(workdir: str | Path, step: int) -> list[str]:
    """A table of the metrics that were measured at a step; of the last one before it where that was not measured."""
    measured = [line for line in metrics.read(workdir) if line["step"] <= step and any(map(is_score, line))]
    if not measured:
        return ["None were measured."]
    last = measured[-1]
    found = {name.removeprefix("eval/"): value for name, value in last.items() if is_score(name)}
    rows = [f"| {name} | {value:.4f} |" for name, value in found.items() if value is not None]  # None: was not finite
    at = "" if last["step"] == step else f"At step {last['step']:,}:\n"
    return [*([at] if at else []), "| metric | value |", "| --- | --- |", *rows]


def is_score(name: str) -> bool:
    """Whether a metric is of the held-out text."""
    return name.startswith("eval/") and not name.startswith(OF_TASKS)

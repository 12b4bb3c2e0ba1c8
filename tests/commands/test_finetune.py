"""Fine-tuning from a run on rows of one's own: trials, resuming, the best model at work, mistakes in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from jaxpretrain.config import ConfigError, FinetuneConfig, validate_finetune
from jaxpretrain.evaluation import finetuned
from jaxpretrain.evaluation.finetuned import load_finetuned
from jaxpretrain.evaluation.probe import probe
from jaxpretrain.evaluation.tasks import load
from jaxpretrain.evaluation.trained import embed, load_run, untrained
from jaxpretrain.finetune import finetune
from jaxpretrain.predict import label_rows
from jaxpretrain.training.metrics import read
from jaxpretrain.training.workdir import locked


@pytest.fixture(scope="module")
def rows(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences; the label says whether one has the first word of the text."""
    sentences = [line for line in text.read_text().splitlines() if line][:240]
    word = sentences[0].split()[0]
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    lines = [f"{sentence}\t{'with' if word in sentence.split() else 'without'}" for sentence in sentences]
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def config(finished: Path, rows: Path) -> FinetuneConfig:
    config = FinetuneConfig(
        init_from=str(finished), task=f"tsv:{rows}", learning_rates=(1e-3, 1e-2), seeds=2, epochs=2, max_length=16
    )
    validate_finetune(config)
    return config


@pytest.fixture(scope="module")
def done(config: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("done")
    finetune(config, load(config.task), workdir)
    return workdir


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "trials.jsonl").read_text().splitlines()]


def test_every_trial_has_a_line_and_the_summary_says_what_they_say_together(done: Path):
    lines = lines_of(done)
    assert [(line["learning_rate"], line["seed"]) for line in lines] == [(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)]
    summary = json.loads((done / "summary.json").read_text())
    for rate, found in summary["rates"].items():
        scores = [x["scores"]["dev"]["accuracy"] for x in lines if x["learning_rate"] == float(rate)]
        assert found["n"] == 2
        assert found["median"] == pytest.approx(sum(scores) / 2)
    best = max(summary["rates"], key=lambda rate: summary["rates"][rate]["median"])
    assert summary["best_rate"] == float(best)
    assert "| 0.001 | 2 |" in (done / "summary.md").read_text()


def test_a_second_start_runs_only_what_is_missing(config, done: Path, tmp_path: Path, capsys):
    """A last line that was cut off is missing too; the trial comes out the same."""
    workdir = tmp_path / "again"
    shutil.copytree(done, workdir)
    lines = (workdir / "trials.jsonl").read_text().splitlines()
    (workdir / "trials.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    finetune(config, load(config.task), workdir)
    assert "3 done, 1 to run" in capsys.readouterr().out
    assert (workdir / "trials.jsonl").read_text().splitlines() == lines
    finetune(config, load(config.task), workdir)
    assert "4 done, 0 to run" in capsys.readouterr().out


def test_a_grid_may_grow_and_nothing_else_may_change(config, done: Path, tmp_path: Path, capsys):
    workdir = tmp_path / "grown"
    shutil.copytree(done, workdir)
    finetune(replace(config, learning_rates=(1e-3,), seeds=3), load(config.task), workdir)
    assert "1 to run" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="max_length: 16 → 12"):
        finetune(replace(config, max_length=12), load(config.task), workdir)
    assert len(lines_of(workdir)) == 5


def test_a_grid_is_of_one_model_and_one_set_of_rows(config, done: Path, finished: Path, tmp_path: Path, capsys):
    """Whatever these are called: trials of another checkpoint or of other labels have no common median."""
    workdir = tmp_path / "again"
    shutil.copytree(done, workdir)
    before = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    data = load(config.task)
    with pytest.raises(ConfigError, match="started from another model, of step 30, not from this one of step 20"):
        finetune(replace(config, step=20), data, workdir)
    assert data.train.labels is not None
    turned = replace(data, train=replace(data.train, labels=1 - data.train.labels))
    with pytest.raises(ConfigError, match="rows, or what this version makes of them, are not those"):
        finetune(config, turned, workdir)
    assert before == {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    finetune(replace(config, init_from=f"{finished}/", step=30), data, workdir)
    assert "4 done, 0 to run" in capsys.readouterr().out
    old = json.loads((workdir / finetuned.FILE_NAME).read_text())
    (workdir / finetuned.FILE_NAME).write_text(json.dumps({k: x for k, x in old.items() if k not in ("marks", "step")}))
    with pytest.raises(ConfigError, match=r"with another config \(step: 30 → 20\)"):  # a folder of an earlier version
        finetune(replace(config, init_from=f"{finished}/", step=20), data, workdir)
    finetune(replace(config, init_from=f"{finished}/", step=30), data, workdir)
    finetune(config, data, workdir)
    run = json.loads((workdir / finetuned.FILE_NAME).read_text())
    run["run"]["train"]["steps"] = 99  # a run that was lengthened has the same checkpoints
    (workdir / finetuned.FILE_NAME).write_text(json.dumps(run))
    finetune(config, data, workdir)
    assert json.loads((workdir / finetuned.FILE_NAME).read_text()) == old | {
        "config": old["config"] | {"init_from": config.init_from, "step": 0}
    }


@pytest.mark.parametrize("line", ["{}", "12", '{"learning_rate": 1}', "null"])
def test_a_line_that_is_no_trial_is_one_that_is_missing(done: Path, tmp_path: Path, line: str):
    (tmp_path / "trials.jsonl").write_text(line + "\n" + (done / "trials.jsonl").read_text())
    assert finetuned.read_trials(tmp_path) == finetuned.read_trials(done)  # type: ignore[arg-type]


def test_a_trial_without_numbers_is_behind_all_others(config, rows: Path, tmp_path: Path):
    """Its answer is always the same, which is right for most rows of this table."""
    table = tmp_path / "rows.tsv"
    texts = [line.split("\t")[0] for line in rows.read_text().splitlines()[1:101]]
    lines = [f"{text}\t{'b' if i % 4 == 0 else 'a'}" for i, text in enumerate(texts)]
    table.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    asked = replace(config, task=f"tsv:{table}", learning_rates=(1e30, 1e-5), seeds=1, epochs=1)
    rate = finetune(asked, load(asked.task), tmp_path / "out")["eval/glue_rate/rows"]
    assert [line["finite"] for line in lines_of(tmp_path / "out")] == [False, True]
    assert rate == json.loads((tmp_path / "out" / "summary.json").read_text())["best_rate"] == 1e-5
    answers = label_rows(load_finetuned(tmp_path / "out"), str(table))
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1) for answer in answers)


def test_a_regression_of_large_numbers(config, rows: Path, tmp_path: Path):
    """Learnt by their scale, answered in their unit."""
    table = tmp_path / "prices.tsv"
    texts = [line.split("\t") for line in rows.read_text().splitlines()[1:]]
    lines = [f"{text}\t{4000 if label == 'with' else 3000}.5" for text, label in texts]
    table.write_text("text\tscore\n" + "\n".join(lines) + "\n")
    asked = replace(config, task=f"tsv:{table}", learning_rates=(1e-2,), seeds=1, epochs=4)
    assert finetune(asked, load(asked.task), tmp_path / "out")["eval/glue/prices"] > 0.5
    scores = np.array([answer["score"] for answer in label_rows(load_finetuned(tmp_path / "out"), str(table))])
    assert 2500 < scores.min() < 3200
    assert 3300 < scores.max() < 4500


def test_the_best_model_labels_rows(done: Path, rows: Path, tmp_path: Path):
    model = load_finetuned(done)
    answers = label_rows(model, str(rows))
    truth = [line.split("\t")[1] for line in rows.read_text().splitlines()[1:]]
    right = sum(answer["label"] == label for answer, label in zip(answers, truth, strict=True)) / len(truth)
    best = max(line["scores"]["dev"]["accuracy"] for line in lines_of(done))
    assert right > best - 0.1
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1) for answer in answers)
    few = tmp_path / "few.tsv"
    few.write_text("text\n" + "\n".join(line.split("\t")[0] for line in rows.read_text().splitlines()[1:4]) + "\n")
    for alone, among in zip(label_rows(model, str(few)), answers, strict=False):
        assert alone["probabilities"] == pytest.approx(among["probabilities"], abs=1e-4)


def test_an_untrained_network_is_probed_untrained(config, done: Path, tmp_path: Path):
    """Not the run that it was to be compared with."""
    data, few = load(config.task), {"seeds": 1, "epochs": 1, "learning_rates": (1e-2,)}
    scores = [
        finetune(replace(config, untrained=fresh, **few), data, tmp_path / str(fresh), with_probe=True)
        for fresh in (False, True)
    ]
    trained, fresh = (score["eval/probe/rows"] for score in scores)
    run = load_run(config.init_from)
    assert trained == probe(run, data)["dev"]["accuracy"]
    assert fresh == probe(untrained(run), data)["dev"]["accuracy"]
    assert not np.array_equal(*(embed(network, ["one sentence"]) for network in (run, untrained(run))))


def test_the_commands(command, run, done: Path, finished: Path, rows: Path, tmp_path: Path):
    """The recipe, every checkpoint of a run, the probe, and labels for new rows."""
    source = tmp_path / "source"
    shutil.copytree(finished, source)
    args = ["--config", "configs/glue.py:tiny", f"--config.init_from={source}", f"--config.task=tsv:{rows}"]
    args += ["--config.seeds=1", "--config.epochs=1", "--config.learning_rates=(1e-2,)", "--config.max_length=16"]
    end = run(command("finetune", *args, "--every", "--probe"))
    assert end.code == 0, end.err
    assert end.out.count("Linear probe") == 3
    name = "eval/glue/rows-max_length=16-epochs=1"  # other fields than the recipe's: another curve
    curve = {line["step"]: line[name] for line in read(source) if name in line}
    assert sorted(curve) == [10, 20, 30]
    assert all(0 <= value <= 1 for value in curve.values())
    name = name.replace("glue", "probe")
    probes = {line["step"]: line[name] for line in read(source) if name in line}
    summaries = {step: source / f"finetuned/rows-max_length=16-epochs=1/step-{step}/summary.json" for step in curve}
    told = {step: json.loads(path.read_text())["probe"]["dev"]["accuracy"] for step, path in summaries.items()}
    assert probes == told
    [folder] = (source / "finetuned").iterdir()
    assert folder.name == "rows-max_length=16-epochs=1"
    assert (
        "--step: is for the folder of a pre-training run"
        in run(command("predict", "--workdir", done, "--step=10", rows)).error()
    )
    end = run(command("predict", "--workdir", done, rows))
    assert end.code == 0, end.err
    table = [line.split("\t") for line in end.out.splitlines()]
    assert table[0] == ["id", "label", "probability"]
    assert len(table) == 241
    assert {row[1] for row in table[1:]} <= {"with", "without"}


def test_every_checkpoint_but_a_damaged_one_and_not_beside_training(
    command, run, finished: Path, rows: Path, tmp_path: Path
):
    """A trainer writes the same file: what it writes later would be lost."""
    source = tmp_path / "source"
    shutil.copytree(finished, source)
    [folder] = (source / "checkpoints").glob("*20")
    largest = max((folder / "state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"x" + largest.read_bytes()[1:])
    args = ["--config", "configs/glue.py:tiny", f"--config.init_from={source}", f"--config.task=tsv:{rows}"]
    args += ["--config.seeds=1", "--config.epochs=1", "--config.learning_rates=(1e-2,)", "--config.max_length=16"]
    before = (source / "metrics.jsonl").read_bytes()
    with locked(epath.Path(source)):
        assert f"{source} is in use by another run" in run(command("finetune", *args, "--every")).error()
    assert (source / "metrics.jsonl").read_bytes() == before
    end = run(command("finetune", *args, "--every"))
    assert end.code == 0, end.err
    assert f"note: left out: {folder}" in end.out
    assert sorted(line["step"] for line in read(source) if any("eval/glue/" in name for name in line)) == [10, 30]


def test_several_tasks_and_their_averages(command, run, finished: Path, text: Path, tmp_path: Path):
    words = text.read_text().split()
    for task, columns in (("CoLA", None), ("RTE", "index\tsentence1\tsentence2\tlabel\n")):
        (tmp_path / task).mkdir()
        lines = [[str(i), str(i % 2), "", " ".join(words[i : i + 3])] for i in range(40)]
        if columns:
            lines = [[str(i), words[i], words[i + 1], ("not_entailment", "entailment")[i % 2]] for i in range(40)]
        for split in ("train", "dev"):
            (tmp_path / task / f"{split}.tsv").write_text((columns or "") + "\n".join("\t".join(x) for x in lines))
    args = ["--config", "configs/glue.py:tiny", f"--config.init_from={finished}", "--config.task=CoLA,rte"]
    args += ["--config.seeds=1", "--config.epochs=1", "--config.learning_rates=(1e-2,)", "--config.max_length=16"]
    end = run(command("finetune", *args, f"--config.data_dir={tmp_path}", "--workdir", tmp_path / "out"))
    assert end.code == 0, end.err
    scores = [json.loads((tmp_path / "out" / t / "summary.json").read_text())["scores"][t] for t in ("CoLA", "RTE")]
    assert [f"| {t} | {100 * x:.1f} |" in end.out for t, x in zip(("CoLA", "RTE"), scores, strict=True)] == [True] * 2
    missing = "without MNLI-m, MNLI-mm, QNLI, QQP, SST-2, MRPC, STS-B"
    mean = 100 * sum(scores) / 2
    assert f"| average as in the TUPE paper, MNLI twice, {missing} | {mean:.1f} |" in end.out


def test_columns_with_other_names(command, run, finished: Path, rows: Path, tmp_path: Path):
    table = tmp_path / "reviews.tsv"
    table.write_text(rows.read_text().replace("text\tlabel", "review\tstars", 1))
    args = ["--config", "configs/glue.py:tiny", f"--config.init_from={finished}", f"--config.task=tsv:{table}"]
    args += ["--config.seeds=1", "--config.epochs=1", "--config.learning_rates=(1e-2,)", "--config.max_length=16"]
    args += ["--workdir", str(tmp_path / "out")]
    assert "those that columns names" in run(command("finetune", *args)).error()
    end = run(command("finetune", *args, "--config.columns=('review',)", "--config.label=stars"))
    assert end.code == 0, end.err
    assert len(label_rows(load_finetuned(tmp_path / "out"), str(table))) == 240


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "configs/glue.py"], "init_from"),
        (["--config", "configs/glue.py", "--config.init_from=/no", "--config.task=MRPC"], "/no: no config.json there"),
        (["--config", "configs/glue.py", "--config.init_from=x", "--config.seeds=0"], "task"),
        (["--config", "configs/bert.py"], "needs FinetuneConfig"),
        ([], "--config is missing: for example --config configs/glue.py"),
    ],
)
def test_mistakes(command, run, args: list[str], message: str):
    assert message in run(command("finetune", *args)).error()


def test_a_run_that_is_none(config):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        finetune(replace(config, init_from="/nowhere"), load(config.task), Path("unused"))


def test_notes_of_a_run_that_has_none(config, tmp_path: Path):
    with pytest.raises(ConfigError, match="notes"):
        finetune(replace(config, notes="fixed"), load(config.task), tmp_path)


def test_a_damaged_folder(done: Path, tmp_path: Path):
    shutil.copytree(done, tmp_path / "x")
    (tmp_path / "x" / finetuned.FILE_NAME).write_text("{")
    with pytest.raises(ConfigError, match=r"finetuned\.json is damaged"):
        load_finetuned(tmp_path / "x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("select", "worst"),
        ("seeds", 0),
        ("learning_rates", ()),
        ("learning_rates", (1e-3, 1e-3)),
        ("learning_rates", (float("inf"),)),
        ("learning_rates", (1e-3, "x")),
        ("warmup", 1.0),
        ("grid", "x"),
    ],
)
def test_validation(config, field: str, value: object):
    with pytest.raises(ConfigError, match=field):
        validate_finetune(replace(config, **{field: value}))

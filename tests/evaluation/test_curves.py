"""Curves with a known crossing give the known factor on every axis; runs become methods; mistakes are one line."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpretrain.config import Config, ConfigError, to_dict
from jaxpretrain.evaluation import curves
from jaxpretrain.evaluation.curves import AXES, Curve, Method

LOSS = "eval/mlm_loss"


def curve_of(step: Any, value: Any, tokens: float = 100.0, flops: float = 1e6, seconds: float = 0.5) -> Curve:
    """Costs are per step."""
    step = np.asarray(step, float)
    return Curve(step, step * tokens, step * flops, step * seconds, np.asarray(value, float))


def method_of(label: str, *found: Curve) -> Method:
    return Method(label, tuple(f"{label}-{i}" for i in range(len(found))), tuple(Config() for _ in found), found)


def write_run(folder: Path, curve: Curve, metric: str = LOSS, **fields: Any) -> str:
    config = Config()
    for name, value in fields.items():
        *rooms, leaf = name.split("__")
        target = config
        for room in rooms:
            target = getattr(target, room)
        setattr(target, leaf, value)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    lines = [
        {"step": int(step), "total/tokens": tokens, "total/flops": flops, "total/seconds": seconds, metric: value}
        for step, tokens, flops, seconds, value in zip(*dataclasses.astuple(curve), strict=True)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


STEPS = np.arange(50, 2001, 50)
LINEAR = 10 - STEPS / 500
EXPONENTIAL = 2 + 6 * np.exp(-STEPS / 800)


# --- factors ---


@pytest.mark.parametrize("times", [1.0, 1.5, 2.0, 4.0])
def test_a_line_that_falls_faster(times: float):
    """Half the flops and twice the seconds a step: the factors follow, exactly, between the points too."""
    slow = method_of("slow", curve_of(STEPS, LINEAR))
    fast = method_of("fast", curve_of(STEPS, 10 - times * STEPS / 500, tokens=200, flops=5e5, seconds=1.0))
    found = curves.factors([slow, fast], slow, LOSS)["fast"]
    expected = {"step": times, "tokens": times / 2, "flops": 2 * times, "seconds": times / 2}
    assert {axis: x.mean for axis, x in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize("times", [1.3, 2.0, 3.0])
def test_an_exponential_that_falls_faster(times: float):
    slow = method_of("slow", curve_of(STEPS, EXPONENTIAL))
    fast = method_of("fast", curve_of(STEPS, 2 + 6 * np.exp(-times * STEPS / 800)))
    for factor in curves.factors([slow, fast], slow, LOSS)["fast"].values():
        assert factor.mean == pytest.approx(times, rel=2e-3)


def test_a_knee_is_not_rounded():
    """Few points and a cliff: a moving average over three of them would find the target some 80 steps too soon."""
    step = np.arange(250, 2501, 250)
    cliff = np.where(step <= 750, 6.5 - step / 2500, 4.0)
    slow = method_of("slow", curve_of(step, 6.5 - step / 2500))
    fast = method_of("fast", curve_of(step, cliff))
    share = (cliff[2] - 5.5) / (cliff[2] - 4)
    assert curves.factors([slow, fast], slow, LOSS)["fast"]["step"].mean == pytest.approx(2500 / (750 + 250 * share))


def test_the_factor_is_of_the_mean_over_seeds():
    """Reached after 1,000 and 500 of 2,000 steps: 2,000 / 750, between 2 and 4."""
    slow = method_of("slow", curve_of(STEPS, LINEAR))
    fast = method_of("fast", *(curve_of(STEPS, 10 - times * STEPS / 500) for times in (2, 4)))
    found = curves.factors([slow, fast], slow, LOSS)["fast"]["step"]
    assert (found.low, found.mean, found.high) == pytest.approx((2, 8 / 3, 4))
    assert found.values == pytest.approx((2, 4))


@pytest.mark.parametrize("count", [3, 8])
def test_noise_over_seeds(count: int):
    rng = np.random.default_rng(0)
    noisy = lambda times: [  # noqa: E731
        curve_of(STEPS, 2 + 6 * np.exp(-times * STEPS / 800) + rng.normal(0, 0.01, len(STEPS))) for _ in range(count)
    ]
    slow, fast = method_of("slow", *noisy(1)), method_of("fast", *noisy(2))
    found = curves.factors([slow, fast], slow, LOSS)["fast"]["step"]
    assert found.mean == pytest.approx(2, rel=0.03)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high
    inside = sum(found.low <= value <= found.high for value in found.values if value is not None)
    assert (inside == count) == (count < curves.MANY_SEEDS)  # of many seeds it is the interval of their mean


def test_the_baseline_is_one():
    rng = np.random.default_rng(0)
    base = method_of("base", *(curve_of(STEPS, EXPONENTIAL + rng.normal(0, 0.1)) for _ in range(3)))
    past_it = method_of("base", curve_of(STEPS, (STEPS - 1500) ** 2))  # went past its final value, and came back
    for method in (base, past_it):
        for factor in curves.factors([method], method, LOSS)["base"].values():
            assert (factor.low, factor.mean, factor.high) == (1, 1, 1)
    assert curves.first_reach(past_it.curves[0], 250_000, "step") == 1000


def test_never_reached():
    good = method_of("good", curve_of(STEPS, EXPONENTIAL))
    worse = method_of("worse", curve_of(STEPS, EXPONENTIAL + 0.01), curve_of(STEPS, EXPONENTIAL - 1))
    for factor in curves.factors([good, worse], good, LOSS)["worse"].values():
        assert (factor.low, factor.mean, factor.high) == (None, None, None)
        assert factor.values[0] is None
        assert factor.values[1] is not None
        assert factor.values[1] > 1


def test_more_of_an_accuracy_is_better():
    slow = method_of("slow", curve_of(STEPS, STEPS / 4000))
    fast = method_of("fast", curve_of(STEPS, STEPS / 1000))
    assert curves.factors([slow, fast], slow, "eval/mlm_accuracy")["fast"]["step"].mean == pytest.approx(4)
    assert curves.factors([slow, fast], fast, "eval/mlm_accuracy")["slow"]["step"].mean is None


def test_to_be_reached_means_for_good():
    curve = curve_of([1, 2, 3, 4, 5], [5.0, 2.0, 4.0, 2.0, 1.0])
    assert curves.first_reach(curve, 3.0, "step") == 3.5
    assert curves.first_reach(curve, 3.0, "seconds") == 1.75
    assert curves.first_reach(curve, 0.5, "step") is None
    assert curves.first_reach(curve, 6.0, "step") == 1
    assert curves.first_reach(curve, 1.5, "step", lower=False) is None


@pytest.mark.parametrize(("points", "window"), [(10, 1), (49, 1), (50, 3), (100, 5)])
def test_smoothing(points: int, window: int):
    values = np.random.default_rng(0).normal(size=points)
    found = curves.smoothed(curve_of(np.arange(points), values)).value
    middle = points // 2
    assert found[middle] == pytest.approx(values[middle - window // 2 : middle + window // 2 + 1].mean())
    if window == 1:
        assert (found[0], found[-1]) == (values[0], values[-1])
    line = curve_of(np.arange(points), np.arange(points))
    np.testing.assert_allclose(curves.smoothed(line).value, line.value, atol=1e-12)


def test_the_last_value_of_a_noisy_curve_is_not_one_measurement():
    rng, steps = np.random.default_rng(0), np.arange(200)
    ends = [curves.smoothed(curve_of(steps, 5 - steps / 100 + rng.normal(size=200))).value[-1] for _ in range(300)]
    assert np.std(ends) < 0.7
    assert np.mean(ends) == pytest.approx(5 - 1.99, abs=0.1)


def test_direction_by_name():
    lower = ("eval/mlm_loss", "eval/mlm_loss_near_rare_words", "eval/perplexity", "eval/choice_loss")
    assert all(map(curves.lower_is_better, lower))
    assert not any(map(curves.lower_is_better, ("eval/mlm_accuracy", "glue/average", "eval/mlm_probability")))
    assert not any(map(curves.lower_is_better, ("eval/glue/weight_loss", "eval/probe/gloss")))  # tasks of one's own
    for name in ("train/grad_norm", "eval/glue_rate/MRPC"):
        with pytest.raises(ConfigError, match=name):
            curves.lower_is_better(name)


# --- runs and methods ---


def test_a_curve_is_read_as_it_was_written(tmp_path: Path):
    curve = curve_of(STEPS, EXPONENTIAL)
    run = write_run(tmp_path / "run", curve)
    for name in (*AXES, "value"):
        np.testing.assert_array_equal(getattr(curves.read_curve(run, LOSS), name), getattr(curve, name))


def test_a_torn_line_and_values_that_are_not_finite(tmp_path: Path):
    run = write_run(tmp_path / "run", curve_of(STEPS, EXPONENTIAL))
    file = Path(run) / "metrics.jsonl"
    lines = file.read_text().splitlines()
    bad = json.loads(lines[3]) | {LOSS: None}
    lines[3], lines[-1] = json.dumps(bad), lines[-1][:20]
    file.write_text("\n".join(lines))
    kept = np.delete(np.arange(len(STEPS)), [3, len(STEPS) - 1])
    np.testing.assert_array_equal(curves.read_curve(run, LOSS).step, STEPS[kept])


def test_whole_numbers_that_no_float_holds(tmp_path: Path):
    write_run(tmp_path / "run", curve_of([50, 100, 150], [3.0, 2.0, 1.0]))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        for line in ({"step": 200, LOSS: 10**400}, {"step": 10**30, LOSS: 1.0}, {"step": -1, LOSS: 1.0}):
            file.write(json.dumps(line | {"total/tokens": 1, "total/flops": 1, "total/seconds": 1}) + "\n")
    assert curves.read_curve(tmp_path / "run", LOSS).step.tolist() == [50, 100, 150]
    steps, series = curves.read_series(tmp_path / "run", [LOSS])
    assert steps.tolist() == [50, 100, 150, 200]
    np.testing.assert_array_equal(series[LOSS], [3, 2, 1, np.nan])


def test_steps_twice_or_out_of_order(tmp_path: Path):
    runs = [write_run(tmp_path / f"run{seed}", curve_of(STEPS, LINEAR), train__seed=seed) for seed in (0, 1)]
    path = tmp_path / "run1" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[7], *reversed(lines)]))
    [method] = curves.read_methods(runs, LOSS)
    assert dataclasses.astuple(method.curves[0])[0].tolist() == method.curves[1].step.tolist() == STEPS.tolist()
    np.testing.assert_array_equal(curves.mean_curve(method).value, LINEAR)


def test_what_cost_nothing_has_no_factor():
    slow = method_of("slow", curve_of([0, 100], [3.0, 2.0]))
    there = method_of("there", curve_of([0, 100], [1.0, 1.0]))
    found = curves.factors([slow, there], slow, LOSS)
    assert {estimate.mean for estimate in found["there"].values()} == {None}
    assert {estimate.mean for estimate in found["slow"].values()} == {1.0}
    assert {e.mean for e in curves.factors([there], there, LOSS)["there"].values()} == {None}


def test_a_series_has_gaps(tmp_path: Path):
    run = write_run(tmp_path / "run", curve_of([1, 2], [5.0, 4.0]))
    with (Path(run) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "notes/age": 7, "eval/mlm_loss": null}\n{"step": 4, "train/loss": 1}\n')
    steps, found = curves.read_series(run, [LOSS, "notes/age", "notes/norm"])
    assert steps.tolist() == [1, 2, 3]
    assert set(found) == {LOSS, "notes/age"}
    np.testing.assert_array_equal(found[LOSS], [5, 4, math.nan])
    np.testing.assert_array_equal(found["notes/age"], [math.nan, math.nan, 7])


def test_seeds_are_one_method(tmp_path: Path):
    fields = [
        {"name": "bert"},
        {"name": "bert", "train__seed": 1, "data__cache_dir": "/", "checkpoint__keep": 5, "optim__muon_rate": 0.5},
        {"name": "tupe", "model__position": "tupe_r"},
        {"name": "tupe", "model__position": "tupe_a"},
    ]
    runs = [write_run(tmp_path / str(i), curve_of(STEPS, LINEAR + i), **f) for i, f in enumerate(fields)]
    found = curves.read_methods([*runs, runs[0]], LOSS)
    assert [method.label for method in found] == ["position=absolute", "position=tupe_r", "position=tupe_a"]
    assert [method.runs for method in found] == [tuple(runs[:2]), (runs[2],), (runs[3],)]
    assert [config.train.seed for config in found[0].configs] == [0, 1]
    np.testing.assert_allclose(curves.mean_curve(found[0]).value, LINEAR + 0.5)


def test_seeds_with_a_budget_in_minutes_are_one_method(tmp_path: Path):
    """Each measures its own speed, and ends at a step of its own: the ends belong together."""
    ends, budget = (2000, 1990), {"train__budget_minutes": 10.0}
    curve = [curve_of([*STEPS[:-1], end], [*LINEAR[:-1], 6 + i]) for i, end in enumerate(ends)]
    runs = [
        write_run(tmp_path / str(i), curve[i], train__seed=i, train__steps=end, **budget) for i, end in enumerate(ends)
    ]
    other = write_run(tmp_path / "other", curve[0], train__steps=2000, train__budget_minutes=20.0)
    [method, longer] = curves.read_methods([*runs, other], LOSS)
    assert [found.step[-1] for found in method.curves] == [2000, 1990]
    assert [found.step[:-1].tolist() for found in method.curves] == [STEPS[:-1].tolist()] * 2
    assert curves.final_values(method).mean == 6.5
    assert curves.caveats([method], LOSS) == []
    assert "train.budget_minutes differ" in curves.caveats([method, longer], LOSS)[0]


def test_labels():
    def config(recipe: str, **objective: Any) -> Config:
        found = Config(name=recipe)
        found.objective = dataclasses.replace(found.objective, **objective)
        return found

    bert, quiz = config("bert"), {"name": "mcbert", "mask_share": 1.0, "random_share": 0.0}
    assert curves.labels([bert]) == ["bert"]
    assert curves.labels([bert, config("mcbert", **quiz)]) == ["bert", "mcbert"]
    several = [bert, config("mcbert", **quiz, candidates=5), config("mcbert", **quiz, candidates=20)]
    assert curves.labels(several) == ["bert", "mcbert candidates=5", "mcbert candidates=20"]
    noted = config("bert")
    noted.notes.enabled = True
    assert curves.labels([bert, noted]) == ["notes=False", "notes=True"]


def test_seeds_of_different_lengths_are_read_where_all_of_them_are(tmp_path: Path):
    long = write_run(tmp_path / "long", curve_of(STEPS, LINEAR), train__steps=2000)
    short = write_run(tmp_path / "short", curve_of(STEPS[1:20:2], LINEAR[1:20:2]), train__steps=2000, train__seed=1)
    [method] = curves.read_methods([long, short], LOSS)
    assert [curve.step.tolist() for curve in method.curves] == [STEPS[1:20:2].tolist()] * 2
    assert "step 1,000 of 2,000" in curves.caveats([method], LOSS)[0]


def test_what_does_not_compare_is_said(tmp_path: Path):
    one = write_run(tmp_path / "one", curve_of(STEPS, LINEAR), train__steps=2000)
    other = write_run(tmp_path / "other", curve_of(STEPS, LINEAR), train__steps=2000, data__vocab_size=99)
    third = write_run(tmp_path / "third", curve_of(STEPS, LINEAR), train__steps=2000, objective__name="mcbert")
    assert curves.caveats(curves.read_methods([one], LOSS), LOSS) == []
    assert "data.vocab_size" in curves.caveats(curves.read_methods([one, other], LOSS), LOSS)[0]
    of_task = curves.caveats(curves.read_methods([one, other], LOSS), "eval/glue/MRPC")  # its rows are GLUE's own
    assert not any("do not compare" in said for said in of_task)
    assert "second network" in curves.caveats(curves.read_methods([one, third], LOSS), LOSS)[0]
    went_on = write_run(tmp_path / "went on", curve_of(STEPS, LINEAR - 9), train__steps=2000, init_from=one)
    found = curves.caveats(curves.read_methods([one, went_on], LOSS), LOSS)
    assert [said.split(" ")[0] for said in found] == ["init_from", f"init_from={one}"]
    assert "its factors are these at least" in found[1]
    more = write_run(tmp_path / "more", curve_of(STEPS, LINEAR), train__steps=2000, objective__mask_rate=0.4)
    assert curves.caveats(curves.read_methods([one, more], LOSS), LOSS) == []  # held-out text is masked as before
    harder = write_run(tmp_path / "harder", curve_of(STEPS, LINEAR), train__steps=2000, eval__masked=0.4)
    assert "eval.masked" in curves.caveats(curves.read_methods([one, harder], LOSS), LOSS)[0]
    twice = write_run(tmp_path / "twice", curve_of(STEPS, LINEAR), train__steps=2000)
    assert "the same seed" in curves.caveats(curves.read_methods([one, twice], LOSS), LOSS)[0]


def test_other_texts_under_the_same_name_are_noticed(tmp_path: Path):
    """Guessing by frequency is a matter of the text alone."""
    runs = [write_run(tmp_path / str(i), curve_of(STEPS, LINEAR), train__steps=2000, train__seed=i) for i in range(2)]
    for run, unigram in zip(runs, (5.6968, 5.72), strict=True):
        path = Path(run) / "metrics.jsonl"
        path.write_text(path.read_text().replace('"step"', f'"eval/unigram_loss": {unigram}, "step"'))
    assert curves.caveats(curves.read_methods(runs[:1], LOSS), LOSS) == []
    [said] = curves.caveats(curves.read_methods(runs, LOSS), LOSS)
    assert "eval/unigram_loss" in said


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda run: (run / "config.json").unlink(), "config.json"),
        (lambda run: (run / "config.json").write_text("{"), "config.json is damaged"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_bytes(bytes(range(256))), "metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "eval/choice_loss": 2}\n'), "eval/choice_loss"),
    ],
    ids=["no config", "torn config", "no metrics", "binary metrics", "another metric"],
)
def test_a_run_that_cannot_be_read(damage: Any, part: str, tmp_path: Path):
    run = write_run(tmp_path / "run", curve_of(STEPS, LINEAR))
    damage(Path(run))
    with pytest.raises(ConfigError) as error:
        curves.read_methods([run], LOSS)
    assert part in str(error.value)
    assert run in str(error.value)
    assert "\n" not in str(error.value)


def test_seeds_without_a_common_step(tmp_path: Path):
    runs = [write_run(tmp_path / str(i), curve_of([i + 1], [1.0]), train__seed=i) for i in range(2)]
    with pytest.raises(ConfigError, match="no common step"):
        curves.read_methods(runs, LOSS)

"""What is drawn is what was measured: values, labels and legends are read back from the pictures."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpretrain.config import Config, ConfigError
from jaxpretrain.evaluation import curves, pictures
from jaxpretrain.evaluation.curves import AXES, Curve, Method

LOSS = "eval/mlm_loss"
STEPS = np.arange(100.0, 1001, 100)


def method_of(label: str, times: float, seeds: int) -> Method:
    found = [
        Curve(STEPS, STEPS * 2048, STEPS * 8e9, STEPS * (0.5 + 0.1 * seed), 8 - times * STEPS / 500 + 0.1 * seed)
        for seed in range(seeds)
    ]
    return Method(label, tuple(f"{label}{i}" for i in range(seeds)), tuple(Config() for _ in found), tuple(found))


def lines(axes: Axes) -> dict[str, np.ndarray]:
    return {
        str(x.get_label()): np.asarray(x.get_xydata()) for x in axes.lines if not str(x.get_label()).startswith("_")
    }


def by_label(figure: Figure) -> dict[str, Axes]:
    return {axes.get_ylabel(): axes for axes in figure.axes}


def assert_drawn(figure: Figure) -> None:
    """It can be saved in both formats, 1,200 pixels wide."""
    png, svg = pictures.png(figure), pictures.svg(figure)
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == 1200
    assert len(png) > 10_000
    assert svg.startswith(b"<?xml")
    assert b"</svg>" in svg[-20:]


def test_learning_curves():
    base, fast = method_of("base", 1, 3), method_of("a rather long label, position=tupe_r", 2, 2)
    methods = [base, fast]
    figure = pictures.learning_curves(methods, base, LOSS, curves.factors(methods, base, LOSS))
    assert [axes.get_xlabel() for axes in figure.axes] == ["steps", "thousand tokens", "TFLOP", "minutes"]
    scales = {"step": 1, "tokens": 1e3, "flops": 1e12, "seconds": 60}
    for axes, axis in zip(figure.axes, AXES, strict=True):
        assert axes.get_ylabel() == "held-out MLM loss (nats)"
        drawn = lines(axes)
        assert set(drawn) == {method.label for method in methods}
        for method, band in zip(methods, axes.collections, strict=True):
            mean = curves.mean_curve(method)
            expected = np.stack([getattr(mean, axis) / scales[axis], mean.value], 1)
            np.testing.assert_allclose(drawn[method.label], expected)
            corners = band.get_paths()[0].vertices
            values = np.array([curve.value for curve in method.curves])
            assert corners[:, 1].min() == pytest.approx(values.min())
            assert corners[:, 1].max() == pytest.approx(values.max())
        [target] = [line for line in axes.lines if line.get_gid() == "target"]
        assert np.unique(np.asarray(target.get_ydata())) == pytest.approx([6.1])
        [ring] = [line for line in axes.lines if line.get_marker() == "o" and len(np.asarray(line.get_xdata())) == 1]
        x = curves.first_reach(curves.mean_curve(fast), 6.1, axis)
        assert x is not None
        np.testing.assert_allclose(np.asarray(ring.get_xydata()), [[x / scales[axis], 6.1]])
        names = [text.get_text().replace("\n", " ") for text in axes.texts]
        assert "base" in names
        assert any(name.startswith(fast.label) and name.endswith("×") for name in names)
    assert_drawn(figure)


def test_names_do_not_overlap():
    methods = [method_of(f"method {i}", 1 + 0.001 * i, 1) for i in range(8)]
    figure = pictures.learning_curves(methods, methods[0], LOSS, curves.factors(methods, methods[0], LOSS))
    pictures.png(figure)
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 8
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])
            assert box.x1 <= 1200


def test_one_run_alone():
    base = method_of("bert", 1, 1)
    figure = pictures.learning_curves([base], base, LOSS, curves.factors([base], base, LOSS))
    assert [text.get_text() for text in figure.axes[0].texts] == ["bert"]
    assert_drawn(figure)


# --- notes ---


def topics(groups: int, size: int, width: int = 32) -> tuple[list[str], np.ndarray]:
    """Notes in tight groups around a common mean, and the words' names: the number of the group first."""
    rng = np.random.default_rng(0)
    centres = 5 * rng.normal(size=(groups, width))
    table = np.repeat(centres, size, 0) + 0.3 * rng.normal(size=(groups * size, width)) + 20
    return [f"{i}{'$_x'[j % 3]}{j}" for i in range(groups) for j in range(size)], table


def test_what_notes_learnt():
    words, table = topics(30, 5)
    figure = pictures.notes_learnt(words, table, np.zeros(150, int))
    heat, right, _ = figure.axes
    names = [label.get_text() for label in heat.get_yticklabels()]
    assert names == [label.get_text() for label in heat.get_xticklabels()]
    assert len(names) == len(set(names)) == 24
    rows = [words.index(name) for name in names]
    for start in range(0, 24, 4):  # of one topic each
        assert len({row // 5 for row in rows[start : start + 4]}) == 1
    centred = table[rows] - table.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(heat.images[0].get_array()), unit @ unit.T, atol=1e-5)

    assert right.get_xlabel().startswith("cosine")
    near, pairs, chance = (patch.get_data().values for patch in right.patches)
    for shares in (near, pairs, chance):
        assert shares.sum() == pytest.approx(1)
    middles = (pictures.BINS[1:] + pictures.BINS[:-1]) / 2
    assert (near * middles).sum() > 0.95
    assert abs((pairs * middles).sum()) < 0.1
    assert 0.2 < (chance * middles).sum() < 0.8
    assert "not sampled" in heat.get_title()
    assert_drawn(figure)


@pytest.mark.parametrize("count", [2, 3, 5, 9, 23])
def test_few_words(count: int):
    words, table = topics(count, 1)
    figure = pictures.notes_learnt(words, table, np.zeros(count, int))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert 2 <= len(names) == len(set(names)) <= count
    pictures.png(figure)


def test_notes_never_written_are_left_out():
    words, table = topics(10, 4)
    written = np.where(np.arange(40) < 20, 7, -1)
    figure = pictures.notes_learnt(words, table, written)
    names = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert names <= set(words[:20])
    assert "20 of 40 words" in figure.get_suptitle()


@pytest.mark.parametrize("written", [0, 1])
def test_no_notes_to_compare(written: int):
    words, table = topics(5, 1)
    with pytest.raises(ConfigError, match=f"{written} of 5 notes are written") as error:
        pictures.notes_learnt(words, table, np.where(np.arange(5) < written, 1, -1))
    assert "\n" not in str(error.value)


def test_groups_are_tight_and_far_from_one_another():
    words, table = topics(30, 5)
    notes = (table - table.mean(0)) / np.linalg.norm(table - table.mean(0), axis=1, keepdims=True)
    cosine = notes @ notes.T - 2 * np.eye(150)
    neighbours = np.argsort(-cosine, 1)[:, :3]
    cosines = np.take_along_axis(cosine, neighbours, 1)
    groups = pictures.tight_groups(notes, neighbours, cosines)
    assert groups[0][0] == cosines.mean(1).argmax()
    assert sorted({len(group) for group in groups}) == [4]
    assert len({row for group in groups for row in group}) == 24
    tightest = set(np.argsort(-cosines.mean(1))[:24].tolist())
    assert {group[0] for group in groups} <= tightest
    assert len({words[group[0]][0] for group in groups}) > 1


def series(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: np.linspace(0.1, 0.9, 10) + i for i, name in enumerate(names)}


def test_notes_over_time():
    metrics = series(pictures.NOTES_METRICS)
    figure = pictures.notes_over_time(STEPS, metrics)
    panels = by_label(figure)
    drawn = lines(panels["held-out loss (nats)"])
    names = {"near rare words": "mlm_loss_near_rare_words", "elsewhere": "mlm_loss_elsewhere"}
    for text, name in names.items():
        with_, without = metrics[f"eval/{name}"], metrics[f"eval/without_notes/{name}"]
        np.testing.assert_array_equal(drawn[f"{text}, with notes"], np.stack([STEPS, with_], 1))
        np.testing.assert_array_equal(drawn[f"{text}, without"], np.stack([STEPS, without], 1))
        saved = lines(panels["loss without - with (nats)"])[text]
        np.testing.assert_array_equal(saved[:, 1], without - with_)
    for label, name in (("age (mean, steps)", "age"), ("length (mean norm)", "norm")):
        [line] = panels[label].lines
        np.testing.assert_array_equal(np.asarray(line.get_ydata()), metrics[f"notes/{name}"])
    assert all(axes.get_xlabel() == "steps" for axes in figure.axes)
    assert_drawn(figure)


def test_notes_of_another_objective_and_of_none():
    names = ("notes/age", "eval/choice_loss", "eval/without_notes/choice_loss", "eval/mlm_loss")
    panels = by_label(pictures.notes_over_time(STEPS, series(names)))
    assert set(lines(panels["held-out loss (nats)"])) == {"choice, with notes", "choice, without"}
    assert_drawn(pictures.notes_over_time(STEPS[:0], {}))


# --- the quiz ---


def test_the_quiz():
    metrics = series(pictures.QUIZ_METRICS)
    metrics["eval/candidate_entropy"][3] = np.nan  # not measured there
    figure = pictures.quiz_over_time(STEPS, metrics)
    controller, changed, entropy, main = map(lines, figure.axes)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "share of masked pieces",
        "share of questions",
        "entropy (nats)",
        "share answered rightly",
    ]
    found = {
        "mlm_accuracy": controller["best guess right"],
        "mlm_probability": controller["probability of the truth"],
        "neither_share": changed["answer is <neither>"],
        "candidate_entropy": entropy["of what candidates are drawn from"],
        "choice_accuracy": main["all"],
        "choice_accuracy_changed": main["where a piece was changed"],
        "choice_accuracy_neither": main["where none was"],
        "choice_accuracy_original": main["where one was changed, <neither> aside"],
    }
    for name, drawn in found.items():
        values = metrics[f"eval/{name}"]
        there = np.isfinite(values)
        np.testing.assert_array_equal(drawn, np.stack([STEPS, values], 1)[there])
    assert_drawn(figure)


def test_metrics_that_a_run_lacks_are_left_out():
    figure = pictures.quiz_over_time(STEPS, series(("eval/mlm_accuracy",)))
    assert [len(axes.lines) for axes in figure.axes] == [1, 0, 0, 0]
    pictures.png(figure)


def test_names_of_metrics():
    assert pictures.metric_label("eval/mlm_loss") == "held-out MLM loss (nats)"
    assert pictures.metric_label("eval/mlm_accuracy") == "held-out MLM accuracy (share)"
    assert pictures.metric_label("train/loss") == "training loss (nats)"


def test_positions():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 6, 70, 70)).astype(np.float32)
    figure = pictures.positions_attend(before, after)
    *panels, bar = figure.axes
    assert bar.get_ylabel() == "added to the attention score (nats)"
    assert len(panels) == 8  # four heads of six
    for panel, (when, scores) in zip(panels, [("before training", before)] * 4 + [("after", after)] * 4, strict=True):
        head = int(panel.get_title().split()[1].strip(",")) - 1
        assert panel.get_title() == f"head {head + 1}, {when}"
        [image] = panel.images
        np.testing.assert_array_equal(image.get_array(), scores[head, :64, :64])
        assert image.get_clim()[0] == -image.get_clim()[1] < -2
    assert_drawn(figure)

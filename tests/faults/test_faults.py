"""The short form of `benchmarks/faults.py`: kills, damage and changes, each with what must be said.

Signals, another text or config, full and read-only disks have their tests in `tests/commands`.
"""

import random
from collections.abc import Callable
from pathlib import Path

import faults
import pytest


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory) -> faults.Place:
    place = faults.Place(tmp_path_factory.mktemp("faults"), random.Random(0))
    place.undisturbed()
    return place


@pytest.fixture
def place(shared_place: faults.Place, request: pytest.FixtureRequest) -> faults.Place:
    """The same runs; what is drawn depends on the test alone."""
    shared_place.rng = random.Random(request.node.name)
    return shared_place


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda place: faults.damaged_corpus(place, "truncated", "train-00000.bin"), "train-00000.bin is damaged"),
        (faults.nan, "not finite"),
        (faults.clock, ""),
        (faults.several_runs, "is in use by another run"),
        (faults.two_prepare, ""),
        (faults.text_changes_meanwhile, ""),
        (faults.another_version, "has no field 'of_tomorrow'"),
        (faults.another_format, "manifest.json is damaged"),
        (lambda place: faults.damaged_checkpoint(place, "one bit flipped", "host.json"), "host.json is not what was"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fault(place: faults.Place, fault: Callable[[faults.Place], faults.Case], said: str):
    case = fault(place)
    assert said in case.said
    assert case.equal, case
    assert case.lost <= 2 * faults.EVERY  # the interval, and what was done while the newest one was being written


@pytest.mark.parametrize("before", [True, False])
def test_metrics_lost_before_the_checkpoint_are_told(before: bool, place: faults.Place):
    """They are nowhere else, and the run itself ends as it should; those after it are made again."""
    lines = (place.stopped() / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    saved = faults.committed(place.stopped())
    kept = len(b"".join(lines[: saved - 1 if before else saved]))
    case = faults.damaged_run_file(place, "metrics.jsonl", kept + 9 * before)  # a line that is torn
    assert case.finished
    assert case.equal != before
    assert ("a gap stays" in case.said) == before
    assert not case.silent


def test_kills_at_every_kind_of_moment(place: faults.Place):
    faults.kills(place, 0)
    kills = [case for case in place.cases if case.fault.startswith("kill -9")]
    assert len({case.fault for case in kills}) >= 5  # a quick machine may be through before one of them
    assert all(case.equal and case.lost <= 2 * faults.EVERY for case in kills), kills


def test_a_run_that_differs_is_noticed(place: faults.Place):
    """What compares the runs sees one bit of one array, one metric and one result."""
    good = place.undisturbed()
    for spoil in (
        lambda result: result["state"]["notes"]["table"].view("u4").__setitem__((0, 0), 1),
        lambda result: result["lines"][7].update({"train/loss": 0.0}),
        lambda result: result["done"].update({"eval/mlm_loss": 0.0}),
    ):
        other = place.undisturbed()
        assert faults.same(other, good)
        spoil(other)
        assert not faults.same(other, good)


def test_summary_counts_silent_errors(tmp_path: Path):
    cases = [faults.Case("x", "", "said", 3, True, True), faults.Case("x", "", "", 5, True, False)]
    assert faults.summary(cases) == [["x", "2", "2", "5", "1", "said"]]

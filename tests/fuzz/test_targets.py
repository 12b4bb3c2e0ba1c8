"""A few inputs for each target, the same in every run. For many: `python -m tests.fuzz.campaign --minutes 20`."""

from collections import Counter
from typing import Any

import hypothesis
import pytest

from tests.fuzz.targets import ANSWERS, EXAMPLES, TARGETS

FEW = {
    "prepared_corpora": 5,
    "predictions": 2,
    "checkpoints": 8,
    "sentencepiece_models": 20,
    "official_checkpoints": 15,
}


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str):
    strategy, check = TARGETS[name]
    counts: Counter[str] = Counter()

    def counted(given: Any) -> None:
        ANSWERS.clear()
        check(given)
        counts.update(ANSWERS)

    settings = hypothesis.settings(
        max_examples=FEW.get(name, 40), database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    test = hypothesis.given(strategy)(counted)
    for example in EXAMPLES.get(name, ()):
        test = hypothesis.example(example())(test)
    settings(test)()
    assert set(counts) == ({"given", "refused"} if name in EXAMPLES else set())

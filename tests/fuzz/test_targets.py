"""A few inputs for each target, the same in every run. For many: `python -m tests.fuzz.campaign --minutes 20`."""

import hypothesis
import pytest

from tests.fuzz.targets import TARGETS

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
    settings = hypothesis.settings(
        max_examples=FEW.get(name, 40), database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    settings(hypothesis.given(strategy)(lambda given: check(given)))()

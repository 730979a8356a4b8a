from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf import catalog
from otelperf.readings import Buckets
from otelperf.sources.quality import (
    BASELINE,
    BOUNDS,
    Quality,
    Scores,
    drift,
    drift_limit,
    quality,
    quality_baseline,
)

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@given(SCORES, SCORES)
def test_drift_is_the_largest_distance_of_the_two_distributions(one: list[float], other: list[float]) -> None:
    """By the definition: at each score, the shares that are no larger."""

    def share(of: list[float], value: float) -> float:
        return sum(each <= value for each in of) / len(of)

    largest = max(abs(share(one, value) - share(other, value)) for value in one + other)
    assert drift(sorted(one), other) == pytest.approx(largest)


def test_the_limit_is_that_of_the_tables() -> None:
    """1.949 * sqrt(2 / n) at 0.001 for two samples of the same size."""
    assert drift_limit(100, 100) == pytest.approx(1.9495 * math.sqrt(2 / 100), rel=1e-4)


def test_the_same_scores_hardly_ever_pass_the_limit_and_others_do() -> None:
    chance = random.Random(4)
    baseline = sorted(chance.gauss(0.7, 0.1) for _ in range(BASELINE))
    limit = drift_limit(BASELINE, 200)
    same = [drift(baseline, [chance.gauss(0.7, 0.1) for _ in range(200)]) for _ in range(300)]
    assert sum(each > limit for each in same) <= 3
    assert drift(baseline, [chance.gauss(0.6, 0.1) for _ in range(200)]) > limit


def told(scores: Scores) -> dict[str, object]:
    return {reading.name.removeprefix("otelperf.quality."): reading.value for reading in scores.readings()}


def test_no_drift_is_told_before_there_are_scores_enough() -> None:
    scores = Scores({})
    assert told(scores) == {}
    for _ in range(BASELINE + 49):
        scores.add(0.5)
    assert told(scores).keys() == {"score"}
    scores.add(0.5)
    assert told(scores)["drift"] == 0.0
    assert told(scores)["drift"] == 0.0  # also while nothing new comes


def test_a_given_baseline_is_compared_with_at_once() -> None:
    scores = Scores({})
    scores.compare_with([0.9] * 100)
    for _ in range(50):
        scores.add(0.1)
    found = told(scores)
    assert found["drift"] == 1.0
    assert found["drift.limit"] == drift_limit(100, 50)
    counts = tuple(50 * int(each == 1) for each in range(len(BOUNDS) + 1))
    assert found["score"] == Buckets(50, sum([0.1] * 50), BOUNDS, counts)


@pytest.mark.parametrize("baseline", [[], [0.5] * 49, [0.5] * 60 + [float("nan")]])
def test_a_baseline_that_says_nothing_is_refused(baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="expected 50 finite ones or more"):
        quality_baseline(baseline, name="bad baseline")


@pytest.mark.parametrize("baseline", [["a"], 5, [None] * 50])
def test_a_baseline_of_no_numbers_is_refused_in_words(baseline: Any) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"^otelperf\.quality_baseline: .*; expected 50 finite numbers or more$"
    ):
        quality_baseline(baseline, name="bad baseline")


def test_what_is_no_score_is_told_once_and_none_is_not(caplog: pytest.LogCaptureFixture) -> None:
    for wrong in (None, "good", float("nan")):
        quality(wrong, name="no scores")  # type: ignore[arg-type] # as below
    assert [str(record.msg) for record in caplog.records] == ['not a score which="no scores" value=good']


def test_scores_are_kept_apart_by_what_is_scored_and_the_model() -> None:
    quality(0.5, name="apart")
    quality(1.5, name="apart", model="m")
    for missing in (float("nan"), None, "good"):
        quality(missing, name="apart", model="m")  # type: ignore[arg-type] # a judge may answer anything
    readings = [r for r in Quality("process").read(0) if r.attributes["gen_ai.evaluation.name"] == "apart"]
    counts = {r.attributes.get("gen_ai.request.model"): r.value.count for r in readings if isinstance(r.value, Buckets)}
    assert counts == {None: 1, "m": 1}
    assert {r.name for r in readings} <= catalog.BY_NAME.keys()

"""A budget degrades by error and not by silence, what is published is what is in force, and points keep their spacing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import strategies as st

from otelperf.gate.budget import Budget
from otelperf.gate.policy import Rule, Threshold
from tests.gate.series import (
    EVENTS,
    FAST,
    IRREGULAR,
    ODD_GAINS,
    SECONDS,
    STATES,
    VALUES,
    Act,
    Series,
    Step,
    Story,
    absent,
    acts,
    given,
    same,
    steps,
)
from tests.gate.test_promises_values import on_its_side, with_held, within
from tests.gate.world import MS, SECOND

LEVEL = Threshold(3, margin=0.5)
RULES = {
    "hold": Rule(delta=1.0, relative=0.1),
    "level": Rule(delta=5.0, thresholds=(LEVEL,)),
    "state": Rule(kind="state"),
    "counter": Rule(kind="trend", relative=0.1),
    "histogram": Rule(kind="histogram", relative=0.1),
}
CAST = [
    Series("hold"),
    Series("level"),
    Series("state"),
    Series("counter", "counter"),
    Series("histogram", "histogram"),
]
HOLD, LEVELS, STATE = (one.key for one in CAST[:3])
BUDGETS = st.builds(
    Budget, st.sampled_from([None, 1, 10, 60, 600]), st.sampled_from([None, 1, 6, 60]), st.sampled_from([1.0, 0.1])
)
# The factor is e to the debt in two minutes' allowances, and at most a thousand: so much may be owed, in minutes' allowances.
MOST_OWED = 13.9


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Thousands of failures are told otherwise."""
    logging.getLogger("otelperf.gate").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("otelperf.gate").setLevel(logging.NOTSET)


def watched(story: Story, script: list[Step]) -> list[tuple[dict[str, Any], float]]:
    """Play; return what bounds and factor were published at each export."""
    found = []
    for step in script:
        story.step(step)
        found.append((story.gate.bounds(), story.gate.stats.factor))
    return found


@given(
    BUDGETS,
    steps(*(acts(v) for v in (VALUES, VALUES, STATES, ODD_GAINS, ODD_GAINS)), gaps=IRREGULAR, events=EVENTS, most=15),
)
def test_what_is_held_is_within_the_published_bound(budget: Budget, script: list[Step]) -> None:
    """Whatever the budget; thresholds and states know none."""
    story = Story(CAST, RULES, linger=0, budget=budget, **FAST)
    published = watched(story, script)
    for key, name in ((HOLD, "hold"), (LEVELS, "level")):
        for reading, held in with_held(story, key):
            bound = published[reading.export - 1][0][name]
            assert within(reading.point.value, held.point.value, bound.delta, bound.relative)
    assert all(on_its_side(r.point.value, held.point.value, LEVEL) for r, held in with_held(story, LEVELS))
    handed = {(sent.export, sent.tag) for sent in story.sent}
    for before, after in pairwise(story.read(STATE)):
        assert same(before.point.value, after.point.value) or (after.export, after.tag) in handed
    for bounds, factor in published:
        assert set(bounds) <= {"hold", "level", "counter", "histogram"}
        assert budget.total is None or budget.finest * 0.999 <= factor <= 1001
        assert budget.total is not None or factor == 1
        if budget == Budget():
            assert {n: tuple(b) for n, b in bounds.items() if n == "hold"} == {"hold": (1.0, 0.1)}


@given(BUDGETS, steps(*(acts(v) for v in (VALUES, VALUES, STATES, ODD_GAINS)), gaps=SECONDS, most=30))
def test_no_stream_is_silenced_by_a_budget(budget: Budget, script: list[Step]) -> None:
    story = Story(CAST[:4], RULES, linger=0, budget=budget, **FAST)
    watched(story, script)
    for one in CAST[:4]:
        went = {sent.tag for sent in story.sent if sent.key == one.key}
        last = 0
        for before, after in pairwise(story.read(one.key)):
            last = before.now if before.tag in went else last
            assert after.now - last < 5 * SECOND - (after.now - before.now) // 2 or after.tag in went


@given(
    st.sampled_from([10, 60, 300]),
    st.lists(st.integers(0, 1000), min_size=1, max_size=12),
    st.integers(1, 5),
    long=True,
)
def test_what_may_be_held_back_stays_within_the_budget(total: float, values: list[int], streams: int) -> None:
    """Plus what heartbeats cost, which are exempt, and what may be owed."""
    cast = [Series("hold", attributes=(("n", i),)) for i in range(streams)]
    story = Story(cast, RULES, linger=0, budget=Budget(total), heartbeat=50.0)
    minutes = 4
    for tick in range(30 * minutes):
        story.step(Step(2 * SECOND, tuple(Act(values[(tick + i) % len(values)]) for i in range(streams))))
    beats = streams * (minutes * 60 / 25 + 1)
    targets = 2 * len(story.witness.requests)
    exempt = beats + (targets if story.gate._account and story.gate._account.exhausted else 0)
    assert story.gate.stats.samples <= total * (minutes + MOST_OWED) + exempt + 2 * streams


@given(
    st.lists(st.integers(0, 100), min_size=2, max_size=6, unique=True),
    st.sampled_from([20, 60, 120]),
    st.integers(2, 8),
    long=True,
)
def test_a_steady_load_comes_to_rest_at_the_budget(values: list[int], total: float, streams: int) -> None:
    """In the second half hour it is kept, or what heartbeats cost if that is more."""
    cast = [Series("hold", attributes=(("n", i),)) for i in range(streams)]
    story = Story(cast, {"hold": Rule(delta=1.0)}, linger=0, budget=Budget(total), heartbeat=50.0)
    samples = []
    for tick in range(360):
        story.step(
            Step(10 * SECOND, tuple(Act(values[(tick * 7 + i) % len(values)] + tick % 3) for i in range(streams)))
        )
        samples.append(story.gate.stats.samples)
    beats = streams * 3 * 60 / 25  # a minute, target_info included
    assert (samples[-1] - samples[180]) / 30 <= max(total, beats) * 1.1


# Spacing


@given(
    steps(*(absent(acts(v, restarts=True)) for v in (VALUES, VALUES, STATES, ODD_GAINS)), gaps=IRREGULAR, most=20),
    st.sampled_from([1.5, 3.0, 5.0]),
    st.booleans(),
)
def test_two_points_of_a_stream_keep_their_spacing(script: list[Step], spacing: float, grouped: bool) -> None:
    """Ends and both sides of a reset aside."""
    rules = {name: replace(rule, group="g") for name, rule in RULES.items()} if grouped else RULES
    story = Story(CAST[:4], rules, linger=0, spacing=spacing, previous=False, **FAST).play(script)
    for one in CAST[:4]:
        arrived = story.arrived(one.key)
        aside = {a.tag for a, b in pairwise(arrived) if b.mark}
        for before, after in pairwise(story.read(one.key)):
            if one.shape == "counter":
                later = after.point.start_time_unix_nano > before.point.start_time_unix_nano + SECOND
                if after.point.value < before.point.value or later:
                    aside |= {before.tag, after.tag}
        for a, b in pairwise(arrived):
            apart = b.point.time_unix_nano - a.point.time_unix_nano
            assert apart >= spacing * SECOND - MS or a.mark or b.mark or b.tag in aside


@given(steps(acts(VALUES), gaps=SECONDS, most=30), st.sampled_from([2.0, 4.0]))
def test_when_the_spacing_has_passed_the_newest_goes(script: list[Step], spacing: float) -> None:
    series = CAST[1]
    story = Story([series], RULES, linger=0, spacing=spacing, previous=False, **FAST).play(script)
    last = 0
    for reading, held in with_held(story, series.key):
        if reading.now - last >= spacing * SECOND:
            assert within(reading.point.value, held.point.value, 5.0, 0)
            assert on_its_side(reading.point.value, held.point.value, LEVEL)
        last = reading.now if held.tag == reading.tag else last

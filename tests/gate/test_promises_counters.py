"""Counters: every value sent is exact, no total is lost, and ``rate()`` reads right while it happens."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import strategies as st

from otelperf.gate.policy import Rule
from tests.gate.series import (
    EVENTS,
    FAST,
    IRREGULAR,
    ODD_GAINS,
    RESTART,
    Act,
    Key,
    Reading,
    Series,
    Step,
    Story,
    absent,
    acts,
    given,
    same,
    steps,
)
from tests.gate.test_decisions import increase_as_prometheus_has_it
from tests.gate.world import MS, SECOND

COUNTER = Series(shape="counter")
RULES = st.sampled_from(
    [
        Rule(kind="trend", relative=0.1),
        Rule(kind="trend", relative=0.3, delta=20),
        Rule(kind="trend"),
        Rule(kind="trend", delta=1000),
        Rule(kind="heartbeat"),
        Rule(delta=50),
        Rule(kind="off"),
    ]
)
TRENDS = st.sampled_from([(0.1, 0), (0.25, 10), (0.3, 100)])


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Thousands of failures are told otherwise."""
    logging.getLogger("otelperf.gate").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("otelperf.gate").setLevel(logging.NOTSET)


def epochs(story: Story, key: Key) -> list[list[Reading]]:
    """Return the readings of a counter, from each beginning to the reset or the end of the stream."""
    ends: dict[int, int] = {}
    for sent in story.sent:
        if sent.key == key and sent.mark:
            ends.setdefault(sent.point.time_unix_nano, sent.export)  # when it was first tried
    found: list[list[Reading]] = []
    for reading in story.read(key):
        before = found[-1][-1] if found else None
        if before is None or _reset(before, reading) or any(before.export < e < reading.export for e in ends.values()):
            found.append([])
        found[-1].append(reading)
    return found


def _reset(before: Reading, after: Reading) -> bool:
    later = after.point.start_time_unix_nano - before.point.start_time_unix_nano > RESTART
    return bool(_amount(after.point) < _amount(before.point)) or later


def _amount(point: Any) -> Any:
    return point.value if hasattr(point, "value") else point.count


@given(RULES, steps(absent(acts(ODD_GAINS, restarts=True)), gaps=IRREGULAR, events=EVENTS), st.sampled_from([0, 2]))
def test_every_value_sent_is_a_reading_at_its_own_time(rule: Rule, script: list[Step], linger: int) -> None:
    story = Story([COUNTER], {"m": rule}, linger=linger, **FAST).play(script).end()
    read = {reading.point.time_unix_nano: reading for reading in story.read(COUNTER.key)}
    for sent in story.sent:
        if not sent.mark:
            assert same(sent.point.value, read[sent.point.time_unix_nano].point.value)
            assert sent.point.start_time_unix_nano <= sent.point.time_unix_nano
            start = read[sent.point.time_unix_nano].point.start_time_unix_nano
            assert sent.earlier or sent.point.start_time_unix_nano == start


@given(RULES, steps(absent(acts(ODD_GAINS, restarts=True)), gaps=IRREGULAR, events=EVENTS), st.sampled_from([0, 2]))
def test_no_total_is_lost(rule: Rule, script: list[Step], linger: int) -> None:
    """Before a reset and before the end the last value arrives, unless it was tried twice in vain."""
    story = Story([COUNTER], {"m": rule}, linger=linger, **FAST).play(script).end()
    arrived = [sent for sent in story.arrived(COUNTER.key) if sent.tag >= 0]
    in_vain = Counter(sent.tag for sent in story.sent if not sent.stored)
    for epoch in epochs(story, COUNTER.key):
        tags = {reading.tag for reading in epoch}
        last = [sent for sent in arrived if sent.tag in tags][-1:]
        total = epoch[-1].point.value
        # A total may have stood for several readings: any of them says it.
        tried = sum(in_vain[reading.tag] for reading in epoch if same(reading.point.value, total))
        assert tried > 1 or [same(sent.point.value, total) for sent in last] == [True]


@given(
    TRENDS,
    steps(absent(acts(ODD_GAINS, restarts=True)), gaps=IRREGULAR, events=EVENTS, most=40),
    st.booleans(),
    st.sampled_from([0, 2]),
)
def test_an_earlier_reading_goes_once_and_belongs_to_the_same_run(
    bounds: tuple[float, float], script: list[Step], previous: bool, linger: int
) -> None:
    """Within what the longest window reaches; not at all for a backend that takes none, which gets one point a request, too."""
    rule = Rule(kind="trend", relative=bounds[0], delta=bounds[1])
    story = Story([COUNTER], {"m": rule}, linger=linger, previous=previous, **FAST).play(script).end()
    epoch_of = {r.point.time_unix_nano: i for i, run in enumerate(epochs(story, COUNTER.key)) for r in run}
    newest = 0
    times: set[int] = set()
    for sent in story.arrived(COUNTER.key):
        time = sent.point.time_unix_nano
        if sent.earlier:
            assert previous
            assert time not in times
            if newest in epoch_of:
                assert epoch_of[time] >= epoch_of[newest]
        newest = max(newest, time)
        times.add(time)
    if not previous:
        requests = Counter(sent.request for sent in story.sent)
        assert max(requests.values(), default=1) == 1
        arrived = story.arrived(COUNTER.key)
        assert all(
            b.point.time_unix_nano - a.point.time_unix_nano >= MS or b.tag == a.tag for a, b in pairwise(arrived)
        )


# The live promise, in one place.

WINDOWS = {0.5: (0.5, 2**0.5), 1.0: (1.0, 1.0), 2.5: (2.5, 0.4**0.5)}  # of the rate window: of the delta, of the share
RUNS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([0, 0, 0, 1, 1, 2, 10, 1000]) | st.integers(0, 50)),
    min_size=1,
    max_size=5,
)  # runs of (seconds, gain each second)
PATIENCE = 10  # ticks


def misread_for(story: Story, delta: float, relative: float, rate_window: int, slack: int) -> int:
    """Return for how many ticks in a row ``increase()`` was off by more than is tolerated, in the worst of the windows.

    *slack*: seconds by which the gate may know the beginning of a window too early or too late.
    """
    readings = story.read(COUNTER.key)
    totals = [reading.point.value for reading in readings]
    sent: list[tuple[int, float]] = []
    worst = 0
    outside = dict.fromkeys(WINDOWS, 0)
    for second, reading in enumerate(readings):
        sent += [(s.point.time_unix_nano, s.point.value) for s in story.sent if s.export == reading.export]
        sent.sort()
        for share, (widen, narrow) in WINDOWS.items():
            start = max(0, second - int(share * rate_window))
            true = totals[second] - totals[start]
            tolerated = max(delta * widen, relative * narrow * true)
            tolerated += totals[min(second, start + slack)] - totals[max(0, start - slack)]
            window = int(share * rate_window * SECOND)
            read = increase_as_prometheus_has_it(list(sent), reading.now, window) or 0.0
            outside[share] = outside[share] + 1 if abs(read - true) > tolerated * 1.01 else 0
        worst = max(worst, *outside.values())
    return worst


@given(RUNS, st.sampled_from([(0.1, 5), (0.25, 10), (0.25, 100)]))
def test_what_rate_reads_now_is_what_the_readings_say(runs: list[tuple[int, int]], bounds: tuple[float, float]) -> None:
    """At each tick and in each window, from what was sent up to then; for a few seconds it may be off by more."""
    rule = Rule(kind="trend", relative=bounds[0], delta=bounds[1])
    story = Story([COUNTER], {"m": rule}, linger=0, heartbeat=10.0, rate_window=24.0)
    story.play([Step(SECOND, (Act(gain),)) for seconds, gain in runs for _ in range(seconds)])
    assert misread_for(story, rule.delta, rule.relative, 24, 1) <= PATIENCE

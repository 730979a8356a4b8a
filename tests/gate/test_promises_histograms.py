"""Histograms: exact, seldom, and telling when what is new differs. Exemplars go with the next point."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import strategies as st

from otelperf.gate.policy import Rule
from tests.gate.series import (
    EVENTS,
    FAST,
    GAINS,
    IRREGULAR,
    ODD_GAINS,
    SECONDS,
    Act,
    Series,
    Step,
    Story,
    absent,
    acts,
    given,
    steps,
)
from tests.gate.test_promises_counters import epochs
from tests.gate.world import SECOND

SHAPES = st.sampled_from(["histogram", "exponential"])
RULE = Rule(kind="histogram", relative=0.1)


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Thousands of failures are told otherwise."""
    logging.getLogger("otelperf.gate").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("otelperf.gate").setLevel(logging.NOTSET)


@given(SHAPES, steps(absent(acts(ODD_GAINS, restarts=True)), gaps=IRREGULAR, events=EVENTS))
def test_a_histogram_goes_as_it_was_read(shape: str, script: list[Step]) -> None:
    """Layout, buckets, count and sum; and before a reset or the end, the last of it."""
    series = Series(shape=shape)
    story = Story([series], {"m": RULE}, linger=0, **FAST).play(script).end()
    for sent in story.sent:
        if not sent.mark:
            assert replace(sent.point, exemplars=[]) == story.readings[sent.tag].point
    arrived = [sent for sent in story.arrived(series.key) if sent.tag >= 0]
    in_vain = [sent.tag for sent in story.sent if not sent.stored]
    for epoch in epochs(story, series.key):
        tags = {reading.tag for reading in epoch}
        last = [sent for sent in arrived if sent.tag in tags][-1:]
        assert in_vain.count(epoch[-1].tag) > 1 or last[0].point.count == epoch[-1].point.count


@given(SHAPES, steps(acts(GAINS, restarts=True), gaps=IRREGULAR, most=40), st.sampled_from([3.0, 6.0]))
def test_between_two_histograms_the_interval_passes(shape: str, script: list[Step], interval: float) -> None:
    """A sixth of it, to half a step. Both sides of a reset aside, and the heartbeat, should that be shorter."""
    series = Series(shape=shape)
    story = Story([series], {"m": RULE}, linger=0, **{**FAST, "histogram_interval": interval}).play(script)
    sides = {r.tag for epoch in epochs(story, series.key) for r in (epoch[0], epoch[-1])}
    read = story.read(series.key)
    step = {after.tag: after.now - before.now for before, after in pairwise(read)}
    least = min(interval / 6, FAST["heartbeat"]) * SECOND
    for before, after in pairwise(story.arrived(series.key)):
        assert after.tag in sides or after.now - before.now >= least - step[after.tag] // 2


@given(steps(acts(GAINS), gaps=SECONDS, most=40))
def test_what_histogram_quantile_reads_now_is_what_the_readings_say(script: list[Step]) -> None:
    """To a tenth, once half a second has passed since the last point, or as nearly as the newest reading could bring it.

    Before the interval has passed, quantiles with none counted above them do not matter. The window's beginning is known to a
    twelfth of it.
    """
    series = Series(shape="histogram")
    story = Story([series], {"m": RULE}, linger=0, **FAST).play(script)
    window, grain = FAST["rate_window"] * SECOND, FAST["rate_window"] * SECOND / 12
    let_out = {sent.tag for sent in story.sent}
    read: list[Any] = []
    sent: list[Any] = []
    for reading in story.read(series.key):
        if read and reading.point.count < read[-1].point.count:
            read, sent = [], []
        read.append(reading)
        if reading.tag in let_out:
            sent.append(reading)
            continue
        now = reading.now
        if reading.point.count == sent[-1].point.count or now - sent[-1].now < SECOND:
            continue
        above = 0 if now - sent[-1].now >= 3 * SECOND else 1
        first = ([each for each in sent if each.now > now - window] or sent[-1:])[0]
        begins = [r for r in read if r.now <= now - window] or read[:1]
        around = [r for r in read if begins[-1].now - 2 * grain <= r.now <= begins[-1].now + grain]
        assert any(
            off(first, sent[-1], each, reading, above)
            <= max(0.1, off(first, reading, each, reading, above) / 0.9) + 1e-9
            for each in around
        )


def off(first: Any, last: Any, begin: Any, now: Any, above: int) -> float:
    """Return by what share of itself a quantile of what came between *first* and *last* differs from that since *begin*.

    The worst of those with so many *above* them; infinite where there is no answer.
    """
    true, answer = gained(begin, now), gained(first, last)
    worst = 0.0
    for share in (0.5, 0.95, 0.99):
        if sum(true) and (1 - share) * sum(true) >= above:
            if not sum(answer):
                return inf
            so, it = (quantile(share, now.point.explicit_bounds, counts) for counts in (true, answer))
            worst = max(worst, abs(it - so) / so if so else abs(it) and inf)
    return worst


def gained(before: Any, after: Any) -> list[int]:
    return [a - b for a, b in zip(after.point.bucket_counts, before.point.bucket_counts, strict=True)]


def quantile(share: float, bounds: tuple[float, ...], counts: list[int]) -> float:
    """As PromQL interpolates, the first bucket from zero; the last answers with the highest bound."""
    rank, below = share * sum(counts), 0
    for i, count in enumerate(counts):
        if count and below + count >= rank:
            low = bounds[i - 1] if i else 0.0
            return bounds[-1] if i == len(bounds) else low + (bounds[i] - low) * (rank - below) / count
        below += count
    return bounds[-1]


@given(steps(acts(GAINS), gaps=IRREGULAR, most=40))
def test_a_histogram_with_nothing_new_only_beats(script: list[Step]) -> None:
    series = Series(shape="histogram")
    story = Story([series], {"m": RULE}, linger=0, **FAST).play(script)
    for before, after in pairwise(story.arrived(series.key)):
        assert after.point.count != before.point.count or after.now - before.now >= 2.5 * SECOND


EXEMPLARS = st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 1, 2, 7])).map(lambda d: Act(d[0], exemplars=d[1]))


@given(
    st.sampled_from(["histogram", "exponential", "counter", "gauge"]),
    st.lists(st.tuples(SECONDS, EXEMPLARS).map(lambda drawn: Step(drawn[0], (drawn[1],))), max_size=25),
    st.sampled_from([0, 2]),
)
def test_exemplars_go_once_with_the_next_point_sorted_the_newest_twenty(
    shape: str, script: list[Step], linger: int
) -> None:
    series = Series(shape=shape)
    story = Story([series], {"m": Rule(delta=2)}, linger=linger, **FAST).play(script)
    story.gate.force_flush()
    went: Any = 0
    read = story.read(series.key)
    for sent in story.arrived(series.key):
        if sent.earlier:
            continue
        since = [e for r in read if went <= r.tag <= sent.tag for e in r.point.exemplars]
        held_back = [e for r in read if went <= r.tag < sent.tag for e in r.point.exemplars]
        came = list(sent.point.exemplars)
        if held_back:
            assert len(came) == min(20, len(since))
            assert came == sorted(came, key=lambda e: e.time_unix_nano)
            assert {id(e) for e in came} <= {id(e) for e in since}
            assert min(e.time_unix_nano for e in came) >= sorted(e.time_unix_nano for e in since)[-20:][0]
        else:
            assert came == since
        went = sent.tag + 1

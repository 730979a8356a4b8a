"""Gauges, states, groups and policies: what is held is true to within what was promised, whatever comes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import pairwise
from math import inf, nan
from typing import Any

import pytest
from hypothesis import strategies as st

from otelperf.gate.policy import Override, Rule, Threshold
from tests.gate.series import (
    EVENTS,
    FAST,
    GAINS,
    IRREGULAR,
    ODD_GAINS,
    STATES,
    VALUES,
    Key,
    Reading,
    Sent,
    Series,
    Step,
    Story,
    absent,
    acts,
    given,
    same,
    steps,
)
from tests.gate.world import SECOND

MEASURES = st.sampled_from([0, 0.1, 1, 2.5, inf])
THRESHOLDS = st.lists(
    st.builds(
        Threshold, st.sampled_from([0, 1, 3, -3.0]), st.sampled_from(["above", "below"]), st.sampled_from([0, 0.5, 2])
    ),
    max_size=2,
).map(tuple)
HOLDS = st.builds(Rule, st.just("hold"), MEASURES, st.sampled_from([0, 0.1, 0.5]), thresholds=THRESHOLDS)


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Thousands of failures are told otherwise."""
    logging.getLogger("otelperf.gate").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("otelperf.gate").setLevel(logging.NOTSET)


def with_held(story: Story, key: Key) -> Iterator[tuple[Reading, Sent]]:
    """Yield each reading that no failed request hides, and what was held when it was read."""
    arrived = [sent for sent in story.arrived(key) if sent.tag >= 0]
    broken = story.broken(key)
    for reading in story.read(key):
        if not any(lost <= reading.tag < healed for lost, healed in broken):
            yield reading, [sent for sent in arrived if sent.tag <= reading.tag][-1]


def within(value: Any, held: Any, delta: float, relative: float) -> bool:
    if value != value or held != held:
        return bool(value != value and held != held)
    if inf in {abs(value), abs(held)}:
        return bool(value == held)
    return bool(abs(value - held) <= max(delta, relative * abs(held)))


def on_its_side(value: Any, held: Any, threshold: Threshold) -> bool:
    """Same side, or held is still on the bad one and the value within the margin."""
    sign = 1 if threshold.worse == "above" else -1
    if sign * held > sign * threshold.value:
        return bool(value == held or sign * value > sign * threshold.value - threshold.margin)
    return not sign * value > sign * threshold.value


# Gauges


@given(
    HOLDS,
    steps(absent(acts(VALUES)), gaps=IRREGULAR, events=EVENTS),
    st.sampled_from(["gauge", "updown"]),
    st.sampled_from([0, 2]),
)
def test_a_held_gauge_is_within_its_bound_and_on_its_side(
    rule: Rule, script: list[Step], shape: str, linger: int
) -> None:
    series = Series(shape=shape)
    story = Story([series], {"m": rule}, linger=linger, **FAST).play(script).end()
    for reading, held in with_held(story, series.key):
        assert within(reading.point.value, held.point.value, rule.delta, rule.relative)
        for threshold in rule.thresholds:
            assert on_its_side(reading.point.value, held.point.value, threshold)


@given(HOLDS, steps(absent(acts(VALUES)), gaps=IRREGULAR, events=EVENTS))
def test_without_linger_a_gauge_goes_when_it_is_read(rule: Rule, script: list[Step]) -> None:
    story = Story([Series()], {"m": rule}, linger=0, **FAST).play(script).end()
    for sent in story.sent:
        assert sent.mark or sent.export == story.readings[sent.tag].export


@given(HOLDS, steps(acts(VALUES), gaps=IRREGULAR))
def test_a_gauge_goes_only_for_a_reason(rule: Rule, script: list[Step]) -> None:
    """It left its bound or its side, or half a heartbeat has passed (streams share beats)."""
    series = Series()
    story = Story([series], {"m": rule}, linger=0, **FAST).play(script)
    held: Sent | None = None
    for sent in story.arrived(series.key):
        if held is not None:
            value, before = sent.point.value, held.point.value
            inside = within(value, before, rule.delta, rule.relative) and all(
                on_its_side(value, before, threshold) for threshold in rule.thresholds
            )
            assert not inside or sent.point.time_unix_nano - held.point.time_unix_nano >= 2.5 * SECOND
        held = sent


# States


@given(steps(acts(STATES), gaps=IRREGULAR, events=EVENTS))
def test_no_transition_waits_or_is_left_out(script: list[Step]) -> None:
    series = Series()
    story = Story([series], {"m": Rule(kind="state")}, linger=2, **FAST).play(script)
    handed = {(sent.export, sent.tag) for sent in story.sent}
    read = story.read(series.key)
    for before, after in pairwise(read):
        if not same(before.point.value, after.point.value):
            assert (after.export, after.tag) in handed


NEAR = st.sampled_from([0, 0.5, 1, 1.5, 2, 2.4, 2.6, 2.9, 3, 3.1, 5, nan])


@given(
    st.sampled_from([Threshold(3.0, margin=0.5), Threshold(1.0, "below", 1.0)]),
    steps(acts(NEAR), gaps=IRREGULAR, events=EVENTS),
)
def test_no_crossing_waits_or_is_left_out(threshold: Threshold, script: list[Step]) -> None:
    """To the worse at once, and back once the value is past the margin."""
    series = Series()
    story = Story([series], {"m": Rule(delta=inf, thresholds=(threshold,))}, linger=2, **FAST).play(script)
    handed = {(sent.export, sent.tag) for sent in story.sent}
    let_out = {tag for _, _, _, tag in story.reasons}
    held: Any = None
    for reading in story.read(series.key):
        value = reading.point.value
        if held is not None and not on_its_side(value, held, threshold):
            assert (reading.export, reading.tag) in handed
        held = value if reading.tag in let_out else held


# Groups

GROUPED = {
    "gauge": Rule(delta=2, group="g"),
    "updown": Rule(delta=5, group="g", within=("mode",)),
    "counter": Rule(kind="trend", relative=0.2, delta=3, group="g"),
    "histogram": Rule(kind="histogram", relative=0.1, group="g"),
    "alone": Rule(delta=2),
}
MEMBERS = [
    Series("gauge"),
    Series("updown", "updown", attributes=(("mode", "x"),)),
    Series("updown", "updown", attributes=(("mode", "y"),)),
    Series("counter", "counter"),
    Series("histogram", "histogram"),
    Series("counter", "counter", attributes=(("device", "other"),)),
    Series("gauge", scope=1),
    Series("gauge", resource=1),
    Series("alone"),
]
COMPANIES = [{0, 1, 2, 3, 4}, {5}, {6}, {7}, {8}]


@given(
    steps(
        *(absent(acts(VALUES)) for _ in range(3)),
        *(absent(acts(GAINS)) for _ in range(3)),
        *(acts(VALUES) for _ in range(3)),
        gaps=IRREGULAR,
        events=EVENTS,
        most=12,
    ),
    st.sampled_from([2, 2000]),
)
def test_members_of_a_group_go_together_from_the_same_reading(script: list[Step], max_points: int) -> None:
    """Those aside whose last point sent says the same, and histograms within their interval."""
    story = Story(MEMBERS, GROUPED, linger=0, max_points=max_points, complete=("complete",), **FAST).play(script)
    went = {(sent.export, sent.tag) for sent in story.sent}
    for company in COMPANIES:
        keys = {MEMBERS[i].key for i in company}
        held: dict[Key, Reading] = {}
        for export in range(1, story.exports + 1):
            read = [r for r in story.readings if r.export == export and r.key in keys and r.fresh]
            gone = [r for r in read if (export, r.tag) in went]
            for reading in read if gone else []:
                last = held.get(reading.key)
                assert reading in gone or (last is not None and may_stay(reading, last))
            held.update({r.key: r for r in gone})


def may_stay(reading: Reading, last: Reading) -> bool:
    point, sent = reading.point, last.point
    if hasattr(point, "count"):
        return bool(point.count == sent.count) or reading.now - last.now < FAST["histogram_interval"] * SECOND
    return bool(point.value == sent.value)


@given(
    st.sampled_from([0.01, 0.1]),
    steps(acts(VALUES), acts(st.sampled_from([10, 100, 1000, 0, -5, inf])), gaps=IRREGULAR, events=EVENTS),
)
def test_a_share_of_another_metric_bounds_what_is_held(share: float, script: list[Step]) -> None:
    """Of the limit as it was last read, in this export or in the one before."""
    used, limit = Series("used"), Series("limit")
    rules = {
        "used": Rule(delta=0.5, share=share, share_of="limit", group="g"),
        "limit": Rule(delta=inf, group="g"),
    }
    story = Story([used, limit], rules, linger=0, **FAST).play(script)
    limits = [r for r in story.readings if r.key == limit.key]
    for reading, held in with_held(story, used.key):
        near = [r.point.value for r in limits if r.export <= reading.export][-2:]
        delta = max([0.5, *(share * value for value in near)])
        assert within(reading.point.value, held.point.value, delta, 0)


# Policies

CHANGES = st.sampled_from(
    [{"delta": 0}, {"delta": 2}, {"relative": 0.5}, {"kind": "off"}, {"kind": "state"}, {"thresholds": (Threshold(1),)}]
)
OVERRIDES = st.lists(
    st.builds(
        Override,
        st.sampled_from(["*", "room.*", "room.?emperature", "[qr]oom.humidity", "Room.*", "room"]),
        CHANGES,
        st.sampled_from([None, {"side": "north"}, {"side": "*"}, {"side": "s*", "floor": "1"}, {"floor": "?"}]),
    ),
    max_size=4,
)
ROOMS = [
    Series(name, attributes=attributes)
    for name in ("room.temperature", "room.humidity")
    for attributes in ((), (("side", "north"),), (("side", "south"), ("floor", 1)))
]


def ruled(series: Series, rules: dict[str, Rule], overrides: list[Override]) -> Rule:
    """The rule as the page says it: later ones win, and a stated measure replaces all three."""
    fields: dict[str, Any] = {f: getattr(rules[series.name], f) for f in ("kind", "delta", "relative", "thresholds")}
    carried = {k: str(v) for k, v in series.attributes}
    for override in overrides:
        fits = all(k in carried and fnmatchcase(carried[k], p) for k, p in (override.attributes or {}).items())
        if fits and fnmatchcase(series.name, override.metric):
            if {"delta", "relative"} & set(override.changes):
                fields.update(delta=0, relative=0)
            fields.update(override.changes)
    if fields["kind"] == "state":
        fields.update(delta=0, relative=0)  # every change
    return Rule(**fields)


@given(OVERRIDES, steps(*(acts(VALUES) for _ in ROOMS), most=8))
def test_the_users_rules_hold(overrides: list[Override], script: list[Step]) -> None:
    rules = {"room.temperature": Rule(delta=1, relative=0.1), "room.humidity": Rule(relative=0.2)}
    story = Story(ROOMS, rules, overrides, linger=0, **FAST).play(script)
    for series in ROOMS:
        rule = ruled(series, rules, overrides)
        read, arrived = story.read(series.key), story.arrived(series.key)
        if rule.kind == "off":
            assert [r.tag for r in read] == [s.tag for s in arrived]
        for reading, held in with_held(story, series.key):
            assert within(reading.point.value, held.point.value, rule.delta, rule.relative)
            assert all(on_its_side(reading.point.value, held.point.value, t) for t in rule.thresholds)
        for before, after in pairwise(arrived):
            inside = within(after.point.value, before.point.value, rule.delta, rule.relative)
            crossed = not all(on_its_side(after.point.value, before.point.value, t) for t in rule.thresholds)
            aged = after.point.time_unix_nano - before.point.time_unix_nano >= 2.5 * SECOND
            assert rule.kind == "off" or not inside or crossed or aged


@given(steps(*(absent(acts(v)) for v in (VALUES, VALUES, ODD_GAINS, GAINS)), gaps=IRREGULAR), st.sampled_from([0, 2]))
def test_off_passes_every_reading(script: list[Step], linger: int) -> None:
    series = [Series(shape, shape) for shape in ("gauge", "updown", "counter", "histogram")]
    rules = {s.name: Rule(kind="off") for s in series}
    story = Story(series, rules, linger=linger, **FAST).play(script).end()
    for one in series:
        assert [r.tag for r in story.read(one.key)] == [s.tag for s in story.arrived(one.key) if not s.mark]

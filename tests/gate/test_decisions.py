"""The pure parts: hold, trend, shape, policy, clock."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isclose, isnan, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf.gate import hold, shape
from otelperf.gate.clock import Clock
from otelperf.gate.policy import UNKNOWN, Override, Policy, Rule, Threshold
from otelperf.gate.trend import Trend, _View, extrapolated, watch

SECOND = 1_000_000_000
VALUES = st.floats(allow_nan=True, allow_infinity=True)
FINITE = st.floats(-1e6, 1e6)


# Hold


@pytest.mark.parametrize(
    ("value", "held", "delta", "relative", "expected"),
    [
        (1.0, 1.0, 0.0, 0.0, False),
        (1.1, 1.0, 0.0, 0.0, True),
        (3.0, 1.0, 2.0, 0.0, False),  # strict: exactly the delta stays
        (3.0000001, 1.0, 2.0, 0.0, True),
        (-1.0, 1.0, 2.0, 0.0, False),
        (110.0, 100.0, 0.0, 0.1, False),
        (110.1, 100.0, 0.0, 0.1, True),
        (-111.0, -100.0, 0.0, 0.1, True),
        (105.0, 100.0, 1.0, 0.1, False),  # the larger of the two is in force
        (0.1, 0.0, 0.0, 0.5, True),  # a share of nothing is nothing
        (nan, 1.0, 5.0, 5.0, True),
        (nan, nan, 0.0, 0.0, False),
        (1.0, nan, 5.0, 5.0, True),
        (inf, 1.0, 5.0, 5.0, True),
        (inf, inf, 0.0, 0.1, False),
        (1.0, inf, 5.0, 5.0, True),
        (-inf, inf, 5.0, 0.0, True),
        (nan, inf, 0.0, 0.1, True),
    ],
)
def test_a_value_has_moved(value: float, held: float, delta: float, relative: float, expected: bool) -> None:
    assert expected == hold.moved(value, held, delta, relative)


@given(VALUES, VALUES, st.floats(0, 1e6), st.floats(0, 1))
def test_a_value_that_has_not_moved_is_within_the_bound(
    value: float, held: float, delta: float, relative: float
) -> None:
    if not hold.moved(value, held, delta, relative):
        assert (isnan(value) and isnan(held)) or value == held or abs(value - held) <= max(delta, relative * abs(held))


@pytest.mark.parametrize(
    ("value", "held", "expected"),
    [
        (0.81, 0.79, True),
        (0.80, 0.79, False),  # an alert asks for more than the threshold
        (0.79, 0.81, False),  # within the margin on the way back
        (0.78, 0.81, True),
        (0.79, 0.80, False),
        (0.95, 0.85, True),
        (0.81, nan, True),
        (0.5, nan, False),
        (nan, 0.85, True),
        (nan, nan, False),
        (inf, 0.5, True),
    ],
)
def test_a_value_has_crossed_a_threshold(value: float, held: float, expected: bool) -> None:
    assert expected == hold.crossed(value, held, (Threshold(0.8, margin=0.02), Threshold(0.9, margin=0.02)))


def test_a_threshold_may_be_bad_below() -> None:
    low = (Threshold(10.0, "below", 1.0),)
    assert [hold.crossed(9, 11, low), hold.crossed(10.5, 9, low), hold.crossed(11, 9, low)] == [True, False, True]


@given(FINITE, FINITE, FINITE, st.floats(0, 100), st.sampled_from(["above", "below"]))
def test_what_has_not_crossed_is_on_the_same_side_or_within_the_margin(
    value: float, held: float, at: float, margin: float, worse: str
) -> None:
    if not hold.crossed(value, held, (Threshold(at, worse, margin),)):  # type: ignore[arg-type] # sampled
        sign = 1 if worse == "above" else -1
        same_side = (sign * value > sign * at) == (sign * held > sign * at)
        assert same_side or at - margin <= value <= at + margin


# Trend


def increase_as_prometheus_has_it(samples: list[tuple[float, float]], at: float, window: float) -> float | None:
    """Written anew from extrapolatedRate in prometheus/promql/functions.go (v3), in any one unit of time; no resets here."""
    range_start, range_end = at - window, at
    points = [(t, v) for t, v in samples if range_start < t <= range_end]
    if len(points) < 2:
        return None
    result = points[-1][1] - points[0][1]
    duration_to_start = points[0][0] - range_start
    duration_to_end = range_end - points[-1][0]
    sampled_interval = points[-1][0] - points[0][0]
    average_duration = sampled_interval / (len(points) - 1)
    threshold = average_duration * 1.1
    if duration_to_start >= threshold:
        duration_to_start = average_duration / 2
    if result > 0 and points[0][1] >= 0:
        duration_to_zero = sampled_interval * (points[0][1] / result)
        duration_to_start = min(duration_to_start, duration_to_zero)
    if duration_to_end >= threshold:
        duration_to_end = average_duration / 2
    return result * (sampled_interval + duration_to_start + duration_to_end) / sampled_interval


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 1000)), min_size=1, max_size=20), st.integers(0, 130))
def test_the_extrapolation_is_that_of_prometheus(steps: list[tuple[int, int]], later: int) -> None:
    samples, time, value = [], 0, 0
    for gap, gain in steps:
        time, value = time + gap, value + gain
        samples.append((time, value))
    expected = increase_as_prometheus_has_it(
        [(t * SECOND, float(v)) for t, v in samples], (time + later) * SECOND, 120 * SECOND
    )
    start = (time + later - 120) * SECOND
    inside = [(t * SECOND, float(v)) for t, v in samples if t * SECOND > start]
    assert (expected is None) == (len(inside) < 2)
    if expected is not None:
        (begin, first), (end, last) = inside[0], inside[-1]
        to_end = (time + later) * SECOND - end
        actual = extrapolated(last - first, first, end - begin, len(inside), begin - start, to_end)
        assert isclose(expected, actual, rel_tol=1e-9, abs_tol=1e-9)


WATCH = watch(120 * SECOND)


def test_a_steady_counter_is_read_right_from_few_points() -> None:
    trend = Trend(0, 0.0)
    for second in range(1, 101):
        if second in {30, 60, 90}:
            trend.sent(second * SECOND, second * 10.0, WATCH)
        else:
            trend.held(second * SECOND, second * 10.0, WATCH)
    assert trend.due(101 * SECOND, 1010.0, WATCH, 0.0, 0.1) == []
    assert trend.due(101 * SECOND, 2000.0, WATCH, 0.0, 0.1)[-1] == (101 * SECOND, 2000.0)


def test_a_rate_that_matters_needs_two_points() -> None:
    assert Trend(0, 0.0).due(SECOND, 5.0, WATCH, 10.0, 0.0) == []
    assert Trend(0, 0.0).due(SECOND, 11.0, WATCH, 10.0, 0.0) == [(SECOND, 11.0)]


def test_two_readings_go_where_one_is_not_enough() -> None:
    """Nothing sent lies in the last minute: one point in it would be no answer."""
    trend = Trend(0, 0.0)
    trend.sent(SECOND, 0.0, WATCH)
    for second in range(2, 100):
        trend.held(second * SECOND, float(second), WATCH)
    due = trend.due(100 * SECOND, 100.0, WATCH, 10.0, 0.0)
    assert len(due) >= 2
    assert due == sorted(due)


def test_what_stands_still_is_remembered_by_few_readings() -> None:
    trend = Trend(0, 7)
    for second in range(1, 500):
        trend.held(second * SECOND, 7, WATCH)
    assert trend.value_at(250 * SECOND, 500 * SECOND, 7) == 7
    assert len(trend._times) <= 32


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=400))
def test_what_is_remembered_of_a_counter_is_bounded(gains: list[int]) -> None:
    trend, value = Trend(0, 0), 0
    for tick, gain in enumerate(gains * 4, 1):
        value += gain
        trend.held(tick * SECOND // 10, value, WATCH)
    assert len(trend._times) <= 1000
    assert sorted(trend._values) == list(trend._values)


@pytest.mark.parametrize("value", [2**62, 2**53 + 1, 0.1])
def test_a_reading_sent_late_is_exactly_what_was_read(value: float) -> None:
    trend = Trend(0, value)
    for second in range(1, 10):
        trend.held(second * SECOND, value + second, WATCH)
    late = trend.due(100 * SECOND, value + 1000, WATCH, 1.0, 0.0)
    assert {point for point in late if point[0] < 100 * SECOND} <= {(s * SECOND, value + s) for s in range(10)}


def test_a_counter_that_turns_from_whole_to_broken_numbers_begins_its_memory_anew() -> None:
    trend = Trend(0, 1)
    trend.held(10 * SECOND, 1.5, WATCH)
    trend.held(20 * SECOND, 2, WATCH)
    trend.held(30 * SECOND, 2**53 + 1, WATCH)
    assert trend.reading(30 * SECOND, WATCH) == (30 * SECOND, 2**53 + 1)
    assert trend.reading(20 * SECOND, WATCH) is None


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50) | st.sampled_from([0, 500])), min_size=1, max_size=80),
    st.sampled_from([20, 60, 120]),
    st.sampled_from([(0.0, 0.1), (30.0, 0.25), (5.0, 0.0)]),
)
def test_what_is_remembered_is_in_order_and_the_quick_look_agrees_with_the_views(
    steps: list[tuple[int, int]], rate_window: int, tolerated: tuple[float, float]
) -> None:
    watched, time, value = watch(rate_window * SECOND), 0, 0
    trend = Trend(0, 0)
    for gap, gain in steps * 3:
        time, value = time + gap * SECOND, value + gain
        views = [_View(trend, time, value, window, *tolerated) for window in watched.windows]
        errors = [view.error() for view in views if view.tolerated]
        if trend.sent_values[0] != value and all(abs(error - 1) > 1e-6 for error in errors):
            wrong = any(view.error() > 1 for view in views)
            assert wrong == trend._misread(time, value, watched, *tolerated)
        due = trend.due(time, value, watched, *tolerated)
        for point in due:
            trend.sent(*point, watched)
        if (time, value) not in due:
            trend.held(time, value, watched)
        assert list(trend._times) == sorted(set(trend._times))
        assert trend.sent_times == sorted(set(trend.sent_times))
        assert len(trend._times) == len(trend._values)


# Shape


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 0, 0, 0), ()),
        ((10, 0, 0, 0), (0.5, 0.95, 0.99)),
        ((0, 10, 0, 0), (1.5, 1.95, 1.99)),
        ((0, 0, 0, 10), (4.0, 4.0, 4.0)),
        ((5, 5, 0, 0), (1.0, 1.9, 1.98)),
        ((0, 50, 0, 50), (2.0, 4.0, 4.0)),
    ],
)
def test_quantiles_are_interpolated(counts: tuple[int, ...], expected: tuple[float, ...]) -> None:
    assert expected == pytest.approx(shape.quantiles((1.0, 2.0, 4.0), counts))


@pytest.mark.parametrize(("count", "found"), [(1, 0), (2, 1), (19, 1), (20, 2), (99, 2), (100, 3)])
def test_a_quantile_may_need_some_that_are_above_it(count: int, found: int) -> None:
    assert found == len(shape.quantiles((1.0, 2.0), (count, 0, 0), above=1))


def test_a_histogram_without_bounds_has_no_quantile() -> None:
    assert shape.quantiles((), (5,)) == ()


@given(st.lists(st.integers(-3, 1000), min_size=4, max_size=4))
def test_quantiles_never_fail_and_lie_within_the_bounds(counts: list[int]) -> None:
    found = shape.quantiles((1.0, 2.0, 4.0), counts)
    if min(counts) >= 0:
        assert all(0.0 <= value <= 4.0 for value in found)


@pytest.mark.parametrize(
    ("answer", "true", "expected"),
    [
        ((1.0, 2.0), (1.0, 2.0), 0.0),
        ((1.5, 2.0), (1.0, 2.0), 0.5),
        ((1.0, 1.5), (1.0, 2.0), 0.25),
        ((0.0, 1.0), (0.0, 0.0), inf),
        ((), (1.0, 2.0), inf),
        ((), (), 0.0),
    ],
)
def test_how_far_quantiles_are_off(answer: tuple[float, ...], true: tuple[float, ...], expected: float) -> None:
    assert expected == shape.error(answer, true)


# Policy


def test_an_unknown_metric_follows_the_rule_of_its_data_type() -> None:
    policy = Policy()
    assert {kind: policy.rule("x", kind, {}) for kind in UNKNOWN} == dict(UNKNOWN)


def test_later_overrides_win_and_match_by_glob_and_attribute() -> None:
    policy = Policy(
        {"a.b": Rule(delta=1.0, group="g")},
        (Override("a.*", {"delta": 2.0}), Override("a.b", {"delta": 3.0}, {"state": "u*"})),
    )
    assert Rule(delta=2.0, group="g") == policy.rule("a.b", "gauge", {})
    assert Rule(delta=3.0, group="g") == policy.rule("a.b", "gauge", {"state": "used"})
    assert UNKNOWN["gauge"] == policy.rule("b", "gauge", {"state": "used"})


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Policy([Rule()]), "Policy: rules is [Rule("),  # type: ignore[arg-type]
        (
            lambda: Policy({"a": 5}),  # type: ignore[dict-item]
            "Policy: rules has 5 for 'a', expected a Rule for a metric's name, such as Rule(delta=5)",
        ),
        (lambda: Policy({3: Rule()}), "for 3, expected a Rule for a metric's name"),  # type: ignore[dict-item]
        (lambda: Policy({}, Override("a", {})), "expected a list of Override"),  # type: ignore[arg-type]
        (lambda: Policy({}, [5]), "Policy: overrides has 5, expected an Override, such as Override("),  # type: ignore[list-item]
        (lambda: Policy({}, [Override(3, {})]), "Override: metric is 3, expected a metric's name"),  # type: ignore[arg-type]
        (lambda: Policy({}, [Override("a", 5)]), "Override of a: changes is 5, expected a mapping"),  # type: ignore[arg-type]
        (lambda: Policy({}, [Override("a", {}, "b")]), "Override of a: attributes is 'b', expected a mapping"),  # type: ignore[arg-type]
        (
            lambda: Policy({}, [Override("a", {"delat": 5})]),
            "Override of a: 'delat' is nothing of a Rule, expected some",
        ),
        (lambda: Policy({}, [Override("a", {3: 5})]), "Override of a: 3 is nothing of a Rule"),  # type: ignore[dict-item]
        (
            lambda: Policy({}, [Override("a", {"delta": "5"})]),
            "Override of a: Rule: delta is '5', expected a number of 0 or more",
        ),
        (lambda: Rule(kind="held"), "Rule: kind is 'held', expected one of hold, trend, "),  # type: ignore[arg-type]
        (lambda: Rule(thresholds=Threshold(1)), "Rule: thresholds is Threshold("),  # type: ignore[arg-type]
        (lambda: Rule(thresholds=(1,)), "Rule: thresholds is (1,), expected a tuple of Threshold"),  # type: ignore[arg-type]
    ],
)
def test_a_policy_that_would_fail_in_each_export_is_refused_in_words(make: Callable[[], object], expected: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(expected)):
        make()


def test_a_stated_measure_replaces_the_others() -> None:
    policy = Policy({"a": Rule(delta=1.0, relative=0.5, share=0.1)}, (Override("a", {"delta": 0.0}),))
    assert Rule() == policy.rule("a", "gauge", {})


def test_a_rule_made_for_another_data_type_falls_back() -> None:
    policy = Policy(
        {"h": Rule(kind="histogram"), "g": Rule(kind="hold", delta=1), "t": Rule(kind="trend", relative=0.2)}
    )
    assert UNKNOWN["gauge"] == policy.rule("h", "gauge", {})
    assert UNKNOWN["histogram"] == policy.rule("g", "histogram", {})
    assert Rule(kind="hold", relative=0.2) == policy.rule("t", "gauge", {})
    assert Rule(kind="hold", delta=1) == policy.rule("g", "monotonic", {})


# Clock


@dataclass
class Hands:
    wall: int = 1_000 * SECOND
    monotonic: int = 0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.monotonic)

    def run(self, seconds: float) -> None:
        self.wall += int(seconds * SECOND)
        self.monotonic += int(seconds * SECOND)


def test_the_clock_goes_with_the_wall() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.run(1)
    assert clock() == hands.wall


def test_the_clock_follows_a_jump_forward_at_once() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.run(1)
    hands.wall += 3600 * SECOND
    assert clock() == hands.wall


def test_the_clock_runs_at_half_speed_while_it_is_ahead() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.run(1)
    before = clock()
    hands.wall -= 10 * SECOND
    hands.run(2)
    assert clock() - before == SECOND
    for _ in range(20):
        hands.run(1)
        now = clock()
    assert abs(now - hands.wall) <= SECOND // 2 + 1
    hands.run(5)
    assert clock() - now == 5 * SECOND


@given(st.lists(st.tuples(st.integers(-(10**13), 10**13), st.integers(0, 10**11)), max_size=30))
def test_the_clock_never_steps_back(moves: list[tuple[int, int]]) -> None:
    hands = Hands()
    clock = hands.clock()
    last = clock()
    for wall, monotonic in moves:
        hands.wall += wall
        hands.monotonic += monotonic
        now = clock()
        assert now > last
        last = now


def test_a_clock_says_how_far_it_is_ahead_and_steps_back_when_told() -> None:
    wall, monotonic = [1000 * SECOND], [0]
    clock = Clock(lambda: wall[0], lambda: monotonic[0])
    wall[0] -= 100 * SECOND
    monotonic[0] += SECOND
    clock()
    assert clock.ahead == 101 * SECOND
    clock.follow()
    assert clock.ahead == 0
    monotonic[0] += SECOND
    wall[0] += SECOND
    assert clock() == wall[0]


@pytest.mark.parametrize("wrong", [{"delta": -1}, {"relative": "5"}, {"heartbeat": float("nan")}])
def test_a_rule_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a number of 0 or more"):
        Rule(**wrong)

"""The scorer against values worked out by hand, and against a plain transcription of Prometheus' own function."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, inf, isclose, nan
from sys import float_info

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf.savings.score import Errors, Points, difference, held, rates, typical


def points(*pairs: tuple[float, float], late: int = 0) -> Points:
    """Return points at seconds, which arrive *late* ms after their time."""
    times = [round(second * 1000) for second, _ in pairs]
    return Points(times, [value for _, value in pairs], [time + late for time in times])


def rate(stored: Points, second: float, window: float) -> float | None:
    return next(rates(stored, [round(second * 1000)], round(window * 1000)))


def test_a_steady_counter_has_its_rate() -> None:
    stored = points(*((float(second), 100 + 2.0 * second) for second in range(0, 61, 15)))
    assert rate(stored, 60, 60) == 2.0


def test_the_window_is_open_on_its_left() -> None:
    stored = points((0, 1000), (60, 1060), (120, 1180))
    assert rate(stored, 120, 120) == 120 * (60 + 60) / 60 / 120  # the first is out, the line is drawn on over 60 s
    assert rate(stored, 120, 60) is None


def test_a_gap_at_the_end_is_drawn_on_by_half_a_spacing() -> None:
    # Increase 30 in 30 s, spacing 10; 20 s to the start is more than 11, so 5; 70 s to the end is, too, so 5.
    stored = points((20, 1020), (30, 1030), (40, 1040), (50, 1050))
    assert rate(stored, 120, 120) == 30 * (30 + 5 + 5) / 30 / 120


def test_a_counter_is_not_drawn_on_below_zero() -> None:
    # Increase 40 in 40 s; 10 s to the start would be -9 at its beginning, and the zero is 1 s away.
    stored = points((10, 1), (20, 11), (30, 21), (40, 31), (50, 41))
    assert rate(stored, 50, 50) == 40 * (40 + 1 + 0) / 40 / 50


def test_a_reset_counts_from_zero() -> None:
    stored = points((10, 100), (20, 110), (30, 5), (40, 15))
    assert rate(stored, 40, 40) == pytest.approx((110 - 100 + 5 + 10) * (30 + 10 + 0) / 30 / 40)


def test_a_second_point_is_needed() -> None:
    assert rate(points((10, 1)), 10, 60) is None
    assert rate(points(), 10, 60) is None


def test_what_has_not_arrived_is_not_read() -> None:
    stored = points((0, 0), (10, 10), (20, 20), late=5000)
    assert rate(stored, 12, 60) is None
    assert rate(stored, 15, 60) is not None
    assert list(held(stored, [0, 4999, 5000, 26_000], live=True)) == [None, None, 0, 20]
    assert list(held(stored, [0, 4999, 5000, 10_000])) == [0, 0, 0, 10]


def test_a_point_that_comes_after_a_newer_one_is_read_where_its_time_belongs() -> None:
    stored = Points([0, 20_000, 10_000], [0.0, 20.0, 15.0], [0, 20_000, 30_000])
    assert list(held(stored, [10_000, 20_000, 30_000])) == [15, 20, 20]
    assert list(held(stored, [10_000, 20_000, 30_000], live=True)) == [0, 20, 20]
    both = list(rates(stored, [25_000, 30_000], 100_000))
    assert both == [
        prometheus_says([(0, 0), (20_000, 20)], 25_000, 100_000),
        prometheus_says([(0, 0), (10_000, 15), (20_000, 20)], 30_000, 100_000),
    ]


def prometheus_says(samples: list[tuple[int, float]], now: int, window: int) -> float | None:
    """``extrapolatedRate`` of prometheus/promql/functions.go (v0.314), line by line, without start timestamps."""
    inside = [(time, value) for time, value in samples if now - window < time <= now]
    if len(inside) < 2:
        return None
    (first_time, first), (last_time, last) = inside[0], inside[-1]
    result = last - first
    for (_, before), (_, after) in pairwise(inside):
        if after < before:
            result += before
    duration_to_start = (first_time - (now - window)) / 1000
    duration_to_end = (now - last_time) / 1000
    sampled_interval = (last_time - first_time) / 1000
    average = sampled_interval / (len(inside) - 1)
    threshold = average * 1.1
    if duration_to_start >= threshold:
        duration_to_start = average / 2
    duration_to_zero = duration_to_start
    if result > 0 and first >= 0:
        duration_to_zero = sampled_interval * (first / result)
    duration_to_start = min(duration_to_zero, duration_to_start)
    if duration_to_end >= threshold:
        duration_to_end = average / 2
    factor = (sampled_interval + duration_to_start + duration_to_end) / sampled_interval
    return result * factor / (window / 1000)


series = st.lists(
    st.tuples(st.integers(1, 40_000), st.floats(0, 1e6)), min_size=1, max_size=30
)  # (ms since the last, value); a value that falls is a reset


@given(series, st.integers(1000, 200_000), st.lists(st.integers(0, 90_000), min_size=30, max_size=30))
def test_rates_are_those_of_prometheus_whenever_the_points_arrive(
    steps: list[tuple[int, float]], window: int, delays: list[int]
) -> None:
    time, samples = 0, []
    for (step, value), delay in zip(steps, delays, strict=False):
        time += step
        samples.append((time + delay, time, value))
    arrived = sorted(samples, key=lambda each: each[0])
    stored = Points([t for _, t, _ in arrived], [value for *_, value in arrived], [arrival for arrival, *_ in arrived])
    instants = sorted({when for arrival, time, _ in samples for when in (time, arrival, arrival + 1000)})
    for now, found in zip(instants, rates(stored, instants, window), strict=True):
        expected = prometheus_says([(time, value) for arrival, time, value in samples if arrival <= now], now, window)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert isclose(found, expected, rel_tol=1e-6, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("read", "true", "typical", "expected"),
    [
        (10.0, 10.0, 10.0, 0.0),
        (9.0, 10.0, 5.0, 0.1),
        (11.0, 10.0, 5.0, 1 / 11),
        (0.0, 10.0, 5.0, 1.0),
        (None, 10.0, 5.0, 1.0),  # no answer
        (None, 0.0, 5.0, 0.0),
        (0.001, 0.0, 10.0, 0.0001),  # small beside what the series usually is
        (0.0, 0.0, 0.0, 0.0),
        (1e-300, 0.0, 0.0, 1.0),
        (-5.0, 5.0, 1.0, 2.0),
        (nan, nan, 1.0, 0.0),
        (nan, 1.0, 1.0, 1.0),
        (1.0, nan, 1.0, 1.0),
        (inf, inf, 1.0, 0.0),
        (-inf, inf, 1.0, 1.0),
        (-1e308, 1e308, 1e308, 2.0),
        (-1.7e308, 1e308, 0.0, 2.7 / 1.7),
        (1.0, inf, 1.0, 1.0),
    ],
)
def test_an_error_is_a_share(read: float | None, true: float, typical: float, expected: float) -> None:
    assert difference(read, true, typical) == pytest.approx(expected)


@given(st.floats(1e-3, 1e6), st.floats(0, 0.5), st.floats(-1, 1), st.floats(0, 1e6))
def test_what_a_relative_delta_lets_pass_is_never_a_larger_error(
    held_: float, delta: float, move: float, usual: float
) -> None:
    assert difference(held_, held_ * (1 + move * delta), usual) <= delta + 1e-9


def test_what_is_typical_leaves_out_what_is_not_finite() -> None:
    assert typical([1.0, -3.0, nan, inf]) == 2.0
    assert typical([nan]) == 0.0
    assert typical([1e308, -1e308, inf]) == 1e308
    assert typical([float_info.max] * 3) == pytest.approx(float_info.max)
    assert typical([]) == 0.0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_within_a_hundredth_and_never_too_small(found: list[float], share: float) -> None:
    errors = Errors()
    for each in found:
        errors.add(each)
    exact = sorted(found)[ceil(share * len(found)) - 1]
    answer = errors.quantile(share)
    assert answer is not None
    assert exact - 1e-12 <= answer <= exact * 1.0101 + 1e-12
    assert (errors.count, errors.worst) == (len(found), max(e if e >= 1e-12 else 0.0 for e in found))


def test_merged_errors_are_those_of_both() -> None:
    one, other = Errors(), Errors()
    one.add(0.0, times=98)
    other.add(0.5)
    other.add(1.0)
    one.merge(other)
    assert (one.count, one.worst, one.quantile(0.98)) == (100, 1.0, 0.0)
    assert one.quantile(0.99) == pytest.approx(0.5, rel=0.01)
    assert Errors().quantile(0.99) is None

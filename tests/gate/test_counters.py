"""Monotonic counters: exact, carried by lines, read right at the moment, and no total lost."""

from __future__ import annotations

from itertools import pairwise
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import MetricExportResult

from otelperf.gate.policy import Rule
from tests.gate.test_decisions import increase_as_prometheus_has_it
from tests.gate.world import MS, SCOPE, SECOND, START, World, buckets, counter, data, gauge, histogram, number

TEN_PERCENT = Rule(kind="trend", relative=0.1)
GAINS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 20) | st.sampled_from([0, 0, 0, 1000])), min_size=1, max_size=12
)  # runs of (seconds, gain each second)


def spread(runs: list[tuple[int, int]]) -> list[int]:
    totals = [0]
    for seconds, gain in runs:
        for _ in range(seconds):
            totals.append(totals[-1] + gain)
    return totals


def test_a_steady_counter_needs_two_points_in_the_shortest_window() -> None:
    world = World({"m": TEN_PERCENT})
    for second in range(2001):
        world.count(second * 100)
    world.flush()
    times = [t for t, _ in world.series()]
    assert len([t for t in times if t > 1000]) <= 1000 / 20


def test_an_idle_counter_only_beats() -> None:
    world = World({"m": TEN_PERCENT})
    for _ in range(201):
        world.count(7)
    world.flush()
    assert [t for t, _ in world.series()] == [0, 50, 100, 150, 200]


def test_a_jump_is_told_at_once() -> None:
    world = World({"m": TEN_PERCENT})
    for second in range(30):
        world.count(0 if second < 20 else (second - 19) * 100)
    world.flush()
    assert (20, 100) in world.series()


def test_every_change_is_told_if_nothing_is_tolerated() -> None:
    world = World({"m": Rule(kind="trend")})
    for second in range(30):
        world.count(second * 10)
    world.flush()
    assert world.series() == [(t, t * 10) for t in range(30)]


@given(GAINS, st.sampled_from([0.1, 0.25]), st.sampled_from([0, 30]))
def test_every_value_sent_is_a_reading_at_its_own_time(
    runs: list[tuple[int, int]], relative: float, delta: float
) -> None:
    world = World({"m": Rule(kind="trend", relative=relative, delta=delta)})
    totals = spread(runs)
    for total in totals:
        world.count(total)
    world.gate.end_streams()
    series = world.series()
    assert dict(series) == {t: totals[int(t)] for t, _ in series}
    assert len(series) == len(dict(series))
    assert max(series) == (max(t for t, _ in series), totals[-1])


WINDOWS = {
    60: (0.5, 2**0.5),
    120: (1.0, 1.0),
    300: (2.5, 0.4**0.5),
}  # seconds: what multiplies the delta, and the share


@given(GAINS, st.sampled_from([0.1, 0.25]), st.sampled_from([10, 30]))
def test_what_rate_reads_now_is_what_the_readings_say(
    runs: list[tuple[int, int]], relative: float, delta: float
) -> None:
    """The live promise, at each tick and in each window, from what was let out up to then.

    Readings are remembered 3 s apart (or 10 s, where it stands still), so a window's start is known to what that brought.
    Where no one or two of them bring the rate nearer it may be off by more, for a few seconds.
    """
    world = World({"m": Rule(kind="trend", relative=relative, delta=delta)}, linger=0)
    totals = spread(runs)
    outside = dict.fromkeys(WINDOWS, 0)
    for second, total in enumerate(totals):
        world.count(total)
        if second % 5:
            continue
        sent: list[tuple[float, float]] = [(t * SECOND, v) for t, v in sorted(world.series())]
        for window, (widen, narrow) in WINDOWS.items():
            start = max(0, second - window)
            true = total - totals[start]
            tolerated = max(delta * widen, relative * narrow * true)
            tolerated += totals[min(second, start + 3)] - totals[max(0, start - 3)]
            read = increase_as_prometheus_has_it(sent, second * SECOND, window * SECOND)
            outside[window] = outside[window] + 1 if abs((read or 0.0) - true) > tolerated * 1.01 else 0
            assert outside[window] <= 2  # looks, five seconds apart


def test_a_counter_that_has_stopped_is_read_right_while_its_last_gains_leave_the_window() -> None:
    """A hundred a second, then nothing: what lies before the first point in the window would not be seen, so it is sent late."""
    world = World({"m": Rule(kind="trend", relative=0.25, delta=10)})
    for second in range(600):
        world.count(min(second, 300) * 100)
        if second in range(310, 420):
            read = increase_as_prometheus_has_it(
                [(int(t * SECOND), v) for t, v in sorted(world.series())], second * SECOND, 120 * SECOND
            )
            true = max(0, 300 - (second - 120)) * 100
            assert read is not None
            assert abs(read - true) <= 0.26 * true + 300
    times = [t for t, _ in world.series()]
    assert times != sorted(times)
    assert world.gate.stats.emitted["previous"] > 0


def test_without_earlier_points_times_only_rise() -> None:
    world = World({"m": Rule(kind="trend", relative=0.25, delta=10)}, previous=False)
    for second in range(600):
        world.count(min(second, 300) * 100)
    world.flush()
    times = [t for t, _ in world.series()]
    assert times == sorted(times)
    assert world.gate.stats.emitted["previous"] == 0


# Resets


def test_a_fall_is_a_reset_and_both_sides_go() -> None:
    world = World({"m": Rule(kind="trend", relative=0.5, delta=100)})
    for value in (1000, 1010, 1020, 5, 6):
        world.count(value, start=0)
    world.flush()
    assert world.series() == [(0, 1000), (2, 1020), (3, 5)]
    starts = [(p.start_time_unix_nano - START) // SECOND for p in world.points()]
    assert starts == [0, 0, 2]  # first seen; after the reset the time of the last reading before it


def test_a_new_start_time_is_a_reset_even_without_a_fall() -> None:
    world = World({"m": Rule(kind="trend", relative=0.5, delta=100)})
    for value, start in ((1000, START), (1010, START), (1020, START + 2 * SECOND)):
        world.count(value, start=start)
    world.flush()
    assert world.series() == [(0, 1000), (1, 1010), (2, 1020)]
    assert world.points()[-1].start_time_unix_nano == START + 2 * SECOND


def test_the_jitter_of_a_computed_start_time_is_no_reset() -> None:
    world = World({"m": Rule(kind="trend", relative=0.5, delta=100)})
    for value, start in ((1000, START), (1010, START + SECOND // 2), (1020, START)):
        world.count(value, start=start)
    world.flush()
    assert world.series() == [(0, 1000)]


def test_a_reset_after_a_failed_request_loses_no_total() -> None:
    from opentelemetry.sdk.metrics.export import MetricExportResult

    world = World({"m": TEN_PERCENT}, linger=0)
    world.count(1000)
    world.recorder.answers = [MetricExportResult.FAILURE]
    world.count(5000)
    world.count(3)
    assert world.series() == [(0, 1000), (1, 5000), (2, 3)]


def test_the_last_total_goes_before_the_mark() -> None:
    world = World({"m": Rule(kind="trend", relative=0.5, delta=100)})
    for value in (1000, 1010, 1020):
        world.count(value)
    world.gate.shutdown()
    assert world.series() == [(0, 1000), (2, 1020)]
    assert [p.time_unix_nano > START + 2 * SECOND for p in world.marks()] == [True]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60), st.sampled_from([0, START]))
def test_no_total_is_lost_over_resets(values: list[int], start: int) -> None:
    """Any series is a counter with resets: the sum of its rises must come through."""
    world = World({"m": Rule(kind="trend", relative=0.3, delta=20)})
    for value in values:
        world.count(value, start=start)
    world.gate.shutdown()
    assert total_of(values) == total_of([int(v) for v in world.values()])
    times = [p.time_unix_nano for p in world.points()]
    assert times == sorted(set(times))
    assert all(p.start_time_unix_nano <= p.time_unix_nano for p in world.points())


def total_of(values: list[int]) -> int:
    total = values[0]
    for before, value in pairwise(values):
        total += value - before if value >= before else value
    return total


# Odd numbers


def test_a_counter_that_turns_nan_is_told_once_on_entry_and_once_on_leaving() -> None:
    world = World({"m": TEN_PERCENT})
    for value in (5.0, 5.0, nan, nan, nan, 6.0, 6.0):
        world.count(value)
    world.flush()
    assert [(t, str(v)) for t, v in world.series()] == [(0, "5.0"), (2, "nan"), (5, "6.0")]


def test_a_counter_that_turns_infinite_is_told_once() -> None:
    world = World({"m": TEN_PERCENT})
    for value in (5.0, inf, inf, inf):
        world.count(value)
    world.flush()
    assert world.series() == [(0, 5.0), (1, inf)]


def test_a_counter_under_another_rule_keeps_its_resets_and_its_last_total() -> None:
    world = World({"m": Rule(kind="heartbeat")})
    for value in (10, 20, 30, 1, 2):
        world.tick(counter("m", number(world.now, value)))
    world.gate.shutdown()
    assert world.series() == [(0, 10), (2, 30), (3, 1), (4, 2)]


# Beginnings


def watching(**options: Any) -> World:
    """Return a world whose gate trusts the start times of its scope, and has looked once."""
    world = World(
        {"m": Rule(kind="trend", relative=0.25), "h": Rule(kind="histogram")}, from_zero=(SCOPE.name,), **options
    )
    world.show(1, name="other")
    return world


def test_a_counter_that_begins_while_the_gate_watches_begins_with_0() -> None:
    world = watching()
    world.tick(seconds=9.5)
    began = world.now
    world.now += SECOND // 2
    world.count(3, start=began)
    world.flush()
    assert world.series() == [(10.5, 0), (11.0, 3)]
    assert {point.start_time_unix_nano for point in world.points()} == {began}
    assert world.gate.stats.emitted["beginning"] == 1


def test_so_does_a_histogram() -> None:
    world = watching()
    began = world.now + MS
    world.now += SECOND
    world.tick(histogram("h", buckets(world.now, (0, 2, 0, 0, 1), start=began)))
    world.flush()
    zero, first = world.points("h")
    assert (zero.time_unix_nano, zero.count, zero.sum, list(zero.bucket_counts)) == (began, 0, 0.0, [0] * 5)
    assert (first.count, list(first.bucket_counts)) == (3, [0, 2, 0, 0, 1])


@pytest.mark.parametrize(
    ("value", "ago", "options"),
    [
        (0, 0.5, {}),  # nothing was gained yet
        (3, 400, {}),  # no window reaches back so far
        (3, 0.5, {"previous": False}),  # older points may not be sent
    ],
)
def test_a_counter_begins_with_its_first_reading(value: float, ago: float, options: dict[str, Any]) -> None:
    world = watching(**options)
    world.tick(seconds=500)
    world.count(value, start=world.now - int(ago * SECOND))
    world.flush()
    assert world.values() == [value]


def test_of_what_is_there_at_the_first_look_nobody_knows_the_beginning() -> None:
    world = World({"m": Rule(kind="trend")}, from_zero=(SCOPE.name,))
    world.count(3, start=START - SECOND)
    world.flush()
    assert world.values() == [3]


def test_start_times_of_other_scopes_are_not_trusted() -> None:
    world = World({"m": Rule(kind="trend")})
    world.tick()
    world.count(3, start=world.now - MS)
    world.flush()
    assert world.values() == [3]


def test_a_reset_that_nobody_would_see_is_shown_by_a_0() -> None:
    world = watching()
    for _ in range(10):
        world.count(100)
    world.count(150, start=world.now - 5 * MS)
    world.flush()
    assert world.values() == [100, 0, 150]


def test_a_reset_that_shows_needs_no_0() -> None:
    world = watching()
    for _ in range(10):
        world.count(100)
    world.count(50, start=world.now - 5 * MS)
    world.flush()
    assert world.values() == [100, 50]


def test_a_counter_that_returns_does_not_begin_anew() -> None:
    world = watching(gone_after=2)
    world.now += SECOND
    began = world.now - MS
    world.count(3, start=began)
    for _ in range(10):
        world.tick()
    world.count(5, start=began)
    world.flush()
    assert world.values() == [0, 3, 5]
    assert len(world.marks()) == 1


def test_a_0_whose_request_failed_is_sent_again() -> None:
    world = watching(linger=0)
    world.recorder.answers = [MetricExportResult.FAILURE]
    began = world.now + MS
    world.now += SECOND
    world.count(1, start=began)
    world.count(1, start=began)
    assert sorted(world.values()) == [0, 1]


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 1, 1, 5, 60, 400]), st.integers(0, 3) | st.none(), st.booleans()), max_size=30
    )
)
def test_whatever_happens_a_beginning_is_where_a_life_began_and_before_its_readings(
    script: list[tuple[int, int | None, bool]],
) -> None:
    """*script*: seconds since the last look, what was gained (None: the counter is not listed), whether it began anew."""
    world = watching(gone_after=20)
    starts: list[int] = []
    read: set[tuple[int, float]] = set()
    value = 0
    for seconds, gain, anew in script:
        world.now += seconds * SECOND
        if anew or not starts:
            starts.append(world.now - SECOND // 2)
            value = 0
        value += gain or 0
        seen = [] if gain is None else [number(world.now, value, start=starts[-1])]
        read |= {(point.time_unix_nano, point.value) for point in seen}
        world.gate.export(data(counter("m", *seen), gauge("other", number(world.now, 1))))
    world.flush()
    sent = [(point.time_unix_nano, point.value) for point in world.points()]
    beginnings = [point for point in sent if point not in read]
    assert [value for _, value in beginnings] == [0] * len(beginnings)
    assert {time for time, _ in beginnings} <= set(starts)
    assert len(beginnings) == len(set(beginnings)) == world.gate.stats.emitted["beginning"]

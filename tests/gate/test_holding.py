"""Gauges, states, heartbeats, groups and the linger, through the gate."""

from __future__ import annotations

from itertools import pairwise
from math import inf, isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf.gate.policy import Rule, Threshold
from tests.gate.world import SECOND, START, World, counter, gauge, number, updown

HALF = Rule(delta=0.5)


def last_before(series: list[tuple[float, float]], second: float) -> float:
    return [value for time, value in series if time <= second][-1]


# First sight and hold


def test_first_sight_goes_at_once() -> None:
    world = World({"m": HALF})
    world.show(1.0)
    assert world.series() == [(0, 1.0)]


def test_a_value_within_the_delta_is_held() -> None:
    world = World({"m": HALF})
    for value in (1.0, 1.5, 0.5, 1.2):
        world.show(value)
    world.flush()
    assert world.values() == [1.0]
    assert (world.gate.stats.seen, world.gate.stats.suppressed) == (4, 3)


def test_a_value_past_the_delta_goes_with_its_own_time() -> None:
    world = World({"m": HALF})
    for value in (1.0, 1.4, 1.6, 1.2):
        world.show(value)
    world.flush()
    assert world.series() == [(0, 1.0), (2, 1.6)]


def test_an_unknown_gauge_is_told_to_one_percent() -> None:
    world = World()
    for value in (100.0, 101.0, 101.1):
        world.show(value)
    world.flush()
    assert world.values() == [100.0, 101.1]


def test_each_change_of_an_unknown_up_down_counter_is_told() -> None:
    world = World()
    for value in (3, 3, 4, 4, 3):
        world.tick(updown("m", number(world.now, value)))
    world.flush()
    assert world.series() == [(0, 3), (2, 4), (4, 3)]


def test_a_byte_gauge_may_move_by_a_share_of_its_limit() -> None:
    rules = {"used": Rule(share=0.01, share_of="limit", group="memory"), "limit": Rule(group="memory")}
    world = World(rules)
    for used in (100, 110, 111, 100):
        world.tick(gauge("used", number(world.now, used)), gauge("limit", number(world.now, 1000)))
    world.flush()
    assert world.values("used") == [100, 111, 100]


def test_off_passes_everything_new() -> None:
    world = World({"m": Rule(kind="off")})
    for _ in range(5):
        world.show(1.0)
    world.flush()
    assert [time for time, _ in world.series()] == [0, 1, 2, 3, 4]


def test_a_metric_that_only_beats_never_tells_a_change() -> None:
    world = World({"m": Rule(kind="heartbeat")})
    for second in range(101):
        world.show(second * 1000.0)
    world.flush()
    assert [time for time, _ in world.series()] == [0, 50, 100]


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.floats(-3, 3), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.25]),
)
def test_at_every_instant_the_held_value_is_within_its_bound(
    values: list[float], delta: float, relative: float, margin: float
) -> None:
    world = World({"m": Rule(delta=delta, relative=relative, thresholds=(Threshold(1.0, margin=margin),))})
    for value in values:
        world.show(value)
    world.flush()
    series = world.series()
    for second, value in enumerate(values):
        held = last_before(series, second)
        if isnan(value) or isnan(held):
            assert isnan(value) == isnan(held)
        else:
            assert value == held or abs(value - held) <= max(delta, relative * abs(held))
            assert (value > 1.0) == (held > 1.0) or 1.0 - margin <= value <= 1.0


def test_nan_goes_once_on_entry_and_once_on_leaving() -> None:
    world = World({"m": HALF})
    for value in (1.0, nan, nan, nan, 1.0, 1.0):
        world.show(value)
    world.flush()
    assert [(t, str(v)) for t, v in world.series()] == [(0, "1.0"), (1, "nan"), (4, "1.0")]


def test_infinities_are_values() -> None:
    world = World({"m": Rule(delta=0.5, relative=0.5)})
    for value in (1.0, inf, inf, -inf, 1.0):
        world.show(value)
    world.flush()
    assert world.series() == [(0, 1.0), (1, inf), (3, -inf), (4, 1.0)]


def test_every_transition_of_a_state_goes_at_once() -> None:
    world = World({"m": Rule(kind="state")})
    for state in (0, 1, 0, 0, 2, 0):
        world.show(state)
    assert world.series() == [(0, 0), (1, 1), (2, 0), (4, 2), (5, 0)]
    assert len(world.recorder.requests) == 5


def test_crossing_a_threshold_skips_the_linger() -> None:
    world = World({"m": Rule(delta=0.5, thresholds=(Threshold(0.9, margin=0.02),))})
    for value in (0.89, 0.91, 0.89, 0.88):
        world.show(value)
    assert world.series() == [(0, 0.89), (1, 0.91), (3, 0.88)]
    assert world.gate.stats.emitted["threshold"] == 2


# Heartbeat


def test_a_still_stream_beats() -> None:
    world = World({"m": HALF})
    for _ in range(201):
        world.show(1.0)
    world.flush()
    assert [time for time, _ in world.series()] == [0, 50, 100, 150, 200]


def test_a_repeated_reading_never_beats() -> None:
    world = World({"m": HALF})
    for _ in range(200):
        world.tick(gauge("m", number(START, 1.0)))
    world.flush()
    assert world.series() == [(0, 1.0)]
    assert world.marks() == []


def test_a_reading_repeated_after_its_clock_was_set_back_never_beats() -> None:
    world = World({"m": HALF})
    world.show(1.0)
    for _ in range(200):
        world.tick(gauge("m", number(START - 3600 * SECOND, 1.0)))
    world.flush()
    assert world.series() == [(0, 1.0)]


def test_a_rule_may_have_its_own_heartbeat() -> None:
    world = World({"m": Rule(delta=1, heartbeat=10)})
    for _ in range(31):
        world.show(1.0)
    world.flush()
    assert [time for time, _ in world.series()] == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("streams", "step"), [(1, 1.0), (1, 7.0), (1, 15.0), (1, 30.0), (60, 1.0), (260, 5.0), (260, 30.0)]
)
def test_two_heartbeats_are_never_further_apart_than_one_and_half_a_tick(streams: int, step: float) -> None:
    world = World({f"m{i}": HALF for i in range(streams)})
    world.now += 17 * SECOND
    for _ in range(int(400 / step)):
        world.tick(*(gauge(f"m{i}", number(world.now, 1.0)) for i in range(streams)), seconds=step)
    world.flush()
    beats: dict[str, list[float]] = {}
    for name, _, point in world.arrivals():
        beats.setdefault(name, []).append((point.time_unix_nano - START) / SECOND)
    assert len(beats) == streams
    for times in beats.values():
        gaps = [b - a for a, b in pairwise(times)]
        assert max(gaps) <= 50 + step / 2
        assert all(
            len([t for t in times if end - 120 < t <= end]) >= 2 for end in range(int(times[1]) + 1, int(times[-1]), 7)
        )


def test_the_streams_of_a_resource_share_few_phases() -> None:
    world = World({f"m{i}": HALF for i in range(260)})
    for _ in range(301):
        world.tick(*(gauge(f"m{i}", number(world.now, 1.0)) for i in range(260)))
    before = len(world.recorder.requests)
    for _ in range(50):
        world.tick(*(gauge(f"m{i}", number(world.now, 1.0)) for i in range(260)))
    assert 1 < len(world.recorder.requests) - before <= 6


def test_the_heartbeat_of_a_state_lingers_as_any_other() -> None:
    world = World({"m": Rule(kind="state")})
    for _ in range(52):
        world.show(1)
    assert [time for time, _ in world.series()] == [0]
    world.flush()
    assert [time for time, _ in world.series()] == [0, 50]


# Groups


def test_a_group_goes_together() -> None:
    rules = {"hits": Rule(delta=10, group="cache"), "queries": Rule(delta=10, group="cache"), "other": Rule(delta=10)}
    world = World(rules)
    for second in range(10):
        world.tick(
            *(
                gauge(name, number(world.now, second * step))
                for name, step in (("hits", 1), ("queries", 4), ("other", 1))
            )
        )
    world.flush()
    assert world.series("hits") == [(0, 0), (3, 3), (6, 6), (9, 9)]
    assert world.series("queries") == [(0, 0), (3, 12), (6, 24), (9, 36)]
    assert world.series("other") == [(0, 0)]


def test_a_group_is_split_by_attributes_except_those_within() -> None:
    world = World({"cpu": Rule(delta=1, group="cpu", within=("mode",))})
    for second in range(2):
        world.tick(
            gauge(
                "cpu",
                *(
                    number(
                        world.now, second * (5 if cpu == "0" and mode == "user" else 0.1), {"cpu": cpu, "mode": mode}
                    )
                    for cpu in "01"
                    for mode in ("user", "idle")
                ),
            )
        )
    world.flush()
    second_tick = {(*sorted(dict(a).values()),) for _, a, p in world.arrivals() if p.time_unix_nano > START}
    assert second_tick == {("0", "user"), ("0", "idle")}


def test_a_member_that_still_has_the_value_sent_is_left_out() -> None:
    world = World({"cpu": Rule(delta=1, group="cpu", within=("mode",))})
    for second in range(2):
        modes = {"user": 5.0 * second, "idle": 0.1 * second, "nice": 0.0}
        world.tick(gauge("cpu", *(number(world.now, value, {"mode": mode}) for mode, value in modes.items())))
    world.flush()
    assert [dict(a)["mode"] for _, a, p in world.arrivals() if p.time_unix_nano > START] == ["user", "idle"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=60))
def test_after_every_emission_the_ratio_of_a_group_is_right(gains: list[tuple[int, int]]) -> None:
    rules = {name: Rule(kind="trend", relative=0.2, delta=20, group="cache") for name in ("hits", "queries")}
    world = World(rules, linger=0)
    truth: dict[float, tuple[int, int]] = {}
    hits = queries = 0
    for second, (hit, miss) in enumerate(gains):
        hits, queries = hits + hit, queries + hit + miss
        truth[second] = hits, queries
        world.tick(counter("hits", number(world.now, hits)), counter("queries", number(world.now, queries)))
        sent = [dict(world.series(name)) for name in ("hits", "queries")]
        assert sent[0] == {t: truth[t][0] for t in sent[0]}
        assert sent[1] == {t: truth[t][1] for t in sent[1]}
        newest = max(*sent[0], *sent[1])
        assert truth[newest] == (sent[0][max(sent[0])], sent[1][max(sent[1])])


# Linger


def test_what_is_no_change_lingers_five_seconds_at_most() -> None:
    world = World({"m": HALF})
    world.show(0.0)
    arrived = []
    for second in range(1, 12):
        before = len(world.points())
        world.show(float(second), attributes={"new": second})
        if len(world.points()) > before:
            arrived.append((second, [int(t) for t, _ in world.series()[before:]]))
    assert arrived == [(6, [1, 2, 3, 4, 5, 6])]


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 2.5]), min_size=1, max_size=1), st.integers(0, 6))
def test_nothing_waits_longer_than_the_linger(steps: list[float], linger: int) -> None:
    world = World({"m": HALF}, linger=float(linger))
    value, seen = 0.0, 0
    for _ in range(60):
        now, value = world.now, value + 1
        world.show(value, seconds=steps[0])
        for point in world.points()[seen:]:
            assert now - point.time_unix_nano <= linger * SECOND
        seen = len(world.points())
        waiting = list(range(seen, int(value)))
        assert not waiting or (now - START) / SECOND - seen * steps[0] <= linger


def test_a_slow_reader_does_not_linger_at_all() -> None:
    world = World({"m": HALF})
    for value in (1.0, 2.0, 3.0):
        before = len(world.points())
        world.show(value, seconds=60)
        assert len(world.points()) == before + 1


def test_something_urgent_takes_along_what_lingers() -> None:
    world = World({"m": HALF, "up": Rule(kind="state")})
    world.tick(gauge("m", number(world.now, 1.0)), gauge("up", number(world.now, 1)))
    world.tick(gauge("m", number(world.now, 2.0, {"new": 1})), gauge("up", number(world.now, 1)))
    assert world.values() == [1.0]
    world.tick(gauge("m", number(world.now, 2.0)), gauge("up", number(world.now, 0)))
    assert (world.values(), world.values("up")) == ([1.0, 2.0, 2.0], [1, 0])


def test_a_flush_sends_what_lingers() -> None:
    world = World({"m": HALF})
    world.show(1.0)
    world.show(2.0, attributes={"new": 1})
    assert world.values() == [1.0]
    assert world.gate.force_flush()
    assert (world.values(), world.recorder.flushes) == ([1.0, 2.0], 1)

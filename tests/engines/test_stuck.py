"""Stuck engines: requests run, and nothing moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from otelperf.sources.engines.stuck import Stuck

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
ONE = ()
TWO = (("otelperf.server.engine.index", "1"),)


def verdicts(stuck: Stuck, *readings: tuple[float, float, float | None]) -> list[bool]:
    """Judge one engine at (second, running, steps)."""
    return [
        stuck.judge(START + int(at * SECOND), {ONE: running}, {ONE: (steps,)})[ONE] for at, running, steps in readings
    ]


def test_an_engine_is_stuck_after_the_time_without_a_step_and_no_more_at_the_first() -> None:
    readings = [
        (0, 2, 100),
        (5, 2, 100),
        (30, 2, 100),
        (55, 2, 100),
        (60, 2, 100),
        (65, 2, 100),
        (70, 2, 101),
        (75, 2, 101),
    ]
    assert verdicts(Stuck(60), *readings) == [False, False, False, False, True, True, False, False]


def test_the_time_begins_when_the_request_was_seen_to_run_not_when_the_last_one_ended() -> None:
    readings = [(0, 0, 100), (1000, 0, 100), (1005, 1, 100), (1035, 1, 100), (1064, 1, 100), (1065, 1, 100)]
    assert verdicts(Stuck(60), *readings) == [False, False, False, False, False, True]


def test_an_engine_without_requests_is_not_stuck() -> None:
    assert not any(verdicts(Stuck(60), *((second, 0, 100) for second in range(0, 600, 5))))


def test_an_engine_whose_requests_went_away_is_no_longer_stuck() -> None:
    readings = [(0, 1, 5), (30, 1, 5), (60, 1, 5), (65, 0, 5), (70, 1, 5)]
    assert verdicts(Stuck(60), *readings) == [False, False, True, False, False]


def test_one_long_gap_between_two_readings_is_not_enough() -> None:
    assert verdicts(Stuck(60), (0, 1, 5), (600, 1, 5), (605, 1, 5), (630, 1, 5)) == [False, False, False, True]


def test_time_in_which_the_server_did_not_answer_does_not_count() -> None:
    stuck = Stuck(60)
    assert verdicts(stuck, (0, 1, 5), (30, 1, 5)) == [False, False]
    stuck.interrupted()
    assert verdicts(stuck, (55, 1, 5), (80, 1, 5), (85, 1, 5)) == [False, False, True]


def test_a_stuck_engine_is_still_stuck_after_a_reading_that_failed() -> None:
    stuck = Stuck(60)
    assert verdicts(stuck, (0, 1, 5), (30, 1, 5), (60, 1, 5))[-1]
    stuck.interrupted()
    assert verdicts(stuck, (65, 1, 5)) == [True]


def test_engines_are_judged_by_themselves() -> None:
    stuck = Stuck(60)
    for second in range(0, 65, 5):
        found = stuck.judge(START + second * SECOND, {ONE: 1, TWO: 1}, {ONE: (5,), TWO: (float(second),)})
    assert found == {ONE: True, TWO: False}


def test_an_engine_that_does_not_tell_its_steps_is_not_judged() -> None:
    assert Stuck(60).judge(START, {ONE: 1}, {}) == {}
    assert Stuck(60).judge(START, {}, {ONE: (1,)}) == {}


STEPS = st.lists(
    st.tuples(st.floats(0.1, 40), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60
)  # seconds since the last reading, requests, steps done


@given(STEPS, st.floats(1, 120))
def test_stuck_means_that_nothing_was_done_for_that_long_while_requests_ran(
    readings: list[tuple[float, int, int]], after: float
) -> None:
    stuck, now, done, idle_since = Stuck(after), 0.0, 0, 0.0
    for passed, running, steps in readings:
        now, done = now + passed, done + steps
        if steps or not running:
            idle_since = now
        if stuck.judge(int(now * SECOND), {ONE: running}, {ONE: (float(done),)})[ONE]:
            assert running > 0
            assert now - idle_since >= after - 1e-6


@given(st.lists(st.tuples(st.floats(0.1, 20), st.integers(1, 9)), min_size=1, max_size=60), st.floats(41, 120))
def test_whoever_steps_within_the_time_is_never_stuck(readings: list[tuple[float, int]], after: float) -> None:
    stuck, now = Stuck(after), 0.0
    for number, (passed, running) in enumerate(readings):
        now += passed
        assert not stuck.judge(int(now * SECOND), {ONE: running}, {ONE: (float(number // 2),)})[ONE]

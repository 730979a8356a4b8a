"""A budget: deltas widen as far as it takes, evenly, and nothing falls silent."""

from __future__ import annotations

import logging
import random
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import MetricExportResult

from otelperf.gate.budget import Account, Budget
from otelperf.gate.policy import Rule, Threshold
from tests.gate.world import SECOND, START, World, arrivals, buckets, counter, gauge, histogram, number

# The account


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("wanted", [0.5, 3.0, 20.0])
def test_spending_settles_at_the_allowance_without_overshoot(power: float, wanted: float) -> None:
    """*wanted* allowances a minute are asked for at factor 1; that falls as a power of the factor, as with a random walk."""
    account = Account(100, 1.0, 0)
    factors, spent = [], 0.0
    for second in range(1, 3601):
        factor = account.pay(second * SECOND)
        samples = wanted * 100 / 60 * factor**-power
        account.spend(samples)
        factors.append(factor)
        spent += samples if second > 3000 else 0
    settled = max(1.0, wanted ** (1 / power))
    assert spent / 10 == pytest.approx(min(wanted, 1.0) * 100, rel=0.02)
    assert factors[-1] == pytest.approx(settled, rel=0.02)
    assert max(factors) <= settled * 1.02


@given(st.lists(st.tuples(st.integers(0, 10 * SECOND), st.integers(0, 50)), max_size=200), st.floats(0.1, 1.0))
def test_the_factor_tells_all_that_was_overspent(steps: list[tuple[int, int]], finest: float) -> None:
    account, now, spent, allowed = Account(60, finest, 0), 0, 0.0, 0.0
    for passed, samples in steps:
        now += passed
        account.pay(now)
        account.spend(samples)
        spent += samples
        allowed += passed / SECOND
        assert finest * 0.999 <= account.factor <= 1000.001
        if not account.exhausted:
            from math import log

            assert spent - allowed <= 120 * log(account.factor) + 1e-6


def test_a_clock_that_steps_back_pays_nothing() -> None:
    account = Account(60, 1.0, 100 * SECOND)
    account.spend(60)
    before = account.factor
    assert account.pay(50 * SECOND) == before
    assert account.pay(51 * SECOND) < before


@pytest.mark.parametrize(
    "wrong",
    [
        {"total": 0},
        {"per_stream": -1},
        {"total": inf},
        {"total": nan},
        {"total": 10**400},
        {"total": True},
        {"finest": 0},
        {"finest": 2},
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Budget: "):
        Budget(**wrong)


# In the gate


def walk(world: World, seconds: int, streams: int = 20, *, seed: int = 1, step: float = 1.0) -> list[float]:
    """Let gauges walk at random; return the factor at each second. All are checked against the bound in force."""
    dice = random.Random(seed)
    values = [0.0] * streams
    factors: list[float] = []
    held: dict[int, Any] = {dict(a)["n"]: p for _, a, p in world.arrivals()}
    for _ in range(seconds):
        before = len(world.recorder.requests)
        values = [value + dice.gauss(0, step) for value in values]
        world.tick(gauge("m", *(number(world.now, value, {"n": n}) for n, value in enumerate(values))))
        bound = world.gate.bounds()["m"].delta
        arrived = (arrival for request in world.recorder.requests[before:] for arrival in arrivals(request))
        held |= {dict(a)["n"]: p for _, a, p in arrived}
        for n, value in enumerate(values):
            assert abs(value - held[n].value) <= bound + 1e-9
        factors.append(world.gate.stats.factor)
    return factors


def test_the_budget_is_kept_and_the_bound_in_force_is_told() -> None:
    world = World({"m": Rule(delta=0.5)}, budget=Budget(total=120), linger=0)
    factors = walk(world, 900)
    before = world.gate.stats.samples
    factors = walk(world, 600, seed=2)
    assert (world.gate.stats.samples - before) / 10 == pytest.approx(120, rel=0.1)
    assert max(factors[60:]) / min(factors[60:]) < 1.5
    assert world.gate.bounds()["m"].delta == pytest.approx(0.5 * world.gate.stats.factor, rel=0.1)


def test_without_need_the_rules_stand_as_they_are() -> None:
    world = World({"m": Rule(delta=0.5)}, budget=Budget(total=100_000), linger=0)
    assert set(walk(world, 60)) == {1.0}


def test_what_is_left_can_be_spent_on_finer_deltas() -> None:
    world = World({"m": Rule(delta=50.0)}, budget=Budget(total=600, finest=0.01), linger=0)
    walk(world, 600)
    assert world.gate.stats.factor < 0.5


def test_each_stream_can_have_a_budget_of_its_own() -> None:
    world = World({"m": Rule(delta=0.5)}, budget=Budget(per_stream=4), linger=0)
    dice, busy, calm = random.Random(1), 0.0, 0.0
    for _ in range(1800):
        busy, calm = busy + dice.gauss(0, 5), calm + dice.gauss(0, 0.05)
        world.tick(gauge("m", number(world.now, busy, {"n": "busy"}), number(world.now, calm, {"n": "calm"})))
    sent = [dict(a)["n"] for _, a, p in world.arrivals() if p.time_unix_nano > START + 600 * SECOND]
    assert sent.count("busy") / 20 == pytest.approx(4, rel=0.15)
    assert sent.count("calm") / 20 < 2.5
    assert world.gate.stats.factor == 1.0
    assert world.gate.bounds()["m"].delta > 2


def test_a_burst_widens_deltas_and_silences_nothing() -> None:
    world = World({"m": Rule(delta=0.5)}, budget=Budget(total=60), linger=0)
    walk(world, 300)
    walk(world, 120, step=100.0, seed=3)
    latest = {dict(a)["n"]: p.time_unix_nano for _, a, p in world.arrivals()}
    assert min(latest.values()) >= world.now - 51 * SECOND


def test_states_and_thresholds_are_exempt() -> None:
    rules = {
        "noise": Rule(delta=0.01),
        "up": Rule(kind="state"),
        "full": Rule(delta=1.0, thresholds=(Threshold(0.9),)),
    }
    world = World(rules, budget=Budget(total=10), linger=0)
    for second in range(300):
        world.tick(
            gauge("noise", *(number(world.now, second * (n + 1.0), {"n": n}) for n in range(10))),
            gauge("up", number(world.now, second // 7 % 2)),
            gauge("full", number(world.now, 0.85 + 0.1 * (second // 11 % 2))),
        )
    assert world.gate.stats.factor > 10
    assert world.gate.stats.emitted["state"] == 299 // 7
    assert world.gate.stats.emitted["threshold"] == 299 // 11
    assert {"up", "full", "noise"} & world.gate.bounds().keys() == {"full", "noise"}


def test_counters_are_read_within_the_widened_tolerance() -> None:
    world = World({"m": Rule(kind="trend", relative=0.1)}, budget=Budget(total=3), linger=0)
    dice, total = random.Random(4), 0
    for second in range(900):
        total += dice.choice([0, 0, 0, 50]) if second // 60 % 2 else 1
        world.tick(counter("m", number(world.now, total)))
    assert world.gate.bounds()["m"].relative == pytest.approx(0.1 * world.gate.stats.factor, rel=0.1)
    assert world.gate.stats.samples / 15 < 12


def test_a_budget_below_what_heartbeats_cost_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World({"m": Rule(delta=1.0)}, budget=Budget(total=1), linger=0)
    with caplog.at_level(logging.WARNING):
        walk(world, 900)
    assert sum("budget is less than" in record.message for record in caplog.records) == 1
    assert world.gate.stats.factor == pytest.approx(1000, rel=0.5)


@pytest.mark.parametrize(("native", "expected"), [(False, 7 + 1), (True, 1 + 1)])
def test_a_histogram_is_counted_as_it_is_stored(native: bool, expected: int) -> None:
    world = World(native_histograms=native, linger=0)
    world.tick(histogram("h", buckets(world.now, (1, 0, 0, 0, 0))))
    assert world.gate.stats.samples == expected  # with the sample of target_info


def test_two_times_in_a_request_are_two_samples_of_target_info() -> None:
    world = World()
    world.show(1.0)
    world.show(1.0, attributes={"new": 1})
    world.show(1.0, attributes={"new": 2})
    before = world.gate.stats.samples
    world.flush()
    assert world.gate.stats.samples - before == 2 + 2


def test_what_failed_is_not_counted_as_sent() -> None:
    world = World(budget=Budget(total=10), linger=0)
    world.recorder.answers = [MetricExportResult.FAILURE] * 60
    for _ in range(60):
        world.show(1.0)
    assert (world.gate.stats.samples, world.gate.stats.factor) == (0, 1.0)


def test_a_budget_of_a_stream_below_what_its_heartbeats_cost_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World(budget=Budget(per_stream=2), linger=0)
    with caplog.at_level(logging.WARNING):
        for second in range(1800):
            world.tick(histogram("h", buckets(world.now, (second, 0, 0, 0, 0))))
    assert [r.args for r in caplog.records if "a stream's budget is less" in r.message] == [("h",)]


# Settings that cannot be meant


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat": 0},
        {"heartbeat": inf},
        {"linger": -1},
        {"rate_window": 0},
        {"rate_window": nan},
        {"histogram_interval": -5},
        {"spacing": nan, "previous": False},
        {"spacing": 5},
        {"spacing": 60, "previous": False},
        {"max_streams": 0},
        {"gone_after": -1},
        {"max_points": -1},
        {"budget": 100},
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^DeltaGate: "):
        World(**wrong)


# Spacing


def test_a_clock_that_is_set_back_ends_the_wait_for_the_spacing() -> None:
    world = World({"m": Rule(kind="state")}, spacing=5.0, previous=False, linger=0)
    for value in range(10):
        world.show(value)
    world.now -= 3600 * SECOND
    world.gate.rebase()
    before = len(world.points())
    for value in range(20):
        world.show(value)
    assert len(world.points()) - before == 4


def test_points_of_a_stream_keep_their_spacing_and_the_newest_wins() -> None:
    world = World({"m": Rule(delta=0.5)}, spacing=5.0, previous=False, linger=0)
    for second in range(12):
        world.show(float(second))
    assert world.series() == [(0, 0.0), (5, 5.0), (10, 10.0)]


def test_where_no_older_point_may_go_no_request_has_two_of_a_stream() -> None:
    world = World({"m": Rule(kind="trend", relative=0.1)}, previous=False)
    for value in (100, 200, 300, 5, 6):
        world.count(value, start=0)
    world.gate.shutdown()
    assert all(
        len(r.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points) == 1 for r in world.recorder.requests
    )
    times = [t for t, _ in world.series()]
    assert times == sorted(times)
    assert (2, 300) in world.series()

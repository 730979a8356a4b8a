"""Time integrals: what is added up, what a gap does, and that ``rate()`` of what is sent is the mean."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import NumberDataPoint
from opentelemetry.sdk.resources import Resource

from otelperf import catalog
from otelperf.gate.marks import is_mark
from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Policy
from otelperf.integrals import Integrals
from otelperf.points import SCOPE_NAME, Points
from otelperf.readings import Batch, Buckets, Reading, Snapshot
from tests.gate.test_decisions import increase_as_prometheus_has_it
from tests.gate.world import Recorder, arrivals

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
GAUGE = "otelperf.server.active_requests"
INTEGRAL = f"{GAUGE}.integral"
RUNNING = {"otelperf.request.state": "running"}
WAITING = {"otelperf.request.state": "waiting"}
RECORDED = Path(__file__).parent / "captures" / "llama.cpp-11434" / "series-1s.jsonl.gz"


def made(pattern: str = "otelperf.server.*", interval: float = 1.0) -> Integrals:
    return Integrals([pattern], {"server": interval})


def at(seconds: float) -> int:
    return START + int(seconds * SECOND)


def snapshot(seconds: float, *readings: Reading, read: float | None = None) -> Snapshot:
    """A server's batch in a snapshot; *read* is when it was read, if that was earlier."""
    batch = Batch("server", "server http://a", at(seconds if read is None else read), readings)
    return Snapshot(at(seconds), (batch,), ())


def running(value: float) -> Reading:
    return Reading(GAUGE, value, RUNNING)


def added(integrals: Integrals, told: Snapshot) -> list[tuple[float, float]]:
    """Return second and total of each integral in the snapshot."""
    batches = integrals.added_to(told).batches
    return [
        ((batch.time - START) / SECOND, float(reading.value))
        for batch in batches
        for reading in batch.readings
        if reading.name == INTEGRAL and not isinstance(reading.value, Buckets)
    ]


def totals(integrals: Integrals, *values: float, step: float = 1.0) -> list[tuple[float, float]]:
    return [found for n, value in enumerate(values) for found in added(integrals, snapshot(n * step, running(value)))]


def test_each_value_is_held_until_the_next_reading() -> None:
    assert totals(made(), 2, 5, 0, 0, 1) == [(0, 0), (1, 2), (2, 7), (3, 7), (4, 7)]


def test_time_counts_in_seconds_whatever_the_interval() -> None:
    assert totals(made(interval=5.0), 2, 3, 0, step=5.0) == [(0, 0), (5, 10), (10, 25)]


def test_attribute_sets_and_entities_are_integrated_apart() -> None:
    integrals = made()
    for second in range(3):
        batches = tuple(
            Batch("server", entity, at(second), (running(many), Reading(GAUGE, 10 * many, WAITING)))
            for entity, many in (("server http://a", 1), ("server http://b", 2))
        )
        told = integrals.added_to(Snapshot(at(second), batches, ()))
    found = [(b.entity[-1], r.attributes, r.value) for b in told.batches[2:] for r in b.readings]
    assert found == [("a", RUNNING, 2), ("a", WAITING, 20), ("b", RUNNING, 4), ("b", WAITING, 40)]


def test_the_snapshot_keeps_what_it_had_and_the_start_is_when_integration_began() -> None:
    integrals = made()
    integrals.added_to(snapshot(3, running(2)))
    told = snapshot(4, running(2))
    with_integral = integrals.added_to(told)
    assert with_integral.batches[:1] == told.batches
    assert with_integral.batches[1] == Batch(
        "server", "server http://a", at(4), (Reading(INTEGRAL, 2.0, RUNNING, at(3)),)
    )


def test_only_what_is_asked_for_and_averaged_is_integrated() -> None:
    readings = (running(1), Reading("otelperf.server.up", 1), Reading("otelperf.server.batch.size", 1))
    for pattern, names in (
        ("otelperf.server.*", {INTEGRAL, "otelperf.server.up.integral"}),
        (GAUGE, {INTEGRAL}),
        ("system.*", set()),
    ):
        told = made(pattern).added_to(snapshot(0, *readings))
        assert {reading.name for batch in told.batches[1:] for reading in batch.readings} == names


def test_nothing_asked_for_is_nothing_done() -> None:
    told = snapshot(0, running(1))
    assert Integrals([], {}).added_to(told) is told


# Gaps


def test_a_reading_repeated_with_its_old_time_repeats_the_integral_with_its_old_time() -> None:
    integrals = made(interval=5.0)
    assert totals(integrals, 2, 2, step=5.0) == [(0, 0), (5, 10)]
    for second in range(6, 30):
        assert added(integrals, snapshot(second, running(2), read=5)) == [(5, 10)]


def test_one_reading_too_few_is_bridged_more_are_a_gap() -> None:
    integrals = made()
    totals(integrals, 2)
    assert added(integrals, snapshot(2.4, running(3))) == [(2.4, 4.8)]
    assert added(integrals, snapshot(5, running(4))) == [(5, 4.8)]
    assert added(integrals, snapshot(6, running(4))) == [(6, 8.8)]


def test_a_series_that_is_gone_is_forgotten_and_begins_anew() -> None:
    integrals = made()
    totals(integrals, 2, 2)
    assert added(integrals, snapshot(2)) == []
    assert integrals._streams == {}
    returned = integrals.added_to(snapshot(3, running(2))).batches[1].readings[0]
    assert (returned.value, returned.start) == (0, at(3))


def test_a_source_that_is_gone_is_forgotten() -> None:
    integrals = made()
    totals(integrals, 2, 2)
    integrals.added_to(Snapshot(at(2), (), ()))
    assert integrals._streams == {}


@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf, -1.0])
def test_over_what_cannot_be_added_the_total_stands_at_its_old_time(unknown: float) -> None:
    found = totals(made(), 2, unknown, unknown, unknown, 3, 3)
    assert found == [(0, 0), (1, 2), (1, 2), (1, 2), (4, 2), (5, 5)]


def test_a_series_that_begins_with_nan_is_not_told_to_be_known() -> None:
    assert totals(made(), math.nan, math.nan, 4, 4) == [(0, 0), (0, 0), (2, 0), (3, 4)]


def test_a_clock_that_was_set_back_begins_anew() -> None:
    integrals = made()
    totals(integrals, 2, 2, 2)
    assert added(integrals, snapshot(-100, running(2))) == [(-100, 0)]
    assert added(integrals, snapshot(-99, running(2))) == [(-99, 2)]


READ = st.tuples(st.integers(0, 6), st.none() | st.floats())


@given(st.lists(READ, max_size=30))
def test_it_never_falls_nor_runs_ahead_and_its_times_rise(reads: list[tuple[int, float | None]]) -> None:
    """For any values, gaps and disappearances."""
    integrals, second, before = made(), 0, None
    for gap, value in reads:
        second += gap
        found = added(integrals, snapshot(second, *([] if value is None else [running(value)])))
        assert len(found) == (value is not None)
        if not found:
            before = None
            continue
        (time, total), *_ = found
        assert time <= second
        assert total >= 0
        if before is not None:
            assert time >= before[0]
            assert total >= before[1]
            assert time > before[0] or total == before[1]
        before = (time, total)


# Through the gate


def sent(values: Sequence[float], interval: float = 1.0) -> dict[str, list[tuple[float, float]]]:
    """Let a gauge and its integral through the gate; return (second, value) of what was sent of each."""
    now, recorder = START, Recorder()
    points = Points({"server http://a": Resource({"service.name": "a"})}, "1")
    gate = DeltaGate(recorder, Policy(catalog.rules()), lambda: now, complete=[SCOPE_NAME])
    integrals = made(interval=interval)
    for n, value in enumerate(values):
        now = at(n * interval)
        gate.export(points.of(integrals.added_to(snapshot(n * interval, running(value)))))
    gate.force_flush()
    found: dict[str, list[tuple[float, float]]] = {}
    for request in recorder.requests:
        for name, _, point in arrivals(request):
            if isinstance(point, NumberDataPoint) and not is_mark(point):
                found.setdefault(name, []).append(((point.time_unix_nano - START) / SECOND, point.value))
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def recorded() -> list[float]:
    with gzip.open(RECORDED, "rt") as lines:
        return [json.loads(line)["llamacpp:requests_processing"] for line in lines]


def test_the_rate_of_the_integral_is_the_mean_and_the_average_of_what_was_sent_is_not() -> None:
    """With requests in progress as a real llama-server had them, read each second: mostly none, in bursts one."""
    values, window = recorded(), 300
    found = sent(values)
    rate_errors, average_errors = [], []
    for now in range(window, len(values), 15):
        true = mean(values[now - window : now])
        increase = increase_as_prometheus_has_it([p for p in found[INTEGRAL] if p[0] <= now], now, window)
        assert increase is not None
        rate_errors.append(abs(increase / window - true))
        average = mean([value for second, value in found[GAUGE] if now - window < second <= now])
        average_errors.append(abs(average - true))
    assert max(rate_errors) <= 0.1 / 2
    assert min(average_errors) >= 0.1
    assert len(found[INTEGRAL]) <= len(found[GAUGE]) / 2

"""Counters as an alert reads them: each query sees only what had been sent by its own time, in a real Prometheus."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Policy, Rule
from otelperf.gate.trend import watch
from stack.processes import Process, query
from tests.end_to_end.otlp import Direct, quiet_prometheus
from tests.gate.world import SCOPE, SECOND, counter, data, gauge, number

pytestmark = pytest.mark.end_to_end

RELATIVE, DELTA = 0.25, 60.0
MINUTES = 15


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with quiet_prometheus(tmp_path_factory.mktemp("live")) as process:
        yield process


def requests_of_a_day() -> list[float]:
    """Return a counter's total at each second: idle, a steady load, a burst, a stop, lumps, a slow-down."""
    dice = random.Random(4)
    total, totals = 1e6, []
    for second in range(MINUTES * 60):
        minute = second // 60
        gain = (0, 0, 20, 20, 20, 300, 0, 0, 0, 0, 0, 5, 5, 1, 1)[minute]
        if minute in {8, 9}:
            gain = 400 if dice.random() < 0.03 else 0
        total += gain
        totals.append(total)
    return totals


@pytest.mark.parametrize("phase", [0, 7, 19, 22])
def test_a_rate_read_live_is_within_its_tolerance(prometheus: Process, phase: int) -> None:
    """Which readings are remembered depends on the second at which it begins: *phase*, of two minutes."""
    start = (time.time_ns() // SECOND - MINUTES * 60 - 30) // 120 * 120 * SECOND + phase * SECOND - 120 * SECOND
    name = f"things{phase}"
    now = [start]
    gate = DeltaGate(
        Direct(prometheus),
        Policy({name: Rule(kind="trend", relative=RELATIVE, delta=DELTA)}),
        lambda: now[0],
        linger=0,
    )
    totals = requests_of_a_day()
    outside, asked = [], 0
    for second, total in enumerate(totals):
        now[0] = start + second * SECOND
        gate.export(data(counter(name, number(now[0], total, start=start))))
        if second < 300 or second % 5:
            continue
        for window in watch(120 * SECOND).windows:
            seconds = window.length // SECOND
            true = total - totals[second - seconds]
            tolerated = max(DELTA * window.delta, RELATIVE * window.relative * true)
            begin = second - seconds
            tolerated += totals[begin + 3] - totals[max(begin - 3, 0)]  # a window's start is known to 3 s
            found = query(prometheus.url, f"increase({name}_total[{seconds}s])", now[0] / SECOND)
            read = float(found[0]["value"][1]) if found else 0.0
            asked += 1
            if abs(read - true) > tolerated * 1.001:
                outside.append((second, seconds, true, read))
    assert len(outside) <= asked / 100, outside
    assert gate.stats.emitted["previous"] > 0
    # What was sent late was taken: Prometheus has every point, and the last total.
    (count,) = query(prometheus.url, f"sum(count_over_time({name}_total[1h]))", now[0] / SECOND)
    emitted = sum(gate.stats.emitted.values())
    assert float(count["value"][1]) == emitted
    assert emitted / MINUTES < 8


def test_increase_sees_the_first_event_of_a_counter(prometheus: Process) -> None:
    """The error that nobody had seen before: its counter is 1 in its first point."""
    start = (time.time_ns() // SECOND - 300) * SECOND
    now = [start]
    gates = {
        name: DeltaGate(
            Direct(prometheus),
            Policy({name: Rule(kind="trend", relative=RELATIVE)}),
            lambda: now[0],
            linger=0,
            from_zero=(SCOPE.name,) if name == "errors" else (),
        )
        for name in ("errors", "plain")
    }
    for second in range(120):
        now[0] = start + second * SECOND
        for name, gate in gates.items():
            seen = [number(now[0], 1, start=start + 60 * SECOND - SECOND // 2)] if second >= 60 else []
            gate.export(data(counter(name, *seen), gauge("other", number(now[0], 1))))
    when = now[0] / SECOND
    (read,) = query(prometheus.url, "increase(errors_total[2m])", when)
    assert 1 == pytest.approx(float(read["value"][1]), rel=RELATIVE)
    (unseen,) = query(prometheus.url, "increase(plain_total[2m])", when)
    assert unseen["value"][1] == "0"

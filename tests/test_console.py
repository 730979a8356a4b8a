"""The lines that a person reads."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import HistogramDataPoint, MetricExportResult, MetricsData, NumberDataPoint
from opentelemetry.sdk.resources import Resource

from otelperf import config
from otelperf.agent import Agent
from otelperf.console import Console, NullExporter, amount
from otelperf.gate.metrics import Emission, GateStats
from otelperf.transitions import Transition

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND + 345_000_000
CLOCK = time.strftime("%H:%M:%S", time.localtime(1_800_000_000)) + ".3"


def point(value: float) -> NumberDataPoint:
    return NumberDataPoint({}, 0, NOW, value, ())


def emission(
    name: str = "system.memory.usage",
    unit: str = "By",
    attributes: dict[str, Any] | None = None,
    old: float | None = None,
    new: float | None = 1,
    reason: str = "delta",
    shape: str = "gauge",
) -> Emission:
    before, after = (None if value is None else point(value) for value in (old, new))
    return Emission(NOW, name, unit, attributes or {}, Resource({}), before, after, reason, shape)


def printed(*emissions: Emission) -> list[str]:
    stream = io.StringIO()
    console = Console(stream)
    for each in emissions:
        console.emission(each)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "By", "0 B"),
        (1023, "By", "1023 B"),
        (1024, "By", "1 KiB"),
        (1536, "By", "1.5 KiB"),
        (1010 * 1024, "By", "1010 KiB"),
        (1023.9 * 1024, "By", "1024 KiB"),
        (8 * 2**30, "By", "8 GiB"),
        (123_456_789_012, "By", "115 GiB"),
        (2**60, "By", "1024 PiB"),
        (-3 * 2**20, "By", "-3 MiB"),
        (0.123456, "1", "0.123"),
        (1, "1", "1"),
        (0, "1", "0"),
        (12, "{request}", "12"),
        (999.9996, "{token}/s", "1000 /s"),
        (1234, "{token}", "1.234 k"),
        (12_345_678, "{fault}", "12.35 M"),
        (3.25, "s", "3.25 s"),
        (1_800_000_000.25, "s", "1.8e+09 s"),
        (float("nan"), "By", "nan"),
        (float("inf"), "s", "inf"),
        (-float("inf"), "{token}", "-inf"),
    ],
)
def test_amounts_are_short_and_have_their_unit(value: float, unit: str, expected: str) -> None:
    assert amount(point(value), unit) == expected


@given(st.floats() | st.integers(-(2**70), 2**70), st.sampled_from(["By", "1", "s", "{token}", "{token}/s", ""]))
def test_any_amount_is_short(value: float, unit: str) -> None:
    assert len(amount(point(value), unit)) <= 28


def test_a_histogram_is_told_by_its_count() -> None:
    histogram = HistogramDataPoint({}, 0, NOW, 7, 1.5, (7, 0), (1.0,), 0.0, 1.0)
    assert amount(histogram, "s") == "7 recorded"


def test_lines_golden() -> None:
    assert printed(
        emission(attributes={"system.memory.state": "used"}, old=2**30, new=3 * 2**29, reason="delta"),
        emission("system.cpu.utilization", "1", {"cpu.mode": "user"}, None, 0.4213, "first"),
        emission("otelperf.server.tokens", "{token}", {"gen_ai.token.type": "output"}, 900, 1234, "rate", "monotonic"),
        emission(
            "otelperf.server.tokens", "{token}", {"gen_ai.token.type": "output"}, 900, 1200, "previous", "monotonic"
        ),
        emission(
            "otelperf.worker.state", "1", {"otelperf.worker.id": 0, "otelperf.worker.state": "idle"}, 1, 0, "state"
        ),
        emission("otelperf.server.up", "1", None, 1, None, "end"),
    ) == [
        f"{CLOCK}  system.memory.usage{{state=used}}                                      1 GiB → 1.5 GiB            delta",
        f"{CLOCK}  system.cpu.utilization{{mode=user}}                                    0.421                      first",
        f"{CLOCK}  otelperf.server.tokens{{type=output}}                                  900 → +334                 rate",
        f"{CLOCK}  otelperf.server.tokens{{type=output}}                                  1.2 k                      previous",
        f"{CLOCK}  otelperf.worker.state{{id=0, state=idle}}                              1 → 0                      state",
        f"{CLOCK}  otelperf.server.up                                                   1 → ended                  end",
    ]


# State changes


def test_a_state_that_changes_is_one_line() -> None:
    stream = io.StringIO()
    worker = {"otelperf.worker.id": "0"}
    change = Transition("s", "vllm", "otelperf.worker.state", worker, "idle", "error", NOW, NOW, 12.345, partial=False)
    Console(stream).transition(change)
    assert stream.getvalue().split() == [
        CLOCK,
        "otelperf.worker.state{id=0}",
        *("idle", "→", "error"),
        *("span:", "after", "12.3", "s"),
    ]


# Summaries


def stats(seen: int, suppressed: int, streams: int = 5, **emitted: int) -> GateStats:
    return GateStats(seen, suppressed, 0, streams, Counter(emitted))


def test_a_summary_tells_what_came_since_the_last() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.summary(NOW, stats(100, 0, first=100))  # the first only starts the count
    console.summary(NOW + 4 * SECOND, stats(500, 390, first=100, delta=10))
    assert stream.getvalue() == ""
    console.summary(NOW + 5 * SECOND, stats(600, 475, first=100, delta=25))
    console.summary(NOW + 10 * SECOND, stats(1100, 975, first=100, delta=25))
    assert [line.split("  ", 1)[1] for line in stream.getvalue().splitlines()] == [
        "── held back 95.0% in 5 s: 25 of 500 points sent, 5 streams",
        "── held back 100.0% in 5 s: 0 of 500 points sent, 5 streams",
    ]


def test_a_summary_of_nothing_seen_is_left_out_and_one_of_more_sent_than_seen_is_not_negative() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.summary(NOW, stats(100, 0, first=100))
    console.summary(NOW + 5 * SECOND, stats(100, 0, first=100))
    assert stream.getvalue() == ""
    console.summary(NOW + 10 * SECOND, stats(110, 0, first=110, previous=10))
    assert "held back 0.0% in 5 s: 20 of 10 points sent" in stream.getvalue()


def test_at_the_stop_ends_are_counted_and_not_listed() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.stopping()
    for _ in range(3):
        console.emission(emission(old=5, new=6, reason="end"))  # the last value, then the mark
        console.emission(emission(old=6, new=None, reason="end"))
    console.stopped(NOW, stats(1000, 963))
    assert stream.getvalue() == f"{CLOCK}  ── 3 streams ended; held back 96.3% of 1000 points in all\n"


def test_a_stop_before_anything_was_seen() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.stopping()
    console.stopped(NOW, stats(0, 0))
    assert stream.getvalue().endswith("── 0 streams ended; held back 0.0% of 0 points in all\n")


def test_the_agent_ends_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"metrics.exporter": "console", "endpoint.enabled": "false", "mode": "node"}
    agent = Agent(config.load(values, {}, None), environ={}, threads=False)
    agent.tick()
    agent.close()
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line.endswith(" first") for line in lines)
    found = re.search(r"── (\d+) streams ended; held back 0\.0% of (\d+) points in all$", last)
    assert found is not None
    assert int(found[1]) == int(found[2]) == len(lines)


# Where lines go


class Broken(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_an_output_that_is_gone_never_raises() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, Broken()):
        console = Console(stream)
        console.emission(emission())
        console.stopping()
        console.stopped(NOW, stats(1, 0))


def test_no_output_at_all_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    Console().emission(emission())


def test_a_terminal_that_knows_no_arrows_gets_the_line_all_the_same() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    Console(stream).emission(emission(old=1, new=2))
    assert b"1 B -> 2 B" in raw.getvalue()


def test_an_agent_whose_reader_leaves_ends_without_a_traceback() -> None:
    reading, writing = os.pipe()
    agent = subprocess.Popen(
        [sys.executable, "-m", "otelperf", "agent", "--metrics-exporter", "console", "--endpoint-enabled", "false"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert os.read(reading, 10) != b""
    os.close(reading)
    assert agent.stderr is not None
    assert any("console closed" in line for line in agent.stderr)
    _, errors = agent.communicate(timeout=60)
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert agent.returncode is not None
    assert agent.returncode >= 0


def test_the_null_exporter_takes_everything() -> None:
    exporter = NullExporter()
    assert exporter.export(MetricsData([])) is MetricExportResult.SUCCESS
    assert exporter.force_flush()
    exporter.shutdown()

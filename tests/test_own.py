"""What the agent says of itself, and what it leaves out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from otelperf import catalog, own
from otelperf.export import SenderStats
from otelperf.gate.metrics import GateStats
from otelperf.gate.spans import SpanGateStats
from otelperf.gate.stream import Bound
from otelperf.readings import Health, Reading

NOW = 1_800_000_000_000_000_000
START = NOW - 60_000_000_000


def health(**more: Any) -> Health:
    told = {
        "source": "cpu",
        "ok": True,
        "absent": False,
        "message": "",
        "duration": 0.1,
        "last_success": NOW,
        "failures": 0,
    }
    return Health(**{**told, **more})


def readings(stats: GateStats | None = None, *told: Health, **more: Any) -> dict[str, list[Reading]]:
    """Return what is told, by name."""
    found: dict[str, list[Reading]] = {}
    for reading in own.batch(NOW, START, stats or GateStats(), None, told, None, 0, **more).readings:
        found.setdefault(reading.name, []).append(reading)
    return found


def values(found: list[Reading]) -> dict[object, object]:
    return {reading.attributes["otelperf.metric.name"]: reading.value for reading in found}


def test_bounds_are_told_by_metric_as_far_as_they_are_not_0() -> None:
    bounds = {
        "system.cpu.time": Bound(2.4, 0.15),
        "system.cpu.utilization": Bound(0.1, 0.0),
        "otelperf.server.active_requests": Bound(0.0, 0.0),
    }
    found = readings(bounds=bounds)
    assert values(found["otelperf.gate.delta"]) == {"system.cpu.time": 2.4, "system.cpu.utilization": 0.1}
    assert values(found["otelperf.gate.relative"]) == {"system.cpu.time": 0.15}


def test_the_bounds_of_the_agents_own_metrics_are_left_out() -> None:
    bounds = {metric.name: Bound(1.0, 1.0) for metric in catalog.METRICS}
    told = values(readings(bounds=bounds)["otelperf.gate.delta"])
    assert told.keys() == bounds.keys() - {metric.name for metric in catalog.AGENT + catalog.PROCESS}


def test_the_factor_is_told_only_where_there_is_a_budget() -> None:
    stats = GateStats(factor=2.5)
    assert "otelperf.gate.budget.factor" not in readings(stats)
    assert readings(stats, budgeted=True)["otelperf.gate.budget.factor"] == [
        Reading("otelperf.gate.budget.factor", 2.5)
    ]


def test_samples_are_counted_since_the_start() -> None:
    (found,) = readings(GateStats(samples=1234))["otelperf.gate.samples"]
    assert (found.value, found.start) == (1234, START)


def test_failures_are_told_once_there_are_some() -> None:
    found = readings(None, health(), health(source="disk", ok=False, failures=3))
    (failures,) = found["otelperf.source.failures"]
    assert (failures.value, failures.attributes, failures.start) == (3, {"otelperf.source.name": "disk"}, START)
    assert len(found["otelperf.source.success"]) == 2


def test_spans_are_told_once_there_were_some_and_what_failed_by_why() -> None:
    spans = SenderStats()
    assert not [name for name in readings(spans=spans) if name.startswith("otel.")]
    spans.waiting = 2
    spans.points |= {"delivered": 10, "dropped": 3, "rejected": 1}
    found = readings(spans=spans)
    exported = {
        reading.attributes.get("error.type"): reading.value for reading in found["otel.sdk.exporter.span.exported"]
    }
    assert exported == {None: 9, "dropped": 3, "rejected": 1}
    assert [reading.value for reading in found["otel.sdk.exporter.span.inflight"]] == [2]


def test_what_the_gate_did_with_spans_is_told_once_it_has_seen_one() -> None:
    assert not [name for name in readings(span_gate=SpanGateStats()) if "spans" in name or "calls" in name]
    found = readings(span_gate=SpanGateStats(seen=90, sent=6, calls=30, kept=Counter(new=1, remainder=1), overflow=2))
    told = {
        name: found[f"otelperf.gate.{name}"][0].value for name in ("spans.seen", "spans.sent", "spans.lost", "calls")
    }
    assert told == {"spans.seen": 90, "spans.sent": 6, "spans.lost": 2, "calls": 30}
    kept = {reading.attributes["otelperf.reason"]: reading.value for reading in found["otelperf.gate.calls.kept"]}
    assert kept == {"new": 1, "remainder": 1}


def test_every_name_told_is_in_the_catalogue() -> None:
    found = readings(
        None,
        health(failures=1),
        bounds={"a": Bound(1.0, 1.0)},
        budgeted=True,
        spans=SenderStats(waiting=1),
        span_gate=SpanGateStats(seen=1, kept=Counter(new=1)),
    )
    assert found.keys() <= catalog.BY_NAME.keys()

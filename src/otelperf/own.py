"""The agent's own doing as readings: what the gate let out, what the sender delivered, how the sources and ticks went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from otelperf.catalog import AGENT, PROCESS
from otelperf.readings import Attributes, Batch, Health, Reading

if TYPE_CHECKING:
    from otelperf.export import SenderStats
    from otelperf.gate.metrics import GateStats
    from otelperf.gate.spans import SpanGateStats
    from otelperf.gate.stream import Bound

_SECOND = 1e9
_NO_BOUNDS: Mapping[str, Bound] = MappingProxyType({})
_OWN = frozenset(metric.name for metric in PROCESS + AGENT)


def batch(  # noqa: PLR0913 # each a part of the agent that reports here
    time: int,
    start: int,
    gate: GateStats,
    sender: SenderStats | None,
    health: tuple[Health, ...],
    tick_seconds: float | None,
    missed: int,
    *,
    bounds: Mapping[str, Bound] = _NO_BOUNDS,
    budgeted: bool = False,
    spans: SenderStats | None = None,
    span_gate: SpanGateStats | None = None,
) -> Batch:
    """Fold everything the agent knows of itself into one batch; *start* is when it began to count (Unix ns).

    *bounds* by metric; those of the agent's own metrics are left out: two series each, and nobody asks. *budgeted*: there is a
    budget for all streams, so its factor says something. *spans*: what the sender of spans did; nothing is said before the first.
    *span_gate*: what the gate for traces did; likewise.
    """
    readings = [*_gate(gate, start), *_bounds(bounds), *_sources(health, start)]
    if budgeted:
        readings.append(Reading("otelperf.gate.budget.factor", gate.factor))
    if sender is not None:
        readings += _sender(sender, start)
    if spans is not None and (spans.waiting or any(spans.points.values())):
        readings += _spans(spans, start)
    if span_gate is not None and span_gate.seen:
        readings += _span_gate(span_gate, start)
    if tick_seconds is not None:
        readings.append(Reading("otelperf.tick.duration", tick_seconds))
    readings.append(Reading("otelperf.tick.missed", missed, start=start))
    return Batch("agent", "agent", time, tuple(readings))


def _gate(stats: GateStats, start: int) -> list[Reading]:
    return [
        Reading("otelperf.gate.seen", stats.seen, start=start),
        Reading("otelperf.gate.suppressed", stats.suppressed, start=start),
        Reading("otelperf.gate.refused", stats.refused, start=start),
        Reading("otelperf.gate.streams", stats.streams),
        Reading("otelperf.gate.samples", stats.samples, start=start),
        *(
            Reading("otelperf.gate.points", n, _of("otelperf.reason", reason), start)
            for reason, n in stats.emitted.items()
        ),
    ]


def _span_gate(stats: SpanGateStats, start: int) -> list[Reading]:
    return [
        Reading("otelperf.gate.spans.seen", stats.seen, start=start),
        Reading("otelperf.gate.spans.sent", stats.sent, start=start),
        Reading("otelperf.gate.spans.lost", stats.overflow, start=start),
        Reading("otelperf.gate.calls", stats.calls, start=start),
        *(
            Reading("otelperf.gate.calls.kept", n, _of("otelperf.reason", reason), start)
            for reason, n in stats.kept.items()
        ),
    ]


def _sender(stats: SenderStats, start: int) -> list[Reading]:
    return [
        *(
            Reading("otelperf.export.requests", n, _of("otelperf.outcome", what), start)
            for what, n in stats.requests.items()
        ),
        Reading("otelperf.export.requests", stats.retries, _of("otelperf.outcome", "retried"), start),
        *(
            Reading("otelperf.export.points", n, _of("otelperf.outcome", what), start)
            for what, n in stats.points.items()
        ),
        Reading("otelperf.export.queue.size", stats.queue_bytes),
        Reading("otelperf.export.queue.limit", stats.queue_limit),
    ]


def _spans(stats: SenderStats, start: int) -> list[Reading]:
    """Use the conventions' names: what failed has an error.type, and what was rejected has failed."""
    points = stats.points
    delivered = points["delivered"] - points["rejected"]
    failed = {outcome: n for outcome in ("refused", "dropped", "rejected") if (n := points[outcome])}
    return [
        Reading("otel.sdk.exporter.span.exported", delivered, start=start),
        *(
            Reading("otel.sdk.exporter.span.exported", n, _of("error.type", outcome), start)
            for outcome, n in failed.items()
        ),
        Reading("otel.sdk.exporter.span.inflight", stats.waiting),
    ]


def _bounds(bounds: Mapping[str, Bound]) -> Iterator[Reading]:
    """Yield what is not 0: a metric without either sends every change."""
    for metric, bound in bounds.items():
        if metric in _OWN:
            continue
        attributes = _of("otelperf.metric.name", metric)
        if bound.delta:
            yield Reading("otelperf.gate.delta", bound.delta, attributes)
        if bound.relative:
            yield Reading("otelperf.gate.relative", bound.relative, attributes)


def _sources(health: tuple[Health, ...], start: int) -> list[Reading]:
    readings = []
    for source in health:
        if source.absent:
            continue
        attributes = _of("otelperf.source.name", source.source)
        readings.append(Reading("otelperf.source.success", int(source.ok), attributes))
        readings.append(Reading("otelperf.source.duration", source.duration, attributes))
        if source.interval is not None:
            readings.append(Reading("otelperf.source.interval", source.interval, attributes))
        if source.failures:
            readings.append(Reading("otelperf.source.failures", source.failures, attributes, start))
        if source.last_success is not None:
            readings.append(Reading("otelperf.source.last_success", source.last_success / _SECOND, attributes))
    return readings


@lru_cache(maxsize=1024)
def _of(key: str, value: str) -> Attributes:
    return {key: value}

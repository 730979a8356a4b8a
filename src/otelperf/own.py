"""The agent's own doing as readings: what the gate let out, what the sender delivered, how the sources and ticks went."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from otelperf.readings import Attributes, Batch, Health, Reading

if TYPE_CHECKING:
    from otelperf.export import SenderStats
    from otelperf.gate.metrics import GateStats

_SECOND = 1e9


def batch(  # each a part of the agent that reports here
    time: int,
    start: int,
    gate: GateStats,
    sender: SenderStats | None,
    health: tuple[Health, ...],
    tick_seconds: float | None,
    missed: int,
) -> Batch:
    """Fold everything the agent knows of itself into one batch; *start* is when it began to count (Unix ns)."""
    readings = [*_gate(gate, start), *_sources(health)]
    if sender is not None:
        readings += _sender(sender, start)
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
        *(
            Reading("otelperf.gate.points", n, _of("otelperf.reason", reason), start)
            for reason, n in stats.emitted.items()
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


def _sources(health: tuple[Health, ...]) -> list[Reading]:
    readings = []
    for source in health:
        if source.absent:
            continue
        attributes = _of("otelperf.source.name", source.source)
        readings.append(Reading("otelperf.source.success", int(source.ok), attributes))
        readings.append(Reading("otelperf.source.duration", source.duration, attributes))
        if source.last_success is not None:
            readings.append(Reading("otelperf.source.last_success", source.last_success / _SECOND, attributes))
    return readings


@lru_cache(maxsize=512)
def _of(key: str, value: str) -> Attributes:
    return {key: value}

"""One row per metric: name, kind, unit, meaning, and how far it may move before it is told.

The gate's defaults, docs/metrics.md, and later boards and alerts are made from this table; a test fails if a row has
no reading or a reading has no row. Deltas are what a person would not act on, and wider than the value's own noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from otelperf.gate.policy import Rule, Threshold

Kind = Literal["gauge", "updown", "counter", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A row. *convention* is ``semconv`` where the OpenTelemetry semantic conventions name it, else where the name is from."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    rule: Rule
    convention: str = "otelperf"


def _hold(delta: float = 0.0, **more: object) -> Rule:
    return Rule(kind="hold", delta=delta, **more)  # type: ignore[arg-type] # keyword names are Rule's own


def _trend(relative: float = 0.15, **more: object) -> Rule:
    return Rule(kind="trend", relative=relative, **more)  # type: ignore[arg-type] # keyword names are Rule's own


def _state(**more: object) -> Rule:
    return Rule(kind="state", urgent=True, **more)  # type: ignore[arg-type] # keyword names are Rule's own


_HEARTBEAT = Rule(kind="heartbeat")
# The ceiling, for what the agent says of itself: nobody takes a rate of it, and it must not cost what it saves.
_SELDOM = 110.0


def _full(warning: float, critical: float) -> tuple[Threshold, Threshold]:
    """Two levels of a share that is bad when high, with a margin of two points."""
    return (Threshold(warning, margin=0.02), Threshold(critical, margin=0.02))


HOST = (
    Metric(
        "system.cpu.time",
        "counter",
        "s",
        "Seconds each logical CPU spent in each mode.",
        _trend(delta=2.4, group="system.cpu.time", within=("cpu.mode",)),
        "semconv",
    ),
    Metric(
        "system.cpu.utilization",
        "gauge",
        "1",
        "Share of all CPUs' time spent in each mode since the last reading.",
        _hold(0.1, group="system.cpu.utilization", within=("cpu.mode",)),
        "semconv",
    ),
    Metric("system.cpu.logical.count", "updown", "{cpu}", "Logical CPUs online.", _state(), "semconv"),
    Metric(
        "system.cpu.load_average.1m",
        "gauge",
        "{thread}",
        "Runnable and uninterruptible threads, 1-minute average.",
        _hold(0.5, relative=0.2),
        "Collector hostmetrics",
    ),
    Metric(
        "system.cpu.load_average.5m",
        "gauge",
        "{thread}",
        "The same over 5 minutes.",
        _hold(0.5, relative=0.2),
        "Collector hostmetrics",
    ),
    Metric(
        "system.cpu.load_average.15m",
        "gauge",
        "{thread}",
        "The same over 15 minutes.",
        _hold(0.5, relative=0.2),
        "Collector hostmetrics",
    ),
    Metric(
        "system.memory.usage",
        "updown",
        "By",
        "Memory by state; the states add up to the limit.",
        _hold(share=0.01, share_of="system.memory.limit", group="system.memory", within=("system.memory.state",)),
        "semconv",
    ),
    Metric("system.memory.limit", "updown", "By", "Memory of the machine.", _hold(group="system.memory"), "semconv"),
    Metric(
        "system.memory.utilization",
        "gauge",
        "1",
        "Memory by state as a share of the limit.",
        _hold(0.01, group="system.memory.utilization", within=("system.memory.state",)),
        "semconv",
    ),
    Metric(
        "system.memory.linux.available",
        "updown",
        "By",
        "Memory that new programs can have without swapping.",
        _hold(share=0.01, share_of="system.memory.limit", group="system.memory"),
        "semconv",
    ),
    Metric(
        "system.paging.usage",
        "updown",
        "By",
        "Swap by state.",
        _hold(64 * 2**20, group="system.paging", within=("system.paging.state",)),
        "semconv",
    ),
    Metric(
        "system.paging.utilization",
        "gauge",
        "1",
        "Swap by state as a share of all swap.",
        _hold(0.02, group="system.paging.utilization", within=("system.paging.state",)),
        "semconv",
    ),
    Metric("system.paging.faults", "counter", "{fault}", "Page faults by type.", _trend(0.2, delta=2000), "semconv"),
    Metric(
        "system.paging.operations",
        "counter",
        "{operation}",
        "Pages swapped in and out.",
        _trend(0.2, delta=100),
        "semconv",
    ),
    Metric(
        "system.disk.io",
        "counter",
        "By",
        "Bytes read and written.",
        _trend(delta=2**20, group="system.disk", within=("disk.io.direction",)),
        "semconv",
    ),
    Metric(
        "system.disk.operations",
        "counter",
        "{operation}",
        "Reads and writes completed.",
        _trend(delta=50, group="system.disk", within=("disk.io.direction",)),
        "semconv",
    ),
    Metric(
        "system.disk.io_time",
        "counter",
        "s",
        "Seconds the disk had work to do.",
        _trend(delta=1.2, group="system.disk"),
        "semconv",
    ),
    Metric(
        "system.filesystem.usage",
        "updown",
        "By",
        "Space by state.",
        _hold(
            share=0.005,
            share_of="system.filesystem.limit",
            group="system.filesystem",
            within=("system.filesystem.state",),
        ),
        "semconv",
    ),
    Metric(
        "system.filesystem.limit",
        "updown",
        "By",
        "Size of the file system.",
        _hold(group="system.filesystem"),
        "semconv",
    ),
    Metric(
        "system.filesystem.utilization",
        "gauge",
        "1",
        "Share of the space that users can have which is used, as df prints it.",
        _hold(0.005, thresholds=_full(0.85, 0.95)),
        "semconv",
    ),
    Metric(
        "system.network.io",
        "counter",
        "By",
        "Bytes received and sent.",
        _trend(delta=100_000, group="system.network", within=("network.io.direction",)),
        "semconv",
    ),
    Metric(
        "system.network.packet.count",
        "counter",
        "{packet}",
        "Packets received and sent.",
        _trend(delta=500, group="system.network", within=("network.io.direction",)),
        "semconv",
    ),
    Metric(
        "system.network.errors",
        "counter",
        "{error}",
        "Receive and transmit errors.",
        _hold(urgent=True, group="system.network.trouble", within=("network.io.direction",)),
        "semconv",
    ),
    Metric(
        "system.network.packet.dropped", "counter", "{packet}", "Packets dropped.", _trend(0.2, delta=10), "semconv"
    ),
    Metric(
        "system.network.connection.count",
        "updown",
        "{connection}",
        "Connections by transport and state, as the kernel counts them.",
        _hold(5, relative=0.1),
        "semconv",
    ),
    Metric(
        "otelperf.system.pressure.time",
        "counter",
        "s",
        "Seconds in which some or all tasks waited for the resource (PSI).",
        _trend(0.2, delta=1.2),
    ),
    Metric(
        "otelperf.system.pressure.utilization",
        "gauge",
        "1",
        "Share of the last 10 s in which some or all tasks waited (PSI avg10).",
        _hold(0.05, thresholds=_full(0.2, 0.5)),
    ),
    Metric("system.uptime", "gauge", "s", "Seconds since the machine started.", _HEARTBEAT, "semconv"),
)

PROCESS = (
    Metric(
        "process.cpu.time",
        "counter",
        "s",
        "The agent's own CPU time.",
        _trend(0.2, delta=0.5, group="process.cpu.time", within=("cpu.mode",)),
        "semconv",
    ),
    Metric("process.memory.usage", "updown", "By", "The agent's own resident memory.", _hold(2**20), "semconv"),
    Metric("process.thread.count", "updown", "{thread}", "The agent's own threads.", _hold(), "semconv"),
    Metric(
        "process.unix.file_descriptor.count",
        "updown",
        "{file_descriptor}",
        "The agent's own open files.",
        _hold(2),
        "semconv",
    ),
)

SERVER = (
    Metric("otelperf.server.up", "updown", "1", "1 while the server answers, else 0.", _state()),
    Metric(
        "otelperf.server.tokens",
        "counter",
        "{token}",
        "Tokens processed, by type; prompt tokens found in a cache are not processed.",
        _trend(delta=20, group="otelperf.server.tokens", within=("gen_ai.token.type",)),
    ),
    Metric(
        "otelperf.server.token.throughput",
        "gauge",
        "{token}/s",
        "Tokens processed per second since the last reading; 0 when the server is up and idle.",
        _hold(1, relative=0.2, group="otelperf.server.token.throughput", within=("gen_ai.token.type",)),
    ),
    Metric(
        "otelperf.server.active_requests",
        "updown",
        "{request}",
        "Requests by state: running, waiting.",
        _hold(group="otelperf.server.active_requests", within=("otelperf.request.state",)),
    ),
    Metric(
        "otelperf.server.batch.size",
        "gauge",
        "{request}",
        "Mean number of requests decoded together since the last reading; absent when nothing was decoded.",
        _hold(0.5, group="otelperf.server.batch"),
    ),
    Metric(
        "otelperf.server.batch.limit",
        "updown",
        "{request}",
        "Most requests that can be decoded together.",
        _hold(group="otelperf.server.batch"),
    ),
    Metric(
        "otelperf.server.batch.utilization",
        "gauge",
        "1",
        "Batch size as a share of its limit.",
        _hold(0.1),
    ),
    Metric(
        "otelperf.server.context.utilization",
        "gauge",
        "1",
        "Context that the largest request in progress fills, as a share of its limit; 0 when none is in progress.",
        _hold(0.05, thresholds=_full(0.9, 0.98)),
    ),
    Metric("otelperf.server.context.limit", "updown", "{token}", "Context that one request can have.", _hold()),
    Metric(
        "otelperf.server.prefix_cache.queries",
        "counter",
        "{token}",
        "Prompt tokens looked up in the prefix cache.",
        _trend(delta=20, group="otelperf.server.prefix_cache"),
    ),
    Metric(
        "otelperf.server.prefix_cache.hits",
        "counter",
        "{token}",
        "Prompt tokens found in the prefix cache.",
        _trend(delta=20, group="otelperf.server.prefix_cache"),
    ),
    Metric(
        "otelperf.server.speculative.drafted",
        "counter",
        "{token}",
        "Tokens drafted by speculation.",
        _trend(delta=20, group="otelperf.server.speculative"),
    ),
    Metric(
        "otelperf.server.speculative.accepted",
        "counter",
        "{token}",
        "Drafted tokens that the model accepted.",
        _trend(delta=20, group="otelperf.server.speculative"),
    ),
    Metric(
        "otelperf.server.processing.time",
        "counter",
        "s",
        "Seconds spent processing tokens, by type.",
        _trend(delta=1.2, group="otelperf.server.tokens", within=("gen_ai.token.type",)),
    ),
    Metric(
        "otelperf.worker.state",
        "updown",
        "1",
        "1 for the state that the worker is in, 0 for the others.",
        _state(group="otelperf.worker.state", within=("otelperf.worker.state",)),
    ),
)

AGENT = (
    Metric("otelperf.gate.points", "counter", "{point}", "Points emitted, by reason.", _trend(0.2, delta=60)),
    Metric("otelperf.gate.seen", "counter", "{point}", "Points that reached the gate.", _trend(0.2, delta=60)),
    Metric("otelperf.gate.suppressed", "counter", "{point}", "Points held back.", _trend(0.2, delta=60)),
    Metric(
        "otelperf.gate.streams",
        "updown",
        "{stream}",
        "Streams that the gate remembers.",
        _hold(5, relative=0.1, heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.gate.refused",
        "counter",
        "{stream}",
        "New streams refused because the gate is full.",
        _hold(urgent=True),
    ),
    Metric("otelperf.export.requests", "counter", "{request}", "Requests answered, by outcome.", _trend(0.3, delta=10)),
    Metric(
        "otelperf.export.points",
        "counter",
        "{point}",
        "Points delivered or dropped, by outcome.",
        _trend(0.3, delta=100),
    ),
    Metric(
        "otelperf.export.queue.size",
        "updown",
        "By",
        "Bytes waiting to be sent.",
        _hold(64 * 2**10, relative=0.5, heartbeat=_SELDOM),
    ),
    Metric("otelperf.export.queue.limit", "updown", "By", "Most bytes that may wait.", _hold(heartbeat=_SELDOM)),
    Metric(
        "otelperf.tick.duration",
        "gauge",
        "s",
        "How long the last tick took.",
        _hold(0.01, relative=1.0, heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.tick.missed",
        "counter",
        "{tick}",
        "Ticks left out because one took longer than its interval.",
        _hold(),
    ),
    Metric(
        "otelperf.source.success",
        "updown",
        "1",
        "1 if the source's last read succeeded, else 0.",
        _state(heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.source.duration",
        "gauge",
        "s",
        "How long the source's last read took.",
        _hold(0.01, relative=2.0, heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.source.last_success",
        "gauge",
        "s",
        "Unix time of the source's last good read.",
        Rule(kind="heartbeat", heartbeat=_SELDOM),
    ),
)

METRICS: tuple[Metric, ...] = HOST + PROCESS + SERVER + AGENT
BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def rules(heartbeat: float = 50.0) -> dict[str, Rule]:
    """Return the gate's default rule of each metric; what beats seldom keeps its distance to a shorter *heartbeat* (s)."""
    return {metric.name: _paced(metric.rule, heartbeat / 50.0) for metric in METRICS}


def _paced(rule: Rule, factor: float) -> Rule:
    return rule if rule.heartbeat is None else replace(rule, heartbeat=rule.heartbeat * min(1.0, factor))

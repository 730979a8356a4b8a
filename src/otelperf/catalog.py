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
    """A row. *convention* is ``semconv`` where the OpenTelemetry semantic conventions name it, else where the name is from.

    *averaged*: people ask for its mean, which over a rate window may be off by this much, in its unit; None: nobody does, or
    the mean is there already (CPU, PSI and throughput have counters, a load is an average, the batch size is a ratio of two).
    *bounds*: of the buckets of a histogram that is counted in this process.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    rule: Rule
    convention: str = "otelperf"
    averaged: float | None = None
    bounds: tuple[float, ...] = ()


# A server's own counters are what its operators look at first: their rates are held to be truer than a machine's.
_SERVED = 0.15


def _hold(delta: float = 0.0, **more: object) -> Rule:
    return Rule(kind="hold", delta=delta, **more)  # type: ignore[arg-type] # keyword names are Rule's own


def _trend(relative: float = 0.25, **more: object) -> Rule:
    return Rule(kind="trend", relative=relative, **more)  # type: ignore[arg-type] # keyword names are Rule's own


def _histogram(relative: float = 0.25) -> Rule:
    return Rule(kind="histogram", relative=relative)


def _state(**more: object) -> Rule:
    return Rule(kind="state", **more)  # type: ignore[arg-type] # keyword names are Rule's own


_HEARTBEAT = Rule(kind="heartbeat")
# The ceiling, for what the agent says of itself: nobody takes a rate of it, and it must not cost what it saves.
_SELDOM = 110.0
# Its counters: the first of anything is told at once, then each doubling, and every value at the heartbeat.
_RARELY = Rule(kind="hold", relative=1.0, heartbeat=_SELDOM)
_OWN_BEAT = Rule(kind="heartbeat", heartbeat=_SELDOM)
_RATE_WINDOW = 120.0  # s, the gate's default


def _full(warning: float, critical: float) -> tuple[Threshold, Threshold]:
    """Two levels of a share that is bad when high, with a margin of two points."""
    return (Threshold(warning, margin=0.02), Threshold(critical, margin=0.02))


HOST = (
    Metric(
        "system.cpu.time",
        "counter",
        "s",
        "Seconds each logical CPU spent in each mode.",
        _trend(delta=1.2),
        "semconv",
    ),
    Metric(
        "system.cpu.utilization",
        "gauge",
        "1",
        "Share of all CPUs' time spent in each mode since the last reading.",
        _hold(0.15, group="system.cpu.utilization", within=("cpu.mode",)),
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
        _hold(share=0.02, share_of="system.memory.limit", group="system.memory", within=("system.memory.state",)),
        "semconv",
    ),
    Metric("system.memory.limit", "updown", "By", "Memory of the machine.", _hold(group="system.memory"), "semconv"),
    Metric(
        "system.memory.utilization",
        "gauge",
        "1",
        "Memory by state as a share of the limit.",
        _hold(0.02, group="system.memory.utilization", within=("system.memory.state",)),
        "semconv",
        averaged=0.01,
    ),
    Metric(
        "system.memory.linux.available",
        "updown",
        "By",
        "Memory that new programs can have without swapping.",
        _hold(share=0.02, share_of="system.memory.limit", group="system.memory"),
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
    Metric("system.paging.faults", "counter", "{fault}", "Page faults by type.", _trend(delta=2000), "semconv"),
    Metric(
        "system.paging.operations",
        "counter",
        "{operation}",
        "Pages swapped in and out.",
        _trend(delta=100),
        "semconv",
    ),
    Metric(
        "system.disk.io",
        "counter",
        "By",
        "Bytes read and written.",
        _trend(delta=2**19),
        "semconv",
    ),
    Metric(
        "system.disk.operations",
        "counter",
        "{operation}",
        "Reads and writes completed.",
        _trend(delta=25),
        "semconv",
    ),
    Metric(
        "system.disk.io_time",
        "counter",
        "s",
        "Seconds the disk had work to do.",
        _trend(delta=1.2),
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
        _trend(delta=30_000),
        "semconv",
    ),
    Metric(
        "system.network.packet.count",
        "counter",
        "{packet}",
        "Packets received and sent.",
        _trend(delta=150),
        "semconv",
    ),
    Metric(
        "system.network.errors",
        "counter",
        "{error}",
        "Receive and transmit errors.",
        _hold(group="system.network.trouble", within=("network.io.direction",)),
        "semconv",
    ),
    Metric("system.network.packet.dropped", "counter", "{packet}", "Packets dropped.", _trend(delta=10), "semconv"),
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
        _trend(delta=1.2),
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
        "CPU time of the process: the agent, or the program that `instrument()` runs in.",
        _trend(delta=0.5),
        "semconv",
    ),
    Metric(
        "process.memory.usage",
        "updown",
        "By",
        "Resident memory of the process.",
        _hold(2**20, relative=0.02),
        "semconv",
    ),
    Metric("process.thread.count", "updown", "{thread}", "Threads of the process.", _hold(), "semconv"),
    Metric(
        "process.unix.file_descriptor.count",
        "updown",
        "{file_descriptor}",
        "Open files of the process.",
        _hold(2, relative=0.1),
        "semconv",
    ),
)

RUNTIME = (
    Metric(
        "cpython.gc.collections",
        "counter",
        "{collection}",
        "Runs of the garbage collector, by generation.",
        _trend(delta=20),
        "semconv",
    ),
    Metric(
        "cpython.gc.collected_objects",
        "counter",
        "{object}",
        "Objects that it freed, by generation.",
        _trend(delta=10_000),
        "semconv",
    ),
    Metric(
        "cpython.gc.uncollectable_objects",
        "counter",
        "{object}",
        "Objects that it could not free, by generation.",
        _trend(),
        "semconv",
    ),
)

SERVER = (
    Metric("otelperf.server.up", "updown", "1", "1 while the server answers, else 0.", _state(), averaged=0.01),
    Metric(
        "otelperf.server.tokens",
        "counter",
        "{token}",
        "Tokens by type: of prompts (input; docs/servers.md says whose count has those found in a cache), and generated (output).",
        _trend(_SERVED, delta=20, group="otelperf.server.tokens"),
    ),
    Metric(
        "otelperf.server.token.throughput",
        "gauge",
        "{token}/s",
        "The same per second since the last reading; 0 when the server is up and idle.",
        _hold(1, relative=0.25, group="otelperf.server.token.throughput", within=("gen_ai.token.type",)),
    ),
    Metric(
        "otelperf.server.active_requests",
        "updown",
        "{request}",
        "Requests by state: running, waiting and, where a server has more, those.",
        _hold(group="otelperf.server.active_requests", within=("otelperf.request.state",)),
        averaged=0.1,
    ),
    Metric(
        "otelperf.server.requests",
        "counter",
        "{request}",
        "Requests finished, by reason.",
        _trend(_SERVED, delta=2, group="otelperf.server.requests", within=("otelperf.finish_reason",)),
    ),
    Metric(
        "otelperf.server.request.errors",
        "counter",
        "{request}",
        "Requests that failed, by error.type; one request may count as several (a rejected one is also a 4xx or 5xx).",
        _trend(),
    ),
    Metric(
        "gen_ai.server.request.duration",
        "histogram",
        "s",
        "Time from a request's arrival to its last token, with the server's own bounds.",
        _histogram(),
        "semconv",
    ),
    Metric(
        "gen_ai.server.time_to_first_token",
        "histogram",
        "s",
        "Time from a request's arrival to its first token, with the server's own bounds.",
        _histogram(),
        "semconv",
    ),
    Metric(
        "gen_ai.server.time_per_output_token",
        "histogram",
        "s",
        "Mean time per token after the first, one value a request.",
        _histogram(),
        "semconv",
    ),
    Metric(
        "otelperf.server.inter_token.latency",
        "histogram",
        "s",
        "Time between two tokens of a request, one value a token.",
        _histogram(),
    ),
    Metric(
        "otelperf.server.queue.duration",
        "histogram",
        "s",
        "Time that requests waited before they were worked on.",
        _histogram(),
    ),
    Metric("otelperf.server.prefill.duration", "histogram", "s", "Time spent on requests' prompts.", _histogram()),
    Metric("otelperf.server.decode.duration", "histogram", "s", "Time from first to last token.", _histogram()),
    Metric(
        "otelperf.server.iteration.tokens",
        "histogram",
        "{token}",
        "Tokens worked on in one step of the engine.",
        _histogram(),
    ),
    Metric(
        "otelperf.server.preemptions",
        "counter",
        "{preemption}",
        "Requests put back for want of KV cache.",
        _trend(delta=1),
    ),
    Metric(
        "otelperf.server.kv_cache.utilization",
        "gauge",
        "1",
        "Share of the KV cache that requests in progress hold.",
        _hold(0.02, thresholds=_full(0.9, 0.98)),
        averaged=0.02,
    ),
    Metric("otelperf.server.kv_cache.limit", "updown", "{token}", "Tokens that the KV cache can hold.", _hold()),
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
        averaged=0.05,
    ),
    Metric("otelperf.server.context.limit", "updown", "{token}", "Context that one request can have.", _hold()),
    Metric(
        "otelperf.server.prefix_cache.queries",
        "counter",
        "{token}",
        "Prompt tokens looked up in the prefix cache.",
        _trend(_SERVED, delta=20, group="otelperf.server.prefix_cache"),
    ),
    Metric(
        "otelperf.server.prefix_cache.hits",
        "counter",
        "{token}",
        "Prompt tokens found in the prefix cache.",
        _trend(_SERVED, delta=20, group="otelperf.server.prefix_cache"),
    ),
    Metric(
        "otelperf.server.prefix_cache.hit_ratio",
        "gauge",
        "1",
        "Hits as a share of queries since the last reading; absent when nothing was looked up.",
        _hold(0.05),
    ),
    Metric(
        "otelperf.server.speculative.drafted",
        "counter",
        "{token}",
        "Tokens drafted by speculation.",
        _trend(_SERVED, delta=20, group="otelperf.server.speculative"),
    ),
    Metric(
        "otelperf.server.speculative.accepted",
        "counter",
        "{token}",
        "Drafted tokens that the model accepted.",
        _trend(_SERVED, delta=20, group="otelperf.server.speculative"),
    ),
    Metric(
        "otelperf.server.speculative.acceptance_ratio",
        "gauge",
        "1",
        "Accepted as a share of drafted tokens since the last reading; absent when none were drafted.",
        _hold(0.05),
    ),
    Metric(
        "otelperf.server.processing.time",
        "counter",
        "s",
        "Seconds spent processing tokens, by type.",
        _trend(_SERVED, delta=1.2, group="otelperf.server.tokens"),
    ),
    Metric(
        "otelperf.worker.state",
        "updown",
        "1",
        "1 for the state that the worker is in (active, idle, sleeping), 0 for the others.",
        _state(group="otelperf.worker.state", within=("otelperf.worker.state",)),
        averaged=0.01,
    ),
    Metric(
        "otelperf.server.request.time",
        "counter",
        "s",
        "Seconds that successful requests took, all together: over otelperf.server.requests their mean.",
        _trend(_SERVED, delta=1.2, group="otelperf.server.requests", within=("otelperf.finish_reason",)),
    ),
    Metric(
        "otelperf.server.queue.time",
        "counter",
        "s",
        "Seconds that successful requests waited before they were worked on, all together.",
        _trend(_SERVED, delta=1.2, group="otelperf.server.requests", within=("otelperf.finish_reason",)),
    ),
    Metric(
        "otelperf.server.startup.duration",
        "gauge",
        "s",
        "Time that a phase of the server's or a model's start took: the server's own phases, and those that the agent saw.",
        _hold(0.1),
    ),
    Metric("otelperf.server.models", "updown", "{model}", "Models loaded.", _hold()),
    Metric(
        "otelperf.server.model.memory",
        "updown",
        "By",
        "Memory that a loaded model takes, by kind: gpu, host.",
        _hold(relative=0.02, group="otelperf.server.model.memory", within=("otelperf.memory.kind",)),
    ),
)

# What only several readings of a server say together.
WATCH = (
    Metric(
        "otelperf.server.state",
        "updown",
        "1",
        "1 for the state that the server is in (ready, loading, stuck, unresponsive, error, down), 0 for the others; stuck is "
        "absent where it cannot be told.",
        _state(group="otelperf.server.state", within=("otelperf.server.state",)),
        averaged=0.01,
    ),
    Metric(
        "otelperf.server.engine.state",
        "updown",
        "1",
        "1 for the state that a data-parallel engine is in (ok, straggling, stuck), 0 for the others; only where there "
        "are several.",
        _state(group="otelperf.server.engine.state", within=("otelperf.server.engine.state",)),
        averaged=0.01,
    ),
    Metric(
        "otelperf.server.restarts",
        "counter",
        "{restart}",
        "Restarts that the agent saw, by what changed: engine, model, arguments, none, or unknown.",
        _hold(heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.server.exits",
        "counter",
        "{exit}",
        "Ends of the server's process, by reason: signal:SIGKILL, exit:1, oom, or unknown. Absent before the first.",
        _hold(heartbeat=_SELDOM),
    ),
)

_DOUBLING = tuple(round(0.01 * 2**step, 2) for step in range(14))  # 10 ms to 81.92 s, as the conventions give them
_FOURFOLD = tuple(float(4**step) for step in range(14))
_HTTP = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

APPLICATION = (
    Metric(
        "gen_ai.client.operation.duration",
        "histogram",
        "s",
        "Time that a call of a model took.",
        _histogram(),
        "semconv",
        bounds=_DOUBLING,
    ),
    Metric(
        "gen_ai.client.operation.time_to_first_chunk",
        "histogram",
        "s",
        "Time from the call to the first chunk of a streamed answer.",
        _histogram(),
        "semconv",
        bounds=_DOUBLING,
    ),
    Metric(
        "gen_ai.client.operation.time_per_output_chunk",
        "histogram",
        "s",
        "Time from one chunk of a streamed answer to the next.",
        _histogram(),
        "semconv",
        bounds=_DOUBLING,
    ),
    Metric(
        "gen_ai.client.token.usage",
        "histogram",
        "{token}",
        "Tokens of a call, by type (input, output).",
        _histogram(),
        "semconv",
        bounds=_FOURFOLD,
    ),
    Metric(
        "http.server.request.duration",
        "histogram",
        "s",
        "Time that an HTTP request took to answer.",
        _histogram(),
        "semconv",
        bounds=_HTTP,
    ),
    Metric(
        "http.server.active_requests",
        "updown",
        "{request}",
        "HTTP requests being answered.",
        _hold(relative=0.25),
        "semconv",
    ),
    Metric(
        "http.client.request.duration",
        "histogram",
        "s",
        "Time that an HTTP request to another service took.",
        _histogram(),
        "semconv",
        bounds=_HTTP,
    ),
    Metric(
        "otelperf.client.active_requests",
        "updown",
        "{request}",
        "Calls of a model that are under way.",
        _hold(relative=0.25),
    ),
    Metric(
        "otelperf.worker.time",
        "counter",
        "s",
        "Seconds that the worker spent in each state (active, idle, error).",
        _trend(delta=1.2, group="otelperf.worker.time", within=("otelperf.worker.state",)),
    ),
    Metric("otelperf.worker.active_tasks", "updown", "{task}", "Tasks that the worker is at.", _hold(relative=0.25)),
    Metric(
        "otelperf.worker.tasks", "counter", "{task}", "Tasks that the worker ended, also in error.", _trend(delta=2)
    ),
    Metric("otelperf.worker.errors", "counter", "{task}", "Tasks that ended in error, by its type.", _trend()),
    Metric("otelperf.worker.task.duration", "histogram", "s", "Time that a task took.", _histogram()),
    Metric(
        "otelperf.cache.queries",
        "counter",
        "{query}",
        "Times that the cache was asked.",
        _trend(delta=20, group="otelperf.cache"),
    ),
    Metric(
        "otelperf.cache.hits",
        "counter",
        "{query}",
        "Times that the cache had the answer: over otelperf.cache.queries the hit ratio.",
        _trend(delta=20, group="otelperf.cache"),
    ),
    Metric("otelperf.cache.size", "updown", "{entry}", "Entries in the cache.", _hold(relative=0.1)),
    Metric("otelperf.cache.limit", "updown", "{entry}", "Most entries that the cache may have.", _hold()),
    Metric(
        "otelperf.memory.reliefs",
        "counter",
        "{relief}",
        "Steps of relief taken when memory was short, by step (caches, garbage, callback) and cause (stall, limit).",
        _trend(),
    ),
    Metric("otelperf.memory.freed", "counter", "By", "Resident memory that they freed.", _trend(delta=2**20)),
    Metric("otelperf.quality.score", "histogram", "1", "Scores of answers, by what is scored.", _histogram()),
    Metric(
        "otelperf.quality.drift",
        "gauge",
        "1",
        "Distance of the last scores from the baseline (Kolmogorov-Smirnov, 0 to 1).",
        _hold(0.05),
    ),
    Metric(
        "otelperf.quality.drift.limit",
        "gauge",
        "1",
        "Drift that chance alone passes once in a thousand times.",
        _hold(0.02),
    ),
)

AGENT = (
    Metric("otelperf.gate.points", "counter", "{point}", "Points emitted, by reason.", _OWN_BEAT),
    Metric("otelperf.gate.seen", "counter", "{point}", "Points that reached the gate.", _OWN_BEAT),
    Metric("otelperf.gate.suppressed", "counter", "{point}", "Points held back.", _OWN_BEAT),
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
        _RARELY,
    ),
    Metric(
        "otelperf.gate.samples",
        "counter",
        "{sample}",
        "Samples sent, as Prometheus stores them: buckets and target_info included.",
        _OWN_BEAT,
    ),
    Metric(
        "otelperf.gate.delta",
        "gauge",
        "{unit}",
        "Widest absolute bound in force among a metric's series, in the metric's unit; for a counter, of its increase in a rate "
        "window. Absent where it is 0.",
        _hold(relative=0.5, heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.gate.relative",
        "gauge",
        "1",
        "The same as a share of the value sent last; for a counter, of its rate. Absent where it is 0.",
        _hold(relative=0.5, heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.gate.budget.factor",
        "gauge",
        "1",
        "How many times wider than their rules the bounds are, to keep `gate.budget`; absent without one.",
        _hold(relative=0.1, heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.gate.spans.seen",
        "counter",
        "{span}",
        "Spans that reached the gate. Absent before the first, and where their sending is not our concern.",
        _OWN_BEAT,
    ),
    Metric("otelperf.gate.spans.sent", "counter", "{span}", "Spans that it let out.", _OWN_BEAT),
    Metric(
        "otelperf.gate.spans.lost",
        "counter",
        "{span}",
        "Spans of calls under way that it forgot to stay within its memory.",
        _RARELY,
    ),
    Metric("otelperf.gate.calls", "counter", "{call}", "Calls that ended, each a trace of this process.", _OWN_BEAT),
    Metric("otelperf.gate.calls.kept", "counter", "{call}", "Calls that it let out, by reason.", _OWN_BEAT),
    Metric("otelperf.export.requests", "counter", "{request}", "Requests answered, by outcome.", _RARELY),
    Metric(
        "otelperf.export.points",
        "counter",
        "{point}",
        "Points delivered or dropped, by outcome.",
        _RARELY,
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
        "otel.sdk.exporter.span.exported",
        "counter",
        "{span}",
        "Spans that were delivered; with error.type those that were refused, rejected or dropped. Absent before the first.",
        _RARELY,
        "semconv",
    ),
    Metric(
        "otel.sdk.exporter.span.inflight",
        "updown",
        "{span}",
        "Spans waiting to be sent. Absent before the first.",
        _hold(100, relative=0.5, heartbeat=_SELDOM),
        "semconv",
    ),
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
        _RARELY,
    ),
    Metric(
        "otelperf.source.success",
        "updown",
        "1",
        "1 if the source's last read succeeded, else 0.",
        _state(heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.source.failures",
        "counter",
        "{failure}",
        "Reads of the source that failed; absent while there were none.",
        _RARELY,
    ),
    Metric(
        "otelperf.source.duration",
        "gauge",
        "s",
        "How long the source's last read took.",
        _hold(0.01, relative=2.0, heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.source.interval",
        "gauge",
        "s",
        "Time between two readings of a server, as it is now: longer than set while it answers slowly.",
        _hold(relative=0.5, heartbeat=_SELDOM),
    ),
    Metric(
        "otelperf.source.last_success",
        "gauge",
        "s",
        "Unix time of the source's last good read.",
        _OWN_BEAT,
    ),
)


def integral_name(name: str) -> str:
    """Return the name of the counter that is a gauge's time integral."""
    return f"{name}.integral"


def _integral(row: Metric, tolerated: float) -> Metric:
    """Make the row of a gauge's time integral; what ``rate()`` of it may be off by is what the gauge's mean may."""
    return Metric(
        integral_name(row.name),
        "counter",
        "s" if row.unit == "1" else f"{row.unit}.s",
        f"Time integral of `{row.name}`: its `rate()` is the true mean. Only where `gate.integrals` names the gauge.",
        _trend(0.1, delta=tolerated * _RATE_WINDOW),
    )


INTEGRALS: tuple[Metric, ...] = tuple(
    _integral(row, row.averaged) for row in HOST + PROCESS + SERVER + WATCH if row.averaged is not None
)
METRICS: tuple[Metric, ...] = HOST + PROCESS + RUNTIME + SERVER + WATCH + APPLICATION + INTEGRALS + AGENT
BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def rules(heartbeat: float = 50.0, rate_window: float = _RATE_WINDOW) -> dict[str, Rule]:
    """Return the gate's default rule of each metric.

    What beats seldom keeps its distance to a shorter *heartbeat*; integrals keep the error of their mean under another
    *rate_window* (both in seconds).
    """
    found = {metric.name: _paced(metric.rule, heartbeat / 50.0) for metric in METRICS}
    for metric in INTEGRALS:
        rule = found[metric.name]
        found[metric.name] = replace(rule, delta=rule.delta * rate_window / _RATE_WINDOW)
    return found


def _paced(rule: Rule, factor: float) -> Rule:
    return rule if rule.heartbeat is None else replace(rule, heartbeat=rule.heartbeat * min(1.0, factor))

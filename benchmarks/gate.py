"""What the gate costs, a point and a stream: ``python -m benchmarks.gate``.

Each row is a process of its own. The peer, in the same process, is what a program without the gate does with the same points:
encode them as OTLP (the library's ``encode_metrics``) at each tick. What is let out is thrown away, so the gate's figures are
without encoding. CPU time is counted, not time on the wall.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import json
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otelperf.gate.budget import Budget
from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Policy, Rule

SIZES = (100, 10_000, 100_000)
QUICK_SIZES = (100, 10_000)
KINDS = ("gauge", "counter", "histogram")
LOADS = ("held", "mixed", "emitted", "budget")
POINTS = 200_000  # judged for each figure, or one gate's
QUICK_POINTS = 20_000
TICKS = 20  # measured of each gate; small gates are made again and again, so that each is measured at the same age
WARM_TICKS, WARM_SECONDS = 15, 20  # counters remember readings of five minutes
PER_METRIC = 1000  # streams
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RULES = {
    "gauge": Rule(delta=10.0),
    "counter": Rule(kind="trend", relative=0.25, delta=10.0),
    "histogram": Rule(kind="histogram", relative=0.1),
}
MOVES = {"held": 0, "mixed": 20, "emitted": 1, "budget": 20}  # every nth stream moves in a tick
FLAT = 1.5  # the most that a point may cost at 100,000 streams, as a multiple of what it costs at 100
PAGE = Path(__file__).resolve().parent.parent / "docs" / "gate-cost.md"
BEGIN, END = "<!-- made by python -m benchmarks.gate --write -->", "<!-- end of the figures -->"


Table = list[tuple[str, ...]]


class Row(NamedTuple):
    """One kind of stream at one size: CPU in µs a point and the share let out, both by load; memory in bytes a stream."""

    kind: str
    streams: int
    cpu: dict[str, float]
    sent: dict[str, float]
    allocated: float
    resident: float


class Nowhere(MetricExporter):
    """Throws everything away."""

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass


class World:
    """Streams of one kind, shown once a second; as in the agent, their attributes are the same objects each time."""

    def __init__(self, kind: str, streams: int) -> None:
        self.kind = kind
        self.now = START
        self.resource = Resource({"service.name": "benchmark"})
        self.scope = InstrumentationScope("benchmark")
        self.attributes = [{"device": f"d{i}", "mode": "user"} for i in range(streams)]
        self.tick = 0

    def look(self, every: int) -> MetricsData:
        """Return the next second's readings; every *every*-th stream has moved by more than its rule lets pass, in turn."""
        self.tick += 1
        self.now += SECOND
        points = [self._point(i, attributes, every) for i, attributes in enumerate(self.attributes)]
        metrics = [
            Metric(f"m{begin}", "", "1", self._data(points[begin : begin + PER_METRIC]))
            for begin in range(0, len(points), PER_METRIC)
        ]
        return MetricsData([ResourceMetrics(self.resource, [ScopeMetrics(self.scope, metrics, "")], "")])

    def _data(self, points: list[Any]) -> Any:
        if self.kind == "gauge":
            return Gauge(points)
        if self.kind == "counter":
            return Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        return Histogram(points, AggregationTemporality.CUMULATIVE)

    def _point(self, i: int, attributes: dict[str, str], every: int) -> Any:
        moves = (self.tick + i) // every if every else 0
        if self.kind == "gauge":
            return NumberDataPoint(attributes, 0, self.now, 50.0 + moves % 2 * 100.0 + self.tick % 3)
        if self.kind == "counter":
            # Steady, each move twice what the rule tolerates in its shortest window.
            return NumberDataPoint(attributes, START, self.now, (self.now - START) // SECOND * 100 + moves * 3000)
        count = moves * 10
        counts = (0, 0, count // 2, 0, 0, count - count // 2, 0, 0, 0, 0, 0, 0)
        return HistogramDataPoint(attributes, START, self.now, count, count * 0.1, counts, BOUNDS, 0.01, 0.2)


def _gate(world: World, budget: Budget | None = None) -> DeltaGate:
    policy = Policy({f"m{begin}": RULES[world.kind] for begin in range(0, len(world.attributes), PER_METRIC)})
    interval = 1.0 if world.kind == "histogram" else 30.0
    return DeltaGate(
        Nowhere(),
        policy,
        lambda: world.now,
        histogram_interval=interval,
        budget=budget,
        max_streams=len(world.attributes),
    )


def _cpu(looks: Iterable[MetricsData], use: Callable[[MetricsData], object]) -> float:
    """Return the CPU time that *use* takes, in µs."""
    spent = 0
    for look in looks:
        began = time.process_time_ns()
        use(look)
        spent += time.process_time_ns() - began
    return spent / 1000


def measure(kind: str, streams: int, points: int) -> Row:
    """Measure one row in this process."""
    resident = _resident_a_stream(kind, streams)
    gates = max(1, points // (streams * TICKS))
    found: dict[str, float] = {}
    sent: dict[str, float] = {}
    for load in LOADS:
        # Half of what the moves alone would take, and a little more than heartbeats do.
        budget = Budget(total=streams * 60 / MOVES["mixed"] / 2) if load == "budget" else None
        spent = let_out = 0.0
        for _ in range(gates):
            world = World(kind, streams)
            gate = _warm(world, MOVES[load], budget)
            before = sum(gate.stats.emitted.values())
            spent += _cpu((world.look(MOVES[load]) for _ in range(TICKS)), gate.export)
            let_out += sum(gate.stats.emitted.values()) - before
        found[load] = spent / (gates * streams * TICKS)
        sent[load] = let_out / (gates * streams * TICKS)
    world = World(kind, streams)
    looks = max(2, gates * TICKS // 10)
    found["encoded"] = _cpu((world.look(1) for _ in range(looks)), encode_metrics) / (looks * streams)
    return Row(kind, streams, found, sent, _allocated_a_stream(kind, streams), resident)


def _warm(world: World, every: int, budget: Budget | None = None) -> DeltaGate:
    """Return a gate that has seen some minutes of the world."""
    gate = _gate(world, budget)
    for _ in range(WARM_TICKS):
        gate.export(world.look(every))
        world.now += (WARM_SECONDS - 1) * SECOND
    gate.force_flush()
    return gate


def _resident_a_stream(kind: str, streams: int) -> float:
    """Return by how many bytes a stream the process grows; much of a small gate's is memory that was there before."""
    world = World(kind, streams)
    world.look(1)
    before = _resident()
    gate = _warm(world, MOVES["mixed"])
    grown = _resident() - before
    assert gate.stats.streams == streams
    return grown / streams


def _allocated_a_stream(kind: str, streams: int) -> float:
    """Return the bytes that a gate keeps of each stream, the last points that it was shown included."""
    world = World(kind, streams)
    gc.collect()
    tracemalloc.start()
    gate = _warm(world, MOVES["mixed"])
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert gate.stats.streams == streams
    return kept / streams


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# The report


def costs(rows: list[Row]) -> Table:
    """Return what a point and a stream cost."""
    head = ("streams", "number", *(f"{load}, µs" for load in LOADS), "encoded without a gate, µs")
    table: Table = [(*head, "gate / encoded, mixed", "let out, mixed", "bytes a stream", "resident")]
    for row in rows:
        cpu = tuple(f"{row.cpu[load]:.2f}" for load in (*LOADS, "encoded"))
        shares = (f"{row.cpu['mixed'] / row.cpu['encoded']:.2f}", f"{row.sent['mixed']:.1%}")
        resident = f"{row.resident:,.0f}" if row.streams >= QUICK_SIZES[-1] else "-"
        table.append((f"{row.kind}s", f"{row.streams:,}", *cpu, *shares, f"{row.allocated:,.0f}", resident))
    return table


def flatness(rows: list[Row]) -> Table:
    """Return what a point costs at the most streams as a multiple of what it costs at the fewest."""
    table: Table = [("streams", "compared", *LOADS, "encoded without a gate", f"flat (at most {FLAT:g})")]
    for kind in KINDS:
        few, *_, many = (row for row in rows if row.kind == kind)
        ratios = {load: many.cpu[load] / few.cpu[load] for load in (*LOADS, "encoded")}
        flat = all(ratios[load] <= FLAT for load in LOADS)
        compared = f"{many.streams:,} / {few.streams:,}"
        table.append((f"{kind}s", compared, *(f"{r:.2f}" for r in ratios.values()), "yes" if flat else "no"))
    return table


def main() -> int:
    """Measure each row in a process of its own and print the tables."""
    options = _options()
    if options.row:
        kind, streams, points = options.row.split(",")
        print(json.dumps(measure(kind, int(streams), int(points))))
        return 0
    rows = []
    sizes, points = (QUICK_SIZES, QUICK_POINTS) if options.quick else (SIZES, POINTS)
    for kind in KINDS:
        for streams in sizes:
            command = [sys.executable, "-m", "benchmarks.gate", "--row", f"{kind},{streams},{points}"]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            rows.append(Row(*json.loads(answer)))
            print(f"{kind} {streams:,}: done", file=sys.stderr, flush=True)
    today = dt.datetime.now(tz=dt.UTC).date()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    where = f"{today}, {python}, Linux {'.'.join(platform.release().split('.')[:2])}, {os.cpu_count()} cores"
    shown = [where, *_shown("What a point and a stream cost", costs(rows)), *_shown("Flat?", flatness(rows))]
    print("\n".join(shown))
    if options.write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join(shown)}\n{END}{rest.split(END)[1]}")
    return 0


def _shown(title: str, table: Table) -> list[str]:
    """Return a Markdown table as lines."""
    rule = tuple("---" for _ in table[0])
    return ["", f"**{title}**", "", *("| " + " | ".join(row) + " |" for row in (table[0], rule, *table[1:]))]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--quick", action="store_true", help="without the largest size, and too short to be quoted")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/gate-cost.md")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

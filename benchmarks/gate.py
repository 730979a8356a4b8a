"""What the gate costs, a point and a stream: ``python -m benchmarks.gate``.

Each row is a process of its own. The peer, in the same process and in turn with the gate, is what a program without it does
with the same points: encode them as OTLP (the library's ``encode_metrics``) at each tick. What is let out is thrown away, so the
gate's figures are without encoding. CPU time is counted, not time on the wall.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from benchmarks import page
from benchmarks.page import Table
from otelperf.console import NullExporter
from otelperf.gate.budget import Budget
from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Policy, Rule

SIZES = (100, 10_000, 100_000)
QUICK_SIZES = (100, 5_000)
KINDS = ("gauge", "counter", "histogram")
LOADS = ("held", "mixed", "emitted", "budget")
POINTS = 200_000  # judged for each figure, or one gate's
QUICK_POINTS = 20_000
TICKS = 20  # measured of each gate; small gates are made again and again, so that each is measured at the same age
ENCODED = 4  # every so manieth tick of "mixed" is encoded as well: the two that are compared see the same moods of the machine
HISTORY = 300  # seconds of which counters remember readings
WARM_STEP = 20  # seconds between two looks before CPU is measured
MEMORY_STEP = 3  # the same before memory is: as far apart as the readings of a counter that are remembered
MEMORY_STREAMS, QUICK_MEMORY_STREAMS = 10_000, 500
PER_METRIC = 1000  # streams
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SAMPLES = {"gauge": 1, "counter": 1, "histogram": len(BOUNDS) + 3}  # a point becomes in Prometheus
RULES = {
    "gauge": Rule(delta=10.0),
    "counter": Rule(kind="trend", relative=0.25, delta=10.0),
    "histogram": Rule(kind="histogram", relative=0.1),
}
MOVES = {"held": 0, "mixed": 20, "emitted": 1, "budget": 20}  # every nth stream moves in a tick
FLAT = 1.5  # the most that a point may cost at 100,000 streams, as a multiple of what it costs at 100
PAGE = page.DOCS / "gate-cost.md"
BEGIN, END = "<!-- made by python -m benchmarks.gate --write -->", "<!-- end of the figures -->"


class Row(NamedTuple):
    """One kind of stream at one size: CPU in µs a point and the share let out, both by load."""

    kind: str
    streams: int
    cpu: dict[str, float]
    sent: dict[str, float]


class Kept(NamedTuple):
    """What is kept of one kind of stream, in bytes a stream."""

    kind: str
    streams: int
    allocated: float
    resident: float


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
        NullExporter(),
        policy,
        lambda: world.now,
        histogram_interval=interval,
        budget=budget,
        max_streams=len(world.attributes),
    )


def _cpu(use: Callable[[MetricsData], object], look: MetricsData) -> float:
    """Return the CPU time that *use* takes, in µs."""
    began = time.process_time_ns()
    use(look)
    return (time.process_time_ns() - began) / 1000


def measure(kind: str, streams: int, points: int) -> Row:
    """Measure one row in this process."""
    gates = max(1, points // (streams * TICKS))
    found: dict[str, float] = {}
    sent: dict[str, float] = {}
    encoded: list[float] = []
    for load in LOADS:
        # Half of what the moves alone would take, and a little more than heartbeats do.
        budget = Budget(total=streams * SAMPLES[kind] * 60 / MOVES["mixed"] / 2) if load == "budget" else None
        spent = let_out = 0.0
        for _ in range(gates):
            world = World(kind, streams)
            gate = _warm(world, MOVES[load], WARM_STEP, budget)
            before = sum(gate.stats.emitted.values())
            for tick in range(TICKS):
                look = world.look(MOVES[load])
                spent += _cpu(gate.export, look)
                if load == "mixed" and tick % ENCODED == 0:
                    encoded.append(_cpu(encode_metrics, look))
            let_out += sum(gate.stats.emitted.values()) - before
        found[load] = spent / (gates * streams * TICKS)
        sent[load] = let_out / (gates * streams * TICKS)
    found["encoded"] = sum(encoded) / (len(encoded) * streams)
    return Row(kind, streams, found, sent)


def _warm(world: World, every: int, step: int, budget: Budget | None = None) -> DeltaGate:
    """Return a gate that has seen some minutes of the world, each *step* seconds."""
    gate = _gate(world, budget)
    for _ in range(HISTORY // step):
        gate.export(world.look(every))
        world.now += (step - 1) * SECOND
    gate.force_flush()
    return gate


def keep(kind: str, streams: int) -> Kept:
    """Measure what this process keeps of streams, the last points that the gate was shown included."""
    world = World(kind, streams)
    world.look(1)
    before = _resident()
    gate = _warm(world, MOVES["mixed"], MEMORY_STEP)
    grown = _resident() - before
    del gate
    world = World(kind, streams)
    gc.collect()
    tracemalloc.start()
    gate = _warm(world, MOVES["mixed"], MEMORY_STEP)
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert gate.stats.streams == streams
    return Kept(kind, streams, kept / streams, grown / streams)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# The report


def costs(rows: list[Row]) -> Table:
    """Return what a point and a stream cost."""
    head = ("streams", "number", *(f"{load}, µs" for load in LOADS), "encoded without a gate, µs")
    table: Table = [(*head, "gate / encoded, mixed", "let out, mixed")]
    for row in rows:
        cpu = tuple(f"{row.cpu[load]:.2f}" for load in (*LOADS, "encoded"))
        shares = (f"{row.cpu['mixed'] / row.cpu['encoded']:.2f}", f"{row.sent['mixed']:.1%}")
        table.append((f"{row.kind}s", f"{row.streams:,}", *cpu, *shares))
    return table


def memory(kept: list[Kept]) -> Table:
    """Return what is kept of a stream; by how much the process grew only of many, for much was there before."""
    table: Table = [("streams", "number", "bytes a stream, allocated")]
    table += [(f"{each.kind}s", f"{each.streams:,}", f"{each.allocated:,.0f}") for each in kept]
    if all(each.streams >= MEMORY_STREAMS for each in kept):
        grown = ("the process grew by, a stream", *(f"{each.resident:,.0f}" for each in kept))
        table = [(*row, cell) for row, cell in zip(table, grown, strict=True)]
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
        print(json.dumps(measure(kind, int(streams), int(points)) if int(points) else keep(kind, int(streams))))
        return 0
    rows, kept = [], []
    sizes, points = (QUICK_SIZES, QUICK_POINTS) if options.quick else (SIZES, POINTS)
    load = os.getloadavg()[0]
    for kind in KINDS:
        rows += [Row(*_in_a_process(kind, streams, points)) for streams in sizes]
        kept.append(Kept(*_in_a_process(kind, QUICK_MEMORY_STREAMS if options.quick else MEMORY_STREAMS, 0)))
    where = f"{page.machine()}, load average {load:.1f} before and {os.getloadavg()[0]:.1f} after"
    shown = [f"{where}; the quick run" if options.quick else where]
    for title, table in (
        ("What a point costs", costs(rows)),
        ("Is it flat?", flatness(rows)),
        ("What a stream keeps", memory(kept)),
    ):
        shown += ["", f"**{title}**", "", *page.markdown(table)]
    print(*shown, sep="\n")
    if options.write:
        page.write(PAGE, BEGIN, END, "\n".join(shown))
    return 0


def _in_a_process(kind: str, streams: int, points: int) -> list[Any]:
    """Return what one row's process finds out; without points, what it keeps."""
    command = [sys.executable, "-m", "benchmarks.gate", "--row", f"{kind},{streams},{points}"]
    answer: list[Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(f"{kind} {streams:,}: done", file=sys.stderr, flush=True)
    return answer


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--quick", action="store_true", help="in a minute or two, without the largest sizes")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/gate-cost.md")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

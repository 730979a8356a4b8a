"""What each way lets through of an input, and when: the gate, or a scrape at a fixed interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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

from benchmarks.fidelity.inputs import Input, Series, Value
from otelperf import catalog, own
from otelperf.export import SenderStats
from otelperf.gate.marks import DataPoint, encode, is_mark, mark
from otelperf.gate.metrics import DeltaGate, GateStats
from otelperf.gate.policy import Policy, Rule
from otelperf.points import Points
from otelperf.readings import Buckets, Health, Snapshot

SECOND = 1_000_000_000
MS = 1_000_000
_CUMULATIVE = AggregationTemporality.CUMULATIVE
_SCOPE = InstrumentationScope("otelperf", "benchmark")
_OWN_INTERVAL = 5
_STARTED_BEFORE = 3600 * SECOND  # counters began to count this long before the recording
_TARGET_INFO_STEP = 150_000  # ms
_LATE_CHUNK = 32  # samples: Prometheus' out-of-order chunk


class Point(NamedTuple):
    """One point on its way. *arrived* in s and *time* in ms since the start; *value* None is a stale mark."""

    arrived: int
    time: int
    series: int
    value: Value | None


@dataclass
class Way:
    """What came through. *interval* in s is None for the gate; *requests* by the second in which they were sent.

    Samples are as Prometheus stores them; *own* are those of the agent about itself, without their ``target_info``.
    """

    name: str
    interval: int | None
    points: list[Point] = field(default_factory=list)
    requests: list[tuple[int, MetricsData]] = field(default_factory=list)
    target_info: int = 0
    own: int = 0
    own_target_info: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)


def body(data: MetricsData) -> bytes:
    """Return a request as it is posted."""
    encoded: bytes = encode(data).SerializeToString()
    return encoded


class Replay:
    """Makes the SDK's data of an input; times begin at *start* (Unix ns)."""

    def __init__(self, recording: Input, start: int) -> None:
        self.recording = recording
        self.start = start
        self._resource = _resource(recording.name)
        self._families: dict[str, list[int]] = {}
        for number, series in enumerate(recording.series):
            self._families.setdefault(series.name, []).append(number)
        self._numbers: dict[tuple[str, frozenset[Any]], int] = {
            (series.name, frozenset(series.attributes.items())): number
            for number, series in enumerate(recording.series)
        }
        self._own_points = Points({"agent": _resource("otelperf")}, "benchmark")
        self.own_stats = SenderStats()

    def tick(self, tick: int) -> ResourceMetrics:
        """Return everything that was read at a tick."""
        time = self.start + tick * self.recording.interval * SECOND
        found: dict[str, list[DataPoint]] = {}
        for name, numbers in self._families.items():
            for number in numbers:
                series = self.recording.series[number]
                value = series.values[tick]
                if value is not None:
                    found.setdefault(name, []).append(self.point(series, value, time))
        return self.resource_metrics(found)

    def point(self, series: Series, value: Value, time: int) -> DataPoint:
        """Return a value as a data point."""
        start = self.start - _STARTED_BEFORE if series.kind in {"counter", "histogram"} else 0
        if isinstance(value, Buckets):
            return HistogramDataPoint(
                series.attributes, start, time, value.count, value.sum, value.counts, value.bounds, 0.0, 0.0
            )
        return NumberDataPoint(series.attributes, start, time, value, ())

    def resource_metrics(self, found: Mapping[str, Sequence[Any]]) -> ResourceMetrics:
        """Return points by metric as one resource."""
        metrics = [self._metric(name, points) for name, points in found.items()]
        return ResourceMetrics(self._resource, [ScopeMetrics(_SCOPE, metrics, "")], "")

    def _metric(self, name: str, points: Sequence[Any]) -> Metric:
        series = self.recording.series[self._families[name][0]]
        data: Gauge | Sum | Histogram
        if series.kind == "gauge":
            data = Gauge(points)
        elif series.kind == "histogram":
            data = Histogram(points, _CUMULATIVE)
        else:
            data = Sum(points, _CUMULATIVE, series.kind == "counter")
        return Metric(name, "", series.unit, data)

    def own(self, stats: GateStats, second: int) -> ResourceMetrics:
        """Return what the agent says of itself, as it does each 5 s. Durations are those of a good day."""
        time = self.start + second * SECOND
        health = tuple(
            Health(f"source-{number}", True, False, "", 0.001, time, 0) for number in range(self.recording.sources)
        )
        batch = own.batch(time, self.start, stats, self.own_stats, health, 0.002, 0)
        return self._own_points.of(Snapshot(time, (batch,), health)).resource_metrics[0]

    def number(self, name: str, point: DataPoint) -> int | None:
        """Return which series a point belongs to; None for the agent's own."""
        return self._numbers.get((name, frozenset((point.attributes or {}).items())))


def _resource(name: str) -> Resource:
    """Return a resource that says more than who it is: without more, Prometheus makes no ``target_info``."""
    return Resource({"service.name": name, "service.instance.id": "recorded", "os.type": "linux"})


def fixed(recording: Input, interval: int, phase: int) -> Way:
    """Scrape each *interval* s, or at the reading before. A series that has gone gets a stale mark."""
    way = Way("dense" if interval == recording.interval else f"{interval} s", interval)
    present: set[int] = set()
    for second in range(phase, recording.seconds, interval):
        tick = second // recording.interval
        read = tick * recording.interval
        for number, series in enumerate(recording.series):
            value = series.values[tick]
            if value is not None:
                way.points.append(Point(read, read * 1000, number, value))
                present.add(number)
            elif number in present:
                way.points.append(Point(read, read * 1000, number, None))
                present.discard(number)
        way.target_info += 1
    return way


def fixed_requests(way: Way, recording: Input, start: int) -> Iterator[tuple[int, MetricsData]]:
    """Return the points of a scrape as requests, one a scrape."""
    replay = Replay(recording, start)
    last: dict[int, DataPoint] = {}
    scrapes: dict[int, dict[str, list[DataPoint]]] = {}
    for point in way.points:
        series, time = recording.series[point.series], start + point.time * MS
        if point.value is None:
            data = mark(last[point.series], time)
        else:
            data = last[point.series] = replay.point(series, point.value, time)
        scrapes.setdefault(point.arrived, {}).setdefault(series.name, []).append(data)
    for second, found in scrapes.items():
        yield second, MetricsData([replay.resource_metrics(found)])


class TargetInfo:
    """The ``target_info`` of a resource, as Prometheus stores it: at the first and the last time of each request.

    ``addResourceTargetInfo`` in prometheus/storage/remote/otlptranslator. A time that is stored already is left out when it is
    the newest, or in the same chunk of late ones; a late one that came in time before is stored, and counted, twice.
    """

    def __init__(self) -> None:
        self._newest = -1
        self._late: set[int] = set()
        self.samples = 0

    def store(self, earliest: int, latest: int) -> None:
        """Take a request; times in ms."""
        for time in (*range(earliest, latest, _TARGET_INFO_STEP), latest):
            if time < self._newest:
                if len(self._late) == _LATE_CHUNK:
                    self._late.clear()
                self.samples += time not in self._late
                self._late.add(time)
            else:
                self.samples += time > self._newest
                self._newest = time


class _Recorder(MetricExporter):
    """Takes what the gate lets out."""

    flags_marks = True

    def __init__(self, replay: Replay, way: Way) -> None:
        super().__init__()
        self._replay = replay
        self._way = way
        self._infos = {True: TargetInfo(), False: TargetInfo()}  # of the input, of the agent
        self.second = 0

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        way, sent = self._way, 0
        way.requests.append((self.second, metrics_data))
        for resource in metrics_data.resource_metrics:
            times: list[int] = []
            ours, samples = True, 0
            for metric in resource.scope_metrics[0].metrics:
                for point in metric.data.data_points:
                    times.append(point.time_unix_nano)
                    number = self._replay.number(metric.name, point)
                    samples += 1
                    if number is None:
                        ours = False
                    else:
                        time = (point.time_unix_nano - self._replay.start) // MS
                        way.points.append(Point(self.second, time, number, _value(point)))
            sent += samples
            self._infos[ours].store(min(times) // MS, max(times) // MS)
            way.own += 0 if ours else samples
        way.target_info, way.own_target_info = self._infos[True].samples, self._infos[False].samples
        self._replay.own_stats.requests["delivered"] += 1
        self._replay.own_stats.points["delivered"] += sent
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass


def gated(recording: Input, start: int, rules: Mapping[str, Rule], **options: Any) -> Way:
    """Drive the gate through the recording with a clock of its own; *options* are those of DeltaGate."""
    way = Way("gate", None)
    replay = Replay(recording, start)
    recorder = _Recorder(replay, way)
    now = [start]
    policy = Policy({**catalog.rules(), **rules})
    gate = DeltaGate(recorder, policy, lambda: now[0], complete=(_SCOPE.name,), **options)
    own_data: ResourceMetrics | None = None
    for second in range(recording.seconds):
        if second % recording.interval and second % _OWN_INTERVAL:
            continue  # nothing was read
        recorder.second, now[0] = second, start + second * SECOND
        if second % _OWN_INTERVAL == 0 or own_data is None:
            own_data = replay.own(gate.stats, second)
        gate.export(MetricsData([replay.tick(second // recording.interval), own_data]))
    way.reasons = dict(gate.stats.emitted)
    return way


def _value(point: DataPoint) -> Value | None:
    if is_mark(point):
        return None
    if isinstance(point, HistogramDataPoint):
        return Buckets(point.count, point.sum, tuple(point.explicit_bounds), tuple(point.bucket_counts))
    assert isinstance(point, NumberDataPoint)  # no input has another
    return point.value

"""A gate with a clock that the test moves, and an honest exporter behind it that answers as told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
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

from otelperf.gate.marks import DataPoint, is_mark
from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Override, Policy, Rule

SECOND = 1_000_000_000
MS = 1_000_000
START = 1_700_000_000 * SECOND  # a multiple of the heartbeat, 50 s
CUMULATIVE = AggregationTemporality.CUMULATIVE
DELTA = AggregationTemporality.DELTA
RESOURCE = Resource({"service.name": "tested"})
SCOPE = InstrumentationScope("otelperf.tests")
OTHER_SCOPE = InstrumentationScope("otelperf.tests.other")

Arrival = tuple[str, frozenset[Any], DataPoint]


class Recorder(MetricExporter):
    """Keeps each request. *answers* are used up first, then SUCCESS; an exception among them is raised."""

    def __init__(self, *, flags_marks: bool = True, **preferences: Any) -> None:
        super().__init__(**preferences)
        self.flags_marks = flags_marks
        self.requests: list[MetricsData] = []
        self.attempts = 0
        self.answers: list[MetricExportResult | Exception] = []
        self.flushes = 0
        self.shutdowns = 0

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        self.attempts += 1
        answer = self.answers.pop(0) if self.answers else MetricExportResult.SUCCESS
        if isinstance(answer, Exception):
            raise answer
        if answer is MetricExportResult.SUCCESS:
            self.requests.append(metrics_data)
        return answer

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        self.flushes += 1
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self.shutdowns += 1


class World:
    """*clock* and *points* agree unless a test says otherwise: a tick moves both."""

    def __init__(
        self,
        rules: Mapping[str, Rule] | None = None,
        overrides: Sequence[Override] = (),
        *,
        recorder: Recorder | None = None,
        **options: Any,
    ) -> None:
        self.now = START
        self.recorder = recorder or Recorder()
        self.gate = DeltaGate(self.recorder, Policy(rules, overrides), lambda: self.now, **options)

    def tick(
        self, *metrics: Metric, seconds: float = 1.0, resource: Resource = RESOURCE, scope: InstrumentationScope = SCOPE
    ) -> MetricExportResult:
        """Export the metrics at this moment, then let the time pass."""
        result = self.gate.export(data(*metrics, resource=resource, scope=scope))
        self.now += int(seconds * SECOND)
        return result

    def show(
        self, value: float, *, name: str = "m", seconds: float = 1.0, attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Tick with one gauge."""
        self.tick(gauge(name, number(self.now, value, attributes)), seconds=seconds)

    def count(self, value: float, *, name: str = "m", seconds: float = 1.0, start: int = START) -> None:
        """Tick with one counter."""
        self.tick(counter(name, number(self.now, value, start=start)), seconds=seconds)

    def flush(self) -> None:
        self.gate.force_flush()

    def arrivals(self) -> list[Arrival]:
        return [arrival for request in self.recorder.requests for arrival in arrivals(request)]

    def points(self, name: str = "m") -> list[Any]:
        """Return what arrived of a metric, marks aside."""
        return [point for n, _, point in self.arrivals() if n == name and not is_mark(point)]

    def marks(self, name: str = "m") -> list[Any]:
        return [point for n, _, point in self.arrivals() if n == name and is_mark(point)]

    def series(self, name: str = "m") -> list[tuple[float, float]]:
        """Return what arrived of a metric, as (seconds since the start, value)."""
        return [((p.time_unix_nano - START) / SECOND, p.value) for p in self.points(name)]

    def values(self, name: str = "m") -> list[float]:
        return [value for _, value in self.series(name)]


def arrivals(request: MetricsData) -> Iterable[Arrival]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    yield metric.name, frozenset((point.attributes or {}).items()), point


def data(*metrics: Metric, resource: Resource = RESOURCE, scope: InstrumentationScope = SCOPE) -> MetricsData:
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, list(metrics), "")], "")])


def number(
    time: int,
    value: float,
    attributes: Mapping[str, Any] | None = None,
    *,
    start: int = START,
    exemplars: Sequence[Any] = (),
) -> NumberDataPoint:
    return NumberDataPoint(dict(attributes or {}), start, time, value, exemplars)


def gauge(name: str, *points: NumberDataPoint) -> Metric:
    return Metric(name, "", "1", Gauge(list(points)))


def updown(name: str, *points: NumberDataPoint) -> Metric:
    return Metric(name, "", "1", Sum(list(points), CUMULATIVE, is_monotonic=False))


def counter(name: str, *points: NumberDataPoint, temporality: AggregationTemporality = CUMULATIVE) -> Metric:
    return Metric(name, "", "1", Sum(list(points), temporality, is_monotonic=True))


BOUNDS = (1.0, 2.0, 4.0, 8.0)


def buckets(
    time: int, counts: Sequence[int], *, start: int = START, exemplars: Sequence[Any] = ()
) -> HistogramDataPoint:
    total = sum(c * m for c, m in zip(counts, (0.5, 1.5, 3.0, 6.0, 10.0), strict=True))
    return HistogramDataPoint({}, start, time, sum(counts), total, tuple(counts), BOUNDS, 0.1, 10.0, exemplars)


def histogram(name: str, *points: HistogramDataPoint) -> Metric:
    return Metric(name, "", "s", Histogram(list(points), CUMULATIVE))


def exponential(name: str, time: int, count: int, *, start: int = START) -> Metric:
    point = ExponentialHistogramDataPoint(
        {}, start, time, count, float(count), 3, 0, Buckets(1, (count,)), Buckets(0, ()), 0, 0.1, 10.0
    )
    return Metric(name, "", "s", ExponentialHistogram([point], CUMULATIVE))

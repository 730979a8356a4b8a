"""Snapshot to the SDK's data classes: the only place where readings become metrics."""

from __future__ import annotations

from collections.abc import Mapping

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

from otelperf import catalog
from otelperf.readings import Buckets, Native, Reading, Snapshot

SCOPE_NAME = "otelperf"
_CUMULATIVE = AggregationTemporality.CUMULATIVE


class CountsUp(Sum):
    """A counter that is sent as a sum that may fall: Prometheus puts ``_total`` behind the name of every other."""

    counts_up = True  # the gate asks


class Points:
    """Turn snapshots into MetricsData; *resources* by the entity that readings belong to."""

    def __init__(self, resources: Mapping[str, Resource], version: str) -> None:
        self._resources = resources
        self.scope = InstrumentationScope(SCOPE_NAME, version)

    def of(self, snapshot: Snapshot) -> MetricsData:
        """Build one entry a resource, one scope in it, one metric a name; a start time of 0 means that the source knew none."""
        entities: dict[str, dict[str, list[NumberDataPoint | HistogramDataPoint]]] = {}
        natives: dict[tuple[str, str], Native] = {}
        for batch in snapshot.batches:
            metrics = entities.setdefault(batch.entity, {})
            for reading in batch.readings:
                point = _point(reading, batch.time)
                points = metrics.get(reading.name)
                if points is None:
                    metrics[reading.name] = [point]
                    if reading.native is not None:
                        natives[batch.entity, reading.name] = reading.native
                else:
                    points.append(point)
        return MetricsData([self._resource(entity, metrics, natives) for entity, metrics in entities.items()])

    def _resource(
        self,
        entity: str,
        metrics: dict[str, list[NumberDataPoint | HistogramDataPoint]],
        natives: Mapping[tuple[str, str], Native],
    ) -> ResourceMetrics:
        made = [_metric(name, points, natives.get((entity, name))) for name, points in metrics.items()]
        scope = ScopeMetrics(self.scope, made, "")
        return ResourceMetrics(self._resources[entity], [scope], "")


def _point(reading: Reading, time: int) -> NumberDataPoint | HistogramDataPoint:
    value = reading.value
    # A start to come is none: a boot time is an estimate. Were it cut to *time*, it would look like a restart at each reading.
    start = reading.start if reading.start and reading.start <= time else 0
    if not isinstance(value, Buckets):
        return NumberDataPoint(reading.attributes, start, time, value, ())
    return HistogramDataPoint(
        reading.attributes, start, time, value.count, value.sum, value.counts, value.bounds, 0.0, 0.0
    )


def _metric(name: str, points: list[NumberDataPoint | HistogramDataPoint], native: Native | None) -> Metric:
    row = native or catalog.BY_NAME[name]
    data: Gauge | Sum | Histogram
    if row.kind == "gauge":
        data = Gauge(points)  # type: ignore[arg-type] # the catalogue says which kind of point a name has
    elif row.kind == "histogram":
        data = Histogram(points, _CUMULATIVE)  # type: ignore[arg-type] # as above
    elif row.kind == "sum":
        data = CountsUp(points, _CUMULATIVE, is_monotonic=False)  # type: ignore[arg-type] # as above
    else:
        data = Sum(points, _CUMULATIVE, row.kind == "counter")  # type: ignore[arg-type] # as above
    # Prometheus puts a unit behind a name: a native one has it already.
    unit = row.unit if isinstance(row, catalog.Metric) else ""
    return Metric(name, row.meaning, unit, data)

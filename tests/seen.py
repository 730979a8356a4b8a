"""What an application's own providers would export."""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otelperf.readings import Reading
from otelperf.sources.calls import Calls


class Seen:
    """What the providers exported."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meter_provider = MeterProvider([self._metrics], shutdown_on_exit=False)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._spans.get_finished_spans())

    def points(self, name: str) -> list[HistogramDataPoint]:
        return [point for point in self._points(name) if isinstance(point, HistogramDataPoint)]

    def numbers(self, name: str) -> list[NumberDataPoint]:
        return [point for point in self._points(name) if isinstance(point, NumberDataPoint)]

    def _points(self, name: str) -> list[object]:
        data = self._metrics.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def call_readings(name: str) -> list[Reading]:
    """What the source of calls says of one metric."""
    return [reading for reading in Calls("agent").read(0) if reading.name == name]


def active() -> list[object]:
    """How many calls of each kind are under way."""
    return [reading.value for reading in call_readings("otelperf.client.active_requests")]

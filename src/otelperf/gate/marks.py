"""Stale marks: points that say a stream has ended (OTLP's *no recorded value* flag), and the encoder that flags them.

The SDK's data classes have no flags. A number's mark therefore also carries Prometheus' stale NaN, which ends a gauge or a sum
even through an exporter that knows nothing of marks. A histogram's mark carries the bounds of its last point: without them
Prometheus leaves the buckets alive.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics.export import (
    Buckets,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
)

if TYPE_CHECKING:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

DataPoint = NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint

NO_RECORDED_VALUE = 1  # DataPointFlags in opentelemetry/proto/metrics/v1/metrics.proto
STALE_NAN: float = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]  # prometheus/model/value


class NumberMark(NumberDataPoint):
    """The end of a gauge or a sum."""


class HistogramMark(HistogramDataPoint):
    """The end of a histogram."""


def mark(point: DataPoint, time: int) -> DataPoint:
    """Return the mark that ends the stream of *point* at *time* (Unix ns)."""
    if isinstance(point, NumberDataPoint):
        return NumberMark(point.attributes, point.start_time_unix_nano, time, STALE_NAN)
    if isinstance(point, HistogramDataPoint):
        empty = (0,) * len(point.bucket_counts)
        start = point.start_time_unix_nano
        return HistogramMark(point.attributes, start, time, 0, 0.0, empty, point.explicit_bounds, 0.0, 0.0)
    none = Buckets(0, ())
    return ExponentialHistogramDataPoint(
        point.attributes,
        point.start_time_unix_nano,
        time,
        count=0,
        sum=0.0,
        scale=point.scale,
        zero_count=0,
        positive=none,
        negative=none,
        flags=NO_RECORDED_VALUE,
        min=0.0,
        max=0.0,
    )


def is_mark(point: DataPoint) -> bool:
    """Say whether the point is a mark."""
    return isinstance(point, NumberMark | HistogramMark) or getattr(point, "flags", 0) == NO_RECORDED_VALUE


def encode(data: MetricsData) -> ExportMetricsServiceRequest:
    """Encode as OTLP, marks flagged. *data* has one entry per resource and per scope: the encoder loses equal ones."""
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

    request = encode_metrics(data)
    for resource, encoded_resource in zip(data.resource_metrics, request.resource_metrics, strict=True):
        for scope, encoded_scope in zip(resource.scope_metrics, encoded_resource.scope_metrics, strict=True):
            for metric, encoded in zip(scope.metrics, encoded_scope.metrics, strict=True):
                kind = encoded.WhichOneof("data")
                if kind is not None and any(is_mark(point) for point in metric.data.data_points):
                    _flag(metric.data.data_points, getattr(encoded, kind).data_points)
    return request


def _flag(points: object, encoded_points: object) -> None:
    for point, encoded in zip(points, encoded_points, strict=True):  # type: ignore[call-overload] # protobuf containers
        if isinstance(point, NumberMark):
            encoded.flags = NO_RECORDED_VALUE
            encoded.ClearField("as_double")
        elif isinstance(point, HistogramMark):
            encoded.flags = NO_RECORDED_VALUE
            for field in ("min", "max"):  # the sum must be there, or Prometheus leaves its series alive
                encoded.ClearField(field)

"""A small OTLP/HTTP receiver for tests: keeps what was sent to it, decoded."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_NO_RECORDED_VALUE = 1


class Point(NamedTuple):
    """One point of a metric. *value* is a histogram's count; *gone*: it is a stale mark."""

    resource: dict[str, Any]
    scope: str
    name: str
    attributes: dict[str, Any]
    value: float
    gone: bool
    point: Any


class Span(NamedTuple):
    """One span; *span* is the message itself."""

    resource: dict[str, Any]
    name: str
    attributes: dict[str, Any]
    span: Any


class Receiver:
    """Listens on a free port of 127.0.0.1 as a context."""

    def __init__(self) -> None:
        received = self.received = dict[str, list[bytes]]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-encoding"] == "gzip":
                    body = gzip.decompress(body)
                received.setdefault(self.path, []).append(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def points(self, name: str | None = None) -> list[Point]:
        """Return all points so far, of the metric *name* if given, in the order in which they came."""
        found = []
        for body in tuple(self.received.get("/v1/metrics", ())):
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                about = _attributes(resource.resource.attributes)
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        data = getattr(metric, metric.WhichOneof("data") or "gauge")
                        found += [_point(about, scope.scope.name, metric.name, point) for point in data.data_points]
        return [point for point in found if name in {None, point.name}]

    def last(self, name: str) -> dict[str, float]:
        """Return the last value of each instance of the service for a metric that has one series in each."""
        return {point.resource["service.instance.id"]: point.value for point in self.points(name) if not point.gone}

    def spans(self) -> list[Span]:
        """Return all spans so far."""
        return [
            Span(_attributes(resource.resource.attributes), span.name, _attributes(span.attributes), span)
            for body in tuple(self.received.get("/v1/traces", ()))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @staticmethod
    def wait(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
        """Wait until *condition* holds; say whether it does."""
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            time.sleep(0.05)
        return condition()


def _point(resource: dict[str, Any], scope: str, name: str, point: Any) -> Point:
    buckets = hasattr(point, "bucket_counts")
    value = float(point.count) if buckets else getattr(point, point.WhichOneof("value") or "as_double")
    return Point(
        resource, scope, name, _attributes(point.attributes), value, bool(point.flags & _NO_RECORDED_VALUE), point
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}

"""The other side of OTLP/HTTP: answers 200 to everything, and counts afterwards what it was sent."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from stack.processes import HOST

_NO_RECORDED_VALUE = 1
# Prometheus repeats target_info through a request's time span, at half its lookback.
_TARGET_INFO_STEP_NS = 150_000_000_000


class Request(NamedTuple):
    """One request as it came: *arrived* is monotonic time in seconds."""

    arrived: float
    body: bytes
    metrics: bool = True


class Sink(ThreadingHTTPServer):
    """An OTLP/HTTP server that only remembers; the first part of the path says who sends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.received: dict[str, list[Request]] = defaultdict(list)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.shutdown()
        self.server_close()

    def endpoint(self, sender: str) -> str:
        """Return where *sender* is to post its metrics."""
        return f"http://{HOST}:{self.server_address[1]}/{sender}/v1/metrics"

    def between(self, sender: str, begin: float, end: float) -> list[Request]:
        """Return what came from *sender* in that time (monotonic)."""
        return [request for request in self.received[sender] if begin <= request.arrived < end]


class _Handler(BaseHTTPRequestHandler):
    server: Sink
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received[self.path.split("/")[1]].append(
            Request(time.monotonic(), body, not self.path.endswith("/v1/traces"))
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the base class's name
        """Say nothing."""


class Point(NamedTuple):
    """One data point: whose it is, its metric, and the samples that Prometheus makes of it."""

    series: bytes
    metric: str
    kind: str
    samples: int
    zero: bool


@dataclass
class Tally:
    """What a number of requests hold, and what Prometheus would store of them."""

    requests: int = 0
    body_bytes: int = 0
    target_info: int = 0
    points: list[Point] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Samples stored, ``target_info`` among them."""
        return self.target_info + sum(point.samples for point in self.points)

    @property
    def series(self) -> set[bytes]:
        """Each stream that a point came of."""
        return {point.series for point in self.points}


def tally(requests: Sequence[Request]) -> Tally:
    """Decode and count."""
    counted = Tally(requests=len(requests), body_bytes=sum(len(request.body) for request in requests))
    for request in requests:
        if not request.metrics:  # spans of state changes: bytes, and no samples
            continue
        decoded = ExportMetricsServiceRequest.FromString(request.body)
        for resource_metrics in decoded.resource_metrics:
            times: list[int] = []
            owner = resource_metrics.resource.SerializeToString(deterministic=True)
            for scope in resource_metrics.scope_metrics:
                counted.points.extend(_points(owner, scope.metrics, times))
            if times:
                counted.target_info += _target_infos(min(times), max(times))
    return counted


def _points(owner: bytes, metrics: Iterable[Any], times: list[int]) -> Iterator[Point]:
    for metric in metrics:
        kind = metric.WhichOneof("data")
        data = getattr(metric, kind)
        if kind == "sum" and data.is_monotonic:
            kind = "counter"
        for point in data.data_points:
            times.append(point.time_unix_nano)
            attributes = sorted(each.SerializeToString(deterministic=True) for each in point.attributes)
            series = b"\0".join((owner, metric.name.encode(), *attributes))
            yield Point(series, metric.name, kind, _samples(kind, point), _is_zero(kind, point))


def _samples(kind: str, point: Any) -> int:
    """Return how many samples Prometheus stores of a point: for a histogram one a bucket, the sum and the count."""
    return len(point.bucket_counts) + 2 if kind == "histogram" else 1


def _is_zero(kind: str, point: Any) -> bool:
    if point.flags & _NO_RECORDED_VALUE:
        return True
    return not (point.count if "histogram" in kind else point.as_double or point.as_int)


def _target_infos(earliest: int, latest: int) -> int:
    """Return how many ``target_info`` samples one resource of one request becomes: at its first and its last time."""
    return 1 + -(-(latest - earliest) // _TARGET_INFO_STEP_NS)

"""The way out: encoded requests in a bounded queue, and one daemon thread that sends them in order.

The stock OTLP exporters are not used here: they load `requests` (12 MiB), ignore their timeout, take a redirect for a
success and cannot be interrupted at shutdown. The encoder and the protocol classes are the library's own.
"""

from __future__ import annotations

import gzip
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otelperf.connection import Answer, Connection, HttpError, TooLarge, Unreachable, without_login
from otelperf.gate.marks import encode
from otelperf.logs import Log

if TYPE_CHECKING:
    import ssl

    from opentelemetry.sdk.trace import ReadableSpan

_log = Log("otelperf.export")

_ANSWER_LIMIT = 2**20
_STATUS = len("HTTP 404")
_RETRYABLE = {429, 502, 503, 504}  # the OTLP specification's list
_FIRST_PAUSE = 0.5
# A refused connection costs the other side nothing, and its return should be noticed; a busy one needs to be left alone.
_LONGEST_PAUSE_UNREACHABLE = 2.0
_LONGEST_PAUSE_BUSY = 30.0
LONGEST_RETRY_AFTER = 300.0
UNSERVED_PAUSE = 300.0  # s; a Collector without a pipeline for a signal gets one only when somebody changes it
_SNAPSHOT_SPACING = 50.0  # s; after a loss everything is sent anew, but not more often than a heartbeat would


class Signal(NamedTuple):
    """What a request carries. *optional*: a Collector may well have no pipeline for it, which is told once, and no fault."""

    name: str
    items: str
    path: str
    method: str
    optional: bool = False

    def rejected(self, body: bytes) -> tuple[int, str]:
        """Read an Export…ServiceResponse: how many items were rejected all the same, and why. Raises what protobuf does."""
        if self is TRACES:
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

            spans = ExportTraceServiceResponse.FromString(body).partial_success
            return max(0, spans.rejected_spans), spans.error_message
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

        points = ExportMetricsServiceResponse.FromString(body).partial_success
        return max(0, points.rejected_data_points), points.error_message


_SERVICE = "/opentelemetry.proto.collector"
METRICS = Signal("metrics", "points", "/v1/metrics", f"{_SERVICE}.metrics.v1.MetricsService/Export")
TRACES = Signal("traces", "spans", "/v1/traces", f"{_SERVICE}.trace.v1.TraceService/Export", optional=True)


class Verdict(NamedTuple):
    """How the other side took a request: *outcome* is ``delivered``, ``refused`` (for good) or ``retry``.

    *unserved*: it takes nothing of this signal at all, as far as can be told.
    """

    outcome: str
    message: str = ""
    unreachable: bool = False
    retry_after: float | None = None
    rejected: int = 0
    unserved: bool = False


class Transport(Protocol):
    """Sends one encoded Export…ServiceRequest. Never raises."""

    endpoint: str

    def send(self, body: bytes, timeout: float) -> Verdict:
        """Send, and wait *timeout* seconds at most."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class HttpTransport:
    """OTLP over HTTP with protobuf bodies."""

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        *,
        compress: bool = False,
        tls: ssl.SSLContext | None = None,
        signal: Signal = METRICS,
    ) -> None:
        self._signal = signal
        self.endpoint, login = without_login(endpoint)
        self._connection = Connection(self.endpoint, tls)
        self._headers = {"user-agent": "otelperf", **login, **headers, "content-type": "application/x-protobuf"}
        if compress:
            self._headers["content-encoding"] = "gzip"
        self._compress = compress

    def send(self, body: bytes, timeout: float) -> Verdict:
        payload = gzip.compress(body, compresslevel=3) if self._compress else body
        try:
            answer = self._connection.request(
                "POST", self._connection.path, payload, self._headers, timeout=timeout, limit=_ANSWER_LIMIT
            )
        except TooLarge as error:  # it did answer, and would answer the same again
            return Verdict("refused", str(error))
        except HttpError as error:
            return Verdict("retry", str(error), unreachable=isinstance(error, Unreachable))
        if answer.status // 100 == 2:  # the class of success
            return _accepted(answer, self._signal)
        message = f"HTTP {answer.status} {answer.body[:200].decode(errors='replace').strip()}".rstrip()
        if answer.status == 404:
            message += f": an OTLP/HTTP endpoint usually ends in {self._signal.path}; "
            if self._signal.optional:
                message += f"is there a {self._signal.name} pipeline?"
                return Verdict("retry", message, retry_after=UNSERVED_PAUSE, unserved=True)
            message += "`otelperf doctor` says more"
        if answer.status in _RETRYABLE:
            return Verdict("retry", message, retry_after=_retry_after(answer.headers.get("retry-after")))
        if answer.status // 100 == 3:  # the class of redirects
            message += (
                f" to {answer.headers.get('location')}: redirects are not followed, set the endpoint to where it points"
            )
        return Verdict("refused", message)

    def close(self) -> None:
        self._connection.close()


def _accepted(answer: Answer, signal: Signal) -> Verdict:
    """Read a success: it may say that some items were rejected all the same."""
    body = answer.body
    if not body:
        return Verdict("delivered")
    if answer.headers.get("content-type", "").startswith("text/html"):
        return Verdict("delivered", "the answer is a web page: is the endpoint that of a Collector?")
    try:
        rejected, message = signal.rejected(body)
    except Exception:  # noqa: BLE001 # an answer in another format is still a success by its status
        return Verdict("delivered")
    return Verdict("delivered", message, rejected=rejected)


def _retry_after(value: str | None) -> float | None:
    """Read the header's seconds; its date form is rare enough to be left to our own pause."""
    return min(float(value), LONGEST_RETRY_AFTER) if value and value.isascii() and value.isdigit() else None


@dataclass(slots=True)
class SenderStats:
    """What the sender did since it was made. *requests* and *points* by outcome: delivered, refused, dropped, rejected.

    Of a sender of traces the *points* are spans. *waiting* are those in the queue.
    """

    requests: dict[str, int] = field(default_factory=lambda: {"delivered": 0, "refused": 0, "dropped": 0})
    points: dict[str, int] = field(default_factory=lambda: {"delivered": 0, "refused": 0, "dropped": 0, "rejected": 0})
    retries: int = 0
    queue_bytes: int = 0
    queue_limit: int = 0
    waiting: int = 0
    last_delivery: float | None = None


class _Request(NamedTuple):
    body: bytes
    points: int
    queued: float  # monotonic seconds


class Sender:
    """A bounded FIFO of requests and the thread that drains it, oldest first, one at a time.

    When it is full the oldest request goes. After a loss *on_loss* (if any) is called once the way is free again, so that
    everything can be sent anew. *limit* is in bytes, *timeout* in seconds a request. A request that has waited for longer than
    *replay_age* seconds is not sent: what stores it takes no older points, and one that always fails must not stop the queue.
    """

    def __init__(
        self,
        transport: Transport,
        on_loss: Callable[[], None] | None = None,
        *,
        limit: int,
        timeout: float,
        replay_age: float = 3600.0,
        signal: Signal = METRICS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = SenderStats(queue_limit=limit)
        self._transport = transport
        self._on_loss = on_loss
        self._signal = signal
        # Only a second signal is named in the log: a line without a name is of metrics.
        self.named = {} if signal is METRICS else {"signal": signal.name}
        self._timeout = timeout
        self._replay_age = replay_age
        self._monotonic = monotonic
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._in_flight = False
        self._lost = False
        self._last_snapshot = float("-inf")
        self._pause = _FIRST_PAUSE
        self._deadline: float | None = None
        self._unserved = False
        self._unreachable = False
        self.hasty = (
            False  # at the end, give up at once on a Collector that was never reached: a program wants to be gone
        )
        self._drained = threading.Event()
        name = "otelperf-sender" if signal is METRICS else f"otelperf-sender-{signal.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.started = self._threadless = False

    def start(self) -> None:
        """Start draining; once is enough."""
        with self._changed:
            if self.started or self._deadline is not None:
                return
            try:
                self._thread.start()
            except RuntimeError as error:  # no thread is to be had, perhaps because the interpreter ends
                self._threadless = True
                self._trouble("sender thread did not start", problem=str(error), then="what waits is sent at the end")
            else:
                self.started = True

    def put(self, body: bytes, points: int) -> bool:
        """Queue a request without waiting; older ones make room. False once the sender is closed."""
        if len(body) > self.stats.queue_limit:
            # Taken and lost, not refused: the gate would offer the same again at every tick.
            self._trouble("request larger than the queue", bytes=len(body), queue_limit=self.stats.queue_limit)
            with self._changed:
                self._count("dropped", points)
                self._lost = True
            return True
        with self._changed:
            if self._deadline is not None:
                return False
            self._make_room(len(body))
            self._queue.append(_Request(body, points, self._monotonic()))
            self.stats.queue_bytes += len(body)
            self.stats.waiting += points
            self._changed.notify()
        return True

    def finish(self, timeout: float) -> None:
        """Take no more, and give what waits *timeout* seconds. Returns at once: several senders can finish side by side."""
        with self._changed:
            self._deadline = self._monotonic() + timeout
            self._changed.notify()

    def close(self, timeout: float) -> bool:
        """Drain for *timeout* seconds at most, and return whether all went. The thread is not waited for beyond that."""
        self.finish(timeout)
        if not self._thread.is_alive():  # never started, or ended by an earlier call
            if self._threadless and not self._drained.is_set():
                self._run()
            return not self._queue
        return self._drained.wait(timeout) and not self._queue

    def abandon(self) -> None:
        """In a forked child: close the connection. The thread, the queue and its lock are the parent's."""
        self._close_transport()

    def _make_room(self, size: int) -> None:
        """Drop the oldest; what is being sent cannot be taken back, so the queue may be over its limit by that one."""
        oldest = 1 if self._in_flight else 0
        while len(self._queue) > oldest and self.stats.queue_bytes + size > self.stats.queue_limit:
            self._drop(oldest, "queue full, oldest request dropped")

    def _drop(self, index: int, why: str) -> None:
        request = self._queue[index]
        del self._queue[index]
        self.stats.queue_bytes -= len(request.body)
        self.stats.waiting -= request.points
        self._count("dropped", request.points)
        self._lost = True
        if not self._unserved:  # what became of it was told
            self._trouble(why, endpoint=self._transport.endpoint)

    def _drop_old(self) -> None:
        while self._queue and self._monotonic() - self._queue[0].queued > self._replay_age:
            self._drop(0, "request too old, dropped")

    def _trouble(self, event: str, **fields: Any) -> None:
        """Warn, once a minute of each signal and of what the problem begins with: a status."""
        _log.trouble(event, by=("signal",), apart=str(fields.get("problem", ""))[:_STATUS], **self.named, **fields)

    def _count(self, outcome: str, points: int) -> None:
        self.stats.requests[outcome] += 1
        self.stats.points[outcome] += points

    def _run(self) -> None:
        while True:
            with self._changed:
                self._drop_old()
                while not self._queue:
                    if self._deadline is not None:
                        self._drained.set()
                        self._close_transport()
                        return
                    self._changed.wait()
                request = self._queue[0]
                self._in_flight = True
            pause = self._settle(request, self._send(request.body))
            if pause and not self._wait(pause):
                self._drained.set()  # not all of it went, but nothing more will
                self._close_transport()
                return

    def _send(self, body: bytes) -> Verdict:
        """Send; a transport that raises all the same must not end this thread, nor hold up what comes after."""
        try:
            return self._transport.send(body, self._allowed())
        except Exception as error:  # noqa: BLE001 # whatever it is; its text may hold a secret
            return Verdict("refused", f"the transport raised {type(error).__name__}")

    def _close_transport(self) -> None:
        try:
            self._transport.close()
        except Exception as error:  # noqa: BLE001 # nothing can be done about it any more
            _log.debug("transport did not close", problem=type(error).__name__)

    def _allowed(self) -> float:
        if self._deadline is None:
            return self._timeout
        return max(0.05, min(self._timeout, self._deadline - self._monotonic()))

    def _settle(self, request: _Request, verdict: Verdict) -> float:
        """Take note of the verdict; return the seconds to wait before the next attempt."""
        with self._changed:
            self._in_flight = False
            if verdict.outcome == "retry":
                self.stats.retries += 1
                return self._back_off(verdict)
            self._queue.popleft()
            self.stats.queue_bytes -= len(request.body)
            self.stats.waiting -= request.points
            self._count(verdict.outcome, request.points)
        self._pause = _FIRST_PAUSE
        endpoint = self._transport.endpoint
        if verdict.rejected:
            self.stats.points["rejected"] += verdict.rejected
            rejected = {self._signal.items: verdict.rejected}
            self._trouble(f"{self._signal.items} rejected", endpoint=endpoint, **rejected, problem=verdict.message)
        elif verdict.message and verdict.outcome == "delivered":
            self._trouble("collector warns", endpoint=endpoint, problem=verdict.message)
        if verdict.outcome == "refused":
            self._lost = True
            lost = {self._signal.items: request.points}
            anew = "; all series are sent anew once it takes requests" if self._on_loss else ""
            then = f"lost, not sent again{anew}"
            self._trouble("request refused", endpoint=endpoint, problem=verdict.message, **lost, then=then)
        else:
            if self.stats.last_delivery is None or self._unserved:
                _log.info("delivering", **self.named, endpoint=endpoint)
            self._unserved = False
            self.stats.last_delivery = self._monotonic()
            self._repair()
        return 0.0

    def _repair(self) -> None:
        """The way is free: after a loss, ask for everything anew."""
        now = self._monotonic()
        if self._on_loss and self._lost and now - self._last_snapshot >= _SNAPSHOT_SPACING:
            self._lost = False
            self._last_snapshot = now
            try:
                self._on_loss()
            except Exception as error:  # noqa: BLE001 # this thread must outlive whatever listens
                self._trouble("resend failed", problem=f"{type(error).__name__}: {error}")

    def _back_off(self, verdict: Verdict) -> float:
        self._unreachable = verdict.unreachable
        longest = _LONGEST_PAUSE_UNREACHABLE if verdict.unreachable else _LONGEST_PAUSE_BUSY
        self._pause = min(self._pause, longest)
        pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 # jitter
        if verdict.retry_after is not None:
            pause = max(verdict.retry_after, _FIRST_PAUSE)  # "at once" must not become a busy loop
        self._pause = min(self._pause * 2, longest)
        if verdict.unserved:
            self._tell_unserved(verdict, pause)
            return pause
        self._trouble(
            "collector unreachable" if verdict.unreachable else "collector does not take requests",
            endpoint=self._transport.endpoint,
            problem=verdict.message,
            queued_bytes=self.stats.queue_bytes,
        )
        return pause

    def _tell_unserved(self, verdict: Verdict, pause: float) -> None:
        """Say it once: it is how the Collector is set up, and metrics go on."""
        if not self._unserved:
            self._unserved = True
            then = f"asked again every {pause:g} s; set traces.exporter to none if it is meant so"
            _log.warning(
                f"collector takes no {self._signal.name}",
                endpoint=self._transport.endpoint,
                problem=verdict.message,
                then=then,
            )

    def _wait(self, pause: float) -> bool:
        """Wait before the next attempt, less at shutdown; False when the time for it is over, or it would be in vain."""
        with self._changed:
            until = self._monotonic() + pause
            while (left := until - self._monotonic()) > 0 and self._deadline is None:
                self._changed.wait(left)
            if self._deadline is None:
                return True
            left = self._deadline - self._monotonic()
            in_vain = self._unserved or (self.hasty and self._unreachable and self.stats.last_delivery is None)
            if left > 0 and not in_vain:
                self._changed.wait(min(0.2, left))
            return left > 0 and not in_vain


class QueueExporter(MetricExporter):
    """The gate's inner exporter in the agent: encodes, queues, and answers SUCCESS when queued."""

    flags_marks = True

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Queue the data as one request, less what OTLP cannot carry."""
        try:
            body = encode(metrics_data).SerializeToString()
        except Exception:  # noqa: BLE001 # whatever it is: one odd value of an application must not cost all others
            metrics_data = _encodable(metrics_data)
            if not metrics_data.resource_metrics:
                return MetricExportResult.SUCCESS
            body = encode(metrics_data).SerializeToString()
        points = sum(
            len(metric.data.data_points)
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
        queued = self._sender.put(body, points)
        return MetricExportResult.SUCCESS if queued else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._sender.close(timeout_millis / 1000)


def _encodable(data: MetricsData) -> MetricsData:
    """Leave out each metric that cannot be encoded: an integer of more than 64 bits, text that is no Unicode."""
    resources = []
    for resource in data.resource_metrics:
        scopes = []
        for scope in resource.scope_metrics:
            metrics = []
            for metric in scope.metrics:
                alone = replace(resource, scope_metrics=[replace(scope, metrics=[metric])])
                try:
                    encode(MetricsData([alone])).SerializeToString()
                except Exception as error:  # noqa: BLE001 # as for all of them together
                    name = ascii(metric.name)
                    _log.trouble("metric cannot be encoded", by=("metric",), metric=name, problem=type(error).__name__)
                else:
                    metrics.append(metric)
            if metrics:
                scopes.append(replace(scope, metrics=metrics))
        if scopes:
            resources.append(replace(resource, scope_metrics=scopes))
    return MetricsData(resources)


class QueueSpanExporter(SpanExporter):
    """Encodes spans and queues them; SUCCESS is queued. Starts *sender* with the first spans, so none costs no thread.

    Whoever made the sender closes it; ``shutdown`` does too, within *shutdown_timeout* seconds.
    """

    def __init__(self, sender: Sender, *, shutdown_timeout: float = 2.0) -> None:
        self._sender = sender
        self._shutdown_timeout = shutdown_timeout

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Queue the spans as one request."""
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        self._sender.start()
        try:
            body = encode_spans(spans).SerializeToString()
        except Exception:  # noqa: BLE001 # as for metrics
            spans = [span for span in spans if _can_be_encoded(span)]
            if not spans:
                return SpanExportResult.SUCCESS
            body = encode_spans(spans).SerializeToString()
        queued = self._sender.put(body, len(spans))
        return SpanExportResult.SUCCESS if queued else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def shutdown(self) -> None:
        self._sender.close(self._shutdown_timeout)


def _can_be_encoded(span: ReadableSpan) -> bool:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    try:
        encode_spans([span]).SerializeToString()
    except Exception as error:  # noqa: BLE001 # as for all of them together
        _log.trouble("span cannot be encoded", by=("span",), span=ascii(span.name), problem=type(error).__name__)
        return False
    return True

"""The way out: the queue and its thread against scripted transports, HTTP against servers that behave badly."""

from __future__ import annotations

import gzip
import logging
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otelperf import logs
from otelperf.export import (
    METRICS,
    TRACES,
    HttpTransport,
    QueueExporter,
    QueueSpanExporter,
    Sender,
    SenderStats,
    Signal,
    Verdict,
)
from stack.processes import wait_until

DELIVERED = Verdict("delivered")
REFUSED = Verdict("refused", "HTTP 400")
BUSY = Verdict("retry", "HTTP 503")
UNREACHABLE = Verdict("retry", "connection refused", unreachable=True)


@pytest.fixture(autouse=True)
def _every_trouble_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otelperf.export._log", logs.Log("otelperf.export", logs.Repeats(every=0.0)))


class Clock:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A transport that answers as told, then takes everything; *hold* makes it wait as a slow Collector would."""

    endpoint = "http://collector:4318/v1/metrics"

    def __init__(self, *verdicts: Verdict | Exception) -> None:
        self.verdicts = list(verdicts)
        self.sent: list[bytes] = []
        self.timeouts: list[float] = []
        self.hold = threading.Event()
        self.hold.set()
        self.closed = False

    def send(self, body: bytes, timeout: float) -> Verdict:
        self.sent.append(body)
        self.timeouts.append(timeout)
        self.hold.wait()
        verdict = self.verdicts.pop(0) if self.verdicts else DELIVERED
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    def close(self) -> None:
        self.closed = True


class Hurried(Sender):
    """A sender that notes its pauses rather than wait."""

    def __init__(
        self,
        transport: Scripted,
        limit: int = 1000,
        clock: Clock | None = None,
        replay_age: float = 3600.0,
        signal: Signal = METRICS,
    ) -> None:
        self.transport = transport
        self.clock = clock or Clock()
        self.losses: list[float] = []
        self.pauses: list[float] = []
        super().__init__(
            transport,
            self._note_loss,
            limit=limit,
            timeout=10.0,
            replay_age=replay_age,
            signal=signal,
            monotonic=self.clock,
        )

    def _note_loss(self) -> None:
        self.losses.append(self.clock.now)

    def _wait(self, pause: float) -> bool:
        self.pauses.append(pause)
        return True


def settled(stats: SenderStats) -> int:
    return sum(stats.requests.values())


def wait_settled(sender: Sender, requests: int) -> None:
    wait_until(lambda: settled(sender.stats) >= requests, 5, f"{sender.stats} did not settle {requests}")


def run(transport: Scripted, *bodies: bytes) -> Hurried:
    """Send *bodies*, one point each, and return the sender when all are settled."""
    sender = Hurried(transport)
    sender.start()
    for body in bodies:
        assert sender.put(body, 1)
    wait_settled(sender, len(bodies))
    assert sender.close(30)
    return sender


# The queue


def test_requests_go_in_order() -> None:
    bodies = [b"%d" % number for number in range(50)]
    transport = Scripted()
    run(transport, *bodies)
    assert bodies == transport.sent


def test_a_request_that_must_wait_is_not_overtaken() -> None:
    transport = Scripted(BUSY, UNREACHABLE, BUSY)
    run(transport, b"a", b"b")
    assert transport.sent == [b"a", b"a", b"a", b"a", b"b"]


def test_a_full_queue_drops_the_oldest() -> None:
    transport = Scripted()
    sender = Hurried(transport, limit=10)
    for body in (b"aaaa", b"bbbb", b"cccc"):
        assert sender.put(body, 3)
    assert sender.stats.queue_bytes == 8
    assert sender.stats.points == {"delivered": 0, "refused": 0, "dropped": 3, "rejected": 0}
    sender.start()
    assert sender.close(30)
    assert transport.sent == [b"bbbb", b"cccc"]


def test_what_is_being_sent_is_never_dropped() -> None:
    transport = Scripted()
    transport.hold.clear()
    sender = Hurried(transport, limit=10)
    sender.start()
    sender.put(b"a" * 10, 1)
    wait_until(lambda: transport.sent != [], 30, "nothing was sent")
    for body in (b"bbbb", b"cccc", b"dddd"):
        assert sender.put(body, 1)
        assert sender.stats.queue_bytes == 14  # over the limit by one request
    transport.hold.set()
    assert sender.close(30)
    assert transport.sent == [b"a" * 10, b"dddd"]
    assert sender.stats.requests == {"delivered": 2, "refused": 0, "dropped": 2}


def test_a_request_larger_than_the_queue_is_dropped_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    sender = Hurried(Scripted(), limit=10)
    assert sender.put(b"a" * 10, 1)
    assert sender.put(b"b" * 11, 3)
    assert (sender.stats.requests["dropped"], sender.stats.points["dropped"]) == (1, 3)
    assert caplog.messages == ["request larger than the queue bytes=11 queue_limit=10"]
    assert sender.stats.queue_bytes == 10


def test_nothing_is_taken_after_close() -> None:
    sender = run(Scripted(), b"a")
    assert not sender.put(b"b", 1)
    assert sender.stats.requests == {"delivered": 1, "refused": 0, "dropped": 0}


VERDICTS = st.sampled_from([DELIVERED, REFUSED, BUSY, UNREACHABLE, RuntimeError("transport")])


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 100), st.booleans())), st.lists(VERDICTS, max_size=20))
def test_every_point_is_accounted_for(puts: list[tuple[int, int, bool]], verdicts: list[Verdict | Exception]) -> None:
    transport = Scripted(*verdicts)
    sender = Hurried(transport, limit=20)
    taken = 0
    for size, points, start in puts:
        taken += points if sender.put(b"x" * size, points) else 0
        assert sender.stats.queue_bytes <= 20 + 12
        if start and not sender._thread.is_alive():
            sender.start()
    if not sender._thread.is_alive():
        sender.start()
    assert sender.close(30)
    assert sender.stats.queue_bytes == 0
    assert sum(sender.stats.points.values()) == taken
    assert settled(sender.stats) == len(puts)


def test_a_request_that_is_never_taken_goes_after_an_hour() -> None:
    clock = Clock()
    transport = Scripted(*[BUSY] * 3, DELIVERED)
    sender = Hurried(transport, clock=clock)
    sender.put(b"old", 2)
    clock.now += 3601
    sender.put(b"new", 1)
    sender.start()
    assert sender.close(30)
    assert (sender.stats.points["dropped"], sender.stats.points["delivered"]) == (2, 1)


# Retries


def test_what_has_waited_too_long_is_not_sent_at_all() -> None:
    transport, clock = Scripted(), Clock()
    sender = Hurried(transport, clock=clock, replay_age=60.0)
    for body, later in ((b"a", 30.0), (b"b", 30.5), (b"c", 0.0)):
        sender.put(body, 1)
        clock.now += later
    sender.start()
    wait_settled(sender, 3)
    assert sender.close(30)
    assert transport.sent == [b"b", b"c"]
    assert sender.stats.requests == {"delivered": 2, "refused": 0, "dropped": 1}
    assert sender.losses == [1060.5]


def test_pauses_double_to_a_limit_and_are_jittered() -> None:
    sender = run(Scripted(*[BUSY] * 10), b"a")
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert len(sender.pauses) == 10
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(sender.pauses, longest, strict=True))
    assert len(set(sender.pauses)) == 10


def test_a_collector_that_is_not_there_is_asked_again_sooner() -> None:
    sender = run(Scripted(*[UNREACHABLE] * 8), b"a")
    assert max(sender.pauses) <= 2
    assert min(sender.pauses[3:]) >= 1


def test_pauses_start_anew_after_a_delivery() -> None:
    sender = run(Scripted(BUSY, BUSY, BUSY, DELIVERED, BUSY), b"a", b"b")
    assert 0.25 <= sender.pauses[3] <= 0.5


def test_the_collectors_own_pause_is_kept() -> None:
    sender = run(Scripted(Verdict("retry", "busy", retry_after=7.0), Verdict("retry", "busy", retry_after=300.0)), b"a")
    assert sender.pauses == [7.0, 300.0]


def test_an_invitation_to_retry_at_once_is_no_busy_loop() -> None:
    sender = run(Scripted(*[Verdict("retry", "busy", retry_after=0.0)] * 3), b"a")
    assert sender.pauses == [0.5, 0.5, 0.5]


def test_a_refused_request_goes_and_the_next_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    transport = Scripted(REFUSED)
    sender = run(transport, b"a", b"b")
    assert transport.sent == [b"a", b"b"]
    assert sender.stats.points == {"delivered": 1, "refused": 1, "dropped": 0, "rejected": 0}
    then = "lost, not sent again; all series are sent anew once it takes requests"
    told = f'request refused endpoint={transport.endpoint} problem="HTTP 400" points=1 then="{then}"'
    assert caplog.messages == [told]


def test_each_status_of_a_refusal_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otelperf.export._log", logs.Log("otelperf.export", logs.Repeats()))
    refused = [Verdict("refused", f"HTTP {status} {n}") for status in (500, 404) for n in range(3)]
    run(Scripted(*refused), *[b"a"] * 6)
    assert [re.findall(r"HTTP \d+ \d", message) for message in caplog.messages] == [["HTTP 500 0"], ["HTTP 404 0"]]


def test_a_transport_that_raises_harms_no_later_request(caplog: pytest.LogCaptureFixture) -> None:
    transport = Scripted(RuntimeError("authorization: secret"))
    sender = run(transport, b"a", b"b")
    assert sender.stats.requests == {"delivered": 1, "refused": 1, "dropped": 0}
    assert "the transport raised RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_a_pause_is_waited_out_by_the_clock() -> None:
    clock, transport = Clock(), Scripted(Verdict("retry", "busy", retry_after=60.0))
    sender = Sender(transport, lambda: None, limit=100, timeout=10.0, monotonic=clock)

    def waits() -> bool:
        return sender.stats.retries == 1 and bool(sender._changed._waiters)  # type: ignore[attr-defined] # is it asleep?

    sender.start()
    sender.put(b"a", 1)
    wait_until(waits, 30, "the sender does not wait")
    clock.now += 59.9
    sender.put(b"b", 1)  # wakes the thread, which must go on waiting
    wait_until(waits, 30, "the sender does not wait")
    assert transport.sent == [b"a"]
    clock.now += 0.2
    sender.put(b"c", 1)
    wait_settled(sender, 3)
    assert sender.close(30)
    assert transport.sent == [b"a", b"a", b"b", b"c"]


# Losses


def test_after_a_loss_everything_is_sent_anew_once_the_way_is_free() -> None:
    sender = run(Scripted(REFUSED, REFUSED, DELIVERED, DELIVERED), b"a", b"b", b"c", b"d")
    assert sender.losses == [1000.0]


def test_nothing_is_sent_anew_without_a_loss_or_without_a_delivery() -> None:
    assert run(Scripted(BUSY), b"a", b"b").losses == []
    assert run(Scripted(REFUSED, REFUSED), b"a", b"b").losses == []


def test_an_overflow_is_a_loss() -> None:
    sender = Hurried(Scripted(), limit=2)
    for body in (b"aa", b"bb"):
        sender.put(body, 1)
    sender.start()
    assert sender.close(30)
    assert sender.losses == [1000.0]


def test_losses_in_a_row_are_healed_at_most_once_a_heartbeat() -> None:
    sender = Hurried(Scripted(*[REFUSED, DELIVERED] * 61))
    sender.start()
    for number in range(61):
        sender.put(b"a", 1)
        sender.put(b"b", 1)
        wait_settled(sender, 2 * number + 2)
        sender.clock.now += 1
    assert sender.close(30)
    assert sender.losses == [1000.0, 1050.0]


def test_a_listener_that_fails_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("gate")

    sender = Sender(Scripted(REFUSED), fail, limit=100, timeout=10.0)
    sender.start()
    for body in (b"a", b"b", b"c"):
        sender.put(body, 1)
    assert sender.close(30)
    assert sender.stats.requests == {"delivered": 2, "refused": 1, "dropped": 0}
    assert 'resend failed problem="RuntimeError: gate"' in caplog.text


# The end


def test_close_drains_a_backlog() -> None:
    transport = Scripted()
    sender = Sender(transport, lambda: None, limit=10_000, timeout=10.0)
    for _ in range(100):
        sender.put(b"x", 1)
    sender.start()
    assert sender.close(30)
    assert len(transport.sent) == 100
    wait_until(lambda: transport.closed, 30, "the transport was not closed")


@pytest.mark.parametrize("retry_after", [None, 300.0])
def test_close_does_not_sleep_through_a_pause(retry_after: float | None) -> None:
    transport = Scripted(Verdict("retry", "busy", retry_after=retry_after))
    sender = Sender(transport, lambda: None, limit=100, timeout=10.0)
    sender.start()
    sender.put(b"a", 1)
    wait_until(lambda: sender.stats.retries == 1, 30, "no attempt was made")
    began = time.monotonic()
    assert sender.close(20)
    assert time.monotonic() - began < 10
    assert sender.stats.requests["delivered"] == 1


def test_close_is_not_held_up_by_a_transport_that_hangs() -> None:
    transport = Scripted()
    transport.hold.clear()
    sender = Sender(transport, lambda: None, limit=100, timeout=10.0)
    sender.start()
    sender.put(b"a", 1)
    wait_until(lambda: transport.sent != [], 30, "nothing was sent")
    began = time.monotonic()
    assert not sender.close(0.2)
    assert time.monotonic() - began < 20
    transport.hold.set()


def test_close_gives_up_on_a_collector_that_never_takes_anything() -> None:
    transport = Scripted(*[UNREACHABLE] * 1000)
    sender = Sender(transport, lambda: None, limit=100, timeout=10.0)
    sender.start()
    sender.put(b"a", 1)
    began = time.monotonic()
    assert not sender.close(0.5)
    assert time.monotonic() - began < 20
    wait_until(lambda: transport.closed, 30, "the transport was not closed")
    assert len(transport.sent) < 20
    assert sender.stats.queue_bytes == 1


def test_the_last_requests_may_take_what_is_left_of_the_budget() -> None:
    transport = Scripted()
    sender = Sender(transport, lambda: None, limit=100, timeout=10.0)
    transport.hold.clear()
    sender.start()
    sender.put(b"a", 1)
    wait_until(lambda: transport.sent != [], 30, "nothing was sent")
    sender.put(b"b", 1)
    closer = threading.Thread(target=sender.close, args=(8.0,))
    closer.start()
    wait_until(lambda: sender._deadline is not None, 30, "not closing")
    transport.hold.set()
    closer.join(30)
    assert transport.timeouts[0] == 10.0
    assert 0 < transport.timeouts[1] <= 8.0


def test_close_of_a_sender_that_never_started_returns_at_once() -> None:
    empty, full = Hurried(Scripted()), Hurried(Scripted())
    full.put(b"a", 1)
    began = time.monotonic()
    assert empty.close(30)
    assert not full.close(30)
    assert time.monotonic() - began < 10


def test_where_no_thread_is_to_be_had_the_last_call_sends_what_waits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the first span of a program comes at its very end: CPython starts no thread then."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    transport = Scripted(BUSY)
    sender = Hurried(transport)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    sender.start()
    sender.put(b"a", 1)
    assert sender.close(30)
    assert sender.close(30)
    assert transport.sent == [b"a", b"a"]
    assert "sender thread did not start" in caplog.text


def test_two_senders_can_end_side_by_side() -> None:
    slow, quick = Scripted(), Scripted()
    slow.hold.clear()
    senders = [Hurried(slow), Hurried(quick)]
    for sender in senders:
        sender.start()
        sender.start()  # once is enough
        sender.put(b"a", 1)
        sender.finish(30)
        assert not sender.put(b"b", 1)
    assert senders[1].close(30)
    slow.hold.set()
    assert senders[0].close(30)
    assert (slow.sent, quick.sent) == ([b"a"], [b"a"])


def test_close_twice_is_no_fault() -> None:
    sender = run(Scripted(), b"a")
    assert sender.close(30)


# The exporter in front of the queue


def data(value: float, count: int = 1) -> MetricsData:
    points = [NumberDataPoint({"n": n}, 1, 2, value, ()) for n in range(count)]
    gauge = Metric("a.gauge", "A gauge.", "1", Gauge(points))
    counter = Metric("a.counter", "A counter.", "1", Sum(points, AggregationTemporality.CUMULATIVE, True))
    scope = ScopeMetrics(InstrumentationScope("test"), [gauge, counter], "")
    return MetricsData([ResourceMetrics(Resource({"service.name": "test"}), [scope], "")])


def test_success_means_queued_and_points_are_counted() -> None:
    transport = Scripted()
    sender = Hurried(transport)
    exporter = QueueExporter(sender)
    assert exporter.export(data(1.5, count=3)) is MetricExportResult.SUCCESS
    assert exporter.force_flush()
    sender.start()
    exporter.shutdown(5000)
    assert sender.stats.points["delivered"] == 6
    (resource,) = ExportMetricsServiceRequest.FromString(transport.sent[0]).resource_metrics
    assert [metric.name for metric in resource.scope_metrics[0].metrics] == ["a.gauge", "a.counter"]


@pytest.mark.parametrize("odd", [2**64, 1.5], ids=["an integer of more than 64 bits", "text that is no Unicode"])
def test_what_cannot_be_encoded_is_told_and_costs_nothing_else(odd: float, caplog: pytest.LogCaptureFixture) -> None:
    transport = Scripted()
    sender = Hurried(transport)
    sound = data(1.5)
    (scope,) = sound.resource_metrics[0].scope_metrics
    points = [NumberDataPoint({}, 1, 2, odd, ())]
    scope.metrics.append(Metric("odd", "Odd." if odd == 2**64 else "\ud800", "1", Gauge(points)))  # type: ignore[attr-defined] # the list above
    assert QueueExporter(sender).export(sound) is MetricExportResult.SUCCESS
    sender.start()
    sender.close(30)
    (resource,) = ExportMetricsServiceRequest.FromString(transport.sent[0]).resource_metrics
    assert [metric.name for metric in resource.scope_metrics[0].metrics] == ["a.gauge", "a.counter"]
    assert "metric cannot be encoded metric='odd'" in str(caplog.records[0].msg)


def test_failure_means_the_queue_did_not_take_it() -> None:
    sender = run(Scripted(), b"a")
    assert QueueExporter(sender).export(data(1.5)) is MetricExportResult.FAILURE


# HTTP


class Request(NamedTuple):
    line: str
    headers: Mapping[str, str]
    body: bytes
    connection: int


class Server:
    """A server of raw sockets: each connection is given to *behave*, which may do what no library would."""

    def __init__(self, behave: Callable[[Server, socket.socket, int], None]) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1/metrics"
        self.requests: queue.Queue[Request] = queue.Queue()
        self.stopping = threading.Event()
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection, self.connections), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            self._behave(self, connection, number)

    def read(self, connection: socket.socket, number: int) -> Request | None:
        """Read one request; None if the client has closed."""
        stream = connection.makefile("rb")
        first = stream.readline().decode()
        if not first:
            return None
        lines = iter(lambda: stream.readline().decode().strip(), "")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        request = Request(first.strip(), headers, stream.read(int(headers["content-length"])), number)
        self.requests.put(request)
        return request

    def close(self) -> None:
        self.stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


Serve = Callable[[Callable[[Server, socket.socket, int], None]], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(behave: Callable[[Server, socket.socket, int], None]) -> Server:
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answering(*answers: bytes, keep: bool = True) -> Callable[[Server, socket.socket, int], None]:
    """Answer with each in turn, the last for ever; on one connection, or a new one each time."""
    left = list(answers)

    def behave(server: Server, connection: socket.socket, number: int) -> None:
        while server.read(connection, number) is not None:
            connection.sendall(left.pop(0) if len(left) > 1 else left[0])
            if not keep:
                return

    return behave


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


OK = answer("200 OK")


def send(server: Server, body: bytes = b"body", timeout: float = 10.0) -> Verdict:
    transport = HttpTransport(server.url, {})
    try:
        return transport.send(body, timeout)
    finally:
        transport.close()


def test_a_request_carries_path_type_headers_and_body(serve: Serve) -> None:
    server = serve(answering(OK))
    transport = HttpTransport(server.url, {"authorization": "Bearer s3cret", "content-type": "text/plain"})
    assert transport.send(b"\x00body", 10) == DELIVERED
    transport.close()
    request = server.requests.get(timeout=30)
    assert request.line == "POST /v1/metrics HTTP/1.1"
    assert request.body == b"\x00body"
    assert request.headers["authorization"] == "Bearer s3cret"
    assert request.headers["content-type"] == "application/x-protobuf"
    assert request.headers["user-agent"] == "otelperf"
    assert "content-encoding" not in request.headers


def test_a_compressed_request_says_so(serve: Serve) -> None:
    server = serve(answering(OK))
    transport = HttpTransport(server.url, {}, compress=True)
    assert transport.send(b"body" * 1000, 10) == DELIVERED
    transport.close()
    request = server.requests.get(timeout=30)
    assert request.headers["content-encoding"] == "gzip"
    assert len(request.body) < 400
    assert gzip.decompress(request.body) == b"body" * 1000


def test_a_login_in_the_url_becomes_a_header_and_is_never_shown(serve: Serve) -> None:
    server = serve(answering(answer("401 Unauthorized")))
    transport = HttpTransport(server.url.replace("//", "//me:p%40ss@"), {})
    verdict = transport.send(b"", 10)
    transport.close()
    assert server.requests.get(timeout=30).headers["authorization"] == "Basic bWU6cEBzcw=="
    assert transport.endpoint == server.url
    assert "p%40ss" not in verdict.message


def test_one_connection_is_kept(serve: Serve) -> None:
    server = serve(answering(OK))
    transport = HttpTransport(server.url, {})
    assert [transport.send(b"x", 10) for _ in range(5)] == [DELIVERED] * 5
    transport.close()
    assert server.connections == 1


def test_a_connection_that_the_server_closed_is_opened_anew(serve: Serve) -> None:
    server = serve(answering(OK, keep=False))
    transport = HttpTransport(server.url, {})
    assert [transport.send(b"x", 10) for _ in range(3)] == [DELIVERED] * 3
    transport.close()
    assert server.connections == 3


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again(serve: Serve, status: int) -> None:
    verdict = send(serve(answering(answer(f"{status} Busy", b"later", "Retry-After: 12"))))
    assert verdict == Verdict("retry", f"HTTP {status} later", retry_after=12.0)


HINTS = {404: ": an OTLP/HTTP endpoint usually ends in /v1/metrics; `otelperf doctor` says more"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 415, 500, 501])
def test_what_will_not_pass_is_refused_for_good(serve: Serve, status: int) -> None:
    assert send(serve(answering(answer(f"{status} No", b"why")))) == Verdict(
        "refused", f"HTTP {status} why{HINTS.get(status, '')}"
    )


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_no_success_and_is_not_followed(serve: Serve, status: int) -> None:
    server = serve(answering(answer(f"{status} Elsewhere", b"", "Location: http://127.0.0.1:1/v1/metrics")))
    verdict = send(server)
    assert verdict.outcome == "refused"
    assert "to http://127.0.0.1:1/v1/metrics: redirects are not followed" in verdict.message
    assert server.requests.qsize() == 1


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("9" * 400, 300.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Fri, 31 Dec 2027 23:59:59 GMT", None),
    ],
)
def test_retry_after_is_seconds_within_reason(serve: Serve, header: str, expected: float | None) -> None:
    assert send(serve(answering(answer("429 Busy", b"", f"Retry-After: {header}")))).retry_after == expected


def partial(rejected: int, message: str) -> bytes:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = rejected
    response.partial_success.error_message = message
    return bytes(response.SerializeToString())


def test_partial_success_is_counted_and_said(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(answering(answer("200 OK", partial(3, "out of order"))))
    transport = HttpTransport(server.url, {})
    sender = Sender(transport, lambda: None, limit=100, timeout=10.0)
    sender.start()
    sender.put(b"a", 10)
    assert sender.close(30)
    assert sender.stats.points == {"delivered": 10, "refused": 0, "dropped": 0, "rejected": 3}
    assert f'points rejected endpoint={server.url} points=3 problem="out of order"' in caplog.messages


def test_a_warning_with_nothing_rejected_is_said(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(answering(answer("200 OK", partial(0, "quota nearly used"))))
    sender = Sender(HttpTransport(server.url, {}), lambda: None, limit=100, timeout=10.0)
    sender.start()
    sender.put(b"a", 10)
    assert sender.close(30)
    assert f'collector warns endpoint={server.url} problem="quota nearly used"' in caplog.messages
    assert sender.stats.points["rejected"] == 0


def test_a_negative_number_of_rejected_points_is_none(serve: Serve) -> None:
    assert send(serve(answering(answer("200 OK", partial(-5, ""))))) == DELIVERED


@pytest.mark.parametrize("body", [b"OK", b'{"partialSuccess":{}}', b"\xff" * 1000, b"\x00"])
def test_garbage_after_200_is_a_success_by_its_status(serve: Serve, body: bytes) -> None:
    assert send(serve(answering(answer("200 OK", body)))) == DELIVERED


def test_a_web_page_after_200_is_warned_of(serve: Serve) -> None:
    page = answer("200 OK", b"<html>log in</html>", "Content-Type: text/html; charset=utf-8")
    verdict = send(serve(answering(page)))
    assert verdict.outcome == "delivered"
    assert "the answer is a web page" in verdict.message


def test_an_error_page_of_any_length_does_not_block_the_queue(serve: Serve) -> None:
    assert send(serve(answering(answer("400 Bad", b"x" * 500_000)))) == Verdict("refused", "HTTP 400 " + "x" * 200)
    assert send(serve(answering(answer("400 Bad", b"x" * 3_000_000)))).outcome == "refused"


def test_an_endless_answer_is_cut_off(serve: Serve) -> None:
    def behave(server: Server, connection: socket.socket, number: int) -> None:
        server.read(connection, number)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not server.stopping.is_set():
            connection.sendall(b"x" * 65536)

    verdict = send(serve(behave))
    assert verdict.outcome == "refused"
    assert "larger than" in verdict.message


@pytest.mark.parametrize(
    "what",
    [
        b"",
        b"\x00\x01\x02\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 99999999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000,
    ],
    ids=["nothing", "noise", "ssh", "half", "status", "headers"],
)
def test_a_broken_answer_is_tried_again(serve: Serve, what: bytes) -> None:
    def behave(server: Server, connection: socket.socket, number: int) -> None:
        server.read(connection, number)
        connection.sendall(what)

    verdict = send(serve(behave))
    assert (verdict.outcome, verdict.unreachable) == ("retry", False)
    assert verdict.message != ""


def test_a_connection_reset_amid_the_request_is_tried_again(serve: Serve) -> None:
    def behave(server: Server, connection: socket.socket, number: int) -> None:
        connection.recv(10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    assert send(serve(behave), b"x" * 1_000_000).outcome == "retry"


@pytest.mark.parametrize("drip", [b"", b"x"], ids=["silent", "dripping"])
def test_a_slow_server_is_left_at_the_timeout(serve: Serve, drip: bytes) -> None:
    def behave(server: Server, connection: socket.socket, number: int) -> None:
        server.read(connection, number)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not server.stopping.wait(0.05):
            connection.sendall(drip)

    began = time.monotonic()
    verdict = send(serve(behave), timeout=0.5)
    assert time.monotonic() - began < 20
    assert (verdict.outcome, verdict.unreachable) == ("retry", False)
    assert "within 0.5 s" in verdict.message


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1/metrics", "http://no-such-host.invalid:4318/"])
def test_nobody_there_is_told_apart(url: str) -> None:
    verdict = HttpTransport(url, {}).send(b"", 10)
    assert (verdict.outcome, verdict.unreachable) == ("retry", True)
    assert url in verdict.message


def test_an_outage_is_told_once_and_not_at_each_attempt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otelperf.export._log", logs.Log("otelperf.export", logs.Repeats()))
    caplog.set_level(logging.INFO, "otelperf")
    run(Scripted(*[UNREACHABLE] * 50), b"a")
    assert [message.split(" endpoint")[0] for message in caplog.messages] == ["collector unreachable", "delivering"]


# Spans


UNSERVED = Verdict("retry", "HTTP 404", retry_after=300.0, unserved=True)


def tracing(sender: Sender, delay: float = 60_000) -> TracerProvider:
    provider = TracerProvider(resource=Resource({"service.name": "test"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(QueueSpanExporter(sender), schedule_delay_millis=delay))
    return provider


def test_spans_of_the_sdk_are_sent_and_the_thread_comes_with_the_first() -> None:
    transport = Scripted()
    sender = Hurried(transport, signal=TRACES)
    provider = tracing(sender)
    with provider.get_tracer("test").start_as_current_span("one") as one:
        one.set_attribute("n", 1)
    assert not sender.started
    provider.shutdown()
    assert sender.stats.points == {"delivered": 1, "refused": 0, "dropped": 0, "rejected": 0}
    assert sender.stats.waiting == 0
    (resource,) = ExportTraceServiceRequest.FromString(transport.sent[0]).resource_spans
    assert [span.name for span in resource.scope_spans[0].spans] == ["one"]
    assert transport.closed


def test_spans_that_are_not_taken_any_more_are_a_failure() -> None:
    sender = run(Scripted(), b"a")
    assert QueueSpanExporter(sender).export([]) is SpanExportResult.FAILURE


def test_what_is_lost_of_spans_is_nobodys_to_send_anew(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender(Scripted(REFUSED), limit=100, timeout=10.0, signal=TRACES)
    sender.start()
    for body in (b"a", b"b"):
        sender.put(body, 2)
    assert sender.close(30)
    assert sender.stats.points == {"delivered": 2, "refused": 2, "dropped": 0, "rejected": 0}
    refused = f'request refused signal=traces endpoint={Scripted.endpoint} problem="HTTP 400" spans=2 then="lost, not sent again"'
    assert refused in caplog.messages


def test_a_collector_without_traces_is_told_of_once_and_asked_again_seldom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "otelperf")
    transport = Scripted(*[UNSERVED] * 12)
    sender = Hurried(transport, signal=TRACES)
    sender.start()
    sender.put(b"a", 1)
    wait_until(lambda: sender.stats.requests["delivered"] > 0, 30, "nothing was delivered")
    assert sender.close(30)
    assert sender.pauses == [300.0] * 12
    told = [message.split(" endpoint")[0] for message in caplog.messages]
    assert told == ["collector takes no traces", "delivering signal=traces"]


def test_what_a_collector_without_traces_leaves_no_room_for_is_counted_and_not_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sender = Sender(Scripted(*[UNSERVED] * 100), limit=2, timeout=10.0, signal=TRACES)
    sender.start()
    sender.put(b"a", 1)
    wait_until(lambda: sender.stats.retries == 1, 30, "nothing was sent")
    for body in (b"b", b"c", b"d"):
        sender.put(body, 1)
    assert (sender.stats.points["dropped"], sender.stats.waiting) == (2, 2)
    sender.close(30)
    assert [message.split(" endpoint")[0] for message in caplog.messages] == ["collector takes no traces"]


def test_what_has_no_pipeline_does_not_hold_up_the_end() -> None:
    sender = Sender(Scripted(*[UNSERVED] * 100), limit=100, timeout=10.0, signal=TRACES)
    sender.start()
    sender.put(b"a", 1)
    wait_until(lambda: sender.stats.retries == 1, 30, "nothing was sent")
    began = time.monotonic()
    assert not sender.close(30)
    assert time.monotonic() - began < 10
    assert sender.stats.waiting == 1


def test_an_answer_about_spans_is_read_as_such(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 2
    response.partial_success.error_message = "too long"
    server = serve(answering(answer("200 OK", response.SerializeToString())))
    url = server.url.replace("metrics", "traces")
    sender = Sender(HttpTransport(url, {}, signal=TRACES), limit=100, timeout=10.0, signal=TRACES)
    sender.start()
    sender.put(b"a", 10)
    assert sender.close(30)
    assert server.requests.get(timeout=30).line == "POST /v1/traces HTTP/1.1"
    assert sender.stats.points["rejected"] == 2
    assert f'spans rejected signal=traces endpoint={url} spans=2 problem="too long"' in caplog.messages


def test_a_missing_path_for_traces_may_be_a_missing_pipeline(serve: Serve) -> None:
    transport = HttpTransport(serve(answering(answer("404 Not Found", b"no"))).url, {}, signal=TRACES)
    verdict = transport.send(b"", 10)
    transport.close()
    hint = "HTTP 404 no: an OTLP/HTTP endpoint usually ends in /v1/traces; is there a traces pipeline?"
    assert verdict == Verdict("retry", hint, retry_after=300.0, unserved=True)

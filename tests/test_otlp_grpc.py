"""OTLP over gRPC against a real gRPC server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # generated code
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # generated code
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otelperf import config
from otelperf.agent import make_transport
from otelperf.errors import ConfigError
from otelperf.export import TRACES, Sender, Verdict
from otelperf.otlp_grpc import GrpcTransport, from_settings

METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
TRACES_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
RETRIED = {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}

Context = grpc.ServicerContext
Behave = Callable[[bytes, Context], bytes]


class Server(grpc.GenericRpcHandler):
    """A gRPC server whose one method does as told with the bytes that come."""

    def __init__(self, behave: Behave, credentials: grpc.ServerCredentials | None = None, method: str = METHOD) -> None:
        self._behave = behave
        self._method = method
        self.metadata: dict[str, str | bytes] = {}
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=[self])
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method != self._method:
            return None
        self.metadata = {item.key: item.value for item in handler_call_details.invocation_metadata}
        return grpc.unary_unary_rpc_method_handler(self._behave)

    def close(self) -> None:
        self._server.stop(0).wait(10)


Serve = Callable[[Behave], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(behave: Behave) -> Server:
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def transport_to(port: int, **more: Any) -> GrpcTransport:
    return GrpcTransport(f"http://127.0.0.1:{port}", f"127.0.0.1:{port}", {}, **more)


def send(server: Server, body: bytes = b"", timeout: float = 10.0) -> Verdict:
    transport = transport_to(server.port)
    try:
        return transport.send(body, timeout)
    finally:
        transport.close()


def failing(code: grpc.StatusCode, details: str = "because") -> Behave:
    def behave(_: bytes, context: Context) -> bytes:
        context.abort(code, details)
        raise AssertionError

    return behave


def failing_for(code: grpc.StatusCode, seconds: float) -> Behave:
    """Fail with the RetryInfo of the specification."""
    info = RetryInfo()
    info.retry_delay.FromMilliseconds(int(seconds * 1000))
    status = Status(code=code.value[0], message="busy")
    status.details.add().Pack(info)

    def behave(_: bytes, context: Context) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, "busy")
        raise AssertionError

    return behave


def test_the_request_arrives_as_it_was_encoded(serve: Serve) -> None:
    received: list[bytes] = []

    def behave(body: bytes, _: Context) -> bytes:
        received.append(body)
        return b""

    server = serve(behave)
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().schema_url = "x" * 10_000
    for compress in (False, True):
        transport = GrpcTransport(
            "http://c:4317", f"127.0.0.1:{server.port}", {"Authorization": "Bearer s3cret"}, compress=compress
        )
        assert transport.send(request.SerializeToString(), 10) == Verdict("delivered")
        transport.close()
    assert received == [request.SerializeToString()] * 2
    assert server.metadata["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=lambda c: c.name
)
def test_codes_are_retried_as_the_specification_says(serve: Serve, code: grpc.StatusCode) -> None:
    verdict = send(serve(failing(code)))
    assert verdict.outcome == ("retry" if code.name in RETRIED else "refused")
    assert verdict.message == f"gRPC {code.name} because"
    assert verdict.retry_after is None


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE], ids=lambda c: c.name
)
def test_the_collectors_own_pause_is_kept(serve: Serve, code: grpc.StatusCode) -> None:
    verdict = send(serve(failing_for(code, 7.5)))
    assert verdict == Verdict("retry", f"gRPC {code.name} busy", retry_after=7.5)


def test_a_pause_is_within_reason(serve: Serve) -> None:
    assert send(serve(failing_for(grpc.StatusCode.UNAVAILABLE, 1e6))).retry_after == 300.0
    assert send(serve(failing_for(grpc.StatusCode.UNAVAILABLE, -5))).retry_after == 0.0


def test_a_pause_is_no_reason_to_retry_what_is_refused_for_good(serve: Serve) -> None:
    assert send(serve(failing_for(grpc.StatusCode.INVALID_ARGUMENT, 1))).outcome == "refused"


def test_a_pause_that_cannot_be_read_is_none(serve: Serve) -> None:
    def behave(_: bytes, context: Context) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        raise AssertionError

    assert send(serve(behave)).retry_after is None


def test_a_request_that_is_too_large_does_not_block_the_queue(serve: Serve) -> None:
    verdict = send(serve(lambda _body, _context: b""), b"x" * (5 * 2**20))
    assert verdict.outcome == "refused"
    assert "larger than max" in verdict.message


@pytest.mark.parametrize("rejected", [3, 0, -3])
def test_partial_success_is_told(serve: Serve, rejected: int) -> None:
    response = ExportMetricsServiceResponse()
    response.partial_success.rejected_data_points = rejected
    response.partial_success.error_message = "out of order"
    verdict = send(serve(lambda _body, _context: response.SerializeToString()))
    assert verdict == Verdict("delivered", "out of order", rejected=max(0, rejected))


def test_garbage_is_refused_and_does_not_raise(serve: Serve) -> None:
    verdict = send(serve(lambda _body, _context: b"\xff\xff"))
    assert verdict.outcome == "refused"
    assert "INTERNAL" in verdict.message


def test_a_server_that_hangs_is_left_at_the_timeout(serve: Serve) -> None:
    released = threading.Event()

    def behave(_: bytes, _context: Context) -> bytes:
        released.wait(60)
        return b""

    began = time.monotonic()
    verdict = send(serve(behave), timeout=0.3)
    assert time.monotonic() - began < 20
    assert (verdict.outcome, verdict.unreachable) == ("retry", False)
    assert "DEADLINE_EXCEEDED" in verdict.message
    released.set()


def test_nobody_there_is_told_apart() -> None:
    transport = transport_to(1)
    verdict = transport.send(b"", 10)
    transport.close()
    assert (verdict.outcome, verdict.unreachable) == ("retry", True)
    assert "UNAVAILABLE" in verdict.message


def test_a_server_without_the_service_is_refused() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    transport = transport_to(port)
    verdict = transport.send(b"", 10)
    transport.close()
    server.stop(0).wait(10)
    assert verdict.outcome == "refused"
    assert "UNIMPLEMENTED" in verdict.message


def test_a_server_without_the_service_for_traces_may_lack_a_pipeline(serve: Serve) -> None:
    transport = transport_to(serve(lambda _body, _context: b"").port, signal=TRACES)  # it serves metrics only
    verdict = transport.send(b"", 10)
    transport.close()
    assert (verdict.outcome, verdict.unserved, verdict.retry_after) == ("retry", True, 300.0)
    assert verdict.message.endswith(": is there a traces pipeline?")


def test_spans_go_to_the_service_for_traces() -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 2
    response.partial_success.error_message = "too long"
    server = Server(lambda _body, _context: response.SerializeToString(), method=TRACES_METHOD)
    settings = config.load({"traces.protocol": "grpc", "traces.endpoint": f"http://127.0.0.1:{server.port}"}, {}, None)
    transport = make_transport(settings, TRACES)
    assert transport.send(b"", 10) == Verdict("delivered", "too long", rejected=2)
    transport.close()
    server.close()


def test_a_closed_transport_does_not_end_the_senders_thread(serve: Serve) -> None:
    transport = transport_to(serve(lambda _body, _context: b"").port)
    transport.close()
    sender = Sender(transport, lambda: None, limit=100, timeout=1.0)
    sender.start()
    sender.put(b"a", 1)
    assert sender.close(30)
    assert sender.stats.requests["refused"] == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_settings_make_a_transport(serve: Serve, host: str) -> None:
    server = serve(lambda _body, _context: b"")
    settings = config.load({"export.protocol": "grpc", "export.endpoint": f"http://{host}:{server.port}"}, {}, None)
    transport = make_transport(settings)
    assert transport.send(b"", 10) == Verdict("delivered")
    transport.close()


def test_an_ipv6_endpoint_keeps_its_brackets() -> None:
    settings = config.load({"export.protocol": "grpc", "export.endpoint": "http://[::1]:1"}, {}, None)
    transport = make_transport(settings)
    message = transport.send(b"", 10).message
    transport.close()
    assert "ipv6:%5B::1%5D:1" in message


def test_a_missing_certificate_is_a_configuration_fault() -> None:
    values = {"export.protocol": "grpc", "export.endpoint": "https://c:4317", "export.certificate": "/nowhere/ca.pem"}
    with pytest.raises(ConfigError, match=r"/nowhere/ca\.pem"):
        make_transport(config.load(values, {}, None))


def test_without_grpcio_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['grpc'] = None\n"
        "from otelperf.cli import main\n"
        "sys.exit(main(['agent', '--export-protocol', 'grpc', '--endpoint-port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "otelperf: OTLP over gRPC needs grpcio: pip install 'otelperf[grpc]', "
        "or use OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf\n"
    )


def test_a_password_in_the_endpoint_is_sent_and_never_shown() -> None:
    settings = config.load({"export.protocol": "grpc", "export.endpoint": "http://user:secret@127.0.0.1:1"}, {}, None)
    transport = from_settings(settings.export)
    assert transport.endpoint == "http://127.0.0.1:1"
    assert ("authorization", "Basic dXNlcjpzZWNyZXQ=") in transport._metadata
    transport.close()

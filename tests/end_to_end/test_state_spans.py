"""State changes of a real server as spans: through the real Collector, through its absence, and past one without traces."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from stack import processes
from stack.processes import COLLECTOR_CONFIGS, Process, query, wait_until
from tests.end_to_end.conftest import StartAgent

pytestmark = pytest.mark.end_to_end

# Patient: a page that came late on a busy machine would be a change of state of its own.
QUICK = {"OTELPERF_SERVER_INTERVAL": "1s", "OTELPERF_SERVER_TIMEOUT": "30s", "OTELPERF_HOST_ENABLED": "false"}
UP = "otelperf.server.up"
WORKER = "otelperf.worker.state"
ADDRESSES = {"http/protobuf": "http", "grpc": "grpc"}


class Span(NamedTuple):
    """A span as it arrived: times in Unix seconds."""

    name: str
    start: float
    end: float
    attributes: dict[str, Any]
    resource: dict[str, Any]
    error: str | None


class Tempo(ThreadingHTTPServer):
    """Keeps the spans that are sent to /v1/traces, as Tempo would."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Span] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def of(self, metric: str) -> list[Span]:
        """Return the changes of *metric*, as they arrived."""
        return [span for span in self.spans if span.attributes["otelperf.metric.name"] == metric]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Tempo

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(_unpacked(body, self.headers.get("Content-Encoding")))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                assert scope.scope.name == "otelperf"
                self.server.spans += [_span(each, _values(resource.resource.attributes)) for each in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # the base class's name
        pass


def _unpacked(body: bytes, encoding: str | None) -> bytes:
    import gzip

    return gzip.decompress(body) if encoding == "gzip" else body


def _span(span: Any, resource: dict[str, Any]) -> Span:
    error = span.status.message if span.status.code == Status.STATUS_CODE_ERROR else None
    start, end = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
    return Span(span.name, start, end, _values(span.attributes), resource, error)


def _values(attributes: list[KeyValue]) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}


@pytest.fixture
def tempo() -> Iterator[Tempo]:
    server = Tempo()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def tracing(prometheus: Process, tempo: Tempo, tmp_path: Path) -> Iterator[Process]:
    """Run a Collector that sends traces on."""
    with processes.collector(prometheus.url, tmp_path / "tracing", traces_url=tempo.url) as process:
        yield process


@pytest.fixture
def start(llama: Process, start_agent: StartAgent) -> Callable[..., Process]:
    """Start an agent for the llama-server, sending to a Collector, and wait until it has read it."""

    def start(collector: Process, protocol: str = "http/protobuf") -> Process:
        endpoint = f"http://127.0.0.1:{collector.ports[ADDRESSES[protocol]]}"
        way = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        agent = start_agent(**QUICK, **way, OTELPERF_SERVER_URL=llama.url)
        wait_until(lambda: "otelperf_worker_state{" in page(agent, "metrics"), 60, "the server was not read")
        return agent

    return start


def page(agent: Process, path: str) -> str:
    with urllib.request.urlopen(f"{agent.url}/{path}", timeout=30) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("protocol", ADDRESSES)
def test_a_server_killed_and_restarted_is_told_with_how_long_each_state_was_held(
    tempo: Tempo, tracing: Process, llama: Process, start: Callable[..., Process], protocol: str
) -> None:
    start(tracing, protocol)
    began = time.time()
    llama.kill()
    wait_until(lambda: len(tempo.of(UP)) == 1, 60, "that the server is down did not arrive")
    llama.start()
    wait_until(lambda: len(tempo.of(UP)) == 2, 60, "that the server is back did not arrive")
    down, up = tempo.of(UP)
    assert [(span.name, span.attributes["otelperf.state.previous"]) for span in (down, up)] == [
        (f"{UP} down", "up"),
        (f"{UP} up", "down"),
    ]
    assert "refused" in (down.error or "")
    assert up.error is None
    assert down.attributes["otelperf.state.partial"]  # the server was up before the agent came
    assert "otelperf.state.partial" not in up.attributes
    assert up.attributes["otelperf.state.duration"] == pytest.approx(up.end - down.end, abs=1e-6)
    assert began - 1 < down.end < up.start < up.end < time.time() + 1
    assert down.resource == up.resource
    assert up.resource["service.name"] == "llama.cpp"
    wait_until(lambda: len(tempo.of(WORKER)) == 8, 60, "the slots' states did not arrive")
    states = [span.attributes["otelperf.state.new"] for span in tempo.of(WORKER)]
    assert (states[:4], set(states[4:])) == (["unknown"] * 4, {"idle"})
    assert {span.attributes["otelperf.worker.id"] for span in tempo.of(WORKER)} == {"0", "1", "2", "3"}


def test_what_changed_while_the_collector_was_away_arrives_afterwards(
    tempo: Tempo, tracing: Process, llama: Process, start: Callable[..., Process]
) -> None:
    agent = start(tracing)

    def waiting() -> Any:
        return json.loads(page(agent, "readyz")).get("traces", {}).get("queued_bytes", 0)

    tracing.kill()
    llama.kill()
    wait_until(lambda: waiting() > 0, 60, "no span waits")
    first = waiting()
    llama.start()
    wait_until(lambda: waiting() > first, 60, "the second change does not wait")
    assert tempo.spans == []
    tracing.start()
    wait_until(lambda: len(tempo.of(UP)) == 2, 60, "the changes did not arrive")
    down, up = tempo.of(UP)
    assert (down.attributes["otelperf.state.new"], up.attributes["otelperf.state.new"]) == ("down", "up")
    assert up.attributes["otelperf.state.duration"] == pytest.approx(up.end - down.end, abs=1e-6)
    assert waiting() == 0


@pytest.mark.parametrize("protocol", ADDRESSES)
def test_a_collector_without_traces_is_told_of_once_and_metrics_go_on(
    prometheus: Process, llama: Process, start: Callable[..., Process], tmp_path: Path, protocol: str
) -> None:
    config = yaml.safe_load((COLLECTOR_CONFIGS / "gateway.yaml").read_text())
    del config["service"]["pipelines"]["traces"]
    lacking = tmp_path / "metrics-only.yaml"
    lacking.write_text(yaml.safe_dump(config))
    with processes.collector(prometheus.url, tmp_path / "lacking", configs=[str(lacking)]) as collector:
        agent = start(collector, protocol)
        for _ in range(2):
            llama.kill()
            wait_until(lambda: bool(query(prometheus.url, "otelperf_server_up == 0")), 60, "up did not fall to 0")
            llama.start()
            wait_until(lambda: bool(query(prometheus.url, "otelperf_server_up == 1")), 60, "up did not return to 1")
        log = agent.log_path.read_text()
        assert log.count("collector takes no traces") == 1, log
        assert "queue full" not in log
        agent.stop()
    assert "not everything was sent" in agent.log_path.read_text()

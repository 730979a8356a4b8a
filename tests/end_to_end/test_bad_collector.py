"""A Collector that behaves badly in every way HTTP allows, and what a real Prometheus holds once it behaves again."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from stack import processes
from stack.processes import Process, query, series_samples, wait_until

pytestmark = pytest.mark.end_to_end

TOKENS = 'otelperf_server_tokens_total{gen_ai_token_type="output"}'
RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # SO_LINGER: on, for 0 s

Behave = Callable[["Handler", bytes], None]


class Collector(ThreadingHTTPServer):
    """Does the next thing of *script* with each request, and when there is none what *usual* says."""

    daemon_threads = True
    request_queue_size = 50

    def __init__(self, prometheus_url: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.prometheus_url = prometheus_url
        self.script: list[Behave] = []
        self.usual: Behave = forward
        self.bodies: list[bytes] = []
        self.refusals: list[str] = []
        self.stopping = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are part of the test."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        script = self.server.script
        (script.pop(0) if script else self.server.usual)(self, body)

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # the base class's name
        pass


def store(handler: Handler, body: bytes) -> None:
    """Pass the request on to Prometheus, and note it if that refuses."""
    url = f"{handler.server.prometheus_url}/api/v1/otlp/v1/metrics"
    request = urllib.request.Request(url, body, {"Content-Type": "application/x-protobuf"})
    try:
        with urllib.request.urlopen(request, timeout=10):
            handler.server.bodies.append(body)
    except urllib.error.HTTPError as error:
        handler.server.refusals.append(f"{error.code} {error.read().decode()}")


def forward(handler: Handler, body: bytes) -> None:
    store(handler, body)
    handler.answer(200)


def lose_the_answer(handler: Handler, body: bytes) -> None:
    store(handler, body)
    reset(handler, body)


def reset(handler: Handler, _: bytes) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    handler.connection.close()
    handler.close_connection = True


def hang(handler: Handler, _: bytes) -> None:
    handler.server.stopping.wait(60)


def status(code: int, **headers: str) -> Behave:
    return lambda handler, _: handler.answer(code, **headers)


class Llama(ThreadingHTTPServer):
    """A server whose number of tokens the test decides."""

    daemon_threads = True
    tokens = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), LlamaHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def generate(self, seconds: float) -> None:
        """Let the number of tokens rise for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.tokens += 100
            time.sleep(0.1)


class LlamaHandler(BaseHTTPRequestHandler):
    server: Llama

    def do_GET(self) -> None:
        lines = (f"llamacpp:{name}_total {self.server.tokens}\n" for name in ("tokens_predicted", "prompt_tokens"))
        body = "".join(lines).encode() if self.path == "/metrics" else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # the base class's name
        pass


@pytest.fixture
def collector(prometheus: Process) -> Iterator[Collector]:
    with Collector(prometheus.url) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.stopping.set()
        server.shutdown()


@pytest.fixture
def llama() -> Iterator[Llama]:
    with Llama() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


StartAgent = Callable[..., Process]


@pytest.fixture
def start_agent(collector: Collector, llama: Llama, tmp_path: Path) -> Iterator[StartAgent]:
    """Start an agent with quick settings; keyword arguments are more of them."""
    started: list[Process] = []

    def start(**environment: str) -> Process:
        port = processes.free_port()
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTELPERF_PROFILE": "testing",
            "OTELPERF_TRACES_EXPORTER": "none",  # what a busy machine has to tell would come between
            "OTELPERF_EXPORT_TIMEOUT": "1s",
            "OTELPERF_GATE_HEARTBEAT": "3s",
            "OTELPERF_ENDPOINT_PORT": str(port),
            "OTELPERF_SERVER_URL": llama.url,
            **environment,
        }
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "otelperf", "agent"]
        log = tmp_path / "agent.log"
        started.append(Process("agent", command, url, log, ready_url=f"{url}/readyz", environment=settings))
        return started[-1].start()

    yield start
    for agent in started:
        agent.stop()


def stored_tokens(prometheus: Process) -> float | None:
    series = query(prometheus.url, TOKENS)
    return float(series[0]["value"][1]) if series else None


def wait_for_tokens(prometheus: Process, llama: Llama) -> None:
    wait_until(
        lambda: stored_tokens(prometheus) == llama.tokens, 60, f"{stored_tokens(prometheus)} tokens, not {llama.tokens}"
    )


def export_of(agent: Process) -> dict[str, Any]:
    with urllib.request.urlopen(f"{agent.url}/readyz", timeout=30) as response:
        export: dict[str, Any] = json.load(response)["export"]
        return export


def names_shown(agent: Process) -> set[str]:
    with urllib.request.urlopen(f"{agent.url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}


def names_stored(prometheus: Process) -> set[str]:
    return {series["metric"]["__name__"] for series in query(prometheus.url, '{job=~"host|otelperf|llama.cpp"}')}


def assert_order(prometheus: Process, collector: Collector) -> None:
    """Nothing refused, and the times of each series rise, on the way as in the store."""
    assert collector.refusals == []
    assert "out of order" not in prometheus.log_path.read_text().lower()
    for _, samples in series_samples(prometheus.url, '{job=~"host|otelperf|llama.cpp"}[10m]'):
        times = [when for when, _ in samples]
        assert times == sorted(set(times))
    times_by_stream: dict[tuple[bytes, str, bytes], list[int]] = {}
    previous = b""
    for body in collector.bodies:
        if body == previous:  # sent again after an answer that was lost
            continue
        previous = body
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                for point in getattr(metric, str(metric.WhichOneof("data"))).data_points:
                    attributes = b"".join(sorted(each.SerializeToString() for each in point.attributes))
                    stream = (resource.resource.SerializeToString(), metric.name, attributes)
                    times_by_stream.setdefault(stream, []).append(point.time_unix_nano)
    assert len(times_by_stream) > 20
    assert [stream for stream, times in times_by_stream.items() if times != sorted(set(times))] == []


def test_whatever_the_collector_does_totals_and_order_are_right_in_the_end(
    prometheus: Process, collector: Collector, llama: Llama, start_agent: StartAgent
) -> None:
    agent = start_agent()
    wait_until(lambda: stored_tokens(prometheus) is not None, 60, "the tokens did not arrive")
    bad: list[Behave] = [
        status(429, Retry_After="1"),
        status(503),
        reset,
        lose_the_answer,
        hang,
        status(502),
        lose_the_answer,
        status(504, Retry_After="0"),
    ]
    # A delivery after each keeps the pauses short; at the end several troubles in a row.
    collector.script = [each for pair in ((trouble, forward) for trouble in bad) for each in pair] + bad[1:4]
    while collector.script:
        llama.generate(0.5)
    wait_for_tokens(prometheus, llama)
    export = export_of(agent)
    assert (export["refused"], export["dropped"]) == (0, 0)
    assert export["retries"] >= len(bad) / 2  # a kept connection that breaks is tried again at once, uncounted
    ((_, samples),) = series_samples(prometheus.url, f"{TOKENS}[10m]")
    assert [number for _, number in samples] == sorted(number for _, number in samples)
    agent.stop()
    assert_order(prometheus, collector)


def test_a_collector_that_refuses_everything_costs_little_and_is_told_once(
    prometheus: Process, collector: Collector, llama: Llama, start_agent: StartAgent
) -> None:
    collector.usual = status(400)
    agent = start_agent(OTELPERF_GATE_HEARTBEAT="100s")  # no heartbeat heals what was lost here
    wait_until(lambda: export_of(agent)["refused"] >= 3, 60, "nothing was refused")
    process = psutil.Process(agent.pid)
    memory, cpu, began = process.memory_info().rss, sum(process.cpu_times()[:2]), time.monotonic()
    llama.generate(6)
    assert process.memory_info().rss - memory < 8 * 2**20
    assert sum(process.cpu_times()[:2]) - cpu < 0.3 * (time.monotonic() - began)
    export = export_of(agent)
    assert export["delivered"] == 0
    assert export["queued_bytes"] < 100_000
    assert export["retries"] == 0
    assert processes.answers(f"{agent.url}/healthz")
    assert agent.log_path.read_text().count('"request refused"') == 1
    collector.usual = forward
    wait_for_tokens(prometheus, llama)
    shown = names_shown(agent)
    wait_until(lambda: shown <= names_stored(prometheus), 60, f"not all of {sorted(shown)} were sent anew")
    assert_order(prometheus, collector)


def test_a_collector_that_hangs_costs_no_more_than_the_queue_and_then_gets_everything_anew(
    prometheus: Process, collector: Collector, llama: Llama, start_agent: StartAgent
) -> None:
    collector.usual = hang
    limit = 64 * 1024
    # Every point of every second, so that the queue fills quickly.
    agent = start_agent(OTELPERF_EXPORT_QUEUE_SIZE=str(limit), OTELPERF_GATE_ENABLED="false")
    wait_until(lambda: export_of(agent)["dropped"] >= 3, 60, "the queue did not overflow")
    assert export_of(agent)["queued_bytes"] < 2 * limit
    assert processes.answers(f"{agent.url}/healthz")
    llama.generate(1)
    collector.usual = forward
    wait_for_tokens(prometheus, llama)
    assert_order(prometheus, collector)


@pytest.mark.parametrize("behave", [hang, reset, status(503), status(429, Retry_After="300"), status(400)])
def test_the_agent_stops_in_time_whatever_the_collector_does(
    collector: Collector, start_agent: StartAgent, behave: Behave
) -> None:
    collector.usual = behave
    agent = start_agent(OTELPERF_EXPORT_SHUTDOWN_TIMEOUT="500ms")
    wait_until(
        lambda: export_of(agent)["queued_bytes"] > 0 or export_of(agent)["refused"] > 0, 60, "nothing was queued"
    )
    began = time.monotonic()
    agent.stop(timeout_seconds=20)
    assert time.monotonic() - began < 10  # the hanging Collector lets go after 60 s
    assert "agent stopped" in agent.log_path.read_text()

"""The span gate in forked children, in asyncio, at the interpreter's end, and before a real exporter."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Self

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan

import otelperf.gate.spans
from tests.gate.traced import REPRESENTED, Traced, of

PROJECT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_begins_empty_even_if_the_lock_was_held() -> None:
    traced = Traced()
    traced.call()
    traced.calls(5)
    under_way, waiting = traced.begin(), traced.begin()
    traced.begin("never ends", waiting)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with traced.gate._lock:
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    traced.wait(1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            traced.clear()
            assert traced.gate.stats.traces == 0
            traced.end(under_way, failed=True)  # the parent's: it ends and counts there
            traced.calls(3)
            traced.end(traced.begin("late", under_way), failed=True)  # of a child's own
            traced.provider.shutdown()
            assert traced.counts() == {"call": 3, "late": 0}
            code = 0
        finally:
            os._exit(code)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    traced.end(under_way)
    traced.end(waiting)
    traced.provider.shutdown()
    assert traced.counts() == {"call": 8}


def test_a_child_of_a_child_leaves_the_calls_of_both_alone() -> None:
    traced = Traced()
    calls = []
    for _ in range(2):
        calls.append(traced.begin())
        traced.wait(1)
        traced.gate.begin_anew()  # as after a fork
    for call in calls:
        traced.end(call, failed=True)
    traced.provider.shutdown()
    assert traced.kept() == []


@pytest.mark.parametrize("name", ["kept", "call"])
def test_a_span_that_was_open_at_a_fork_is_the_parents_to_send(name: str) -> None:
    traced = Traced(always=["kept"])
    root = traced.begin(name)
    child = traced.begin("child", root)
    traced.wait(1)
    traced.gate.begin_anew()  # as in the child
    traced.end(child)
    traced.end(root)
    traced.provider.shutdown()
    assert traced.kept() == []


def test_tasks_of_asyncio_do_not_mix_their_traces() -> None:
    traced = Traced(always=["0", "1"])

    async def call(name: str) -> None:
        with traced.tracer.start_as_current_span(name, Context()):
            for _ in range(3):
                await asyncio.sleep(0)
                with traced.tracer.start_as_current_span(f"child of {name}"):
                    await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(call(str(number % 4)) for number in range(40)))

    asyncio.run(main())
    traced.provider.shutdown()
    roots = {span.context.span_id: span.name for span in traced.sent if REPRESENTED in of(span) and span.context}
    for span in traced.sent:
        if span.parent is not None:
            assert span.name == f"child of {roots[span.parent.span_id]}"
    assert sum(traced.counts().values()) == 40


# In an application


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[SentSpan] = []
        taken = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        taken.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for span in self.spans:
            for attribute in span.attributes:
                if attribute.key == REPRESENTED:
                    found[span.name] = found.get(span.name, 0) + attribute.value.int_value
        return found


def examples() -> Iterator[str]:
    """Return what the page and the module tell people to type."""
    yield re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "traces.md").read_text(), re.DOTALL)[0]
    imports = """
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from otelperf import SpanGate
"""
    lines = (otelperf.gate.spans.__doc__ or "").splitlines()
    yield imports + "\n".join(line.strip() for line in lines if line.startswith("    "))


@pytest.mark.parametrize("example", list(examples()), ids=["page", "docstring"])
def test_the_examples_run_and_the_counts_arrive_at_the_interpreters_end(example: str) -> None:
    calls = """
tracer = provider.get_tracer("shop")
for _ in range(100):
    with tracer.start_as_current_span("order"):
        with tracer.start_as_current_span("pay"):
            pass
"""
    with Collector() as collector:
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server.server_port}",
            "PYTHONWARNINGS": "error",
        }
        done = subprocess.run(
            [sys.executable, "-c", example + calls], check=True, env=environment, capture_output=True, text=True
        )
    assert done.stderr == ""
    assert collector.counts() == {"order": 100}
    assert len(collector.spans) < 50


def test_the_span_gate_loads_nothing_else_of_ours_and_no_exporter() -> None:
    script = "import sys, otelperf.gate.spans; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    ours = {name for name in loaded if name.startswith("otelperf.") and not name.startswith("otelperf.gate")}
    assert ours | (loaded & {"requests", "grpc", "asyncio", "opentelemetry.sdk.metrics"}) == set()


def test_a_disabled_sdk_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    traced = Traced()
    traced.call()
    assert (traced.gate.stats.seen, trace.get_current_span().is_recording()) == (0, False)

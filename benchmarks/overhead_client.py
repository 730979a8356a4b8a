"""One way to measure calls of the OpenAI client, in a process of its own: a script, because peers need environments of their own.

    python benchmarks/overhead_client.py VARIANT ENDPOINT calls|arrivals < what to do, as JSON

The client's HTTP transport is a stand-in in this process, so the network is no part of it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

MODEL = "tiny"
CHUNKS = 20
BLOCKS = 20
_MESSAGES = [{"role": "user", "content": "What is measured here?"}]
_USAGE = {"prompt_tokens": 9, "completion_tokens": CHUNKS, "total_tokens": 9 + CHUNKS}


def _answer(*, stream: bool) -> bytes:
    about = {"id": "chatcmpl-1", "created": 1, "model": MODEL}
    if not stream:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * CHUNKS}}
        return json.dumps({**about, "object": "chat.completion", "choices": [choice], "usage": _USAGE}).encode()
    lines = []
    for number in range(CHUNKS):
        choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
        if number == CHUNKS - 1:
            choice["finish_reason"] = "stop"
        lines.append({**about, "object": "chat.completion.chunk", "choices": [choice]})
    lines.append({**about, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE})
    return b"".join(b"data: " + json.dumps(line).encode() + b"\n\n" for line in lines) + b"data: [DONE]\n\n"


class Calls:
    """A client, and the two calls of it that are measured. *delay* is how long the stand-in takes, in s."""

    def __init__(self, delay: Callable[[], float] = lambda: 0.0) -> None:
        import openai

        http: Any = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
        whole, stream = _answer(stream=False), _answer(stream=True)

        def handle(request: Any) -> Any:
            if seconds := delay():
                time.sleep(seconds)
            if b'"stream":true' in request.content.replace(b" ", b""):
                return http.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
            return http.Response(200, headers={"content-type": "application/json"}, content=whole)

        transport = http.MockTransport(handle)
        client = openai.OpenAI(
            api_key="none", base_url="http://model/v1", http_client=openai.DefaultHttpxClient(transport=transport)
        )
        self._client: Any = client

    def whole(self) -> Any:
        """Ask for an answer in one piece."""
        return self._client.chat.completions.create(model=MODEL, messages=_MESSAGES)

    def stream(self) -> int:
        """Ask for a stream, and read it."""
        chunks = self._client.chat.completions.create(
            model=MODEL, messages=_MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        return sum(1 for _ in chunks)


def _sdk() -> tuple[Any, Any]:
    """OpenTelemetry's SDK as its documentation sets it up."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return tracers, MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])


def _by_hand(calls: Calls) -> tuple[Callable[[], Any], ...]:
    """A span and three histograms (time, input and output tokens), nothing more; of a stream not even its chunks."""
    tracers, meters = _sdk()
    tracer, meter = tracers.get_tracer("by hand"), meters.get_meter("by hand")
    duration = meter.create_histogram("gen_ai.client.operation.duration", unit="s")
    usage = meter.create_histogram("gen_ai.client.token.usage", unit="{token}")
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": MODEL}

    def measured(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            with tracer.start_as_current_span(f"chat {MODEL}", attributes=attributes) as span:
                began = time.perf_counter()
                call()
                duration.record(time.perf_counter() - began, attributes)
                for kind in ("input", "output"):
                    usage.record(9, {**attributes, "gen_ai.token.type": kind})
                    span.set_attribute(f"gen_ai.usage.{kind}_tokens", 9)

        return run

    return measured(calls.whole), measured(calls.stream), measured(lambda: None)


def _inference(calls: Calls) -> tuple[Callable[[], Any], ...]:
    import otelperf

    otelperf.instrument("overhead", libraries="none")

    def whole() -> None:
        with otelperf.inference(MODEL, provider="openai") as call:
            answer = calls.whole()
            call.tokens(input=answer.usage.prompt_tokens, output=answer.usage.completion_tokens)

    def stream() -> None:
        with otelperf.inference(MODEL, provider="openai") as call:
            for chunk in calls._client.chat.completions.create(  # noqa: SLF001 # of this file
                model=MODEL, messages=_MESSAGES, stream=True, stream_options={"include_usage": True}
            ):
                call.chunk()
                if chunk.usage:
                    call.tokens(input=chunk.usage.prompt_tokens, output=chunk.usage.completion_tokens)

    def empty() -> None:
        with otelperf.inference(MODEL, provider="openai") as call:
            call.tokens(input=9, output=CHUNKS)

    return whole, stream, empty


def _automatic() -> None:
    import otelperf

    otelperf.instrument("overhead", libraries=["openai"])


def _genai() -> None:
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    tracers, meters = _sdk()
    OpenAIInstrumentor().instrument(tracer_provider=tracers, meter_provider=meters)


def _openlit() -> None:
    import openlit  # type: ignore[import-not-found, unused-ignore] # in its own environment

    openlit.init(otlp_endpoint=os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"], capture_message_content=False)


def _openllmetry() -> None:
    from traceloop.sdk import Traceloop  # type: ignore[import-not-found, unused-ignore] # in its own environment

    Traceloop.init(app_name="overhead", api_endpoint=os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"], telemetry_enabled=False)


INSTRUMENTED: dict[str, Callable[[], None]] = {
    "automatic": _automatic,
    "genai": _genai,
    "openlit": _openlit,
    "openllmetry": _openllmetry,
}


def prepare(variant: str, calls: Calls) -> tuple[Callable[[], Any], ...]:
    """Return the two calls as *variant* measures them, and where that is done by hand an empty one."""
    if variant == "by hand":
        return _by_hand(calls)
    if variant == "inference":
        return _inference(calls)
    INSTRUMENTED[variant]()
    return calls.whole, calls.stream


class Cost(NamedTuple):
    """µs of CPU a call: in the caller's thread, the least of all blocks; and in other threads, on average."""

    caller: float
    others: float


def cost(call: Callable[[], Any], count: int) -> Cost:
    """Make *count* calls in blocks."""
    each = count // BLOCKS
    for _ in range(each):
        call()
    caller, others = [], 0.0
    for _ in range(BLOCKS):
        thread, process = time.thread_time(), time.process_time()
        for _ in range(each):
            call()
        caller.append(time.thread_time() - thread)
        others += time.process_time() - process - caller[-1]
    return Cost(min(caller) / each * 1e6, max(0.0, others) / (each * BLOCKS) * 1e6)


def run_calls(variant: str, what: dict[str, Any]) -> dict[str, Any]:
    """Measure bare calls, and then the same with *variant*."""
    calls = Calls()
    bare = [cost(call, what["calls"]) for call in (calls.whole, calls.stream)]
    return {"bare": bare, "measured": [cost(call, what["calls"]) for call in prepare(variant, calls)]}


def run_arrivals(variant: str, what: dict[str, Any]) -> dict[str, Any]:
    """Make a call at each time of *what*, and end as a program does."""
    chance = random.Random(7)
    whole, *_ = prepare(variant, Calls(lambda: min(0.2, chance.lognormvariate(-4, 0.6))))
    began = time.monotonic()
    for at in what["arrivals"]:
        time.sleep(max(0.0, began + at - time.monotonic()))
        threading.Thread(target=whole).start()
    return {"calls": len(what["arrivals"])}


def main() -> None:
    """Do it, and print the outcome as the last line."""
    variant, endpoint, how = sys.argv[1:]
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    os.environ.setdefault("OTEL_SERVICE_NAME", "overhead")
    os.environ["TRACELOOP_TRACE_CONTENT"] = "false"
    what = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # banners
        found = {"calls": run_calls, "arrivals": run_arrivals}[how](variant, what)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

"""What the span gate costs a call, and what it keeps of a production trace: ``python -m benchmarks.span_gate``.

The cost is CPU time of the whole process, the encoding of what is sent as OTLP included, without transport. All rows are measured
in turns in one process, and the least of the turns is given. The replay takes when requests came and how many tokens they had from
AzureLLMInferenceTrace_code (2023) of the Azure Public Dataset, CC-BY 4.0 (Patel et al., "Splitwise", ISCA 2024).
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from benchmarks import page
from benchmarks.traffic import TRACE
from otelperf.gate.spans import REPRESENTED, SpanGate

TURNS, QUICK_TURNS = 60, 10
CALLS = 400  # a turn; three spans each fit into the queue of a BatchSpanProcessor
BATCH = 512  # spans a request
SECOND = 1_000_000_000
SWEEP = 5  # s
CONTEXT_SECONDS, OUTPUT_SECONDS = 0.0001, 0.02  # a token
FAILING = 200  # every nth call; the recorded trace tells nothing of failures
SLOWEST = 10
RESOURCE = Resource({"service.name": "benchmark", "service.instance.id": "0", "host.name": "here"})
PAGE = page.DOCS / "traces.md"
BEGIN, END = "<!-- made by python -m benchmarks.span_gate --write -->", "<!-- end of the figures -->"
HEAD = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "qwen3-32b",
    "gen_ai.provider.name": "openai",
    "server.address": "llm.example",
}


class Encoder(SpanExporter):
    """Encodes, and throws away."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def sdk(sampler: Sampler) -> TracerProvider:
    provider = TracerProvider(sampler, RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Encoder()))
    return provider


def gated() -> TracerProvider:
    gate = SpanGate(BatchSpanProcessor(Encoder()))
    provider = TracerProvider(gate.sampler, RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(gate)
    return provider


# What a call costs


def three(tracer: Tracer) -> None:
    """Make a call as an inference service does: itself, and two things under it."""
    with tracer.start_as_current_span("chat qwen3-32b", kind=SpanKind.SERVER, attributes=HEAD) as call:
        with tracer.start_as_current_span("tokenize", attributes={"tokens": 512, "model": "qwen3-32b"}):
            pass
        with tracer.start_as_current_span("generate", attributes={"model": "qwen3-32b", "batch": 8}) as generate:
            generate.set_attribute("gen_ai.usage.output_tokens", 128)
        call.set_attribute("gen_ai.usage.input_tokens", 512)


def one(tracer: Tracer) -> None:
    with tracer.start_as_current_span("chat qwen3-32b", kind=SpanKind.CLIENT, attributes=HEAD) as call:
        call.set_attribute("gen_ai.usage.input_tokens", 512)


WAYS: dict[str, Callable[[], TracerProvider | trace.NoOpTracerProvider]] = {
    "no tracing": trace.NoOpTracerProvider,
    "SDK, nothing sampled": lambda: sdk(ALWAYS_OFF),
    "SDK, 1 % by trace id": lambda: sdk(ParentBased(TraceIdRatioBased(0.01))),
    "SpanGate": gated,
    "SDK, everything sent": lambda: sdk(ALWAYS_ON),
}


def costs(turns: int) -> page.Table:
    """Return CPU in µs a call."""
    least: dict[tuple[str, str], float] = {}
    providers = {way: make() for way, make in WAYS.items()}
    for _ in range(turns):
        for way, provider in providers.items():
            tracer = provider.get_tracer("benchmark")
            for call in (three, one):
                begun = time.process_time()
                for _ in range(CALLS):
                    call(tracer)
                if isinstance(provider, TracerProvider):
                    provider.force_flush()
                spent = (time.process_time() - begun) / CALLS * 1e6
                least[way, call.__name__] = min(spent, least.get((way, call.__name__), spent))
    for provider in providers.values():
        if isinstance(provider, TracerProvider):
            provider.shutdown()
    table: page.Table = [("", "3 spans, µs a call", "everything sent = 1", "1 span, µs a call", "everything sent = 1")]
    for way in WAYS:
        cells = []
        for call in (three, one):
            spent = least[way, call.__name__]
            cells += [f"{spent:.1f}", f"{spent / least['SDK, everything sent', call.__name__]:.2f}"]
        table.append((way, *cells))
    return table


# What is kept


class Call(NamedTuple):
    """Times in ns since the first call."""

    at: int
    prompt: int
    output: int
    failed: bool

    @property
    def first_token(self) -> int:
        return self.at + int(self.prompt * CONTEXT_SECONDS * SECOND)

    @property
    def end(self) -> int:
        return self.first_token + int(self.output * OUTPUT_SECONDS * SECOND)


def recorded() -> list[Call]:
    with TRACE.open() as lines:
        rows = [
            (datetime.fromisoformat(row["TIMESTAMP"][:26]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(lines)
        ]
    return [
        Call(int((when - rows[0][0]).total_seconds() * SECOND), prompt, output, number % FAILING == FAILING - 1)
        for number, (when, prompt, output) in enumerate(rows)
    ]


class Replay:
    """Plays calls at their times into a provider, and holds what was sent."""

    def __init__(self, way: str) -> None:
        self.now = 0
        self.exporter = InMemorySpanExporter()
        processor: SpanProcessor = SimpleSpanProcessor(self.exporter)
        self.gate: SpanGate | None = None
        sampler: Sampler = ParentBased(TraceIdRatioBased(0.01)) if "1 %" in way else ALWAYS_ON
        if way == "SpanGate":
            processor = self.gate = SpanGate(processor, background=False, clock=lambda: self.now)
            sampler = self.gate.sampler
        self.provider = TracerProvider(sampler, RESOURCE, shutdown_on_exit=False)
        self.provider.add_span_processor(processor)

    def play(self, calls: Sequence[Call]) -> None:
        tracer = self.provider.get_tracer("benchmark")
        moments: list[tuple[int, int, str]] = []
        for number, call in enumerate(calls):
            moments += [(call.at, number, "begin"), (call.first_token, number, "token"), (call.end, number, "end")]
        moments += [(at * SECOND, -1, "sweep") for at in range(0, calls[-1].end // SECOND, SWEEP)]
        open_spans: dict[int, tuple[Span, Span]] = {}
        for self.now, number, what in sorted(moments):
            if what == "sweep":
                if self.gate is not None:
                    self.gate.sweep()
                continue
            call = calls[number]
            if what == "begin":
                root = tracer.start_span("chat qwen3-32b", Context(), SpanKind.SERVER, HEAD, start_time=call.at)
                inside = trace.set_span_in_context(root, Context())
                open_spans[number] = root, tracer.start_span("prefill", inside, start_time=call.at)
                continue
            root, prefill = open_spans[number]
            if what == "token":
                prefill.set_attribute("gen_ai.usage.input_tokens", call.prompt)
                prefill.end(call.first_token)
                continue
            inside = trace.set_span_in_context(root, Context())
            tracer.start_span("decode", inside, start_time=call.first_token).end(call.end)
            root.set_attributes({"gen_ai.usage.input_tokens": call.prompt, "gen_ai.usage.output_tokens": call.output})
            if call.failed:
                root.set_status(StatusCode.ERROR)
            root.end(call.end)
            del open_spans[number]
        self.provider.shutdown()


def kept(calls: Sequence[Call]) -> page.Table:
    """Return what each way sends of the recorded calls."""
    table: page.Table = [
        ("", "spans", "MB as OTLP", "of all", "calls", "counted", "failures", f"of the {SLOWEST} slowest")
    ]
    slowest = sorted(call.end - call.at for call in calls)[-SLOWEST:]
    everything = 0
    for way in ("SDK, everything sent", "SDK, 1 % by trace id", "SpanGate"):
        replay = Replay(way)
        replay.play(calls)
        spans = replay.exporter.get_finished_spans()
        batches = [spans[begin : begin + BATCH] for begin in range(0, len(spans), BATCH)]
        size = sum(len(encode_spans(batch).SerializeToString()) for batch in batches)
        everything = everything or size
        roots = [span for span in spans if span.parent is None]
        if way == "SpanGate":
            stood_for: list[Any] = [(span.attributes or {})[REPRESENTED] for span in roots]
            counted = sum(stood_for)
        else:
            counted = len(roots) * (100 if "1 %" in way else 1)
        failed = sum(not span.status.is_ok for span in roots)
        long = sum((span.end_time or 0) - (span.start_time or 0) >= slowest[0] for span in roots)
        cells = (f"{len(spans):,}", f"{size / 1e6:.3f}", f"{size / everything:.2%}", f"{len(roots):,}", f"{counted:,}")
        table.append((way, *cells, str(failed), str(long)))
    return table


def main() -> int:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.span_gate", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns: in some seconds, and rougher")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/traces.md")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    cost = costs(QUICK_TURNS if options.quick else TURNS)
    where = f"{page.machine()}, load average {load:.1f} before and {os.getloadavg()[0]:.1f} after"
    calls = recorded()
    failing = sum(call.failed for call in calls)
    model = (
        f"{len(calls):,} calls in {calls[-1].at / 60 / SECOND:.0f} minutes, three spans each; {CONTEXT_SECONDS * 1e3:g} ms a token"
        f" of context and {OUTPUT_SECONDS * 1e3:g} ms a token of output; every {FAILING}th ({failing}) made to fail. *Counted*:"
        " how many calls one would take from what was sent."
    )
    shown = [
        f"{where}{'; the quick run' if options.quick else ''}",
        "",
        "**CPU time of a call**",
        "",
        *page.markdown(cost),
    ]
    shown += ["", "**What is sent of a production trace**", "", model, "", *page.markdown(kept(calls))]
    print(*shown, sep="\n")
    if options.write:
        page.write(PAGE, BEGIN, END, "\n".join(shown))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

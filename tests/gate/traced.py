"""A span gate with a clock that the test moves, in front of the SDK's own exporter into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from otelperf.gate.spans import SpanGate

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
RESOURCE = Resource({"service.name": "tested"})
REPRESENTED, REASON, PARTIAL, OTHER = (
    f"otelperf.gate.{name}" for name in ("represented", "reason", "partial", "other")
)


def remote(*, sampled: bool, tracestate: str = "", span_id: int = 0xB7AD6B7169203331) -> Context:
    """Return the context of a caller in another process."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([tracestate])
    caller = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, span_id, True, flags, state)
    return trace.set_span_in_context(NonRecordingSpan(caller), Context())


class Traced:
    """Without chance and background thread, unless asked for. The gate's clock and the spans' times are both *now*."""

    def __init__(
        self,
        *,
        sampler: Sampler | None = None,
        processor: SpanProcessor | None = None,
        beside: SpanProcessor | None = None,
        **options: Any,
    ) -> None:
        self.now = START
        self.exporter = InMemorySpanExporter()
        self.gate = SpanGate(
            processor or SimpleSpanProcessor(self.exporter),
            **{"probability": 0, "background": False, "clock": lambda: self.now, **options},
        )
        self.provider = TracerProvider(sampler or self.gate.sampler, RESOURCE, shutdown_on_exit=False)
        self.provider.add_span_processor(self.gate)
        if beside is not None:
            self.provider.add_span_processor(beside)
        self.tracer = self.provider.get_tracer("tests")

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    def begin(
        self,
        name: str = "call",
        parent: Span | Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        **attributes: Any,
    ) -> Span:
        context = trace.set_span_in_context(parent, Context()) if isinstance(parent, Span) else parent or Context()
        dotted = {key.replace("__", "."): value for key, value in attributes.items()}
        return self.tracer.start_span(name, context, kind, dotted, start_time=self.now)

    def end(self, span: Span, *, failed: bool = False) -> None:
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(self.now)

    def call(
        self,
        name: str = "call",
        parent: Context | None = None,
        *,
        seconds: float = 0.1,
        failed: bool = False,
        children: int = 0,
        **attributes: Any,
    ) -> Span:
        """Make a whole call."""
        root = self.begin(name, parent, **attributes)
        for index in range(children):
            self.end(self.begin(f"child {index}", root))
        self.wait(seconds)
        self.end(root, failed=failed)
        return root

    def calls(self, number: int, name: str = "call", **options: Any) -> None:
        for _ in range(number):
            self.call(name, **options)

    @property
    def sent(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def names(self) -> list[str]:
        return [span.name for span in self.sent]

    def kept(self) -> list[tuple[str, int]]:
        """Return the reason of each call that was sent, and how many it stands for."""
        return [(of(span)[REASON], of(span)[REPRESENTED]) for span in self.sent if REPRESENTED in of(span)]

    def counts(self) -> Counter[str]:
        """Rebuild by name how many calls there were."""
        found: Counter[str] = Counter()
        for span in self.sent:
            found[span.name] += of(span).get(REPRESENTED, 0)
        return found

    def clear(self) -> None:
        self.exporter.clear()


def of(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}

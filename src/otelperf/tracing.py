"""The spans of an application: through the span gate into a queue, without a thread of their own.

Neither a sampler nor a SpanProcessor can be taken out of a TracerProvider again. So what stands in one is a relay, for good,
and what does the work is put behind it while ``instrument()`` runs.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind

from otelperf.errors import ConfigError
from otelperf.gate.content import attributes_of
from otelperf.gate.spans import HeadSampler, SpanGate, size_of
from otelperf.logs import Log
from otelperf.sources.calls import Kind, kind
from otelperf.telemetry import SCOPE_NAME

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

    from otelperf.config import Settings
    from otelperf.gate.spans import SpanGateStats

_log = Log("otelperf.tracing")

_MOST_WAITING = 5000  # spans; they wait for a second at most
_REQUEST = 256 * 1024  # bytes of spans, about; one that is longer goes alone, so that it does not take others with it
_SWEEP = 5.0  # s
_SAMPLER = "OTEL_TRACES_SAMPLER"
_ALL = frozenset({"", "always_on", "parentbased_always_on"})
_MODEL_CALLS = frozenset({"chat", "text_completion", "embeddings", "generate_content"})


class Outbox(SpanProcessor):
    """Keeps ended spans until ``send``. Ending a span costs the application an append."""

    def __init__(self) -> None:
        self.exporter: SpanExporter | None = None
        self._spans: deque[ReadableSpan] = deque(maxlen=_MOST_WAITING)

    def on_end(self, span: ReadableSpan) -> None:
        if len(self._spans) == _MOST_WAITING:
            _log.trouble("too many spans in a second, the oldest are dropped", most=_MOST_WAITING)
        self._spans.append(span)

    def send(self) -> None:
        """Hand what waits to the exporter, once there is one."""
        if self.exporter is not None and self._spans:
            batch, size = list[ReadableSpan](), 0
            for _ in range(len(self._spans)):
                span = self._spans.popleft()
                more = size_of(span)
                if batch and size + more > _REQUEST:
                    self.exporter.export(batch)
                    batch, size = [], 0
                batch.append(span)
                size += more
            self.exporter.export(batch)


class _Active:
    """The calls of models that OpenTelemetry's own packages measure, while they are under way: told by their spans.

    Our own calls count themselves (``calls``). A stream that nobody ends is over when Python forgets its span.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[Kind, weakref.ref[Span]]] = {}

    def begin(self, span: Span) -> None:
        try:
            attributes, scope = attributes_of(span), span.instrumentation_scope
            operation = attributes.get("gen_ai.operation.name")
            if operation not in _MODEL_CALLS or (scope is not None and scope.name == SCOPE_NAME):
                return
            what = kind(operation, attributes.get("gen_ai.provider.name"), attributes.get("gen_ai.request.model"))
            span_id = span.context.span_id
            self._open[span_id] = what, weakref.ref(span, lambda _: self.end(span_id))
            what.begin()
        except Exception as error:  # noqa: BLE001 # the application's call goes on
            _log.trouble("call under way is not counted", problem=f"{type(error).__name__}: {error}")

    def end(self, span_id: int) -> None:
        found = self._open.pop(span_id, None)  # atomic: whoever gets it ends it
        if found is not None:
            found[0].end()

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self._open = {}


class _Relay(SpanProcessor):
    """Stands in a TracerProvider for good; *inner* does the work, while there is one.

    What began before this process was *born* (Unix ns, in a forked child) is the parent's to send. One that *yields* is *left*
    as soon as the application takes the spans itself: then each goes only to whom the application has added.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self.inner: SpanProcessor | None = None
        self.born = 0
        self.left = False
        self.active = _Active()
        self._counts = self._yields = False
        self._all = getattr(provider, "_active_span_processor", None)  # not the provider: it must be forgotten with it
        self._seen: object = None

    def begin(self, inner: SpanProcessor, *, yields: bool, counts: bool) -> None:
        """Have *inner* do the work; *counts*: every call has a span here, so that those under way can be counted."""
        self._yields, self._counts, self.left, self._seen = yields, counts, False, None
        self.inner = inner

    def _working(self) -> SpanProcessor | None:
        inner = self.inner
        if inner is not None and self._yields:
            processors = getattr(self._all, "_span_processors", ())
            if processors is not self._seen:  # another tuple with each that is added
                self._seen = processors
                if any(map(_takes_spans, processors)):
                    self.left, self.inner = True, None
                    return None
        return inner

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        inner = self._working()
        if inner is not None:
            if self._counts and span.kind is SpanKind.CLIENT:
                self.active.begin(span)
            inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        if span.kind is SpanKind.CLIENT and span.context is not None:
            self.active.end(span.context.span_id)
        inner = self._working()
        if inner is not None and (span.start_time or self.born) >= self.born:
            inner.on_end(span)


class _RelaySampler(Sampler):
    """The sampler of our own TracerProvider: the gate's or the environment's, while there is one; else nothing is recorded."""

    inner: Sampler | None = None

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        inner = self.inner
        return SamplingResult(Decision.DROP) if inner is None else inner.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "otelperf"


class _Private(TracerProvider):
    def __init__(self, sampler: Sampler | None) -> None:
        super().__init__(sampler=sampler, resource=Resource({}), shutdown_on_exit=False)

    def take_resource(self, resource: Resource) -> None:
        """Have spans carry *resource* from now on, also those of tracers that were made before."""
        self._update_resource(resource)

    def _handle_fork(self) -> None:
        """Renew the lock, as the SDK does. Its own also looks for resource detectors, at 8 ms a fork; we set the resource."""
        self._tracers_lock = threading.Lock()


@cache
def private_provider() -> TracerProvider:
    """Return our own TracerProvider, one for the life of the process: tracers that libraries have taken from it stay good."""
    return _Private(_RelaySampler())


def leave_to_parent(provider: TracerProvider) -> None:
    """In a forked child: the spans that are open now are ended by the parent, too, and sent by it."""
    relay = _relay_in(provider)
    relay.born = time.time_ns()
    relay.active.forget()


@cache
def sampler_of_environment() -> Sampler | None:
    """Return what OTEL_TRACES_SAMPLER asks for; None where the gate may choose: unset, or no sampler that the SDK knows.

    The SDK has said so then. Whoever asks for all, as operators do that set a default everywhere, gets the gate: it counts all.
    """
    if os.environ.get(_SAMPLER, "").strip().lower() in _ALL:
        return None
    found = _Private(None).sampler  # without one the SDK looks there
    return None if found is DEFAULT_ON else found


_relays: WeakKeyDictionary[TracerProvider, _Relay] = WeakKeyDictionary()


def _relay_in(provider: TracerProvider) -> _Relay:
    relay = _relays.get(provider)
    if relay is None:
        relay = _relays[provider] = _Relay(provider)
        provider.add_span_processor(relay)
    return relay


def find_tracer_provider(given: TracerProvider | None, settings: Settings) -> TracerProvider | None:
    """Return whose spans pass the gate: of what was *given*, of the application's while nothing takes its spans, or ours.

    None: spans are not our concern. The application has a TracerProvider and sends them itself, or there is no place to send
    them to.
    """
    if settings.traces.exporter != "otlp":
        return None
    found = given or trace.get_tracer_provider()
    if isinstance(found, TracerProvider):
        return found if given or found is private_provider() or not _has_processors(found) else None
    if given is not None:
        raise ConfigError(
            f"tracer_provider is a {type(given).__name__}, expected a TracerProvider of opentelemetry.sdk.trace"
        )
    return private_provider()


def _has_processors(provider: TracerProvider) -> bool:
    processors: Sequence[SpanProcessor] = getattr(
        getattr(provider, "_active_span_processor", None), "_span_processors", ()
    )
    return any(map(_takes_spans, processors))


def _takes_spans(processor: SpanProcessor) -> bool:
    """Say whether it is the application's and does something with spans that have ended; one that only adds attributes does not."""
    return not isinstance(processor, _Relay) and type(processor).on_end is not SpanProcessor.on_end


class Traces:
    """The way of the spans of *provider*, in one process: gate, outbox, and whatever ``send_to`` says.

    It is *left* to the application as soon as that takes the spans itself, unless the provider is ours or was *given*.
    """

    def __init__(
        self, provider: TracerProvider, settings: Settings, resource: Resource, *, given: bool = False
    ) -> None:
        self.provider = provider
        self._given = given
        self._outbox = Outbox()
        content = settings.instrument.content
        self._gate = SpanGate(
            self._outbox,
            heartbeat=settings.gate.heartbeat,
            background=False,
            content=content,
            always=("otelperf.memory.relief",),  # seldom, and each one is a story of its own
        )
        self._gate.sampler.in_use = True  # or the application's own decides, or that of the environment
        self._swept = time.monotonic()
        if isinstance(provider, _Private):
            provider.take_resource(resource)

    @property
    def stats(self) -> SpanGateStats:
        """What the gate did."""
        return self._gate.stats

    @property
    def left(self) -> bool:
        """Whether the application sends the spans itself by now."""
        return _relay_in(self.provider).left

    def send_to(self, exporter: SpanExporter | None) -> None:
        """Send what has ended, and will end, to *exporter*."""
        self._outbox.exporter = exporter

    def start(self) -> None:
        """Let spans come."""
        sampler, ours = self.provider.sampler, isinstance(self.provider, _Private)
        if isinstance(sampler, _RelaySampler):
            relayed = sampler.inner = sampler_of_environment() or self._gate.sampler
            sampler = relayed
        counts = isinstance(sampler, HeadSampler)  # it records every call
        _relay_in(self.provider).begin(self._gate, yields=not (ours or self._given), counts=counts)

    def tick(self) -> None:
        """Send what has ended since."""
        now = time.monotonic()
        if now - self._swept > _SWEEP:
            self._swept = now
            self._gate.sweep()
        self._outbox.send()

    def stop(self) -> None:
        """Let no more spans come, and send what the gate still owes."""
        self._take_out()
        self._gate.shutdown(timeout_millis=200)
        self._outbox.send()

    def _take_out(self) -> None:
        if isinstance(self.provider.sampler, _RelaySampler):
            self.provider.sampler.inner = None
        _relay_in(self.provider).inner = None

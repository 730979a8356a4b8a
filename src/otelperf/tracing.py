"""The spans of an application: through the span gate into a queue, without a thread of their own.

Neither a sampler nor a SpanProcessor can be taken out of a TracerProvider again. So what stands in one is a relay, for good,
and what does the work is put behind it while ``instrument()`` runs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from otelperf.errors import ConfigError
from otelperf.gate.spans import SpanGate
from otelperf.logs import Log

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter

    from otelperf.config import Settings
    from otelperf.gate.spans import SpanGateStats

_log = Log("otelperf.tracing")

_MOST_WAITING = 5000  # spans; they wait for a second at most
_SWEEP = 5.0  # s


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
            spans = [self._spans.popleft() for _ in range(len(self._spans))]
            self.exporter.export(spans)


class _Relay(SpanProcessor):
    """Stands in a TracerProvider for good; *inner* does the work, while there is one.

    What began before this process was *born* (Unix ns, in a forked child) is the parent's to send.
    """

    inner: SpanProcessor | None = None
    born = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self.inner is not None:
            self.inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        inner = self.inner
        if inner is not None and (span.start_time or self.born) >= self.born:
            inner.on_end(span)


class _RelaySampler(Sampler):
    """The sampler of our own TracerProvider: that of the gate, while there is one; else nothing is recorded."""

    inner: Sampler | None = None

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        inner = self.inner
        return SamplingResult(Decision.DROP) if inner is None else inner.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "otelperf"


class _Private(TracerProvider):
    def __init__(self) -> None:
        super().__init__(sampler=_RelaySampler(), resource=Resource({}), shutdown_on_exit=False)

    def take_resource(self, resource: Resource) -> None:
        """Have spans carry *resource* from now on, also those of tracers that were made before."""
        self._update_resource(resource)

    def _handle_fork(self) -> None:
        """Renew the lock, as the SDK does. Its own also looks for resource detectors, at 8 ms a fork; we set the resource."""
        self._tracers_lock = threading.Lock()


@cache
def private_provider() -> TracerProvider:
    """Return our own TracerProvider, one for the life of the process: tracers that libraries have taken from it stay good."""
    return _Private()


def leave_to_parent(provider: TracerProvider) -> None:
    """In a forked child: the spans that are open now are ended by the parent, too, and sent by it."""
    _relay_in(provider).born = time.time_ns()


_relays: WeakKeyDictionary[TracerProvider, _Relay] = WeakKeyDictionary()


def _relay_in(provider: TracerProvider) -> _Relay:
    relay = _relays.get(provider)
    if relay is None:
        relay = _relays[provider] = _Relay()
        provider.add_span_processor(relay)
    return relay


def find_tracer_provider(given: TracerProvider | None, settings: Settings) -> TracerProvider | None:
    """Return whose spans pass the gate: of what was *given*, of the application's if nothing takes its spans yet, or ours.

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
    return any(not isinstance(each, _Relay) for each in processors)


class Traces:
    """The way of the spans of *provider*, in one process: gate, outbox, and whatever ``send_to`` says."""

    def __init__(self, provider: TracerProvider, settings: Settings, resource: Resource) -> None:
        self.provider = provider
        self._outbox = Outbox()
        content = settings.instrument.content
        self._gate = SpanGate(
            self._outbox,
            heartbeat=settings.gate.heartbeat,
            background=False,
            content=content,
            always=("otelperf.memory.relief",),  # seldom, and each one is a story of its own
        )
        self._swept = time.monotonic()
        if isinstance(provider, _Private):
            provider.take_resource(resource)

    @property
    def stats(self) -> SpanGateStats:
        """What the gate did."""
        return self._gate.stats

    def send_to(self, exporter: SpanExporter | None) -> None:
        """Send what has ended, and will end, to *exporter*."""
        self._outbox.exporter = exporter

    def start(self) -> None:
        """Let spans come."""
        if isinstance(self.provider.sampler, _RelaySampler):
            self.provider.sampler.inner = self._gate.sampler
        _relay_in(self.provider).inner = self._gate

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

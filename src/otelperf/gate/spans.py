"""The gate for traces: a sampler that decides at the head, and a SpanProcessor around a SpanProcessor.

    gate = SpanGate(BatchSpanProcessor(OTLPSpanExporter()))
    provider = TracerProvider(sampler=gate.sampler)
    provider.add_span_processor(gate)

A *call* is a span without a parent in this process, and its *local trace* what began under it here. Every call is recorded.
Few are sampled when they begin, and their spans go out as they end. Of the others the spans are kept in memory until the
call has ended, and go out late only if it failed or took unusually long or short.
"""

from __future__ import annotations

# A TracerProvider's hook for forked children (SDK 1.45.2) waits for ever on a lock of this module if the module is first imported
# after the provider was made: so it comes early.
import concurrent.futures.thread  # noqa: F401
import logging
import os
import queue
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from otelperf.gate.content import KeptSpan, attributes_of, clean, clean_event, clean_links, clean_status
from otelperf.gate.kinds import SECOND, Key, Kind, Kinds, Tally, Terms

_logger = logging.getLogger(__name__)

REPRESENTED = "otelperf.gate.represented"
REASON = "otelperf.gate.reason"
PARTIAL = "otelperf.gate.partial"
OTHER = "otelperf.gate.other"

KIND_ATTRIBUTES = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "http.request.method",
    "http.method",
    "http.route",
    "rpc.service",
    "rpc.method",
    "messaging.operation.name",
)
# Looking a member up in its class takes longer than all else that is done with it.
_SAMPLED, _ERROR = TraceFlags.SAMPLED, StatusCode.ERROR
_SAMPLE, _RECORD = Decision.RECORD_AND_SAMPLE, Decision.RECORD_ONLY
_NO_STARTS = (SpanProcessor.on_start, BatchSpanProcessor.on_start, SimpleSpanProcessor.on_start)
_NO_SAMPLER = "no sampler"
_SPAN_BYTES = 1000  # of a span without attributes, about
_ITEM_BYTES = 100  # an attribute, an event or a link beside its texts
_LONGEST_WAIT = 5.0  # s between two sweeps, at most
_LONGEST_KIND_VALUE = 256  # characters


@dataclass(slots=True)
class SpanGateStats:
    """What the gate did since it was made, or since its process was forked.

    *seen* and *sent* count spans, *calls* those that ended, *kept* the ones that were sent, by reason; the others are
    *dropped*, and counted by one that is sent. *buffered* spans (of about *buffered_bytes*) wait for their call to end;
    *overflow* spans lost their place to a bound. *traces* and *kinds* are remembered now.
    """

    seen: int = 0
    sent: int = 0
    calls: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    buffered: int = 0
    buffered_bytes: int = 0
    overflow: int = 0
    traces: int = 0
    kinds: int = 0


class _Trace:
    """A call under way, and what ended under it. *reason*: why it is kept; *open*: spans that have not ended."""

    __slots__ = ("bytes", "ended", "failed", "ids", "key", "open", "reason", "root", "root_id", "spans")

    def __init__(self, key: Key, reason: str, root_id: int) -> None:
        self.key = key
        self.reason = reason
        self.root_id = root_id
        self.ids = [root_id]  # of spans that may have children
        self.open = 1
        self.spans: list[ReadableSpan] = []  # ended children that wait
        self.root: ReadableSpan | None = None  # waits for children that have not ended
        self.bytes = 0  # of what waits, about
        self.failed = False  # the root
        self.ended: int | None = None  # the root


class _Parcel(NamedTuple):
    """A span to send, and what to write on it."""

    span: ReadableSpan
    marks: dict[str, Any]


_gates: weakref.WeakSet[SpanGate] = weakref.WeakSet()


def _after_fork() -> None:
    for gate in list(_gates):
        gate.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _check(**settings: tuple[float, bool]) -> None:
    """Refuse what is no finite number above zero, or of at least zero where that is allowed."""
    for name, (value, zero) in settings.items():
        number = isinstance(value, int | float) and value == value and value != float("inf")
        if not number or value < 0 or (value == 0 and not zero):
            raise ValueError(
                f"SpanGate: {name} is {value!r}, expected a finite number {'of 0 or more' if zero else 'above 0'}"
            )


class SpanGate(SpanProcessor):
    """Forward to *processor* few local traces whole, failures and unusual latencies as partial ones, and counts of the rest.

    Times are in seconds. *heartbeat*: a kind of call is sampled when its last sampled call began that long ago; what no
    kept call stands for by then is sent with the newest one. *probability*: share of the other calls that is sampled too.
    *always*: names of calls of which each is sampled. *attributes*: what tells kinds apart beside name and span kind; values
    at the call's start count. *max_kinds*: calls of further kinds are counted together. *latency_memory*: how long a kept
    latency, from a power of two ns to the next, is usual. *errors_per_minute*: failed calls of a kind that are kept; the next
    kept one stands for the others. *grace*: how long a call that has ended waits for its children. *max_traces*, *max_spans*
    (of a trace) and *max_bytes* bound what is in memory, the oldest goes first. *content*: let prompts, answers, exception
    texts and URL queries pass. *background*: sweep on an own daemon thread; without it call ``sweep`` every few seconds.
    *shutdown_timeout*: longest wait for the inner processor's shutdown. *clock* gives ns that never fall.

    Nothing here waits for the network or raises; ``force_flush`` and ``shutdown`` wait as long as they are told.
    *processor* is told how kept spans end; it gets a copy where something is added or removed.
    """

    def __init__(  # noqa: PLR0913 # settings, all but one by keyword
        self,
        processor: SpanProcessor,
        *,
        heartbeat: float = 50.0,
        probability: float = 0.001,
        always: Collection[str] = (),
        attributes: Iterable[str] = KIND_ATTRIBUTES,
        max_kinds: int = 200,
        latency_memory: float = 300.0,
        errors_per_minute: float = 60,
        grace: float = 10.0,
        max_traces: int = 2000,
        max_spans: int = 200,
        max_bytes: int = 16 * 1024 * 1024,
        content: bool = False,
        background: bool = True,
        shutdown_timeout: float = 5.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not isinstance(processor, SpanProcessor):
            raise TypeError(
                f"SpanGate: processor is {processor!r}, expected a SpanProcessor: wrap an exporter in BatchSpanProcessor"
            )
        _check(
            heartbeat=(heartbeat, False),
            latency_memory=(latency_memory, False),
            max_kinds=(max_kinds, False),
            max_traces=(max_traces, False),
            max_spans=(max_spans, False),
            max_bytes=(max_bytes, False),
            probability=(probability, True),
            errors_per_minute=(errors_per_minute, True),
            grace=(grace, True),
            shutdown_timeout=(shutdown_timeout, True),
        )
        if isinstance(always, str) or isinstance(attributes, str):
            raise TypeError("SpanGate: always and attributes are lists of names, not a single one")
        self.sampler = HeadSampler(self)
        self._processor = processor
        self._tell_start = None if type(processor).on_start in _NO_STARTS else processor.on_start
        self._terms = Terms(
            int(heartbeat * SECOND), int(latency_memory * SECOND), probability, errors_per_minute, int(max_kinds)
        )
        self._always = frozenset(always)
        self._attributes = tuple(attributes)
        self._none = (None,) * len(self._attributes)
        self._grace = int(grace * SECOND)
        self._max_traces, self._max_spans = int(max_traces), int(max_spans)
        # Half is for calls under way, half for the newest dropped call of each tally.
        self._max_bytes = max_bytes // 2
        self._max_newest = max_bytes // 2 // (2 * (int(max_kinds) + 1))
        self._content = content
        self._clock = clock
        self._background = background
        self._shutdown_timeout = shutdown_timeout
        self._wait = min(_LONGEST_WAIT, max(0.05, min(heartbeat / 10, grace / 2)))
        self._handed = threading.local()  # from the sampler to on_start, which follows on the same thread
        self._newest = 0  # the latest time at which a span has begun
        self._born = 0  # in a forked child: spans of an earlier begin are the parent's
        self._closed = False
        self._told: set[str] = set()
        self._reset()
        _gates.add(self)

    def _reset(self) -> None:
        # Reentrant: a garbage collection or a signal handler may end a span anywhere, in here too.
        self._lock = threading.RLock()
        self._kinds = Kinds(self._terms)
        self._kept: Counter[str] = Counter()
        self._seen = self._sent = self._calls = self._overflow = self._bytes = 0
        self._traces: dict[int, _Trace] = {}  # by the root's id, oldest first
        self._members: dict[int, _Trace] = {}  # by the id of each span that may have children
        self._waiting: deque[_Trace] = deque()  # ended, but not their children
        self._thread: threading.Thread | None = None
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def begin_anew(self) -> None:
        """Know nothing of any call, as in a forked child: they are the parent's, who sends them, and so is the lock."""
        self._born = self._newest + 1
        self._reset()

    @property
    def stats(self) -> SpanGateStats:
        """What was done so far, counted up now."""
        with self._lock:
            traces = list(self._traces.values())
            kept = self._kept.total()
            return SpanGateStats(
                seen=self._seen,
                sent=self._sent,
                calls=self._calls,
                kept=self._kept.copy(),
                dropped=self._calls - kept,
                buffered=sum(len(trace.spans) + (trace.root is not None) for trace in traces),
                buffered_bytes=self._bytes,
                overflow=self._overflow,
                traces=len(traces),
                kinds=len(self._kinds),
            )

    # -- the SDK's side

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        try:
            if self._tell_start is not None:
                self._tell_start(span, parent_context)
            context, parent, began = span.context, span.parent, span.start_time
            if began is not None and began > self._newest:
                self._newest = began
            if parent is None or parent.is_remote:
                self._begin_call(span, context)
            elif not context.trace_flags & _SAMPLED:
                with self._lock:
                    trace = self._members.get(parent.span_id)
                    if trace is not None:
                        self._begin_child(trace, context.span_id)
        except Exception:  # noqa: BLE001 # logged there; the application must go on
            self._complain("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        try:
            context = span.context
            if context is None or (span.start_time or self._born) < self._born:
                return
            if not context.trace_flags & _SAMPLED:
                parcels = self._end_unsampled(span, context.span_id)
                if parcels:
                    self._send(parcels, partial=True)
            elif span.parent is None or span.parent.is_remote:
                self._send((self._end_sampled(span, context.span_id),), partial=False)
            else:
                with self._lock:
                    self._seen += 1
                self._send((_Parcel(span, {}),), partial=False)
        except Exception:  # noqa: BLE001 # logged there; the application must go on
            self._complain("on_end")

    def shutdown(self, timeout_millis: float | None = None) -> None:
        """Send what is owed with the newest call of each tally, and shut the inner processor down, or leave it when time is up.

        At the interpreter's end no thread can begin (Python 3.12): a gate without a thread of its own then waits for the
        inner processor as long as that takes.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            parcels = self._settle_all()

        def finish() -> None:
            self._send(parcels, partial=True)
            self._processor.shutdown()

        self._run(finish, self._shutdown_timeout * 1000 if timeout_millis is None else timeout_millis)
        self._jobs.put(None)

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Flush the inner processor. What is owed does not become due by it."""
        if self._closed:
            return False
        answers: list[bool] = []

        def flush() -> None:
            self.sweep()
            answers.append(self._processor.force_flush(int(timeout_millis)))

        return self._run(flush, timeout_millis) and answers == [True]

    def sweep(self) -> None:
        """Do what is due: send what has been owed for a heartbeat, wait no longer for children, forget idle kinds."""
        with self._lock:
            if self._closed:
                return
            now = self._clock()
            self._settle_late(now - self._grace)
            parcels = [parcel for tally in self._kinds.overdue(now) for parcel in self._remainder(tally)]
        self._send(parcels, partial=True)

    # -- the head

    def head(
        self, trace_id: int, name: str, kind: SpanKind | None, attributes: Attributes, parent: SpanContext | None
    ) -> bool:
        """Say whether a call that begins is sampled. *parent*: the remote one, which has decided."""
        values = tuple(map(attributes.get, self._attributes)) if attributes else self._none
        key = _hashable((name, (kind or SpanKind.INTERNAL)._value_, *values))
        if parent is not None:
            reason = "parent" if parent.trace_flags & _SAMPLED else ""
        elif name in self._always:
            reason = "always"
        else:
            with self._lock:
                reason = self._kinds.head(key, self._clock())
        self._handed.call = (trace_id, key, reason)
        return bool(reason)

    def _key(self, span: ReadableSpan) -> Key:
        attributes = attributes_of(span)
        return _hashable((span.name, span.kind._value_, *map(attributes.get, self._attributes)))

    def _begin_call(self, span: ReadableSpan, context: SpanContext) -> None:
        handed = getattr(self._handed, "call", None)
        if handed is not None and handed[0] == context.trace_id and handed[1][0] == span.name:
            self._handed.call = None
            _, key, reason = handed
        else:  # the application's own sampler, or another thread's on_start
            key, reason = self._key(span), ""
            if not self.sampler.in_use:
                self._tell_no_sampler(span, context)
        span_id = context.span_id
        trace = _Trace(key, (reason or _reason_of(span)) if context.trace_flags & _SAMPLED else "", span_id)
        with self._lock:
            if self._closed:
                return
            if len(self._traces) >= self._max_traces:
                self._evict()
            self._traces[span_id] = self._members[span_id] = trace
        if self._thread is None and self._background:
            self._start_thread()

    def _begin_child(self, trace: _Trace, span_id: int) -> None:
        if len(trace.ids) >= self._max_spans and not self._make_room(trace):
            self._overflow += 1
            return
        trace.ids.append(span_id)
        trace.open += 1
        self._members[span_id] = trace

    # -- the end

    def _end_sampled(self, span: ReadableSpan, span_id: int) -> _Parcel:
        """Return the root of a call that was sampled, with how many it stands for."""
        with self._lock:
            self._seen += 1
            trace = self._traces.get(span_id)
            if trace is None:
                if self._closed:
                    return _Parcel(span, {})
                trace = _Trace(self._key(span), _reason_of(span), span_id)
            trace.key = _renamed(trace.key, span.name)
            trace.failed = span.status.status_code is _ERROR
            marks = self._count(trace, span, self._clock())
            self._remove(trace)
            return _Parcel(span, marks)

    def _end_unsampled(self, span: ReadableSpan, span_id: int) -> Sequence[_Parcel]:
        """Buffer a child, or judge the call when it is its root; return what is to be sent."""
        failed = span.status.status_code is _ERROR
        size = size_of(span)
        with self._lock:
            self._seen += 1
            trace = self._members.get(span_id)
            if trace is None:
                trace = self._stranger(span, span_id)
                if trace is None:
                    return self._end_stray(span, failed=failed)
            trace.open -= 1
            if not trace.reason and (failed or _raised(span)) and self._may_fail(trace):
                trace.reason = "error"
            if span_id == trace.root_id:
                trace.failed = failed
                return self._end_call(trace, span, size)
            if trace.reason or trace.ended is not None:
                return self._end_late(trace, span, size)
            trace.spans.append(span)
            trace.bytes += size
            self._bytes += size
            if self._bytes > self._max_bytes:
                self._shrink()
        return ()

    def _may_fail(self, trace: _Trace) -> bool:
        now = self._clock()
        return self._kinds.may_fail(self._kinds.find(trace.key, now), now)

    def _stranger(self, span: ReadableSpan, span_id: int) -> _Trace | None:
        """Return a new trace for a call that ends unknown, because others took its place; None if it is no call of ours."""
        call = span.parent is None or span.parent.is_remote
        if not call or self._closed:
            return None
        return _Trace(self._key(span), "", span_id)

    def _end_stray(self, span: ReadableSpan, *, failed: bool) -> Sequence[_Parcel]:
        """Return a span whose call is over, if it failed."""
        call = span.parent is None or span.parent.is_remote
        bad = not call and (failed or _raised(span)) and not self._closed
        if bad and self._kinds.may_fail(self._kinds.other, self._clock()):
            return (_Parcel(span, {REASON: "error"}),)
        return ()

    def _end_late(self, trace: _Trace, span: ReadableSpan, size: int) -> Sequence[_Parcel]:
        """End a child of a trace that is kept, or whose call has ended."""
        parcels: list[_Parcel] = []
        if trace.reason:
            root = trace.root
            parcels = [*self._take(trace), _Parcel(span, {})]
            if root is not None:
                parcels.append(_Parcel(root, self._count(trace, root, self._clock())))
        else:
            trace.spans.append(span)
            self._grow(trace, size)
        if not trace.open:
            self._settle(trace)
        elif self._bytes > self._max_bytes:
            self._shrink()
        return parcels

    def _end_call(self, trace: _Trace, root: ReadableSpan, size: int) -> Sequence[_Parcel]:
        now = self._clock()
        if trace.key[0] != root.name:
            trace.key = _renamed(trace.key, root.name)
        trace.ended = now
        kind = self._kinds.find(trace.key, now)
        if not trace.reason:
            if not trace.failed and self._kinds.unusual(kind, _duration(root), now):
                trace.reason = "latency"
            elif not trace.open:
                self._owe(trace, kind, root, size, size + trace.bytes)
                self._remove(trace)
                return ()
        parcels: list[_Parcel] = []
        if trace.reason:
            parcels = [*self._take(trace), _Parcel(root, self._count(trace, root, now))]
            if not trace.open:
                self._remove(trace)
                return parcels
        else:
            trace.root = root
            self._grow(trace, size)
        self._waiting.append(trace)
        if len(self._waiting) > self._max_traces:
            self._settle(self._waiting.popleft())
        if self._bytes > self._max_bytes:
            self._shrink()
        return parcels

    # -- counting

    def _count(self, trace: _Trace, root: ReadableSpan, now: int) -> dict[str, Any]:
        """Count a call that is kept, and return what is written on its root.

        It stands for what its tally owes, unless it was chosen for what it is: by its caller, for its latency, or for a
        failure further down.
        """
        reason, failed = trace.reason, trace.failed
        kind = self._kinds.find(trace.key, now)
        if not failed:
            self._kinds.unusual(kind, _duration(root), now)  # it is usual from now on
        alone = reason in {"parent", "latency"} or (reason == "error" and not failed)
        represented = 1 if alone else 1 + kind.tally(failed=failed).pay()
        self._calls += 1
        return self._marks(reason, represented, other=kind is self._kinds.other)

    def _marks(self, reason: str, represented: int, *, other: bool) -> dict[str, Any]:
        self._kept[reason] += 1
        marks: dict[str, Any] = {REPRESENTED: represented, REASON: reason}
        if other:
            marks[OTHER] = True
        return marks

    def _owe(self, trace: _Trace, kind: Kind, root: ReadableSpan, size: int, whole: int) -> None:
        """Count a call that is not kept, and hold on to it as the newest of its tally; to its root if the *whole* is large."""
        self._calls += 1
        if whole <= self._max_newest:
            newest = (*trace.spans, root)
        else:
            newest = (root if size <= self._max_newest else _bare(root, self._attributes),)
        tally = kind.failed if trace.failed else kind.well
        tally.owe(newest, trace.ended or 0)

    def _remainder(self, tally: Tally) -> list[_Parcel]:
        """Return the newest call of a tally, which stands for all that are owed."""
        newest = tally.newest
        other = tally in {self._kinds.other.well, self._kinds.other.failed}
        marks = self._marks("remainder", tally.pay(), other=other)
        return [*(_Parcel(span, {}) for span in newest[:-1]), _Parcel(newest[-1], marks)]

    # -- what is in memory

    def _grow(self, trace: _Trace, size: int) -> None:
        trace.bytes += size
        self._bytes += size

    def _take(self, trace: _Trace) -> list[_Parcel]:
        """Return the children that wait, and let nothing of this trace wait any more."""
        self._grow(trace, -trace.bytes)
        spans, trace.spans, trace.root = trace.spans, [], None
        return [_Parcel(span, {}) for span in spans]

    def _remove(self, trace: _Trace) -> None:
        """Forget a trace. Spans of it that end later are strays."""
        self._bytes -= trace.bytes
        trace.bytes = 0
        trace.spans, trace.root = [], None
        for span_id in trace.ids:
            self._members.pop(span_id, None)
        self._traces.pop(trace.root_id, None)

    def _settle(self, trace: _Trace) -> None:
        """Wait for nothing more: if the call has ended and is not kept, it is owed."""
        if trace.root is not None:
            kind = self._kinds.find(trace.key, self._clock())
            self._owe(trace, kind, trace.root, size_of(trace.root), trace.bytes)
        self._remove(trace)

    def _settle_late(self, until: int) -> None:
        """Settle traces whose call ended at that time or before."""
        while self._waiting and (self._waiting[0].ended or 0) <= until:
            self._settle(self._waiting.popleft())

    def _settle_all(self) -> list[_Parcel]:
        for trace in list(self._traces.values()):
            self._settle(trace)
        self._waiting.clear()
        return [parcel for tally in self._kinds.owing() for parcel in self._remainder(tally)]

    def _evict(self) -> None:
        """Make room for a call: the oldest is settled if it has ended, and otherwise counted when it does."""
        trace = next(iter(self._traces.values()))
        if trace.ended is None:
            self._overflow += len(trace.spans) + trace.open
        self._settle(trace)

    def _make_room(self, trace: _Trace) -> bool:
        """Let the oldest child of a trace go; False if none has ended."""
        if not trace.spans:
            return False
        self._forget(trace, trace.spans.pop(0))
        return True

    def _shrink(self) -> None:
        """Let the oldest children go until the rest fits; their calls go on."""
        for trace in list(self._traces.values()):
            if trace.ended is not None:
                self._settle(trace)
            while trace.spans and self._bytes > self._max_bytes:
                self._forget(trace, trace.spans.pop(0))
            if self._bytes <= self._max_bytes:
                return

    def _forget(self, trace: _Trace, child: ReadableSpan) -> None:
        self._grow(trace, -size_of(child))
        self._overflow += 1
        if child.context is not None and child.context.span_id in trace.ids:
            trace.ids.remove(child.context.span_id)
            self._members.pop(child.context.span_id, None)

    # -- sending

    def _send(self, parcels: Sequence[_Parcel], *, partial: bool) -> None:
        """Hand spans to the inner processor. The lock is not held: it may take its time."""
        for span, marks in parcels:
            try:
                self._processor.on_end(self._finished(span, marks, partial=partial))
            except Exception:  # noqa: BLE001 # as in on_start
                self._complain("the inner processor")
        if parcels:
            with self._lock:
                self._sent += len(parcels)

    def _finished(self, span: ReadableSpan, marks: dict[str, Any], *, partial: bool) -> ReadableSpan:
        """Return the span as it leaves; the very same if nothing is added or removed."""
        attributes, events, links, status, context = (
            attributes_of(span),
            span.events,
            span.links,
            span.status,
            span.context,
        )
        same = attributes
        if not self._content:
            attributes, status = clean(attributes), clean_status(status, attributes, events)
            events = [clean_event(event) for event in events] if events else events
            links = clean_links(links) if links else links
        if partial and context is not None:
            # A BatchSpanProcessor takes only sampled spans.
            flags = TraceFlags(context.trace_flags | _SAMPLED)
            context = SpanContext(context.trace_id, context.span_id, context.is_remote, flags, context.trace_state)
            attributes = {**attributes, **marks, PARTIAL: True}
        elif marks:
            attributes = {**attributes, **marks}
        elif attributes is same and status is span.status and not events and not links:
            return span
        return KeptSpan(span, attributes, events, links, status, context)

    def _complain(self, where: str) -> None:
        """Log once a place: the application must not pay for a mistake here, nor its log."""
        if where not in self._told:
            self._told.add(where)
            _logger.exception(  # noqa: LOG004 # only handlers call this
                "the span gate failed in %s; further failures there are not logged", where
            )

    def _tell_no_sampler(self, span: ReadableSpan, context: SpanContext) -> None:
        """Warn, once, where another sampler than ours has sampled a call: whatever that samples is sent, and nothing saved."""
        if context.trace_flags & _SAMPLED and span.parent is None and _NO_SAMPLER not in self._told:
            self._told.add(_NO_SAMPLER)
            _logger.warning(
                "SpanGate: its sampler is not in use, so each call that another one samples is sent, and nothing is saved: "
                "write TracerProvider(sampler=gate.sampler)"
            )

    def _run(self, job: Callable[[], object], timeout_millis: float) -> bool:
        """Run *job* on the gate's thread; False if it has not ended in time."""
        done = threading.Event()

        def work() -> None:
            try:
                job()
            except Exception:  # noqa: BLE001 # as in on_start
                self._complain("the inner processor")
            finally:
                done.set()

        if self._start_thread():
            self._jobs.put(work)
        else:
            work()
        return done.wait(timeout_millis / 1000)

    def _start_thread(self) -> bool:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(
                    target=_work,
                    args=(weakref.ref(self), self._jobs, self._wait if self._background else None),
                    name="otelperf-span-gate",
                    daemon=True,
                )
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is ending, or there are too many
                    self._background = False
                    return False
                self._thread = thread
            return True


def _work(
    gate: weakref.ref[SpanGate], jobs: queue.SimpleQueue[Callable[[], object] | None], wait: float | None
) -> None:
    """Do what the gate asks for, and sweep each *wait* if there is one; until it says so, or nobody holds it any more."""
    while True:
        try:
            job = jobs.get(timeout=wait or _LONGEST_WAIT)
        except queue.Empty:
            living = gate()
            if living is None:
                return
            if wait is not None:
                try:
                    living.sweep()
                except Exception:  # noqa: BLE001 # as in on_start
                    living._complain("sweep")  # noqa: SLF001 # this thread is its own
            del living
            continue
        if job is None:
            return
        job()
        del job


class HeadSampler(Sampler):
    """Decides when a call begins, so that everybody downstream is told the same. Use it together with its gate.

    A remote parent's decision is followed, and so is a local one's. Whatever is not sampled is recorded all the same. The
    parent's tracestate is passed on as it is. *in_use*: it has been asked, or another one decides with intent.
    """

    def __init__(self, gate: SpanGate) -> None:
        self._gate = gate
        self.in_use = False

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.in_use = True
        found = get_current_span(parent_context).get_span_context()
        parent = found if found is not None and found.is_valid else None
        sampled = parent is not None and bool(parent.trace_flags & _SAMPLED)
        try:
            if parent is None or parent.is_remote:
                sampled = self._gate.head(trace_id, name, kind, attributes, parent)
        except Exception:  # noqa: BLE001 # as in on_start
            self._gate._complain("should_sample")  # noqa: SLF001 # its other half
        return SamplingResult(
            _SAMPLE if sampled else _RECORD,
            attributes,
            None if parent is None else parent.trace_state,
        )

    def get_description(self) -> str:
        return "SpanGate"


def _hashable(key: Key) -> Key:
    try:
        hash(key)
    except TypeError:  # an attribute that is a list or a mapping
        return (*key[:2], *map(repr, key[2:]))
    return key


def _renamed(key: Key, name: str) -> Key:
    """Return the kind of a call by its last name: web frameworks find out the route late, and people query by it."""
    return key if key[0] == name else (name, *key[1:])


def _reason_of(span: ReadableSpan) -> str:
    """Say why a span is sampled that the gate's own sampler has not decided on."""
    return "sampled" if span.parent is None else "parent"


def _duration(span: ReadableSpan) -> int:
    return (span.end_time or 0) - (span.start_time or 0)


def _raised(span: ReadableSpan) -> bool:
    # ``events`` makes a tuple under a lock each time, and nearly always an empty one
    return len(span._events) > 0 and any(event.name == "exception" for event in span.events)  # noqa: SLF001


def size_of(span: ReadableSpan) -> int:
    """Estimate the bytes that a span takes: its texts, and a flat rate for the rest."""
    try:  # the public way takes five times as long, and this is done for each span
        attributes: dict[str, Any] = span._attributes._dict  # type: ignore[union-attr] # noqa: SLF001
    except AttributeError:
        attributes = attributes_of(span)
    size = _SPAN_BYTES + _texts(attributes)
    if len(span._events):  # noqa: SLF001 # as in _raised
        size += sum(_ITEM_BYTES + _texts(attributes_of(event)) for event in span.events)
    if len(span._links):  # noqa: SLF001 # as in _raised
        size += sum(_ITEM_BYTES + _texts(attributes_of(link)) for link in span.links)
    return size


def _texts(attributes: dict[str, Any]) -> int:
    size = _ITEM_BYTES * len(attributes)
    for value in attributes.values():
        if type(value) is str:
            size += len(value)
        elif type(value) is not int:
            size += _deep(value)
    return size


def _deep(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(_ITEM_BYTES + _deep(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return sum(16 + _deep(inner) for inner in value)
    return 16


def _bare(span: ReadableSpan, names: Iterable[str]) -> ReadableSpan:
    """Return a copy with little more than times and status: it only has to stand for others."""
    attributes = attributes_of(span)
    few = {
        name: attributes[name]
        for name in names
        if isinstance(attributes.get(name), str) and len(attributes[name]) <= _LONGEST_KIND_VALUE
    }
    dropped = (
        span.dropped_attributes + len(attributes) - len(few),
        span.dropped_events + len(span.events),
        span.dropped_links + len(span.links),
    )
    status = clean_status(span.status, attributes, span.events)
    return KeptSpan(span, few, (), (), status, span.context, dropped)

"""State changes as short spans: a server goes down, a worker falls idle, a value crosses a threshold.

What has a state: each metric of the catalogue that is an enumeration or 0/1, and each gauge with thresholds. A state is held
from the first reading that shows it to the first that shows another, so the durations of a state's changes add up to the time
it was watched. The tracker reads snapshots only; it knows no clock and no exporter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple

from otelperf import catalog
from otelperf.gate.hold import beyond
from otelperf.gate.policy import Override, Policy, Threshold
from otelperf.logs import Log
from otelperf.readings import Attributes, Batch, Buckets, Reading, Snapshot

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

_log = Log("otelperf.transitions")

UNKNOWN = "unknown"
LEVELS = ("normal", "warning", "critical")
_SECOND = 1_000_000_000
_FORGOTTEN = 3600 * _SECOND  # what has been unknown for so long will hardly come back
_BURST = 30
_REFILL = 60 * _SECOND
_WORDS = {"otelperf.server.up": ("down", "up")}
_FALSE_TRUE = ("false", "true")
_BAD = frozenset({"down", "critical", "error", "failed", "stuck", "unresponsive"})
_MESSAGE = 200  # characters

Key = tuple[str, str, frozenset[tuple[str, object]]]


class Transition(NamedTuple):
    """One change of state, of *metric* as *source* reads it. Times are Unix ns.

    The change lies between *after*, the last reading in the state *previous*, and *at*, the first in *new*. *duration* (s) is
    how long *previous* was held; *partial*: it had begun before it was watched. Of a value with thresholds there is the *value*
    now, and *peak* (its worst) and *mean* (over time) in *previous*. *suppressed* are the changes of the same metric that were
    left out before this one. *message* is what the source said, if it had trouble.
    """

    source: str
    entity: str
    metric: str
    attributes: Attributes
    previous: str
    new: str
    after: int
    at: int
    duration: float
    partial: bool
    value: float | None = None
    peak: float | None = None
    mean: float | None = None
    suppressed: int = 0
    message: str = ""


class _Seen(NamedTuple):
    """What one batch says of one thing: its state, and for a level the value and which thresholds it is beyond."""

    state: str
    attributes: Attributes
    value: float | None = None
    over: tuple[bool, ...] = ()
    worse: str = "above"


class _Track:
    """One thing with a state. *read* is when it was last seen (Unix ns), *since* when the state began."""

    __slots__ = ("area", "entity", "over", "partial", "peak", "read", "seen", "since")

    def __init__(self, entity: str, time: int, seen: _Seen) -> None:
        self.partial = True
        self.begin(entity, time, seen)

    def begin(self, entity: str, time: int, seen: _Seen) -> None:
        self.entity, self.seen = entity, seen
        self.since = self.read = time
        self.area, self.peak = 0.0, seen.value

    def rebase(self, time: int) -> None:
        """The clock was set back to *time*: keep how long the state was held."""
        self.since += time - self.read
        self.read = time

    def hold(self, time: int) -> None:
        """Hold the value up to *time*."""
        if self.seen.value is not None:
            self.area += self.seen.value * (time - self.read)
        self.read = time

    def go_on(self, time: int, seen: _Seen) -> None:
        """Take a further reading in the same state."""
        self.hold(time)
        self.seen = seen
        if seen.value is not None and self.peak is not None:
            self.peak = (max if seen.worse == "above" else min)(self.peak, seen.value)

    def ended(self, key: Key, at: int, new: _Seen) -> Transition:
        """Return the change to *new*; the state was held up to *at*."""
        after = self.read
        self.hold(at)
        held = at - self.since
        mean = None if self.peak is None else self.area / held if held else self.seen.value
        source, metric, _ = key
        return Transition(
            source,
            self.entity,
            metric,
            new.attributes,
            self.seen.state,
            new.state,
            after,
            at,
            held / _SECOND,
            self.partial,
            new.value,
            self.peak,
            mean,
        )


class _Row(NamedTuple):
    kind: Literal["enumerated", "binary", "level"]
    within: tuple[str, ...] = ()
    shape: Literal["gauge", "sum"] = "gauge"


class Transitions:
    """Finds the changes from one snapshot to the next.

    Thresholds are the catalogue's with the user's *overrides* (``gate.rules``), and are left past their margin, as in the gate.
    At most *most* states are watched. Of each metric of a source at most ``_BURST`` changes come at once, then one a minute:
    what is left out is counted on the next.
    """

    def __init__(self, overrides: Sequence[Override] = (), *, most: int = 2000) -> None:
        self._policy = Policy(catalog.rules(), overrides)
        self._rows = dict(_rows(overrides))
        self._most = most
        self._tracks: dict[Key, _Track] = {}
        self._known: dict[int, tuple[Batch, frozenset[Key]]] = {}
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def of(self, snapshot: Snapshot) -> list[Transition]:
        """Return the changes since the last snapshot, oldest first, as far as they are not too many."""
        changes = self._changes(snapshot)
        return [told for change in changes if (told := self._admitted(change, snapshot))] if changes else []

    def _changes(self, snapshot: Snapshot) -> list[Transition]:
        known: dict[int, tuple[Batch, frozenset[Key]]] = {}
        changes: list[Transition] = []
        for batch in snapshot.batches:
            # A source that was not due stands in the snapshot with the very batch of before.
            before = self._known.get(id(batch))
            known[id(batch)] = before or (batch, self._take(batch, snapshot.time, changes))
        if known.keys() != self._known.keys():
            self._end_absent(snapshot, frozenset().union(*(keys for _, keys in known.values())), changes)
        self._known = known
        changes.sort(key=lambda change: change.at)
        return changes

    def _take(self, batch: Batch, now: int, changes: list[Transition]) -> frozenset[Key]:
        """Take what *batch* says, note the changes, and return what it speaks of."""
        found: dict[Key, _Seen] = {}
        for reading in batch.readings:
            row = self._rows.get(reading.name)
            if row is not None and reading.native is None and not isinstance(reading.value, Buckets):
                self._look(batch.source, reading, reading.value, row, found)
        for key, seen in found.items():
            track = self._tracks.get(key)
            if track is None:
                self._begin(key, batch, seen)
                continue
            if batch.time <= track.read:
                if now >= track.read:  # what is left of an older batch
                    continue
                track.rebase(batch.time)
            if seen.state == track.seen.state:
                track.go_on(batch.time, seen)
                continue
            track.entity = batch.entity  # a server may have been known for what it is only now
            changes.append(track.ended(key, batch.time, seen))
            track.partial = False
            track.begin(batch.entity, batch.time, seen)
        return frozenset(found)

    def _look(self, source: str, reading: Reading, value: float, row: _Row, found: dict[Key, _Seen]) -> None:
        attributes = reading.attributes
        if row.kind == "enumerated":
            rest = {name: each for name, each in attributes.items() if name not in row.within}
            key = (source, reading.name, frozenset(rest.items()))
            if value == 1:
                found[key] = _Seen("/".join(str(attributes.get(name, UNKNOWN)) for name in row.within), rest)
            else:
                found.setdefault(key, _Seen(UNKNOWN, rest))
            return
        key = (source, reading.name, frozenset(attributes.items()))
        if value != value:
            found[key] = _Seen(UNKNOWN, attributes)
        elif row.kind == "binary":
            found[key] = _Seen(_WORDS.get(reading.name, _FALSE_TRUE)[value != 0], attributes)
        else:
            thresholds = self._policy.rule(reading.name, row.shape, attributes).thresholds
            if thresholds:
                track = self._tracks.get(key)
                before = track.seen if track else None
                over = _over(value, thresholds, before.over if before else ())
                # At nearly every reading it is beyond the same ones, and so at the same level.
                state = before.state if before and before.over == over else level(over, thresholds)
                found[key] = _Seen(state, attributes, value, over, thresholds[0].worse)

    def _begin(self, key: Key, batch: Batch, seen: _Seen) -> None:
        if seen.state == UNKNOWN:
            return
        if len(self._tracks) >= self._most:
            self._tracks = {key: track for key, track in self._tracks.items() if track.seen.state != UNKNOWN}
        if len(self._tracks) >= self._most:
            _log.trouble("too many states", most=self._most, then="changes of further ones are not told")
            return
        self._tracks[key] = _Track(batch.entity, batch.time, seen)

    def _end_absent(self, snapshot: Snapshot, present: frozenset[Key], changes: list[Transition]) -> None:
        """What nobody speaks of any more is unknown: since the source left it out, or since it was last heard of."""
        newest: dict[str, int] = {}
        for batch in snapshot.batches:
            newest[batch.source] = max(batch.time, newest.get(batch.source, 0))
        for key, track in list(self._tracks.items()):
            if key in present:
                continue
            if track.seen.state == UNKNOWN:
                if snapshot.time - track.since > _FORGOTTEN:
                    del self._tracks[key]
                continue
            at = max(track.read, newest.get(key[0], track.read))
            change = track.ended(key, at, seen := _Seen(UNKNOWN, track.seen.attributes))
            # Of a source that fell silent it is known only now.
            changes.append(change if at > change.after else change._replace(at=max(at, snapshot.time)))
            track.partial = False
            track.begin(track.entity, at, seen)

    def _admitted(self, change: Transition, snapshot: Snapshot) -> Transition | None:
        bucket = self._buckets.setdefault((change.source, change.metric), _Bucket(snapshot.time))
        suppressed = bucket.take(snapshot.time)
        if suppressed is None:
            return None
        if change.value is None:
            message = next((h.message for h in snapshot.health if h.source == change.source and not h.ok), "")
            change = change._replace(message=message)
        return change._replace(suppressed=suppressed)


class _Bucket:
    """Tokens: ``_BURST`` at most, one more each ``_REFILL`` ns."""

    __slots__ = ("_filled", "_suppressed", "_tokens")

    def __init__(self, now: int) -> None:
        self._tokens = float(_BURST)
        self._filled = now
        self._suppressed = 0

    def take(self, now: int) -> int | None:
        """Return how many went without one since the last that got one; None if this one goes without."""
        self._tokens = min(float(_BURST), self._tokens + max(0, now - self._filled) / _REFILL)
        self._filled = now
        if self._tokens < 1:
            self._suppressed += 1
            return None
        self._tokens -= 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


def _rows(overrides: Sequence[Override]) -> list[tuple[str, _Row]]:
    """Return the metrics that have a state. The agent's word on itself is left out: its sources' state is in otelperf.server.up."""
    patterns = [override.metric for override in overrides if "thresholds" in override.changes]
    own = {row.name for row in catalog.AGENT + catalog.PROCESS}
    found = []
    for row in catalog.METRICS:
        if row.name in own or row.kind not in {"gauge", "updown"}:
            continue
        if row.rule.kind == "state" and row.rule.within:
            found.append((row.name, _Row("enumerated", row.rule.within)))
        elif row.rule.kind == "state" and row.unit == "1":
            found.append((row.name, _Row("binary")))
        elif row.rule.thresholds or any(fnmatchcase(row.name, pattern) for pattern in patterns):
            found.append((row.name, _Row("level", shape="gauge" if row.kind == "gauge" else "sum")))
    return found


def _over(value: float, thresholds: Sequence[Threshold], before: Sequence[bool]) -> tuple[bool, ...]:
    """Say of each threshold whether *value* is beyond it; one that it was beyond *before* is left past the margin only."""
    was = before if len(before) == len(thresholds) else [False] * len(thresholds)
    return tuple(beyond(value, each, each.margin if over else 0.0) for each, over in zip(thresholds, was, strict=True))


def level(over: Sequence[bool], thresholds: Sequence[Threshold]) -> str:
    """Return the level: critical beyond all of two or more thresholds of one direction, warning beyond any, else normal."""
    all_of = Counter(each.worse for each in thresholds)
    beyond_of = Counter(each.worse for each, is_over in zip(thresholds, over, strict=True) if is_over)
    if any(count == all_of[worse] >= 2 for worse, count in beyond_of.items()):
        return LEVELS[2]
    return LEVELS[1] if beyond_of else LEVELS[0]


def span(change: Transition, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """Return the change as a span: a trace of its own, from the last reading before the change to the first after it."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.trace import SpanContext, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode

    ids = RandomIdGenerator()
    context = SpanContext(
        ids.generate_trace_id(), ids.generate_span_id(), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
    bad = change.new in _BAD
    return ReadableSpan(
        f"{change.metric} {change.new}",
        context,
        resource=resource,
        attributes=_attributes(change),
        status=Status(StatusCode.ERROR, change.message[:_MESSAGE] or None) if bad else Status(),
        start_time=min(change.after, change.at),
        end_time=change.at,
        instrumentation_scope=scope,
    )


def _attributes(change: Transition) -> Mapping[str, str | bool | int | float]:
    told: dict[str, str | bool | int | float | None] = {
        "otelperf.metric.name": change.metric,
        "otelperf.state.previous": change.previous,
        "otelperf.state.new": change.new,
        "otelperf.state.duration": change.duration,
        "otelperf.state.partial": change.partial or None,
        "otelperf.state.value": change.value,
        "otelperf.state.peak": change.peak,
        "otelperf.state.mean": change.mean,
        "otelperf.state.suppressed": change.suppressed or None,
    }
    return {**change.attributes, **{name: value for name, value in told.items() if value is not None}}

"""The gate for metrics: a MetricExporter around a MetricExporter.

    reader = PeriodicExportingMetricReader(DeltaGate(OTLPMetricExporter()), export_interval_millis=1000)

One export is one look at the world: each stream's newest point is judged by its rule, members of a group follow each
other, and what must go waits in its resource's tray until the linger is over or something urgent joins it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from zlib import crc32

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otelperf.gate.clock import Clock
from otelperf.gate.marks import DataPoint, HistogramMark, is_mark, mark
from otelperf.gate.policy import Policy
from otelperf.gate.stream import SECOND, Group, Stream

_logger = logging.getLogger(__name__)

_URGENT = {"threshold", "state", "end"}
_LEAST_STEP = 1_000_000  # Prometheus counts in ms: two points of a stream within one would be a duplicate
_STREAMS_PER_PHASE = 50
_PHASES = 5
_MOST_ENDED = 10_000


class Emission(NamedTuple):
    """One point let out, and why. *old* is None at first sight, *new* None at the end."""

    time: int
    name: str
    unit: str
    attributes: Any
    resource: Resource
    old: DataPoint | None
    new: DataPoint | None
    reason: str


@dataclass(slots=True)
class GateStats:
    """What the gate did since it was made."""

    seen: int = 0
    suppressed: int = 0
    refused: int = 0
    streams: int = 0
    emitted: Counter[str] = field(default_factory=Counter)


class _Waiting(NamedTuple):
    scope: _Scope
    family: _Family
    point: DataPoint
    stream: Stream | None
    last: bool  # a mark, or the total before it: what no later export would bring again


class _Family:
    """A metric of a scope, and its streams."""

    __slots__ = ("by_identity", "meta", "shape", "streams")

    def __init__(self, meta: Metric, shape: str) -> None:
        self.meta = _with_points(meta, [])  # else the first snapshot would live for ever
        self.shape = shape
        self.streams: dict[frozenset[Any], Stream] = {}
        self.by_identity: dict[int, Stream] = {}

    def find(self, attributes: Any) -> Stream | None:
        """Look a stream up, first by the identity of its attribute mapping: most callers hand out the same one each time."""
        stream = self.by_identity.get(id(attributes))
        if stream is not None:
            return stream
        stream = self.streams.get(_key(attributes))
        if stream is not None:
            self.by_identity.pop(id(stream.attributes), None)
            stream.attributes = attributes  # kept alive, or another mapping could come to have its id
            self.by_identity[id(attributes)] = stream
        return stream

    def add(self, stream: Stream) -> None:
        self.streams[_key(stream.attributes)] = stream
        self.by_identity[id(stream.attributes)] = stream

    def remove(self, stream: Stream) -> None:
        del self.streams[_key(stream.attributes)]
        self.by_identity.pop(id(stream.attributes), None)


class _Scope:
    __slots__ = ("families", "groups", "meta")

    def __init__(self, meta: ScopeMetrics) -> None:
        self.meta = replace(meta, metrics=())
        self.families: dict[tuple[str, str], _Family] = {}
        self.groups: dict[tuple[str, frozenset[Any]], Group] = {}


class _Tray:
    """A resource, its scopes, and the points that wait to go."""

    __slots__ = ("listed", "meta", "oldest", "present", "scopes", "streams", "urgent", "waiting")

    def __init__(self, meta: ResourceMetrics) -> None:
        self.meta = replace(meta, scope_metrics=())
        self.listed = 0  # when an export last had it
        self.present = 0  # how many of its streams that export had
        self.scopes: dict[InstrumentationScope, _Scope] = {}
        self.streams = 0
        self.waiting: list[_Waiting] = []
        self.oldest = 0
        self.urgent = False


class DeltaGate(MetricExporter):
    """Forward to *exporter* only what moved by more than its rule in *policy* allows, and a heartbeat.

    Times are in seconds. *heartbeat*: longest silence of a living stream. *linger*: how long an ordinary emission may wait
    for others (not at all when exports come further apart than that). *gone_after*: absence after which a stream has ended;
    None is two heartbeats or three of the stream's own intervals, whichever is longer. Scopes named in *complete* always list
    all their streams, so there absence is the end at once. *rate_window*: the window that rules and boards use in ``rate()``.
    *histogram_interval*: least time between two emissions of a histogram. *max_streams*: new ones beyond it are refused.
    *max_points*: most in one call of *exporter*. *clock* gives Unix time in ns. *observe* is told each emission.

    A value counts as sent only when *exporter* answered SUCCESS; after a failure the stream is sent anew.
    Delta temporality is passed through ungated: a point held back would be lost.
    """

    def __init__(  # noqa: PLR0913 # settings, all but three by keyword
        self,
        exporter: MetricExporter,
        policy: Policy | None = None,
        clock: Callable[[], int] | None = None,
        *,
        heartbeat: float = 50.0,
        linger: float = 5.0,
        gone_after: float | None = None,
        complete: Iterable[str] = (),
        rate_window: float = 120.0,
        histogram_interval: float = 30.0,
        max_streams: int = 100_000,
        max_points: int = 2000,
        observe: Callable[[Emission], None] | None = None,
    ) -> None:
        super().__init__(
            preferred_temporality=exporter._preferred_temporality,  # noqa: SLF001 # readers read it from the exporter they hold
            preferred_aggregation=exporter._preferred_aggregation,  # noqa: SLF001 # as above
        )
        self.stats = GateStats()
        self._exporter = exporter
        self._policy = policy or Policy()
        self._clock = clock or Clock()
        self._heartbeat = int(heartbeat * SECOND)
        self._linger = int(linger * SECOND)
        self._gone_after = None if gone_after is None else int(gone_after * SECOND)
        self._complete = frozenset(complete)
        self._window = int(rate_window * SECOND)
        self._histogram_interval = int(histogram_interval * SECOND)
        self._max_streams = max_streams
        self._max_points = max_points
        self._observe = observe
        self._trays: dict[Resource, _Tray] = {}
        self._tray_by_identity: dict[int, _Tray] = {}
        self._ended: dict[tuple[Any, ...], int] = {}  # the times of marks, oldest first
        self._lock = threading.Lock()
        self._forget = False
        self._closed = False
        self._last_export = 0
        self._told: set[str] = set()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Judge every point, and send what must go."""
        with self._lock:
            if self._closed:
                return MetricExportResult.FAILURE
            now = max(self._clock(), self._last_export + 1)
            if self._forget:
                self._forget = False
                self._forget_all()
            for resource_metrics in metrics_data.resource_metrics:
                self._judge(resource_metrics, now)
            self._end_absent(now)
            tick = now - self._last_export if self._last_export else self._linger + 1
            self._last_export = now
            return self._flush(timeout_millis, lambda tray: tray.urgent or now - tray.oldest + tick > self._linger)

    def forget(self) -> None:
        """Take nothing as sent: the next export lets every stream out. May be called from any thread."""
        self._forget = True

    def end_streams(self, spare: Callable[[Resource], bool] = lambda _: False, timeout_millis: float = 10_000) -> None:
        """Send what waits and a stale mark for every stream, those of resources to *spare* aside. Nothing passes after that."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            now = max(self._clock(), self._last_export + 1)
            for tray in self._trays.values():
                if not spare(tray.meta.resource):
                    for scope, family, stream in list(_streams(tray)):
                        self._end(tray, scope, family, stream, now)
            self._flush(timeout_millis, lambda _: True)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Send what lingers."""
        with self._lock:
            sent = self._flush(timeout_millis, lambda _: True) is MetricExportResult.SUCCESS
        return self._exporter.force_flush(timeout_millis) and sent

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """End every stream and shut the inner exporter down."""
        self.end_streams(timeout_millis=timeout_millis)
        self._exporter.shutdown(timeout_millis, **kwargs)

    # -- judging

    def _judge(self, resource_metrics: ResourceMetrics, now: int) -> None:
        tray = self._tray(resource_metrics)
        if tray.listed != now:
            tray.listed, tray.present = now, 0
        phases = min(_PHASES, 1 + tray.streams // _STREAMS_PER_PHASE)
        for scope_metrics in resource_metrics.scope_metrics:
            scope = tray.scopes.get(scope_metrics.scope)
            if scope is None:
                scope = tray.scopes[scope_metrics.scope] = _Scope(scope_metrics)
            emitting: list[tuple[_Family, Stream, str]] = []
            holding: list[tuple[_Family, Stream]] = []
            for metric in scope_metrics.metrics:
                self._judge_metric(tray, scope, metric, phases, emitting, holding, now)
            self._settle(tray, scope, emitting, holding, now)
            if not scope.families:
                del tray.scopes[scope_metrics.scope]

    def _settle(
        self,
        tray: _Tray,
        scope: _Scope,
        emitting: list[tuple[_Family, Stream, str]],
        holding: list[tuple[_Family, Stream]],
        now: int,
    ) -> None:
        """Let out what must go and what is grouped with it, and hold the rest."""
        follow = {id(stream.group) for _, stream, _ in emitting if stream.group is not None}
        for family, stream, reason in emitting:
            self._emit(tray, scope, family, stream, reason, now)
        for family, stream in holding:
            if follow and id(stream.group) in follow:
                self._emit(tray, scope, family, stream, "group", now)
            else:
                stream.hold()
                self.stats.suppressed += 1
        emitting.clear()
        holding.clear()

    def _judge_metric(  # the inner loop: one call a metric, its two result lists shared by the scope
        self,
        tray: _Tray,
        scope: _Scope,
        metric: Metric,
        phases: int,
        emitting: list[tuple[_Family, Stream, str]],
        holding: list[tuple[_Family, Stream]],
        now: int,
    ) -> None:
        shape = _shape(metric)
        if shape is None:
            self._pass_ungated(tray, scope, metric, now)
            return
        family = scope.families.get((metric.name, shape))
        if family is None:
            family = scope.families[(metric.name, shape)] = _Family(metric, shape)
        for point in metric.data.data_points:
            stream = family.find(point.attributes) or self._first_sight(tray, scope, family, point)
            if stream is None:
                continue
            fresh = self._fresh(stream, point, now)
            if stream.listed != now:
                stream.listed = now
                tray.present += 1
            elif fresh is not None:  # a second point of it in this export: settle the one before
                self._settle(tray, scope, emitting, holding, now)
            if fresh is None:
                continue
            self.stats.seen += 1
            unsent = stream.take(fresh)
            if unsent is not None:
                self._put(tray, scope, family, stream, unsent, "reset", now)
            reason = stream.reason(self._window, self._histogram_interval) or self._heart(stream, fresh, phases)
            if reason is None:
                holding.append((family, stream))
            else:
                emitting.append((family, stream, reason))

    @staticmethod
    def _fresh(stream: Stream, point: DataPoint, now: int) -> DataPoint | None:
        """Return the point if it is a new one, its time made to rise; None if it repeats the last (alive, but not newly read)."""
        read, least = point.time_unix_nano, stream.least
        if read == stream.read:
            return None
        stream.read = read
        if read < least:
            # Too soon for Prometheus; or the clock of whoever made it was set back, but its values are new all the same.
            read = least if least - read <= _LEAST_STEP else max(now, least)
            point = replace(point, time_unix_nano=read)
        stream.least = read + _LEAST_STEP
        return point

    def _first_sight(self, tray: _Tray, scope: _Scope, family: _Family, point: DataPoint) -> Stream | None:
        if self.stats.streams >= self._max_streams:
            self.stats.refused += 1
            if not family.streams:
                scope.families.pop((family.meta.name, family.shape), None)
            self._tell(
                "full",
                "gate is full: new streams are refused max_streams=%d first=%s",
                self._max_streams,
                family.meta.name,
            )
            return None
        attributes = point.attributes or {}
        rule = self._policy.rule(family.meta.name, family.shape.replace("exponential", "histogram"), attributes)
        phase = crc32((rule.group or family.meta.name).encode())
        cumulative = family.shape not in {"gauge", "sum"}
        stream = Stream(family.meta.name, point.attributes, rule, phase, cumulative=cumulative)
        if rule.group:
            shared = frozenset((k, v) for k, v in _key(attributes) if k not in rule.within)
            key = rule.group, shared
            stream.group = scope.groups.get(key) or scope.groups.setdefault(key, Group(key))
            stream.group.size += 1
        if self._ended:
            ended = self._ended.pop(self._identity(tray, scope, family, stream), None)
            if ended is not None:
                stream.least = ended + _LEAST_STEP
        family.add(stream)
        tray.streams += 1
        self.stats.streams += 1
        return stream

    def _heart(self, stream: Stream, point: DataPoint, phases: int) -> str | None:
        """Due at the heartbeat; or earlier, at the phase that the stream shares with others, so that they share a request."""
        heartbeat = self._heartbeat if stream.rule.heartbeat is None else int(stream.rule.heartbeat * SECOND)
        time = point.time_unix_nano
        age = time - stream.emitted.time_unix_nano  # type: ignore[union-attr] # reason() was None, so one was emitted
        if age >= heartbeat - stream.step // 2:
            return "heartbeat"
        kind = stream.rule.kind
        early = heartbeat // 2
        if kind == "trend":
            early = (
                heartbeat * 4 // 5
            )  # Prometheus extrapolates by the mean spacing: one short gap costs two more points
        elif kind == "histogram":
            early = max(early, self._histogram_interval)
        if age >= early:
            offset = (stream.phase % phases) * heartbeat // phases
            if (time + offset) % heartbeat < heartbeat // 10:
                return "heartbeat"
        return None

    def _end_absent(self, now: int) -> None:
        for tray in list(self._trays.values()):
            if tray.listed != now or tray.present < tray.streams:
                for scope, family, stream in list(_streams(tray)):
                    if stream.listed != now and (scope.meta.scope.name in self._complete or self._gone(stream, now)):
                        self._end(tray, scope, family, stream, now)
            if not tray.streams and not tray.waiting:
                self._trays.pop(tray.meta.resource, None)
                self._tray_by_identity = {k: t for k, t in self._tray_by_identity.items() if t is not tray}

    def _gone(self, stream: Stream, now: int) -> bool:
        limit = self._gone_after if self._gone_after is not None else max(2 * self._heartbeat, 3 * stream.step)
        return now - stream.listed > limit

    def _end(self, tray: _Tray, scope: _Scope, family: _Family, stream: Stream, now: int) -> None:
        point = stream.seen
        if point is not None and stream.known:
            unsent = stream.unsent()
            if unsent is not None:
                self._put(tray, scope, family, stream, unsent, "end", now)
            ended = mark(point, max(now, stream.least))
            if not isinstance(ended, HistogramMark) or getattr(self._exporter, "flags_marks", False):
                # A stock exporter would send a histogram's mark as an empty histogram, which reads as a reset.
                self._put(tray, scope, family, stream, ended, "end", now, old=point)
            if not self._closed:
                self._remember_end(self._identity(tray, scope, family, stream), ended.time_unix_nano)
        if stream.group is not None:
            stream.group.size -= 1
            if not stream.group.size:
                scope.groups.pop(stream.group.key, None)
        family.remove(stream)
        if not family.streams:
            del scope.families[(family.meta.name, family.shape)]
        if not scope.families:
            del tray.scopes[scope.meta.scope]
        tray.streams -= 1
        self.stats.streams -= 1

    @staticmethod
    def _identity(tray: _Tray, scope: _Scope, family: _Family, stream: Stream) -> tuple[Any, ...]:
        return tray.meta.resource, scope.meta.scope, family.meta.name, family.shape, _key(stream.attributes)

    def _remember_end(self, identity: tuple[Any, ...], time: int) -> None:
        """A stream that returns must be later than its mark; few do."""
        self._ended.pop(identity, None)
        self._ended[identity] = time
        if len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]

    def _forget_all(self) -> None:
        for tray in self._trays.values():
            for _, _, stream in _streams(tray):
                stream.doubt("again")

    # -- emitting

    def _emit(self, tray: _Tray, scope: _Scope, family: _Family, stream: Stream, reason: str, now: int) -> None:
        point = stream.seen
        assert point is not None  # judged just now
        old = stream.emitted
        if reason == "bend":
            previous = stream.remember_previous(self._window)
            if previous is not None:
                self._put(tray, scope, family, stream, previous, "previous", now)
        finished = stream.finished(point)
        stream.remember(self._window)
        self._put(tray, scope, family, stream, finished, reason, now, old=old)
        if reason in _URGENT or (stream.rule.urgent and reason != "heartbeat"):
            tray.urgent = True

    def _put(  # noqa: PLR0913 # what goes into the tray, and where
        self,
        tray: _Tray,
        scope: _Scope,
        family: _Family,
        stream: Stream | None,
        point: DataPoint,
        reason: str,
        now: int,
        old: DataPoint | None = None,
    ) -> None:
        if not tray.waiting:
            tray.oldest = now
        if reason == "end":
            tray.urgent = True
        tray.waiting.append(_Waiting(scope, family, point, stream, reason == "end"))
        self.stats.emitted[reason] += 1
        if self._observe is not None:
            new = None if reason == "end" and old is not None else point
            meta = family.meta
            try:
                self._observe(
                    Emission(
                        point.time_unix_nano,
                        meta.name,
                        meta.unit or "",
                        point.attributes,
                        tray.meta.resource,
                        old,
                        new,
                        reason,
                    )
                )
            except Exception:
                if "observer" not in self._told:
                    self._told.add("observer")
                    _logger.exception("the observer of emissions failed")

    def _pass_ungated(self, tray: _Tray, scope: _Scope, metric: Metric, now: int) -> None:
        self._tell(
            "delta", "delta temporality passes ungated metric=%s: ask for cumulative to have it gated", metric.name
        )
        family = _Family(metric, "delta")
        tray.urgent = True
        for point in metric.data.data_points:
            self.stats.seen += 1
            self._put(tray, scope, family, None, point, "ungated", now)

    def _flush(self, timeout_millis: float, due: Callable[[_Tray], bool]) -> MetricExportResult:
        waiting: list[tuple[_Tray, _Waiting]] = []
        for tray in self._trays.values():
            if tray.waiting and due(tray):
                waiting.extend((tray, item) for item in tray.waiting)
                tray.waiting = []
                tray.urgent = False
        result = MetricExportResult.SUCCESS
        for begin in range(0, len(waiting), self._max_points):
            chunk = waiting[begin : begin + self._max_points]
            if not self._send(_metrics_data(chunk), timeout_millis):
                result = MetricExportResult.FAILURE
                self._send_again(chunk)
        return result

    def _send_again(self, chunk: list[tuple[_Tray, _Waiting]]) -> None:
        """Take what failed as not sent. Marks wait for another try, unless the stream is back or has ended anew since."""
        for (tray, item), (_, follower) in zip(chunk, [*chunk[1:], chunk[-1]], strict=True):
            if item.stream is None:
                continue
            if not item.last:
                item.stream.doubt("again")
                continue
            end = item if is_mark(item.point) else follower  # a total goes with the mark behind it
            ended = self._ended.get(self._identity(tray, item.scope, item.family, item.stream))
            if end.stream is item.stream and end.point.time_unix_nano == ended:
                if not tray.waiting:
                    tray.oldest = self._last_export
                tray.waiting.append(item)

    def _send(self, data: MetricsData, timeout_millis: float) -> bool:
        try:
            return self._exporter.export(data, timeout_millis) is MetricExportResult.SUCCESS
        except Exception:
            _logger.exception("the inner exporter failed")
            return False

    def _tray(self, resource_metrics: ResourceMetrics) -> _Tray:
        """Find the tray of a resource, by identity first: hashing a Resource serialises it."""
        resource = resource_metrics.resource
        tray = self._tray_by_identity.get(id(resource))
        if tray is not None and tray.meta.resource is resource:
            return tray
        tray = self._trays.get(resource)
        if tray is None:
            tray = self._trays[resource] = _Tray(resource_metrics)
            self._tray_by_identity[id(resource)] = tray
        return tray

    def _tell(self, what: str, message: str, *values: object) -> None:
        if what not in self._told:
            self._told.add(what)
            _logger.warning(message, *values)


def _streams(tray: _Tray) -> Iterator[tuple[_Scope, _Family, Stream]]:
    for scope in tray.scopes.values():
        for family in scope.families.values():
            for stream in family.streams.values():
                yield scope, family, stream


def _shape(metric: Metric) -> str | None:
    """Name the data type; None for what cannot be gated."""
    data = metric.data
    if isinstance(data, Gauge):
        return "gauge"
    if data.aggregation_temporality is not AggregationTemporality.CUMULATIVE:
        return None
    if isinstance(data, Sum):
        return "monotonic" if data.is_monotonic else "sum"
    return "histogram" if isinstance(data, Histogram) else "exponential"


def _key(attributes: Any) -> frozenset[Any]:
    """Return what makes an attribute set itself, whatever its order."""
    if not attributes:
        return frozenset()
    try:
        return frozenset(attributes.items())
    except TypeError:  # a list, or a mapping
        return frozenset((k, _hashable(v)) for k, v in attributes.items())


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _metrics_data(chunk: list[tuple[_Tray, _Waiting]]) -> MetricsData:
    """Build the request: one entry a resource, a scope and a metric, points in the order in which they were let out."""
    tree: dict[
        int,
        tuple[_Tray, dict[InstrumentationScope, tuple[_Scope, dict[tuple[str, str], tuple[_Family, list[DataPoint]]]]]],
    ] = {}
    for tray, (scope, family, point, _, _) in chunk:
        _, scopes = tree.setdefault(id(tray), (tray, {}))
        _, families = scopes.setdefault(scope.meta.scope, (scope, {}))
        families.setdefault((family.meta.name, family.shape), (family, []))[1].append(point)
    return MetricsData(
        [
            ResourceMetrics(
                tray.meta.resource,
                [
                    ScopeMetrics(
                        scope.meta.scope,
                        [_with_points(f.meta, points) for f, points in families.values()],
                        scope.meta.schema_url,
                    )
                    for scope, families in scopes.values()
                ],
                tray.meta.schema_url,
            )
            for tray, scopes in tree.values()
        ]
    )


def _with_points(meta: Metric, points: list[Any]) -> Metric:
    data = meta.data
    new: Gauge | Sum | Histogram | ExponentialHistogram
    if isinstance(data, Gauge):
        new = Gauge(points)
    elif isinstance(data, Sum):
        new = Sum(points, data.aggregation_temporality, data.is_monotonic)
    else:
        new = type(data)(points, data.aggregation_temporality)
    return Metric(meta.name, meta.description, meta.unit, new)

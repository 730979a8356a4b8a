"""The gate for metrics: a MetricExporter around a MetricExporter.

    reader = PeriodicExportingMetricReader(DeltaGate(OTLPMetricExporter()), export_interval_millis=1000)

One export is one look at the world: each stream's newest point is judged by its rule, members of a group follow each
other, and what must go waits in its resource's tray until the linger is over or something urgent joins it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple
from weakref import WeakSet
from zlib import crc32

from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
)
from opentelemetry.sdk.resources import Resource

from otelperf.gate.budget import Account, Budget
from otelperf.gate.clock import Clock
from otelperf.gate.marks import DataPoint, HistogramMark, is_mark, mark
from otelperf.gate.policy import Policy
from otelperf.gate.stream import SECOND, Bound, Stream, Terms
from otelperf.gate.tree import Family, Scope, Tray, Waiting, infos, metrics_data, one_each, shape_of
from otelperf.gate.trend import watch

_logger = logging.getLogger(__name__)

# What may wait for others to share a request: what says that nothing has happened, or comes seldom anyway.
_PATIENT = {"heartbeat", "first", "again", "off", "quantile"}
_BEGINNINGS = {"first", "reset"}
_LEAST_STEP = 1_000_000  # Prometheus counts in ms: two points of a stream within one would be a duplicate
_STREAMS_PER_PHASE = 50
_PHASES = 5
_MOST_ENDED = 10_000


class Emission(NamedTuple):
    """One point let out, and why. *old*: the one before, None at first sight and for an earlier reading; *new*: None at the end."""

    time: int
    name: str
    unit: str
    attributes: Any
    resource: Resource
    old: DataPoint | None
    new: DataPoint | None
    reason: str
    shape: str = "gauge"  # gauge, sum, monotonic, histogram or exponential


@dataclass(slots=True)
class GateStats:
    """What the gate did since it was made.

    *samples* are what was let out as Prometheus stores it (a classic histogram is one a bucket, and two), ``target_info``
    included. *factor* is what the budget multiplies all deltas by.
    """

    seen: int = 0
    suppressed: int = 0
    refused: int = 0
    streams: int = 0
    emitted: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    factor: float = 1.0


class _Verdicts:
    """What was decided of the streams of one scope in one export."""

    __slots__ = ("emit", "hold")

    def __init__(self) -> None:
        self.emit: list[tuple[Stream, str]] = []
        self.hold: list[Stream] = []


_gates: WeakSet[DeltaGate] = WeakSet()


def _after_fork() -> None:
    for gate in list(_gates):
        gate.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _check(least: float | None = None, **settings: float) -> None:
    """Refuse what is no finite number above zero, or of at least *least*."""
    for name, value in settings.items():
        number = isinstance(value, int | float) and value == value and value != float("inf")
        if not number or value < 0 or (value == 0 and least is None):
            wanted = "above 0" if least is None else f"of {least:g} or more"
            raise ValueError(f"DeltaGate: {name} is {value!r}, expected a finite number {wanted}")


class DeltaGate(MetricExporter):
    """Forward to *exporter* only what moved by more than its rule in *policy* allows, and a heartbeat.

    Times are in seconds. *heartbeat*: longest silence of a living stream. *linger*: how long what is no change may wait
    for others (not at all when exports come further apart than that). *gone_after*: absence after which a stream has ended;
    None is two heartbeats or three of the stream's own intervals, whichever is longer. Scopes named in *complete* always list
    all their streams, so there absence is the end at once. Scopes named in *from_zero* give start times that are true: a counter
    of theirs that begins while the gate watches is preceded by a point of 0. *rate_window*: the window that rules and boards
    use in ``rate()``. *histogram_interval*: least time between two emissions of a histogram, a sixth of it where a quantile would
    be misread. *max_streams*: new ones beyond it are refused. *max_points*: most in one call of *exporter*. *clock* gives Unix
    time in ns. *observe* is told each emission.
    *budget*: deltas grow as far as it takes to keep it. *previous*: whether a point older than the stream's last may be sent;
    where not, no request holds two points of one stream either. *spacing*: least time between two points of a stream, its end
    and resets aside. *native_histograms*: a histogram is counted as one sample.

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
        from_zero: Iterable[str] = (),
        rate_window: float = 120.0,
        histogram_interval: float = 30.0,
        max_streams: int = 100_000,
        max_points: int = 2000,
        budget: Budget | None = None,
        previous: bool = True,
        spacing: float = 0.0,
        native_histograms: bool = False,
        observe: Callable[[Emission], None] | None = None,
    ) -> None:
        super().__init__(
            preferred_temporality=exporter._preferred_temporality,  # noqa: SLF001 # readers read it from the exporter they hold
            preferred_aggregation=exporter._preferred_aggregation,  # noqa: SLF001 # as above
        )
        _check(heartbeat=heartbeat, rate_window=rate_window, max_streams=max_streams, max_points=max_points)
        _check(
            least=0.0,
            linger=linger,
            histogram_interval=histogram_interval,
            spacing=spacing,
            gone_after=gone_after or 0.0,
        )
        if policy is not None and not isinstance(policy, Policy):
            raise ValueError(
                f"DeltaGate: policy is {policy!r}, expected a Policy, such as Policy({{'m': Rule(delta=1)}})"
            )
        if budget is not None and not isinstance(budget, Budget):
            raise ValueError(f"DeltaGate: budget is {budget!r}, expected a Budget")
        if spacing > heartbeat or (spacing and previous):
            raise ValueError(
                f"DeltaGate: spacing is {spacing!r}: it needs previous=False, and at most the heartbeat's length"
            )
        self.stats = GateStats()
        self._exporter = exporter
        self._policy = policy or Policy()
        self._clock = clock or Clock()
        self._heartbeat = int(heartbeat * SECOND)
        self._linger = int(linger * SECOND)
        self._gone_after = None if gone_after is None else int(gone_after * SECOND)
        self._complete = frozenset(complete)
        self._from_zero = frozenset(from_zero)
        self._terms = Terms(
            watch(int(rate_window * SECOND)),
            int(histogram_interval * SECOND),
            max(0, int(spacing * SECOND) - _LEAST_STEP),  # readings are not taken to the millisecond
            earlier=previous,
        )
        self._budget = budget or Budget()
        self._account: Account | None = None  # opened at the first export
        self._native = native_histograms
        self._max_streams = max_streams
        self._max_points = max_points
        self._observe = observe
        self._trays: dict[Resource, Tray] = {}
        self._tray_by_identity: dict[int, Tray] = {}
        self._ended: dict[tuple[Any, ...], int] = {}  # the times of marks, oldest first
        self._lock = threading.RLock()  # the observer may ask for bounds
        self._forget = False
        self._closed = False
        self._first_export = 0
        self._last_export = 0
        self._told: set[str] = set()
        _gates.add(self)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Judge every point, and send what must go."""
        with self._lock:
            if self._closed:
                return MetricExportResult.FAILURE
            now = max(self._clock(), self._last_export + 1)
            self._set_terms(now)
            if self._forget:
                self._forget = False
                self._forget_all()
            for resource_metrics in metrics_data.resource_metrics:
                self._judge(resource_metrics, now)
            self._end_absent(now)
            tick = now - self._last_export if self._last_export else self._linger + 1
            self._last_export = now
            self._first_export = self._first_export or now
            return self._flush(timeout_millis, lambda tray: tray.urgent or now - tray.oldest + tick > self._linger)

    def bounds(self) -> dict[str, Bound]:
        """Return by metric the widest delta and share that any of its streams may be off by now, the budget's factor included.

        Metrics whose every change is sent, or that have no delta (uptimes), are not in it. It looks at every stream, and waits
        for an export that is under way.
        """
        with self._lock:
            found: dict[str, Bound] = {}
            seen: set[tuple[str, int]] = set()
            for tray in self._trays.values():
                for stream in tray.streams():
                    same = stream.name, id(stream.rule)
                    if same in seen and stream.account is None and not stream.rule.share:
                        continue
                    seen.add(same)
                    bound = stream.bound(self._terms)
                    if bound is not None:
                        old = found.get(stream.name, bound)
                        found[stream.name] = Bound(max(old.delta, bound.delta), max(old.relative, bound.relative))
            return found

    def forget(self) -> None:
        """Take nothing as sent: the next export lets every stream out. May be called from any thread."""
        self._forget = True

    def rebase(self) -> None:
        """The clock was set back: take older points than before, and send every stream anew."""
        with self._lock:
            now = self._clock()
            for tray in self._trays.values():
                tray.oldest = 0
                tray.waiting = [item for item in tray.waiting if item.last]  # of the rest something newer is sent
                for stream in tray.streams():
                    stream.least, stream.latest, stream.listed = 0, 0, now
                    stream.doubt("again")
            self._last_export = 0
            self._ended.clear()

    def end_streams(self, spare: Callable[[Resource], bool] = lambda _: False, timeout_millis: float = 10_000) -> None:
        """Send what waits and a stale mark for every stream, those of resources to *spare* aside. Nothing passes after that."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            now = max(self._clock(), self._last_export + 1)
            for tray in self._trays.values():
                if not spare(tray.meta.resource):
                    for stream in list(tray.streams()):
                        self._end(stream, now)
            self._flush(timeout_millis, lambda _: True)

    def begin_anew(self) -> None:
        """Know nothing of any stream, as in a forked child: they are the parent's, and so is the lock if it was held."""
        self._lock = threading.RLock()
        self._trays, self._tray_by_identity, self._ended = {}, {}, {}
        self._first_export = 0
        self.stats.streams = 0

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Send what lingers."""
        with self._lock:
            sent = self._flush(timeout_millis, lambda _: True) is MetricExportResult.SUCCESS
        return self._exporter.force_flush(timeout_millis) and sent

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """End every stream and shut the inner exporter down."""
        self.end_streams(timeout_millis=timeout_millis)
        self._exporter.shutdown(timeout_millis, **kwargs)

    def _set_terms(self, now: int) -> None:
        terms, budget = self._terms, self._budget
        terms.now = now
        if budget.total is None:
            return
        if self._account is None:
            self._account = Account(budget.total, budget.finest, now)
        terms.factor = self.stats.factor = self._account.pay(now)
        if self._account.exhausted:
            self._tell(
                "budget",
                "budget is less than what may not be held back costs (heartbeats, states): wider deltas save nothing more"
                " samples_a_minute=%g",
                budget.total,
            )

    # -- judging

    def _judge(self, resource_metrics: ResourceMetrics, now: int) -> None:
        tray = self._tray(resource_metrics)
        if tray.listed != now:
            tray.listed, tray.present = now, 0
        verdicts = _Verdicts()
        for scope_metrics in resource_metrics.scope_metrics:
            scope = tray.scope(scope_metrics)
            for metric in scope_metrics.metrics:
                self._judge_metric(scope, metric, verdicts, now)
            self._settle(verdicts, now)
            if not scope.families:
                tray.scopes.pop(scope_metrics.scope, None)

    def _judge_metric(self, scope: Scope, metric: Metric, verdicts: _Verdicts, now: int) -> None:
        """Judge each point of a metric. This is the inner loop."""
        shape = shape_of(metric)
        if shape is None:
            self._pass_ungated(scope, metric, now)
            return
        family, tray, terms = scope.family(metric, shape), scope.tray, self._terms
        for point in metric.data.data_points:
            stream = family.find(point.attributes) or self._first_sight(family, point)
            if stream is None:
                continue
            fresh = self._fresh(stream, point, now)
            if stream.listed != now:
                stream.listed = now
                tray.present += 1
            elif fresh is not None:  # a second point of it in this export: settle the one before
                self._settle(verdicts, now)
            if fresh is None:
                continue
            self.stats.seen += 1
            self._take(stream, fresh, now)
            reason = stream.reason(terms)
            if (reason is None or reason == "previous") and not (terms.spacing and stream.early(terms)):
                reason = self._heart(stream, fresh, tray) or reason
            if reason is None:
                verdicts.hold.append(stream)
            else:
                verdicts.emit.append((stream, reason))

    def _take(self, stream: Stream, point: DataPoint, now: int) -> None:
        """Let the stream have its newest point; the total before a reset must not be lost."""
        unsent = stream.take(point)
        if unsent is not None:
            self._put(stream.family, stream, unsent, "reset", now, last="total")
        elif stream.because == "reset" and stream.emitted is None:
            stream.family.scope.tray.keep_total(stream)

    def _settle(self, verdicts: _Verdicts, now: int) -> None:
        """Let out what must go and what is grouped with it, and hold the rest."""
        follow = self._followed(verdicts.emit)
        newest = {id(stream.group) for stream, why in verdicts.emit if why != "previous"}
        for stream, why in verdicts.emit:
            self._join(stream, follow)
            if why != "previous":
                self._emit(stream, why, now)
            else:
                self._hold(stream, newest, now)
        for stream in verdicts.hold:
            if follow:
                self._join(stream, follow)
                self._hold(stream, newest, now)
            else:
                stream.hold(self._terms)
                self.stats.suppressed += 1
        verdicts.emit.clear()
        verdicts.hold.clear()

    @staticmethod
    def _followed(emit: list[tuple[Stream, str]]) -> dict[int, set[int]]:
        """Return the groups of which something goes, and the times of earlier readings that do."""
        follow: dict[int, set[int]] = {}
        for stream, _ in emit:
            if stream.group is not None:
                follow.setdefault(id(stream.group), set()).update(stream.due)
        return follow

    def _join(self, stream: Stream, follow: dict[int, set[int]]) -> None:
        if stream.group is not None and id(stream.group) in follow:
            stream.join(follow[id(stream.group)], self._terms)

    def _hold(self, stream: Stream, newest: set[int], now: int) -> None:
        """Hold the newest point back, unless one of its group goes; what was held earlier may go."""
        if stream.group is not None and id(stream.group) in newest and stream.follows(self._terms):
            self._emit(stream, "group", now)
        else:
            self._emit_earlier(stream, now)
            stream.hold(self._terms)
            self.stats.suppressed += 1

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

    def _first_sight(self, family: Family, point: DataPoint) -> Stream | None:
        name = family.meta.name
        if self.stats.streams >= self._max_streams:
            self.stats.refused += 1
            family.scope.prune(family)
            self._tell("full", "gate is full: new streams are refused max_streams=%d first=%s", self._max_streams, name)
            return None
        rule = self._policy.rule(name, family.shape.replace("exponential", "histogram"), point.attributes or {})
        phase = crc32((rule.group or name).encode())
        stream = Stream(name, point.attributes, rule, phase, cumulative=family.shape not in {"gauge", "sum"})
        if self._budget.per_stream is not None:
            stream.account = Account(self._budget.per_stream, self._budget.finest, self._terms.now)
        family.add(stream)
        self.stats.streams += 1
        if self._ended:
            ended = self._ended.pop(family.identity(stream), None)
            if ended is not None:
                stream.least = ended + _LEAST_STEP
                stream.latest = ended
        return stream

    def _heart(self, stream: Stream, point: DataPoint, tray: Tray) -> str | None:
        """Due at the heartbeat; or earlier, at the phase that the stream shares with others, so that they share a request."""
        heartbeat = self._heartbeat if stream.rule.heartbeat is None else int(stream.rule.heartbeat * SECOND)
        time = point.time_unix_nano
        age = time - stream.emitted.time_unix_nano  # type: ignore[union-attr] # reason() told nothing new, so one was emitted
        if age >= heartbeat - stream.step // 2:
            return "heartbeat"
        if age >= self._earliest(stream.rule.kind, heartbeat):
            phases = min(_PHASES, 1 + tray.size // _STREAMS_PER_PHASE)
            offset = (stream.phase % phases) * heartbeat // phases
            if (time + offset) % heartbeat < heartbeat // 10:
                return "heartbeat"
        return None

    def _earliest(self, kind: str, heartbeat: int) -> int:
        """Return the age from which a stream may beat early to share its phase."""
        if kind == "trend":
            # Prometheus extrapolates by the mean spacing: one short gap costs two more points.
            return heartbeat * 4 // 5
        return max(heartbeat // 2, self._terms.histogram_interval) if kind == "histogram" else heartbeat // 2

    # -- ending

    def _end_absent(self, now: int) -> None:
        for tray in list(self._trays.values()):
            if tray.listed != now or tray.present < tray.size:
                for stream in list(tray.streams()):
                    if stream.listed != now and self._gone(stream, now):
                        self._end(stream, now)
            if not tray.size and not tray.waiting:
                self._trays.pop(tray.meta.resource, None)
                self._tray_by_identity = {k: t for k, t in self._tray_by_identity.items() if t is not tray}

    def _gone(self, stream: Stream, now: int) -> bool:
        """Say whether a stream that this export did not list has ended."""
        if stream.family.scope.meta.scope.name in self._complete:
            return True
        limit = self._gone_after if self._gone_after is not None else max(2 * self._heartbeat, 3 * stream.step)
        return now - stream.listed > limit

    def _end(self, stream: Stream, now: int) -> None:
        """Let out a counter's last total and the mark, and forget the stream."""
        point, family = stream.seen, stream.family
        if point is not None and stream.known:
            unsent = stream.unsent()
            if unsent is not None:
                self._put(family, stream, unsent, "end", now, last="end")
            elif stream.cumulative:
                family.scope.tray.keep_total(stream)
            ended = mark(unsent or stream.emitted or point, max(now, stream.least))
            if not isinstance(ended, HistogramMark) or getattr(self._exporter, "flags_marks", False):
                # A stock exporter would send a histogram's mark as an empty histogram, which reads as a reset.
                self._put(family, stream, ended, "end", now, old=point, last="end")
            if not self._closed:
                self._remember_end(family.identity(stream), ended.time_unix_nano)
        family.remove(stream)
        self.stats.streams -= 1

    def _remember_end(self, identity: tuple[Any, ...], time: int) -> None:
        """A stream that returns must be later than its mark; few do."""
        self._ended.pop(identity, None)
        self._ended[identity] = time
        if len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]

    def _forget_all(self) -> None:
        for tray in self._trays.values():
            for stream in tray.streams():
                stream.doubt("again")

    # -- emitting

    def _emit(self, stream: Stream, reason: str, now: int) -> None:
        point, old = stream.seen, stream.emitted
        assert point is not None  # judged just now
        self._emit_earlier(stream, now)
        if reason in _BEGINNINGS:
            self._emit_beginning(stream, now)
        finished = stream.finished(point)
        stream.remember(self._terms)
        self._put(stream.family, stream, finished, reason, now, old=old)
        rule = stream.rule
        if reason == "heartbeat" or rule.kind == "histogram":
            return
        if reason not in _PATIENT or rule.kind == "state" or rule.thresholds:
            stream.family.scope.tray.urgent = True

    def _emit_beginning(self, stream: Stream, now: int) -> None:
        """Let out the 0 with which a counter began, if the gate saw to it that it was not there before."""
        if self._first_export and stream.family.scope.meta.scope.name in self._from_zero:
            zero = stream.beginning(self._terms, self._first_export)
            if zero is not None:
                self._put(stream.family, stream, zero, "beginning", now, last="total")

    def _emit_earlier(self, stream: Stream, now: int) -> None:
        """Let out the readings of a counter that were held back and are wanted now."""
        for point in stream.earlier(self._terms):
            self._put(stream.family, stream, point, "previous", now)
            stream.family.scope.tray.urgent = True

    def _put(
        self,
        family: Family,
        stream: Stream | None,
        point: DataPoint,
        reason: str,
        now: int,
        old: DataPoint | None = None,
        *,
        last: Literal["", "end", "total"] = "",
    ) -> None:
        """Lay a point into its tray, and tell the observer."""
        tray = family.scope.tray
        if not tray.waiting:
            tray.oldest = now
        if reason == "end":
            tray.urgent = True
        tray.waiting.append(Waiting(family, point, stream, last))
        self.stats.emitted[reason] += 1
        if stream is not None:
            stream.latest = max(stream.latest, point.time_unix_nano)
        if self._observe is not None:
            new = None if reason == "end" and old is not None else point
            self._tell_observer(family, point, reason, old, new)

    def _tell_observer(
        self, family: Family, point: DataPoint, reason: str, old: DataPoint | None, new: DataPoint | None
    ) -> None:
        meta, resource = family.meta, family.scope.tray.meta.resource
        told = Emission(
            point.time_unix_nano, meta.name, meta.unit or "", point.attributes, resource, old, new, reason, family.shape
        )
        try:
            self._observe(told)  # type: ignore[misc] # only called where there is one
        except Exception:
            if "observer" not in self._told:
                self._told.add("observer")
                _logger.exception("the observer of emissions failed")

    def _pass_ungated(self, scope: Scope, metric: Metric, now: int) -> None:
        self._tell(
            "delta", "delta temporality passes ungated metric=%s: ask for cumulative to have it gated", metric.name
        )
        family = Family(scope, metric, "delta")
        scope.tray.urgent = True
        for point in metric.data.data_points:
            self.stats.seen += 1
            self._put(family, None, point, "ungated", now)

    def _spend(self, chunk: list[Waiting]) -> None:
        """Count what was sent, as Prometheus stores it."""
        spent = infos(chunk)
        for item in chunk:
            point, stream = item.point, item.stream
            samples = 1 if self._native or not isinstance(point, HistogramDataPoint) else len(point.bucket_counts) + 2
            spent += samples
            if stream is not None and stream.account is not None:
                stream.account.spend(samples)
                if stream.account.exhausted:
                    self._tell(
                        "stream budget",
                        "a stream's budget is less than what may not be held back costs (heartbeats, states): wider deltas"
                        " save nothing more metric=%s",
                        stream.name,
                    )
        self.stats.samples += spent
        if self._account is not None:
            self._account.spend(spent)

    def _flush(self, timeout_millis: float, due: Callable[[Tray], bool]) -> MetricExportResult:
        waiting: list[Waiting] = []
        for tray in self._trays.values():
            if tray.waiting and due(tray):
                waiting += tray.waiting
                tray.waiting = []
                tray.urgent = False
        result = MetricExportResult.SUCCESS
        for batch in [waiting] if self._terms.earlier else one_each(waiting):
            for begin in range(0, len(batch), self._max_points):
                chunk = batch[begin : begin + self._max_points]
                # Where no older point may follow, what comes later must not overtake what failed.
                overtakes = result is MetricExportResult.FAILURE and not self._terms.earlier
                if not overtakes and self._send(metrics_data(chunk), timeout_millis):
                    self._spend(chunk)
                else:
                    result = MetricExportResult.FAILURE
                    self._send_again(chunk)
        return result

    def _send_again(self, chunk: list[Waiting]) -> None:
        """Take what failed as not sent.

        Marks, and totals before them, wait for another try, unless the stream is back or has ended anew since. A total before
        a reset gets one more try: nothing later says it, but it must not block what comes later either.
        """
        for item in chunk:
            if item.stream is None:
                continue
            if not item.last:
                item.stream.doubt("again")
                continue
            if item.last == "total":
                if self._terms.earlier:
                    self._wait(item._replace(stream=None))
                continue
            ended = self._ended.get(item.family.identity(item.stream))
            if ended is not None and (ended == item.point.time_unix_nano or not is_mark(item.point)):
                self._wait(item)

    def _wait(self, item: Waiting) -> None:
        tray = item.family.scope.tray
        if not tray.waiting:
            tray.oldest = self._last_export
        tray.waiting.append(item)

    def _send(self, data: MetricsData, timeout_millis: float) -> bool:
        try:
            return self._exporter.export(data, timeout_millis) is MetricExportResult.SUCCESS
        except Exception:
            _logger.exception("the inner exporter failed")
            return False

    def _tray(self, resource_metrics: ResourceMetrics) -> Tray:
        """Find the tray of a resource, by identity first: hashing a Resource serialises it."""
        resource = resource_metrics.resource
        tray = self._tray_by_identity.get(id(resource))
        if tray is not None and tray.meta.resource is resource:
            return tray
        tray = self._trays.get(resource)
        if tray is None:
            tray = self._trays[resource] = Tray(resource_metrics)
            self._tray_by_identity[id(resource)] = tray
        return tray

    def _tell(self, what: str, message: str, *values: object) -> None:
        if what not in self._told:
            self._told.add(what)
            _logger.warning(message, *values)

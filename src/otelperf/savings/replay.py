"""The series of one target through the gate itself, as an agent beside the target would have done it.

An export is what was read within one second, stamped with the samples' own times; the gate's clock stands at the newest. So
what an alert could have read at each moment is known: points carry their own times, and the times at which they arrived.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otelperf import catalog
from otelperf.gate.marks import is_mark
from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Policy, Rule
from otelperf.prometheus_text import label_name, metric_name
from otelperf.savings.score import Points
from otelperf.savings.streams import Stream

LOOKBACK = 300_000  # ms; a series that is silent for longer has ended: Prometheus' lookback

_MS = 1_000_000  # ns
_TICK = 1000  # ms; an agent's
_INFO_SPACING = LOOKBACK // 2  # ms; of target_info within a request
_CUMULATIVE = AggregationTemporality.CUMULATIVE
_SCOPE = InstrumentationScope("otelperf.savings")
_KINDS: Mapping[str, Any] = {"gauge": "hold", "counter": "trend", "histogram": "histogram"}

# Ours, by their names in Prometheus and by their own.
_OURS = {metric_name(each.name, each.unit, each.kind): each for each in catalog.METRICS} | catalog.BY_NAME
_ATTRIBUTES = {label_name(name): name for each in catalog.METRICS for name in each.rule.within}


class Kept(NamedTuple):
    """What one gate let out: points by stream, and how many samples of target_info its requests brought along."""

    points: Sequence[Points]
    target_info: int


class _Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now * _MS


class _Store(MetricExporter):
    """Keeps what arrives and when, as a TSDB would."""

    def __init__(self, clock: _Clock, numbers: Mapping[int, int]) -> None:
        super().__init__()
        self._clock = clock
        self._numbers = numbers  # of the streams, by the identity of their attributes, which the gate hands on
        self.points = [Points(array("q"), array("d"), array("q")) for _ in numbers]
        self.info: set[int] = set()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        earliest, latest = 0, 0
        for point in _points(metrics_data):
            time = point.time_unix_nano // _MS
            earliest, latest = min(earliest or time, time), max(latest, time)
            if is_mark(point):
                continue
            times, values, arrivals = self.points[self._numbers[id(point.attributes)]]
            times.append(time)  # type: ignore[attr-defined] # ours are arrays
            values.append(point.value if isinstance(point, NumberDataPoint) else point.count)  # type: ignore[attr-defined]
            arrivals.append(self._clock.now)  # type: ignore[attr-defined]
        # Prometheus writes target_info at a request's earliest and latest time, and between them at this spacing.
        self.info.update(range(earliest, latest, _INFO_SPACING), (latest,))
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass


def _points(data: MetricsData) -> Iterator[Any]:
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield from metric.data.data_points


def in_catalogue(metric: str) -> bool:
    """Say whether a series of this name follows a rule of the catalogue, whatever the delta."""
    return metric in _OURS


def policy(streams: Sequence[Stream], delta: float, window: float, heartbeat: float) -> Policy:
    """Return the rules: the catalogue's for what is ours, *delta* (a share) for all else."""
    rules = catalog.rules(heartbeat, window)
    rules |= {each.metric: Rule(_KINDS[each.kind], relative=delta) for each in streams if not in_catalogue(each.metric)}
    return Policy(rules)


def replay(
    streams: Sequence[Stream],
    deltas: Sequence[float],
    window: float,
    heartbeat: float,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Kept]:
    """Send the streams of one target through one gate for each delta, and return what each let out.

    *window* is the rate window in seconds, *heartbeat* the longest silence. *advance* is told the samples judged, once for all
    gates.
    """
    clock = _Clock()
    feed = _Feed(streams)
    stores = [_Store(clock, {id(attributes): n for n, attributes in enumerate(feed.attributes)}) for _ in deltas]
    gates = [
        DeltaGate(
            store,
            policy(streams, delta, window, heartbeat),
            clock,
            rate_window=window,
            heartbeat=heartbeat,
            gone_after=LOOKBACK / 1000,
            max_streams=len(streams) + 1,
        )
        for store, delta in zip(stores, deltas, strict=True)
    ]
    for now, data, samples in feed:
        if (
            clock.now and now - clock.now > LOOKBACK
        ):  # all were silent: they have ended, though nobody was there to see it
            clock.now += LOOKBACK + _TICK
            for gate in gates:
                gate.export(MetricsData([]))
        clock.now = max(now, clock.now)
        for gate in gates:
            gate.export(data)
        advance(samples)
    for gate in gates:
        gate.force_flush()
    return [Kept(store.points, len(store.info)) for store in stores]


class _Feed:
    """The exports of one target in the order of time: (Unix ms, data, samples in it)."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams
        self.attributes = [_attributes(stream) for stream in streams]
        job, instance = streams[0].target
        self._resource = Resource({"service.name": job, "service.instance.id": instance})

    def __iter__(self) -> Iterator[tuple[int, MetricsData, int]]:
        streams = self._streams
        position = [0] * len(streams)
        ends = [len(stream.times) for stream in streams]
        instants = sorted(set().union(*(stream.times for stream in streams)))
        at = 0
        while at < len(instants):
            begin = instants[at]
            read: list[int] = []
            newest = begin
            next_begin = begin + _TICK
            for number, stream in enumerate(streams):
                index = position[number]
                if index < ends[number] and (time := stream.times[index]) < begin + _TICK:
                    read.append(number)
                    newest = max(newest, time)
                    position[number] = index + 1
                    if index + 1 < ends[number]:  # read twice within the second: another export
                        next_begin = min(next_begin, stream.times[index + 1])
            yield newest, self._data(read, position), sum(streams[number].cost for number in read)
            while at < len(instants) and instants[at] < next_begin:
                at += 1

    def _data(self, read: Sequence[int], position: Sequence[int]) -> MetricsData:
        points: dict[tuple[str, str], list[Any]] = {}
        for number in read:
            stream = self._streams[number]
            point = _point(stream, position[number] - 1, self.attributes[number])
            points.setdefault((stream.metric, stream.kind), []).append(point)
        metrics = [_metric(name, kind, found) for (name, kind), found in points.items()]
        return MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(_SCOPE, metrics, "")], "")])


def _attributes(stream: Stream) -> dict[str, str]:
    """Return a dictionary of its own for each stream; ours get their attributes' own names back, by which groups go."""
    labels = {name: value for name, value in stream.labels.items() if name not in {"job", "instance"}}
    if in_catalogue(stream.metric):
        return {_ATTRIBUTES.get(name, name): value for name, value in labels.items()}
    return labels


def _point(stream: Stream, index: int, attributes: Mapping[str, str]) -> NumberDataPoint | HistogramDataPoint:
    time = stream.times[index] * _MS
    if stream.kind != "histogram":
        return NumberDataPoint(attributes, 0, time, stream.values[index])
    counts: Any = stream.counts(index)  # whole numbers, as floats: Prometheus knows no others
    count: Any = stream.values[index]
    total = stream.sums[index] if stream.sums is not None else 0.0
    return HistogramDataPoint(attributes, 0, time, count, total, counts, stream.bounds, 0.0, 0.0)


def _metric(name: str, kind: str, points: Sequence[Any]) -> Metric:
    data: Gauge | Sum | Histogram
    if kind == "gauge":
        data = Gauge(points)
    elif kind == "counter":
        data = Sum(points, _CUMULATIVE, is_monotonic=True)
    else:
        data = Histogram(points, _CUMULATIVE)
    ours = _OURS.get(name)
    return Metric(ours.name if ours else name, "", "", data)


def scraped(times: Sequence[int], interval: float) -> list[int] | None:
    """Return the indices of the samples that a scrape each *interval* s would have read; None if that is all of them.

    The samples themselves stand for scrapes: the first at or after each moment of the grid, which begins with the first
    sample. None where the interval is not coarser than the data (by more than a tenth: scrapes are never quite regular).
    """
    if interval * 1000 <= spacing(times) * 1.1:
        return None
    kept, due = [], float("-inf")
    step = interval * 1000
    for index, time in enumerate(times):
        if time >= due:
            kept.append(index)
            due = time + step if due == float("-inf") else due + step * ceil((time - due + 1) / step)
    return kept


def spacing(times: Sequence[int]) -> float:
    """Return the median time between two samples in ms; 0 with fewer than two."""
    gaps = sorted(after - before for before, after in pairwise(times))
    return float(gaps[len(gaps) // 2]) if gaps else 0.0

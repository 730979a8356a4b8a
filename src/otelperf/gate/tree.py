"""What the gate remembers, as a tree: resource, scope, family (a metric), stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otelperf.gate.marks import DataPoint
from otelperf.gate.stream import Group, Stream


class Waiting(NamedTuple):
    """A point that waits to go. *stream* is None for one that was not gated."""

    family: Family
    point: DataPoint
    stream: Stream | None
    last: Literal[
        "", "end", "total"
    ]  # what no later export would bring again: a mark, its total; a total before a reset


class Tray:
    """A resource, its scopes, and the points that wait to go."""

    __slots__ = ("listed", "meta", "oldest", "present", "scopes", "size", "urgent", "waiting")

    def __init__(self, meta: ResourceMetrics) -> None:
        self.meta = replace(meta, scope_metrics=())
        self.listed = 0  # when an export last had it
        self.present = 0  # how many of its streams that export had
        self.scopes: dict[InstrumentationScope, Scope] = {}
        self.size = 0  # of streams
        self.waiting: list[Waiting] = []
        self.oldest = 0
        self.urgent = False

    def scope(self, meta: ScopeMetrics) -> Scope:
        """Return the scope, made if it is new."""
        found = self.scopes.get(meta.scope)
        if found is None:
            found = self.scopes[meta.scope] = Scope(self, meta)
        return found

    def keep_total(self, stream: Stream) -> None:
        """The counter ends or begins anew: if its last total still waits, it must not be lost with a request."""
        for place in range(len(self.waiting) - 1, -1, -1):
            if self.waiting[place].stream is stream:
                self.waiting[place] = self.waiting[place]._replace(last="total")
                return

    def streams(self) -> Iterator[Stream]:
        """Yield every stream of the resource."""
        for scope in self.scopes.values():
            for family in scope.families.values():
                yield from family.streams.values()


class Scope:
    """An instrumentation scope of a resource."""

    __slots__ = ("families", "groups", "meta", "tray")

    def __init__(self, tray: Tray, meta: ScopeMetrics) -> None:
        self.tray = tray
        self.meta = replace(meta, metrics=())
        self.families: dict[tuple[str, str], Family] = {}
        self.groups: dict[tuple[str, frozenset[Any]], Group] = {}

    def family(self, metric: Metric, shape: str) -> Family:
        """Return the family, made if it is new."""
        found = self.families.get((metric.name, shape))
        if found is None:
            found = self.families[(metric.name, shape)] = Family(self, metric, shape)
        return found

    def prune(self, family: Family) -> None:
        """Forget the family if it has no streams left, and the scope with its last family."""
        if not family.streams:
            self.families.pop((family.meta.name, family.shape), None)
        if not self.families:
            self.tray.scopes.pop(self.meta.scope, None)


class Family:
    """A metric of a scope, and its streams."""

    __slots__ = ("by_identity", "meta", "scope", "shape", "streams")

    def __init__(self, scope: Scope, meta: Metric, shape: str) -> None:
        self.scope = scope
        self.meta = with_points(meta, [])  # else the first snapshot would live for ever
        self.shape = shape
        self.streams: dict[frozenset[Any], Stream] = {}
        self.by_identity: dict[int, Stream] = {}

    def find(self, attributes: Any) -> Stream | None:
        """Look a stream up, first by the identity of its attribute mapping: most callers hand out the same one each time."""
        stream = self.by_identity.get(id(attributes))
        if stream is not None:
            return stream
        stream = self.streams.get(key(attributes))
        if stream is not None:
            self.by_identity.pop(id(stream.attributes), None)
            stream.attributes = attributes  # kept alive, or another mapping could come to have its id
            self.by_identity[id(attributes)] = stream
        return stream

    def add(self, stream: Stream) -> None:
        """Remember a stream, and put it into its group."""
        stream.family = self
        rule = stream.rule
        if rule.group:
            shared = frozenset((k, v) for k, v in key(stream.attributes) if k not in rule.within)
            groups = self.scope.groups
            stream.group = groups.setdefault((rule.group, shared), Group((rule.group, shared)))
            stream.group.size += 1
        self.streams[key(stream.attributes)] = stream
        self.by_identity[id(stream.attributes)] = stream
        self.scope.tray.size += 1

    def remove(self, stream: Stream) -> None:
        """Forget a stream, and with it what it was the last of."""
        group = stream.group
        if group is not None:
            group.size -= 1
            if not group.size:
                self.scope.groups.pop(group.key, None)
        del self.streams[key(stream.attributes)]
        self.by_identity.pop(id(stream.attributes), None)
        self.scope.tray.size -= 1
        self.scope.prune(self)

    def identity(self, stream: Stream) -> tuple[Any, ...]:
        """Return what makes the stream itself, in this process and the next."""
        scope = self.scope
        return scope.tray.meta.resource, scope.meta.scope, self.meta.name, self.shape, key(stream.attributes)


def shape_of(metric: Metric) -> str | None:
    """Name the data type; None for what cannot be gated."""
    data = metric.data
    if isinstance(data, Gauge):
        return "gauge"
    if data.aggregation_temporality is not AggregationTemporality.CUMULATIVE:
        return None
    if isinstance(data, Sum):
        # A counter may have to go as a sum that is not called monotonic, for its name's sake: it says so by ``counts_up``.
        return "monotonic" if data.is_monotonic or getattr(data, "counts_up", False) else "sum"
    return "histogram" if isinstance(data, Histogram) else "exponential"


def key(attributes: Any) -> frozenset[Any]:
    """Return what makes an attribute set itself, whatever its order."""
    if not attributes:
        return frozenset()
    try:
        items = frozenset(attributes.items())
    except TypeError:  # a list, or a mapping
        return frozenset((k, _hashable(v)) for k, v in attributes.items())
    if (
        True in attributes.values() or False in attributes.values()
    ):  # for Python they equal 1 and 0; not once they are stored
        return frozenset((k, repr(v) if isinstance(v, bool) else v) for k, v in items)
    return items


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def one_each(waiting: list[Waiting]) -> list[list[Waiting]]:
    """Split into requests of which none holds two points of one stream, in order."""
    requests: list[list[Waiting]] = []
    count: Counter[tuple[Any, ...]] = Counter()
    for item in waiting:
        whose = item.family.identity(item.stream) if item.stream is not None else (id(item),)
        if count[whose] == len(requests):
            requests.append([])
        requests[count[whose]].append(item)
        count[whose] += 1
    return requests


def infos(waiting: list[Waiting]) -> int:
    """Return how many samples of ``target_info`` Prometheus adds: one for each resource at its earliest time and at its latest."""
    times: dict[int, set[int]] = {}
    for item in waiting:
        times.setdefault(id(item.family.scope.tray), set()).add(item.point.time_unix_nano)
    return sum(min(2, len(each)) for each in times.values())


_Families = dict[tuple[str, str], tuple["Family", list[DataPoint]]]


def metrics_data(waiting: list[Waiting]) -> MetricsData:
    """Build a request: one entry a resource, a scope and a metric, points in the order in which they were let out."""
    tree: dict[int, tuple[Tray, dict[InstrumentationScope, tuple[Scope, _Families]]]] = {}
    for family, point, _, _ in waiting:
        scope = family.scope
        _, scopes = tree.setdefault(id(scope.tray), (scope.tray, {}))
        _, families = scopes.setdefault(scope.meta.scope, (scope, {}))
        families.setdefault((family.meta.name, family.shape), (family, []))[1].append(point)
    return MetricsData(
        [
            replace(tray.meta, scope_metrics=[_scope_metrics(*entry) for entry in scopes.values()])
            for tray, scopes in tree.values()
        ]
    )


def _scope_metrics(scope: Scope, families: _Families) -> ScopeMetrics:
    return replace(scope.meta, metrics=[with_points(family.meta, points) for family, points in families.values()])


def with_points(meta: Metric, points: list[Any]) -> Metric:
    """Return the metric with other points."""
    data = meta.data
    new: Gauge | Sum | Histogram | ExponentialHistogram
    if isinstance(data, Gauge):
        new = Gauge(points)
    elif isinstance(data, Sum):
        new = Sum(points, data.aggregation_temporality, data.is_monotonic)
    else:
        new = type(data)(points, data.aggregation_temporality)
    return Metric(meta.name, meta.description, meta.unit, new)

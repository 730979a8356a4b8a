"""Arbitrary series: what was read of them, what the gate let out, and what arrived.

A ``Story`` plays steps against a gate and writes down both sides; the promises are predicates over it. A reading carries a
tag, which stays with the point through the gate: so an arrival is known for the very reading that it is, whatever
became of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import Any, NamedTuple

import hypothesis
from hypothesis import settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
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

from otelperf.gate.marks import DataPoint, is_mark
from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Override, Policy, Rule
from tests.gate.world import CUMULATIVE, DELTA, MS, SECOND, START

RESOURCES = (Resource({"service.name": "a"}), Resource({"service.name": "b"}))
COMPLETE, FOREIGN = InstrumentationScope("complete"), InstrumentationScope("foreign")
SCOPES = (COMPLETE, FOREIGN)
LAYOUTS = ((1.0, 2.0, 4.0, 8.0), (1.0, 3.0, 4.0, 9.0), (5.0, 10.0))
RESTART = SECOND  # a start time that moves by more is a reset

Key = tuple[int, str, str, frozenset[Any]]  # resource, scope, metric, attributes


class Series(NamedTuple):
    """A stream to be: its metric, whether gauge, updown, counter, histogram, exponential or delta, and where it is at home."""

    name: str = "m"
    shape: str = "gauge"
    resource: int = 0
    scope: int = 0
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> Key:
        return self.resource, SCOPES[self.scope].name, self.name, frozenset(self.attributes)


class Act(NamedTuple):
    """What a series does in a step.

    *value* is what a gauge shows and a counter gains; a negative one lets a counter begin anew. *off*: how far the time
    of the reading is from the gate's. *repeat*: the last reading at its old time. *restart*: a later start time.
    """

    value: Any = 0
    off: int = 0
    repeat: bool = False
    restart: bool = False
    exemplars: int = 0


class Step(NamedTuple):
    """One export: how far the clock moves before it, what each series does (None: it is absent), and what happens."""

    gap: int
    acts: tuple[Act | None, ...]
    event: str = (
        ""  # fail, second (the second request fails), raise, outage, lost (stored, but told as failed), forget, flush
    )


@dataclass(frozen=True)
class NumberReading(NumberDataPoint):
    tag: int = -1


@dataclass(frozen=True)
class HistogramReading(HistogramDataPoint):
    tag: int = -1


@dataclass(frozen=True)
class ExponentialReading(ExponentialHistogramDataPoint):
    tag: int = -1


class Reading(NamedTuple):
    """What was read; not *fresh* if it only repeats the last one, at its old time."""

    tag: int
    export: int
    now: int
    key: Key
    point: Any
    fresh: bool


class Sent(NamedTuple):
    """A point that was handed to the exporter; *stored* if it arrived, *told* if the gate was told so."""

    export: int
    now: int
    request: int
    key: Key
    point: Any
    stored: bool
    told: bool

    @property
    def tag(self) -> int:
        """The reading that it is; -1 for a mark, and for an earlier one, which the gate makes anew."""
        return getattr(self.point, "tag", -1)

    @property
    def mark(self) -> bool:
        return is_mark(self.point)

    @property
    def earlier(self) -> bool:
        """Whether it is an earlier reading of a counter, sent later than it was read."""
        return self.tag < 0 and not self.mark


@dataclass
class _Source:
    series: Series
    total: Any = 0
    counts: list[int] = field(default_factory=list)
    layout: int = 0
    start: int = START
    last: Any = None
    shown: int = 0  # in which export

    def read(self, act: Act, now: int, tag: int, export: int) -> Any:
        if act.repeat and self.last is not None and self.shown == export - 1:
            self.shown = export  # a source that is not due
            return self.last
        time, shape = now + act.off, self.series.shape
        if self.last is not None and self.shown < export - 1 and time == self.last.time_unix_nano:
            time += 1  # it may have ended in between: then it would be new, and else a repetition
        self.shown = export
        if act.restart:
            self.start = time
        attributes = dict(self.series.attributes)
        exemplars = [
            Exemplar({}, float(i), time - (i * 7919 + tag) % 97, span_id=tag, trace_id=i) for i in range(act.exemplars)
        ]
        if shape in {"gauge", "updown"}:
            self.last = NumberReading(attributes, 0, time, act.value, exemplars, tag)
        elif shape == "delta":
            self.last = NumberReading(attributes, max(0, time - SECOND), time, act.value, exemplars, tag)
        elif shape == "counter":
            shown = self._count(act.value)
            self.last = NumberReading(attributes, self.start, time, shown, exemplars, tag)
        else:
            self.last = self._histogram(act, attributes, time, exemplars, tag)
        return self.last

    def _count(self, gain: Any) -> Any:
        if not isfinite(gain):
            return gain
        self.total = self.total + gain if gain >= 0 else -gain
        return self.total

    def _histogram(self, act: Act, attributes: dict[str, Any], time: int, exemplars: list[Any], tag: int) -> Any:
        gain, exponential = act.value, self.series.shape == "exponential"
        if not isfinite(gain):
            self.layout, gain = (self.layout + 1) % len(LAYOUTS), 0  # another layout of the same observations
        size = len(LAYOUTS[self.layout]) + 1
        bucket, gain = abs(int(gain)) % size, abs(int(gain)) % 1000 if gain >= 0 else -1
        if len(self.counts) != size:
            self.counts = [sum(self.counts), *[0] * (size - 1)]
        if gain < 0:
            self.counts = [0] * size
            self.counts[bucket] = 1
        else:
            self.counts[bucket] += gain
        count, total = sum(self.counts), float(sum(c * i for i, c in enumerate(self.counts)))
        if exponential:
            buckets, none = Buckets(1, tuple(self.counts)), Buckets(0, ())
            return ExponentialReading(
                attributes,
                self.start,
                time,
                count,
                total,
                3 - self.layout,
                0,
                buckets,
                none,
                0,
                0.0,
                9.0,
                exemplars,
                tag,
            )
        return HistogramReading(
            attributes,
            self.start,
            time,
            count,
            total,
            tuple(self.counts),
            LAYOUTS[self.layout],
            0.0,
            9.0,
            exemplars,
            tag,
        )


class _Witness(MetricExporter):
    """Writes down what it is handed, and answers as told."""

    flags_marks = True

    def __init__(self, story: Story) -> None:
        super().__init__()
        self.story = story
        self.answers: list[str] = []
        self.outage = False
        self.requests: list[MetricsData] = []

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        answer = self.answers.pop(0) if self.answers else ""
        if self.outage:
            answer = "fail"
        stored, told = answer in {"", "lost"}, not answer
        self.requests.append(metrics_data)
        story = self.story
        for key, point in points(metrics_data):
            story.sent.append(Sent(story.exports, story.now, len(self.requests), key, point, stored, told))
        if answer == "raise":
            raise OSError("the network is down")
        return MetricExportResult.SUCCESS if told else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass


def points(request: MetricsData) -> Iterator[tuple[Key, DataPoint]]:
    """Yield each point of a request with the stream that it is of."""
    for resource in request.resource_metrics:
        number = RESOURCES.index(resource.resource)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    attributes = frozenset((point.attributes or {}).items())
                    yield (number, scope.scope.name, metric.name, attributes), point


class Story:
    """A gate, the series in front of it, and all that happened."""

    def __init__(
        self,
        series: Sequence[Series],
        rules: Mapping[str, Rule],
        overrides: Sequence[Override] = (),
        **options: Any,
    ) -> None:
        self.now = START
        self.exports = 0
        self.series = tuple(series)
        self.readings: list[Reading] = []
        self.sent: list[Sent] = []
        self.reasons: list[tuple[int, str, str, int]] = []  # export, metric, reason, tag
        self.times: dict[int, int] = {}  # when each export was, by the gate's clock
        self.listed: dict[int, set[Key]] = {}
        self.sources = [_Source(s) for s in self.series]
        self.options = options
        self.played: list[Step] = []
        self.policy = Policy(rules, overrides)
        self.witness = _Witness(self)
        self.gate = DeltaGate(self.witness, self.policy, lambda: self.now, observe=self._observe, **options)

    def __repr__(self) -> str:
        """What a counter-example needs to be played again."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"Story({list(self.series)!r}, RULES, {options}).play({self.played!r})"

    def _observe(self, emission: Any) -> None:
        self.reasons.append((self.exports, emission.name, emission.reason, getattr(emission.new, "tag", -1)))

    def play(self, steps: Sequence[Step]) -> Story:
        for step in steps:
            self.step(step)
        return self

    def step(self, step: Step) -> None:
        self.played.append(step)
        self.now += step.gap
        self.exports += 1
        self.times[self.exports] = self.now
        witness = self.witness
        witness.answers = {"fail": ["fail"], "second": ["", "fail"], "raise": ["raise"], "lost": ["lost"]}.get(
            step.event, []
        )
        witness.outage = step.event == "outage"
        if step.event == "forget":
            self.gate.forget()
        self.gate.export(self._look(step))
        if step.event == "flush":
            self.gate.force_flush()
        witness.answers, witness.outage = [], False

    def _look(self, step: Step) -> MetricsData:
        tree: dict[int, dict[int, dict[tuple[str, str], list[Any]]]] = {}
        listed = self.listed[self.exports] = set()
        for source, act in zip(self.sources, step.acts, strict=False):
            if act is None:
                continue
            series = source.series
            before = source.last
            point = source.read(act, self.now, len(self.readings), self.exports)
            fresh = before is None or point.time_unix_nano != before.time_unix_nano
            self.readings.append(Reading(len(self.readings), self.exports, self.now, series.key, point, fresh))
            listed.add(series.key)
            metrics = tree.setdefault(series.resource, {}).setdefault(series.scope, {})
            metrics.setdefault((series.name, series.shape), []).append(point)
        return MetricsData(
            [
                ResourceMetrics(
                    RESOURCES[resource],
                    [
                        ScopeMetrics(SCOPES[scope], [_metric(*what, found) for what, found in metrics.items()], "")
                        for scope, metrics in scopes.items()
                    ],
                    "",
                )
                for resource, scopes in tree.items()
            ]
        )

    def end(self) -> Story:
        """Shut the gate down while the network is well."""
        self.now += 1
        self.exports += 1
        self.times[self.exports] = self.now
        self.gate.shutdown()
        return self

    # -- what people ask of a story

    def streams(self) -> list[Key]:
        return list(dict.fromkeys(series.key for series in self.series))

    def read(self, key: Key) -> list[Reading]:
        """Return what was newly read of a stream."""
        return [r for r in self.readings if r.key == key and r.fresh]

    def arrived(self, key: Key) -> list[Sent]:
        """Return what was stored of a stream, as it came in."""
        return [s for s in self.sent if s.key == key and s.stored]

    def broken(self, key: Key) -> list[tuple[int, int]]:
        """Return the tags between which a failed request broke the promise: from what it lost to the next reading."""
        found = []
        tags = [(r.tag, r.export) for r in self.read(key)]
        for sent in self.sent:
            if sent.key == key and not sent.told and not sent.mark:
                healed = next((tag for tag, export in tags if export > sent.export), len(self.readings))
                lost = max(sent.tag, 0)
                found.append((lost, healed))
        return found


def _metric(name: str, shape: str, found: list[Any]) -> Metric:
    data: Any
    if shape == "gauge":
        data = Gauge(found)
    elif shape == "histogram":
        data = Histogram(found, CUMULATIVE)
    elif shape == "exponential":
        data = ExponentialHistogram(found, CUMULATIVE)
    else:
        data = Sum(found, DELTA if shape == "delta" else CUMULATIVE, is_monotonic=shape != "updown")
    return Metric(name, "", "1", data)


# What may happen

# Heartbeats of seconds: a story of twenty steps sees some.
FAST: dict[str, Any] = {"heartbeat": 5.0, "rate_window": 12.0, "histogram_interval": 3.0}

SMALL = [0, 1, 2, 3, 2.9, 3.1, 5, -4, 0.5, -0.0]
ODD = [nan, inf, -inf, 1e300, -1e300, 5e-324, 2**53 + 1, 2**62, -(2**62)]
VALUES = st.sampled_from([*SMALL, *ODD]) | st.integers(-5, 40) | st.floats()
GAINS = st.sampled_from([0, 0, 0, 1, 1, 2, 10, 100, 1000, -1, -3, 2.5, 2**53]) | st.integers(0, 30)
ODD_GAINS = GAINS | st.sampled_from([nan, inf, -inf, 1e300]) | st.floats(0, 1e6)
STATES = st.sampled_from([0, 1, 1, 2, nan])

SECONDS = st.sampled_from([SECOND] * 6 + [SECOND // 2, 3 * SECOND])
IRREGULAR = SECONDS | st.sampled_from([MS, 7 * SECOND, 12 * SECOND, 40 * SECOND, 130 * SECOND])
ANY_GAP = IRREGULAR | st.sampled_from([0, 1, MS // 2, -SECOND, -90 * SECOND, 3600 * SECOND])
OFFSETS = st.sampled_from([0, 0, 0, 0, 1, MS // 2, -MS, -SECOND, -3600 * SECOND, 3600 * SECOND])

NO_EVENT = st.just("")
EVENTS = st.sampled_from([""] * 8 + ["fail", "fail", "second", "raise", "outage", "forget", "flush"])


def acts(values: st.SearchStrategy[Any], *, offsets: bool = False, restarts: bool = False) -> st.SearchStrategy[Act]:
    """What one series may do."""
    plain = values.map(Act)
    found = [plain, plain, plain, plain, st.just(Act(repeat=True))]
    if offsets:
        found.append(st.tuples(values, OFFSETS).map(lambda drawn: Act(*drawn)))
    if restarts:
        found.append(values.map(lambda value: Act(value, restart=True)))
    return st.one_of(found)


def steps(
    *series: st.SearchStrategy[Any],
    gaps: st.SearchStrategy[int] = SECONDS,
    events: st.SearchStrategy[str] = NO_EVENT,
    most: int = 25,
) -> st.SearchStrategy[list[Step]]:
    """Return steps of as many series as are given, each by what it may do."""
    return st.lists(st.builds(Step, gaps, st.tuples(*series), events), min_size=3, max_size=most)


def absent(series: st.SearchStrategy[Act]) -> st.SearchStrategy[Act | None]:
    """A series that comes and goes."""
    return st.one_of(series, series, st.none())


def given(
    *strategies: st.SearchStrategy[Any], long: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hypothesis' own, with fewer examples, for stories take their time: all of them in the nightly run, a fifth of *long* ones."""
    most = settings().max_examples
    fewer = most if most >= 1000 else most * 3 // 20
    return lambda test: settings(max_examples=max(10, fewer // 5 if long else fewer))(
        hypothesis.given(*strategies)(test)
    )


def same(one: Any, other: Any) -> bool:
    """Equal, NaN included."""
    return bool(one == other or (one != one and other != other))

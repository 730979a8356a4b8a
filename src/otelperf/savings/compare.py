"""Each way to store the same series, counted and scored, by metric and in all."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from otelperf.errors import OtelperfError
from otelperf.savings.replay import LOOKBACK, in_catalogue, replay, scraped, spacing
from otelperf.savings.score import Errors, Points, difference, held, rates, typical
from otelperf.savings.streams import Kind, Stream, Target


class Way(NamedTuple):
    """A way to store: through a gate with a *delta* (a share), or by a scrape each *interval* s."""

    delta: float | None = None
    interval: float | None = None


class Options(NamedTuple):
    """How to compare. *window* is that of ``rate()``, *heartbeat* the gate's longest silence, both in s."""

    deltas: tuple[float, ...]
    intervals: tuple[float, ...]
    window: float
    heartbeat: float

    @property
    def ways(self) -> tuple[Way, ...]:
        """All ways, in the order in which they are shown."""
        return (*(Way(delta=delta) for delta in self.deltas), *(Way(interval=interval) for interval in self.intervals))


@dataclass(slots=True)
class Tally:
    """What one way keeps, and how far off it is.

    *held*: gauges, the value at each instant of the data, once all is stored; *live*: the same from what had arrived by then.
    *rates*: of counters, live; *histograms*: of their counts. *unanswered* rates had too few points. *all_kept*: no sample is left
    out.
    """

    samples: int = 0
    held: Errors = field(default_factory=Errors)
    live: Errors = field(default_factory=Errors)
    rates: Errors = field(default_factory=Errors)
    histograms: Errors = field(default_factory=Errors)
    unanswered: int = 0
    all_kept: bool = True

    def merge(self, other: Tally) -> None:
        """Add what another says of other series."""
        self.samples += other.samples
        self.held.merge(other.held)
        self.live.merge(other.live)
        self.rates.merge(other.rates)
        self.histograms.merge(other.histograms)
        self.unanswered += other.unanswered
        self.all_kept = self.all_kept and other.all_kept


@dataclass(slots=True)
class Metric:
    """One metric: *series* and *samples* as a TSDB counts them, *intervals* (ms) of its streams, a tally for each way."""

    name: str
    kind: Kind
    known: bool
    catalogue: bool
    series: int = 0
    samples: int = 0
    intervals: list[float] = field(default_factory=list)
    tallies: dict[Way, Tally] = field(default_factory=dict)


@dataclass(slots=True)
class Comparison:
    """The whole. *start* and *end* (Unix ms) are those of the data; *target_info* counts samples that come with requests."""

    metrics: list[Metric] = field(default_factory=list)
    targets: int = 0
    start: int = 0
    end: int = 0
    interval: float = 0.0
    target_info: dict[Way, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples in the data."""
        return sum(metric.samples for metric in self.metrics)

    @property
    def series(self) -> int:
        """Series in the data."""
        return sum(metric.series for metric in self.metrics)

    @property
    def seconds(self) -> float:
        """How long the data are, the last sample's interval included."""
        return (self.end - self.start + self.interval) / 1000

    def total(self, way: Way) -> Tally:
        """Sum one way up, target_info included."""
        tally = Tally(samples=self.target_info.get(way, 0))
        for metric in self.metrics:
            tally.merge(metric.tallies[way])
        return tally


def compare(streams: Sequence[Stream], options: Options, advance: Callable[[int], None] = lambda _: None) -> Comparison:
    """Replay and score all streams, target by target. *advance* is told the samples that are done."""
    targets: dict[Target, list[Stream]] = {}
    for stream in streams:
        targets.setdefault(stream.target, []).append(stream)
    metrics: dict[tuple[str, Kind], Metric] = {}
    comparison = Comparison(targets=len(targets), target_info=dict.fromkeys((Way(d) for d in options.deltas), 0))
    for members in targets.values():
        kept = replay(members, options.deltas, options.window, options.heartbeat, advance)
        for way, one in zip((Way(delta) for delta in options.deltas), kept, strict=True):
            comparison.target_info[way] += one.target_info
        for number, stream in enumerate(members):
            points = {Way(delta): one.points[number] for delta, one in zip(options.deltas, kept, strict=True)}
            metric = metrics.setdefault((stream.metric, stream.kind), _metric(stream, options))
            metric.known = metric.known and stream.known
            _add(metric, stream, points, options)
            advance(len(stream.times) * stream.cost)
    comparison.metrics = sorted(metrics.values(), key=lambda metric: (-metric.samples, metric.name))
    comparison.start = min(stream.times[0] for stream in streams)
    comparison.end = max(stream.times[-1] for stream in streams)
    if comparison.start == comparison.end:
        raise OtelperfError("all samples are of one moment: there is nothing to compare")
    comparison.interval = _middle(spacing(stream.times) for stream in streams)
    return comparison


def _metric(stream: Stream, options: Options) -> Metric:
    tallies = {way: Tally() for way in options.ways}
    return Metric(stream.metric, stream.kind, stream.known, in_catalogue(stream.metric), tallies=tallies)


def _middle(numbers: Iterable[float]) -> float:
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2]


def _add(metric: Metric, stream: Stream, gated: Mapping[Way, Points], options: Options) -> None:
    metric.series += stream.cost
    metric.samples += len(stream.times) * stream.cost
    metric.intervals.append(spacing(stream.times))
    judge = _Gauge(stream) if stream.kind == "gauge" else _Counter(stream, options.window)
    for way in options.ways:
        tally = metric.tallies[way]
        if way.interval is None:
            points: Points | None = gated[way]
            tally.all_kept = False
        else:
            points = _scrape(stream, way.interval)
        if points is None:
            tally.samples += len(stream.times) * stream.cost
            judge.right(tally)
        else:
            tally.all_kept = False
            tally.samples += len(points.times) * stream.cost
            judge.score(points, tally)


def _scrape(stream: Stream, interval: float) -> Points | None:
    kept = scraped(stream.times, interval)
    if kept is None:
        return None
    times = array("q", (stream.times[index] for index in kept))
    return Points(times, array("d", (stream.values[index] for index in kept)), times)


class _Gauge:
    """Scores the value that is held against the true one at each instant of the data."""

    def __init__(self, stream: Stream) -> None:
        self._times = stream.times
        self._values = stream.values
        self._typical = typical(stream.values)

    def right(self, tally: Tally) -> None:
        tally.held.add(0.0, len(self._times))
        tally.live.add(0.0, len(self._times))

    def score(self, points: Points, tally: Tally) -> None:
        self._score(held(points, self._times), tally.held)
        if points.arrivals is points.times:
            self._score(held(points, self._times), tally.live)
        else:
            self._score(held(points, self._times, live=True), tally.live)

    def _score(self, read: Iterable[float | None], errors: Errors) -> None:
        for value, true in zip(read, self._values, strict=True):
            errors.add(difference(value, true, self._typical))


class _Counter:
    """Scores the rate that an alert would read against that of all data, from one window after a beginning on.

    Before that every rate is a guess, of the dense data as well.
    """

    def __init__(self, stream: Stream, window: float) -> None:
        self._window = round(window * 1000)
        self._histogram = stream.kind == "histogram"
        times = stream.times
        self._instants = array("q")
        begin, before = times[0], times[0]
        for time in times:
            if time - before > LOOKBACK:
                begin = time
            before = time
            if time - begin >= self._window:
                self._instants.append(time)
        dense = Points(times, stream.values, times)
        # Data too sparse for the window have no rate to compare with.
        answered = [
            (t, r)
            for t, r in zip(self._instants, rates(dense, self._instants, self._window), strict=True)
            if r is not None
        ]
        self._instants = array("q", (time for time, _ in answered))
        self._rates = array("d", (rate for _, rate in answered))
        self._typical = typical(self._rates)

    def right(self, tally: Tally) -> None:
        self._errors(tally).add(0.0, len(self._instants))

    def score(self, points: Points, tally: Tally) -> None:
        errors = self._errors(tally)
        for read, true in zip(rates(points, self._instants, self._window), self._rates, strict=True):
            tally.unanswered += read is None
            errors.add(difference(read, true, self._typical))

    def _errors(self, tally: Tally) -> Errors:
        return tally.histograms if self._histogram else tally.rates

"""How far a way's answers are from those of dense data, by class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.fidelity.answers import LATER, Answers
from benchmarks.fidelity.inputs import BURSTY, CLASSES, GAUGES, HISTOGRAMS, STATES, STEADY, Input, Series
from benchmarks.fidelity.promql import MEDIAN, P95, RATE_2M, VALUE, WINDOWS
from benchmarks.fidelity.ways import Way
from otelperf.gate.trend import Window, watch

_RATE_WINDOW = 120 * 10**9  # ns, DeltaGate's own
_ROUNDING = 1e-9
FLOOR = 0.01  # of a series' largest dense rate: below it, an error is set against the floor

# The error by which a class is placed on the front: the question, and what is plotted.
HEADLINE = {
    GAUGES: "range",
    STATES: VALUE,
    STEADY: RATE_2M,
    BURSTY: RATE_2M,
    HISTOGRAMS: "quantile",
}


@dataclass
class Errors:
    """Errors at all instants at which both dense and the way have an answer; *missing*: where only dense has one."""

    errors: list[float] = field(default_factory=list)
    missing: int = 0

    def percentile(self, share: float) -> float:
        """Return the value that *share* of the errors do not exceed (nearest rank); NaN without any."""
        if not self.errors:
            return math.nan
        ranked = sorted(self.errors)
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors, default=math.nan)

    def above(self, limit: float) -> float:
        """Return the share of errors above a limit."""
        return sum(error > limit for error in self.errors) / len(self.errors) if self.errors else math.nan

    @property
    def no_answer(self) -> float:
        """The share of the instants with a dense answer at which the way has none."""
        asked = len(self.errors) + self.missing
        return self.missing / asked if asked else math.nan


@dataclass
class Score:
    """One class of one way. *samples* as stored, *errors* by question."""

    series: int
    samples: float = 0.0
    errors: dict[str, Errors] = field(default_factory=dict)
    transitions: tuple[int, int] = (0, 0)  # of states: stored, of all

    def of(self, question: str) -> Errors:
        """Return the errors of a question."""
        return self.errors.setdefault(question, Errors())


def score(recording: Input, dense: Answers, runs: Sequence[tuple[Way, Answers]]) -> dict[str, Score]:
    """Score the runs of a way (the phases of an interval) together; samples are their mean."""
    scores = {name: Score(len(recording.classes[name])) for name in CLASSES if name in recording.classes}
    for way, answers in runs:
        stored = samples_by_series(recording, way)
        for name, numbers in recording.classes.items():
            scores[name].samples += sum(stored[number] for number in numbers) / len(runs)
            if name == STATES:
                kept, all_of_them = (sum(pair) for pair in zip(*_transitions(recording, way, numbers), strict=True))
                before = scores[name].transitions
                scores[name].transitions = before[0] + kept, before[1] + all_of_them
        for number, question in dense.by_series:
            series = recording.series[number]
            truth, shown = dense.by_series[number, question], answers.by_series[number, question]
            _compare(scores[series.group], recording, number, question, truth, shown)
    return scores


def samples_by_series(recording: Input, way: Way) -> list[int]:
    """Return the samples stored of each series, stale marks among them."""
    points = Counter(point.series for point in way.points)
    return [points[number] * series.samples for number, series in enumerate(recording.series)]


def _transitions(recording: Input, way: Way, numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return for each series how many of its changes were stored, and how many there were."""
    seen: dict[int, list[tuple[int, object]]] = {}
    for point in way.points:
        seen.setdefault(point.series, []).append((point.time, point.value))
    found = []
    for number in numbers:
        stored = [value for _, value in sorted(seen.get(number, ()), key=lambda pair: pair[0])]
        values = recording.series[number].values
        found.append((_changes(stored), _changes(values)))
    return found


def _changes(values: Sequence[object]) -> int:
    return sum(before != after for before, after in pairwise(values))


def _compare(
    into: Score,
    recording: Input,
    number: int,
    question: str,
    truth: Sequence[float | None],
    shown: Sequence[float | None],
) -> None:
    series = recording.series[number]
    if question in {VALUE, LATER} and series.group == GAUGES:
        low, high = (f([v for v in series.values if isinstance(v, int | float)]) for f in (min, max))
        suffix = "" if question == VALUE else " stored"
        limit = _limit(recording, series)
        _collect(into.of(f"bound{suffix}"), truth, shown, lambda true, way: _in_bounds(series, limit, true, way))
        _collect(into.of(f"range{suffix}"), truth, shown, lambda true, way: abs(way - true) / (high - low))
    elif question in {VALUE, LATER}:
        _collect(into.of(question), truth, shown, lambda true, way: float(way != true))
    elif question in WINDOWS:
        floor = rate_floor(series, WINDOWS[question], truth)
        _collect(into.of(question), truth, shown, lambda true, way: abs(way - true) / max(true, floor))
        if series.rule.kind == "trend":
            window = _watched(WINDOWS[question])
            _collect(into.of("rate bound"), truth, shown, lambda true, way: _in_tolerances(series, window, true, way))
    elif question in {MEDIAN, P95}:
        floor = FLOOR * max((value for value in truth if value is not None), default=0.0) or 1.0
        for name in (question, "quantile"):
            _collect(into.of(name), truth, shown, lambda true, way: abs(way - true) / max(abs(true), floor))


def rate_floor(series: Series, window: int, truth: Iterable[float | None]) -> float:
    """Return the rate below which an error is set against this rate: what the rule calls too small, or 1 % of the largest."""
    largest = max((value for value in truth if value is not None), default=0.0)
    return max(series.rule.delta / window, FLOOR * largest) or 1.0


def _collect(
    into: Errors,
    truth: Sequence[float | None],
    shown: Sequence[float | None],
    error: Callable[[float, float], float],
) -> None:
    for true, way in zip(truth, shown, strict=True):
        if true is not None and way is not None:
            into.errors.append(error(true, way))
        elif true is not None:
            into.missing += 1


def _limit(recording: Input, series: Series) -> float:
    share_of = [other for other in recording.series if other.name == series.rule.share_of]
    if not share_of:
        return 0.0
    value = share_of[0].values[0]  # no input has a limit that moves
    return series.rule.share * value if isinstance(value, int | float) else 0.0


def _in_bounds(series: Series, limit: float, true: float, way: float) -> float:
    """Return the error in units of the rule's bound; the last value shown is what the bound is a share of."""
    bound = max(series.rule.delta, series.rule.relative * abs(way), limit)
    error = abs(way - true)
    return error / bound if bound else (math.inf if error else 0.0)


def _watched(seconds: int) -> Window:
    return next(window for window in watch(_RATE_WINDOW).windows if window.length == seconds * 10**9)


def _in_tolerances(series: Series, window: Window, true: float, way: float) -> float:
    """Return the error of a rate in units of what the rule tolerates of it in that window."""
    seconds = window.length / 10**9
    tolerated = max(
        series.rule.delta * window.delta / seconds, series.rule.relative * window.relative * true, _ROUNDING * abs(true)
    )
    error = abs(way - true)
    return error / tolerated if tolerated else (math.inf if error else 0.0)


def ratios(recording: Input, dense: Answers, runs: Sequence[tuple[Way, Answers]]) -> dict[str, Errors]:
    """Return, for each ratio, the way's ratio as a multiple of the true one, at instants with traffic."""
    found: dict[str, Errors] = {}
    for ratio in recording.ratios:
        above, below = recording.chosen(*ratio.above), recording.chosen(*ratio.below)
        if not above or not below:
            continue
        floors = [_summed_floor(recording, dense, numbers) for numbers in (above, below)]
        into = found.setdefault(ratio.name, Errors())
        for _, answers in runs:
            for index in range(len(dense.instants)):
                true = [_summed(dense, numbers, index) for numbers in (above, below)]
                if any(value is None or value <= floor for value, floor in zip(true, floors, strict=True)):
                    continue
                way = [_summed(answers, numbers, index) for numbers in (above, below)]
                if way[0] is None or not way[1]:
                    into.missing += 1
                else:
                    into.errors.append(way[0] / way[1] / (true[0] / true[1]))  # type: ignore[operator] # None was passed over
    return found


def _summed(answers: Answers, numbers: Sequence[int], index: int) -> float | None:
    values = [answers.by_series[number, RATE_2M][index] for number in numbers if (number, RATE_2M) in answers.by_series]
    return None if not values or None in values else sum(value for value in values if value is not None)


def _summed_floor(recording: Input, dense: Answers, numbers: Sequence[int]) -> float:
    return sum(
        rate_floor(recording.series[number], WINDOWS[RATE_2M], dense.by_series[number, RATE_2M])
        for number in numbers
        if (number, RATE_2M) in dense.by_series
    )


def headline(name: str, scored: Score) -> float:
    """Return the error by which a class is placed on the front: p99, for states the share of wrong instants."""
    errors = scored.of(HEADLINE[name])
    if name == STATES:
        return sum(errors.errors) / len(errors.errors) if errors.errors else math.nan
    return errors.percentile(0.99)


def no_answer(name: str, scored: Score) -> float:
    """Return the share of instants at which the way has no answer to the question of the front."""
    return scored.of(HEADLINE[name]).no_answer

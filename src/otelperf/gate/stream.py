"""One stream: what was last seen and last emitted of it, and whether the newest point may be held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint

from otelperf.gate import hold, shape
from otelperf.gate.trend import Trend

if TYPE_CHECKING:
    from otelperf.gate.marks import DataPoint
    from otelperf.gate.policy import Rule
    from otelperf.gate.tree import Family

SECOND = 1_000_000_000
_EXEMPLARS = 20  # at most, carried from held points to the next emission
_RESTART = SECOND  # a start time that moves by less is the jitter of a computed boot time, not a restart


class Group:
    """Streams that people divide by one another: how many, and the latest value of each metric in it."""

    __slots__ = ("key", "latest", "size")

    def __init__(self, key: tuple[str, frozenset[Any]]) -> None:
        self.key = key
        self.size = 0
        self.latest: dict[str, float] = {}


class Stream:
    """A stream and its rule. Times are Unix ns; *cumulative* streams count up from a start (counters, histograms)."""

    __slots__ = (
        "_allowed",
        "_carried",
        "_counts",
        "_quantiles",
        "_start",
        "_trend",
        "attributes",
        "because",
        "cumulative",
        "emitted",
        "family",
        "group",
        "known",
        "least",
        "listed",
        "name",
        "phase",
        "read",
        "rule",
        "seen",
        "step",
    )

    def __init__(self, name: str, attributes: Any, rule: Rule, phase: int, *, cumulative: bool) -> None:
        self.name = name
        self.attributes = attributes
        self.rule = rule
        self.phase = phase
        self.cumulative = cumulative
        self.known = False  # whether anything of it was ever let out
        self.because = "first"  # why there is nothing emitted to compare with
        self.family: Family  # set when the family takes it in
        self.group: Group | None = None
        self.seen: DataPoint | None = None
        self.emitted: DataPoint | None = None
        self.step = 0  # between the last two points seen
        self.read = -1  # the newest point's own time, before it was made to rise
        self.least = 0  # the next point may not be earlier
        self.listed = 0  # when an export last had it, new or not
        self._trend: Trend | None = None
        self._allowed: float | None = None  # of a counter's increase, unsent, when it was last judged
        self._counts: Sequence[int] = ()
        self._quantiles: tuple[float, ...] = ()
        self._carried: list[Any] = []
        self._start = 0

    def take(self, point: DataPoint) -> DataPoint | None:
        """Accept the newest point; return the one before it if a counter was reset between them and it was never emitted."""
        before = self.seen
        if self.group is not None and isinstance(point, NumberDataPoint):
            self.group.latest[self.name] = point.value
        if before is None:
            self.seen = point
            self._start = point.start_time_unix_nano or point.time_unix_nano
            return None
        self.step = point.time_unix_nano - before.time_unix_nano
        if not self.cumulative or not _reset(before, point):
            self.seen = point
            return None
        unsent = self.unsent()
        self.seen = point
        self._start = point.start_time_unix_nano or before.time_unix_nano
        self.doubt("reset")
        return unsent

    def unsent(self) -> DataPoint | None:
        """Return a counter's newest point as it is emitted, if it was held back or lost: its total must not be."""
        point, emitted = self.seen, self.emitted
        if not self.cumulative or point is None:
            return None
        return self.finished(point) if emitted is None or _amount(point) != _amount(emitted) else None

    def doubt(self, because: str) -> None:
        """Take nothing as emitted, so that the next point goes, and say why."""
        self.emitted = None
        self.because = because

    def finished(self, point: DataPoint) -> DataPoint:
        """Return the point as it is emitted: with a start time if the source knew none, and the exemplars of those held."""
        changes: dict[str, Any] = {}
        if not point.start_time_unix_nano and self.cumulative:
            changes["start_time_unix_nano"] = min(self._start, point.time_unix_nano)
        if self._carried:
            carried = {(e.time_unix_nano, e.trace_id, e.span_id): e for e in (*self._carried, *point.exemplars)}
            changes["exemplars"] = sorted(carried.values(), key=lambda e: e.time_unix_nano)[-_EXEMPLARS:]
            self._carried = []
        return replace(point, **changes) if changes else point

    def remember(self, window: int) -> None:
        """Take the newest point as emitted."""
        point = self.seen
        assert point is not None  # only streams that were seen are emitted
        if self.rule.kind in {"trend", "histogram"}:
            amount = _amount(point)
            if self._trend is None or self.emitted is None or not (isfinite(amount) and isfinite(self._trend.last[1])):
                self._trend = Trend(point.time_unix_nano, amount)
            else:
                self._trend.emitted(point.time_unix_nano, amount, window)
        if isinstance(point, HistogramDataPoint):
            if self.emitted is not None:
                self._quantiles = self._quantiles_of(point)
            self._counts = point.bucket_counts
        self.emitted = point
        self.known = True

    def remember_previous(self, window: int) -> DataPoint | None:
        """Take the point held back before the newest as emitted, if there is one, and return it."""
        if self._trend is None or self._trend.previous is None or not isinstance(self.seen, NumberDataPoint):
            return None
        time, value = self._trend.previous
        self._trend.emitted(time, value, window)
        start = self.seen.start_time_unix_nano or min(self._start, time)
        return NumberDataPoint(self.seen.attributes, start, time, value)

    def hold(self) -> None:
        """Take the newest point as held back."""
        point = self.seen
        assert point is not None  # only streams that were seen are held
        if self._allowed is not None and self._trend is not None:
            self._trend.held(point.time_unix_nano, _amount(point), self._allowed)
        if point.exemplars:
            self._carried = [*self._carried, *point.exemplars][-_EXEMPLARS:]

    def reason(self, window: int, histogram_interval: int) -> str | None:  # noqa: PLR0911 # one a rule
        """Say why the newest point must be emitted now, the heartbeat aside; None if it may be held back."""
        point, emitted, rule = self.seen, self.emitted, self.rule
        if emitted is None or point is None:
            return self.because
        kind = rule.kind
        if kind == "off":
            return "off"
        if kind == "heartbeat":
            return None
        if kind == "trend":
            return self._trend_reason(point, window)
        if kind == "histogram":
            return self._histogram_reason(point, emitted, window, histogram_interval)
        value, held = _amount(point), _amount(emitted)
        if value == held:
            return None
        if rule.thresholds and hold.crossed(value, held, rule.thresholds):
            return "threshold"
        if hold.moved(value, held, self._delta(), rule.relative):
            return "state" if kind == "state" else "change"
        return None

    def _delta(self) -> float:
        rule = self.rule
        if rule.share and rule.share_of and self.group is not None:
            return max(rule.delta, rule.share * self.group.latest.get(rule.share_of, 0.0))
        return rule.delta

    def _tolerated(self, window: int) -> float:
        """How much of a counter's increase may stay unsent."""
        point, trend, rule = self.seen, self._trend, self.rule
        if trend is None or point is None:
            return 0.0
        value = _amount(point)
        if value == trend.last[1]:
            return rule.delta
        return max(rule.delta, rule.relative * trend.increase(point.time_unix_nano, value, window))

    def _trend_reason(self, point: DataPoint, window: int) -> str | None:
        trend, value = self._trend, _amount(point)
        self._allowed = None
        if trend is None:
            return "first"
        last = trend.last[1]
        if not (isfinite(value) and isfinite(last)):
            return "change" if value != last and (value == value or last == last) else None
        if trend.previous is not None and trend.bent(point.time_unix_nano, value):
            return "bend"
        tolerated = self._allowed = self._tolerated(window)
        if trend.unsent(value) > tolerated and (
            not tolerated or trend.misread(point.time_unix_nano, value, window, tolerated)
        ):
            return "rate"
        return None

    def _histogram_reason(self, point: DataPoint, emitted: DataPoint, window: int, interval: int) -> str | None:
        if (
            _amount(point) == _amount(emitted)
            or point.time_unix_nano - emitted.time_unix_nano < interval - self.step // 2
        ):
            return None
        if self._trend is not None and self._trend.unsent(_amount(point)) > self._tolerated(window):
            return "rate"
        if isinstance(point, HistogramDataPoint) and shape.shifted(
            self._quantiles_of(point), self._quantiles, self.rule.relative
        ):
            return "quantile"
        return None

    def _quantiles_of(self, point: HistogramDataPoint) -> tuple[float, ...]:
        """The quantiles of what came since the last emission."""
        if len(self._counts) != len(point.bucket_counts):
            return ()
        since = [now - then for now, then in zip(point.bucket_counts, self._counts, strict=True)]
        return shape.quantiles(point.explicit_bounds, since)


def _amount(point: DataPoint) -> float:
    return point.value if isinstance(point, NumberDataPoint) else point.count


def _reset(before: DataPoint, after: DataPoint) -> bool:
    """Say whether a counter began anew: it fell, or its process started later than before."""
    if _amount(after) < _amount(before):
        return True
    starts = before.start_time_unix_nano, after.start_time_unix_nano
    return bool(starts[0] and starts[1]) and starts[1] - starts[0] > _RESTART

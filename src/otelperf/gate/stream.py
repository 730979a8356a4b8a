"""One stream: what was last seen and last emitted of it, and whether the newest point may be held back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint

from otelperf.gate import hold, shape
from otelperf.gate.trend import Point, Trend, Watch

if TYPE_CHECKING:
    from otelperf.gate.budget import Account
    from otelperf.gate.marks import DataPoint
    from otelperf.gate.policy import Rule
    from otelperf.gate.tree import Family

SECOND = 1_000_000_000
_EXEMPLARS = 20  # at most, carried from held points to the next emission
_SOON = 6  # a histogram whose quantiles are misread goes after that part of its interval
_ABOVE = 1  # counted above a quantile, or it is but the latest odd one out: that can wait for the interval
_RESTART = SECOND  # a start time that moves by less is the jitter of a computed boot time, not a restart


_NOTHING: list[Point] = []


class Bound(NamedTuple):
    """How far a stream may be from what was sent of it: *delta* in its unit, *relative* a share; the larger counts."""

    delta: float
    relative: float


@dataclass(slots=True)
class Terms:
    """What a gate judges all its streams by. *factor* is the budget's, *earlier* whether older points than the last may go."""

    watch: Watch
    histogram_interval: int
    spacing: int
    earlier: bool
    factor: float = 1.0
    now: int = 0


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
        "_carried",
        "_due",
        "_spread",
        "_start",
        "_trend",
        "account",
        "attributes",
        "because",
        "cumulative",
        "emitted",
        "family",
        "group",
        "known",
        "latest",
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
        self.account: Account | None = None  # of its own budget
        self.seen: DataPoint | None = None
        self.emitted: DataPoint | None = None
        self.latest = 0  # the time of the newest point let out, also of one that was lost
        self.step = 0  # between the last two points seen
        self.read = -1  # the newest point's own time, before it was made to rise
        self.least = 0  # the next point may not be earlier
        self.listed = 0  # when an export last had it, new or not
        self._trend: Trend | None = None
        self._due = _NOTHING  # readings of a counter that must be sent, the newest perhaps among them
        self._spread: shape.Spread | None = None  # of a histogram
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
        if emitted is None:
            return self.finished(point)
        amount, sent = _amount(point), _amount(emitted)
        return None if amount == sent or (amount != amount and sent != sent) else self.finished(point)

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
            changes["exemplars"] = _newest(carried.values())
            self._carried = []
        return replace(point, **changes) if changes else point

    def remember(self, terms: Terms) -> None:
        """Take the newest point as emitted."""
        point = self.seen
        assert point is not None  # only streams that were seen are emitted
        if self.rule.kind in {"trend", "histogram"}:
            amount = _amount(point)
            if (
                self._trend is None
                or self.emitted is None
                or not (isfinite(amount) and isfinite(self._trend.sent_values[-1]))
            ):
                self._trend = Trend(point.time_unix_nano, amount)
            else:
                self._trend.sent(point.time_unix_nano, amount, terms.watch)
        if isinstance(point, HistogramDataPoint):
            counts = point.bucket_counts
            if self._spread is None or self.emitted is None or not self._spread.fits(counts):
                self._spread = shape.Spread(point.explicit_bounds, point.time_unix_nano, counts)
            else:
                self._spread.sent(point.time_unix_nano, counts, terms.watch.rate_window)
        self.emitted = point
        self.known = True

    def beginning(self, terms: Terms, watched_since: int) -> DataPoint | None:
        """Take 0 at the start of a counter as emitted, and return it, if it began later than *watched_since* (Unix ns).

        Without it nobody can tell what it gained before its first point. None where it began too long ago for any window, or
        where what was sent before shows the gain: after a reset, a total that was higher.
        """
        point, start = self.seen, self._start
        if (
            point is None
            or not point.start_time_unix_nano
            or not terms.earlier
            or self.rule.kind not in {"trend", "histogram"}
        ):
            return None
        if not max(watched_since, self.latest, terms.now - terms.watch.reach) < start < point.time_unix_nano:
            return None
        trend, amount = self._trend, _amount(point)
        if not amount > 0 or (trend is not None and amount < trend.sent_values[-1]):
            return None
        zero: DataPoint
        if isinstance(point, NumberDataPoint):
            zero = NumberDataPoint(point.attributes, start, start, type(point.value)(0))
        elif isinstance(point, HistogramDataPoint):
            none = [0] * len(point.bucket_counts)
            zero = replace(point, time_unix_nano=start, count=0, sum=0.0, bucket_counts=none, exemplars=[])
            self._spread = shape.Spread(point.explicit_bounds, start, none)
        else:
            return None
        self._trend = Trend(start, _amount(zero))
        self.emitted = zero
        return zero

    def earlier(self, terms: Terms) -> list[NumberDataPoint]:
        """Take the readings before the newest that are due as emitted, and return them, oldest first."""
        point, trend = self.seen, self._trend
        if not self._due or trend is None or not isinstance(point, NumberDataPoint):
            return []
        found = []
        for time, value in self._due:
            if time < point.time_unix_nano:
                trend.sent(time, value, terms.watch)
                start = min(point.start_time_unix_nano or self._start, time)
                found.append(NumberDataPoint(point.attributes, start, time, value))
        return found

    @property
    def due(self) -> list[int]:
        """The times of the earlier readings that must be sent."""
        point = self.seen
        return [time for time, _ in self._due if point is not None and time < point.time_unix_nano]

    def join(self, times: Iterable[int], terms: Terms) -> None:
        """Let what was read at these times be due as well, because it is of others in the group."""
        if self._trend is not None and self.rule.kind == "trend" and self.emitted is not None and self.follows(terms):
            wanted = {*self._due, *filter(None, (self._trend.reading(time, terms.watch) for time in times))}
            self._due = sorted(wanted)

    def hold(self, terms: Terms) -> None:
        """Take the newest point as held back."""
        point = self.seen
        assert point is not None  # only streams that were seen are held
        trend = self._trend
        if trend is not None and self.emitted is not None:
            amount = _amount(point)
            if isfinite(amount) and isfinite(trend.sent_values[-1]):
                trend.held(point.time_unix_nano, amount, terms.watch)
        if (
            self._spread is not None
            and isinstance(point, HistogramDataPoint)
            and self._spread.fits(point.bucket_counts)
        ):
            self._spread.read(point.time_unix_nano, point.bucket_counts, terms.watch.rate_window)
        if point.exemplars:
            self._carried = _newest((*self._carried, *point.exemplars))

    def early(self, terms: Terms) -> bool:
        """Say whether the newest point comes too soon after the last one sent."""
        point = self.seen
        return point is not None and point.time_unix_nano - self.latest < terms.spacing

    def follows(self, terms: Terms) -> bool:
        """Say whether the newest point must go because another of its group does: not if what was sent says the same."""
        point, emitted = self.seen, self.emitted
        if self.early(terms):
            return False
        if point is None or emitted is None:
            return True
        if not isinstance(point, NumberDataPoint) or not isinstance(emitted, NumberDataPoint):
            return self._ripe(point, emitted, terms.histogram_interval)
        if self._trend is not None and self.rule.kind == "trend":
            return not self._trend.still(point.value)
        return point.value != emitted.value

    def reason(self, terms: Terms) -> str | None:  # noqa: PLR0911 # one a rule
        """Say why something must be emitted now, the heartbeat aside; None if the newest point may be held back.

        ``previous``: only readings before the newest must.
        """
        point, emitted, rule = self.seen, self.emitted, self.rule
        self._due = _NOTHING
        assert point is not None  # only streams that were seen are judged
        if terms.spacing and self.early(terms):
            return None
        if emitted is None:
            return self.because
        kind = rule.kind
        if kind == "off":
            return "off"
        if kind == "heartbeat":
            return None
        if kind == "trend":
            return self._trend_reason(point, terms)
        if kind == "histogram":
            return self._histogram_reason(point, emitted, terms)
        value, held = _amount(point), _amount(emitted)
        if value == held:
            return None
        if rule.thresholds and hold.crossed(value, held, rule.thresholds):
            return "threshold"
        if kind == "state":
            return "state" if hold.moved(value, held, 0.0, 0.0) else None
        return "change" if hold.moved(value, held, *self._in_force(terms)) else None

    def factor(self, terms: Terms) -> float:
        """Return by what a budget multiplies the rule's delta."""
        own = self.account
        return terms.factor if own is None else max(terms.factor, own.pay(terms.now))

    def bound(self, terms: Terms) -> Bound | None:
        """Return the delta and the share in force; None where the rule has neither."""
        bound = Bound(*self._in_force(terms))
        return bound if any(bound) and self.rule.kind in {"hold", "trend", "histogram"} else None

    def _in_force(self, terms: Terms) -> tuple[float, float]:
        """Return the rule's delta and share, as its group and a budget widen them."""
        rule, delta = self.rule, self.rule.delta
        if rule.share and rule.share_of and self.group is not None:
            delta = max(delta, rule.share * self.group.latest.get(rule.share_of, 0.0))
        factor = terms.factor if self.account is None else self.factor(terms)
        return delta * factor, rule.relative * factor

    def _trend_reason(self, point: DataPoint, terms: Terms) -> str | None:
        trend, value = self._trend, _amount(point)
        if trend is None:
            return "first"
        last = trend.sent_values[-1]
        if not (isfinite(value) and isfinite(last)):
            return "change" if value != last and (value == value or last == last) else None
        self._due = due = trend.due(
            point.time_unix_nano, value, terms.watch, *self._in_force(terms), earlier=terms.earlier
        )
        if not due:
            return None
        return "rate" if due[-1][0] == point.time_unix_nano else "previous"

    def _histogram_reason(self, point: DataPoint, emitted: DataPoint, terms: Terms) -> str | None:
        if not self._ripe(point, emitted, terms.histogram_interval // _SOON):
            return None
        ripe = self._ripe(point, emitted, terms.histogram_interval)
        time, (delta, relative) = point.time_unix_nano, self._in_force(terms)
        if self._spread is not None and isinstance(point, HistogramDataPoint) and (ripe or relative):
            window, above = terms.watch.rate_window, 0 if ripe else _ABOVE
            if self._spread.misread(time, point.bucket_counts, window, relative, above):
                return "quantile"
        if not ripe or self._trend is None:
            return None
        return "rate" if self._trend.due(time, _amount(point), terms.watch, delta, relative, earlier=False) else None

    def _ripe(self, point: DataPoint, emitted: DataPoint, interval: int) -> bool:
        """Say whether a histogram has something new, and has been silent for the interval."""
        age = point.time_unix_nano - emitted.time_unix_nano
        return _amount(point) != _amount(emitted) and age >= interval - self.step // 2


def _newest(exemplars: Iterable[Any]) -> list[Any]:
    """Return those that are carried on, oldest first."""
    return sorted(exemplars, key=lambda exemplar: exemplar.time_unix_nano)[-_EXEMPLARS:]


def _amount(point: DataPoint) -> float:
    return point.value if isinstance(point, NumberDataPoint) else point.count


def _reset(before: DataPoint, after: DataPoint) -> bool:
    """Say whether a counter began anew: it fell, or its process started later than before."""
    if _amount(after) < _amount(before):
        return True
    starts = before.start_time_unix_nano, after.start_time_unix_nano
    return bool(starts[0] and starts[1]) and starts[1] - starts[0] > _RESTART

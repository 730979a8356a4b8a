"""Counters: send what makes ``rate()``, read *now*, right.

At each reading the gate computes what Prometheus would answer for ``increase(x[window])`` at this moment from what was sent,
and compares that with what the readings say. While the two agree within what is tolerated, nothing needs to be sent. Else the
fewest readings are found that bring them together: the newest one, or an earlier one that was held back, at its own time (a
reading inside the gap with which the window begins says how much was gained there; the one before a jump says how long
nothing was).

Three windows are watched, so that boards and alerts with other windows than the rules' own are not misled: half the rate
window, the rate window, and two and a half of it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import sqrt
from typing import Any, NamedTuple

Point = tuple[int, float]  # Unix ns, value

_SHARES = (0.5, 1.0, 2.5)  # of the rate window
_GRAINS = 40  # readings remembered of a rate window, jumps aside
_STILL_GRAINS = 12  # the same of a counter that stands still
_MOST_READINGS = 1000  # remembered, and sent, however often it jumps
_ENOUGH = 0.8  # of what is tolerated: a correction that only just suffices would be needed again at once
_BETTER = 0.9  # a reading that takes away less than a tenth of the error is not worth its price
_CANDIDATES = 6  # readings tried in the gap where a window begins
_MOST = 4  # readings sent of one counter in one tick
_NO_ANSWER = 1e9  # the error, in tolerances, of a rate that matters and cannot be read


class Window(NamedTuple):
    """A window of ``rate()``: its length in ns, and what is tolerated in it as multiples of the rule's delta and share."""

    length: int
    delta: float
    relative: float


class Watch(NamedTuple):
    """The windows in which a counter must read right, and how far apart the readings are that are remembered for it (ns).

    *still* is how far where it stands still; *reach* how far back they go.
    """

    windows: tuple[Window, ...]
    grain: int
    still: int
    reach: int

    @property
    def rate_window(self) -> int:
        """The window that rules and boards use."""
        return self.windows[1].length


def watch(rate_window: int) -> Watch:
    """Return what to watch for rules whose delta and share are said of *rate_window* (ns).

    A delta is a rate, so it grows with the window; a share shrinks with the window's root, as the error of a mean does.
    """
    windows = tuple(Window(int(share * rate_window), share, 1 / sqrt(share)) for share in _SHARES)
    return Watch(windows, rate_window // _GRAINS, rate_window // _STILL_GRAINS, windows[-1].length)


def extrapolated(increase: float, first: float, sampled: float, count: int, to_start: float, to_end: float) -> float:
    """Return what Prometheus' ``increase()`` makes of an *increase* seen between the points of a window: it draws the line on.

    Of the *count* points, two or more, the first is *first* and lies *to_start* after the window's beginning; the last lies
    *sampled* after that, and *to_end* before the window's end. All times in the same unit. The rule is ``extrapolatedRate``
    in prometheus/promql/functions.go.
    """
    if not increase:
        return 0.0
    spacing = sampled / (count - 1)
    if to_start >= spacing * 1.1:
        to_start = spacing / 2
    if increase > 0 and first >= 0:
        to_zero = sampled * (first / increase)
        if to_zero < to_start:  # noqa: PLR1730 # a counter was not below zero (min() is a call)
            to_start = to_zero
    if to_end >= spacing * 1.1:
        to_end = spacing / 2
    return increase * ((sampled + to_start + to_end) / sampled)


class _View:
    """One window at one moment: what it holds of what was sent, the true increase, and how much of it may be missed."""

    __slots__ = ("_now", "_start", "_true", "count", "first", "last", "tolerated")

    def __init__(self, trend: Trend, now: int, value: float, window: Window, delta: float, relative: float) -> None:
        self._now = now
        self._start = start = max(now - window.length, trend.born)
        self._true = true = value - trend.value_at(start, now, value)
        self.tolerated = max(delta * window.delta, relative * window.relative * true)
        times = trend.sent_times
        at = bisect_right(times, start)
        self.count = len(times) - at
        self.first = (times[at], trend.sent_values[at]) if self.count else None
        self.last = (times[-1], trend.sent_values[-1])

    def error(self, more: Sequence[Point] = ()) -> float:
        """Return by how many tolerances the increase would be misread, had *more* been sent too."""
        first, last, count = self.first, self.last, self.count
        for point in more:
            if point[0] > self._start:
                count += 1
                if first is None or point[0] < first[0]:
                    first = point
                if point[0] > last[0]:
                    last = point
        if first is None or count < 2:  # no answer is as good as none about a counter that hardly moves
            return _NO_ANSWER / (count + 1) if self._true > self.tolerated else 0.0
        read = extrapolated(
            last[1] - first[1], first[1], last[0] - first[0], count, first[0] - self._start, self._now - last[0]
        )
        missed = abs(read - self._true)
        return missed / self.tolerated if self.tolerated else missed and _NO_ANSWER

    def gap(self, more: Sequence[Point]) -> tuple[int, int]:
        """Return the time at the window's beginning of which nothing sent tells, *more* among it; ends aside."""
        ends = [point[0] for point in more if point[0] > self._start]
        if self.first is not None:
            ends.append(self.first[0])
        return self._start, min(ends, default=self._now)


def _error(views: Sequence[_View], more: Sequence[Point], enough: float) -> float:
    """Return the largest error of the views, had *more* been sent too; not exactly where it is *enough* or above."""
    largest = 0.0
    for view in views:
        error = view.error(more)
        if error > largest:
            largest = error
            if error >= enough:
                break
    return largest


def _best(
    views: Sequence[_View], choices: Iterable[tuple[Point, ...]], found: Sequence[Point], error: float
) -> tuple[tuple[Point, ...], float]:
    """Return the first choice that would do beside those *found*, else the one that takes away most, and the error left.

    None, if no choice is worth its price.
    """
    best: tuple[Point, ...] = ()
    least = error * _BETTER
    for choice in choices:
        left = _error(views, (*found, *choice), least)
        if left < least:
            best, least = choice, left
            if left <= _ENOUGH:
                break
    return best, least if best else error


class Trend:
    """What was read and what was sent of one counter, as far back as the longest window reaches."""

    __slots__ = ("_jump", "_previous", "_times", "_values", "born", "sent_times", "sent_values")

    def __init__(self, time: int, value: float) -> None:
        self.born = time - 1  # windows that reach back further begin here: of before nothing is known
        self.sent_times = [time]
        self.sent_values = [value]
        self._times = array("q", (time,))
        self._values = _column(value)
        self._previous: Point | None = None  # the reading before this one, if it was held back
        self._jump = 0.0  # a step that must not get lost among the readings that are remembered

    def value_at(self, time: int, now: int, value: float) -> float:
        """Return the counter at *time*, read off the line between two readings; *value* is the reading *now*."""
        times: array[int] = self._times
        values: array[float] = self._values
        after = bisect_right(times, time)
        if not after:  # nothing is known of the time before
            return values[0]
        time0, value0 = times[after - 1], values[after - 1]
        time1, value1 = (times[after], values[after]) if after < len(times) else (now, value)
        return value0 + (time - time0) / (time1 - time0) * (value1 - value0) if time1 > time0 else value0

    def still(self, value: float) -> bool:
        """Say whether all that was sent, as far back as is remembered, is this value."""
        return value == self.sent_values[0]

    def reading(self, time: int, watched: Watch) -> Point | None:
        """Return the reading of that time, or the one remembered shortly before; None if it was sent."""
        previous = self._previous
        if previous is not None and previous[0] == time:
            return previous
        at = bisect_right(self._times, time) - 1
        if at < 0:
            return None
        found = self._times[at]
        sent = self.sent_times[bisect_right(self.sent_times, found) - 1] == found
        return None if sent or time - found > watched.grain else (found, self._values[at])

    def due(
        self, time: int, value: float, watched: Watch, delta: float, relative: float, *, earlier: bool = True
    ) -> list[Point]:
        """Return the readings that must be sent now, the newest perhaps among them, oldest first.

        None while ``rate()`` is misread, in every window watched, by no more than *delta* (an increase within the rate window)
        or *relative* times itself. *earlier* says whether readings older than the last one sent may be sent.
        """
        if not delta and not relative:  # every change
            return [(time, value)] if value != self.sent_values[-1] else []
        if self.still(value):
            return []
        if not self._misread(time, value, watched, delta, relative):
            return []
        views = [_View(self, time, value, window, delta, relative) for window in watched.windows]
        return self._put_right(views, (time, value), earlier=earlier)

    def _put_right(self, views: list[_View], newest: Point, *, earlier: bool) -> list[Point]:
        """Return the fewest readings that make the views right, or nearly."""
        error = _error(views, (), _NO_ANSWER)
        found: list[Point] = []
        while error > 1 and len(found) < _MOST:
            ones = [point for point in self._candidates(views, newest, found, earlier=earlier) if point not in found]
            chosen, error = _best(views, ((point,) for point in ones), found, error)
            if not chosen and newest not in found:  # one alone may help as little as none: the newest and another
                chosen, error = _best(views, ((newest, point) for point in ones if point != newest), found, error)
            if not chosen:
                break
            found += chosen
        if error > 1 and earlier:
            # What looked best at first may lead nowhere: two or three at once, the newest among them.
            others = self._candidates(views, newest, ())[1:]
            for count in (1, 2):
                chosen, error = _best(views, ((newest, *some) for some in combinations(others, count)), (), error)
                found = list(chosen) or found
                if error <= 1:
                    break
        if error > 1 and newest not in found and newest[1] - self.sent_values[-1] > min(v.tolerated for v in views):
            found.append(newest)  # it may read wrong for a while, but what is gained must not stay unsent
        return sorted(found)

    def _misread(self, time: int, value: float, watched: Watch, delta: float, relative: float) -> bool:
        """Say whether any view would tell an error above 1: the same sums, without the objects, for every reading pays for them."""
        times, values, sent_times, sent_values = self._times, self._values, self.sent_times, self.sent_values
        known, sent = len(times), len(sent_times)
        last_time, high = sent_times[-1], sent_values[-1]
        after = at = 0
        for length, widen, narrow in reversed(watched.windows):  # the longest first: the others begin later
            start = max(time - length, self.born)
            after = bisect_right(times, start, after)
            if not after:
                true = value - values[0]
            else:
                time0, value0 = times[after - 1], values[after - 1]
                time1, value1 = (times[after], values[after]) if after < known else (time, value)
                true = value - value0 - (start - time0) / (time1 - time0) * (value1 - value0)
            tolerated = max(delta * widen, relative * narrow * true)
            at = bisect_right(sent_times, start, at)
            count = sent - at
            if count < 2:
                if true > tolerated:
                    return True
                continue
            first_time, low = sent_times[at], sent_values[at]
            read = extrapolated(high - low, low, last_time - first_time, count, first_time - start, time - last_time)
            if not -tolerated <= read - true <= tolerated:
                return True
        self._jump = tolerated / 4
        return False

    def _candidates(
        self, views: list[_View], newest: Point, found: Sequence[Point], *, earlier: bool = True
    ) -> list[Point]:
        """Return readings to try beside those *found*, newest first: those that stay in the window longest."""
        if not earlier:
            return [newest]
        tried = {newest}
        if self._previous is not None:
            tried.add(self._previous)
        times, values = self._times, self._values
        for view in views:
            if view.error(found) > 1:
                start, end = view.gap(found)
                low, high = bisect_right(times, start), bisect_left(times, end)
                if low < high:
                    step = max(1, (high - low - 1) // (_CANDIDATES - 1))
                    tried.update((times[i], values[i]) for i in (low, *range(high - 1, low, -step)))
        return sorted(tried, reverse=True)

    def sent(self, time: int, value: float, watched: Watch) -> None:
        """Remember a point sent, now or, if it is older than the last, besides."""
        times = self.sent_times
        if time > self._times[-1]:
            self._read(time, value, watched)
        if self._previous is not None and self._previous[0] <= time:
            self._previous = None
        at = bisect_right(times, time)
        times.insert(at, time)
        self.sent_values.insert(at, value)
        old = max(bisect_right(times, times[-1] - watched.reach) - 1, len(times) - _MOST_READINGS)
        if old > 0:
            del times[:old]
            del self.sent_values[:old]

    def held(self, time: int, value: float, watched: Watch) -> None:
        """Remember a reading that was held back."""
        self._read(time, value, watched)
        self._previous = (time, value)

    def _read(self, time: int, value: float, watched: Watch) -> None:
        """Remember one reading a grain, both sides of a jump, and fewer of a counter that stands still."""
        times, values = self._times, self._values
        if len(values) > 1 and value == values[-1] == values[-2]:
            if time // watched.still == times[-1] // watched.still:
                times[-1] = time
                return
        elif value - values[-1] > self._jump:
            before = self._previous
            if before is not None and before[0] > times[-1] and value - before[1] > self._jump:
                self._append(*before, watched)
        elif time // watched.grain == times[-1] // watched.grain:
            return
        self._append(time, value, watched)

    def _append(self, time: int, value: float, watched: Watch) -> None:
        if not _fits(value, self._values):
            self._times, self._values = array("q", (time,)), _column(value)
            return
        times = self._times
        times.append(time)
        self._values.append(value)
        old = max(bisect_right(times, time - watched.reach) - 1, len(times) - _MOST_READINGS)
        if old > 0:
            del times[:old]
            del self._values[:old]


_EXACT = 2**53  # beyond, a double has no room for every whole number


def _column(value: float) -> array[Any]:
    """Return an array that holds *value* as it is: what is sent late must be what was read."""
    return array("q" if isinstance(value, int) and abs(value) < 2**63 else "d", (value,))


def _fits(value: float, column: array[Any]) -> bool:
    if isinstance(value, int):
        return abs(value) < (2**63 if column.typecode == "q" else _EXACT)
    return column.typecode == "d"

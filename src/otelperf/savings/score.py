"""How far off a reading of sparse points is, against the same reading of dense ones.

Nothing here knows how the points were chosen: points in, errors out. Times are Unix milliseconds, as Prometheus counts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil, isfinite, log
from sys import float_info
from typing import NamedTuple

from otelperf.gate.trend import extrapolated

_GROWTH = 1.01  # from one bin of errors to the next
_LOG_GROWTH = log(_GROWTH)
_LARGEST = float_info.max  # sums and differences of numbers near it are infinite
_NOTHING = 1e-12  # an error below is rounding


class Points(NamedTuple):
    """The points of one series in the order in which they came: *arrivals* never fall.

    A point may come later than one that is newer by its own time.
    """

    times: Sequence[int]
    values: Sequence[float]
    arrivals: Sequence[int]


def held(points: Points, instants: Sequence[int], *, live: bool = False) -> Iterator[float | None]:
    """Yield what an instant query answers at each of the rising *instants*: the newest value; None before the first.

    Once all is stored, a point counts from its own time on; *live*, from its arrival on.
    """
    stored = sorted(zip(points.arrivals if live else points.times, points.times, points.values, strict=True))
    position, newest, value = 0, None, None
    for now in instants:
        while position < len(stored) and stored[position][0] <= now:
            _, time, found = stored[position]
            if newest is None or time > newest:
                newest, value = time, found
            position += 1
        yield value


def rates(points: Points, instants: Sequence[int], window: int) -> Iterator[float | None]:
    """Yield ``rate(x[window])`` per second at each of the rising *instants*, from what had arrived by then.

    None with fewer than two points in the window, which is open on its left since Prometheus 3. The rule, resets included, is
    ``extrapolatedRate`` in prometheus/promql/functions.go.
    """
    values_by_time = [value for _, value in sorted(zip(points.times, points.values, strict=True))]
    falls = any(after < before for before, after in pairwise(values_by_time))
    times: list[int] = []  # of what has arrived, in order
    values: list[float] = []
    position = 0
    for now in instants:
        while position < len(points.arrivals) and points.arrivals[position] <= now:
            _insert(times, values, points.times[position], points.values[position])
            position += 1
        start = now - window
        low = bisect_right(times, start)
        high = bisect_right(times, now, lo=low)
        if high - low < 2:
            yield None
            continue
        first_time, first, last_time = times[low], values[low], times[high - 1]
        increase = _increase(values[low:high]) if falls else values[high - 1] - first
        sampled = last_time - first_time
        yield extrapolated(increase, first, sampled, high - low, first_time - start, now - last_time) * 1000 / window


def _insert(times: list[int], values: list[float], time: int, value: float) -> None:
    """Put a point where its time belongs, mostly at the end; a second one of the same time is dropped, as by Prometheus."""
    if not times or time > times[-1]:
        times.append(time)
        values.append(value)
        return
    index = bisect_left(times, time)
    if times[index] != time:
        times.insert(index, time)
        values.insert(index, value)


def _increase(values: Sequence[float]) -> float:
    """Return last minus first, and what each reset took: a value lower than its predecessor counts from zero."""
    return values[-1] - values[0] + sum(before for before, after in pairwise(values) if after < before)


def difference(read: float | None, true: float, typical: float) -> float:
    """Return |read - true| as a share of the largest of |read|, |true| and *typical*: 0 is right, 1 as good as no reading.

    *typical* is the mean of the series' own absolute values: what is small beside it cannot make an error look large, and
    nothing is divided by almost zero. No answer (None) reads as 0, as it does to an alert. Values that are not finite are right
    or wrong: 0 or 1.
    """
    if read is None:
        read = 0.0
    if read == true:
        return 0.0
    if not (isfinite(read) and isfinite(true)):
        return 0.0 if read != read and true != true else 1.0
    largest = max(abs(read), abs(true), typical)
    gap = abs(read - true)
    return gap / largest if gap <= _LARGEST else abs(read / largest - true / largest)


def typical(values: Sequence[float]) -> float:
    """Return the mean of the absolute values, those that are not finite left out; 0 if there are none."""
    sizes = [abs(value) for value in values if isfinite(value)]
    if not sizes:
        return 0.0
    total = sum(sizes)
    if total <= _LARGEST:
        return total / len(sizes)
    return min(sum(size / len(sizes) for size in sizes), _LARGEST)


class Errors:
    """Any number of errors in little memory: the worst exactly, quantiles to within 1 % of themselves (never too small).

    Bins that grow by a constant factor, as in DDSketch (Masson, Rim, Lee, VLDB 2019).
    """

    __slots__ = ("_bins", "count", "worst")

    def __init__(self) -> None:
        self._bins: Counter[int | None] = Counter()  # None is no error at all
        self.count = 0
        self.worst = 0.0

    def add(self, error: float, times: int = 1) -> None:
        """Count an error, which is finite and not negative."""
        self.count += times
        if error < _NOTHING:
            self._bins[None] += times
            return
        self._bins[ceil(log(error) / _LOG_GROWTH)] += times
        if error > self.worst:  # noqa: PLR1730 # max() would cost more than all the rest
            self.worst = error

    def merge(self, other: Errors) -> None:
        """Add those of another."""
        self._bins.update(other._bins)
        self.count += other.count
        self.worst = max(self.worst, other.worst)

    def quantile(self, share: float) -> float | None:
        """Return the error that *share* of them do not exceed; None if there are none."""
        if not self.count:
            return None
        rank = ceil(share * self.count)
        below = self._bins[None]
        if below >= rank:
            return 0.0
        for index in sorted(each for each in self._bins if each is not None):
            below += self._bins[index]
            if below >= rank:
                return min(_GROWTH**index, self.worst)
        return self.worst

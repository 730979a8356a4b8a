"""Histograms: send what makes ``histogram_quantile()`` over ``rate()``, read *now*, right."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import inf
from operator import sub

QUANTILES = (0.5, 0.95, 0.99)
_GRAINS = 12  # readings remembered of a rate window
_BETTER = 0.9  # a point that takes away less than a tenth of the error is not worth its price


def quantiles(bounds: Sequence[float], counts: Iterable[float], above: float = 0.0) -> tuple[float, ...]:
    """Return the watched quantiles by linear interpolation inside their buckets, as PromQL's ``histogram_quantile``.

    The first bucket starts at zero and the last one answers with the highest bound. Only those with so many counted *above*
    them; empty if nothing was counted.
    """
    below = list(accumulate(counts))
    if not bounds or not below[-1] > 0:
        return ()
    count = below[-1]
    return tuple([_quantile(share * count, bounds, below) for share in QUANTILES if (1 - share) * count >= above])


def _quantile(rank: float, bounds: Sequence[float], below: Sequence[float]) -> float:
    at = bisect_left(below, rank)
    if at >= len(bounds):
        return bounds[-1]
    low, under = (bounds[at - 1], below[at - 1]) if at else (min(0.0, bounds[0]), 0)
    return low + (bounds[at] - low) * (rank - under) / (below[at] - under)


def error(answer: Sequence[float], true: Sequence[float]) -> float:
    """Return by what share of itself a quantile is off, the worst; infinite where one of the two is not there."""
    if len(answer) != len(true):
        return inf
    off = [abs(it - so) / abs(so) if so else abs(it) and inf for it, so in zip(answer, true, strict=True)]
    return max(off, default=0.0)


class Spread:
    """The buckets of one histogram, as read and as sent, as far back as the rate window reaches. Times are Unix ns."""

    __slots__ = ("_bounds", "_read", "_read_times", "_sent", "_sent_times")

    def __init__(self, bounds: Sequence[float], time: int, counts: Sequence[int]) -> None:
        self._bounds = bounds
        self._read_times, self._read = [time], [array("d", counts)]
        self._sent_times, self._sent = [time], [array("d", counts)]

    def read(self, time: int, counts: Sequence[int], window: int) -> None:
        """Remember a reading, unless there was one just before."""
        if time - self._read_times[-1] >= window // _GRAINS:
            _remember(self._read_times, self._read, time, counts, window)

    def sent(self, time: int, counts: Sequence[int], window: int) -> None:
        """Remember what was sent."""
        self.read(time, counts, window)
        _remember(self._sent_times, self._sent, time, counts, window)

    def fits(self, counts: Sequence[int]) -> bool:
        """Say whether these are counts of the same buckets."""
        return len(counts) == len(self._sent[-1])

    def misread(self, now: int, counts: Sequence[int], window: int, relative: float, above: float) -> bool:
        """Say whether ``histogram_quantile(q, rate(x_bucket[window]))``, asked *now*, is off by more than the share.

        *counts* is the reading of now; quantiles with fewer counted *above* them do not matter. Not where sending it would change
        little: what went on where the window begins, before the first point in it, nobody can tell any more. Extrapolation
        multiplies all buckets alike, so it is left out here.
        """
        begin = max(0, bisect_right(self._read_times, now - window) - 1)
        true = quantiles(self._bounds, map(sub, counts, self._read[begin]), above)
        if not true:
            return False
        first = self._sent[min(bisect_right(self._sent_times, now - window), len(self._sent) - 1)]
        off = error(self._quantiles(first, self._sent[-1], true), true)
        return off > relative and error(self._quantiles(first, counts, true), true) < _BETTER * off

    def _quantiles(self, then: Sequence[float], now: Sequence[float], wanted: Sequence[float]) -> tuple[float, ...]:
        """Return as many as are *wanted*."""
        return quantiles(self._bounds, map(sub, now, then))[: len(wanted)]


def _remember(times: list[int], all_counts: list[array[float]], time: int, counts: Sequence[int], window: int) -> None:
    """Append, and forget what is older than the window, but for the last that is."""
    times.append(time)
    all_counts.append(array("d", counts))
    old = bisect_right(times, time - window) - 1
    if old > 0:
        del times[:old]
        del all_counts[:old]

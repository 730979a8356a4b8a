"""Counters: emit when ``rate()`` read *now* would miss too much, or when a line no longer carries the past.

Two tests, either fires:

- **unsent**: what has not been sent is more than a tolerated share of the increase over the rate window, and
  ``rate(x[window])``, as Prometheus would extrapolate it at this moment from what was emitted, is off by more than that
  share. (Extrapolation is right about a steady counter: it needs no more than its heartbeat.)
- **door**: one straight line from the last emitted point to this one leaves the corridor of a point held back between them
  (the funnel test: slopes go to actual points, so the error is the corridor, not twice that). Then the previous
  point is emitted too, at its own time, and the past is right to within the corridor on both sides of the bend.

The corridor is half of what may stay unsent.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise

Point = tuple[int, float]  # Unix ns, value


def extrapolated_increase(points: deque[Point], now: int, window: int) -> float | None:
    """Return ``increase(x[window])`` at *now* as Prometheus computes it; None with fewer than two points in the window.

    *points* rise and hold no reset. The rule is ``extrapolatedRate`` in prometheus/promql/functions.go.
    """
    start = now - window
    inside = [point for point in points if point[0] > start]
    if len(inside) < 2:  # a rate needs two points
        return None
    (first_time, first), (last_time, last) = inside[0], inside[-1]
    sampled, increase = last_time - first_time, last - first
    spacing = sampled / (len(inside) - 1)
    to_start, to_end = float(first_time - start), float(now - last_time)
    if to_start >= spacing * 1.1:
        to_start = spacing / 2
    if increase > 0 and first >= 0:
        to_start = min(to_start, sampled * (first / increase))  # a counter cannot have been below zero
    if to_end >= spacing * 1.1:
        to_end = spacing / 2
    return increase * (sampled + to_start + to_end) / sampled


class Trend:
    """What was emitted of one counter within the rate window, and what was held back since."""

    __slots__ = ("_emitted", "_high", "_low", "_previous")

    def __init__(self, time: int, value: float) -> None:
        self._emitted: deque[Point] = deque([(time, value)])
        self._open()

    def _open(self) -> None:
        self._previous: Point | None = None
        self._low = float("-inf")
        self._high = float("inf")

    @property
    def last(self) -> Point:
        """The newest emission."""
        return self._emitted[-1]

    @property
    def previous(self) -> Point | None:
        """The newest point held back since the last emission."""
        return self._previous

    def emitted(self, time: int, value: float, window: int) -> None:
        """Remember an emission; forget those that no rate window reaches."""
        points = self._emitted
        points.append((time, value))
        start = time - window
        while len(points) > 2 and points[1][0] <= start:
            points.popleft()
        self._open()

    def held(self, time: int, value: float, tolerated: float) -> None:
        """Remember a point that was held back: it narrows the slopes that a carrying line may have."""
        time0, value0 = self._emitted[-1]
        run, gain = time - time0, value - value0
        corridor = tolerated / 2
        low, high = (gain - corridor) / run, (gain + corridor) / run
        if low > self._low:  # noqa: PLR1730 # max() would cost more than all the rest
            self._low = low
        if high < self._high:  # noqa: PLR1730 # as above
            self._high = high
        self._previous = (time, value)

    def bent(self, time: int, value: float) -> bool:
        """Say whether the line from the last emission to this point leaves the corridor of a point held back."""
        time0, value0 = self._emitted[-1]
        slope = (value - value0) / (time - time0)
        return not self._low <= slope <= self._high

    def unsent(self, value: float) -> float:
        """Return the increase since the last emission."""
        return value - self._emitted[-1][1]

    def misread(self, time: int, value: float, window: int, tolerated: float) -> bool:
        """Say whether an alert that reads the rate now would be off by more than *tolerated* (an increase)."""
        read = extrapolated_increase(self._emitted, time, window)
        return read is None or abs(read - self.increase(time, value, window)) > tolerated

    def increase(self, time: int, value: float, window: int) -> float:
        """Return the increase over the window that ends now; where it starts is read off the line between emissions."""
        start = time - window
        points = self._emitted
        oldest_time, oldest_value = points[0]
        if start <= oldest_time:
            return value - oldest_value
        points_and_now = (*points, (time, value))
        for (time0, value0), (time1, value1) in pairwise(points_and_now):
            if time1 > start:
                return value - (value0 + (start - time0) / (time1 - time0) * (value1 - value0))
        return 0.0

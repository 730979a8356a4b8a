"""A histogram of what this process counts itself."""

from __future__ import annotations

from bisect import bisect_left

from otelperf.readings import Buckets

# The bounds that the semantic conventions give to gen_ai durations: 10 ms, doubling.
DOUBLING = tuple(0.01 * 2**step for step in range(14))


class Histogram:
    """Counts values between *bounds*, which are in rising order. Whoever has it holds a lock."""

    __slots__ = ("_bounds", "_counts", "_sum", "count")

    def __init__(self, bounds: tuple[float, ...] = DOUBLING) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        """Count *value*."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value
        self.count += 1

    def buckets(self) -> Buckets:
        """Return what was counted so far."""
        return Buckets(self.count, self._sum, self._bounds, tuple(self._counts))

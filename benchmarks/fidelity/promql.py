"""What Prometheus answers, as a model: for many intervals at once, and checked against the real one.

The rules are ``extrapolatedRate`` in prometheus/promql/functions.go and ``BucketQuantile`` in promql/quantile.go of
Prometheus 3: windows are open on the left, a lookback is 5 minutes, a stale mark ends a series. Times are in ms.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from benchmarks.fidelity.inputs import Value
from otelperf.gate.trend import extrapolated
from otelperf.readings import Buckets

LOOKBACK = 300_000
MINUTE, WINDOW = 60_000, 120_000


class Stored:
    """One series as stored so far: a number each time, a histogram, or None for a stale mark."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.values: list[Value | None] = []
        self._rates: tuple[int, tuple[Sequence[float], list[float]] | None] = (-1, None)  # asked for several quantiles

    def add(self, time: int, value: Value | None) -> None:
        """Store a sample, in its place in time. One that has the time of another is not stored."""
        if not self.times or time > self.times[-1]:
            self.times.append(time)
            self.values.append(value)
            return
        place = bisect_left(self.times, time)
        if self.times[place] != time:
            self.times.insert(place, time)
            self.values.insert(place, value)

    def value(self, now: int) -> float | None:
        """Return what an instant query shows."""
        place = bisect_right(self.times, now) - 1
        if place < 0 or self.times[place] <= now - LOOKBACK:
            return None
        value = self.values[place]
        return value if isinstance(value, int | float) else None

    def rate(self, now: int, window: int) -> float | None:
        """Return ``rate(x[window])`` of a counter."""
        times, values = self._inside(now, window)
        return _rate(times, values, now, window)  # type: ignore[arg-type] # a counter's values are numbers

    def bucket_rates(self, now: int) -> tuple[Sequence[float], list[float]] | None:
        """Return the bounds and ``rate(x_bucket[2m])``, running totals by bound with +Inf last."""
        if self._rates[0] != now:
            self._rates = now, self._bucket_rates(now)
        return self._rates[1]

    def _bucket_rates(self, now: int) -> tuple[Sequence[float], list[float]] | None:
        times, found = self._inside(now, WINDOW)
        buckets = [value for value in found if isinstance(value, Buckets)]
        if len(buckets) < 2:  # a rate needs two points
            return None
        columns = zip(*(accumulate(each.counts) for each in buckets), strict=True)
        rates = [_rate(times, column, now, WINDOW) for column in columns]
        return buckets[0].bounds, [rate for rate in rates if rate is not None]

    def _inside(self, now: int, window: int) -> tuple[list[int], list[Value]]:
        begin, end = bisect_right(self.times, now - window), bisect_right(self.times, now)
        pairs = [
            (time, value)
            for time, value in zip(self.times[begin:end], self.values[begin:end], strict=True)
            if value is not None
        ]
        return [time for time, _ in pairs], [value for _, value in pairs]


def _rate(times: Sequence[int], values: Sequence[float], now: int, window: int) -> float | None:
    if len(times) < 2:  # a rate needs two points
        return None
    first, last = values[0], values[-1]
    increase, before = last - first, first
    for value in values:
        if value < before:
            increase += before  # a reset
        before = value
    sampled, to_start, to_end = times[-1] - times[0], times[0] - (now - window), now - times[-1]
    return extrapolated(increase, first, sampled, len(times), to_start, to_end) / (window / 1000)


def histogram_quantile(share: float, bounds: Sequence[float], running: Sequence[float]) -> float | None:
    """Return ``histogram_quantile(share, …)`` of running totals by bound; None where it would be NaN."""
    total = running[-1]
    if not total or not bounds:
        return None
    rank = share * total
    place = next(index for index, below in enumerate([*running[:-1], math.inf]) if below >= rank)
    if place == len(bounds):
        return bounds[-1]
    if place == 0 and bounds[0] <= 0:
        return bounds[0]
    low, below = (bounds[place - 1], running[place - 1]) if place else (0.0, 0.0)
    return low + (bounds[place] - low) * (rank - below) / (running[place] - below)


VALUE, RATE_1M, RATE_2M, MEDIAN, P95 = "value", "rate[1m]", "rate[2m]", "p50[2m]", "p95[2m]"
WINDOWS = {RATE_1M: MINUTE // 1000, RATE_2M: WINDOW // 1000}  # s
SHARES = {MEDIAN: 0.5, P95: 0.95}


def ask(stored: Stored, question: str, now: int) -> float | None:
    """Return the answer to a question."""
    if question == VALUE:
        return stored.value(now)
    if question in WINDOWS:
        return stored.rate(now, WINDOWS[question] * 1000)
    found = stored.bucket_rates(now)
    return None if found is None else histogram_quantile(SHARES[question], *found)

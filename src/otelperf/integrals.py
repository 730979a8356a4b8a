"""Time integrals of gauges as counters, so that ``rate()`` is the true mean however seldom the gauge itself is sent.

A value read is held until the next reading (as a dashboard holds it), so ``rate()`` is the mean of what was read, each value
weighted by the time it was known for. Over a gap nothing is known, and nothing is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import inf

from otelperf import catalog
from otelperf.readings import Batch, Buckets, Reading, Snapshot

_SECOND = 1e9
_GAP = 2.5  # intervals of the source: one reading that came late or failed is bridged, no more


class Integrals:
    """Adds the integrals of the metrics that fit one of *patterns* (globs) to snapshots.

    *intervals* is how often each source is read, in seconds. Streams that a snapshot does not list are forgotten: one that
    returns begins anew, at 0.
    """

    def __init__(self, patterns: Sequence[str], intervals: Mapping[str, float]) -> None:
        self._names = {
            row.name: catalog.integral_name(row.name)
            for row in catalog.METRICS
            if row.averaged is not None and any(fnmatchcase(row.name, pattern) for pattern in patterns)
        }
        self._longest: dict[str, int] = {}
        for source, interval in intervals.items():
            self.add(source, interval)
        self._streams: dict[tuple[str, str, frozenset[object]], _Stream] = {}

    def add(self, source: str, interval: float) -> None:
        """Know how often one more source is read, in seconds."""
        self._longest[source] = int(_GAP * interval * _SECOND)

    def added_to(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with the integrals as further batches, each at the time up to which its totals are known."""
        if not self._names:
            return snapshot
        for source in snapshot.health:
            if source.interval is not None:  # it was slowed: what is further apart is no gap yet
                self.add(source.source, source.interval)
        streams: dict[tuple[str, str, frozenset[object]], _Stream] = {}
        batches: list[Batch] = []
        for batch in snapshot.batches:
            at: dict[int, list[Reading]] = {}
            for reading in batch.readings:
                name = self._names.get(reading.name)
                if name is None or isinstance(reading.value, Buckets):
                    continue
                key = (batch.entity, name, frozenset(reading.attributes.items()))
                stream = self._streams.get(key)
                if stream is None or batch.time < stream.read:  # new, or the clock was set back
                    stream = _Stream(batch.time)
                stream.take(batch.time, reading.value, self._longest[batch.source])
                streams[key] = stream
                at.setdefault(stream.known, []).append(Reading(name, stream.total, reading.attributes, stream.start))
            batches += [Batch(batch.source, batch.entity, time, tuple(readings)) for time, readings in at.items()]
        self._streams = streams
        return replace(snapshot, batches=(*snapshot.batches, *batches))


class _Stream:
    """One integral. Times are Unix ns: *start* of the integration, newest *read*, and up to when the total is *known*."""

    __slots__ = ("held", "known", "read", "start", "total")

    def __init__(self, start: int) -> None:
        self.start = self.read = self.known = start
        self.total = 0.0
        self.held: float | None = None

    def take(self, time: int, value: float, longest: int) -> None:
        """Hold the last value up to *time* if that is at most *longest* away, and *value* from there on."""
        if self.held is not None and time - self.read <= longest:
            self.total += self.held * ((time - self.read) / _SECOND)
            self.known = time
        # NaN, infinities and negative values (a counter must not fall) are unknown: until the next good one the total
        # stays at its old time, and the gate takes it for what it is, not newly read.
        valid = 0 <= value < inf
        if valid:
            self.known = time
        self.read, self.held = time, value if valid else None

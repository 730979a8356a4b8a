"""Calls of models that this process makes: how many are under way, and the time between the chunks of streams.

A stream has hundreds of chunks, so they are counted here, by an addition each, rather than by an OpenTelemetry instrument.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left

from otelperf.readings import Attributes, Buckets, Reading

# As the semantic conventions have it for gen_ai.client.operation.time_per_output_chunk: 10 ms, doubling.
BOUNDS = tuple(0.01 * 2**step for step in range(14))
_MOST = 1000  # kinds of calls


class Kind:
    """The calls of one operation, provider and model."""

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was counted: in a forked child it is the parent's, and so is the lock."""
        self._lock = threading.Lock()
        self._start = time.time_ns()
        self._active = 0
        self._counts = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def begin(self) -> None:
        """A call begins."""
        with self._lock:
            self._active += 1

    def end(self) -> None:
        """A call is over."""
        with self._lock:
            self._active = max(0, self._active - 1)

    def gap(self, seconds: float) -> None:
        """A chunk came *seconds* after the one before."""
        place = bisect_left(BOUNDS, seconds)
        with self._lock:
            self._counts[place] += 1
            self._seconds += seconds

    def readings(self) -> list[Reading]:
        """Read both; a kind without streams has no chunks."""
        with self._lock:
            active, start, count = self._active, self._start, sum(self._counts)
            buckets = Buckets(count, self._seconds, BOUNDS, tuple(self._counts))
        found = [Reading("otelperf.client.active_requests", active, self.attributes)]
        if count:
            found.append(Reading("gen_ai.client.operation.time_per_output_chunk", buckets, self.attributes, start))
        return found


class Calls:
    """The source of all kinds of calls of this process."""

    name = "calls"

    def __init__(self, entity: str) -> None:
        self.entity = entity

    def read(self, now: int) -> list[Reading]:
        """Read each kind."""
        return [reading for each in tuple(_kinds.values()) for reading in each.readings()]

    def close(self) -> None:
        """Nothing is kept open."""


_kinds: dict[tuple[str, str | None, str | None], Kind] = {}
_others = Kind({"gen_ai.operation.name": "_OTHER"})


def kind(operation: str, provider: str | None, model: str | None) -> Kind:
    """Return the kind of these calls. From 1,000 on they are one, ``_OTHER``: names made for each call must not fill memory."""
    key = (operation, provider, model)
    found = _kinds.get(key)
    if found is None:
        if len(_kinds) >= _MOST:
            return _kinds.setdefault(("_OTHER", None, None), _others)
        given = {"gen_ai.operation.name": operation, "gen_ai.provider.name": provider, "gen_ai.request.model": model}
        found = _kinds.setdefault(key, Kind({name: value for name, value in given.items() if value is not None}))
    return found


def _in_child() -> None:
    for each in _kinds.values():
        each.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

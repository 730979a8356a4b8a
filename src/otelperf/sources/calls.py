"""Calls of models that this process makes: how many are under way, and the time between the chunks of streams.

A stream has hundreds of chunks, so they are counted here, by an addition each, rather than by an OpenTelemetry instrument.
"""

from __future__ import annotations

import threading
import time

from otelperf.readings import Attributes, Reading
from otelperf.sources.histogram import Histogram
from otelperf.sources.registry import Registry, RegistrySource, text

_Key = tuple[str, str | None, str | None]


class Kind:
    """The calls of one operation, provider and model."""

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was counted: in a forked child it is the parent's, and so is the lock."""
        # Reentrant: a garbage collection may close a generator, and so end what it measures, anywhere, in here too.
        self._lock = threading.RLock()
        self._start = time.time_ns()
        self._active = 0
        self._gaps = Histogram()

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
        with self._lock:
            self._gaps.add(seconds)

    def readings(self) -> list[Reading]:
        """Read both; a kind without streams has no chunks."""
        with self._lock:
            active, start, gaps = self._active, self._start, self._gaps.buckets()
        found = [Reading("otelperf.client.active_requests", active, self.attributes)]
        if gaps.count:
            found.append(Reading("gen_ai.client.operation.time_per_output_chunk", gaps, self.attributes, start))
        return found


def _kind(key: _Key) -> Kind:
    given = zip(("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"), key, strict=True)
    return Kind({name: value for name, value in given if value is not None})


_kinds: Registry[_Key, Kind] = Registry(_kind, ("_OTHER", None, None))


class Calls(RegistrySource):
    """The source of all kinds of calls of this process."""

    name = "calls"
    registry = _kinds


def kind(operation: str, provider: str | None, model: str | None) -> Kind:
    """Return the kind of these calls. From 1,000 on they are one, ``_OTHER``."""
    return _kinds[text(operation) or "", text(provider), text(model)]

"""What an inference server's map is made of. A map says which series of its pages become which metric: data as far as it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from otelperf.readings import Attributes, Reading

MODEL = "gen_ai.request.model"
TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 # an attribute's name
REQUEST_STATE = "otelperf.request.state"
WORKER_ID = "otelperf.worker.id"
WORKER_STATE = "otelperf.worker.state"

_EXACT = 2.0**53  # from here on a float no longer tells neighbours apart

TOKENS = "otelperf.server.tokens"
THROUGHPUT = "otelperf.server.token.throughput"


@dataclass(frozen=True, slots=True)
class Take:
    """One series of the metrics page that becomes readings of *metric*; *labels* that become attributes, by their new name.

    A *histogram*'s series is named without ``_bucket``, and passes with the server's own bounds.
    """

    series: str
    metric: str
    attributes: Attributes = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    histogram: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a server apart from its metrics page: attributes for its points, and plain numbers."""

    model: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """One scrape: each series by name, summed over its labels, and when (Unix ns)."""

    time: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class JsonPage:
    """A JSON page that is read with every scrape; *readings* turns its content into readings."""

    path: str
    readings: Callable[[Any, Facts], list[Reading]]


@dataclass(frozen=True, slots=True)
class Engine:
    """An inference server.

    *name* is the service.name of its metrics unless the user has another.
    *off* maps the HTTP status that says that metrics are switched off to the cure. *derive* makes readings of two
    successive scrapes (the first None at the start), *facts* reads the page at *facts_path*, asked once a minute.
    *also* are series that only *derive* needs. *counters* fall only when the server was restarted. *started* is the series with
    the process' start (Unix seconds), if the server has one.
    """

    name: str
    metrics_path: str
    takes: tuple[Take, ...]
    off: Mapping[int, str]
    pages: tuple[JsonPage, ...]
    facts_path: str
    facts: Callable[[Any], Facts]
    derive: Callable[[Moment | None, Moment, Facts], list[Reading]]
    also: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    started: str | None = None

    def wanted(self) -> frozenset[str]:
        """Return the series that are read off the metrics page."""
        plain = {take.series for take in self.takes if not take.histogram}
        parts = {take.series + part for take in self.takes if take.histogram for part in ("_bucket", "_sum", "_count")}
        return frozenset({*plain, *parts, *self.also, *self.counters, *([self.started] if self.started else [])})


def grown(before: Moment, now: Moment, series: str) -> float | None:
    """Return a counter's increase between two scrapes; after a reset, what it counted since; None where there is no number."""
    new, old = now.values.get(series), before.values.get(series)
    if new is None or old is None or not isfinite(new) or not isfinite(old):
        return None
    return new - old if new >= old else new


def whole(value: float) -> float:
    """Return *value* as an int where it is one and OTLP, whose whole numbers have 64 bits, can carry it."""
    return int(value) if abs(value) < _EXACT and value.is_integer() else value

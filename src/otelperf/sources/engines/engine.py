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
    """One series of the metrics page that becomes readings of *metric*; *labels* that become attributes, by their new name."""

    series: str
    metric: str
    attributes: Attributes = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a server apart from its metrics page: attributes for its points, and plain numbers."""

    model: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """One scrape: the series without labels by name, and when (Unix ns)."""

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

    *name* is also its gen_ai.provider.name and the service.name of its metrics unless the user has another.
    *off* maps the HTTP status that says that metrics are switched off to the cure. *derive* makes readings of two
    successive scrapes (the first None at the start), *facts* reads the page at *facts_path*, asked once a minute.
    *also* are series that only *derive* needs.
    """

    name: str
    port: int
    metrics_path: str
    takes: tuple[Take, ...]
    off: Mapping[int, str]
    pages: tuple[JsonPage, ...]
    facts_path: str
    facts: Callable[[Any], Facts]
    derive: Callable[[Moment | None, Moment, Facts], list[Reading]]
    also: tuple[str, ...] = ()


def grown(before: Moment, now: Moment, series: str) -> float | None:
    """Return a counter's increase between two scrapes; after a reset, what it counted since; None where there is no number."""
    new, old = now.values.get(series), before.values.get(series)
    if new is None or old is None or not isfinite(new) or not isfinite(old):
        return None
    return new - old if new >= old else new


def whole(value: float) -> float:
    """Return *value* as an int where it is one and OTLP, whose whole numbers have 64 bits, can carry it."""
    return int(value) if abs(value) < _EXACT and value.is_integer() else value

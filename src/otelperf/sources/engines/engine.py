"""What an inference server's map is made of. A map says which series of its pages become which metric: data as far as it goes.

Every item groups the samples it wants by the attributes that *labels* (its own and the engine's) make of them. So data-parallel
engines stay apart by themselves, and a label that no map names is summed over or left, as the item says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from otelperf.readings import Attributes, Reading

if TYPE_CHECKING:
    import re

MODEL = "gen_ai.request.model"
TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 # an attribute's name
ENGINE_INDEX = "otelperf.server.engine.index"
ERROR_TYPE = "error.type"
FINISH_REASON = "otelperf.finish_reason"
REQUEST_STATE = "otelperf.request.state"
WORKER_ID = "otelperf.worker.id"
WORKER_STATE = "otelperf.worker.state"
INPUT: Attributes = {TOKEN_TYPE: "input"}
OUTPUT: Attributes = {TOKEN_TYPE: "output"}
RUNNING: Attributes = {REQUEST_STATE: "running"}
WAITING: Attributes = {REQUEST_STATE: "waiting"}

_EXACT = 2.0**53  # from here on a float no longer tells neighbours apart

TOKENS = "otelperf.server.tokens"
THROUGHPUT = "otelperf.server.token.throughput"
REQUESTS = "otelperf.server.requests"
ERRORS = "otelperf.server.request.errors"
ACTIVE = "otelperf.server.active_requests"

Names = str | tuple[str, ...]  # several: the first that the page has, newest name first


def names_of(names: Names) -> tuple[str, ...]:
    """Return the names as a tuple."""
    return (names,) if isinstance(names, str) else names


@dataclass(frozen=True, slots=True)
class Of:
    """Samples of one series: those whose label has one of the values in *only*; added up. An absent label is ``""``."""

    series: Names
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Take:
    """One series of the metrics page that becomes readings of *metric*; *labels* that become attributes, by their new name.

    Samples that differ only in labels without a name here are one stream: *combine* says whether their values are added, the
    largest taken, or (``first``) not expected: the first is kept and the others told. *scale* turns the server's unit into
    the metric's. With *zero*, a page that has the series but no sample that fits *only* says 0: client libraries show a
    label's value from its first use on. *number*: the value is what this label says, as info series have it.
    A *histogram*'s series is named without ``_bucket``, and passes with the server's own bounds. A *fallback* is made only for
    attributes for which no item before it has made the metric.
    """

    series: Names
    metric: str
    attributes: Attributes = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    histogram: bool = False
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    combine: Literal["first", "sum", "max"] = "first"
    scale: float = 1.0
    zero: bool = False
    number: str = ""
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Sum:
    """What all *parts* say, added up; absent where one of them is."""

    metric: str
    parts: tuple[Of, ...]
    attributes: Attributes = field(default_factory=dict)
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Rate:
    """What the counter *of* grew by since the last scrape, per second: 0 when nothing happened, absent at the first scrape."""

    metric: str
    of: Of
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ratio:
    """What *part* grew by since the last scrape as a share of what *whole* grew by; absent where *whole* did not grow.

    Each side is the sum of its series, absent where one of them is. With *growth* false: the ratio of the values as they stand.
    """

    metric: str
    part: tuple[Of, ...]
    whole: tuple[Of, ...]
    attributes: Attributes = field(default_factory=dict)
    growth: bool = True


@dataclass(frozen=True, slots=True)
class States:
    """Each engine as a worker: sleeping where *sleeping* says more than 0, else active or idle as *running* does.

    *worker* is the label that tells engines apart, if the server has one.
    """

    running: Of
    sleeping: Of | None = None
    worker: str = ""


Item = Take | Sum | Rate | Ratio | States


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
    """A JSON page that is read with every scrape; *readings* turns its content into readings.

    With *instead*, only where the metrics page had nothing. A status in *quiet* is no trouble: the page is optional. *off* maps
    a status that says that the page is switched off to the cure.
    """

    path: str
    readings: Callable[[Any, Facts], list[Reading]]
    instead: bool = False
    quiet: tuple[int, ...] = ()
    off: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Print:
    """A fingerprint: the page at *path*, answered with *status*, in which *pattern* is found."""

    path: str
    pattern: re.Pattern[bytes]
    status: int = 200


def _nothing(_before: Moment | None, _now: Moment, _facts: Facts) -> list[Reading]:
    return []


@dataclass(frozen=True, slots=True)
class Engine:
    """An inference server.

    *name* is the service.name of its metrics unless the user has another. *prints* tell it from other servers, *ports* are
    where it listens unless told otherwise. *labels* become attributes of every item's readings, where a sample has them.
    *off* maps the HTTP status that says that metrics are switched off to the cure. *facts* reads the JSON page at *facts_path*,
    asked once a minute (a status in *facts_quiet* is no trouble). *derive* makes readings of two successive scrapes (the
    first None at the start) where no item can; *also* are series that only *derive* needs. *counters* fall only when the
    server was restarted. *started* is the series with the process' start (Unix seconds), if the server has one.
    *steps* are series that change with each step of work, not only when a request ends: they tell an engine that is stuck.
    A server without a metrics page has the *metrics_path* ``""``. *native* are the series, as globs, that are sent under
    their own names as well.
    """

    name: str
    metrics_path: str
    items: tuple[Item, ...]
    prints: tuple[Print, ...]
    ports: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    off: Mapping[int, str] = field(default_factory=dict)
    pages: tuple[JsonPage, ...] = ()
    facts_path: str = ""
    facts: Callable[[Any], Facts] = lambda _: Facts()
    facts_readings: Callable[[Facts], list[Reading]] = lambda _: []
    facts_quiet: tuple[int, ...] = ()
    derive: Callable[[Moment | None, Moment, Facts], list[Reading]] = _nothing
    also: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    started: str | None = None
    steps: tuple[str, ...] = ()
    native: tuple[str, ...] = ()

    @property
    def takes(self) -> tuple[Take, ...]:
        """The items that are one series each."""
        return tuple(item for item in self.items if isinstance(item, Take))

    def metrics(self) -> frozenset[str]:
        """Return the metrics that the items make."""
        return frozenset("otelperf.worker.state" if isinstance(item, States) else item.metric for item in self.items)

    def series(self) -> frozenset[str]:
        """Return the series that are read, a histogram's without its parts."""
        named = (name for item in self.items for names in _names_in(item) for name in names_of(names))
        return frozenset({*named, *self.also, *self.counters, *self.steps, *([self.started] if self.started else [])})

    def wanted(self) -> frozenset[str]:
        """Return the names of the lines that are read off the metrics page."""
        histograms = {name for take in self.takes if take.histogram for name in names_of(take.series)}
        return frozenset(
            {
                *(self.series() - histograms),
                *(name + part for name in histograms for part in ("_bucket", "_sum")),
            }
        )


def unmapped(engine: Engine) -> Engine:
    """Return the server with nothing but its own names; one without a metrics page has none, and stays as it is."""
    if not engine.metrics_path:
        return engine
    return replace(
        engine,
        items=(),
        pages=(),
        derive=_nothing,
        also=(),
        steps=(),
        facts_path="",
        facts_readings=lambda _: [],
        labels={},
    )


def _names_in(item: Item) -> list[Names]:
    match item:
        case Take():
            return [item.series]
        case Sum():
            return [of.series for of in item.parts]
        case Rate():
            return [item.of.series]
        case Ratio():
            return [of.series for of in (*item.part, *item.whole)]
        case States():
            return [of.series for of in (item.running, item.sleeping) if of is not None]


def grown(before: Moment, now: Moment, series: str) -> float | None:
    """Return a counter's increase between two scrapes; after a reset, what it counted since; None where there is no number."""
    new, old = now.values.get(series), before.values.get(series)
    if new is None or old is None or not isfinite(new) or not isfinite(old):
        return None
    return new - old if new >= old else new


def whole(value: float) -> float:
    """Return *value* as an int where it is one and OTLP, whose whole numbers have 64 bits, can carry it."""
    return int(value) if abs(value) < _EXACT and float(value).is_integer() else value

"""Series under the server's own names, for the boards, rules and autoscalers that know them: beside the map, or instead of it.

Each keeps its name, its labels (but empty ones, which Prometheus does not keep either), its help and its type: what has
none is a gauge, a histogram is whole, of a summary the sum and the count are counters and each quantile is a gauge.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from fnmatch import translate
from typing import NamedTuple, TypeVar

from otelperf.readings import Attributes, Native, Reading
from otelperf.sources.engines.engine import whole
from otelperf.sources.engines.exposition import LONGEST, Families, Lines, Place
from otelperf.sources.engines.mapping import STREAMS

T = TypeVar("T")

_PARTS = ("_bucket", "_sum", "_count")
_REMEMBERED = 10_000  # names
# Prometheus makes these itself; a second target_info would break each join on it.
_TAKEN = frozenset({"up", "target_info", "otel_scope_info", "ALERTS", "ALERTS_FOR_STATE"})
_OURS = "otelperf_"
_LONGEST_NAME = 500  # characters
_PATIENCE = 300_000_000_000  # ns: some series are there only from the first request on
SCRAPED = "up"  # on no page: the server's source says it


class Chosen:
    """The names that *globs* mean, and *others*. A glob that fits a histogram or one of its parts means all of it.

    The ``_created`` series of client libraries are taken only if a glob names them whole.
    """

    def __init__(self, globs: Sequence[str], others: AbstractSet[str] = frozenset()) -> None:
        whole_names = [glob.removesuffix(_part(glob)) for glob in globs]
        self._match = re.compile("|".join(map(translate, (*globs, *whole_names)))).match
        self._exact = frozenset(globs) | others
        self._known: dict[str, bool] = {}

    def __contains__(self, name: object) -> bool:
        found = self._known.get(name)  # type: ignore[call-overload] # any other than a name is not in it
        if found is None:
            if len(str(name)) > _LONGEST_NAME:  # that is no name, and must not be remembered
                return False
            if len(self._known) > _REMEMBERED:  # a server that invents names must not fill our memory
                self._known.clear()
            found = self._known[str(name)] = self._fits(str(name))
        return bool(found)

    def _fits(self, name: str) -> bool:
        if name in self._exact:
            return True
        if name.endswith("_created"):
            return False
        return bool(self._match(name) or self._match(name.removesuffix(_part(name))))


class Fits:
    """Which of *globs* fit something that a server's pages have. One that fits nothing is most likely misspelt."""

    def __init__(self, globs: Sequence[str]) -> None:
        self._missing = self._all = {glob: Chosen((glob,)) for glob in globs if glob != SCRAPED}
        self._since = 0
        self._told: set[str] = set()

    @property
    def looked(self) -> bool:
        """Whether the server has been ready since its start."""
        return self._since > 0

    @property
    def missing(self) -> Collection[str]:
        """Those that have fitted nothing since the server's start."""
        return self._missing.keys()

    def look(self, now: int, readings: Sequence[Reading]) -> list[str]:
        """Return which fitted nothing for as long as series may take to appear, each once; *now* is Unix ns.

        *readings* are what the server gave when it was ready.
        """
        self._since = self._since or now
        if not self._missing:
            return []
        names = {reading.name for reading in readings if reading.native}
        self._missing = {
            glob: chosen for glob, chosen in self._missing.items() if not any(name in chosen for name in names)
        }
        if now - self._since < _PATIENCE:
            return []
        late = [glob for glob in self._missing if glob not in self._told]
        self._told.update(late)
        return late

    def forget(self) -> None:
        """Begin anew: the server has restarted, perhaps as another version. What was told is not told again."""
        self._missing, self._since = self._all, 0


class _Role(NamedTuple):
    """What the lines of one name are: *part* is that of a histogram which they are, ``""`` for a series of its own."""

    name: str
    part: str
    native: Native


class Natives:
    """Turns the pages of one server into readings under its own names: those that *globs* mean."""

    def __init__(self, globs: Sequence[str]) -> None:
        self._chosen = Chosen(globs)
        self._roles: dict[str, _Role | None] = {}
        self._changes = 0
        self._told: set[str] = set()

    def readings(self, lines: Lines, families: Families, start: int | None, troubles: list[str]) -> list[Reading]:
        """Return what was chosen; *start* (Unix ns) is the counters'. A series with too many label sets is told once."""
        if families.changes != self._changes:  # another version may have other types
            self._roles, self._changes = {}, families.changes
        found: list[Reading] = []
        histograms: dict[str, _Role] = {}
        for series, values in lines.items():
            try:
                role = self._roles[series]
            except KeyError:
                if len(self._roles) > _REMEMBERED:
                    self._roles = {}
                role = self._roles[series] = self._role(series, families)
            if role is None:
                continue
            if role.part:
                histograms.setdefault(role.name, role)
                continue
            since = None if role.native.kind == "gauge" else start
            few = self._few(series, values, troubles)
            found += [Reading(series, whole(value), _attributes(place), since, role.native) for place, value in few]
        for name, role in histograms.items():
            several = self._few(name, lines.histograms(name), troubles)
            found += [Reading(name, buckets, _attributes(place), start, role.native) for place, buckets in several]
        return found

    def _role(self, series: str, families: Families) -> _Role | None:
        if series not in self._chosen or series in _TAKEN or series.startswith(_OURS):
            return None
        part = _part(series)
        stem = series.removesuffix(part)
        if part and families.kind(stem) == "histogram":
            return None if part == "_count" else _Role(stem, part, Native("histogram", families.meaning(stem)))
        if part and families.kind(stem) == "summary":
            return _Role(series, "", Native("sum", families.meaning(stem)))
        family = series if families.kind(series) else series.removesuffix("_total")  # OpenMetrics types it without
        meaning = families.meaning(family)
        if families.kind(family) != "counter":
            return _Role(series, "", Native("gauge", meaning))
        return _Role(series, "", Native("counter" if _kept(series) else "sum", meaning))

    def _few(self, series: str, values: list[tuple[Place, T]], troubles: list[str]) -> list[tuple[Place, T]]:
        """Leave as many streams as one series may have."""
        if len(values) > STREAMS and series not in self._told and len(self._told) < _REMEMBERED:
            self._told.add(series)
            troubles.append(f"{len(values)} series of {series}, {STREAMS} at most are passed through")
        return values[:STREAMS]


def _part(series: str) -> str:
    return next((part for part in _PARTS if series.endswith(part)), "")


def _kept(counter: str) -> bool:
    """Say whether Prometheus leaves a counter its name: it takes each ``total`` away and puts one at the end."""
    return counter.endswith("_total") and counter.split("_").count("total") == 1


def _attributes(place: Place) -> Attributes:
    """Return the same mapping for the same line each time: that makes the gate cheap."""
    found = place.memo.get("native")
    if found is None:
        found = place.memo["native"] = {
            name: text[:LONGEST] for name, text in place.labels.items() if text and not name.startswith("__")
        }
    return found

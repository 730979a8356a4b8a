"""Series under the server's own names, for the boards, rules and autoscalers that know them: beside the map, or instead of it.

Each keeps its name, its labels (but empty ones, which Prometheus does not keep either), its help and its type: what has
none is a gauge, a histogram is whole, of a summary the sum and the count are counters and each quantile is a gauge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from fnmatch import translate
from typing import NamedTuple

from otelperf.readings import Attributes, Native, Reading
from otelperf.sources.engines.engine import whole
from otelperf.sources.engines.exposition import Families, Lines, Place, as_buckets
from otelperf.sources.engines.mapping import LONGEST, STREAMS, Cell, upper_bound

_PARTS = ("_bucket", "_sum", "_count")
_REMEMBERED = 10_000  # names
# Prometheus makes these itself; a second target_info would break each join on it.
_TAKEN = frozenset({"up", "target_info", "otel_scope_info", "ALERTS", "ALERTS_FOR_STATE"})
_OURS = "otelperf_"
_LONGEST_NAME = 500  # characters


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
        self._cells: dict[tuple[str, int], Cell] = {}  # by the hash of its labels, which may be long
        self._told: set[str] = set()

    def readings(self, lines: Lines, families: Families, start: int | None, troubles: list[str]) -> list[Reading]:
        """Return what was chosen; *start* (Unix ns) is the counters'. A series with too many label sets is told once."""
        if families.changes != self._changes:  # another version may have other types
            self._roles, self._changes = {}, families.changes
        found: list[Reading] = []
        cells: dict[int, tuple[_Role, Cell]] = {}
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
                self._put(role, values, cells)
                continue
            since = None if role.native.kind == "gauge" else start
            few = self._few(series, values, troubles)
            found += [Reading(series, whole(value), _attributes(place), since, role.native) for place, value in few]
        return found + self._histograms(cells, start, troubles)

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

    def _few(self, series: str, values: list[tuple[Place, float]], troubles: list[str]) -> list[tuple[Place, float]]:
        """Leave as many streams as one series may have."""
        if len(values) > STREAMS:
            self._tell(series, len(values), troubles)
            return values[:STREAMS]
        return values

    def _tell(self, series: str, count: int, troubles: list[str]) -> None:
        if series not in self._told and len(self._told) < _REMEMBERED:
            self._told.add(series)
            troubles.append(f"{count} series of {series}, {STREAMS} at most are passed through")

    def _put(self, role: _Role, values: list[tuple[Place, float]], cells: dict[int, tuple[_Role, Cell]]) -> None:
        """Put each line of a histogram where it belongs."""
        for place, value in values:
            known = place.memo.get("native part")
            if known is None:
                known = place.memo["native part"] = self._cell(role, place)
            cell, bound = known
            if not cell.values:
                cells[id(cell)] = (role, cell)
            if bound == bound:  # NaN is no bound
                cell.values[bound] = value

    def _cell(self, role: _Role, place: Place) -> tuple[Cell, float | None]:
        labels = {name: text for name, text in place.labels.items() if name != "le"}
        key = (role.name, hash(frozenset(labels.items())))
        cell = self._cells.get(key)
        if cell is None:
            if len(self._cells) > _REMEMBERED:
                self._cells.clear()
            cell = self._cells[key] = Cell(_kept_labels(labels))
        return cell, upper_bound(place.labels.get("le", "")) if role.part == "_bucket" else None

    def _histograms(
        self, cells: Mapping[int, tuple[_Role, Cell]], start: int | None, troubles: list[str]
    ) -> list[Reading]:
        found: list[Reading] = []
        count: dict[str, int] = {}
        for role, cell in cells.values():
            total = cell.values.pop(None, None)
            buckets = as_buckets(cell.values, total)  # type: ignore[arg-type] # no None is left
            cell.values.clear()
            if buckets is None:
                continue
            count[role.name] = count.get(role.name, 0) + 1
            if count[role.name] <= STREAMS:
                found.append(Reading(role.name, buckets, cell.attributes, start, role.native))
        for name, several in count.items():
            if several > STREAMS:
                self._tell(name, several, troubles)
        return found


def _part(series: str) -> str:
    return next((part for part in _PARTS if series.endswith(part)), "")


def _kept(counter: str) -> bool:
    """Say whether Prometheus leaves a counter its name: it takes each ``total`` away and puts one at the end."""
    return counter.endswith("_total") and counter.split("_").count("total") == 1


def _attributes(place: Place) -> Attributes:
    """Return the same mapping for the same line each time: that makes the gate cheap."""
    found = place.memo.get("native")
    if found is None:
        found = place.memo["native"] = _kept_labels(place.labels)
    return found


def _kept_labels(labels: Mapping[str, str]) -> Attributes:
    return {name: text[:LONGEST] for name, text in labels.items() if text and not name.startswith("__")}

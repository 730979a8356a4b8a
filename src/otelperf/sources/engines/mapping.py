"""A map at work: from the lines of a metrics page to readings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf, isfinite
from operator import lt
from typing import Any, assert_never

from otelperf.readings import Attributes, Buckets, Reading
from otelperf.sources.engines.engine import (
    WORKER_ID,
    WORKER_STATE,
    Engine,
    Item,
    Names,
    Of,
    Rate,
    Ratio,
    States,
    Sum,
    Take,
    names_of,
    whole,
)
from otelperf.sources.engines.exposition import LONGEST, Lines, Place

_SECOND = 1e9
STREAMS = 256  # streams of one item at most: labels whose values users choose must not become series without end
_REMEMBERED = 10_000  # attribute sets
_COUNTABLE = 2**53

_Amounts = dict[tuple[tuple[str, str], ...], float]  # by what the labels became


class Mapper:
    """Turns one server's pages, one after the other, into readings by its map."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._attributes: dict[tuple[Any, ...], Attributes] = {}
        self._before: dict[int, _Amounts] = {}  # by the identity of an Of
        self._time = 0

    def forget(self) -> None:
        """Count growth anew: the next page may be another server's."""
        self._before, self._time = {}, 0

    def readings(self, now: int, lines: Lines, start: int | None, troubles: list[str]) -> list[Reading]:
        """Return what the items make of the page read at *now*; *start* (Unix ns) is the counters'. Troubles are added in words."""
        page = _Page(self._engine, lines)
        seconds = (now - self._time) / _SECOND if self._time else 0.0
        found: list[Reading] = []
        for item in self._engine.items:
            made = self._made(item, page, seconds, start)
            if isinstance(item, Take) and item.fallback:
                told = [reading.attributes for reading in found if reading.name == item.metric]
                made = [reading for reading in made if reading.attributes not in told]
            if len(made) > STREAMS:
                streams = dict.fromkeys(id(reading.attributes) for reading in made)  # those not told apart are one
                if len(streams) > STREAMS:
                    troubles.append(f"{len(streams)} series of {made[0].name}, {STREAMS} at most are taken")
                    taken = set(list(streams)[:STREAMS])
                    made = [reading for reading in made if id(reading.attributes) in taken]
            found += made
        self._before, self._time = {id(of): page.amounts(of) for of in self._growing()}, now
        return found

    def _growing(self) -> Iterable[Of]:
        for item in self._engine.items:
            if isinstance(item, Rate):
                yield item.of
            elif isinstance(item, Ratio) and item.growth:
                yield from (*item.part, *item.whole)

    def _made(self, item: Item, page: _Page, seconds: float, start: int | None) -> list[Reading]:
        match item:
            case Take():
                return self._histograms(item, page, start) if item.histogram else self._taken(item, page, start)
            case Sum():
                total = _added(page.amounts(of) for of in item.parts)
                return self._each(item, {key: whole(value * item.scale) for key, value in total.items()}, start)
            case Rate():
                grown = self._grown((item.of,), page) if seconds > 0 else {}
                return self._each(item, {key: value / seconds for key, value in grown.items()})
            case Ratio():
                sides = self._grown if item.growth else _standing
                part, base = sides(item.part, page), sides(item.whole, page)
                return self._each(item, {key: part[key] / base[key] for key in part if base.get(key, 0.0) > 0})
            case States():
                return self._states(item, page)
        assert_never(item)

    def _each(self, item: Sum | Rate | Ratio, values: _Amounts, start: int | None = None) -> list[Reading]:
        return [
            Reading(item.metric, value, self._attributes_of(item.attributes, key), start)
            for key, value in values.items()
            if isfinite(value)  # numbers added up may be none
        ]

    def _grown(self, parts: tuple[Of, ...], page: _Page) -> _Amounts:
        """What the parts grew by together; after a restart, what they counted since."""
        return _added(_growth(self._before.get(id(of), {}), page.amounts(of)) for of in parts)

    def _taken(self, take: Take, page: _Page, start: int | None) -> list[Reading]:
        found: list[Reading] = []
        of: dict[int, int] = {}  # attribute sets are the same object each time
        lines = page.lines(take.series)
        for place, read in lines:
            attributes = self._wanted(take, place)
            if attributes is None:
                continue
            value = _number_in(place, take.number) if take.number else read
            if value is None:
                continue
            value = whole(value * take.scale)
            if take.combine == "first" or (at := of.setdefault(id(attributes), len(found))) == len(found):
                found.append(Reading(take.metric, value, attributes, start))
            else:
                old = found[at].value
                joined = max(old, value) if take.combine == "max" else whole(float(old) + value)  # type: ignore[type-var,arg-type] # numbers both
                found[at] = found[at]._replace(value=joined)
        if take.zero and lines and not found:
            found.append(Reading(take.metric, 0, take.attributes, start))
        return found

    def _histograms(self, take: Take, page: _Page, start: int | None) -> list[Reading]:
        found: dict[int, Reading] = {}
        for place, told in page.histograms(take.series):
            attributes = self._wanted(take, place)
            buckets = told if take.scale == 1.0 else _scaled(told, take.scale)
            if attributes is None or buckets is None:
                continue
            whose = id(attributes)
            reading = found.setdefault(whose, Reading(take.metric, buckets, attributes, start))
            if take.combine == "sum" and reading.value is not buckets:
                found[whose] = reading._replace(value=_together(reading.value, buckets))
        return list(found.values())

    def _states(self, item: States, page: _Page) -> list[Reading]:
        asleep = page.amounts(item.sleeping) if item.sleeping else {}
        known = (
            ("active", "idle", "sleeping") if item.sleeping and page.lines(item.sleeping.series) else ("active", "idle")
        )
        found: list[Reading] = []
        name = self._engine.labels.get(item.worker, "")
        for key, running in list(page.amounts(item.running).items())[:STREAMS]:
            state = "sleeping" if asleep.get(key, 0.0) > 0 else "active" if running > 0 else "idle"
            worker = {WORKER_ID: dict(key)[name]} if name in dict(key) else {}
            found += [
                Reading(
                    "otelperf.worker.state", int(state == each), self._attributes_of(worker, ((WORKER_STATE, each),))
                )
                for each in known
            ]
        return found

    def _wanted(self, take: Take, place: Place) -> Attributes | None:
        """Return the attributes of a line's readings, None where the item does not want it."""
        try:
            return place.memo[id(take)]  # type: ignore[no-any-return] # as below; the map outlives the line
        except KeyError:
            names, fits = {**self._engine.labels, **take.labels}, _fits(take.only, place.labels)
            found = self._attributes_of(take.attributes, _named(place.labels, names)) if fits else None
            place.memo[id(take)] = found
            return found

    def _attributes_of(self, fixed: Attributes, more: tuple[tuple[str, str], ...]) -> Attributes:
        """Return the same mapping for the same attributes each time: that makes the gate cheap."""
        if not more:
            return fixed
        key = (*fixed.items(), *more)
        found = self._attributes.get(key)
        if found is None:
            if len(self._attributes) > _REMEMBERED:  # a server that invents labels must not fill our memory
                self._attributes.clear()
            found = self._attributes[key] = {**fixed, **dict(more)}
        return found


class _Page:
    """The lines of one page, by series."""

    def __init__(self, engine: Engine, lines: Lines) -> None:
        self._lines = lines
        self._labels = engine.labels
        self._amounts: dict[int, _Amounts] = {}

    def chosen(self, names: Names, part: str = "") -> str:
        """Return the first name that the page has, the last if it has none."""
        several = names_of(names)
        return next((name for name in several if name + part in self._lines), several[-1])

    def lines(self, names: Names) -> list[tuple[Place, float]]:
        return self._lines.get(self.chosen(names), [])

    def histograms(self, names: Names) -> list[tuple[Place, Buckets]]:
        return self._lines.histograms(self.chosen(names, "_bucket"))

    def amounts(self, of: Of) -> _Amounts:
        """Add up what fits, by what the engine's labels become."""
        found = self._amounts.get(id(of))
        if found is None:
            found = self._amounts[id(of)] = {}
            for place, value in self.lines(of.series):
                try:
                    key = place.memo[id(of)]  # as above
                except KeyError:
                    fits = _fits(of.only, place.labels)
                    key = place.memo[id(of)] = _named(place.labels, self._labels) if fits else None
                if key is not None and isfinite(value) and (key in found or len(found) < _REMEMBERED):
                    found[key] = found.get(key, 0.0) + value
        return found


def _fits(only: Mapping[str, tuple[str, ...]], labels: Mapping[str, str]) -> bool:
    return all(labels.get(label, "") in values for label, values in only.items())


def _named(labels: Mapping[str, str], names: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((new, labels[old][:LONGEST]) for old, new in names.items() if labels.get(old))


def _added(parts: Iterable[_Amounts]) -> _Amounts:
    """Add amounts up; what one of them lacks is left out."""
    several = list(parts)
    keys = [key for key in several[0] if all(key in each for each in several)] if several else []
    return {key: sum(each[key] for each in several) for key in keys}


def _growth(before: _Amounts, now: _Amounts) -> _Amounts:
    return {key: value - before[key] if value >= before[key] else value for key, value in now.items() if key in before}


def _standing(parts: tuple[Of, ...], page: _Page) -> _Amounts:
    return _added(page.amounts(of) for of in parts)


def _together(one: Any, other: Buckets) -> Buckets:
    """Add two histograms of the same bounds; with others, or more than OTLP can carry, the first stays alone."""
    if one.bounds != other.bounds or one.count + other.count >= _COUNTABLE:
        return one  # type: ignore[no-any-return] # Buckets, as made above
    counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
    return Buckets(one.count + other.count, one.sum + other.sum, one.bounds, counts)


def _scaled(told: Buckets, scale: float) -> Buckets | None:
    """Return the histogram in another unit; None where its bounds no longer rise there."""
    bounds = tuple(bound * scale for bound in told.bounds)
    rise = all(map(lt, bounds, (*bounds[1:], inf)))
    return replace(told, sum=told.sum * scale, bounds=bounds) if rise else None


def _number_in(place: Place, label: str) -> float | None:
    try:
        value = float(place.labels.get(label, ""))
    except ValueError:
        return None
    return value if isfinite(value) else None

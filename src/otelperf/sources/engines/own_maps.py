"""A user's own map (setting ``server.maps``), from plain data to an engine: new, or a built-in one with other names and more."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from otelperf.sources.engines.engine import (
    Engine,
    Item,
    Moment,
    Names,
    Of,
    Print,
    Rate,
    Ratio,
    States,
    Sum,
    Take,
    names_of,
)

_PAGE = "/metrics"

_Rename = Callable[[str], str]


def engine_of(given: Mapping[str, Any], engines: Sequence[Engine], histograms: AbstractSet[str]) -> Engine:
    """Return the engine that a map, as the settings have read it, describes; *histograms* are the metrics that are."""
    page = given.get("page")
    items = tuple(_item(item, histograms) for item in given.get("items", ()))
    base = next((engine for engine in engines if engine.name == given.get("extends")), None)
    if base is None:
        base = Engine(name="", metrics_path=page or _PAGE, items=(), prints=())
    elif rename := given.get("rename"):
        base = _renamed(base, rename)
    path = page or base.metrics_path or _PAGE
    pattern = given.get("pattern")
    return replace(
        base,
        name=given["name"],
        metrics_path=path,
        items=base.items + items,
        prints=(
            (Print(path, re.compile(pattern.encode(), re.MULTILINE)),)
            if pattern
            else tuple(replace(each, path=path) if each.path == base.metrics_path else each for each in base.prints)
        ),
        ports=tuple(given.get("ports", base.ports)),
        labels={**base.labels, **given.get("labels", {})},
        counters=(*base.counters, *given.get("counters", ())),
        steps=(*base.steps, *given.get("steps", ())),
        started=given.get("started", base.started),
        native=tuple(given.get("passthrough", ())),
    )


def _item(given: Mapping[str, Any], histograms: AbstractSet[str]) -> Item:
    attributes: Mapping[str, str] = given.get("attributes", {})
    if states := given.get("states"):
        sleeping = states.get("sleeping")
        return States(_of(states["running"]), _of(sleeping) if sleeping else None, states.get("worker", ""))
    metric = given["metric"]
    if parts := given.get("sum"):
        return Sum(metric, _all_of(parts), attributes, given.get("scale", 1.0))
    if part := given.get("rate"):
        return Rate(metric, _of(part), attributes)
    if ratio := given.get("ratio"):
        return Ratio(metric, _all_of(ratio["part"]), _all_of(ratio["whole"]), attributes, ratio.get("growth", True))
    return Take(
        _names(given["series"]),
        metric,
        attributes,
        given.get("labels", {}),
        histogram=metric in histograms,
        only=_only(given),
        combine=given.get("combine", "first"),
        scale=given.get("scale", 1.0),
        zero=given.get("zero", False),
        number=given.get("number", ""),
    )


def _names(given: str | Sequence[str]) -> Names:
    return given if isinstance(given, str) else tuple(given)


def _only(given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {label: tuple(values) for label, values in given.get("only", {}).items()}


def _of(given: Mapping[str, Any]) -> Of:
    return Of(_names(given["series"]), _only(given))


def _all_of(given: Sequence[Mapping[str, Any]]) -> tuple[Of, ...]:
    return tuple(_of(each) for each in given)


def _renamed(engine: Engine, prefixes: Mapping[str, str]) -> Engine:
    """Return the engine whose series begin otherwise. Its fingerprint is that they do."""
    there, back = _renaming(prefixes), _renaming({new: old for old, new in prefixes.items()})

    def as_there(moment: Moment | None) -> Moment | None:
        return moment and Moment(moment.time, {back(name): value for name, value in moment.values.items()})

    begins = "|".join(map(re.escape, prefixes.values())).encode()
    fingerprint = re.compile(rb"^(?:# (?:TYPE|HELP) )?(?:" + begins + rb")", re.MULTILINE)
    derive = engine.derive
    return replace(
        engine,
        items=tuple(_renamed_item(item, there) for item in engine.items),
        prints=(Print(engine.metrics_path, fingerprint),),
        derive=lambda before, now, facts: derive(as_there(before), as_there(now) or now, facts),
        also=tuple(map(there, engine.also)),
        steps=tuple(map(there, engine.steps)),
        counters=tuple(map(there, engine.counters)),
        started=there(engine.started) if engine.started else None,
    )


def _renaming(prefixes: Mapping[str, str]) -> _Rename:
    def rename(name: str) -> str:
        for old, new in prefixes.items():
            if name.startswith(old):
                return new + name[len(old) :]
        return name

    return rename


def _renamed_item(item: Item, rename: _Rename) -> Item:
    def of(each: Of) -> Of:
        return replace(each, series=tuple(map(rename, names_of(each.series))))

    match item:
        case Take():
            return replace(item, series=tuple(map(rename, names_of(item.series))))
        case Sum():
            return replace(item, parts=tuple(map(of, item.parts)))
        case Rate():
            return replace(item, of=of(item.of))
        case Ratio():
            return replace(item, part=tuple(map(of, item.part)), whole=tuple(map(of, item.whole)))
        case States():
            return replace(item, running=of(item.running), sleeping=of(item.sleeping) if item.sleeping else None)

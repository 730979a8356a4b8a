"""The settings ``server.maps``, a user's own maps of inference servers, and ``server.passthrough``, series sent as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from otelperf.config_values import BOOLEAN, NAMES, NUMBER, PORT, SCALAR, Kind, UnfitError, near, quoted

# As in sources/engines, which settings must not load.
ENGINES = ("llama.cpp", "triton", "sglang", "tgi", "trtllm", "ray-vllm", "vllm", "ollama")
AUTO = "auto"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_SERIES = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_GLOB = re.compile(r"[a-zA-Z0-9_:*?\[\]!-]+")
_DECIMAL = re.compile(NUMBER)
_MAKES = ("series", "sum", "rate", "ratio", "states")  # what an item is made of: one of them
_COMBINES = ("first", "sum", "max")
_STATE = "otelperf.worker.state"
_OURS = ("otelperf.server.up", _STATE)  # made by otelperf itself, or by states
# Those of the built-in maps. Others may be used, but not ones that differ by a slip of the pen.
_ATTRIBUTES = (
    "error.type",
    "gen_ai.request.model",
    "gen_ai.token.type",
    "otelperf.finish_reason",
    "otelperf.request.state",
    "otelperf.server.engine.index",
    "otelperf.server.replica.id",
    "otelperf.server.startup.phase",
)
_SLIP = 0.94  # difflib's ratio: about a letter of ten, or two of thirty

Plain = dict[str, Any]


def _maps(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Read the list of maps; each fault is told, at its place."""
    if not isinstance(value, list):
        raise UnfitError
    maps, wrong = [], []
    for place, item in enumerate(value):
        try:
            maps.append(_map(item))
        except UnfitError as error:
            wrong += [f"in map {place + 1} {told}" for told in error.args]
    names = [each["name"] for each in maps]
    wrong += [
        f"two maps are named {name}, expected each name once" for name in sorted(set(names)) if names.count(name) > 1
    ]
    if wrong:
        raise UnfitError(*wrong)
    return tuple(maps)


def _map(item: Any) -> Plain:
    given = _known(item, _MAP_KEYS)
    found, wrong = _read(given, _MAP_KEYS)
    if "name" not in given:
        wrong.append("expected name, what the server is to be called")
    if not wrong:
        wrong += _incomplete(found)
    if wrong:
        raise UnfitError(*wrong)
    return found


def _incomplete(found: Plain) -> list[str]:
    """Tell what a map lacks, or has for nothing."""
    wrong = []
    if "extends" not in found:
        if "pattern" not in found:
            wrong.append("expected pattern, what is found on the page of this server and no other, or extends")
        if not found.get("items") and not found.get("passthrough"):
            wrong.append("expected items or passthrough: it would read nothing")
        if "rename" in found:
            wrong.append("rename has no meaning without extends")
        for item in found.get("items", ()):
            worker = item.get("states", {}).get("worker")
            if worker and worker not in found.get("labels", {}):
                told = "its workers would be one, expected it in labels as well"
                wrong.append(
                    f"worker is {quoted(worker)}: {told}, such as labels: {{{worker}: otelperf.server.engine.index}}"
                )
    return wrong


def _read(given: Mapping[str, Any], readers: Mapping[str, Callable[[str, Any], Any]]) -> tuple[Plain, list[str]]:
    """Read each value by its key's reader."""
    found: Plain = {}
    wrong: list[str] = []
    for key, value in given.items():
        try:
            found[key] = readers[key](key, value)
        except UnfitError as error:
            wrong += error.args
    return found, wrong


def _known(item: Any, known: Mapping[str, Any] | Sequence[str], what: str = "expected a mapping") -> Plain:
    if not isinstance(item, dict):
        raise UnfitError(what)
    lost = [name for name in item if name not in known]
    if lost:
        raise UnfitError(*(f"{name} is unknown{near(name, known)}" for name in lost))
    return {name: each for name, each in item.items() if each is not None}


def _refuse(key: str, value: Any, expected: str) -> UnfitError:
    return UnfitError(f"{key} is {quoted(value)}: expected {expected}")


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[str, Any], str]:
    def read(key: str, value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _refuse(key, value, expected)
        return value

    return read


_series = _matching(_SERIES, "the name of a series as it is on the page")
_label = _matching(_LABEL, "the name of a label")


def _name(key: str, value: Any) -> str:
    name = _matching(_NAME, "a name of small letters, digits, . _ and -")(key, value)
    if name in (AUTO, *ENGINES):
        raise _refuse(key, value, "another name than " + ", ".join((AUTO, *ENGINES)))
    return name


def _extends(key: str, value: Any) -> str:
    if value not in ENGINES:
        raise _refuse(key, value, "one of " + ", ".join(ENGINES) + near(str(value), ENGINES))
    return str(value)


def _rename(key: str, value: Any) -> dict[str, str]:
    expected = "a mapping of how series begin there to how they begin here"
    if not isinstance(value, dict) or not value:
        raise _refuse(key, value, expected)
    for old, new in value.items():
        if not _SERIES.fullmatch(old) or not isinstance(new, str) or not _SERIES.fullmatch(new):
            raise _refuse(key, value, expected)
    return dict(value)


def _page(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable() or " " in value:
        raise _refuse(key, value, "a path such as /metrics")
    return value


def _pattern(key: str, value: Any) -> str:
    try:
        if not isinstance(value, str) or not value or re.compile(value).match(""):
            raise _refuse(key, value, "a regular expression that not every page has, such as ^mine_")
    except re.error as error:
        raise _refuse(key, value, f"a regular expression ({error})") from None
    return value


def _ports(key: str, value: Any) -> list[int]:
    several = value if isinstance(value, list) else [value]
    try:
        ports = [PORT.parse(each) for each in several]
    except ValueError:
        ports = [0]
    if 0 in ports:
        raise _refuse(key, value, "a list of ports from 1 to 65535")
    return ports


def _globs(value: Any) -> tuple[str, ...]:
    globs = NAMES.parse(value)
    lost = [glob for glob in globs if not _GLOB.fullmatch(glob)]
    if lost:
        raise UnfitError(f"{', '.join(lost)}: expected names of series as they are on the server's page, or globs")
    return globs


def _passthrough(_: str, value: Any) -> list[str]:
    try:
        return list(_globs(value))
    except UnfitError as error:
        raise UnfitError(
            f"passthrough: {error.args[0] if error.args else 'expected a list of series, as globs'}"
        ) from None


def _names(key: str, value: Any) -> str | list[str]:
    """One name, or several of which the page's first is read."""
    if isinstance(value, list):
        if not value:
            raise _refuse(key, value, "at least one series")
        return [_series(key, each) for each in value]
    return _series(key, value)


def _list_of(read: Callable[[str, Any], Any]) -> Callable[[str, Any], list[Any]]:
    def several(key: str, value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise _refuse(key, value, "a list")
        return [read(key, each) for each in value]

    return several


def _texts(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) and name for name, each in value.items()):
        raise _refuse(key, value, "a mapping of attributes to text")
    return {_attribute(key, name): each for name, each in value.items()}


def _attribute(key: str, name: str) -> str:
    from difflib import get_close_matches  # as in near()

    close = get_close_matches(name, _ATTRIBUTES, n=1, cutoff=_SLIP)
    if close and name not in _ATTRIBUTES:
        raise _refuse(key, name, f"{close[0]}, or an attribute's name that is less like it")
    return name


def _labels(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) and each for each in value.values()):
        raise _refuse(key, value, "a mapping of labels to the attributes that they become")
    return {_label(key, name): _attribute(key, each) for name, each in value.items()}


def _only(key: str, value: Any) -> dict[str, list[str]]:
    if not isinstance(value, dict) or not value:
        raise _refuse(key, value, "a mapping of labels to the values wanted")
    found = {}
    for name, each in value.items():
        several = each if isinstance(each, list) else [each]
        if not all(isinstance(text, str) for text in several):
            raise _refuse(key, value, "a mapping of labels to the values wanted")
        found[_label(key, name)] = list(several)
    return found


def _combine(key: str, value: Any) -> str:
    if value not in _COMBINES:
        raise _refuse(key, value, "one of " + ", ".join(_COMBINES))
    return str(value)


def _scale(key: str, value: Any) -> float:
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value) or not 0 < float(value) < float("inf"):
        raise _refuse(key, value, "a number above 0, by which the server's values are multiplied")
    return float(value)


def _boolean(key: str, value: Any) -> bool:
    try:
        return BOOLEAN.parse(value)
    except ValueError:
        raise _refuse(key, value, "true or false") from None


def _part(key: str, value: Any) -> Plain:
    """A series whose samples are added up, or those with certain labels."""
    if not isinstance(value, dict):
        return {"series": _names(key, value)}
    found, wrong = _read(_known(value, _PART_KEYS), _PART_KEYS)
    if wrong:
        raise UnfitError(*wrong)
    if "series" not in found:
        raise _refuse(key, value, "a series, or a mapping of series and only")
    return found


def _parts(key: str, value: Any) -> list[Plain]:
    return [_part(key, each) for each in value] if isinstance(value, list) and value else [_part(key, value)]


def _structure(readers: Mapping[str, Callable[[str, Any], Any]], needed: Sequence[str]) -> Callable[[str, Any], Plain]:
    def read(key: str, value: Any) -> Plain:
        expected = f"{key}: expected a mapping of " + ", ".join(readers)
        found, wrong = _read(_known(value, readers, expected), readers)
        lost = [name for name in needed if name not in found]
        if wrong or lost:
            raise UnfitError(*(wrong or [f"{key}: expected {', '.join(lost)} as well"]))
        return found

    return read


def _items(_: str, value: Any) -> list[Plain]:
    if not isinstance(value, list):
        raise UnfitError("items: expected a list of mappings")
    items, wrong = [], []
    for place, item in enumerate(value):
        try:
            items.append(_item(item))
        except UnfitError as error:
            wrong += [f"item {place + 1}: {told}" for told in error.args]
    if wrong:
        raise UnfitError(*wrong)
    return items


def _item(item: Any) -> Plain:
    given = _known(item, _ITEM_KEYS)
    makes = [name for name in _MAKES if name in given]
    if len(makes) != 1:
        raise UnfitError("expected one of " + ", ".join(_MAKES) + (f", not {' and '.join(makes)}" if makes else ""))
    (make,) = makes
    idle = [name for name in given if name not in ("metric", make, *_BESIDE[make])]
    if idle:
        raise UnfitError(f"{', '.join(idle)} has no meaning beside {make}")
    found, wrong = _read(given, _ITEM_KEYS)
    wrong += [] if wrong else _unlike_the_metric(make, found)
    if wrong:
        raise UnfitError(*wrong)
    return found


def _no_metric(name: Any, known: Mapping[str, str]) -> str:
    told = f"metric is {quoted(name)}: " if name else ""
    if name in _OURS:
        return told + ("expected states" if name == _STATE else "otelperf makes it itself")
    close = near(name, known) if name else ""
    return f"{told}expected a server's metric of docs/metrics.md{close} (what none is like goes by passthrough)"


def _unlike_the_metric(make: str, found: Plain) -> list[str]:
    """Tell where the metric is missing, or of another kind than what the item makes."""
    from otelperf.catalog import SERVER

    name = found.get("metric")
    if make == "states":
        return [f"metric is {quoted(name)}: leave it out, states are {_STATE}"] if name else []
    kinds = {row.name: row.kind for row in SERVER if row.name not in _OURS}
    if name not in kinds:
        return [_no_metric(name, kinds)]
    kind = kinds[name]
    if make in {"rate", "ratio"} and kind != "gauge":
        return [f"metric is {quoted(name)}, a {kind}: {make} makes a gauge"]
    if kind != "histogram":
        return []
    if make != "series":
        return [f"metric is {quoted(name)}, a histogram: expected series, a histogram's name"]
    lost = [name for name in ("zero", "number") if name in found]
    names = [found["series"]] if isinstance(found["series"], str) else found["series"]
    ends = [each for each in names if each.endswith(("_bucket", "_sum", "_count"))]
    return [
        *(f"{each} has no meaning for a histogram" for each in lost),
        *(
            f"series is {quoted(each)}: expected the histogram's name, without {each[each.rindex('_') :]}"
            for each in ends
        ),
        *(["combine is 'max': histograms can be added up (sum) or not"] if found.get("combine") == "max" else []),
    ]


_PART_KEYS: Mapping[str, Callable[[str, Any], Any]] = {"series": _names, "only": _only}
_ITEM_KEYS: Mapping[str, Callable[[str, Any], Any]] = {
    "metric": _matching(re.compile("[a-z0-9_.]+"), "a metric's name"),
    "series": _names,
    "sum": _parts,
    "rate": _part,
    "ratio": _structure({"part": _parts, "whole": _parts, "growth": _boolean}, ("part", "whole")),
    "states": _structure({"running": _part, "sleeping": _part, "worker": _label}, ("running",)),
    "attributes": _texts,
    "labels": _labels,
    "only": _only,
    "combine": _combine,
    "scale": _scale,
    "zero": _boolean,
    "number": _label,
}
_BESIDE: Mapping[str, tuple[str, ...]] = {
    "series": ("attributes", "labels", "only", "combine", "scale", "zero", "number"),
    "sum": ("attributes", "scale"),
    "rate": ("attributes",),
    "ratio": ("attributes",),
    "states": (),
}
_MAP_KEYS: Mapping[str, Callable[[str, Any], Any]] = {
    "name": _name,
    "extends": _extends,
    "rename": _rename,
    "page": _page,
    "pattern": _pattern,
    "ports": _ports,
    "labels": _labels,
    "passthrough": _passthrough,
    "counters": _list_of(_series),
    "steps": _list_of(_series),
    "started": _series,
    "items": _items,
}

_TEXT: Mapping[str, Any] = {"type": "string"}
_TEXTS: Mapping[str, Any] = {"type": "array", "items": _TEXT, "minItems": 1}
_NAMES_SCHEMA: Mapping[str, Any] = {"anyOf": [_TEXT, _TEXTS]}
_PAIRS: Mapping[str, Any] = {"type": "object", "additionalProperties": SCALAR}
_ONLY_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": {"anyOf": [SCALAR, {"type": "array", "items": SCALAR, "minItems": 1}]},
}


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": dict(properties),
        **({"required": list(required)} if required else {}),
    }


_PART_SCHEMA: Mapping[str, Any] = {
    "anyOf": [_TEXT, _TEXTS, _object({"series": _NAMES_SCHEMA, "only": _ONLY_SCHEMA}, "series")]
}
_PARTS_SCHEMA: Mapping[str, Any] = {"anyOf": [_PART_SCHEMA, {"type": "array", "items": _PART_SCHEMA, "minItems": 1}]}
_ITEM_SCHEMA: Mapping[str, Any] = _object(
    {
        "metric": _TEXT,
        "series": _NAMES_SCHEMA,
        "sum": _PARTS_SCHEMA,
        "rate": _PART_SCHEMA,
        "ratio": _object({"part": _PARTS_SCHEMA, "whole": _PARTS_SCHEMA, "growth": BOOLEAN.schema}, "part", "whole"),
        "states": _object({"running": _PART_SCHEMA, "sleeping": _PART_SCHEMA, "worker": _TEXT}, "running"),
        "attributes": _PAIRS,
        "labels": _PAIRS,
        "only": _ONLY_SCHEMA,
        "combine": {"enum": list(_COMBINES)},
        "scale": {"type": "number", "exclusiveMinimum": 0},
        "zero": BOOLEAN.schema,
        "number": _TEXT,
    }
)
_MAP_SCHEMA: Mapping[str, Any] = _object(
    {
        "name": {"type": "string", "pattern": f"^{_NAME.pattern}$"},
        "extends": {"enum": list(ENGINES)},
        "rename": _PAIRS,
        "page": {"type": "string", "pattern": "^/"},
        "pattern": _TEXT,
        "ports": {"anyOf": [PORT.schema, {"type": "array", "items": PORT.schema}]},
        "labels": _PAIRS,
        "passthrough": _NAMES_SCHEMA,
        "counters": _TEXTS,
        "steps": _TEXTS,
        "started": _TEXT,
        "items": {"type": "array", "items": _ITEM_SCHEMA},
    },
    "name",
)
MAPS: Kind[tuple[Mapping[str, Any], ...]] = Kind(
    "maps", "a list of maps, each a mapping with name and items", _maps, list, {"type": "array", "items": _MAP_SCHEMA}
)
GLOBS: Kind[tuple[str, ...]] = Kind(
    "list", "a list of the server's own series, as globs, separated by commas", _globs, list, NAMES.schema
)


def _engine(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value.strip().lower()):
        raise UnfitError
    return value.strip().lower()


_KNOWN = ", ".join((AUTO, *ENGINES))
ENGINE: Kind[str] = Kind(
    "|".join((AUTO, *ENGINES)), f"one of {_KNOWN}, or the name of a map of server.maps", _engine, str, _TEXT
)

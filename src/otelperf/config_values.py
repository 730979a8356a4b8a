"""Kinds of value that settings have: how a person writes them, what is wrong with one, and how it is shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")

YEAR = 366 * 86400.0

# A parser takes text, or from a settings file also a list or a mapping, whose leaves are text: what a file's author
# wrote, not what YAML makes of it (`off`, 1.10, 0123). It raises ValueError.


class UnfitError(ValueError):
    """A value that is not of its kind; the arguments tell what was expected, where the kind's own words do not do."""


@dataclass(frozen=True, slots=True, eq=False)
class Kind(Generic[T]):
    """What values of a setting look like. *plain* undoes *parse*: the value as JSON has it."""

    name: str
    expected: str
    parse: Callable[[Any], T]
    plain: Callable[[T], Any]
    schema: Mapping[str, Any]


NUMBER = r"[0-9]{1,300}(?:\.[0-9]{1,300})?(?:[eE][+-]?[0-9]{1,3})?"
_SPAN = re.compile(rf"({NUMBER})(ns|us|ms|s|m|h|d)?")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(rf"({NUMBER}) ?([kKMGT]i?B?|B)?")
# No bare K: it could be 1000 (k) or 1024 (Ki).
_BYTES = {
    "": 1,
    **{prefix: 1000**power for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
_MOST_MEANT = 3  # names in one suggestion
_LOOPBACK = re.compile(r"localhost|::1|127(?:\.(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}")
_MOST_PORTS = 64
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a header's name, RFC 9110


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UnfitError
    return value.strip()


def _matched(pattern: re.Pattern[str], value: Any) -> re.Match[str]:
    match = pattern.fullmatch(_text(value))
    if match is None:
        raise UnfitError
    return match


def within(number: float, low: float, high: float) -> None:
    """Refuse a number outside the limits."""
    if not low <= number <= high:
        raise UnfitError


def duration(value: Any, unit: str = "s", above: float = -1.0) -> float:
    """Read seconds; a bare number counts in *unit*."""
    number, given = _matched(_SPAN, value).groups()
    named = given or unit
    seconds = float(number) / 1000 if named == "ms" else float(number) * _SECONDS[named]
    within(seconds, 0.0, YEAR)
    if seconds <= above:
        raise UnfitError
    return seconds


def show_duration(seconds: float) -> str:
    """Write seconds so that they read back as the very same number."""
    if seconds >= 60 and seconds % 60 == 0:
        return f"{seconds / 60:.0f}m"
    if 0 < seconds < 1 and round(seconds * 1000) / 1000 == seconds:
        return f"{round(seconds * 1000)}ms"
    return f"{seconds!r}".removesuffix(".0") + "s"


def _size(value: Any) -> int:
    number, unit = _matched(_SIZE, value).groups()
    prefix = (unit or "").removesuffix("B")
    if prefix not in _BYTES:
        raise UnfitError
    total = (int(number) if number.isdigit() else float(number)) * _BYTES[prefix]
    within(total, 1, 2**50)
    if total != int(total):
        raise UnfitError
    return int(total)


def show_size(size: int) -> str:
    """Write bytes in the largest binary unit that loses nothing."""
    for power, prefix in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if size % 2**power == 0 and size:
            return f"{size >> power}{prefix}iB"
    return f"{size}B"


def _boolean(value: Any) -> bool:
    match _text(value).lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise UnfitError


def otel_boolean(value: Any) -> bool:
    """Read a boolean as the OpenTelemetry specification does, but refuse what it would silently read as false."""
    if _text(value).lower() not in {"true", "false"}:
        raise UnfitError("expected true or false, as the OpenTelemetry specification says")
    return _text(value).lower() == "true"


def _line(value: Any) -> str:
    text = _text(value)
    if not text or not text.isprintable():
        raise UnfitError
    return text


def _path(value: Any) -> str:
    path = _line(value)
    if not path.startswith("/"):
        raise UnfitError
    return path


def _url(value: Any) -> str:
    text = _line(value)
    parts = urlsplit(text)
    parts.port  # noqa: B018 # reading it raises ValueError where the port is no number
    if parts.scheme not in {"http", "https"} or not parts.hostname or " " in text or not text.isascii():
        raise UnfitError
    return text


def _base_url(value: Any) -> str:
    url = _url(value).rstrip("/")
    if "?" in url or "#" in url:
        raise UnfitError
    if url.endswith("/metrics"):  # as in every scrape config
        raise UnfitError(f"expected {url.removesuffix('/metrics')}, without /metrics")
    return url


def is_loopback(host: str) -> bool:
    """Say whether *host* is this machine and nothing else: localhost, 127.0.0.0/8, ::1. Another name may be anywhere."""
    return _LOOPBACK.fullmatch(host.lower()) is not None


def _items(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [part.strip() for part in _text(value).split(",") if part.strip()]


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    """Split ``k=v,k=v`` and decode percent signs, as OTEL_RESOURCE_ATTRIBUTES has them; a mapping is taken as is."""
    if isinstance(value, dict):
        yield from ((str(key), _text(each)) for key, each in value.items())
        return
    for item in _items(value):
        key, sign, text = _text(item).partition("=")
        if not sign:
            raise UnfitError
        yield unquote(key.strip(), errors="strict"), unquote(text.strip(), errors="strict")


def _mapping(value: Any) -> Mapping[str, str]:
    pairs = dict(_pairs(value))
    if not all(pairs):
        raise UnfitError
    return MappingProxyType(pairs)


def _headers(value: Any) -> Mapping[str, str]:
    pairs = {key.lower(): text for key, text in _pairs(value)}
    if not all(_TOKEN.fullmatch(key) and text.isascii() and text.isprintable() for key, text in pairs.items()):
        raise UnfitError
    return MappingProxyType(pairs)


def count(low: int, high: int) -> Kind[int]:
    """Return the kind of a whole number within limits."""

    def parse(value: Any) -> int:
        number = int(_matched(re.compile("[0-9]{1,15}"), value).group())
        within(number, low, high)
        return number

    schema = {
        "anyOf": [{"type": "integer", "minimum": low, "maximum": high}, {"type": "string", "pattern": "^[0-9]+$"}]
    }
    return Kind("number", f"a whole number from {low} to {high}", parse, int, schema)


def _ports(value: Any) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for item in _items(value):
        first, last = _matched(re.compile("([0-9]{1,5})(?:-([0-9]{1,5}))?"), str(item)).groups()
        low, high = int(first), int(last or first)
        within(low, 1, high)
        within(high, low, 65535)
        found |= dict.fromkeys(range(low, min(high, low + _MOST_PORTS) + 1))
    if len(found) > _MOST_PORTS:
        raise UnfitError(f"expected at most {_MOST_PORTS} ports")
    return tuple(found)


def _share(value: Any) -> float:
    share = _amount(value)
    within(share, 0, 1)
    return share


def _amount(value: Any) -> float:
    number = float(_matched(re.compile(NUMBER), value).group())
    within(number, 5e-324, 1e12)
    return number


def _shortest(number: float) -> float:
    return int(number) if number == int(number) else number


def choice(*names: str) -> Kind[Any]:
    """Return the kind of one of a few names."""

    def parse(value: Any) -> str:
        name = _text(value).lower()
        if name not in names:
            raise UnfitError
        return name

    return Kind("|".join(names), "one of " + ", ".join(names), parse, str, {"enum": list(names)})


def _list_of(one: Callable[[Any], str], what: str) -> Kind[tuple[str, ...]]:
    schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    return Kind("list", f"a list of {what}, separated by commas", lambda v: tuple(map(one, _items(v))), list, schema)


DURATION_SCHEMA: Mapping[str, Any] = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": rf"^{_SPAN.pattern}$"}]
}
SCALAR: Mapping[str, Any] = {"type": ["string", "number", "boolean"]}
_MAPPING: Mapping[str, Any] = {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": SCALAR}]}
_BOOLEAN: Mapping[str, Any] = {
    "anyOf": [{"type": "boolean"}, {"enum": [0, 1, "true", "false", "yes", "no", "on", "off", "1", "0"]}]
}

DURATION = Kind("duration", "a duration such as 50s, 500ms or 2m", duration, show_duration, DURATION_SCHEMA)
PERIOD = Kind(
    "duration",
    "a duration above 0 such as 50s, 500ms or 2m",
    lambda v: duration(v, above=0.0),
    show_duration,
    DURATION_SCHEMA,
)
AMOUNT = Kind(
    "number",
    "a number above 0",
    _amount,
    _shortest,
    {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": rf"^{NUMBER}$"}]},
)
SIZE = Kind(
    "size",
    "a size such as 8MiB or 64kB",
    _size,
    show_size,
    {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": rf"^{_SIZE.pattern}$"}]},
)
BOOLEAN = Kind("boolean", "true or false", _boolean, bool, _BOOLEAN)
TEXT = Kind("text", "one line of text", _line, str, SCALAR)
PATH = Kind("path", "an absolute path", _path, str, {"type": "string", "pattern": "^/"})
URL = Kind(
    "url", "a whole URL such as http://host:4318/v1/metrics", _url, str, {"type": "string", "pattern": "^https?://"}
)
URLS = _list_of(_base_url, "base URLs such as http://localhost:8080")
NAMES = _list_of(_line, "names")
MAPPING = Kind("mapping", "k=v,k=v with %XX for special characters", _mapping, dict, _MAPPING)
HEADERS = Kind("headers", "k=v,k=v with %XX for special characters", _headers, dict, _MAPPING)
PORT = count(0, 65535)
PORTS: Kind[tuple[int, ...]] = Kind(
    "list",
    "a list of ports and ranges of them such as 8000-8003,9000",
    _ports,
    lambda ports: [str(port) for port in ports],
    {"anyOf": [{"type": ["string", "integer"]}, {"type": "array", "items": {"type": ["string", "integer"]}}]},
)
SHARE = Kind(
    "number",
    "a number above 0, at most 1",
    _share,
    _shortest,
    {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            {"type": "string", "pattern": rf"^{NUMBER}$"},
        ]
    },
)


def near(name: str, names: Iterable[str]) -> str:
    """Suggest the name that was perhaps meant: those in which only words are missing, else the one most like it.

    The words that both begin with do not count: the names of one section are all alike by them.
    """
    from difflib import get_close_matches  # only wanted when something is wrong

    unlike = {each: _unlike(name, each) for each in names}
    longer = [each for each, (one, two) in unlike.items() if one == two or (one and two[-len(one) :] == one)]
    close = (
        sorted(longer, key=lambda each: len(unlike[each][1]))[:_MOST_MEANT]
        or [
            each
            for each in get_close_matches(name, unlike)
            if get_close_matches("_".join(unlike[each][0]), ["_".join(unlike[each][1])])
        ][:1]
    )
    return f", did you mean {' or '.join(close)}?" if close else ""


def _unlike(name: str, other: str) -> tuple[list[str], list[str]]:
    """Return the words of both, without those that both begin with."""
    one, two = ([word for word in re.split("[-._]", each.lower()) if word] for each in (name, other))
    while one and two and one[0] == two[0]:
        one, two = one[1:], two[1:]
    return one, two


def quoted(value: Any) -> str:
    """Return the value as an error message shows it, cut to a line's length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

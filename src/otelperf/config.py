"""Settings: what there is to set, and how a value is found.

A setting is one line of one of the classes below. Its key, flag, environment names, place in the settings file, help,
docs and schema all follow from that line. Precedence: flag, environment, file, profile, default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload
from urllib.parse import quote, unquote, urlsplit

from otelperf.errors import ConfigError
from otelperf.gate.policy import Override, Threshold

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

HEARTBEAT_CEILING = 110.0  # Prometheus forgets a series after 5 min: two heartbeats may be lost before a gap shows
MASK = "****"
_YEAR = 366 * 86400.0
_NO_MAPPING: Mapping[str, str] = MappingProxyType({})


# ── Kinds of value ───────────────────────────────────────────────────────────────────────────────────────────────────
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


_NUMBER = r"[0-9]{1,300}(?:\.[0-9]{1,300})?(?:[eE][+-]?[0-9]{1,3})?"
_SPAN = re.compile(rf"({_NUMBER})(ns|us|ms|s|m|h|d)?")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(rf"({_NUMBER}) ?([kKMGT]i?B?|B)?")
# No bare K: it could be 1000 (k) or 1024 (Ki).
_BYTES = {
    "": 1,
    **{prefix: 1000**power for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
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


def _within(number: float, low: float, high: float) -> None:
    if not low <= number <= high:
        raise UnfitError


def _duration(value: Any, unit: str = "s", above: float = -1.0) -> float:
    """Read seconds; a bare number counts in *unit*."""
    number, given = _matched(_SPAN, value).groups()
    named = given or unit
    seconds = float(number) / 1000 if named == "ms" else float(number) * _SECONDS[named]
    _within(seconds, 0.0, _YEAR)
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
    _within(total, 1, 2**50)
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


def _otel_boolean(value: Any) -> bool:
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
    return url


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


def _count(low: int, high: int) -> Kind[int]:
    def parse(value: Any) -> int:
        number = int(_matched(re.compile("[0-9]{1,15}"), value).group())
        _within(number, low, high)
        return number

    schema = {
        "anyOf": [{"type": "integer", "minimum": low, "maximum": high}, {"type": "string", "pattern": "^[0-9]+$"}]
    }
    return Kind("number", f"a whole number from {low} to {high}", parse, int, schema)


def _choice(*names: str) -> Kind[Any]:
    def parse(value: Any) -> str:
        name = _text(value).lower()
        if name not in names:
            raise UnfitError
        return name

    return Kind("|".join(names), "one of " + ", ".join(names), parse, str, {"enum": list(names)})


def _list_of(one: Callable[[Any], str], what: str) -> Kind[tuple[str, ...]]:
    schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    return Kind("list", f"a list of {what}, separated by commas", lambda v: tuple(map(one, _items(v))), list, schema)


_DURATION_SCHEMA: Mapping[str, Any] = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": rf"^{_SPAN.pattern}$"}]
}
_SCALAR: Mapping[str, Any] = {"type": ["string", "number", "boolean"]}
_MAPPING: Mapping[str, Any] = {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": _SCALAR}]}
_BOOLEAN: Mapping[str, Any] = {
    "anyOf": [{"type": "boolean"}, {"enum": [0, 1, "true", "false", "yes", "no", "on", "off", "1", "0"]}]
}

DURATION = Kind("duration", "a duration such as 50s, 500ms or 2m", _duration, show_duration, _DURATION_SCHEMA)
PERIOD = Kind(
    "duration",
    "a duration above 0 such as 50s, 500ms or 2m",
    lambda v: _duration(v, above=0.0),
    show_duration,
    _DURATION_SCHEMA,
)
SIZE = Kind(
    "size",
    "a size such as 8MiB or 64kB",
    _size,
    show_size,
    {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": rf"^{_SIZE.pattern}$"}]},
)
BOOLEAN = Kind("boolean", "true or false", _boolean, bool, _BOOLEAN)
TEXT = Kind("text", "one line of text", _line, str, _SCALAR)
PATH = Kind("path", "an absolute path", _path, str, {"type": "string", "pattern": "^/"})
URL = Kind("url", "a URL such as http://host:4318", _url, str, {"type": "string", "pattern": "^https?://"})
URLS = _list_of(_base_url, "base URLs such as http://localhost:8080")
NAMES = _list_of(_line, "names")
MAPPING = Kind("mapping", "k=v,k=v with %XX for special characters", _mapping, dict, _MAPPING)
HEADERS = Kind("headers", "k=v,k=v with %XX for special characters", _headers, dict, _MAPPING)
PORT = _count(0, 65535)


# ── Rules of the gate ────────────────────────────────────────────────────────────────────────────────────────────────

_RULE_KEYS = ("metric", "attributes", "delta", "relative", "share", "heartbeat", "thresholds", "gate")
_DECIMAL = re.compile(rf"[+-]?{_NUMBER}")


def _rules(value: Any) -> tuple[Override, ...]:
    """Read the list of rules; each wrong rule is told, at its place."""
    if not isinstance(value, list):
        raise UnfitError
    rules, wrong = [], []
    for place, item in enumerate(value):
        try:
            rules.append(_rule(item))
        except UnfitError as error:
            wrong.append(f"in rule {place + 1} {error}")
    if wrong:
        raise UnfitError(*wrong)
    return tuple(rules)


def _rule(item: Any) -> Override:
    given = _known(item, _RULE_KEYS)
    if not isinstance(given.get("metric"), str) or not given["metric"]:
        raise UnfitError("expected metric, the name or glob of the metrics meant")
    changes = {name: _CHANGES[name](name, each) for name, each in given.items() if name in _CHANGES}
    if not changes:
        raise UnfitError("expected something to change: " + ", ".join(_RULE_KEYS[2:]))
    if changes.pop("gate", None):
        if changes:
            raise UnfitError("gate: off passes everything, so leave out " + ", ".join(changes))
        changes = {"kind": "off"}
    if "share" in changes:
        _check_share(given["metric"])
    attributes = given.get("attributes")
    return Override(given["metric"], MappingProxyType(changes), None if attributes is None else _patterns(attributes))


def _known(item: Any, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise UnfitError("expected a mapping")
    for name in item:
        if name not in known:
            raise UnfitError(f"{name} is unknown{near(name, known)}")
    return {name: each for name, each in item.items() if each is not None}


def _decimal(name: str, value: Any, *, signed: bool = False) -> float:
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value) or (value.startswith("-") and not signed):
        raise UnfitError(f"{name} is {_quoted(value)}: expected a number" + ("" if signed else ", 0 or more"))
    number = float(value)
    if number in {float("inf"), float("-inf")}:
        raise UnfitError(f"{name} is {_quoted(value)}: expected a finite number")
    return number


def _rule_heartbeat(name: str, value: Any) -> float:
    try:
        seconds = PERIOD.parse(value)
        _within(seconds, 0, HEARTBEAT_CEILING)
    except ValueError:
        message = f"{name} is {_quoted(value)}: expected a duration above 0, at most {show_duration(HEARTBEAT_CEILING)}"
        raise UnfitError(message) from None
    return seconds


def _rule_thresholds(name: str, value: Any) -> tuple[Threshold, ...]:
    if not isinstance(value, list):
        raise UnfitError(f"{name}: expected a list of value, worse, margin")
    return tuple(_threshold(each) for each in value)


def _threshold(item: Any) -> Threshold:
    given = _known(item, ("value", "worse", "margin"))
    worse = given.get("worse", "above")
    if worse not in ("above", "below"):
        raise UnfitError(f"worse is {_quoted(worse)}: expected above or below")
    margin = _decimal("margin", given.get("margin", "0"))
    return Threshold(_decimal("value", given.get("value"), signed=True), worse, margin)


def _rule_gate(name: str, value: Any) -> bool:
    if not isinstance(value, str) or value.lower() not in {"off", "false", "no"}:
        raise UnfitError(f"{name} is {_quoted(value)}: expected off")
    return True


def _patterns(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise UnfitError("attributes: expected a mapping of names to globs")
    return MappingProxyType(dict(value))


def _check_share(pattern: str) -> None:
    """A share is one of another metric's value: only the catalogue knows which, so elsewhere it would do nothing."""
    from fnmatch import fnmatchcase

    from otelperf.catalog import METRICS

    able = [metric.name for metric in METRICS if metric.rule.share_of]
    if not any(fnmatchcase(name, pattern) for name in able):
        raise UnfitError(f"share has no meaning for {pattern}: it has for " + ", ".join(able))


_CHANGES: Mapping[str, Callable[[str, Any], Any]] = {
    "delta": _decimal,
    "relative": _decimal,
    "share": _decimal,
    "heartbeat": _rule_heartbeat,
    "thresholds": _rule_thresholds,
    "gate": _rule_gate,
}


def _plain_rules(rules: tuple[Override, ...]) -> list[dict[str, Any]]:
    return [_plain_rule(rule) for rule in rules]


def _plain_rule(rule: Override) -> dict[str, Any]:
    plain: dict[str, Any] = {"metric": rule.metric}
    if rule.attributes is not None:
        plain["attributes"] = dict(rule.attributes)
    for name, value in rule.changes.items():
        if name == "thresholds":
            plain[name] = [{"value": each.value, "worse": each.worse, "margin": each.margin} for each in value]
        else:
            plain[name] = show_duration(value) if name == "heartbeat" else value
    if plain.pop("kind", None) == "off":
        plain["gate"] = "off"
    return plain


_AMOUNT: Mapping[str, Any] = {"type": "number", "minimum": 0}
_RULE_SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["metric"],
        "minProperties": 2,
        "additionalProperties": False,
        "properties": {
            "metric": {"type": "string"},
            "attributes": {"type": "object", "additionalProperties": _SCALAR},
            "delta": _AMOUNT,
            "relative": _AMOUNT,
            "share": _AMOUNT,
            "heartbeat": _DURATION_SCHEMA,
            "thresholds": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["value"],
                    "additionalProperties": False,
                    "properties": {
                        "value": {"type": "number"},
                        "worse": {"enum": ["above", "below"]},
                        "margin": _AMOUNT,
                    },
                },
            },
            "gate": {"enum": ["off", False]},
        },
    },
}
RULES = Kind(
    "rules", "a list of rules, each a mapping with metric and what to change", _rules, _plain_rules, _RULE_SCHEMA
)


# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Found(NamedTuple):
    """A value and where it came from."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table.

    *otel* are the OpenTelemetry names it obeys and *also* those of other customs, the first wins. *derive* makes the
    default from what is already known (settings above it, the environment), and *usual* says that in words.
    """

    key: str
    kind: Kind[Any]
    default: Any
    doc: str
    otel: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    profiles: Mapping[str, Any] = field(default_factory=dict)
    derive: Callable[[Mapping[str, Found], Mapping[str, str]], Found | None] | None = None
    usual: str = ""
    file_only: bool = False

    @property
    def secret(self) -> bool:
        return self.kind is HEADERS

    @property
    def flag(self) -> str:
        return "--" + re.sub("[._]", "-", self.key)

    @property
    def variable(self) -> str:
        return "OTELPERF_" + self.key.replace(".", "_").upper()

    @property
    def variables(self) -> tuple[str, ...]:
        return () if self.file_only else (self.variable, *self.otel, *self.also)

    def plain(self, value: Any) -> Any:
        """Return the value as JSON has it and a file may, with secrets masked."""
        if value is None:
            return None
        plain = self.kind.plain(value)
        if self.secret:
            return dict.fromkeys(plain, MASK)
        return _masked(plain) if self.kind in {URL, URLS} else plain

    def show(self, value: Any) -> str:
        """Return the value in a few words, as a flag would take it if there is one, with secrets masked."""
        return _flat(self.plain(value))


def _flat(plain: Any) -> str:
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, dict):
        return ",".join(f"{quote(key)}={each if each == MASK else quote(each)}" for key, each in plain.items())
    if isinstance(plain, list) and all(isinstance(each, str) for each in plain):
        return ",".join(plain)
    if isinstance(plain, list):
        return f"{len(plain)} rules"
    return "" if plain is None else str(plain)


def _masked(plain: Any) -> Any:
    """Hide a password that a URL carries."""
    if isinstance(plain, list):
        return [_masked(each) for each in plain]
    return re.sub(r"//[^/]*@", f"//{MASK}@", plain) if isinstance(plain, str) else plain


@overload
def _setting(kind: Kind[T], default: T, doc: str, **more: Any) -> T: ...
@overload
def _setting(kind: Kind[T], default: None, doc: str, **more: Any) -> T | None: ...
def _setting(kind: Kind[T], default: T | None, doc: str, **more: Any) -> Any:
    """Declare a field that is a setting; *more* are further fields of Setting."""
    row = {"kind": kind, "default": default, "doc": doc, **more}
    return field(default_factory=lambda: default, metadata=row)


def _derived_mode(_: Mapping[str, Found], environ: Mapping[str, str]) -> Found | None:
    return Found("sidecar", "default in Kubernetes") if environ.get("KUBERNETES_SERVICE_HOST") else None


def _derived_host(known: Mapping[str, Found], _: Mapping[str, str]) -> Found:
    mode = known["mode"].value
    return Found(mode == "node", f"default of mode {mode}")


def _derived_endpoint(known: Mapping[str, Found], _: Mapping[str, str]) -> Found | None:
    if known["export.protocol"].value == "grpc":
        return Found("http://localhost:4317", "default of grpc")
    return None


def _derived_insecure(known: Mapping[str, Found], _: Mapping[str, str]) -> Found:
    scheme = urlsplit(known["export.endpoint"].value).scheme
    return Found(scheme == "http", f"default of {scheme}")


def _derived_service(known: Mapping[str, Found], _: Mapping[str, str]) -> Found | None:
    attributes = known["resource.attributes"]
    name = attributes.value.get("service.name")
    return Found(name, attributes.origin) if name else None


def _otlp(name: str) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_METRICS_{name}", f"OTEL_EXPORTER_OTLP_{name}"


# A row is a line or two, as in a table.
# fmt: off


@dataclass(frozen=True, slots=True, kw_only=True)
class Sdk:
    """The OpenTelemetry switch for everything."""

    disabled: bool = _setting(BOOLEAN, False, "Send nothing at all.", otel=("OTEL_SDK_DISABLED",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Where metrics go."""

    exporter: Literal["otlp", "console", "none"] = _setting(
        _choice("otlp", "console", "none"), "otlp", "Where metrics go: a Collector, standard output, nowhere.",
        otel=("OTEL_METRICS_EXPORTER",), profiles={"development": "console"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """How metrics reach the Collector."""

    protocol: Literal["http/protobuf", "grpc"] = _setting(
        _choice("http/protobuf", "grpc"), "http/protobuf", "Transport. grpc needs `pip install 'otelperf[grpc]'`.",
        otel=_otlp("PROTOCOL")
    )
    endpoint: str = _setting(
        URL, "http://localhost:4318/v1/metrics",
        "URL for metrics, used as it is; only OTEL_EXPORTER_OTLP_ENDPOINT gets /v1/metrics appended, for http.",
        otel=_otlp("ENDPOINT"), derive=_derived_endpoint,
        usual="http://localhost:4318/v1/metrics, with grpc http://localhost:4317"
    )
    headers: Mapping[str, str] = _setting(
        HEADERS, _NO_MAPPING, "Headers sent with each request. Never shown.", otel=_otlp("HEADERS")
    )
    timeout: float = _setting(PERIOD, 10.0, "How long one request may take.", otel=_otlp("TIMEOUT"))
    compression: Literal["none", "gzip"] = _setting(
        _choice("none", "gzip"), "none", "Compression of requests.", otel=_otlp("COMPRESSION")
    )
    certificate: str | None = _setting(
        TEXT, None, "File of the CA of the Collector's certificate.", otel=_otlp("CERTIFICATE")
    )
    client_key: str | None = _setting(TEXT, None, "File of the client's private key (mTLS).", otel=_otlp("CLIENT_KEY"))
    client_certificate: str | None = _setting(
        TEXT, None, "File of the client's certificate (mTLS).", otel=_otlp("CLIENT_CERTIFICATE")
    )
    insecure: bool = _setting(
        BOOLEAN, True, "Use grpc without TLS.", otel=_otlp("INSECURE"), derive=_derived_insecure,
        usual="true if the endpoint is http://"
    )
    queue_size: int = _setting(
        SIZE, 8 * 2**20, "Bytes that may wait while the Collector is away; beyond, the oldest go."
    )
    max_points: int = _setting(_count(1, 1_000_000), 2000, "Most points in one request.")
    shutdown_timeout: float = _setting(DURATION, 2.0, "Time for the last requests when the agent stops.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What is sent, and when."""

    enabled: bool = _setting(BOOLEAN, True, "Hold back what has not moved; false sends every point.")
    heartbeat: float = _setting(
        PERIOD, 50.0, "Longest silence of a series, at most 110s.", profiles={"development": 10.0, "testing": 5.0}
    )
    linger: float = _setting(
        DURATION, 5.0, "How long an ordinary point may wait to share a request.",
        profiles={"development": 1.0, "testing": 0.0}
    )
    max_streams: int = _setting(
        _count(1, 100_000_000), 100_000, "Most series to remember; beyond, new ones are refused."
    )
    gone_after: float | None = _setting(
        PERIOD, None, "Absence after which a series has ended.",
        usual="2 heartbeats or 3 intervals, whichever is longer"
    )
    rate_window: float = _setting(PERIOD, 120.0, "Window of the rate() for which the error of counters is bounded.")
    shutdown_marks: Literal["auto", "all", "none"] = _setting(
        _choice("auto", "all", "none"), "auto",
        "Which series to end when the agent stops; auto: all except those of a server that still answers."
    )
    rules: tuple[Override, ...] = _setting(RULES, (), "Changes to the gate's rules, later ones win.", file_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine's own metrics."""

    enabled: bool = _setting(
        BOOLEAN, True, "Read the machine's metrics.", derive=_derived_host, usual="true in mode node, else false"
    )
    interval: float = _setting(PERIOD, 1.0, "Time between readings.")
    root_path: str = _setting(PATH, "/", "Where the machine's root is mounted.")
    cpu_per_logical: bool = _setting(BOOLEAN, True, "Tell logical CPUs apart.")
    network_exclude: tuple[str, ...] = _setting(
        NAMES, ("lo", "veth*", "cali*", "lxc*"), "Network interfaces to leave out, as globs."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The inference servers to read."""

    url: tuple[str, ...] = _setting(URLS, (), "Base URLs of inference servers.")
    engine: Literal["auto", "llama.cpp"] = _setting(_choice("auto", "llama.cpp"), "auto", "What the server is.")
    name: str | None = _setting(TEXT, None, "service.name of the servers' metrics.", usual="the engine's name")
    container: str | None = _setting(TEXT, None, "k8s.container.name of the servers' metrics.")
    interval: float = _setting(PERIOD, 5.0, "Time between readings.", profiles={"testing": 1.0})
    timeout: float = _setting(PERIOD, 2.0, "How long one reading may take.", profiles={"testing": 0.5})
    max_page: int = _setting(SIZE, 4 * 2**20, "Most bytes of a server's page; a longer one is refused.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The agent's own HTTP endpoint."""

    enabled: bool = _setting(BOOLEAN, True, "Serve /metrics, /healthz and /readyz.")
    host: str = _setting(
        TEXT, "127.0.0.1", "Address to listen on; in a pod 0.0.0.0, for kubelet does not reach loopback."
    )
    port: int = _setting(PORT, 9464, "Port to listen on; 0 takes a free one.", profiles={"testing": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Attributes of everything that is sent."""

    attributes: Mapping[str, str] = _setting(
        MAPPING, _NO_MAPPING, "Attributes of the agent and of all that it reads.", otel=("OTEL_RESOURCE_ATTRIBUTES",)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The agent as a service of its own."""

    name: str = _setting(
        TEXT, "otelperf", "service.name of the agent.", otel=("OTEL_SERVICE_NAME",), derive=_derived_service,
        usual="service.name of resource.attributes, else otelperf"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class K8s:
    """The pod, as the downward API tells it."""

    pod_name: str | None = _setting(TEXT, None, "k8s.pod.name.", also=("POD_NAME",))
    pod_uid: str | None = _setting(
        TEXT, None, "k8s.pod.uid; keeps service.instance.id through restarts.", also=("POD_UID",)
    )
    namespace: str | None = _setting(TEXT, None, "k8s.namespace.name.", also=("POD_NAMESPACE",))
    node_name: str | None = _setting(TEXT, None, "k8s.node.name.", also=("NODE_NAME",))
    container_name: str | None = _setting(TEXT, None, "k8s.container.name of the agent.", also=("CONTAINER_NAME",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The agent's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = _setting(
        _choice("debug", "info", "warning", "error"), "info", "Least level to log.", otel=("OTEL_LOG_LEVEL",),
        profiles={"development": "debug"}
    )
    format: Literal["logfmt", "json"] = _setting(_choice("logfmt", "json"), "logfmt", "Form of a line.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """What `otelperf doctor` looks at besides the agent."""

    prometheus_url: str | None = _setting(URL, None, "Prometheus to ask whether what was sent has arrived.")


PROFILES = ("production", "development", "testing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, typed: ``settings.gate.heartbeat``. ``Settings()`` is production on a plain machine."""

    profile: Literal["production", "development", "testing"] = _setting(
        _choice(*PROFILES), "production", "Which set of defaults."
    )
    mode: Literal["node", "sidecar"] = _setting(
        _choice("node", "sidecar"), "node", "One agent for the machine, or one beside a server.", derive=_derived_mode,
        usual="sidecar in Kubernetes, else node"
    )
    sdk: Sdk = Sdk()
    metrics: Metrics = Metrics()
    export: Export = Export()
    gate: Gate = field(default_factory=Gate)
    host: Host = Host()
    server: Server = Server()
    endpoint: Endpoint = Endpoint()
    resource: Resource = field(default_factory=Resource)
    service: Service = Service()
    k8s: K8s = K8s()
    log: Log = Log()
    doctor: Doctor = Doctor()
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def origin(self, key: str) -> str:
        """Say where the value of *key* came from: a flag, a variable, a file and its line, a profile, ``default``."""
        return self.origins.get(key, "default")

    def value(self, key: str) -> Any:
        """Return a value by its key, for those who walk the table; others use attributes."""
        section, _, name = key.rpartition(".")
        return getattr(getattr(self, section) if section else self, name)


SECTIONS: Mapping[str, type] = {
    "sdk": Sdk, "metrics": Metrics, "export": Export, "gate": Gate, "host": Host, "server": Server,
    "endpoint": Endpoint, "resource": Resource, "service": Service, "k8s": K8s, "log": Log, "doctor": Doctor,
}
# fmt: on


def _table() -> Iterator[Setting]:
    for each in fields(Settings):
        if each.name in SECTIONS:
            yield from (Setting(f"{each.name}.{row.name}", **row.metadata) for row in fields(SECTIONS[each.name]))
        elif each.metadata:
            yield Setting(each.name, **each.metadata)


SETTINGS: tuple[Setting, ...] = tuple(_table())
BY_KEY: Mapping[str, Setting] = {setting.key: setting for setting in SETTINGS}
FILE_FLAG = "--config"
FILE_VARIABLE = "OTELPERF_CONFIG"
OTHER_VARIABLES = (FILE_VARIABLE, "OTELPERF_PARTS")  # the latter: the folder where tests keep the real parts

# Kubernetes gives each container variables for each Service: one called otelperf, or otelperf-endpoint, must not hurt.
_SERVICE_LINK = re.compile(
    r"OTELPERF_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_\w+)?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(?:tcp|udp|sctp)://.*")


# ── Finding values ───────────────────────────────────────────────────────────────────────────────────────────────────


def load(
    argv_values: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    file: str | Path | None = None,
) -> Settings:
    """Find each setting's value; raise one ConfigError with a line for everything that is wrong.

    *argv_values* by key. Without *file* the one that OTELPERF_CONFIG names is read, if any.
    """
    environ = {} if environ is None else environ
    path = file if file is not None else environ.get(FILE_VARIABLE) or None
    search = _Search(argv_values or {}, environ)
    if path is not None:
        search.entries = _entries(str(path), search.problems)
    search.refuse_unknown()
    for setting in SETTINGS:
        search.resolve(setting)
    settings = _settings(search.found)
    search.problems += [message for keys, message in _contradictions(settings) if not search.wrong.intersection(keys)]
    if search.problems:
        raise ConfigError("\n".join(search.problems))
    return settings


class _Search:
    """One search for all values. Each place is looked at even if a stronger one has spoken, so that all faults show."""

    def __init__(self, argv: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self.argv = argv
        self.environ = environ
        self.entries: dict[str, Found] = {}
        self.found: dict[str, Found] = {}
        self.problems: list[str] = []
        self.wrong: set[str] = set()

    def refuse_unknown(self) -> None:
        flags = [FILE_FLAG, *(setting.flag for setting in SETTINGS if not setting.file_only)]
        for name in self.argv:
            if name not in BY_KEY or BY_KEY[name].file_only:
                self.problems.append(f"{name} is not a setting{near(name, flags if name.startswith('-') else BY_KEY)}")
        names = {*OTHER_VARIABLES, *(name for setting in SETTINGS for name in setting.variables)}
        for name in sorted(self.environ):
            if name.startswith("OTELPERF_") and name not in names and not self._service_link(name):
                self.problems.append(f"{name} is not a setting{self._near_variable(name, names)}")
        self.problems += [
            f"{key} ({entry.origin}) is not a setting{near(key, BY_KEY)}"
            for key, entry in self.entries.items()
            if key not in BY_KEY
        ]

    def _service_link(self, name: str) -> bool:
        return bool(_SERVICE_LINK.fullmatch(name) or _SERVICE_LINK_VALUE.fullmatch(self.environ[name]))

    def _near_variable(self, name: str, names: Iterable[str]) -> str:
        only = next((setting.key for setting in SETTINGS if setting.file_only and setting.variable == name), None)
        return f": {only} can only be set in the settings file" if only else near(name, names)

    def resolve(self, setting: Setting) -> None:
        places = [self._flag(setting), self._variable(setting), self._entry(setting), self._profile(setting)]
        derived = setting.derive(self.found, self.environ) if setting.derive else None
        self.found[setting.key] = next(
            (found for found in (*places, derived) if found is not None), Found(setting.default, "default")
        )

    def _flag(self, setting: Setting) -> Found | None:
        if setting.key not in self.argv or setting.file_only:
            return None
        return self._parsed(setting, Found(self.argv[setting.key], setting.flag))

    def _variable(self, setting: Setting) -> Found | None:
        """Read the environment. Empty is unset, as OpenTelemetry has it; a flag settles a contradiction."""
        ours = [found for name in setting.variables[:1] if (found := self._read(setting, name)) is not None]
        otel = [found for name in setting.otel if (found := self._read(setting, name)) is not None]
        also = [found for name in setting.also if (found := self._read(setting, name)) is not None]
        if ours and otel and ours[0].value != otel[0].value and setting.key not in self.argv:
            told = " and ".join(_tell(setting, each.origin, self.environ[each.origin]) for each in (ours[0], otel[0]))
            self._wrong(setting, f"{told}: both set {setting.key} and they differ, unset one")
        return next(iter([*ours, *otel, *also]), None)

    def _read(self, setting: Setting, name: str) -> Found | None:
        text = self.environ.get(name, "").strip()
        if not text or (name.startswith("OTELPERF_") and self._service_link(name)):
            return None
        found = self._parsed(setting, Found(text, name))
        if found is not None and name == "OTEL_EXPORTER_OTLP_ENDPOINT":
            return Found(_signal_url(found.value, self.found["export.protocol"].value), name)
        return found

    def _entry(self, setting: Setting) -> Found | None:
        entry = self.entries.get(setting.key)
        return None if entry is None or entry.value is None else self._parsed(setting, entry)

    def _profile(self, setting: Setting) -> Found | None:
        profile = self.found["profile"].value if "profile" in self.found else ""
        return Found(setting.profiles[profile], f"profile {profile}") if profile in setting.profiles else None

    def _parsed(self, setting: Setting, given: Found) -> Found | None:
        try:
            return Found(_parser(setting, given.origin)(given.value), given.origin)
        except ValueError as error:
            told = error.args if isinstance(error, UnfitError) else ()
            for expected in told or [f"expected {setting.kind.expected}"]:
                self._wrong(setting, f"{_tell(setting, given.origin, given.value)}: {expected}")
            return None

    def _wrong(self, setting: Setting, message: str) -> None:
        self.problems.append(message)
        self.wrong.add(setting.key)


def _parser(setting: Setting, origin: str) -> Callable[[Any], Any]:
    """A bare number in an OTEL_ variable is milliseconds, and its booleans are true and false only."""
    if origin.startswith("OTEL_") and setting.kind is BOOLEAN:
        return _otel_boolean
    if origin.startswith("OTEL_") and setting.kind is PERIOD:
        return lambda value: _duration(value, unit="ms", above=0.0)
    return setting.kind.parse


def _tell(setting: Setting, origin: str, value: Any) -> str:
    shown = "" if setting.kind is RULES else f" is {MASK if setting.secret else _masked(_quoted(value))}"
    return f"{setting.key}{shown} ({origin})"


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def near(name: str, names: Iterable[str]) -> str:
    """Suggest the name that was perhaps meant."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), n=1)
    return f", did you mean {close[0]}?" if close else ""


def _signal_url(base: str, protocol: str) -> str:
    return base if protocol == "grpc" else base.rstrip("/") + "/v1/metrics"


def _settings(found: Mapping[str, Found]) -> Settings:
    parts: dict[str, Any] = {key: each.value for key, each in found.items() if "." not in key}
    for name, section in SECTIONS.items():
        parts[name] = section(**{row.name: found[f"{name}.{row.name}"].value for row in fields(section)})
    return Settings(**parts, origins=MappingProxyType({key: each.origin for key, each in found.items()}))


def _contradictions(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Tell the settings that are right one by one and wrong together, with the keys concerned."""
    heartbeat = settings.gate.heartbeat

    def told(*keys: str) -> tuple[tuple[str, ...], str]:
        return keys, " and ".join(
            f"{key} is {BY_KEY[key].show(settings.value(key))} ({settings.origin(key)})" for key in keys
        )

    if heartbeat > HEARTBEAT_CEILING:
        keys, text = told("gate.heartbeat")
        yield keys, f"{text}: expected at most {show_duration(HEARTBEAT_CEILING)}, Prometheus forgets a series after 5m"
    if settings.gate.linger >= heartbeat:
        keys, text = told("gate.linger", "gate.heartbeat")
        yield keys, f"{text}: expected the linger to be shorter"
    for section, used in (("host", settings.host.enabled), ("server", bool(settings.server.url))):
        if used and settings.value(f"{section}.interval") >= heartbeat:
            keys, text = told(f"{section}.interval", "gate.heartbeat")
            yield keys, f"{text}: expected the interval to be shorter"
    if (settings.export.client_key is None) != (settings.export.client_certificate is None):
        keys, text = told("export.client_key", "export.client_certificate")
        yield keys, f"{text}: expected both or neither"
    if len(set(settings.server.url)) < len(settings.server.url):
        keys, text = told("server.url")
        yield keys, f"{text}: expected each server once"


# ── The settings file ────────────────────────────────────────────────────────────────────────────────────────────────


def _entries(path: str, problems: list[str]) -> dict[str, Found]:
    """Read a file into values by key, each with its line; leaves are text as written, null is None."""
    from pathlib import Path

    import yaml

    try:
        with Path(path).open(encoding="utf-8") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
        return _Leaves(path, problems).read(root) if root is not None else {}
    except OSError as error:
        problems.append(f"{path} cannot be read: {error.strerror}")
    except yaml.YAMLError as error:
        problems.append(_yaml_problem(path, error))
    except RecursionError:
        problems.append(f"{path} is nested too deeply")
    except ValueError as error:
        problems.append(f"{path} is not UTF-8 text: {error}")
    return {}


def _yaml_problem(path: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
    return f"{path}:{mark.line + 1}: not YAML: {what}" if mark else f"{path}: not YAML: {what}"


class _Leaves:
    """The leaves of a YAML document by dotted key: a mapping is walked until its path is a setting."""

    def __init__(self, path: str, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        self.entries: dict[str, Found] = {}

    def read(self, root: Any) -> dict[str, Found]:
        if root.id == "mapping":
            self._walk(root, "")
        elif self._plain(root) is not None:
            self.problems.append(f"{self._place(root)}: expected settings as a mapping")
        return self.entries

    def _walk(self, node: Any, prefix: str) -> None:
        for name, child in node.value:
            key = f"{prefix}{name.value}" if name.id == "scalar" else f"{prefix}?"
            if child.id == "mapping" and key not in BY_KEY and self._is_section(key):
                self._walk(child, f"{key}.")
            elif key in SECTIONS:
                self._section(key, child)
            elif key in self.entries:
                self.problems.append(f"{key} ({self._place(name)}) is set twice, first at {self.entries[key].origin}")
            else:
                self.entries[key] = Found(self._plain(child), self._place(name))

    def _is_section(self, key: str) -> bool:
        return any(known.startswith(f"{key}.") for known in BY_KEY)

    def _section(self, key: str, node: Any) -> None:
        if self._plain(node) is not None:
            self.problems.append(f"{key} ({self._place(node)}): expected a mapping of its settings")

    def _plain(self, node: Any) -> Any:
        if node.id == "mapping":
            return {self._name(name): self._plain(child) for name, child in node.value}
        if node.id == "sequence":
            return [self._plain(child) for child in node.value]
        return None if node.tag == "tag:yaml.org,2002:null" else node.value

    def _name(self, node: Any) -> str:
        return str(node.value) if node.id == "scalar" else "?"

    def _place(self, node: Any) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"


# ── Schema ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the settings file: sections, and the same keys dotted."""
    properties: dict[str, Any] = {}
    for setting in SETTINGS:
        section, _, name = setting.key.rpartition(".")
        if not section:
            properties[name] = _property(setting)
            continue
        room = properties.setdefault(
            section, {"type": ["object", "null"], "additionalProperties": False, "properties": {}}
        )
        room["properties"][name] = _property(setting)
    dotted = {key: {"$ref": "#/properties/" + key.replace(".", "/properties/")} for key in BY_KEY if "." in key}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "otelperf settings",
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": properties | dotted,
    }


def _property(setting: Setting) -> dict[str, Any]:
    default = {} if setting.derive or setting.default is None else {"default": setting.plain(setting.default)}
    return {"description": setting.doc, **default, "anyOf": [dict(setting.kind.schema), {"type": "null"}]}

"""Prometheus, which is only read: what it has stored, and what it says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json import loads
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit

from otelperf.connection import Connection, HttpError, without_login
from otelperf.doctor.asking import TIMEOUT, Offset, answered
from otelperf.doctor.finding import Finding
from otelperf.doctor.probe import RUN_LABEL

if TYPE_CHECKING:
    from otelperf.config import Settings

T = TypeVar("T")

OTLP_FLAG = "start Prometheus with --web.enable-otlp-receiver"

_PAGE_LIMIT = 8 * 2**20


class Series(NamedTuple):
    """A stored series; *samples* are (Unix seconds, value), stale marks left out."""

    name: str
    labels: Mapping[str, str]
    samples: tuple[tuple[float, float], ...]


class Prometheus:
    """The HTTP API of the Prometheus at *url*; user and password in the URL are sent as basic authentication.

    All methods raise HttpError.
    """

    def __init__(self, url: str) -> None:
        bare, self._headers = without_login(url)
        self.url = bare.partition("?")[0].rstrip("/")
        self._connection = Connection(self.url)
        self._prefix = urlsplit(self.url).path

    def offset(self) -> Offset:
        """Ask for the time."""
        sent = time.time()
        theirs = self._get("query", {"query": "time()"}, lambda data: float(data["result"][1]))
        return Offset(theirs - time.time(), theirs - sent)

    def stored(self, run: str, at: float) -> tuple[Series, ...]:
        """Return the test series of *run* with the samples of the ten minutes up to *at*."""
        return self._series(f'{{{RUN_LABEL}="{run}"}}[10m]', at)

    def alive(self, run: str, at: float) -> tuple[str, ...]:
        """Return the names of the test series of *run* that an alert would see at *at*."""
        return tuple(sorted({each.name for each in self._series(f'{{{RUN_LABEL}="{run}"}}', at)}))

    def flags(self) -> Mapping[str, str]:
        """Return the command-line flags that are in force."""
        return self._get("status/flags", {}, dict[str, str])

    def config(self) -> Mapping[str, Any]:
        """Return the configuration that is in force."""
        import yaml

        text = self._get("status/config", {}, lambda data: str(data["yaml"]))
        try:
            return dict(yaml.safe_load(text) or {})
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise HttpError(f"{self.url}: the configuration is not a mapping in YAML") from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _series(self, promql: str, at: float) -> tuple[Series, ...]:
        return self._get(
            "query", {"query": promql, "time": f"{at:.3f}"}, lambda data: tuple(map(_series, data["result"]))
        )

    def _get(self, path: str, parameters: Mapping[str, str], shape: Callable[[Any], T]) -> T:
        """Ask, and make of the answer's data what *shape* does."""
        target = f"{self._prefix}/api/v1/{path}" + (f"?{urlencode(parameters)}" if parameters else "")
        answer = self._connection.request("GET", target, None, self._headers, timeout=TIMEOUT, limit=_PAGE_LIMIT)
        told = answered(answer)
        if answer.status != 200:
            raise HttpError(f"{self.url}: /api/v1/{path} answers {told}")
        try:
            return shape(loads(answer.body)["data"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise HttpError(f"{self.url}: /api/v1/{path} answers otherwise than Prometheus does: {told}") from error


def _series(found: Mapping[str, Any]) -> Series:
    labels = dict(found["metric"])
    samples = tuple((float(when), float(value)) for when, value in found.get("values", ()))
    return Series(labels.pop("__name__", ""), labels, samples)


@dataclass(frozen=True, slots=True)
class Backend:
    """What Prometheus says of itself; *flags* and *config* are None where it does not say."""

    prometheus: Prometheus
    offset: Offset
    flags: Mapping[str, str] | None = None
    config: Mapping[str, Any] | None = None

    def setting(self, *path: str) -> Any:
        """Return a value of the configuration; None where it is not set or not known."""
        found: Any = self.config
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def now(self, *path: str) -> str:
        """Say in brackets what the configuration has now; nothing where it cannot be read."""
        if self.config is None:
            return ""
        found = self.setting(*path)
        return f" (now: {', '.join(map(str, found)) if isinstance(found, list) else found or 'not set'})"


def connect(url: str | None) -> tuple[Finding, Backend | None]:
    """Check that Prometheus answers, and read what it says of itself."""
    if url is None:
        cure = "to have the points read back, set --doctor-prometheus-url (OTELPERF_DOCTOR_PROMETHEUS_URL)"
        return Finding("prometheus", "skipped", "doctor.prometheus_url is not set", cure), None
    prometheus = Prometheus(url)
    try:
        backend = Backend(
            prometheus, prometheus.offset(), _unless_refused(prometheus.flags), _unless_refused(prometheus.config)
        )
    except HttpError as error:
        prometheus.close()
        cure = "set doctor.prometheus_url to the base URL of Prometheus' web interface, such as http://prometheus:9090"
        return Finding("prometheus", "failed", str(error), cure), None
    missing = [name for name in ("flags", "config") if getattr(backend, name) is None]
    told = f"; it does not tell its {' and '.join(missing)}" if missing else ""
    return Finding("prometheus", "ok", f"{prometheus.url} answers{told}"), backend


def _unless_refused(read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Hosted backends answer queries and hide the rest."""
    try:
        return read()
    except HttpError:
        return None


def unread(settings: Settings) -> str:
    """Say why there is no backend to read."""
    return "Prometheus cannot be read" if settings.doctor.prometheus_url else "doctor.prometheus_url is not set"

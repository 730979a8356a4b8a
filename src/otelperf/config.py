"""Settings: what there is to set, and how a value is found.

A setting is one line of one of the classes below. Its key, flag, environment names, place in the settings file, help,
docs and schema all follow from that line. Precedence: flag, environment, file, profile, backend, default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload
from urllib.parse import quote, urlsplit

from otelperf.backends import BACKENDS
from otelperf.config_maps import ENGINE, ENGINES, GLOBS, MAPS
from otelperf.config_rules import HEARTBEAT_CEILING, INTEGRALS, RULES
from otelperf.config_values import (
    AMOUNT,
    BOOLEAN,
    DURATION,
    HEADERS,
    MAPPING,
    NAMES,
    PATH,
    PERIOD,
    PORT,
    PORTS,
    SHARE,
    SIZE,
    TEXT,
    URL,
    URLS,
    Kind,
    T,
    UnfitError,
    choice,
    count,
    duration,
    is_loopback,
    near,
    otel_boolean,
    quoted,
    show_duration,
)
from otelperf.errors import ConfigError
from otelperf.gate.policy import Override

if TYPE_CHECKING:
    from pathlib import Path


MASK = "****"
EXPORTERS = ("otlp", "console", "none")
_NO_MAPPING: Mapping[str, str] = MappingProxyType({})
PODINFO = "/etc/podinfo/annotations"  # as in the Kubernetes documentation


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

    @property
    def backends(self) -> Mapping[str, Any]:
        """Its default for each backend that needs another than the usual."""
        return {name: values[self.key] for name, values in BACKENDS.items() if self.key in values}

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
        if self.kind is MAPS:
            return ", ".join(each["name"] for each in value)
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


def _derived_find(known: Mapping[str, Found], _: Mapping[str, str]) -> Found:
    if known["server.ports"].value:
        return Found(True, "default with server.ports")
    mode, named = known["mode"].value, bool(known["server.url"].value)
    return Found(mode == "sidecar" and not named, f"default of mode {mode}" + (" with server.url" if named else ""))


def _derived_endpoint(known: Mapping[str, Found], _: Mapping[str, str]) -> Found | None:
    if known["export.protocol"].value == "grpc":
        return Found("http://localhost:4317", "default of grpc")
    return None


def _derived_insecure(known: Mapping[str, Found], _: Mapping[str, str]) -> Found:
    scheme = urlsplit(known["export.endpoint"].value).scheme
    return Found(scheme == "http", f"default of {scheme}")


def _derived_rate_window(known: Mapping[str, Found], _: Mapping[str, str]) -> Found | None:
    heartbeat = known["gate.heartbeat"].value
    needed = min(2 * heartbeat + 20, _LONGEST_WINDOW)
    return Found(needed, "default of the heartbeat") if needed > 120 else None


def _derived_histogram_interval(known: Mapping[str, Found], _: Mapping[str, str]) -> Found | None:
    """A native histogram is one sample, so it may come more often."""
    return Found(10.0, "default with gate.native_histograms") if known["gate.native_histograms"].value else None


def _derived_publish_bounds(known: Mapping[str, Found], _: Mapping[str, str]) -> Found | None:
    budgeted = any(known[key].value is not None for key in ("gate.budget", "gate.stream_budget"))
    return Found(True, "default with a budget") if budgeted else None


def _derived_service(known: Mapping[str, Found], _: Mapping[str, str]) -> Found | None:
    attributes = known["resource.attributes"]
    name = attributes.value.get("service.name")
    return Found(name, attributes.origin) if name else None


def _is_https(url: str) -> bool:
    return url[:6].lower() == "https:"


def _otlp(name: str) -> tuple[str, str]:
    return f"OTEL_EXPORTER_OTLP_METRICS_{name}", f"OTEL_EXPORTER_OTLP_{name}"


def _traces(name: str, **more: Any) -> dict[str, Any]:
    """Return the places of a setting for traces; the general variable is less, and so no contradiction of ours."""
    return {"otel": (f"OTEL_EXPORTER_OTLP_TRACES_{name}",), "also": (f"OTEL_EXPORTER_OTLP_{name}",), **more}


def _as_export(name: str, *, there: bool = False) -> dict[str, Any]:
    """Return the places of a setting for traces that is as that for metrics; if *there*, only where both go to one host."""
    key = f"export.{name}"

    def derive(known: Mapping[str, Found], _: Mapping[str, str]) -> Found | None:
        elsewhere = there and _host(known["traces.endpoint"].value) != _host(known["export.endpoint"].value)
        return None if elsewhere else Found(known[key].value, f"as {key}")

    return _traces(name.upper(), derive=derive, usual=f"as {key}" + (" where both go to one host" if there else ""))


def _host(url: str) -> tuple[str, str | None]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.hostname


def _derived_traces(known: Mapping[str, Found], _: Mapping[str, str]) -> Found:
    return Found(known["metrics.exporter"].value, "as metrics.exporter")


def _derived_traces_endpoint(known: Mapping[str, Found], _: Mapping[str, str]) -> Found | None:
    """Where metrics go, under the path for traces; where that is another protocol, on its usual port here."""
    grpc = known["traces.protocol"].value == "grpc"
    if grpc != (known["export.protocol"].value == "grpc"):
        return Found("http://localhost:4317", "default of grpc") if grpc else None
    endpoint: str = known["export.endpoint"].value
    if not grpc:
        parts = urlsplit(endpoint)
        path = parts.path.rstrip("/")
        base = path.removesuffix("/v1/metrics") if path.endswith("/v1/metrics") else ""
        endpoint = parts._replace(path=f"{base}/v1/traces", query="", fragment="").geturl()
    return Found(endpoint, "as export.endpoint")


def _derived_traces_insecure(known: Mapping[str, Found], _: Mapping[str, str]) -> Found:
    if known["traces.endpoint"].value == known["export.endpoint"].value:
        return Found(known["export.insecure"].value, "as export.insecure")
    scheme = urlsplit(known["traces.endpoint"].value).scheme
    return Found(scheme == "http", f"default of {scheme}")


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
        choice(*EXPORTERS), "otlp", "Where metrics go: a Collector, standard output, nowhere.",
        otel=("OTEL_METRICS_EXPORTER",), profiles={"development": "console"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """How metrics reach the Collector."""

    backend: Literal["prometheus", "amp", "google", "victoriametrics", "grafana-cloud"] = _setting(
        choice(*BACKENDS), "prometheus",
        "What stores the metrics in the end; sets defaults that it needs (docs/backends.md). Mimir is prometheus."
    )
    protocol: Literal["http/protobuf", "grpc"] = _setting(
        choice("http/protobuf", "grpc"), "http/protobuf", "Transport. grpc needs `pip install 'otelperf[grpc]'`.",
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
        choice("none", "gzip"), "none", "Compression of requests.", otel=_otlp("COMPRESSION")
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
    replay_age: float = _setting(
        PERIOD, 3600.0, "How old a request that waited may be and still be sent; what stores it may refuse older points."
    )
    max_points: int = _setting(count(1, 1_000_000), 2000, "Most points in one request.")
    shutdown_timeout: float = _setting(DURATION, 2.0, "Time for the last requests when the agent stops.")

    tls_keys = "export.certificate, export.client_certificate, export.client_key"

    @property
    def by_https(self) -> bool:
        """Whether requests go by OTLP over HTTPS."""
        return self.protocol != "grpc" and _is_https(self.endpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Where spans go, and how."""

    exporter: Literal["otlp", "console", "none"] = _setting(
        choice(*EXPORTERS), "otlp", "Where spans (of state changes) go: a Collector, standard output, nowhere.",
        otel=("OTEL_TRACES_EXPORTER",), derive=_derived_traces, usual="as metrics.exporter"
    )
    protocol: Literal["http/protobuf", "grpc"] = _setting(
        choice("http/protobuf", "grpc"), "http/protobuf", "Transport of spans.", **_as_export("protocol")
    )
    endpoint: str = _setting(
        URL, "http://localhost:4318/v1/traces",
        "URL for spans, used as it is; only OTEL_EXPORTER_OTLP_ENDPOINT gets /v1/traces appended, for http.",
        **_traces("ENDPOINT", derive=_derived_traces_endpoint, usual="as export.endpoint, with /v1/traces for /v1/metrics")
    )
    headers: Mapping[str, str] = _setting(
        HEADERS, _NO_MAPPING, "Headers sent with each request of spans. Never shown.", **_as_export("headers", there=True)
    )
    timeout: float = _setting(PERIOD, 10.0, "How long one request of spans may take.", **_as_export("timeout"))
    compression: Literal["none", "gzip"] = _setting(
        choice("none", "gzip"), "none", "Compression of requests of spans.", **_as_export("compression")
    )
    certificate: str | None = _setting(
        TEXT, None, "File of the CA of the certificate of the Collector for spans.", **_as_export("certificate", there=True)
    )
    client_key: str | None = _setting(
        TEXT, None, "File of the client's private key for spans (mTLS).", **_as_export("client_key", there=True)
    )
    client_certificate: str | None = _setting(
        TEXT, None, "File of the client's certificate for spans (mTLS).", **_as_export("client_certificate", there=True)
    )
    insecure: bool = _setting(
        BOOLEAN, True, "Use grpc without TLS for spans.",
        **_traces("INSECURE", derive=_derived_traces_insecure, usual="true if the endpoint is http://")
    )
    queue_size: int = _setting(
        SIZE, 2 * 2**20, "Bytes of spans that may wait while the Collector is away; beyond, the oldest go."
    )

    tls_keys = "traces.certificate, traces.client_certificate, traces.client_key"

    @property
    def by_https(self) -> bool:
        """Whether requests go by OTLP over HTTPS."""
        return self.exporter == "otlp" and self.protocol != "grpc" and _is_https(self.endpoint)


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
        count(1, 100_000_000), 100_000, "Most series to remember; beyond, new ones are refused."
    )
    gone_after: float | None = _setting(
        PERIOD, None, "Absence after which a series has ended.",
        usual="2 heartbeats or 3 intervals, whichever is longer"
    )
    rate_window: float = _setting(
        PERIOD, 120.0, "Window of the rate() for which the error of counters is bounded.", derive=_derived_rate_window,
        usual="2m, or twice the heartbeat and 20s if that is more"
    )
    previous: bool = _setting(
        BOOLEAN, True,
        "Send a counter's held readings later, at their own times, where rate() needs them; false if none older is taken."
    )
    spacing: float = _setting(
        DURATION, 0.0, "Least time between two points of a series, also across a threshold; the newest wins."
    )
    native_histograms: bool = _setting(
        BOOLEAN, False, "Histograms are stored as native ones: a point is one sample, not one for each bucket."
    )
    histogram_interval: float = _setting(
        PERIOD,
        30.0,
        "Least time between two points of a histogram; a sixth of it where a quantile would be misread.",
        derive=_derived_histogram_interval,
        usual="30s, with gate.native_histograms 10s",
    )
    budget: float | None = _setting(
        AMOUNT, None, "Most samples a minute in all; deltas widen as far as that takes.", usual="no limit"
    )
    stream_budget: float | None = _setting(
        AMOUNT, None, "Most samples a minute of each series; deltas widen as far as that takes.", usual="no limit"
    )
    publish_bounds: bool = _setting(
        BOOLEAN, False, "Send the bound in force of each metric: otelperf.gate.delta, .relative.",
        derive=_derived_publish_bounds, usual="true with a budget, else false: they are the rules' own"
    )
    integrals: tuple[str, ...] = _setting(
        INTEGRALS, (), "Gauges, as globs, to send the time integral of as well, of which rate() is the true mean."
    )
    shutdown_marks: Literal["auto", "all", "none"] = _setting(
        choice("auto", "all", "none"), "auto",
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
    remote: bool = _setting(
        BOOLEAN, False, "Read servers of server.url that are neither on loopback nor at the pod's own address, too."
    )
    ports: tuple[int, ...] = _setting(
        PORTS, (), "Ports of 127.0.0.1 to look for servers at, instead of the usual ones.", usual="the usual ones"
    )
    find: bool = _setting(
        BOOLEAN, False, "Look for inference servers on the usual ports of 127.0.0.1.", derive=_derived_find,
        usual="true in mode sidecar without server.url, and with server.ports, else false"
    )
    annotations: str = _setting(
        PATH, PODINFO, "The pod's annotations, as the downward API writes them; they say where to look (docs/servers.md)."
    )
    token_file: str | None = _setting(
        PATH, None, "File of the bearer token that the servers want; read again when it changes."
    )
    certificate: str | None = _setting(PATH, None, "File of the CA of the servers' certificates.")
    client_key: str | None = _setting(PATH, None, "File of the private key shown to the servers (mTLS).")
    client_certificate: str | None = _setting(PATH, None, "File of the certificate shown to the servers (mTLS).")
    tls_server_name: str | None = _setting(
        TEXT, None, "Name that the servers' certificates are for, where it is not the host in the URL."
    )
    engine: str = _setting(
        ENGINE, "auto", "What the servers are, or the name of a map; auto: what their pages look like."
    )
    name: str | None = _setting(TEXT, None, "service.name of the servers' metrics.", usual="the engine's name")
    container: str | None = _setting(TEXT, None, "k8s.container.name of the servers' metrics.")
    interval: float = _setting(PERIOD, 5.0, "Time between readings.", profiles={"testing": 1.0})
    timeout: float = _setting(PERIOD, 2.0, "How long one page may take.", profiles={"testing": 0.5})
    share: float = _setting(
        SHARE, 0.02, "Most of the time that reading a server may take; one that answers slowly is read less often."
    )
    max_page: int = _setting(SIZE, 4 * 2**20, "Most bytes of a server's page; a longer one is refused.")
    stuck_after: float = _setting(
        PERIOD, 60.0, "An engine is stuck if requests run and no step of work was seen for so long.", profiles={"testing": 5.0}
    )
    process: bool = _setting(
        BOOLEAN, True, "Look in /proc for the process of a server on loopback, to tell how it ended."
    )
    passthrough: tuple[str, ...] = _setting(
        GLOBS, (), "Series of the servers, as globs, to send under their own names as well (docs/servers.md)."
    )
    mapped: bool = _setting(
        BOOLEAN, True,
        "Send what the servers say under our names; false sends what server.passthrough names, and otelperf.server.up."
    )
    maps: tuple[Mapping[str, Any], ...] = _setting(
        MAPS, (), "Maps of your own for servers that none is made for (docs/servers.md).", file_only=True
    )


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
    pod_ip: tuple[str, ...] = _setting(
        NAMES, (), "The pod's own addresses: a server there is read as one on loopback is.", also=("POD_IPS", "POD_IP")
    )
    namespace: str | None = _setting(TEXT, None, "k8s.namespace.name.", also=("POD_NAMESPACE",))
    node_name: str | None = _setting(TEXT, None, "k8s.node.name.", also=("NODE_NAME",))
    container_name: str | None = _setting(TEXT, None, "k8s.container.name of the agent.", also=("CONTAINER_NAME",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """Inside a Python program: `otelperf.instrument()` and `otelperf run`."""

    libraries: tuple[str, ...] = _setting(
        NAMES, ("all",), "Libraries to instrument by themselves: all, none, or names (docs/instrument.md)."
    )
    set_global: bool = _setting(
        BOOLEAN, False, "Make our providers those of the OpenTelemetry API, where the program has set none."
    )
    content: bool = _setting(
        BOOLEAN, False, "Let what people and models wrote out of the process: on spans, with texts of exceptions and URLs' queries."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The agent's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = _setting(
        choice("debug", "info", "warning", "error"), "info", "Least level to log.", otel=("OTEL_LOG_LEVEL",),
        profiles={"development": "debug"}
    )
    format: Literal["logfmt", "json"] = _setting(choice("logfmt", "json"), "logfmt", "Form of a line.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """What `otelperf doctor` looks at besides the agent."""

    prometheus_url: str | None = _setting(URL, None, "Prometheus to ask whether what was sent has arrived.")


PROFILES = ("production", "development", "testing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, typed: ``settings.gate.heartbeat``. ``Settings()`` is production on a plain machine."""

    profile: Literal["production", "development", "testing"] = _setting(
        choice(*PROFILES), "production", "Which set of defaults."
    )
    mode: Literal["node", "sidecar"] = _setting(
        choice("node", "sidecar"), "node", "One agent for the machine, or one beside a server.", derive=_derived_mode,
        usual="sidecar in Kubernetes, else node"
    )
    sdk: Sdk = Sdk()
    metrics: Metrics = Metrics()
    export: Export = Export()
    traces: Traces = Traces()
    gate: Gate = field(default_factory=Gate)
    host: Host = Host()
    server: Server = Server()
    endpoint: Endpoint = Endpoint()
    resource: Resource = field(default_factory=Resource)
    service: Service = Service()
    k8s: K8s = K8s()
    instrument: Instrument = Instrument()
    log: Log = Log()
    doctor: Doctor = Doctor()
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def needs_tls(self) -> bool:
        """Whether HTTPS is spoken to anyone (gRPC brings TLS of its own)."""
        return self.export.by_https or self.traces.by_https or any(_is_https(url) for url in self.server.url)

    def is_here(self, url: str) -> bool:
        """Whether *url* is of this machine or pod; nothing is resolved: of names only localhost is."""
        host = urlsplit(url).hostname or ""
        return is_loopback(host) or host in (each.lower() for each in self.k8s.pod_ip)

    def origin(self, key: str) -> str:
        """Say where the value of *key* came from: a flag, a variable, a file and its line, a profile, ``default``."""
        return self.origins.get(key, "default")

    def value(self, key: str) -> Any:
        """Return a value by its key, for those who walk the table; others use attributes."""
        section, _, name = key.rpartition(".")
        return getattr(getattr(self, section) if section else self, name)


SECTIONS: Mapping[str, type] = {
    "sdk": Sdk, "metrics": Metrics, "export": Export, "traces": Traces, "gate": Gate, "host": Host, "server": Server,
    "endpoint": Endpoint, "resource": Resource, "service": Service, "k8s": K8s, "instrument": Instrument,
    "log": Log, "doctor": Doctor,
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
RUN_VARIABLE = "OTELPERF_RUN"  # what `otelperf run` was told, for the program that it starts
OTHER_VARIABLES = (
    FILE_VARIABLE,
    RUN_VARIABLE,
    "OTELPERF_PARTS",
)  # the last: the folder where tests keep the real parts

# Kubernetes gives each container variables for each Service: one called otelperf, or otelperf-endpoint, must not hurt.
_SERVICE_LINK = re.compile(
    r"OTELPERF_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_\w+)?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(?:tcp|udp|sctp)://.*")


# ── Finding values ───────────────────────────────────────────────────────────────────────────────────────────────────


def load(
    argv_values: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: str | Path | None = None,
    *,
    named: Callable[[Setting], str] = lambda setting: setting.flag,
    others: Sequence[str] = (FILE_FLAG,),
) -> Settings:
    """Find each setting's value; raise one ConfigError with a line for everything that is wrong.

    *argv_values* by key; *named* is how errors call one of them, *others* are what else can be given there. Without *file* the
    one that OTELPERF_CONFIG names is read, if any.
    """
    environ = {} if environ is None else environ
    path = file if file is not None else environ.get(FILE_VARIABLE) or None
    search = _Search(argv_values or {}, environ, named, others)
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

    def __init__(
        self,
        argv: Mapping[str, Any],
        environ: Mapping[str, str],
        named: Callable[[Setting], str],
        others: Sequence[str],
    ) -> None:
        self.argv = argv
        self.named = named
        self.others = others
        self.environ = environ
        self.entries: dict[str, Found] = {}
        self.found: dict[str, Found] = {}
        self.problems: list[str] = []
        self.wrong: set[str] = set()

    def refuse_unknown(self) -> None:
        here = [self.named(setting).partition("=")[0] for setting in SETTINGS if not setting.file_only]
        for name in self.argv:
            if name not in BY_KEY:
                known = BY_KEY if "." in name and not name.startswith("-") else [*here, *self.others]
                self.problems.append(f"{name} is not a setting{near(name, known)}")
            elif BY_KEY[name].file_only:
                self.problems.append(f"{name} can only be set in the settings file")
        names = dict.fromkeys([*OTHER_VARIABLES, *(name for setting in SETTINGS for name in setting.variables)])
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
        places = [
            self._flag(setting),
            self._variable(setting),
            self._entry(setting),
            self._profile(setting),
            self._backend(setting),
        ]
        derived = setting.derive(self.found, self.environ) if setting.derive else None
        self.found[setting.key] = next(
            (found for found in (*places, derived) if found is not None), Found(setting.default, "default")
        )

    def _flag(self, setting: Setting) -> Found | None:
        if setting.key not in self.argv or setting.file_only:
            return None
        return self._parsed(setting, Found(self.argv[setting.key], self.named(setting)))

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
            section = setting.key.partition(".")[0]
            return Found(_signal_url(found.value, section, self.found[f"{section}.protocol"].value), name)
        return found

    def _entry(self, setting: Setting) -> Found | None:
        entry = self.entries.get(setting.key)
        return None if entry is None or entry.value is None else self._parsed(setting, entry)

    def _profile(self, setting: Setting) -> Found | None:
        profile = self.found["profile"].value if "profile" in self.found else ""
        return Found(setting.profiles[profile], f"profile {profile}") if profile in setting.profiles else None

    def _backend(self, setting: Setting) -> Found | None:
        backend = self.found["export.backend"].value if "export.backend" in self.found else ""
        values = setting.backends
        return Found(values[backend], f"default of backend {backend}") if backend in values else None

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


# The specification's words for levels that have other names here. Variables are often shared by all containers of a pod.
_OTEL_LEVELS = {"trace": "debug", "warn": "warning", "fatal": "error", "none": "error", "off": "error"}


def _first_of(value: str, known: Sequence[str]) -> str:
    names = [name.strip() for name in value.split(",")]
    return next((name for name in names if name.lower() in known), value)


def _parser(setting: Setting, origin: str) -> Callable[[Any], Any]:
    """A bare number in an OTEL_ variable is milliseconds, and its booleans are true and false only."""
    if origin == "OTEL_LOG_LEVEL":
        return lambda value: setting.kind.parse(_OTEL_LEVELS.get(str(value).strip().lower(), value))
    if origin in {"OTEL_METRICS_EXPORTER", "OTEL_TRACES_EXPORTER"}:  # a list: the first that we know
        return lambda value: setting.kind.parse(_first_of(str(value), EXPORTERS))
    if origin.startswith("OTEL_") and setting.kind is BOOLEAN:
        return otel_boolean
    if origin.startswith("OTEL_") and setting.kind is PERIOD:
        return lambda value: duration(value, unit="ms", above=0.0)
    return setting.kind.parse


def _tell(setting: Setting, origin: str, value: Any) -> str:
    shown = "" if setting.kind in {RULES, MAPS} else f" is {MASK if setting.secret else _masked(quoted(value))}"
    return f"{setting.key}{shown} ({origin})"


def _signal_url(base: str, section: str, protocol: str) -> str:
    path = "/v1/traces" if section == "traces" else "/v1/metrics"
    return base if protocol == "grpc" else base.rstrip("/") + path


def _settings(found: Mapping[str, Found]) -> Settings:
    parts: dict[str, Any] = {key: each.value for key, each in found.items() if "." not in key}
    for name, section in SECTIONS.items():
        parts[name] = section(**{row.name: found[f"{name}.{row.name}"].value for row in fields(section)})
    return Settings(**parts, origins=MappingProxyType({key: each.origin for key, each in found.items()}))


_Told = tuple[tuple[str, ...], str]
# s. Earlier readings are sent up to 2.5 windows late, and may wait for an hour; Prometheus takes two hours (prometheus/README.md).
_LONGEST_WINDOW = 1200.0


def _contradictions(settings: Settings) -> Iterator[_Told]:
    """Tell the settings that are right one by one and wrong together, with the keys concerned."""
    yield from _gate_contradictions(settings)
    for section, used in (
        ("host", settings.host.enabled),
        ("server", bool(settings.server.url) or settings.server.find),
    ):
        if used and settings.value(f"{section}.interval") >= settings.gate.heartbeat:
            yield _told(settings, "expected the interval to be shorter", f"{section}.interval", "gate.heartbeat")
    for section, way in (("export", settings.export), ("traces", settings.traces), ("server", settings.server)):
        derived = settings.origin(f"{section}.client_key") == "as export.client_key"  # told already
        if (way.client_key is None) != (way.client_certificate is None) and not derived:
            yield _told(settings, "expected both or neither", f"{section}.client_key", f"{section}.client_certificate")
    yield from _server_contradictions(settings)
    yield from _url_contradictions(settings)


def _url_contradictions(settings: Settings) -> Iterator[_Told]:
    server = settings.server
    if len(set(server.url)) < len(server.url):
        yield _told(settings, "expected each server once", "server.url")
    elsewhere = [url for url in server.url if not settings.is_here(url)]
    if elsewhere and not server.remote:
        expected = (
            f"{_masked(elsewhere[0])} is not on loopback: expected 127.0.0.1, [::1], localhost or the pod's own address "
            "(k8s.pod_ip); set server.remote to true to read a server elsewhere"
        )
        yield _told(settings, expected, "server.url")
    if server.token_file is None:
        return
    for url in elsewhere if server.remote else ():
        if not _is_https(url):
            expected = f"the token would be sent to {_masked(url)} in the clear, expected https"
            yield _told(settings, expected, "server.token_file", "server.url")
    if any(urlsplit(url).username is not None for url in server.url):
        yield _told(settings, "expected a token or a login in the URL, not both", "server.token_file", "server.url")


def _server_contradictions(settings: Settings) -> Iterator[_Told]:
    server = settings.server
    names = ("auto", *(each["name"] for each in server.maps), *ENGINES)
    if server.engine not in names:
        expected = f"expected one of {', '.join(names)}{near(server.engine, names)}"
        yield _told(settings, expected, "server.engine")
    if not server.mapped and not server.passthrough and not any(each.get("passthrough") for each in server.maps):
        expected = "nothing of a server would be sent, expected series to pass through"
        yield _told(settings, expected, "server.mapped", "server.passthrough")


def _gate_contradictions(settings: Settings) -> Iterator[_Told]:
    gate = settings.gate
    if gate.heartbeat > HEARTBEAT_CEILING:
        expected = f"expected at most {show_duration(HEARTBEAT_CEILING)}, Prometheus forgets a series after 5m"
        yield _told(settings, expected, "gate.heartbeat")
    if gate.linger >= gate.heartbeat:
        yield _told(settings, "expected the linger to be shorter", "gate.linger", "gate.heartbeat")
    if gate.spacing > gate.heartbeat:
        yield _told(settings, "expected the spacing to be no longer", "gate.spacing", "gate.heartbeat")
    elif gate.spacing and gate.previous:
        yield _told(
            settings,
            "earlier readings keep no spacing, expected one without the other",
            "gate.spacing",
            "gate.previous",
        )
    if gate.rate_window > _LONGEST_WINDOW:
        expected = (
            f"expected at most {show_duration(_LONGEST_WINDOW)}: earlier readings would come too late for Prometheus"
        )
        yield _told(settings, expected, "gate.rate_window")
    if gate.rate_window < 2 * gate.heartbeat <= 2 * HEARTBEAT_CEILING:
        yield _told(settings, "a rate needs two heartbeats in its window", "gate.rate_window", "gate.heartbeat")
    beats = 60 / gate.heartbeat
    if gate.stream_budget is not None and gate.stream_budget < beats:
        expected = f"heartbeats alone are {beats:.3g} a minute, expected a larger budget or a longer heartbeat"
        yield _told(settings, expected, "gate.stream_budget", "gate.heartbeat")
    for key in ("gate.budget", "gate.stream_budget"):
        if settings.value(key) is not None and not gate.enabled:
            yield _told(settings, "expected no budget, or the gate to be on", key, "gate.enabled")


def _told(settings: Settings, expected: str, *keys: str) -> _Told:
    values = (f"{key} is {BY_KEY[key].show(settings.value(key)) or 'empty'} ({settings.origin(key)})" for key in keys)
    return keys, f"{' and '.join(values)}: {expected}"


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
    varies = setting.derive or setting.backends or setting.default is None
    default = {} if varies else {"default": setting.plain(setting.default)}
    return {"description": setting.doc, **default, "anyOf": [dict(setting.kind.schema), {"type": "null"}]}

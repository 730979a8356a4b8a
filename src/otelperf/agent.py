"""The sidecar process: one clock, one tick, and everything that hangs on it."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from otelperf import __version__, catalog, own, telemetry
from otelperf.connection import without_login
from otelperf.console import Console, NullExporter
from otelperf.endpoint import Endpoint, Page, as_json, as_text
from otelperf.export import METRICS, TRACES, QueueExporter, QueueSpanExporter, Sender, Signal, Transport
from otelperf.gate.budget import Budget
from otelperf.gate.clock import Clock
from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import UNKNOWN, Override, Policy
from otelperf.integrals import Integrals
from otelperf.logs import Log
from otelperf.native_rules import BY_TYPE, native_rules
from otelperf.points import SCOPE_NAME, Points
from otelperf.readings import Batch, Snapshot, Source
from otelperf.resource import resources, server_resource
from otelperf.sampler import Sampler
from otelperf.sources import server_process
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.annotations import Annotations
from otelperf.sources.engines.engine import Engine, unmapped
from otelperf.sources.engines.finder import Finder
from otelperf.sources.engines.own_maps import engine_of
from otelperf.sources.engines.server import Server
from otelperf.sources.engines.watch import Watch
from otelperf.sources.host import agent_source, host_sources
from otelperf.standard_variables import not_followed
from otelperf.transitions import Transitions, span

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData, ScopeMetrics
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

    from otelperf.config import Settings
    from otelperf.gate.spans import SpanGateStats
    from otelperf.gate.stream import Bound
    from otelperf.sources.server_process import ServerProcess

_log = Log("otelperf.agent")

_LATE_TICKS = 10  # a tick this many intervals old means that the loop hangs
_LATE_SECONDS = 30.0
_SECOND = 1_000_000_000
_STEP_BACK = 60 * _SECOND
_LEAVING = 0.3  # s of the shutdown timeout for everything else than the network
_OWN_INTERVAL = 5.0
_FILESYSTEM_INTERVAL = 5.0
_FIND_INTERVAL = 5.0
_BOUNDS_AGE = 60 * _SECOND
# Scopes whose counters begin when the first thing is counted, and say so: our own, and of those packages that we load.
_TRUE_STARTS = (
    SCOPE_NAME,
    telemetry.SCOPE_NAME,
    *(f"opentelemetry.instrumentation.{name}" for name in ("httpx", "requests", "genai.openai", "genai.anthropic")),
)


class Application(NamedTuple):
    """An application in whose process the agent runs, instead of one of its own.

    *resource* is the application's, *sources* with their intervals read the process, and *scopes* collects at each tick what
    the application itself has recorded. *span_gate* says what the gate for its spans did, where there is one.
    """

    resource: Resource
    sources: Sequence[tuple[Source, float]]
    scopes: Callable[[], Sequence[ScopeMetrics]]
    span_gate: Callable[[], SpanGateStats | None] = lambda: None


class Waits(Protocol):
    """What says when to stop."""

    def wait(self, seconds: float, /) -> bool:
        """Wait *seconds* at most; say whether it is time."""
        ...


class Agent:
    """Sources, sampler, gate and sender, made from *settings*; *application* is the one that it runs in, if any.

    Tests give a *clock* of their own (Unix ns), drive ``tick`` by hand, and read every source in their own thread
    with *threads* false.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], int] | None = None,
        threads: bool = True,
        application: Application | None = None,
    ) -> None:
        self._settings = settings
        self._application = application
        self._clock = clock or Clock()
        self._started = self._clock()
        self.servers = make_servers(settings)
        for server in self.servers:
            server.watch = make_watch(settings, server)
        self._finder = make_finder(settings)
        sources = _sources(settings, self.servers, self._finder, application)
        # A server is read on its own thread and its answer taken at the next tick: no tick is longer than a second.
        self.interval = min(1.0, *(interval for _, interval in sources))
        gone_after = settings.gate.gone_after or 2 * settings.gate.heartbeat
        self._sampler = Sampler(sources, gone_after, threads=threads, steady=None if clock else time.monotonic_ns)
        self._integrals = Integrals(settings.gate.integrals, {source.name: each for source, each in sources})
        self._environ = environ
        self._resource_of = resources(settings, __version__, self.servers, environ)
        if application:
            self._resource_of["agent"] = application.resource
        self._spared = {id(self._resource_of[server.entity]): server for server in self.servers}
        self._points = Points(self._resource_of, __version__)
        self._transitions = None if settings.traces.exporter == "none" else Transitions(settings.gate.rules)
        self._console = Console() if settings.metrics.exporter == "console" else None
        self._span_console = (self._console or Console()) if settings.traces.exporter == "console" else None
        self._sender: Sender | None = None
        self._span_sender = make_sender(settings, TRACES) if settings.traces.exporter == "otlp" else None
        self.span_exporter: SpanExporter | None = QueueSpanExporter(self._span_sender) if self._span_sender else None
        self._resource_of_moved: dict[str, Resource] = {}  # their states end at the next tick
        self.gate = self._make_gate(self._exporter())
        for sender in (self._sender, self._span_sender):
            if sender:
                sender.hasty = application is not None
        self._endpoint = self._make_endpoint() if settings.endpoint.enabled else None
        self.snapshot: Snapshot | None = None
        self._tick_seconds: float | None = None
        self._own_due = 0
        self._own: Batch | None = None
        self._bounds: Mapping[str, Bound] = {}
        self._bounds_of = 0  # streams
        self._bounds_read = 0
        self._unfit: set[str] = set()  # told
        self.missed = 0
        self._last_tick = time.monotonic()

    @property
    def url(self) -> str | None:
        """Where the endpoint listens; None if it is off."""
        return self._endpoint.url if self._endpoint else None

    def start(self) -> None:
        """Start the console, the sender and the endpoint."""
        if self._console:
            self._console.begin()
        if self._sender:
            self._sender.start()
        if self._endpoint:
            self._endpoint.start()

    def last_tick(self) -> None:
        """Tick once more before ``close``, with all sources: what was counted since their last reading is not lost."""
        self._sampler.make_due()
        self._own_due = 0
        self.tick()

    def tick(self) -> None:
        """Sample once, and let the gate decide."""
        began = time.perf_counter()
        if isinstance(self._clock, Clock) and self._clock.ahead > _STEP_BACK:
            self._step_back(self._clock)
        now = self._clock()
        self._take_found()
        snapshot = self._integrals.added_to(self._sampler.sample(now))
        self._know_servers()
        self._tell_unfit()
        if self._own is None or now >= self._own_due:
            self._own = self._read_own(now, snapshot)
            self._own_due = now + int((_OWN_INTERVAL - self.interval / 2) * _SECOND)
        self.snapshot = replace(snapshot, batches=(*snapshot.batches, self._own))
        self.gate.export(self._metrics_data(self.snapshot))
        self._tell_transitions(snapshot)
        if self._console:
            self._console.summary(now, self.gate.stats)
        self._tick_seconds = time.perf_counter() - began
        self._last_tick = time.monotonic()

    def _metrics_data(self, snapshot: Snapshot) -> MetricsData:
        """Return the snapshot's points, and what the application has recorded."""
        data = self._points.of(snapshot)
        if self._application:
            scopes = self._application.scopes()
            for each in data.resource_metrics:  # one entry a resource: of two the encoder would lose the first
                if each.resource is self._application.resource:
                    each.scope_metrics.extend(scopes)  # type: ignore[attr-defined] # it is a list: Points made it
        return data

    def _tell_transitions(self, snapshot: Snapshot) -> None:
        """Tell each state that has changed as a span; what goes wrong here must not keep metrics back."""
        if self._transitions is None:
            return
        try:
            changes = self._transitions.of(snapshot)
            if changes and self.span_exporter:
                scope, resource_of = self._points.scope, {**self._resource_of_moved, **self._resource_of}
                self.span_exporter.export([span(each, resource_of[each.entity], scope) for each in changes])
            elif self._span_console:
                for change in changes:
                    self._span_console.transition(change)
        except Exception as error:  # noqa: BLE001 # whatever it is, the next tick comes
            _log.trouble("state changes not told", by=("problem",), problem=f"{type(error).__name__}: {error}")
        self._resource_of_moved = {}

    def _take_found(self) -> None:
        """Read the servers that the finder has found meanwhile as well, and no longer those that are elsewhere now."""
        while self._finder and self._finder.found:
            server, interval = self._finder.found.popleft(), self._settings.server.interval
            server.watch = make_watch(self._settings, server)
            _log.info("server found", url=server.url, engine=server.engine.name if server.engine else None)
            self._sampler.add(server, interval)
            self._integrals.add(server.name, interval)
            self.servers += (server,)
        while self._finder and self._finder.notes:
            _log.info("looking for servers", note=self._finder.notes.popleft())
        while self._finder and self._finder.gone:
            server = self._finder.gone.popleft()
            _log.info("server moved", url=server.url, then="its series end, unless it is found there again")
            self._sampler.remove(server)
            self.servers = tuple(each for each in self.servers if each is not server)
            for entity, resource in list(self._resource_of.items()):
                if self._spared.get(id(resource)) is server:
                    self._resource_of_moved[entity] = resource
                    del self._spared[id(resource)], self._resource_of[entity]

    def _know_servers(self) -> None:
        """Give each server that is now known for what it is the resource of that."""
        for server in self.servers:
            if server.entity not in self._resource_of:
                if any(each is server for each in self._spared.values()):  # one that was found was named then
                    _log.info("server recognised", url=server.url, engine=server.engine.name if server.engine else None)
                resource = server_resource(self._settings, server, self._environ)
                self._resource_of[server.entity] = resource
                self._spared[id(resource)] = server

    def _tell_unfit(self) -> None:
        """Tell what was to be passed through and is on no server's page: it may be meant for another server here."""
        for server in self.servers:
            while server.unfit:
                glob = server.unfit.popleft()
                if glob not in self._unfit and all(glob in other.fits.missing for other in self.servers):
                    self._unfit.add(glob)
                    page = f"{server.url}{server.engine.metrics_path}" if server.engine else server.url
                    _log.info("passthrough fits nothing", glob=glob, url=server.url, see=f"the names on {page}")

    def _read_own(self, now: int, snapshot: Snapshot) -> Batch:
        gate = self._settings.gate
        return own.batch(
            now,
            self._started,
            self.gate.stats,
            self._sender.stats if self._sender else None,
            snapshot.health,
            self._tick_seconds,
            self.missed,
            bounds=self._read_bounds(now) if gate.publish_bounds and gate.enabled else {},
            budgeted=gate.budget is not None,
            spans=self._span_sender.stats if self._span_sender else None,
            span_gate=self._application.span_gate() if self._application else None,
        )

    def _read_bounds(self, now: int) -> Mapping[str, Bound]:
        """Ask the gate, which looks at every stream, at each turn only if it has a budget: else bounds hardly ever move."""
        gate, streams = self._settings.gate, self.gate.stats.streams
        budgeted = gate.budget is not None or gate.stream_budget is not None
        if budgeted or streams != self._bounds_of or abs(now - self._bounds_read) > _BOUNDS_AGE:
            self._bounds, self._bounds_of, self._bounds_read = self.gate.bounds(), streams, now
        return self._bounds

    def _step_back(self, clock: Clock) -> None:
        """The machine's clock was set back by more than is worth waiting for: go on from where it is now."""
        _log.warning(
            "clock was set back", seconds=clock.ahead // _SECOND, then="every series is sent anew, at the new time"
        )
        clock.follow()
        self.gate.rebase()
        self._own_due = 0

    def run(self, stop: Waits) -> None:
        """Tick at the interval until *stop* is set; after a tick that took too long the missed ones are left out, and counted."""
        due = time.monotonic()
        while not (stop.wait(max(0.0, due - time.monotonic())) or (self._console and self._console.closed)):
            try:
                self.tick()
            except Exception as error:  # noqa: BLE001 # a tick that fails must not be the last one
                _log.trouble("tick failed", by=("problem",), problem=f"{type(error).__name__}: {error}")
            due += self.interval
            late = int((time.monotonic() - due) / self.interval)
            if late > 0:
                self.missed += late
                due += late * self.interval

    def close(self, timeout: float | None = None, marks: str | None = None) -> bool:
        """Send what waits and the stale marks, within *timeout* or that of the settings, whatever the Collector does.

        *marks* instead of the settings' ``gate.shutdown_marks``. Say whether everything went.
        """
        timeout = self._settings.export.shutdown_timeout if timeout is None else timeout
        deadline = time.monotonic() + max(0.0, timeout - _LEAVING)
        if self._endpoint:
            threading.Thread(target=self._endpoint.shutdown, daemon=True).start()
        if self._console:
            self._console.stopping()
        marks = marks or self._settings.gate.shutdown_marks
        if marks == "none":
            self.gate.end_streams(spare=lambda _: True)
        else:
            self.gate.end_streams(spare=self._lives_on if marks == "auto" else lambda _: False)
        senders = [sender for sender in (self._sender, self._span_sender) if sender]
        for sender in senders:
            sender.finish(max(0.0, deadline - time.monotonic()))
        late = [sender for sender in senders if not sender.close(max(0.0, deadline - time.monotonic()))]
        for sender in late:
            _log.warning("not everything was sent", **sender.named, queued_bytes=sender.stats.queue_bytes)
        if self._console:
            self._console.stopped(self._clock(), self.gate.stats)
        self._sampler.close()
        return not late

    def abandon(self) -> None:
        """In a forked child: close what was inherited, without a word. Threads, and the locks that they hold, are the parent's."""
        self._sampler.abandon()
        for sender in (self._sender, self._span_sender):
            if sender:
                sender.abandon()

    def _lives_on(self, resource: Resource) -> bool:
        """A server that still answers goes on: a mark and then a gap would reset an alert's `for`."""
        server = self._spared.get(id(resource))
        return server is not None and server.up

    # -- parts

    def _exporter(self) -> MetricExporter:
        if self._settings.metrics.exporter != "otlp":
            return NullExporter()
        self._sender = make_sender(self._settings, METRICS, self._resend)
        return QueueExporter(self._sender)

    def _resend(self) -> None:
        """Something was lost on the way: let everything out anew."""
        self.gate.forget()

    def _make_gate(self, exporter: MetricExporter) -> DeltaGate:
        gate = self._settings.gate
        engines = _maps(self._settings)
        native = any(engine.native for engine in engines)
        for rule in gate.rules:
            foreign = self._application or (native and "." not in rule.metric)  # as every name of ours has
            if not foreign and not any(fnmatchcase(name, rule.metric) for name in catalog.BY_NAME):
                _log.warning("gate rule fits no metric of ours", metric=rule.metric, see="docs/metrics.md")
        overrides = gate.rules if gate.enabled else (Override("*", {"kind": "off"}),)
        rules = catalog.rules(gate.heartbeat, gate.rate_window)
        if native:
            rules |= native_rules(engines)
        return DeltaGate(
            exporter,
            Policy(rules, overrides, BY_TYPE if native else UNKNOWN),
            self._clock,
            heartbeat=gate.heartbeat,
            linger=gate.linger,
            gone_after=gate.gone_after,
            complete=(SCOPE_NAME,),
            from_zero=_TRUE_STARTS,
            rate_window=gate.rate_window,
            histogram_interval=gate.histogram_interval,
            previous=gate.previous,
            spacing=gate.spacing if gate.enabled else 0.0,
            native_histograms=gate.native_histograms,
            budget=make_budget(self._settings),
            max_streams=gate.max_streams,
            max_points=self._settings.export.max_points,
            observe=self._console.emission if self._console else None,
        )

    def _make_endpoint(self) -> Endpoint:
        pages: dict[str, Page] = {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        return Endpoint(self._settings.endpoint.host, self._settings.endpoint.port, pages)

    def _healthz(self) -> tuple[int, str, str]:
        """Alive: the loop ticks. Whether the Collector answers is no reason to restart us."""
        age = time.monotonic() - self._last_tick
        ok = age < max(_LATE_SECONDS, _LATE_TICKS * self.interval)
        return as_json(
            200 if ok else 503, {"status": "ok" if ok else "the tick hangs", "last_tick_seconds": round(age, 1)}
        )

    def _readyz(self) -> tuple[int, str, str]:
        """Ready: there is a snapshot to show. A pod must not lose its traffic because a Collector is away."""
        snapshot = self.snapshot
        if snapshot is None:
            return as_json(503, {"status": "no snapshot yet"})
        sources = {h.source: "ok" if h.ok else "absent" if h.absent else h.message for h in snapshot.health}
        body: dict[str, object] = {"status": "ok", "sources": sources}
        if self._sender:
            stats = self._sender.stats
            body["export"] = {**stats.requests, "retries": stats.retries, "queued_bytes": stats.queue_bytes}
        if self._span_sender and self._span_sender.started:
            stats = self._span_sender.stats
            body["traces"] = {**stats.requests, "retries": stats.retries, "queued_bytes": stats.queue_bytes}
        return as_json(200, body)

    def _metrics(self) -> tuple[int, str, str]:
        from otelperf.prometheus_text import render

        snapshot = self.snapshot
        return as_text(render(self._points.of(snapshot)) if snapshot else "")


def make_sender(settings: Settings, signal: Signal, on_loss: Callable[[], None] | None = None) -> Sender:
    """Return the queue for *signal* and its way to the Collector; it is not started."""
    way = settings.traces if signal is TRACES else settings.export
    transport = make_transport(settings, signal)
    replay_age = settings.export.replay_age
    return Sender(transport, on_loss, limit=way.queue_size, timeout=way.timeout, replay_age=replay_age, signal=signal)


def make_transport(settings: Settings, signal: Signal = METRICS) -> Transport:
    """Return the way to the Collector that the settings ask for."""
    way = settings.traces if signal is TRACES else settings.export
    if way.protocol == "grpc":
        from otelperf.otlp_grpc import from_settings

        return from_settings(way, signal)
    from otelperf.export import HttpTransport

    compress, tls = way.compression == "gzip", make_tls(settings, signal)
    return HttpTransport(way.endpoint, way.headers, compress=compress, tls=tls, signal=signal)


def make_tls(settings: Settings, signal: Signal = METRICS) -> ssl.SSLContext | None:
    """Return the TLS context for the way to the Collector; None where it is not by HTTPS. OpenSSL is loaded only then."""
    way = settings.traces if signal is TRACES else settings.export
    if not way.by_https:
        return None
    from otelperf.tls import context

    section = "traces" if signal is TRACES else "export"
    return context(way.certificate, way.client_certificate, way.client_key, section)


def make_budget(settings: Settings) -> Budget | None:
    """Return the samples a minute that the settings allow; None is no limit."""
    gate = settings.gate
    if gate.budget is None and gate.stream_budget is None:
        return None
    return Budget(total=gate.budget, per_stream=gate.stream_budget)


def make_engines(settings: Settings) -> tuple[Engine, ...]:
    """Return the engines known, the user's own maps first, as they are to be read."""
    engines = _maps(settings)
    return engines if settings.server.mapped else tuple(map(unmapped, engines))


def _maps(settings: Settings) -> tuple[Engine, ...]:
    server = settings.server
    histograms = frozenset(row.name for row in catalog.SERVER if row.kind == "histogram")
    engines = (*(engine_of(each, ENGINES, histograms) for each in server.maps), *ENGINES)
    return tuple(replace(engine, native=(*engine.native, *server.passthrough)) for engine in engines)


def make_servers(settings: Settings) -> tuple[Server, ...]:
    """Return the source of each inference server that the settings name."""
    server = settings.server
    known = make_engines(settings)
    engine = {engine.name: engine for engine in known}.get(server.engine)  # auto is none
    engines = () if engine else known
    return tuple(_make_server(settings, url, engine, engines) for url in server.url)


def _make_server(settings: Settings, url: str, engine: Engine | None, engines: Sequence[Engine]) -> Server:
    server = settings.server
    return Server(
        url,
        engine,
        engines=engines,
        timeout=server.timeout,
        max_page=server.max_page,
        share=server.share,
        tls=_make_server_tls(settings) if url[:6].lower() == "https:" else None,
        server_name=server.tls_server_name,
        token_file=server.token_file,
    )


def _make_server_tls(settings: Settings) -> ssl.SSLContext:
    from otelperf.tls import context

    server = settings.server
    return context(server.certificate, server.client_certificate, server.client_key, "server")


def make_search(settings: Settings, server: Server) -> Callable[[], ServerProcess | None] | None:
    """Return what looks for the server's process; None where that is not wanted or would be another machine's."""
    if not (settings.server.process and _is_local(server)):
        return None
    url = urlsplit(server.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    return lambda: server_process.find(port)


def _is_local(server: Server) -> bool:
    return urlsplit(server.url).hostname in server_process.LOOPBACK


def make_watch(settings: Settings, server: Server) -> Watch | None:
    """Return what says how the server's pages go together; None where nothing is wanted under names of ours."""
    if not settings.server.mapped:
        return None

    def tell(event: str, fields: dict[str, Any]) -> None:
        _log.trouble(event, by=("url", "engine", "reason", "changed"), **fields)

    return Watch(
        server.url,
        stuck_after=settings.server.stuck_after,
        find=make_search(settings, server),
        local=_is_local(server),
        tell=tell,
        startup=server.startup,
    )


def make_finder(settings: Settings) -> Finder | None:
    """Return what looks for servers, if the settings ask for it."""
    server = settings.server
    if not server.find:
        return None
    engines = tuple(engine for engine in make_engines(settings) if server.engine in {"auto", engine.name})
    named = settings.origin("server.annotations") != "default"
    paths = [engine.metrics_path for engine in engines]
    return Finder(
        engines,
        _taken_ports(settings),
        ports=server.ports or None,
        annotations=Annotations(server.annotations, paths, settings.is_here, needed=named),
        timeout=server.timeout,
        max_page=server.max_page,
        make=lambda url, engine: _make_server(settings, url, engine, engines),
        tls=lambda: _make_server_tls(settings),
        server_name=server.tls_server_name,
    )


def _taken_ports(settings: Settings) -> set[int]:
    """Return the ports here that are known already: of servers that are named, and our own, which may pass their series on."""
    ports = {settings.endpoint.port} if settings.endpoint.enabled else set()
    for url in settings.server.url:
        if settings.is_here(url):
            parts = urlsplit(url)
            ports.add(parts.port or (443 if parts.scheme.lower() == "https" else 80))
    return ports


def _sources(
    settings: Settings, servers: tuple[Server, ...], finder: Finder | None, application: Application | None
) -> list[tuple[Source, float]]:
    host, found = settings.host, list[tuple[Source, float]]()
    if host.enabled:
        for source in host_sources(host.root_path, per_logical=host.cpu_per_logical, exclude=host.network_exclude):
            slow = getattr(source, "blocking", False)
            found.append((source, max(host.interval, _FILESYSTEM_INTERVAL) if slow else host.interval))
    found += [(server, settings.server.interval) for server in servers]
    if finder:
        found.append((finder, max(settings.server.interval, _FIND_INTERVAL)))
    found += application.sources if application else [(agent_source(), max(_OWN_INTERVAL, host.interval))]
    return found


class Stop:
    """Waits until it is set, also from a signal handler: ``threading.Event`` set there can deadlock with its own wait."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def set(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._write, b".")

    def wait(self, seconds: float) -> bool:
        """Wait *seconds* at most; say whether it is set."""
        return bool(select.select([self._read], [], [], seconds)[0])

    def on_signal(self, _number: int, _frame: object) -> None:
        """Set, and let the next signal, whichever it is, end the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        self.set()


def _idle(settings: Settings, stop: Stop) -> int:
    """Do nothing, and stay: a sidecar that ended would be started again and again."""
    _log.info("disabled", why="OTEL_SDK_DISABLED is set")
    page = as_json(200, {"status": "disabled"})
    pages: dict[str, Page] = {"/healthz": lambda: page, "/readyz": lambda: page}
    if settings.endpoint.enabled:
        Endpoint(settings.endpoint.host, settings.endpoint.port, pages).start()
    while not stop.wait(_LATE_SECONDS):
        pass
    return 0


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; a second one ends at once."""
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.on_signal)
    if settings.sdk.disabled:
        return _idle(settings, stop)
    agent = Agent(settings)
    agent.start()
    where = (
        without_login(settings.export.endpoint)[0] if settings.metrics.exporter == "otlp" else settings.metrics.exporter
    )
    unheeded = not_followed(os.environ)
    if unheeded:
        _log.warning("standard variables that are not followed", **unheeded)
    _log.info("agent started", version=__version__, mode=settings.mode, to=where, endpoint=agent.url)
    agent.run(stop)
    agent.close()
    _log.info("agent stopped")
    return 0

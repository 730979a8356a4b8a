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
from typing import TYPE_CHECKING

from otelperf import __version__, catalog, own
from otelperf.connection import without_login
from otelperf.console import Console, NullExporter
from otelperf.endpoint import Endpoint, Page, as_json, as_text
from otelperf.export import QueueExporter, Sender, Transport
from otelperf.gate.budget import Budget
from otelperf.gate.clock import Clock
from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Override, Policy
from otelperf.integrals import Integrals
from otelperf.logs import Log
from otelperf.points import SCOPE_NAME, Points
from otelperf.readings import Batch, Snapshot, Source
from otelperf.resource import resources, server_resource
from otelperf.sampler import Sampler
from otelperf.sources import agent_source, host_sources
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.finder import Finder
from otelperf.sources.engines.server import Server

if TYPE_CHECKING:
    import ssl

    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource

    from otelperf.config import Settings
    from otelperf.gate.stream import Bound

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


class Agent:
    """Sources, sampler, gate and sender, made from *settings*.

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
    ) -> None:
        self._settings = settings
        self._clock = clock or Clock()
        self._started = self._clock()
        self.servers = make_servers(settings)
        self._finder = make_finder(settings)
        sources = _sources(settings, self.servers, self._finder)
        # A server is read on its own thread and its answer taken at the next tick: no tick is longer than a second.
        self.interval = min(1.0, *(interval for _, interval in sources))
        gone_after = settings.gate.gone_after or 2 * settings.gate.heartbeat
        self._sampler = Sampler(sources, gone_after, threads=threads, steady=None if clock else time.monotonic_ns)
        self._integrals = Integrals(settings.gate.integrals, {source.name: each for source, each in sources})
        self._environ = environ
        self._resource_of = resources(settings, __version__, self.servers, environ)
        self._spared = {id(self._resource_of[server.entity]): server for server in self.servers}
        self._points = Points(self._resource_of, __version__)
        self._console = Console() if settings.metrics.exporter == "console" else None
        self._sender: Sender | None = None
        self.gate = self._make_gate(self._exporter())
        self._endpoint = self._make_endpoint() if settings.endpoint.enabled else None
        self.snapshot: Snapshot | None = None
        self._tick_seconds: float | None = None
        self._own_due = 0
        self._own: Batch | None = None
        self._bounds: Mapping[str, Bound] = {}
        self._bounds_of = 0  # streams
        self._bounds_read = 0
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

    def tick(self) -> None:
        """Sample once, and let the gate decide."""
        began = time.perf_counter()
        if isinstance(self._clock, Clock) and self._clock.ahead > _STEP_BACK:
            self._step_back(self._clock)
        now = self._clock()
        self._take_found()
        snapshot = self._integrals.added_to(self._sampler.sample(now))
        self._know_servers()
        if self._own is None or now >= self._own_due:
            self._own = self._read_own(now, snapshot)
            self._own_due = now + int((_OWN_INTERVAL - self.interval / 2) * _SECOND)
        self.snapshot = replace(snapshot, batches=(*snapshot.batches, self._own))
        self.gate.export(self._points.of(self.snapshot))
        if self._console:
            self._console.summary(now, self.gate.stats)
        self._tick_seconds = time.perf_counter() - began
        self._last_tick = time.monotonic()

    def _take_found(self) -> None:
        """Read the servers that the finder has found meanwhile as well."""
        while self._finder and self._finder.found:
            server, interval = self._finder.found.popleft(), self._settings.server.interval
            _log.info("server found", url=server.url, engine=server.engine.name if server.engine else None)
            self._sampler.add(server, interval)
            self._integrals.add(server.name, interval)
            self.servers += (server,)

    def _know_servers(self) -> None:
        """Give each server that is now known for what it is the resource of that."""
        for server in self.servers:
            if server.entity not in self._resource_of:
                resource = server_resource(self._settings, server, self._environ)
                self._resource_of[server.entity] = resource
                self._spared[id(resource)] = server

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
        )

    def _read_bounds(self, now: int) -> Mapping[str, Bound]:
        """Ask the gate, which looks at every stream, at each turn only if it has a budget: else bounds hardly ever move."""
        streams = self.gate.stats.streams
        if make_budget(self._settings) or streams != self._bounds_of or abs(now - self._bounds_read) > _BOUNDS_AGE:
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

    def run(self, stop: Stop) -> None:
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

    def close(self) -> None:
        """Send what waits and the stale marks, within the shutdown timeout, whatever the Collector does."""
        deadline = time.monotonic() + max(0.0, self._settings.export.shutdown_timeout - _LEAVING)
        if self._endpoint:
            threading.Thread(target=self._endpoint.shutdown, daemon=True).start()
        if self._console:
            self._console.stopping()
        marks = self._settings.gate.shutdown_marks
        if marks == "none":
            self.gate.end_streams(spare=lambda _: True)
        else:
            self.gate.end_streams(spare=self._lives_on if marks == "auto" else lambda _: False)
        if self._sender and not self._sender.close(max(0.0, deadline - time.monotonic())):
            _log.warning("not everything was sent", queued_bytes=self._sender.stats.queue_bytes)
        if self._console:
            self._console.stopped(self._clock(), self.gate.stats)
        self._sampler.close()

    def _lives_on(self, resource: Resource) -> bool:
        """A server that still answers goes on: a mark and then a gap would reset an alert's `for`."""
        server = self._spared.get(id(resource))
        return server is not None and server.up

    # -- parts

    def _exporter(self) -> MetricExporter:
        if self._settings.metrics.exporter != "otlp":
            return NullExporter()
        export = self._settings.export
        self._sender = Sender(
            make_transport(self._settings),
            self._resend,
            limit=export.queue_size,
            timeout=export.timeout,
            replay_age=export.replay_age,
        )
        return QueueExporter(self._sender)

    def _resend(self) -> None:
        """Something was lost on the way: let everything out anew."""
        self.gate.forget()

    def _make_gate(self, exporter: MetricExporter) -> DeltaGate:
        gate = self._settings.gate
        for rule in gate.rules:
            if not any(fnmatchcase(name, rule.metric) for name in catalog.BY_NAME):
                _log.warning("gate rule fits no metric of ours", metric=rule.metric, see="docs/metrics.md")
        overrides = gate.rules if gate.enabled else (Override("*", {"kind": "off"}),)
        return DeltaGate(
            exporter,
            Policy(catalog.rules(gate.heartbeat, gate.rate_window), overrides),
            self._clock,
            heartbeat=gate.heartbeat,
            linger=gate.linger,
            gone_after=gate.gone_after,
            complete=(SCOPE_NAME,),
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
        return as_json(200, body)

    def _metrics(self) -> tuple[int, str, str]:
        from otelperf.prometheus_text import render

        snapshot = self.snapshot
        return as_text(render(self._points.of(snapshot)) if snapshot else "")


def make_transport(settings: Settings) -> Transport:
    """Return the way to the Collector that the settings ask for."""
    export = settings.export
    compress = export.compression == "gzip"
    if export.protocol == "grpc":
        from otelperf.otlp_grpc import from_settings

        return from_settings(export)
    from otelperf.export import HttpTransport

    return HttpTransport(export.endpoint, export.headers, compress=compress, tls=make_tls(settings))


def make_tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context for the way to the Collector; None where it is not by HTTPS. OpenSSL is loaded only then."""
    export = settings.export
    if not export.by_https:
        return None
    from otelperf.tls import context

    return context(export.certificate, export.client_certificate, export.client_key)


def make_budget(settings: Settings) -> Budget | None:
    """Return the samples a minute that the settings allow; None is no limit."""
    gate = settings.gate
    if gate.budget is None and gate.stream_budget is None:
        return None
    return Budget(total=gate.budget, per_stream=gate.stream_budget)


def make_servers(settings: Settings) -> tuple[Server, ...]:
    """Return the source of each inference server that the settings name."""
    server = settings.server
    engine = {engine.name: engine for engine in ENGINES}.get(server.engine)  # auto is none
    engines = () if engine else ENGINES
    return tuple(
        Server(url, engine, engines=engines, timeout=server.timeout, max_page=server.max_page) for url in server.url
    )


def make_finder(settings: Settings) -> Finder | None:
    """Return what looks for servers, if the settings ask for it."""
    server = settings.server
    if not server.find:
        return None
    engines = tuple(engine for engine in ENGINES if server.engine in {"auto", engine.name})
    return Finder(engines, server.url, timeout=server.timeout, max_page=server.max_page)


def _sources(settings: Settings, servers: tuple[Server, ...], finder: Finder | None) -> list[tuple[Source, float]]:
    host, found = settings.host, list[tuple[Source, float]]()
    if host.enabled:
        for source in host_sources(host.root_path, per_logical=host.cpu_per_logical, exclude=host.network_exclude):
            slow = getattr(source, "blocking", False)
            found.append((source, max(host.interval, _FILESYSTEM_INTERVAL) if slow else host.interval))
    found += [(server, settings.server.interval) for server in servers]
    if finder:
        found.append((finder, max(settings.server.interval, _FIND_INTERVAL)))
    found.append((agent_source(), max(_OWN_INTERVAL, host.interval)))
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
    _log.info("agent started", version=__version__, mode=settings.mode, to=where, endpoint=agent.url)
    agent.run(stop)
    agent.close()
    _log.info("agent stopped")
    return 0

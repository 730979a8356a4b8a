"""The agent inside an application's process: one thread that ticks, and what joins it from the OpenTelemetry SDK.

Nothing here raises into the application, waits for the network, or keeps a process from ending for longer than the shutdown
timeout. A forked child gets a guest of its own: it starts with nothing, so that no two processes write one series.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, MetricsData, ScopeMetrics
from opentelemetry.sdk.resources import Resource

from otelperf.agent import Agent, Application
from otelperf.errors import ConfigError
from otelperf.logs import Log
from otelperf.resource import process_resource
from otelperf.sources.caches import Caches
from otelperf.sources.calls import Calls
from otelperf.sources.cpython import CPython
from otelperf.sources.host import agent_source
from otelperf.sources.quality import Quality
from otelperf.sources.workers import Workers
from otelperf.tracing import Traces, leave_to_parent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from otelperf.config import Settings
    from otelperf.readings import Source

_log = Log("otelperf.guest")

_ENTITY = "agent"
_INTERVAL = 1.0
_FORKED = (
    0.2  # s before a forked child does its first work: many children only live to become another program, or gevent's
)
_CALLBACKS = 1000.0  # ms that the application's own observable instruments may take in a tick


class Plan(NamedTuple):
    """What a guest is made from, in this process and in its forked children.

    *meter_provider* is what is recorded with, and collected unless it is *left*: the application reads it itself.
    *tracer_provider*: whose spans pass the gate. *given*: which of the two were named in the call, so that they are never left.
    *application*: the attributes that the application has given to its own providers.
    *named*: the service's name was given in a call.
    """

    settings: Settings
    meter_provider: MeterProvider
    tracer_provider: TracerProvider | None
    application: Mapping[str, Any]
    named: bool
    given: tuple[bool, bool] = (False, False)
    left: bool = False


class Reader(MetricReader):
    """Collects what instruments of a MeterProvider have recorded, when asked."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self._scopes: list[ScopeMetrics] = []

    def read(self) -> list[ScopeMetrics]:
        """Return everything, cumulative."""
        self._scopes = []
        if self.closed:  # it has taken too long to end
            return []
        try:
            self.collect(timeout_millis=_CALLBACKS)
        except BaseException as error:  # noqa: BLE001 # an observable instrument of the application's; SystemExit is of this thread
            _log.trouble("instruments could not be collected", problem=f"{type(error).__name__}: {error}")
        return self._scopes

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        self._scopes = [scope for resource in metrics_data.resource_metrics for scope in resource.scope_metrics]

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Nothing is kept open."""


class Guest:
    """The thread, the agent and the reader of one process. *parents* is the parent's agent in a forked child."""

    def __init__(self, plan: Plan, *, forked: bool = False, parents: Agent | None = None) -> None:
        self.plan = plan
        self._forked = forked
        self._parents = parents
        self.agent: Agent | None = None
        self._reader = Reader()
        self._traces: Traces | None = None
        self._resource = process_resource(plan.settings, os.environ, plan.application, named=plan.named, forked=forked)
        self._stopping = threading.Event()
        self._deadline = 0.0
        self._goes_on = False
        self._sent = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otelperf", daemon=True)

    @property
    def service(self) -> str:
        return str(self._resource.attributes["service.name"])

    def start(self) -> None:
        """Begin. In a forked child the agent is made by the thread: the fork must not wait for it."""
        if self.plan.tracer_provider:
            self._traces = Traces(
                self.plan.tracer_provider, self.plan.settings, self._resource, given=self.plan.given[1]
            )
        if not self._forked:
            self.agent = self._make_agent()
        if self._traces:
            self._traces.start()
        if not self.plan.left:
            self.plan.meter_provider.add_metric_reader(self._reader)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or none at all (in a subinterpreter)
            self._remove_reader()
            if self._traces:
                self._traces.stop()
            raise

    def stop(self, timeout: float, *, goes_on: bool = False) -> bool:
        """Send what waits, within *timeout* seconds; say whether everything went.

        All series end with that, unless this process *goes_on* with them.
        """
        self._goes_on = goes_on
        self._deadline = time.monotonic() + timeout
        self._stopping.set()
        ended = self._ended.wait(timeout)
        self._reader.closed = True
        if ended:
            self._remove_reader()
        else:  # it may hang in a callback of the application's, and with it the SDK's lock
            threading.Thread(target=self._remove_reader, name="otelperf-end", daemon=True).start()
        return ended and self._sent

    def _remove_reader(self) -> None:
        if not self.plan.left:
            self.plan.meter_provider.remove_metric_reader(self._reader)

    def in_child(self) -> Guest:
        """In a forked child: return what takes this one's place, with a reader that has counted nothing yet."""
        provider = self.plan.meter_provider
        _renew_lock(provider)
        self._remove_reader()
        if self.plan.tracer_provider:
            leave_to_parent(self.plan.tracer_provider)
        return Guest(self.plan, forked=True, parents=self.agent or self._parents)

    def again(self) -> Guest:
        """Return what takes the place of this one, which has been stopped, in the same process."""
        _renew_lock(self.plan.meter_provider)
        return Guest(self.plan, forked=self._forked)

    def _run(self) -> None:
        try:
            if self._forked and self._stopping.wait(_FORKED) and self._goes_on:
                return
            if self._parents:
                self._parents.abandon()
                self._parents = None
            agent = self.agent = self.agent or self._make_agent()
            if self._traces:
                self._traces.send_to(agent.span_exporter)
            agent.start()
            agent.run(self._stopping)
            self._close(agent)
        except Exception as error:  # noqa: BLE001 # the application goes on without us
            _log.warning("stopped by an error", problem=f"{type(error).__name__}: {error}")
        finally:
            self._ended.set()

    def _close(self, agent: Agent) -> None:
        """Tick once more, for what was recorded since."""
        try:
            if self._traces:
                self._traces.stop()
            agent.last_tick()
        finally:
            left = max(0.0, self._deadline - time.monotonic())
            self._sent = agent.close(left, "none" if self._goes_on else None)

    def _collect(self) -> list[ScopeMetrics]:
        """Do what belongs to a tick, and return what the application has recorded."""
        self._leave_to_application()
        if self._traces:
            self._traces.tick()
        return [] if self.plan.left else self._reader.read()

    def _leave_to_application(self) -> None:
        """Step back from a provider that the application has begun to export by itself: nothing is to be sent twice."""
        plan = self.plan
        if self._traces and self._traces.left:
            self._traces.stop()
            self._traces = None
            self.plan = plan = plan._replace(tracer_provider=None)
            _log.info("spans are left to the application", why="its TracerProvider has a processor of its own by now")
        ours = plan.given[0] or plan.meter_provider is private_provider()
        if not (ours or plan.left) and _has_readers(plan.meter_provider):
            self._remove_reader()
            self.plan = plan._replace(left=True)
            _log.info("metrics are left to the application", why="its MeterProvider has a reader of its own by now")

    def _make_agent(self) -> Agent:
        inside = Application(
            self._resource, own_sources(), self._collect, lambda: self._traces.stats if self._traces else None
        )
        return Agent(self.plan.settings, application=inside)


def load_everything() -> None:
    """Import now what threads would import when they first need it.

    A process that forks while a thread is importing leaves the module locked in the child, for ever.
    """
    import encodings.idna  # noqa: F401 # a socket's address is looked up with it

    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    from otelperf.gate.marks import encode

    encode(MetricsData([]))
    encode_spans([])


def own_sources() -> list[tuple[Source, float]]:
    """Return what is read of the process itself, with its intervals."""
    state = (Workers(_ENTITY), Calls(_ENTITY), Caches(_ENTITY), Quality(_ENTITY))
    return [(agent_source(), _INTERVAL), (CPython(_ENTITY), 5 * _INTERVAL), *((source, _INTERVAL) for source in state)]


def _renew_lock(provider: MeterProvider) -> None:
    """The parent may have been collecting while it forked: then this lock would stay locked in the child. The SDK renews others."""
    consumer = getattr(provider, "_measurement_consumer", None)
    if hasattr(consumer, "_lock"):
        consumer._lock = threading.Lock()  # type: ignore[union-attr] # noqa: SLF001 # no other way


class _Private(MeterProvider):
    def _handle_fork(self) -> None:
        """Renew the locks, as the SDK does. Its own also looks for resource detectors, at 8 ms a fork; ours has no resource."""
        self._lock = threading.Lock()
        self._meter_lock = threading.Lock()
        MeterProvider._all_metric_readers_lock = threading.Lock()  # noqa: SLF001 # as the SDK's


@cache
def private_provider() -> MeterProvider:
    """Return our own MeterProvider, one for the life of the process: instruments that libraries have taken from it stay good."""
    return _Private(resource=Resource({}), shutdown_on_exit=False)


def find_meter_provider(given: MeterProvider | None) -> MeterProvider:
    """Return what to record with and collect: what was *given*, or the application's own while nothing reads it, or ours.

    One that has readers is sent by the application itself: what we recorded with it would be sent twice.
    """
    found = given or metrics.get_meter_provider()
    if given is None and (not isinstance(found, MeterProvider) or _has_readers(found)):
        return private_provider()
    if not isinstance(found, MeterProvider):
        raise ConfigError(
            f"meter_provider is a {type(found).__name__}, expected a MeterProvider of opentelemetry.sdk.metrics"
        )
    return found


def set_providers() -> tuple[object, object]:
    """Return what the application has set as its providers; the API's stand-ins where it has set none."""
    return trace.get_tracer_provider(), metrics.get_meter_provider()


def set_global(meter_provider: MeterProvider, tracer_provider: TracerProvider | None) -> None:
    """Make them the API's, unless the application has set its own."""
    tracers, meters = set_providers()
    if not isinstance(meters, MeterProvider):
        metrics.set_meter_provider(meter_provider)
    if tracer_provider and not isinstance(tracers, type(tracer_provider)):
        trace.set_tracer_provider(tracer_provider)


def _has_readers(provider: MeterProvider) -> bool:
    """Say whether the application reads it; if the SDK should hide that one day, yes."""
    readers = getattr(getattr(provider, "_measurement_consumer", None), "_reader_storages", (None,))
    return any(not isinstance(each, Reader) for each in readers)


def attributes_of(*providers: object) -> dict[str, Any]:
    """Return the resource attributes of the application's own providers, the first one's before the later ones'."""
    found: dict[str, Any] = {}
    for provider in providers:
        resource = getattr(provider, "resource", None) or getattr(
            getattr(provider, "_sdk_config", None), "resource", None
        )
        if isinstance(resource, Resource):
            found = {**resource.attributes, **found}
    return found


def inside(settings: Settings) -> Settings:
    """Return the settings as they are meant inside a program: no host, no search for servers unless asked for, no endpoint."""

    def asked(key: str) -> bool:
        return not settings.origin(key).startswith("default")

    host = settings.host.enabled and (asked("host.enabled") or asked("mode"))
    return replace(
        settings,
        host=replace(settings.host, enabled=host),
        server=replace(settings.server, find=settings.server.find and asked("server.find")),
        endpoint=replace(settings.endpoint, enabled=False),
    )

"""``otelperf.instrument()``: measure the program that calls it.

Everything that is heavy is loaded by the call, not by the import; with ``OTEL_SDK_DISABLED=true`` not even then.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from otelperf import config, libraries, standard_variables, telemetry
from otelperf.errors import ConfigError
from otelperf.lifecycle import Lifecycle
from otelperf.logs import Log

if TYPE_CHECKING:
    from pathlib import Path

    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    from otelperf.config import Settings
    from otelperf.guest import Guest, Plan

_log = Log("otelperf.inprocess")

_PATCHING = 1.0  # s that gevent's patching may wait for us
_OTHERS = ("config", "meter_provider", "tracer_provider", "settings", "strict")  # keywords that are no settings
_KEYS = {key.replace(".", "_"): key for key in config.BY_KEY}


class Handle:
    """What ``instrument()`` returns. As a context it shuts down at the end."""

    def __init__(self, process: _Process) -> None:
        self._process = process

    @property
    def enabled(self) -> bool:
        """Whether anything is measured."""
        return self._process.handle is self

    @property
    def meter_provider(self) -> MeterProvider | None:
        """What is recorded with; None when not *enabled*."""
        plan = self._process.plan if self.enabled else None
        return plan.meter_provider if plan else None

    @property
    def tracer_provider(self) -> TracerProvider | None:
        """Whose spans pass the gate; None where they are not our concern."""
        plan = self._process.plan if self.enabled else None
        return plan.tracer_provider if plan else None

    def shutdown(self, timeout: float | None = None) -> bool:
        """Send what waits and end all series, within *timeout* seconds (``export.shutdown_timeout``); say whether everything went.

        Libraries are no longer instrumented after that, and ``instrument()`` may begin anew. A second call does nothing.
        """
        return self._process.shutdown(timeout) if self.enabled else True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


class _Process:
    """What this process has of it: at most one handle, and the guest behind it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._lifecycle = Lifecycle(self)
        self._given: Mapping[str, Any] = {}
        self._guest: Guest | None = None
        self._instrumented: libraries.Instrumented | None = None
        self._log_level = logging.NOTSET
        self.handle: Handle | None = None

    @property
    def plan(self) -> Plan | None:
        return self._guest.plan if self._guest else None

    def start(self, given: Mapping[str, Any], *, strict: bool) -> Handle:
        """Return the handle, started unless it is already; one that is not enabled where it cannot be started."""
        with self._lock:
            if self.handle is not None:
                if given and given != self._given:
                    _log.trouble("instrument() has been called before, with other settings: those hold")
                return self.handle
            handle = Handle(self)
            try:
                if self._start(given):
                    self.handle = handle
            except ConfigError as error:
                if strict:
                    raise
                _log.error("not started", problem=str(error).replace("\n", "; "))
            except Exception as error:  # noqa: BLE001 # the application must run without us
                _log.error("not started", problem=_told(error))
                self.shutdown(0.0)  # what has been
            return handle

    def _start(self, given: Mapping[str, Any]) -> bool:
        settings = _settings(given)
        wanted = libraries.chosen(settings)
        if settings.sdk.disabled:
            telemetry.disable()
            return False
        from otelperf import guest as inner
        from otelperf.tracing import find_tracer_provider

        inner.load_everything()
        meters, tracers = given.get("meter_provider"), given.get("tracer_provider")
        plan = inner.Plan(
            inner.inside(settings),
            inner.find_meter_provider(meters),
            find_tracer_provider(tracers, settings),
            inner.attributes_of(tracers, meters, *inner.set_providers()),
            named=settings.origin("service.name") == _named(config.BY_KEY["service.name"]),
            given=(meters is not None, tracers is not None),
        )
        guest = inner.Guest(plan)
        if settings.instrument.set_global:
            inner.set_global(plan.meter_provider, plan.tracer_provider)
        guest.start()
        self._guest, self._given = guest, given
        self._set_log_level(settings)
        self._lifecycle.watch()
        telemetry.bind(plan.meter_provider, plan.tracer_provider)
        self._instrumented = libraries.Instrumented(
            wanted, plan.tracer_provider, plan.meter_provider, content=settings.instrument.content
        )
        self._instrumented.start()
        _log.info("instrumented", service=guest.service)
        _tell_variables(plan)
        if guest.service.startswith("unknown_service"):
            _log.warning("the service has no name", cure="set OTEL_SERVICE_NAME, or instrument(service_name=...)")
        return True

    def shutdown(self, timeout: float | None) -> bool:
        """Stop, within *timeout* seconds or those of the settings; say whether everything went."""
        with self._lock:
            guest = self._guest
            self._guest = self.handle = None
            if guest is None:
                return True
            if self._instrumented:
                self._instrumented.stop()
            telemetry.unbind()
            self._set_log_level(None)
        try:
            return guest.stop(guest.plan.settings.export.shutdown_timeout if timeout is None else max(0.0, timeout))
        except Exception as error:  # noqa: BLE001 # the application goes on without us
            _log.warning("not shut down as it should be", problem=_told(error))
            return False

    def _set_log_level(self, settings: Settings | None) -> None:
        """Let through what ``log.level`` says, where it is set and the program has not said so itself; None undoes it."""
        logger = logging.getLogger("otelperf")
        if settings is None:
            if logger.level == self._log_level:
                logger.setLevel(logging.NOTSET)
            self._log_level = logging.NOTSET
        elif logger.level == logging.NOTSET and not settings.origin("log.level").startswith("default"):
            logger.setLevel(settings.log.level.upper())
            self._log_level = logger.level

    def end(self) -> None:
        self.shutdown(None)

    def in_child(self) -> None:
        """Begin anew: no thread of the parent's lives here, and its locks may be locked for ever."""
        self._lock = threading.RLock()
        if self._guest:
            self._replace(self._guest.in_child)

    def will_be_patched(self) -> None:
        if self._guest:
            with suppress(Exception):
                self._guest.stop(_PATCHING, goes_on=True)

    def was_patched(self) -> None:
        if self._guest:
            self._replace(self._guest.again)

    def _replace(self, make: Callable[[], Guest]) -> None:
        """Put what *make* returns in the guest's place, and start it."""
        try:
            self._guest = make()
            self._guest.start()
        except Exception as error:  # noqa: BLE001 # a fork, or gevent's patching, must succeed
            self._guest = self.handle = None
            telemetry.unbind()
            _log.warning("not measured any more", problem=_told(error))


_process = _Process()


def current() -> Handle | None:
    """Return the handle of ``instrument()`` while it runs."""
    return _process.handle


def instrument(  # noqa: PLR0913 # settings, all by keyword
    service_name: str | None = None,
    *,
    libraries: str | Sequence[str] | None = None,
    config: str | Path | None = None,
    set_global: bool | None = None,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    settings: Mapping[str, Any] | None = None,
    strict: bool = False,
    **more: Any,
) -> Handle:
    """Measure this program, and send what moves, until it ends or ``shutdown`` is called on what is returned.

    *libraries*: which to instrument by themselves: "all" that are used, "none", or names. *config*: a settings file. Any setting of
    docs/configuration.md goes by keyword with underscores (``gate_heartbeat="20s"``), or in *settings*. Arguments go before the
    environment, and that before the file. *meter_provider* and *tracer_provider* of the SDK: record with these, and send all that
    anybody records with them; by default those that the application has set, if nothing reads them yet, else private ones.
    *set_global* makes those the API's own where the program has set none.

    Called again while it runs, it returns the same handle. A wrong setting is told by one log line, and the handle is not
    *enabled*; only with *strict* it raises ConfigError.
    """
    problem = ""
    if settings is not None and not (isinstance(settings, Mapping) and all(isinstance(key, str) for key in settings)):
        problem = f"settings is {type(settings).__name__}: expected a mapping of names to values"
    elif service_name is not None and not isinstance(service_name, str):
        problem = f"service_name is {type(service_name).__name__}: expected text, such as instrument('chat')"
    if problem:
        if strict:
            raise ConfigError(problem)
        _log.error("not started", problem=problem)
        return Handle(_process)
    named = {"service_name": service_name, "libraries": libraries, "set_global": set_global}
    given = {
        **{f"instrument_{key}" if key != "service_name" else key: value for key, value in named.items()},
        **(settings or {}),
        **more,
        "config": config,
        "meter_provider": meter_provider,
        "tracer_provider": tracer_provider,
    }
    return _process.start({key: value for key, value in given.items() if value is not None}, strict=strict)


def begin() -> None:
    """Do what `otelperf run` was told, in the program that it has started or in a Python that this has started."""
    if any("multiprocessing.resource_tracker" in each for each in sys.orig_argv):
        return  # it only waits for its parent to end
    try:
        given = json.loads(os.environ[config.RUN_VARIABLE])
    except (KeyError, ValueError) as error:
        _log.error("not started", problem=f"{config.RUN_VARIABLE}: {_told(error)}")
        return
    _process.start(given, strict=False)


def _settings(given: Mapping[str, Any]) -> Settings:
    others = {"config", "meter_provider", "tracer_provider"}
    values = {_KEYS.get(key, key): _plain(value) for key, value in given.items() if key not in others}
    return config.load(values, os.environ, given.get("config"), named=_named, others=_OTHERS)


def _named(setting: config.Setting) -> str:
    return f"{setting.key.replace('.', '_').removeprefix('instrument_')}= of instrument()"


def _plain(value: Any) -> Any:
    """Return a value as the settings file would have it: leaves are text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


def _tell_variables(plan: Plan) -> None:
    """Say which of OpenTelemetry's variables are not followed; what only the application's own exporters read is theirs."""
    from otelperf.guest import private_provider, set_providers

    tracers, meters = set_providers()
    followed = {standard_variables.SAMPLER}  # by the SDK, in every TracerProvider
    if hasattr(meters, "add_metric_reader") and meters is not plan.meter_provider is private_provider():
        followed |= standard_variables.PACE
    if hasattr(tracers, "add_span_processor") and plan.tracer_provider is None:
        followed |= standard_variables.SPANS
    unheeded = standard_variables.not_followed(os.environ, followed)
    if unheeded:
        _log.warning("standard variables that are not followed", **unheeded)
    settings = plan.settings
    if settings.traces.exporter != "otlp" and settings.origin("traces.exporter") == "as metrics.exporter":
        _log.info("spans of calls are not sent", why="metrics are not", cure="set OTEL_TRACES_EXPORTER=otlp")
    elif settings.traces.exporter == "console":
        _log.info("spans of calls are not printed", why="traces.exporter console shows state changes only")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

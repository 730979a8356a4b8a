"""Instruments and spans for what happens inside an application: where our own instrumentation records.

``telemetry.record("gen_ai.client.operation.duration", 1.2, attributes)``. A name is a row of the catalogue; its instrument is made
when it is first used. While ``otelperf.instrument()`` runs, they are those of its providers, else those that the application has
set with the OpenTelemetry API. Nothing here raises, and nothing of OpenTelemetry is loaded before the first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otelperf import catalog
from otelperf.logs import Log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    _Value = str | bool | int | float

# Not the scope of readings: two scopes of one name in a request are one too many for the encoder.
SCOPE_NAME = "otelperf.application"

_log = Log("otelperf.telemetry")


class _Instruments(dict[str, Any]):
    """What each instrument records with, by its name; made when it is first asked for, then one look into a dictionary."""

    def __init__(self, meter_provider: MeterProvider | None, tracer_provider: TracerProvider | None) -> None:
        self._meter_provider = meter_provider
        self._tracer_provider = tracer_provider
        self._meter: Meter | None = None
        self._tracer: Tracer | None = None

    @property
    def meter(self) -> Meter:
        if self._meter is None:
            from opentelemetry import metrics

            self._meter = metrics.get_meter(SCOPE_NAME, meter_provider=self._meter_provider)
        return self._meter

    @property
    def tracer(self) -> Tracer:
        if self._tracer is None:
            from opentelemetry import trace

            self._tracer = trace.get_tracer(SCOPE_NAME, tracer_provider=self._tracer_provider)
        return self._tracer

    def __missing__(self, name: str) -> Any:
        row = catalog.BY_NAME[name]
        meter, about = self.meter, {"unit": row.unit, "description": row.meaning}
        made: Any
        if row.kind == "histogram":
            made = meter.create_histogram(name, explicit_bucket_boundaries_advisory=row.bounds or None, **about).record
        elif row.kind == "gauge":
            made = meter.create_gauge(name, **about).set
        elif row.kind == "counter":
            made = meter.create_counter(name, **about).add
        else:
            made = meter.create_up_down_counter(name, **about).add
        self[name] = made
        return made


# None: disabled. Those of the API change by themselves when the application sets its providers.
_API = _Instruments(None, None)
_now: _Instruments | None = _API


def enabled() -> bool:
    """Say whether anything may be recorded; False with OTEL_SDK_DISABLED."""
    return _now is not None


def record(
    name: str, value: float, attributes: Mapping[str, _Value] | None = None, context: Context | None = None
) -> None:
    """Record into a histogram, set a gauge, or count. Exemplars link to the span in *context*, by default the current one."""
    now = _now
    if now is None:
        return
    try:
        now[name](value, attributes, context)
    except Exception as error:  # noqa: BLE001 # the application must not notice
        _log.trouble("not recorded", by=("metric",), metric=name, problem=f"{type(error).__name__}: {error}")


add = record  # reads better where something is counted


def tracer() -> Tracer:
    """Return the tracer that is in force now; not to be kept."""
    if _now is None:
        from opentelemetry.trace import NoOpTracer

        return NoOpTracer()
    return _now.tracer


def meter() -> Meter:
    """Return the meter that is in force now, for what has no row in the catalogue; not to be kept."""
    if _now is None:
        from opentelemetry.metrics import NoOpMeter

        return NoOpMeter(SCOPE_NAME)
    return _now.meter


def bind(meter_provider: MeterProvider, tracer_provider: TracerProvider | None) -> None:
    """Record with these providers from now on; without one for traces, with that of the API."""
    global _now  # noqa: PLW0603 # the one switch
    _now = _Instruments(meter_provider, tracer_provider)


def unbind() -> None:
    """Record with the API's providers again."""
    global _now  # noqa: PLW0603 # as above
    _now = _API


def disable() -> None:
    """Record nothing."""
    global _now  # noqa: PLW0603 # as above
    _now = None

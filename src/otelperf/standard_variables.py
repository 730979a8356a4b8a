"""Variables of OpenTelemetry's specification that nothing here follows: said once at the start, with what to do instead.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. Those that are followed are rows of ``config``,
or are read by the OpenTelemetry SDK itself.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from otelperf.config import EXPORTERS

_PACE = "a point goes when its value moves: gate.heartbeat is the longest silence, gate.linger the wait for others"
_LIMITS = "spans go each second, within traces.timeout and traces.queue_size"
_CUMULATIVE = "everything is cumulative: the Collector's cumulativetodelta processor makes deltas of it"
_FILE = "OTELPERF_CONFIG names a file of ours, and other variables hold"

INSTEAD: Mapping[str, str] = {
    "OTEL_METRIC_EXPORT_INTERVAL": _PACE,
    "OTEL_METRIC_EXPORT_TIMEOUT": "export.timeout limits each request, and nothing waits for it",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": _CUMULATIVE,
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "histograms have explicit buckets",
    "OTEL_TRACES_SAMPLER": "spans of state changes are all sent; OTEL_TRACES_EXPORTER=none sends none",
    "OTEL_BSP_SCHEDULE_DELAY": _LIMITS,
    "OTEL_BSP_EXPORT_TIMEOUT": _LIMITS,
    "OTEL_BSP_MAX_QUEUE_SIZE": _LIMITS,
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": _LIMITS,
    "OTEL_CONFIG_FILE": _FILE,
    "OTEL_EXPERIMENTAL_CONFIG_FILE": _FILE,
}
PACE = frozenset({"OTEL_METRIC_EXPORT_INTERVAL", "OTEL_METRIC_EXPORT_TIMEOUT"})
SPANS = frozenset(name for name in INSTEAD if name.startswith("OTEL_BSP_"))
SAMPLER = "OTEL_TRACES_SAMPLER"
# Values that ask for what is done anyway.
_FITTING: Mapping[str, frozenset[str]] = {
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": frozenset({"cumulative"}),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": frozenset({"explicit_bucket_histogram"}),
    SAMPLER: frozenset({"always_on", "parentbased_always_on"}),
}
_LISTS = ("OTEL_METRICS_EXPORTER", "OTEL_TRACES_EXPORTER")


def not_followed(environ: Mapping[str, str], followed: Container[str] = ()) -> dict[str, str]:
    """Return those that are set and ask for something else than is done, each with what to do; not what is *followed* here."""
    told = {}
    for name, instead in INSTEAD.items():
        value = environ.get(name, "").strip().lower()
        if value and name not in followed and value not in _FITTING.get(name, ()):
            told[name] = instead
    for name in _LISTS:
        first, *others = [each.strip().lower() for each in environ.get(name, "").split(",") if each.strip()] or [""]
        known = [each for each in (first, *others) if each in EXPORTERS]
        if others and known:
            told[name] = f"only {known[0]}: there is one exporter at a time"
    return told

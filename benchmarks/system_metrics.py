"""A peer: opentelemetry-instrumentation-system-metrics with the stock exporter, as its documentation has it."""

from __future__ import annotations

import sys
import time
from importlib import import_module  # the peer is not installed where nobody measures


def main(endpoint: str, interval_seconds: float) -> None:
    """Send everything that the instrumentation knows to *endpoint*, for ever."""
    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=endpoint), export_interval_millis=interval_seconds * 1000
    )
    metrics.set_meter_provider(MeterProvider([reader]))
    import_module("opentelemetry.instrumentation.system_metrics").SystemMetricsInstrumentor().instrument()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

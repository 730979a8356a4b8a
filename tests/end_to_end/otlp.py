"""Points straight into a real Prometheus that does nothing else."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from otelperf.gate.marks import encode
from stack import processes
from stack.processes import Process

PROMETHEUS_PATH = "/api/v1/otlp/v1/metrics"
COLLECTOR_PATH = "/v1/metrics"


def post(url: str, metrics_data: MetricsData) -> None:
    """Send one request, marks flagged; raise where it is refused."""
    body = encode(metrics_data).SerializeToString()
    request = urllib.request.Request(url, body, {"Content-Type": "application/x-protobuf"}, method="POST")
    with urllib.request.urlopen(request, timeout=30):
        pass


class Direct(MetricExporter):
    """Sends what a gate lets out to *prometheus* at once."""

    flags_marks = True

    def __init__(self, prometheus: Process) -> None:
        super().__init__()
        self.url = prometheus.url + PROMETHEUS_PATH

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        post(self.url, metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass


def quiet_prometheus(folder: Path, *, native_histograms: bool = False) -> Process:
    """Return a Prometheus as shipped, but for scraping and rules, so that it stores only what a test sends."""
    features = "--enable-feature=promql-extended-range-selectors"
    process = processes.prometheus(folder, flags=[features], native_histograms=native_histograms)
    config = folder / "prometheus.yaml"
    config.write_text(config.read_text().split("rule_files:")[0])
    return process

"""The catalogue against what is made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otelperf import catalog
from otelperf.prometheus_text import metric_name
from tests import generated_docs

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_names_are_unique() -> None:
    assert len(catalog.METRICS) == len(catalog.BY_NAME)


@pytest.mark.parametrize("metric", catalog.METRICS, ids=lambda m: m.name)
def test_a_rule_fits_its_kind(metric: catalog.Metric) -> None:
    allowed = {
        "gauge": {"hold", "state", "heartbeat"},
        "updown": {"hold", "state", "heartbeat"},
        "counter": {"trend", "hold", "heartbeat"},
        "histogram": {"histogram"},
    }
    assert metric.rule.kind in allowed[metric.kind]


@pytest.mark.parametrize("metric", catalog.METRICS, ids=lambda m: m.name)
def test_a_share_is_of_a_metric_in_the_same_group(metric: catalog.Metric) -> None:
    if metric.rule.share_of is not None:
        assert catalog.BY_NAME[metric.rule.share_of].rule.group == metric.rule.group


@pytest.mark.parametrize("metric", catalog.METRICS, ids=lambda m: m.name)
def test_a_row_reads_well(metric: catalog.Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+", metric.name)
    assert metric.meaning.endswith(".")
    assert metric.convention in {"semconv", "otelperf", "Collector hostmetrics"}
    ours = metric.name.startswith("otelperf.") or metric in catalog.INTEGRALS
    assert (metric.convention == "otelperf") == ours


def test_the_metrics_page_is_made_from_the_catalogue() -> None:
    page = (DOCS / "metrics.md").read_text()
    assert generated_docs.metrics_page(page) == page, "run `make docs`"


@pytest.mark.parametrize("metric", catalog.INTEGRALS, ids=lambda m: m.name)
def test_an_integral_is_of_a_gauge_that_people_average(metric: catalog.Metric) -> None:
    gauge = catalog.BY_NAME[metric.name.removesuffix(".integral")]
    assert gauge.kind in {"gauge", "updown"}
    assert gauge.averaged is not None
    assert metric.rule.delta == gauge.averaged * 120
    assert metric.unit == ("s" if gauge.unit == "1" else f"{gauge.unit}.s")


def test_the_error_of_a_mean_does_not_depend_on_the_rate_window() -> None:
    name = "otelperf.server.up.integral"
    assert catalog.rules(rate_window=240.0)[name].delta == 2 * catalog.rules()[name].delta


@pytest.mark.parametrize(
    ("name", "prometheus"),
    [
        ("otelperf.server.active_requests.integral", "otelperf_server_active_requests_integral_total"),
        ("system.memory.utilization.integral", "system_memory_utilization_integral_seconds_total"),
        ("otelperf.gate.delta", "otelperf_gate_delta"),
    ],
)
def test_a_unit_that_prometheus_cannot_write_is_left_out_of_the_name(name: str, prometheus: str) -> None:
    row = catalog.BY_NAME[name]
    assert metric_name(row.name, row.unit, row.kind) == prometheus


def test_the_backends_page_is_made_from_the_table() -> None:
    page = (DOCS / "backends.md").read_text()
    assert generated_docs.backends_page(page) == page, "run `make docs`"

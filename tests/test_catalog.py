"""The catalogue against what is made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otelperf import catalog
from tests import generated_docs

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_names_are_unique() -> None:
    assert len(catalog.METRICS) == len(catalog.BY_NAME)


@pytest.mark.parametrize("metric", catalog.METRICS, ids=lambda m: m.name)
def test_a_rule_fits_its_kind(metric: catalog.Metric) -> None:
    allowed = {
        "gauge": {"hold", "state", "heartbeat"},
        "updown": {"hold", "state", "heartbeat"},
        "counter": {"trend", "hold"},
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
    assert (metric.convention == "otelperf") == metric.name.startswith("otelperf.")


def test_the_metrics_page_is_made_from_the_catalogue() -> None:
    page = (DOCS / "metrics.md").read_text()
    assert generated_docs.metrics_page(page) == page, "run `make docs`"

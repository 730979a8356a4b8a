"""Names as Prometheus makes them, and a page that its parsers read. The names are compared with a real Prometheus 3 here too."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from otelperf import catalog
from otelperf.gate.marks import encode
from otelperf.prometheus_text import label_name, metric_name, number, render
from stack import processes
from stack.processes import Process, query, wait_until

CUMULATIVE = AggregationTemporality.CUMULATIVE
NOW = 1_800_000_000_000_000_000

# Names, units and kinds that are easy to get wrong.
TRICKY = [
    ("plain", "", "gauge"),
    ("share", "1", "gauge"),
    ("share.ratio.of", "1", "gauge"),
    ("up", "1", "updown"),
    ("done", "1", "counter"),
    ("speed", "{token}/s", "gauge"),
    ("io.speed", "By/s", "gauge"),
    ("io.bytes", "By", "counter"),
    ("bytes.io", "By", "updown"),
    ("io.bytes.per.second", "By/s", "gauge"),
    ("time.seconds", "s", "counter"),
    ("duration", "s", "histogram"),
    ("duration.milliseconds", "ms", "histogram"),
    ("parts", "1", "histogram"),
    ("total.things", "{thing}", "counter"),
    ("things.total", "{thing}", "counter"),
    ("grand.total", "By", "gauge"),
    ("with-dashes.and..dots", "", "gauge"),
    ("with__two_underscores_", "", "gauge"),
    ("9lives", "", "gauge"),
    ("9lives.left", "s", "counter"),
    ("colon:name", "", "gauge"),
    ("Größe.ü", "By", "gauge"),
    ("heat", "Cel", "gauge"),
    ("frequency", "Hz", "gauge"),
    ("load", "%", "gauge"),
    ("percent.load", "%", "gauge"),
    ("power", "W", "gauge"),
    ("energy", "J", "counter"),
    ("drive", "TBy", "updown"),
    ("drive.mega", "MBy", "updown"),
    ("drive.tebi", "TiBy", "updown"),
    ("rate.week", "1/w", "gauge"),
    ("rate.min", "1/min", "gauge"),
    ("rate.m", "{x}/m", "gauge"),
    ("rate.odd", "By/%", "gauge"),
    ("rate.many", "By/s/h", "gauge"),
    ("odd.unit", "foo%bar", "gauge"),
    ("odd.end", "foo%", "gauge"),
    ("odd.both", "foo%/s", "gauge"),
    ("odd.space", " By ", "gauge"),
    ("braces.inside", "By{x}", "gauge"),
    ("brace.half", "x}", "gauge"),
    ("slash", "/", "gauge"),
    ("only.per", "/s", "gauge"),
]
CATALOGUE: list[tuple[str, str, str]] = [(row.name, row.unit, row.kind) for row in catalog.METRICS]


def metric(name: str, unit: str, kind: str, attributes: dict[str, Any] | None = None, time_ns: int = NOW) -> Metric:
    attributes = attributes or {}
    data: Gauge | Sum | Histogram
    if kind == "histogram":
        start = time_ns - 60_000_000_000
        data = Histogram(
            [HistogramDataPoint(attributes, start, time_ns, 3, 4.5, (1, 2, 0), (0.5, 1.0), 0.0, 0.0)], CUMULATIVE
        )
    else:
        points = [NumberDataPoint(attributes, time_ns - 60_000_000_000, time_ns, 1, ())]
        data = Gauge(points) if kind == "gauge" else Sum(points, CUMULATIVE, kind == "counter")
    return Metric(name, "", unit, data)


def of(*metrics: Metric, **resource: str) -> MetricsData:
    attributes = {key.replace("_", "."): value for key, value in resource.items()}
    scope = ScopeMetrics(InstrumentationScope("test"), metrics, "")
    return MetricsData([ResourceMetrics(Resource(attributes), [scope], "")])


def parsed(page: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


# Names


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("system.cpu.time", "s", "counter", "system_cpu_time_seconds_total"),
        ("system.cpu.utilization", "1", "gauge", "system_cpu_utilization_ratio"),
        ("otelperf.server.up", "1", "updown", "otelperf_server_up"),
        ("otelperf.server.token.throughput", "{token}/s", "gauge", "otelperf_server_token_throughput_per_second"),
        ("system.disk.io", "By", "counter", "system_disk_io_bytes_total"),
        ("9lives", "", "gauge", "_9lives"),
        ("total", "{thing}", "counter", "total"),
    ],
)
def test_names_as_the_docs_show_them(name: str, unit: str, kind: str, expected: str) -> None:
    assert metric_name(name, unit, kind) == expected


@given(st.text(), st.text(), st.sampled_from(["gauge", "counter", "updown", "histogram"]))
def test_any_name_becomes_one_that_prometheus_takes(name: str, unit: str, kind: str) -> None:
    assert re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?", metric_name(name, unit, kind))


@given(st.text(min_size=1))
def test_any_attribute_becomes_a_label_that_prometheus_takes(name: str) -> None:
    assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", label_name(name))


@pytest.mark.end_to_end
def test_names_and_labels_are_those_that_prometheus_stores(tmp_path: Any) -> None:
    attributes: dict[str, Any] = {"9a": "1", "_b": "2", "d.e-f": "4", "g..h": "5", "Größe": "6", "i.j": "x", "i_j": "y"}
    attributes |= {"job": "mine", "yes": True, "n": 7}
    now = time.time_ns()
    rows = dict.fromkeys(TRICKY + CATALOGUE)
    metrics = [metric(*row, time_ns=now) for row in rows] + [metric("labelled", "", "gauge", attributes, now)]
    data = of(*metrics, service_name="names", service_instance_id="one")
    expected = {(sample.name, frozenset(sample.labels.items())) for sample in parsed(render(data))}
    with processes.prometheus(tmp_path / "prometheus") as prometheus:
        post(prometheus, data)
        found = stored(prometheus)
    assert sorted(expected - found, key=str) == sorted(found - expected, key=str)


def post(prometheus: Process, data: MetricsData) -> None:
    url, headers = f"{prometheus.url}/api/v1/otlp/v1/metrics", {"Content-Type": "application/x-protobuf"}
    request = urllib.request.Request(url, encode(data).SerializeToString(), headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200


def stored(prometheus: Process) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    selector = '{job="names",__name__!="target_info"}'
    wait_until(lambda: query(prometheus.url, selector) != [], 10, "nothing was stored")
    found = [dict(series["metric"]) for series in query(prometheus.url, selector)]
    # Prometheus writes a bound of 1 as "1", Python as "1.0"; both are the same bucket of the text format.
    for labels in found:
        if "le" in labels and labels["le"] != "+Inf":
            labels["le"] = str(float(labels["le"]))
    return {(labels.pop("__name__"), frozenset(labels.items())) for labels in found}


# The page


def test_a_page_golden() -> None:
    page = render(
        of(
            metric("system.cpu.utilization", "1", "gauge", {"cpu.mode": "idle"}),
            metric("request.duration", "s", "histogram"),
            service_name="host",
            service_namespace="prod",
            service_instance_id="abc",
        )
    )
    assert page.splitlines() == [
        "# HELP request_duration_seconds ",
        "# TYPE request_duration_seconds histogram",
        'request_duration_seconds_bucket{job="prod/host",instance="abc",le="0.5"} 1',
        'request_duration_seconds_bucket{job="prod/host",instance="abc",le="1.0"} 3',
        'request_duration_seconds_bucket{job="prod/host",instance="abc",le="+Inf"} 3',
        'request_duration_seconds_sum{job="prod/host",instance="abc"} 4.5',
        'request_duration_seconds_count{job="prod/host",instance="abc"} 3',
        "# HELP system_cpu_utilization_ratio ",
        "# TYPE system_cpu_utilization_ratio gauge",
        'system_cpu_utilization_ratio{cpu_mode="idle",job="prod/host",instance="abc"} 1',
    ]


def test_a_metric_of_several_resources_is_one_block() -> None:
    parts = [of(metric("up", "1", "updown"), service_name=name) for name in ("a", "b")]
    data = MetricsData([resource for part in parts for resource in part.resource_metrics])
    page = render(data)
    assert page.count("# TYPE") == 1
    assert [sample.labels for sample in parsed(page)] == [{"job": "a"}, {"job": "b"}]


def test_job_and_instance_are_the_resources_own() -> None:
    (sample,) = parsed(
        render(of(metric("a", "", "gauge", {"job": "forged", "instance": "forged"}), service_name="true"))
    )
    assert sample.labels == {"job": "true", "instance": "forged"}


def test_attributes_that_become_one_label_share_it() -> None:
    (sample,) = parsed(render(of(metric("a", "", "gauge", {"b_c": "2", "b.c": "1"}))))
    assert sample.labels == {"b_c": "1;2"}


ATTRIBUTES = st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.booleans(), max_size=4)


@given(ATTRIBUTES, st.text())
def test_any_label_and_meaning_survive_the_page(attributes: dict[str, Any], meaning: str) -> None:
    data = of(metric("a", "", "gauge", attributes))
    found = data.resource_metrics[0].scope_metrics[0].metrics[0]
    page = render(of(Metric(found.name, meaning, found.unit, found.data)))
    (sample,) = parsed(page)
    expected: dict[str, str] = {}
    for key in sorted(attributes):
        if label_name(key).startswith("__"):  # reserved
            continue
        value = str(attributes[key]).lower() if isinstance(attributes[key], bool) else str(attributes[key])
        label = label_name(key)
        expected[label] = f"{expected[label]};{value}" if expected.get(label) else value
    assert sample.labels == expected


@given(st.floats() | st.integers(-(2**63), 2**63))
def test_any_number_survives_the_page(value: float) -> None:
    read = float(number(value))
    assert read == float(value) or (math.isnan(read) and math.isnan(value))


def test_an_empty_page_is_a_page() -> None:
    assert parsed(render(MetricsData([]))) == []

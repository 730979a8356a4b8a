"""Snapshots as the SDK's data classes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Metric, Sum
from opentelemetry.sdk.resources import Resource

from otelperf import catalog
from otelperf.catalog import BY_NAME
from otelperf.gate.marks import encode
from otelperf.gate.policy import Rule
from otelperf.gate.tree import shape_of
from otelperf.points import Points
from otelperf.readings import Batch, Buckets, Native, Reading, Snapshot

NOW = 1_800_000_000_000_000_000
RESOURCES = {name: Resource({"service.name": name}) for name in ("host", "agent", "llama.cpp http://a")}
POINTS = Points(RESOURCES, "1.2.3")


def batch(entity: str, *readings: Reading, time: int = NOW, source: str = "test") -> Batch:
    return Batch(source, entity, time, readings)


def metrics(*batches: Batch) -> list[list[Metric]]:
    """Return the metrics of each resource."""
    data = POINTS.of(Snapshot(NOW, batches, ()))
    return [list(resource.scope_metrics[0].metrics) for resource in data.resource_metrics]


def point(*batches: Batch) -> Any:
    ((metric,),) = metrics(*batches)
    (found,) = metric.data.data_points
    return found


def test_each_resource_and_each_name_comes_once() -> None:
    """Two equal ones would lose the first in the encoder."""
    cpu, memory = Reading("system.cpu.logical.count", 4), Reading("system.memory.limit", 5)
    data = POINTS.of(
        Snapshot(
            NOW,
            (
                batch("host", cpu, source="cpu"),
                batch("agent", Reading("process.thread.count", 3)),
                batch("host", memory, Reading("system.memory.usage", 1, {"system.memory.state": "used"})),
                batch("host", Reading("system.memory.usage", 2, {"system.memory.state": "free"}), time=NOW - 5),
            ),
            (),
        )
    )
    assert [resource.resource for resource in data.resource_metrics] == [RESOURCES["host"], RESOURCES["agent"]]
    assert [len(resource.scope_metrics) for resource in data.resource_metrics] == [1, 1]
    scope = data.resource_metrics[0].scope_metrics[0]
    assert (scope.scope.name, scope.scope.version) == ("otelperf", "1.2.3")
    assert [(metric.name, len(metric.data.data_points)) for metric in scope.metrics] == [
        ("system.cpu.logical.count", 1),
        ("system.memory.limit", 1),
        ("system.memory.usage", 2),
    ]


@pytest.mark.parametrize("row", [row for row in catalog.METRICS if row.kind != "histogram"], ids=lambda row: row.name)
def test_a_reading_takes_kind_unit_and_meaning_from_the_catalogue(row: catalog.Metric) -> None:
    ((metric,),) = metrics(batch("host", Reading(row.name, 1)))
    assert (metric.name, metric.unit, metric.description) == (row.name, row.unit, row.meaning)
    if row.kind == "gauge":
        assert isinstance(metric.data, Gauge)
    else:
        assert isinstance(metric.data, Sum)
        assert metric.data.is_monotonic == (row.kind == "counter")
        assert metric.data.aggregation_temporality is AggregationTemporality.CUMULATIVE


def test_a_point_has_its_batchs_time_and_its_own_attributes_and_start() -> None:
    attributes = {"cpu.mode": "idle"}
    found = point(batch("host", Reading("system.cpu.time", 1.5, attributes, NOW - 9), time=NOW - 3))
    assert (found.value, found.start_time_unix_nano, found.time_unix_nano) == (1.5, NOW - 9, NOW - 3)
    assert found.attributes is attributes


@given(st.none() | st.integers(0, 2 * NOW), st.integers(1, 2 * NOW))
def test_no_point_starts_after_its_time(start: int | None, time: int) -> None:
    found = point(batch("host", Reading("system.cpu.time", 1.5, start=start), time=time))
    assert found.start_time_unix_nano == (start if start is not None and start <= time else 0)
    assert found.start_time_unix_nano <= found.time_unix_nano


def test_a_start_to_come_does_not_look_like_a_restart_at_each_reading() -> None:
    starts = [
        point(batch("host", Reading("system.cpu.time", 1.5, start=NOW + 60), time=NOW + second)).start_time_unix_nano
        for second in range(5)
    ]
    assert starts == [0] * 5


def test_a_histogram_passes_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    row = catalog.Metric("test.duration", "histogram", "s", "How long.", Rule(kind="histogram"))
    monkeypatch.setitem(BY_NAME, row.name, row)
    buckets = Buckets(6, 4.5, (0.5, 1.0), (1, 2, 3))
    ((metric,),) = metrics(batch("host", Reading(row.name, buckets, {"a": "b"}, NOW - 9)))
    assert isinstance(metric.data, Histogram)
    assert metric.data.aggregation_temporality is AggregationTemporality.CUMULATIVE
    (found,) = metric.data.data_points
    assert (found.count, found.sum, found.start_time_unix_nano) == (6, 4.5, NOW - 9)
    assert (tuple(found.explicit_bounds), tuple(found.bucket_counts)) == ((0.5, 1.0), (1, 2, 3))


def test_an_empty_snapshot_has_no_resource() -> None:
    assert metrics() == []


def test_what_is_built_can_be_encoded() -> None:
    readings = [Reading(row.name, 1, start=NOW - 9) for row in catalog.METRICS if row.kind != "histogram"]
    request = encode(POINTS.of(Snapshot(NOW, tuple(batch(entity, *readings) for entity in RESOURCES), ())))
    assert [len(resource.scope_metrics[0].metrics) for resource in request.resource_metrics] == [len(readings)] * 3


@pytest.mark.parametrize(
    ("kind", "value", "made", "monotonic"),
    [
        ("gauge", 1, Gauge, None),
        ("counter", 1, Sum, True),
        ("sum", 1, Sum, False),
        ("histogram", Buckets(1, 1.0, (), (1,)), Histogram, None),
    ],
)
def test_a_native_series_takes_its_type_and_meaning_from_the_server_and_has_no_unit(
    kind: Any, value: Any, made: type, monotonic: bool | None
) -> None:
    """A unit would be put behind its name."""
    ((metric,),) = metrics(batch("host", Reading("vllm:x_total", value, native=Native(kind, "What x is."))))
    assert (metric.name, metric.description, metric.unit) == ("vllm:x_total", "What x is.", "")
    assert isinstance(metric.data, made)
    assert getattr(metric.data, "is_monotonic", None) == monotonic


def test_a_counter_that_must_not_be_called_one_is_gated_as_one() -> None:
    ((metric,),) = metrics(batch("host", Reading("nv_count", 1, native=Native("sum"))))
    assert shape_of(metric) == "monotonic"
    ((metric,),) = metrics(batch("host", Reading("system.memory.usage", 1)))
    assert shape_of(metric) == "sum"


def test_servers_that_type_a_series_otherwise_have_their_own_types() -> None:
    one, other = (Reading("x", 1, native=Native(kind)) for kind in ("gauge", "sum"))
    first, second = metrics(batch("host", one), batch("agent", other))
    assert [type(metric.data).__name__ for metric in (*first, *second)] == ["Gauge", "CountsUp"]

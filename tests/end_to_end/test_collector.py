"""The shipped Collector and Prometheus configurations, with the real programs."""

from __future__ import annotations

import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
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

from otelperf.gate.marks import DataPoint, encode, mark
from stack import processes
from stack.parts import ROOT, part
from stack.processes import Process, query, series_samples, wait_until

pytestmark = pytest.mark.end_to_end

SECOND = 1_000_000_000
CUMULATIVE = AggregationTemporality.CUMULATIVE
CONFIGS = ROOT / "collector-config"


def send(collector: Process, *metrics: Metric) -> int:
    """Post the metrics as one request and return the status."""
    resource = Resource({"service.name": "test", "service.instance.id": "one", "k8s.pod.name": "pod-1"})
    scope = ScopeMetrics(InstrumentationScope("test"), metrics, "")
    body = encode(MetricsData([ResourceMetrics(resource, [scope], "")])).SerializeToString()
    request = urllib.request.Request(
        f"{collector.url}/v1/metrics", body, {"Content-Type": "application/x-protobuf"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        status: int = response.status
    return status


def counter(*points: DataPoint) -> Metric:
    return Metric("things", "", "{thing}", Sum(points, CUMULATIVE, is_monotonic=True))  # type: ignore[arg-type] # numbers


def number(time_ns: int, value: float) -> NumberDataPoint:
    return NumberDataPoint({}, time_ns - 60 * SECOND, time_ns, value)


def stored(prometheus: Process, selector: str) -> list[float]:
    return [value for _, samples in series_samples(prometheus.url, selector) for _, value in samples]


@pytest.fixture(params=[("gateway.yaml",), ("gateway.yaml", "remote-write.yaml")], ids=["otlp", "remote-write"])
def any_collector(request: pytest.FixtureRequest, prometheus: Process, tmp_path: Path) -> Iterator[Process]:
    with processes.collector(prometheus.url, tmp_path / "collector", configs=request.param) as process:
        yield process


def test_a_previous_point_and_its_successor_are_both_stored(any_collector: Process, prometheus: Process) -> None:
    now = time.time_ns()
    send(any_collector, counter(number(now - 20 * SECOND, 1)))
    send(any_collector, counter(number(now - SECOND, 1), number(now, 50)))
    wait_until(lambda: stored(prometheus, "things_total[5m]") == [1, 1, 50], 60, "the pair was not stored")


def test_marks_end_every_kind_of_series(any_collector: Process, prometheus: Process) -> None:
    now = time.time_ns()
    gauge = NumberDataPoint({}, 0, now - SECOND, 7.5)
    count = number(now - SECOND, 3)
    histogram = HistogramDataPoint({}, now - 60 * SECOND, now - SECOND, 2, 0.5, (1, 1), (0.25,), 0.0, 0.0)

    def all_three(*points: DataPoint) -> tuple[Metric, ...]:
        kinds: tuple[Gauge | Sum | Histogram, ...] = (
            Gauge(points[:1]),  # type: ignore[arg-type] # in this order
            Sum(points[1:2], CUMULATIVE, is_monotonic=True),  # type: ignore[arg-type] # as above
            Histogram(points[2:], CUMULATIVE),  # type: ignore[arg-type] # as above
        )
        return tuple(Metric(name, "", "", kind) for name, kind in zip(("level", "things", "sizes"), kinds, strict=True))

    names = '{job="test",__name__!="target_info"}'
    send(any_collector, *all_three(gauge, count, histogram))
    # level, things_total, sizes_sum, sizes_count, two buckets
    wait_until(lambda: len(query(prometheus.url, names)) == 6, 60, "not all series arrived")
    send(any_collector, *all_three(mark(gauge, now), mark(count, now), mark(histogram, now)))
    wait_until(lambda: query(prometheus.url, names) == [], 60, "a series lives on after its mark")


def test_resource_attributes_that_rules_group_by_are_labels(collector: Process, prometheus: Process) -> None:
    send(collector, counter(number(time.time_ns(), 1)))
    labels = 'things_total{k8s_pod_name="pod-1",job="test",instance="one"}'
    wait_until(lambda: len(query(prometheus.url, labels)) == 1, 60, "the labels are missing")


def test_a_killed_collector_delivers_from_its_disk_what_it_had_accepted(prometheus: Process, tmp_path: Path) -> None:
    with processes.collector(prometheus.url, tmp_path / "collector") as collector:
        prometheus.kill()
        now = time.time_ns()
        for index in range(10):
            assert send(collector, counter(number(now - (10 - index) * SECOND, index))) == 200
        collector.kill()
        prometheus.start()
        collector.start()
        wait_until(
            lambda: stored(prometheus, "things_total[5m]") == [float(index) for index in range(10)],
            40,
            "what the Collector had accepted was not delivered",
        )


def test_the_collector_is_healthy_without_tempo(collector: Process) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{collector.ports['health']}/", timeout=30) as response:
        assert response.status == 200


@pytest.mark.parametrize("configs", [["gateway.yaml"], ["gateway.yaml", "remote-write.yaml"], ["agent.yaml"]])
def test_the_collector_accepts_each_configuration(configs: list[str], tmp_path: Path) -> None:
    flags = [flag for name in configs for flag in ("--config", str(CONFIGS / name))]
    environment = {
        "OTELPERF_COLLECTOR_STORAGE": str(tmp_path),
        "OTELPERF_COLLECTOR_GATEWAY_ENDPOINT": "http://127.0.0.1:4318",
    }
    done = subprocess.run(
        [part("collector"), "validate", *flags], env=environment, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_prometheus_and_alertmanager_accept_their_configurations() -> None:
    for program, command, config in (
        ("promtool", ["check", "config"], "prometheus.yaml"),
        ("amtool", ["check-config"], "alertmanager.yaml"),
    ):
        done = subprocess.run(
            [part(program), *command, ROOT / "prometheus" / config], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_variable_of_the_collector_is_documented() -> None:
    used = set(re.findall(r"OTELPERF_COLLECTOR_\w+", "".join(path.read_text() for path in CONFIGS.glob("*.yaml"))))
    documented = set(re.findall(r"`(OTELPERF_COLLECTOR_\w+)`", (CONFIGS / "README.md").read_text()))
    assert used == documented

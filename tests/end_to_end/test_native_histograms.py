"""Histograms as one native sample: `convert_histograms_to_nhcb` in prometheus/prometheus.yaml, with a real Prometheus."""

from __future__ import annotations

import json
import math
import random
import re
import time
import urllib.parse
import urllib.request
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import ExponentialHistogram, Histogram, HistogramDataPoint, Metric

from otelperf.gate.marks import DataPoint, mark
from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Policy, Rule
from stack import processes
from stack.processes import Process, query, wait_until
from tests.end_to_end.otlp import COLLECTOR_PATH, PROMETHEUS_PATH, Direct, post, quiet_prometheus
from tests.gate.world import CUMULATIVE, SECOND, data, exponential

pytestmark = pytest.mark.end_to_end

# Of vLLM's time to first token (tests/captures/vllm-0.32.0): 20 bounds, so 21 buckets.
BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
MINUTES = 20


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with quiet_prometheus(tmp_path_factory.mktemp("native"), native_histograms=True) as process:
        yield process


@pytest.fixture(scope="module")
def classic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with quiet_prometheus(tmp_path_factory.mktemp("classic")) as process:
        yield process


def ago(seconds: float) -> int:
    """Return that moment as Unix time in ns."""
    return time.time_ns() - int(seconds * SECOND)


class Waits:
    """A server's histogram of waiting times since *start*."""

    def __init__(self, start: int, seed: int = 1) -> None:
        self.start = start
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self._random = random.Random(seed)

    def wait(self, median: float, times: int) -> None:
        for _ in range(times):
            seconds = median * math.exp(self._random.gauss(0, 0.5))
            self.counts[bisect_left(BOUNDS, seconds)] += 1
            self.total += seconds

    def point(self, when: int, exemplars: Sequence[Exemplar] = ()) -> HistogramDataPoint:
        count, counts = sum(self.counts), tuple(self.counts)
        return HistogramDataPoint({}, self.start, when, count, self.total, counts, BOUNDS, 0.0, 0.0, exemplars)


def explicit(name: str, *points: DataPoint) -> Metric:
    return Metric(name, "", "s", Histogram(list(points), CUMULATIVE))  # type: ignore[arg-type] # histogram points


def exponential_metric(name: str, *points: DataPoint) -> Metric:
    return Metric(name, "", "s", ExponentialHistogram(list(points), CUMULATIVE))  # type: ignore[arg-type] # as above


def exponential_point(when: int, count: int) -> DataPoint:
    return exponential("", when, count).data.data_points[0]


def send(prometheus: Process, *metrics: Metric) -> None:
    post(prometheus.url + PROMETHEUS_PATH, data(*metrics))


def stored(prometheus: Process) -> dict[str, int]:
    """Return how many samples Prometheus has stored, by type, as it says itself."""
    with urllib.request.urlopen(f"{prometheus.url}/metrics", timeout=30) as response:
        page = response.read().decode()
    found = re.findall(r'^prometheus_tsdb_head_samples_appended_total\{type="(\w+)"\} (\S+)$', page, re.MULTILINE)
    return {"float": 0, "histogram": 0} | {kind: int(float(count)) for kind, count in found}


def cost(prometheus: Process, *metrics: Metric) -> tuple[int, int]:
    """Return the samples that one request costs: floats, histograms. (Its resource is one that needs no target_info.)"""
    before = stored(prometheus)
    send(prometheus, *metrics)
    after = stored(prometheus)
    return after["float"] - before["float"], after["histogram"] - before["histogram"]


def value(prometheus: Process, promql: str, when: float | None = None) -> float:
    (series,) = query(prometheus.url, promql, when)
    return float(series["value"][1])


def names(prometheus: Process, pattern: str) -> set[str]:
    return {series["metric"]["__name__"] for series in query(prometheus.url, f'{{__name__=~"{pattern}"}}')}


def test_a_histogram_costs_one_native_sample_against_its_buckets_and_two(native: Process, classic: Process) -> None:
    waits = Waits(ago(60))
    waits.wait(0.3, 50)
    assert cost(classic, explicit("price", waits.point(ago(1)))) == (len(BOUNDS) + 1 + 2, 0)
    assert cost(native, explicit("price", waits.point(ago(1)))) == (0, 1)
    assert names(classic, "price.*") == {"price_seconds_bucket", "price_seconds_sum", "price_seconds_count"}
    assert names(native, "price.*") == {"price_seconds"}


def test_an_exponential_histogram_is_native_with_and_without_the_switch(native: Process, classic: Process) -> None:
    for prometheus in (native, classic):
        assert cost(prometheus, exponential_metric("grown", exponential_point(ago(1), 10))) == (0, 1)
        assert value(prometheus, "histogram_count(grown_seconds)") == 10


@pytest.mark.parametrize("kind", ["explicit", "exponential"])
def test_a_mark_ends_a_native_histogram_and_it_may_return(native: Process, kind: str) -> None:
    waits = Waits(ago(600))
    waits.wait(0.3, 50)
    earlier, later = ago(20), ago(10)

    def metric(*points: DataPoint) -> Metric:
        return (explicit if kind == "explicit" else exponential_metric)(f"ended.{kind}", *points)

    def point(when: int) -> DataPoint:
        return waits.point(when) if kind == "explicit" else exponential_point(when, 50)

    alive = f"histogram_count(ended_{kind}_seconds)"
    send(native, metric(point(earlier)))
    assert value(native, alive) == 50
    assert cost(native, metric(mark(point(earlier), later))) == (0, 1)
    assert query(native.url, f"ended_{kind}_seconds") == []
    assert value(native, alive, later / SECOND - 1) == 50
    send(native, metric(point(ago(1))))
    assert value(native, alive) == 50


@pytest.mark.parametrize(
    "config", [("gateway.yaml",), ("gateway.yaml", "remote-write.yaml")], ids=["otlp", "remote-write"]
)
def test_marks_reach_native_histograms_through_the_collector(
    native: Process, tmp_path: Path, config: tuple[str, ...]
) -> None:
    """Remote write by the Collector turns explicit histograms into classic series, whatever Prometheus' switch says."""
    waits = Waits(ago(600))
    waits.wait(0.3, 50)
    prefix = f"through.{len(config)}"
    explicit_point, exponential_one = waits.point(ago(10)), exponential_point(ago(10), 50)
    series = f'{{__name__=~"through_{len(config)}.*"}}'
    kept = 2 if len(config) == 1 else 1 + len(BOUNDS) + 1 + 2
    with processes.collector(native.url, tmp_path / "collector", configs=config) as collector:

        def through(first: DataPoint, second: DataPoint) -> None:
            metrics = explicit(f"{prefix}.explicit", first), exponential_metric(f"{prefix}.exponential", second)
            post(collector.url + COLLECTOR_PATH, data(*metrics))

        through(explicit_point, exponential_one)
        wait_until(lambda: len(query(native.url, series)) == kept, 60, f"there are not {kept} series")
        through(mark(explicit_point, ago(1)), mark(exponential_one, ago(1)))
        wait_until(lambda: query(native.url, series) == [], 60, "a histogram lives on after its mark")


@pytest.fixture(scope="module")
def shifting(native: Process, classic: Process) -> int:
    """Let waiting times shift for twenty minutes: `wait` through the gate to both, `wait_dense` each second to the native one.

    Returns where they began (Unix seconds).
    """
    start = int(time.time()) // 600 * 600 - (MINUTES + 10) * 60
    now = start * SECOND
    policy = Policy({"wait": Rule(kind="histogram", relative=0.1)})
    gates = [DeltaGate(Direct(prometheus), policy, lambda: now) for prometheus in (native, classic)]
    waits = Waits(now)
    dense = []
    for second in range(MINUTES * 60):
        waits.wait((0.3, 1.2, 1.2, 0.1)[second // 300], (5, 5, 0, 1)[second // 300])
        point = waits.point(now)
        for gate in gates:
            gate.export(data(explicit("wait", point)))
        dense.append(point)
        now += SECOND
    for gate in gates:
        gate.force_flush()
    send(native, explicit("wait.dense", *dense))
    return start


# The page's expressions (docs/promql.md), classic and native.
SAME = [
    (
        "histogram_quantile(0.95, sum by (le) (rate(wait_seconds_bucket[5m])))",
        "histogram_quantile(0.95, sum(rate(wait_seconds[5m])))",
    ),
    (
        "histogram_quantile(0.5, sum by (le) (rate(wait_seconds_bucket[5m])))",
        "histogram_quantile(0.5, sum(rate(wait_seconds[5m])))",
    ),
    ("rate(wait_seconds_sum[5m]) / rate(wait_seconds_count[5m])", "histogram_avg(rate(wait_seconds[5m]))"),
    ("rate(wait_seconds_count[5m])", "histogram_count(rate(wait_seconds[5m]))"),
    (
        'rate(wait_seconds_bucket{le="0.5"}[5m]) / ignoring(le) rate(wait_seconds_count[5m])',
        "histogram_fraction(0, 0.5, rate(wait_seconds[5m]))",
    ),
]


@pytest.mark.parametrize(("of_buckets", "of_native"), SAME)
def test_native_histograms_answer_what_buckets_do(
    native: Process, classic: Process, shifting: int, of_buckets: str, of_native: str
) -> None:
    when = shifting + 400
    assert value(native, of_native, when) == pytest.approx(value(classic, of_buckets, when), rel=0.01)


def test_the_quantile_is_that_of_what_came_between_the_points_in_the_window(native: Process, shifting: int) -> None:
    window, quiet = 300, 0
    still = shifting + 899  # five minutes of nothing
    for when in (*range(shifting + window, shifting + MINUTES * 60, 15), still):
        inside = sent(native, when, window)
        truth = query(
            native.url,
            f"histogram_quantile(0.95, wait_dense_seconds @ {inside[-1]} - wait_dense_seconds @ {inside[0]})",
        )
        shown = query(native.url, "histogram_quantile(0.95, sum(rate(wait_seconds[5m])))", when)
        expected, actual = float(truth[0]["value"][1]), float(shown[0]["value"][1])
        assert actual == pytest.approx(expected, rel=1e-9, nan_ok=True)
        quiet += math.isnan(actual)
        assert inside[0] - (when - window) <= 51
        assert when - inside[-1] <= 51
    assert quiet > 0  # with nothing new there is no quantile, rather than an invented one


def sent(prometheus: Process, when: float, window: int) -> list[float]:
    """Return the times of the points of `wait` in the window."""
    (series,) = query(prometheus.url, f"wait_seconds[{window}s]", when)
    return [float(time_) for time_, _ in series["histograms"]]


def test_exemplars_of_a_native_histogram_are_kept(native: Process) -> None:
    waits = Waits(ago(60))
    waits.wait(0.3, 5)
    trace = 0x0AF7651916CD43DD8448EB211C80319C
    send(native, explicit("linked", waits.point(ago(1), [Exemplar({}, 0.3, ago(2), 0x00F067AA0BA902B7, trace)])))
    parameters = urllib.parse.urlencode({"query": "linked_seconds", "start": ago(60) / SECOND, "end": time.time()})
    with urllib.request.urlopen(f"{native.url}/api/v1/query_exemplars?{parameters}", timeout=30) as response:
        (series,) = json.load(response)["data"]
    found: list[dict[str, Any]] = series["exemplars"]
    assert [exemplar["labels"]["trace_id"] for exemplar in found] == [f"{trace:032x}"]

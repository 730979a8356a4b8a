"""``otelperf savings`` against a real Prometheus: what it says of rates is what Prometheus answers for the same samples."""

from __future__ import annotations

import json
import random
import subprocess
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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

from otelperf import cli
from otelperf.savings.prometheus import Prometheus
from otelperf.savings.recording import Recording
from otelperf.savings.replay import replay, scraped
from otelperf.savings.score import Points, difference, held, rates, typical
from otelperf.savings.streams import Stream, streams
from stack.parts import part
from stack.processes import Process, query, series_samples
from tests.end_to_end.otlp import PROMETHEUS_PATH, post, quiet_prometheus

pytestmark = pytest.mark.end_to_end

STEP, COUNT = 10_000, 121  # ms: twenty minutes
WINDOW = 120
CUMULATIVE = AggregationTemporality.CUMULATIVE


def recorded(begin: int) -> dict[str, list[tuple[int, float]]]:
    """Return a counter with bursts and a reset, a counter that mostly stands still, and a gauge, by name in Prometheus."""
    numbers = random.Random(7)
    found: dict[str, list[tuple[int, float]]] = {"work_total": [], "rare_total": [], "level": []}
    work = rare = 0.0
    for n in range(COUNT):
        when = begin + n * STEP
        work = 3.0 if n == 70 else work + numbers.choice([1, 1, 1, 40])
        rare += n % 37 == 36
        found["work_total"].append((when, work))
        found["rare_total"].append((when, rare))
        found["level"].append((when, 50 + 10 * numbers.random()))
    return found


def sent(series: dict[str, list[tuple[int, float]]], begin: int, *, histogram: bool = False) -> MetricsData:
    metrics = []
    for name, samples in series.items():
        points = [NumberDataPoint({}, begin * 10**6, when * 10**6, value) for when, value in samples]
        counts = name.endswith("_total")
        data: Any = Sum(points, CUMULATIVE, is_monotonic=True) if counts else Gauge(points)
        metrics.append(Metric(name.removesuffix("_total"), "", "", data))
    if histogram:
        whole = [
            HistogramDataPoint(
                {}, begin * 10**6, (begin + n * STEP) * 10**6, 3 * n, float(n), (n, n, n), (0.1, 1.0), 0.0, 0.0
            )
            for n in range(COUNT)
        ]
        metrics.append(Metric("wait", "", "s", Histogram(whole, CUMULATIVE)))
    resource = Resource({"service.name": "tested", "service.instance.id": "one"})
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(InstrumentationScope("t"), metrics, "")], "")])


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Process]:
    with quiet_prometheus(tmp_path / "prometheus") as process:
        yield process


@pytest.fixture
def begin(quiet: Process) -> int:
    """Store the recording, and return its first time."""
    first = round(time.time() * 1000) - COUNT * STEP
    post(quiet.url + PROMETHEUS_PATH, sent(recorded(first), first, histogram=True))
    return first


def asked(prometheus: Process, promql: str, instants: Sequence[int]) -> list[float | None]:
    """Return what Prometheus answers at each instant."""
    answers = [query(prometheus.url, promql, when / 1000) for when in instants]
    return [float(answer[0]["value"][1]) if answer else None for answer in answers]


def savings(prometheus: Process, capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    assert cli.main(["savings", "--url", prometheus.url, "--selector", '{job="tested"}', "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def read(prometheus: Process, begin: int) -> dict[str, Stream]:
    recording = Recording(10**6)
    source = Prometheus(prometheus.url, {}, None, 30.0)
    source.read(['{job="tested"}'], begin - 1, begin + COUNT * STEP, recording, lambda _: None)
    source.close()
    return {each.metric: each for each in streams(recording, recording.finish())}


def test_every_stored_sample_is_read(quiet: Process, begin: int, capsys: pytest.CaptureFixture[str]) -> None:
    answer = savings(quiet, capsys)
    stored = sum(len(samples) for _, samples in series_samples(quiet.url, '{job="tested"}[1h]'))
    assert answer["data"]["samples"] == stored == COUNT * (3 + 5)
    assert {each["metric"]: (each["type"], each["series"]) for each in answer["metrics"]} == {
        "wait_seconds": ("histogram", 5),
        "work_total": ("counter", 1),
        "rare_total": ("counter", 1),
        "level": ("gauge", 1),
    }
    assert answer["data"]["interval_seconds"] == STEP / 1000


@pytest.mark.parametrize("name", ["work_total", "rare_total"])
def test_rates_are_what_prometheus_answers(quiet: Process, begin: int, name: str) -> None:
    stream = read(quiet, begin)[name]
    instants = [when + later for when in stream.times for later in (0, 3333)]
    ours = list(rates(Points(stream.times, stream.values, stream.times), instants, WINDOW * 1000))
    assert ours == pytest.approx(asked(quiet, f"rate({name}[{WINDOW}s])", instants))


def test_what_a_scrape_would_miss_is_what_prometheus_says(
    quiet: Process, begin: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scraped samples are stored beside the others, and Prometheus is asked for both."""
    everything = read(quiet, begin)
    thinned = {}
    for name in ("work_total", "level"):
        stream = everything[name]
        kept = scraped(stream.times, 30)
        assert kept is not None
        thinned[f"thin_{name}"] = [(stream.times[index], stream.values[index]) for index in kept]
    post(quiet.url + PROMETHEUS_PATH, sent(thinned, begin))
    metrics = {
        each["metric"]: each for each in savings(quiet, capsys, "--scrape", "30s", "--window", f"{WINDOW}s")["metrics"]
    }

    instants = [when for when in everything["work_total"].times if when - begin >= WINDOW * 1000]
    true = asked(quiet, f"rate(work_total[{WINDOW}s])", instants)
    thin = asked(quiet, f"rate(thin_work_total[{WINDOW}s])", instants)
    usual = typical([each or 0.0 for each in true])
    worst = max(difference(one, other or 0.0, usual) for one, other in zip(thin, true, strict=True))
    assert metrics["work_total"]["ways"][-1]["rate_error"]["worst"] == pytest.approx(worst, rel=1e-6)
    assert metrics["work_total"]["ways"][-1]["rate_error"]["readings"] == len(instants)

    level = everything["level"]
    shown = asked(quiet, "thin_level", level.times)
    worst = max(difference(one, other, typical(level.values)) for one, other in zip(shown, level.values, strict=True))
    assert metrics["level"]["ways"][-1]["gauge_error"]["worst"] == pytest.approx(worst, rel=1e-6)


def test_what_the_gate_keeps_reads_in_prometheus_as_savings_says(quiet: Process, begin: int) -> None:
    everything = read(quiet, begin)
    names = ["work_total", "rare_total", "level"]
    (kept,) = replay([everything[name] for name in names], [0.05], float(WINDOW), 50.0)
    gated = {
        f"gated_{name}": list(zip(points.times, points.values, strict=True))
        for name, points in zip(names, kept.points, strict=True)
    }
    post(quiet.url + PROMETHEUS_PATH, sent(gated, begin))
    instants = array("q", everything["level"].times)
    for name, points in zip(names, kept.points, strict=True):
        if name == "level":
            assert list(held(points, instants)) == asked(quiet, "gated_level", instants)
            continue
        by_now = Points(points.times, points.values, [0] * len(points.times))  # Prometheus has them all
        assert list(rates(by_now, instants, WINDOW * 1000)) == pytest.approx(
            asked(quiet, f"rate(gated_{name}[{WINDOW}s])", instants)
        )


@pytest.mark.parametrize("dump", ["dump", "dump-openmetrics"])
def test_a_dump_of_promtool_says_the_same(
    quiet: Process, begin: int, dump: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_url = savings(quiet, capsys)
    quiet.stop()
    file = tmp_path / "dump"
    with file.open("wb") as output:
        command: list[str | Path] = [
            part("promtool"),
            "tsdb",
            dump,
            '--match={job="tested"}',
            tmp_path / "prometheus" / "data",
        ]
        subprocess.run(command, stdout=output, check=True, timeout=180)
    assert cli.main(["savings", "--file", str(file), "--json"]) == 0
    by_file = json.loads(capsys.readouterr().out)
    assert by_file["total"] == by_url["total"]
    assert by_file["metrics"] == by_url["metrics"]


def test_a_wrong_selector_is_told_as_prometheus_tells_it(quiet: Process, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["savings", "--url", quiet.url, "--selector", "{job="]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "HTTP 400" in line
    assert "parse error" in line


def test_nothing_found_and_too_much_found_are_told(
    quiet: Process, begin: int, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["savings", "--url", quiet.url, "--selector"]
    assert cli.main([*url, '{job="nobody"}']) == 1
    assert "no samples in " in capsys.readouterr().err
    assert cli.main([*url, '{job="tested"}', "--max-series", "3"]) == 1
    assert "more than 3 series match" in capsys.readouterr().err
    assert cli.main([*url, '{job="tested"}', "--max-samples", "100"]) == 1
    assert "more than 100 samples" in capsys.readouterr().err

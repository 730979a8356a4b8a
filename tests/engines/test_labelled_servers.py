"""The shape takes a server whose series have labels and histograms: a real page of vLLM under a map made for this test."""

from __future__ import annotations

from pathlib import Path

import pytest

from otelperf.readings import Buckets, Reading
from otelperf.sources.engines.engine import Engine, Facts, Moment, Take, grown
from otelperf.sources.engines.exposition import histograms, parse
from otelperf.sources.engines.server import Server
from tests.engines.loopback import Loopback, saying

PAGE = (Path(__file__).resolve().parent.parent / "captures" / "vllm-0.32.0" / "busy.txt").read_text()
START = 1_800_000_000_000_000_000
TTFT = "vllm:time_to_first_token_seconds"


def derive(before: Moment | None, now: Moment, _: Facts) -> list[Reading]:
    tokens = grown(before, now, "vllm:generation_tokens_total") if before else None
    return [] if tokens is None else [Reading("otelperf.server.token.throughput", tokens)]


VLLM = Engine(
    name="vllm",
    metrics_path="/metrics",
    takes=(
        Take(
            "vllm:generation_tokens_total",
            "otelperf.server.tokens",
            {"gen_ai.token.type": "output"},
            {"engine": "engine"},
        ),
        Take(TTFT, "gen_ai.server.time_to_first_token", labels={"engine": "engine"}, histogram=True),
    ),
    off={},
    pages=(),
    facts_path="/props",
    facts=lambda props: Facts(model=props["model"]),
    derive=derive,
    counters=("vllm:generation_tokens_total",),
    started="process_start_time_seconds",
)


def told(name: str) -> float:
    """Return what the page says of the one series that begins with *name*."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(name)]
    return float(line.split()[-1])


@pytest.fixture
def readings() -> list[Reading]:
    with Loopback(saying({"/metrics": PAGE, "/props": '{"model": "tiny"}'})) as loopback:
        server = Server(loopback.url, VLLM)
        server.read(START)
        found = server.read(START + 5_000_000_000)
        server.close()
    return found


def test_a_histogram_passes_with_the_servers_own_bounds(readings: list[Reading]) -> None:
    (reading,) = [reading for reading in readings if reading.name == "gen_ai.server.time_to_first_token"]
    assert isinstance(reading.value, Buckets)
    assert reading.value.count == told(f"{TTFT}_count") == sum(reading.value.counts)
    assert reading.value.sum == told(f"{TTFT}_sum")
    assert reading.value.bounds[:4] == (0.001, 0.005, 0.01, 0.02)
    assert len(reading.value.counts) == len(reading.value.bounds) + 1
    assert dict(reading.attributes) == {"engine": "0", "gen_ai.request.model": "tiny"}


def test_labels_become_attributes_and_the_process_start_is_the_counters_start(readings: list[Reading]) -> None:
    (tokens,) = [reading for reading in readings if reading.name == "otelperf.server.tokens"]
    assert tokens.value == told("vllm:generation_tokens_total")
    assert tokens.attributes["engine"] == "0"
    assert tokens.start == int(told("process_start_time_seconds ") * 1e9)


def test_derived_values_see_series_with_labels(readings: list[Reading]) -> None:
    assert [reading.value for reading in readings if reading.name == "otelperf.server.token.throughput"] == [0.0]


@pytest.mark.parametrize(
    "page",
    [
        'h_bucket{le="1"} 1\nh_bucket{le="2"} 2\nh_sum 3\nh_count 2',  # no +Inf
        'h_bucket{le="1"} 2\nh_bucket{le="+Inf"} 1\nh_sum 3\nh_count 1',  # falls
        'h_bucket{le="1"} 1\nh_bucket{le="+Inf"} 1\nh_count 1',  # no sum
        'h_bucket{le="one"} 1\nh_sum 3\nh_count 1',
        'h_bucket{le="+Inf"} NaN\nh_sum 3\nh_count 1',
    ],
)
def test_a_histogram_that_does_not_add_up_is_left_out(page: str) -> None:
    samples = parse(page, {"h_bucket", "h_sum", "h_count"}).samples
    assert histograms(samples, "h") == []

"""A server's series under its own names: queries that people have answer as they do on a scrape of the same pages."""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from stack import processes
from stack.processes import Process, query, wait_until
from tests.end_to_end.conftest import StartAgent
from tests.engines.loopback import Loopback, message

pytestmark = pytest.mark.end_to_end

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
QUICK = {"OTELPERF_GATE_HEARTBEAT": "10s", "OTELPERF_GATE_LINGER": "0s", "OTELPERF_SERVER_INTERVAL": "1s"}
LOAD_SECONDS = 75.0
WINDOW = "1m"

# vllm-project/vllm, examples/online_serving/prometheus_grafana/grafana.json, by panel, with the names that 0.32 has.
BOARD = [
    f'{aggregate}(vllm:{series}_{part}{{model_name="tiny"}}[$__rate_interval]){after}'
    for series in ("e2e_request_latency_seconds", "inter_token_latency_seconds", "time_to_first_token_seconds")
    for aggregate, part, after in (
        ("histogram_quantile(0.99, sum by(le) (rate", "bucket", "))"),
        ("histogram_quantile(0.5, sum by(le) (rate", "bucket", "))"),
        ("rate", "sum", ""),
        ("rate", "count", ""),
    )
] + [
    'rate(vllm:prompt_tokens_total{model_name="tiny"}[$__rate_interval])',
    'rate(vllm:generation_tokens_total{model_name="tiny"}[$__rate_interval])',
    'vllm:num_requests_running{model_name="tiny"}',
    'vllm:num_requests_waiting{model_name="tiny"}',
    'vllm:kv_cache_usage_perc{model_name="tiny"}',
    'sum by(le) (increase(vllm:request_prompt_tokens_bucket{model_name="tiny"}[$__rate_interval]))',
    'sum by(le) (increase(vllm:request_generation_tokens_bucket{model_name="tiny"}[$__rate_interval]))',
    'sum by(finished_reason) (increase(vllm:request_success_total{model_name="tiny"}[$__rate_interval]))',
    'rate(vllm:request_queue_time_seconds_sum{model_name="tiny"}[$__rate_interval])',
    'rate(vllm:request_decode_time_seconds_sum{model_name="tiny"}[$__rate_interval])',
    'rate(vllm:request_prefill_time_seconds_sum{model_name="tiny"}[$__rate_interval])',
    'rate(vllm:request_max_num_generation_tokens_sum{model_name="tiny"}[$__rate_interval])',
]
# What autoscalers and alerts ask: vllm-project/production-stack (KEDA, prometheus-adapter), llm-d.
OTHERS = [
    "sum(vllm:num_requests_waiting)",
    "avg(vllm:kv_cache_usage_perc) > 0.8",
    "sum(rate(vllm:prefix_cache_hits_total[$__rate_interval])) / sum(rate(vllm:prefix_cache_queries_total[$__rate_interval]))",
    'sum(rate(http_requests_total{status="2xx"}[$__rate_interval]))',
    "sum without(job, instance) (rate(http_request_size_bytes_sum[$__rate_interval]))",
    "sum by(block_size, num_gpu_blocks) (vllm:cache_config_info)",
    "absent(vllm:num_requests_running)",
]
TARGET = {"job", "instance", "host_name", "pod", "namespace"}
SERIES = '{__name__=~"vllm:.*|http_.*",__name__!~".*_created"}'


def between(before: str, after: str, share: float) -> str:
    """Return a page on the way from one to another: all that counts has gone *share* of the way."""

    def line(one: str, other: str) -> str:
        start, _, value = other.rpartition(" ")
        if re.match(r"vllm:(num_requests|kv_cache|engine_sleep|cache_config)|process_start|.*_created", start):
            return other
        low, high = float(one.rpartition(" ")[2]), float(value)
        part = low + (high - low) * share
        return f"{start} {math.floor(part) if high.is_integer() else part}"

    several = {each.rpartition(" ")[0]: each for each in before.splitlines() if each[:1] != "#"}
    return (
        "\n".join(
            each if each[:1] == "#" else line(several.get(each.rpartition(" ")[0], each), each)
            for each in after.splitlines()
        )
        + "\n"
    )


@pytest.fixture
def server() -> Iterator[Loopback]:
    """A vLLM whose load lasts a little more than a minute and then stands still."""
    before, after = ((CAPTURES / "vllm-0.32.0" / name).read_text() for name in ("idle.txt", "busy.txt"))
    began = time.monotonic()

    def answer(_: Loopback, client: object, path: str) -> bool:
        share = min(1.0, (time.monotonic() - began) / LOAD_SECONDS)
        page = message(between(before, after, share), Content_Type="text/plain; version=0.0.4")
        found = page if path == "/metrics" else message("", "404 Not Found")
        client.sendall(found)  # type: ignore[attr-defined] # it is a socket
        return True

    with Loopback(answer) as loopback:
        yield loopback


@pytest.fixture
def scraping(server: Loopback, tmp_path: Path) -> Iterator[Process]:
    """A Prometheus that reads the same pages itself, as often."""
    process = processes.prometheus(tmp_path / "scraping")
    (tmp_path / "scraping" / "prometheus.yaml").write_text(
        "scrape_configs:\n- job_name: vllm\n  scrape_interval: 1s\n"
        f"  static_configs: [{{targets: ['127.0.0.1:{server.port}']}}]\n"
    )
    with process:
        yield process


def answer(prometheus: Process, promql: str, when: float) -> dict[str, float]:
    """Return the values by their labels, but those of the target and the resource; bounds are numbers (1 is 1.0 here)."""
    values = {}
    for series in query(prometheus.url, promql.replace("$__rate_interval", WINDOW), when):
        labels = {k: str(float(v)) if k == "le" else v for k, v in series["metric"].items() if k not in TARGET}
        values[str(sorted(labels.items()))] = float(series["value"][1])
    return values


def same_now(one: Process, other: Process, promql: str) -> bool:
    when = time.time()
    return answer(one, promql, when) == answer(other, promql, when) != {}


def names(prometheus: Process) -> set[str]:
    return {series["metric"]["__name__"] for series in query(prometheus.url, SERIES)}


def promote(prometheus: Process, folder: Path, *attributes: str) -> None:
    """Let Prometheus make labels of these resource attributes, as docs/servers.md says for boards that ask for a pod."""
    config = folder / "prometheus.yaml"
    known = "  promote_resource_attributes:\n"
    added = "".join(f"    - {attribute}\n" for attribute in attributes)
    config.write_text(config.read_text().replace(known, known + added))
    os.kill(prometheus.pid, signal.SIGHUP)


def test_a_board_made_for_vllm_shows_what_it_shows_on_a_scrape(
    prometheus: Process, scraping: Process, server: Loopback, start_agent: StartAgent, tmp_path: Path
) -> None:
    promote(prometheus, tmp_path / "prometheus", "pod", "namespace")
    agent = start_agent(
        **QUICK,
        OTELPERF_SERVER_URL=server.url,
        OTELPERF_HOST_ENABLED="false",
        OTELPERF_SERVER_PASSTHROUGH="vllm:*,http_*",
        OTELPERF_SERVER_MAPPED="false",
        OTEL_RESOURCE_ATTRIBUTES="pod=vllm-0,namespace=llm",
    )
    time.sleep(LOAD_SECONDS - 5)
    when = time.time() - 2
    wait_until(lambda: names(scraping) == names(prometheus), 10, "the names are others")
    for promql in (*BOARD, *OTHERS):
        expected, found = answer(scraping, promql, when), answer(prometheus, promql, when)
        assert expected.keys() == found.keys(), (promql, expected, found)
        assert found == pytest.approx(expected, rel=0.25, abs=0.01), promql
    time.sleep(5)  # the load has ended
    for promql in ("vllm:generation_tokens_total", "vllm:e2e_request_latency_seconds_bucket", "http_requests_total"):
        wait_until(partial(same_now, scraping, prometheus, promql), 60, f"{promql} is another")
    [running] = query(prometheus.url, 'sum by(pod, job) (vllm:num_requests_running{namespace="llm"})')
    assert (running["metric"], running["value"][1]) == ({"pod": "vllm-0", "job": "vllm"}, "4")
    assert not query(prometheus.url, "otelperf_server_tokens_total")
    assert "gate rule" not in agent.log_path.read_text()

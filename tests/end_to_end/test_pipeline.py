"""The main job with real parts: this machine and a llama-server, through the real Collector, into a real Prometheus."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stack.processes import Process, answers, query, series_samples, wait_until
from tests.end_to_end.conftest import StartAgent

pytestmark = pytest.mark.end_to_end

# Quick heartbeats and no linger, so that a test need not wait for either.
QUICK = {"OTELPERF_GATE_HEARTBEAT": "5s", "OTELPERF_GATE_LINGER": "0s", "OTELPERF_SERVER_INTERVAL": "1s"}


def value(prometheus: Process, promql: str) -> float | None:
    """Return the one value of a query; None where it has no series."""
    series = query(prometheus.url, promql)
    assert len(series) <= 1, series
    return float(series[0]["value"][1]) if series else None


def has(prometheus: Process, promql: str) -> bool:
    return bool(query(prometheus.url, promql))


def complete(llama: Process, tokens: int) -> dict[str, Any]:
    """Ask for *tokens* tokens and return the answer."""
    body = json.dumps({"prompt": "the quick brown fox", "n_predict": tokens, "ignore_eos": True, "cache_prompt": False})
    request = urllib.request.Request(f"{llama.url}/completion", body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def stored_times_rise(prometheus: Process, selector: str) -> bool:
    return all(
        times == sorted(set(times))
        for _, samples in series_samples(prometheus.url, selector)
        for times in [[when for when, _ in samples]]
    )


def test_promql_answers_what_proc_says(prometheus: Process, start_agent: StartAgent) -> None:
    start_agent(**QUICK)
    wait_until(lambda: has(prometheus, "system_memory_limit_bytes"), 60, "memory did not arrive")

    meminfo = Path("/proc/meminfo").read_text().splitlines()
    memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo}
    assert value(prometheus, "system_memory_limit_bytes") == memory["MemTotal"]
    states = value(prometheus, "sum(system_memory_usage_bytes)")
    assert states == pytest.approx(memory["MemTotal"], rel=1e-9)
    wait_until(lambda: about_available(prometheus), 30, "the available memory is another")
    assert value(prometheus, "system_cpu_logical_count") == os.cpu_count()

    wait_until(lambda: has(prometheus, "system_cpu_time_seconds_total"), 60, "CPU time did not arrive")
    wait_until(lambda: about_cpu_time(prometheus), 30, "the CPU time is another")


def about_available(prometheus: Process) -> bool:
    """Compare with what /proc says now: what others take meanwhile is told with the next change."""
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo}
    shown = value(prometheus, "system_memory_linux_available_bytes")
    return shown == pytest.approx(memory["MemAvailable"], abs=0.03 * memory["MemTotal"])


def about_cpu_time(prometheus: Process) -> bool:
    modes = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    now = sum(modes) / os.sysconf("SC_CLK_TCK")
    # No more than what the rule lets be unsent, and the seconds since the last heartbeat, on each CPU.
    return value(prometheus, "sum(system_cpu_time_seconds_total)") == pytest.approx(now, abs=10 * (os.cpu_count() or 1))


def test_each_source_has_a_resource_of_its_own(prometheus: Process, llama: Process, start_agent: StartAgent) -> None:
    start_agent(**QUICK, OTELPERF_SERVER_URL=llama.url, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test")
    wait_until(lambda: has(prometheus, "otelperf_server_up == 1"), 60, "the server did not come up")

    def jobs() -> set[str]:
        found = query(prometheus.url, 'target_info{deployment_environment_name="test"}')
        return {series["metric"]["job"] for series in found}

    wait_until(lambda: len(jobs()) >= 3, 60, "not every source has arrived")
    assert {"host", "otelperf", "llama.cpp"} == jobs()
    instances = {
        series["metric"]["instance"] for series in query(prometheus.url, 'target_info{job=~"host|otelperf|llama.cpp"}')
    }
    assert len(instances) == 3


def test_tokens_in_promql_are_those_the_client_counted(
    prometheus: Process, llama: Process, start_agent: StartAgent
) -> None:
    start_agent(**QUICK, OTELPERF_SERVER_URL=llama.url, OTELPERF_HOST_ENABLED="false")
    answers_ = [complete(llama, tokens) for tokens in (40, 60, 100)]
    generated = sum(answer["tokens_predicted"] for answer in answers_)
    prompted = sum(answer["tokens_evaluated"] for answer in answers_)

    def tokens(kind: str) -> float | None:
        return value(prometheus, f'otelperf_server_tokens_total{{gen_ai_token_type="{kind}"}}')

    wait_until(lambda: tokens("output") == generated, 60, f"output tokens are not {generated} but {tokens('output')}")
    wait_until(lambda: tokens("input") == prompted, 60, f"input tokens are not {prompted} but {tokens('input')}")
    assert value(prometheus, 'sum(otelperf_worker_state{otelperf_worker_state="idle"})') == 4
    assert has(prometheus, 'otelperf_server_tokens_total{gen_ai_request_model="tiny"}')


def test_series_of_a_server_that_stops_end_at_once_and_go_on_when_it_is_back(
    prometheus: Process, llama: Process, start_agent: StartAgent
) -> None:
    start_agent(**QUICK, OTELPERF_SERVER_URL=llama.url)
    wait_until(lambda: has(prometheus, "otelperf_server_tokens_total"), 60, "the server's series did not arrive")
    llama.kill()
    wait_until(lambda: value(prometheus, "otelperf_server_up") == 0, 60, "up did not fall to 0")
    wait_until(lambda: not has(prometheus, "otelperf_server_tokens_total"), 60, "the tokens did not end")
    assert not has(prometheus, "otelperf_worker_state")
    llama.start()
    wait_until(lambda: value(prometheus, "otelperf_server_up") == 1, 60, "up did not return to 1")
    wait_until(lambda: has(prometheus, "otelperf_server_tokens_total"), 60, "the tokens did not return")
    assert stored_times_rise(prometheus, '{job="llama.cpp"}[5m]')


def test_a_server_that_hangs_is_down_and_does_not_look_alive(
    prometheus: Process, llama: Process, start_agent: StartAgent
) -> None:
    start_agent(**QUICK, OTELPERF_SERVER_URL=llama.url, OTELPERF_SERVER_TIMEOUT="500ms")
    wait_until(lambda: value(prometheus, "otelperf_server_up") == 1, 60, "the server did not come up")
    os.kill(llama.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: value(prometheus, "otelperf_server_up") == 0, 60, "up did not fall to 0")
        wait_until(lambda: not has(prometheus, "otelperf_server_tokens_total"), 60, "a hung server's tokens live on")
    finally:
        os.kill(llama.pid, signal.SIGCONT)
    wait_until(lambda: value(prometheus, "otelperf_server_up") == 1, 60, "up did not return to 1")


def test_sigterm_ends_every_series_but_those_of_a_server_that_lives_on(
    prometheus: Process, llama: Process, start_agent: StartAgent
) -> None:
    agent = start_agent(**QUICK, OTELPERF_SERVER_URL=llama.url)
    wait_until(lambda: has(prometheus, "otelperf_server_tokens_total"), 60, "the server's series did not arrive")
    agent.stop()
    wait_until(lambda: not has(prometheus, "system_memory_usage_bytes"), 60, "the host's series did not end")
    assert not has(prometheus, '{job=~"host|otelperf",__name__!="target_info"}')
    assert has(prometheus, "otelperf_server_tokens_total")


def test_an_agent_killed_and_restarted_goes_on_with_the_same_series(
    prometheus: Process, llama: Process, start_agent: StartAgent
) -> None:
    agent = start_agent(**QUICK, OTELPERF_SERVER_URL=llama.url)
    complete(llama, 50)
    wait_until(lambda: has(prometheus, "otelperf_server_tokens_total > 0"), 60, "the tokens did not arrive")
    wait_until(lambda: has(prometheus, "system_cpu_time_seconds_total"), 60, "CPU time did not arrive")
    # Rates need two readings, and come last.
    wait_until(
        lambda: has(prometheus, "otelperf_server_token_throughput_per_second"), 60, "the throughput did not arrive"
    )

    def all_series() -> set[str]:
        return {json.dumps(s["metric"], sort_keys=True) for s in query(prometheus.url, '{job=~"host|llama.cpp"}')}

    def nothing_new() -> bool:
        known = all_series()
        time.sleep(3)
        return known == all_series()

    wait_until(nothing_new, 60, "there are ever more series")
    before = all_series()
    agent.kill()
    killed = time.time()
    agent.start()
    for metric in ("otelperf_server_tokens_total", "system_cpu_time_seconds_total"):
        wait_until(partial(has, prometheus, f"timestamp({metric}) > {killed}"), 60, "the new agent did not report")
    wait_until(nothing_new, 60, "there are ever more series")
    after = all_series()
    assert after >= before
    assert {m for m in after - before if "reason" not in m} <= set()
    assert value(prometheus, 'sum(otelperf_server_tokens_total{gen_ai_token_type="output"})') == 50
    assert stored_times_rise(prometheus, '{job=~"host|llama.cpp"}[5m]')


def test_what_was_queued_while_the_collector_was_away_is_replayed_in_order(
    prometheus: Process, collector: Process, llama: Process, start_agent: StartAgent
) -> None:
    """A minute without the Collector, under the production profile."""
    agent = start_agent(OTELPERF_SERVER_URL=llama.url)
    wait_until(lambda: has(prometheus, "otelperf_server_tokens_total"), 60, "the tokens did not arrive")
    collector.kill()
    down = time.time()
    generated = 0
    while time.time() < down + 60:
        generated += complete(llama, 20)["tokens_predicted"]
        time.sleep(1)
    collector.start()
    up = time.time()
    used = 'system_memory_utilization_ratio{system_memory_state="used"}'
    # The linger, two ticks, and the sender's longest pause before it knocks again.
    wait_until(lambda: has(prometheus, f"timestamp({used}) > {down}"), 30, "the gauges did not come back")
    wait_until(
        lambda: value(prometheus, used) == pytest.approx(shown_by(agent, used), abs=0.01), 30, "another value is stored"
    )
    tokens = 'sum(otelperf_server_tokens_total{gen_ai_token_type="output"})'
    wait_until(lambda: value(prometheus, tokens) == generated, 60, f"tokens are not {generated}")
    ((_, samples),) = series_samples(prometheus.url, 'otelperf_server_tokens_total{gen_ai_token_type="output"}[5m]')
    meanwhile = [number for when, number in samples if down < when < up]
    assert len(meanwhile) >= 2, samples
    assert meanwhile == sorted(meanwhile)
    assert stored_times_rise(prometheus, '{job=~"host|llama.cpp|otelperf"}[5m]')
    assert value(prometheus, 'sum(otelperf_export_requests_total{otelperf_outcome=~"refused|dropped"})') == 0
    assert "out of order" not in prometheus.log_path.read_text().lower()


def shown_by(agent: Process, series: str) -> float:
    """Return what the agent's own page says of a series without its job and instance."""
    name, labels = series.removesuffix("}").split("{")
    with urllib.request.urlopen(f"{agent.url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith(name) and labels in line]
    return float(line.split()[-1])


def test_sigterm_ends_in_two_seconds_though_the_collector_is_gone(collector: Process, start_agent: StartAgent) -> None:
    agent = start_agent(**QUICK)
    collector.kill()
    time.sleep(3)
    began = time.monotonic()
    agent.stop(timeout_seconds=20)
    # The budget is 2 s; the rest is the interpreter's own end on a busy machine. A request may take 10 s.
    assert time.monotonic() - began < 8
    assert "agent stopped" in agent.log_path.read_text()


def test_the_endpoint_shows_the_same_names_as_prometheus(
    prometheus: Process, llama: Process, start_agent: StartAgent
) -> None:
    agent = start_agent(**QUICK, OTELPERF_SERVER_URL=llama.url)
    complete(llama, 10)
    wait_until(lambda: has(prometheus, "otelperf_server_batch_limit"), 60, "the server's series did not arrive")
    assert answers(f"{agent.url}/healthz")
    with urllib.request.urlopen(f"{agent.url}/metrics", timeout=30) as response:
        page = response.read().decode()
    shown = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if line and not line.startswith("#")}
    job = '{job=~"host|otelperf|llama.cpp",__name__!="target_info"}'
    wait_until(
        lambda: shown <= {series["metric"]["__name__"] for series in query(prometheus.url, job)},
        60,
        f"not all of {sorted(shown)} are stored",
    )


def test_grpc_delivers_as_http_does(prometheus: Process, collector: Process, start_agent: StartAgent) -> None:
    start_agent(
        **QUICK,
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.ports['grpc']}",
    )
    wait_until(lambda: has(prometheus, "system_memory_limit_bytes"), 60, "memory did not arrive by gRPC")

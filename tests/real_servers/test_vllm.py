"""A real vLLM under requests as a production service had them: what PromQL says is what the client counted.

The load is the first busy minutes of azure-llm-code.csv, as benchmarks/traffic.py cuts it for a tiny model on a CPU: context
divided by 8 and cut at 900 tokens, output cut at 60, and here three times as fast.
"""

from __future__ import annotations

import math
import re
import threading
import time
import urllib.request
from bisect import bisect_left
from collections.abc import Iterator

import pytest

from benchmarks import traffic
from otelperf import catalog
from stack import processes
from stack.processes import Process, series_samples, wait_until
from tests.real_servers.conftest import Answers, StartAgent

pytestmark = pytest.mark.real_servers("vllm")

TOGETHER = 4  # requests that vLLM takes at once
BEGIN, END, SPEED = 180.0, 270.0, 3.0  # s of the trace
THROUGHPUT = "otelperf_server_token_throughput_per_second"
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds_bucket"  # a series


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with processes.vllm(tmp_path_factory.mktemp("vllm"), flags=["--max-num-seqs", str(TOGETHER)]) as process:
        yield process


def watch(start_agent: StartAgent, server: Process, **settings: str) -> Process:
    return start_agent(OTELPERF_SERVER_URL=server.url, OTELPERF_HOST_ENABLED="false", **settings)


def page(server: Process) -> dict[str, float]:
    """Return the server's own page, each series added up over its labels."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line, maxsplit=1)[0]
            found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return found


def test_a_minute_of_production_is_told_as_the_client_counted_it(
    vllm: Process, start_agent: StartAgent, answers: Answers
) -> None:
    agent = watch(start_agent, vllm, OTELPERF_GATE_LINGER="0s")
    answers.become("otelperf_server_up", 1)
    client = traffic.Client(vllm.url)
    requests = traffic.trace(BEGIN, END, speed=SPEED)
    load = threading.Thread(target=traffic.play, args=(client, requests))
    load.start()
    errors = throughput_errors(agent, answers, load)
    for _ in range(3):
        client.complete(20, 10, stop=True)

    counts = client.counts
    assert {"length": len(requests), "stop": 3} == dict(counts.requests)
    answers.become('sum(otelperf_server_tokens_total{gen_ai_token_type="input"})', counts.prompt_tokens)
    answers.become('sum(otelperf_server_tokens_total{gen_ai_token_type="output"})', counts.output_tokens)
    for reason, expected in counts.requests.items():
        answers.become(f'otelperf_server_requests_total{{otelperf_finish_reason="{reason}"}}', expected)

    assert len(errors) >= 3, errors
    assert [error for error in errors if error > 1] == []

    answers.become("sum(gen_ai_server_time_to_first_token_seconds_count)", counts.finished)
    bounds = sorted(float(bound) for bound in answers.by("le", FIRST_TOKEN))
    for share in (0.5, 0.95):
        told = answers.value(f"histogram_quantile({share}, {FIRST_TOKEN})")
        assert told is not None
        ours = sorted(counts.first_tokens)[math.ceil(share * counts.finished) - 1]
        assert abs(bisect_left(bounds, told) - bisect_left(bounds, ours)) <= 1, (share, told, ours)


def throughput_errors(agent: Process, answers: Answers, load: threading.Thread) -> list[float]:
    """Return how far tokens/s in Prometheus were from what the agent had read, in units of the delta; read to the load's end.

    A reading counts that has stood for three seconds: time enough to be stored, and the next comes after five.
    """
    rule = catalog.BY_NAME["otelperf.server.token.throughput"].rule
    found = []
    for kind in alternately("input", "output", load):
        since, read = time.monotonic(), shown(agent, kind)
        while read is not None and shown(agent, kind) == read and time.monotonic() - since < 3:
            time.sleep(0.2)
        stored = answers.value(f'{THROUGHPUT}{{gen_ai_token_type="{kind}"}}')
        if read is not None and stored is not None and shown(agent, kind) == read and time.monotonic() - since >= 3:
            found.append(abs(read - stored) / max(rule.delta, rule.relative * abs(stored)))
    return found


def alternately(first: str, second: str, load: threading.Thread) -> Iterator[str]:
    while load.is_alive():
        yield first
        first, second = second, first


def shown(agent: Process, kind: str) -> float | None:
    """Return tokens/s as the agent last read it."""
    with urllib.request.urlopen(f"{agent.url}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    found = [line for line in lines if line.startswith(THROUGHPUT) and f'gen_ai_token_type="{kind}"' in line]
    return float(found[0].rsplit(" ", 1)[1]) if found else None


def test_a_client_that_hangs_up_leaves_its_tokens_and_no_request(
    vllm: Process, start_agent: StartAgent, answers: Answers
) -> None:
    """vLLM counts no request that its client gave up (vllm#31503): nor do we make one up."""
    before = page(vllm)
    watch(start_agent, vllm)
    traffic.Client(vllm.url).give_up(30, 900)
    wait_until(lambda: page(vllm)["vllm:num_requests_running"] == 0, 30, "the request that was given up runs on")
    after = page(vllm)
    assert 30 == after["vllm:prompt_tokens_total"] - before["vllm:prompt_tokens_total"]
    assert 0 == after["vllm:request_success_total"] - before["vllm:request_success_total"]
    answers.become('sum(otelperf_server_tokens_total{gen_ai_token_type="input"})', after["vllm:prompt_tokens_total"])
    answers.become("sum(otelperf_server_requests_total)", after["vllm:request_success_total"])
    answers.become('otelperf_server_request_errors_total{error_type="abort"}', 0)


def test_saturated_the_queue_shows_within_two_readings_and_goes(
    vllm: Process, start_agent: StartAgent, answers: Answers
) -> None:
    watch(start_agent, vllm)
    waiting = 'otelperf_server_active_requests{otelperf_request_state="waiting"}'
    running = 'otelperf_server_active_requests{otelperf_request_state="running"}'
    answers.become(waiting, 0)
    client = traffic.Client(vllm.url, stream=False)
    load = threading.Thread(target=traffic.play, args=(client, [traffic.Request(0, 50, 700)] * 40))
    load.start()
    wait_until(lambda: (page(vllm)["vllm:num_requests_waiting"]) > 10, 20, "no queue came about")
    began = time.monotonic()
    wait_until(lambda: (answers.value(waiting) or 0) > 10, 30, "the queue does not show")
    # The pause between two readings is 5 s, and on a busy machine the page and the way take a few more.
    assert time.monotonic() - began < 15
    assert answers.value(running) == TOGETHER
    assert answers.value('otelperf_worker_state{otelperf_worker_state="active"}') == 1
    load.join()
    assert client.counts.finished == 40
    answers.become(waiting, 0)
    answers.become(running, 0)
    slow = "histogram_quantile(0.9, sum by (le) (rate(otelperf_server_queue_duration_seconds_bucket[5m])))"
    wait_until(lambda: (answers.value(slow) or 0) > 1, 60, "the time in the queue does not show")


def test_killed_it_is_down_and_while_it_loads_and_then_counts_anew(
    vllm: Process, start_agent: StartAgent, answers: Answers
) -> None:
    watch(start_agent, vllm)
    tokens = 'otelperf_server_tokens_total{gen_ai_token_type="output"}'
    wait_until(lambda: answers.value(tokens) is not None, 60, "the tokens did not arrive")
    vllm.kill()
    killed = time.time()
    answers.become("otelperf_server_up", 0, 30)
    wait_until(lambda: answers.value(tokens) is None, 30, "the tokens did not end")
    ended = time.time()
    vllm.start()  # a minute or more: it loads, and does not answer
    ready = time.time()
    answers.become("otelperf_server_up", 1, 60)
    client = traffic.Client(vllm.url)
    traffic.play(client, traffic.trace(BEGIN, BEGIN + 10, speed=SPEED))
    answers.become(tokens, client.counts.output_tokens)
    answers.become("sum(otelperf_server_requests_total)", client.counts.finished)
    assert not values(answers, "otelperf_server_up[30m]", ended, ready) - {0}
    assert not values(answers, f"{tokens}[30m]", ended, ready)
    assert killed < ended < ready
    for _, samples in series_samples(answers.url, '{job="vllm"}[30m]'):
        times = [when for when, _ in samples]
        assert times == sorted(set(times))


def values(answers: Answers, selector: str, first: float, last: float) -> set[float]:
    found = series_samples(answers.url, selector)
    return {value for _, samples in found for when, value in samples if first < when < last}

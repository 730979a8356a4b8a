"""A real Triton with a model of pytriton that sleeps and doubles, under requests as a production service had them.

It speaks no tokens: each request of azure-llm-code.csv asks for one number, and takes as many milliseconds as it had output tokens
(cut at 60), here three times as fast.
"""

from __future__ import annotations

import http
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks import traffic
from stack import processes
from stack.processes import HOST, Process, series_samples, wait_until
from tests.real_servers.conftest import Answers, StartAgent

pytestmark = pytest.mark.real_servers("triton")

BATCH = 4  # of stack/tiny_triton.py
REQUESTS = "otelperf_server_requests_total"
LONG_LOADING = 12.0  # s


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[Process]:
    with processes.triton(tmp_path / "triton") as process:
        wait_until(lambda: loaded(process), 60, "the model did not load")
        yield process


def loaded(server: Process) -> bool:
    """Say whether the model answers; Triton does before it."""
    try:
        with urllib.request.urlopen(f"{server.url}/v2/models/tiny/ready", timeout=10):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False


def watch(start_agent: StartAgent, server: Process) -> Process:
    """Start an agent that is told where the metrics are, and nothing of what they are."""
    url = f"http://{HOST}:{server.ports['metrics']}"
    return start_agent(OTELPERF_SERVER_URL=url, OTELPERF_HOST_ENABLED="false")


def ask(server: Process, number: float, counts: Counter[str]) -> None:
    """Ask for twice a number, and count the answer by its status."""
    value = {"name": "number", "shape": [1, 1], "datatype": "FP32", "data": [number]}
    request = urllib.request.Request(
        f"{server.url}/v2/models/tiny/infer",
        json.dumps({"inputs": [value]}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["outputs"][0]["data"] == [2 * number]
            counts["ok"] += 1
    except urllib.error.HTTPError as error:
        counts["refused" if error.code == http.HTTPStatus.BAD_REQUEST else "failed"] += 1
        error.close()


def play(server: Process, requests: Sequence[traffic.Request], counts: Counter[str]) -> None:
    """Ask each at its time, in a thread of its own."""
    began = time.monotonic()
    threads = [threading.Thread(target=ask, args=(server, request.output, counts)) for request in requests]
    for request, thread in zip(requests, threads, strict=True):
        time.sleep(max(0.0, began + request.at - time.monotonic()))
        thread.start()
    for thread in threads:
        thread.join()


def own_page(server: Process, series: str) -> float:
    """Return the sum of a series of the server's own page."""
    with urllib.request.urlopen(f"http://{HOST}:{server.ports['metrics']}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{series}{{"))


def test_a_minute_of_production_is_told_as_the_client_counted_it(
    triton: Process, start_agent: StartAgent, answers: Answers
) -> None:
    watch(start_agent, triton)
    answers.become("otelperf_server_up", 1)
    counts: Counter[str] = Counter()
    requests = traffic.trace(180, 270, speed=3)
    play(triton, requests, counts)
    for _ in range(5):
        ask(triton, -1, counts)
    assert counts["ok"] == len(requests) > 500
    assert counts.total() - counts["ok"] == 5
    answers.become(REQUESTS, counts["ok"])
    answers.become("sum(otelperf_server_request_errors_total)", 5)
    # Times are sums: what the server says, exactly.
    seconds = own_page(triton, "nv_inference_request_duration_us") * 1e-6
    wait_until(
        lambda: answers.value("otelperf_server_request_time_seconds_total") == pytest.approx(seconds), 90, "other time"
    )


def test_saturated_the_queue_shows_and_goes(triton: Process, start_agent: StartAgent, answers: Answers) -> None:
    watch(start_agent, triton)
    waiting = 'otelperf_server_active_requests{otelperf_request_state="waiting"}'
    answers.become(waiting, 0)
    counts: Counter[str] = Counter()
    load = threading.Thread(target=play, args=(triton, [traffic.Request(0, 1, 1500)] * 60, counts))
    load.start()
    wait_until(lambda: (answers.value(waiting) or 0) > 10, 20, "the queue does not show")
    load.join()
    assert counts == {"ok": 60}
    answers.become(waiting, 0)
    answers.become(REQUESTS, 60)
    assert (answers.value("max_over_time(otelperf_server_batch_size[5m])") or 0) <= BATCH


def test_killed_and_restarted_it_counts_anew_and_while_it_loads_no_model_answers(
    tmp_path: Path, start_agent: StartAgent, answers: Answers
) -> None:
    slow = processes.triton(tmp_path / "triton", load_seconds=LONG_LOADING)
    watch(start_agent, slow)  # before the server
    with slow:
        answers.become("otelperf_server_up", 1, 30)
        assert answers.value(REQUESTS) is None  # no model, no count: absent is not zero
        assert not loaded(slow)
        wait_until(lambda: loaded(slow), 60, "the model did not load")
        first: Counter[str] = Counter()
        for _ in range(20):
            ask(slow, 5, first)
        assert first == {"ok": 20}
        answers.become(REQUESTS, 20)
        slow.kill()
        answers.become("otelperf_server_up", 0, 30)
        wait_until(lambda: answers.value(REQUESTS) is None, 30, "the requests did not end")
        slow.start()
        wait_until(lambda: loaded(slow), 60, "the model did not load")
        second: Counter[str] = Counter()
        for _ in range(7):
            ask(slow, 5, second)
        answers.become(REQUESTS, 7)
        for _, samples in series_samples(answers.url, '{job="triton"}[30m]'):
            times = [when for when, _ in samples]
            assert times == sorted(set(times))

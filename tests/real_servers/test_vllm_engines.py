"""A real vLLM of two data-parallel engines: told apart, added up, and one of them slowed down and stopped.

A dense model's engines work each for itself, so that a signal to one's process slows it alone. The load has the sizes of
azure-llm-code.csv as benchmarks/traffic.py cuts them for a tiny model.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import traffic
from stack import processes
from stack.processes import Process, query, series_samples, wait_until
from tests.end_to_end.tempo import collector, tempo
from tests.real_servers.conftest import Answers, StartAgent
from tests.receiver import Receiver, Span

__all__ = ["collector", "tempo"]

pytestmark = pytest.mark.real_servers("vllm")

BEGIN, END, SPEED = 180.0, 270.0, 3.0  # s of the trace
INDEX = "otelperf_server_engine_index"
STATE = "otelperf_server_engine_state"
CONTEXT = 1000  # tokens, of 1024
TOGETHER = 12
LONGER = 20  # times the trace's answers: here they take seconds, as a large model's do
STOPPED = 0.85  # of the time
TURN = 0.1  # s
# The detector wants four windows of 15 s. The rest is for a machine that is so busy that the slowed engine is hardly behind.
TO_STRAGGLE = 300.0
TO_RECOVER = 180.0


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with processes.vllm(tmp_path_factory.mktemp("vllm"), engines=2) as process:
        yield process


def watch(start_agent: StartAgent, server: Process) -> Process:
    """Start an agent that reads every 5 s, however slowly a busy machine answers."""
    patient = {"OTELPERF_SERVER_SHARE": "1", "OTELPERF_SERVER_TIMEOUT": "20s"}
    return start_agent(OTELPERF_SERVER_URL=server.url, OTELPERF_HOST_ENABLED="false", **patient)


def test_they_are_told_apart_and_add_up(vllm: Process, start_agent: StartAgent, answers: Answers) -> None:
    watch(start_agent, vllm)
    answers.become("otelperf_server_up", 1)
    client = traffic.Client(vllm.url)
    traffic.play(client, traffic.trace(BEGIN, END, speed=SPEED))
    counts = client.counts
    answers.become('sum(otelperf_server_tokens_total{gen_ai_token_type="output"})', counts.output_tokens)
    answers.become('sum(otelperf_server_tokens_total{gen_ai_token_type="input"})', counts.prompt_tokens)
    answers.become("sum(otelperf_server_requests_total)", counts.finished)
    of_each = answers.by(INDEX, 'otelperf_server_tokens_total{gen_ai_token_type="output"}')
    assert {"0", "1"} == set(of_each)
    assert min(of_each.values()) > 0.2 * counts.output_tokens
    assert of_each == own_page(vllm, "vllm:generation_tokens_total")
    workers = answers.by("otelperf_worker_id", 'otelperf_worker_state{otelperf_worker_state="idle"}')
    assert {"0": 1, "1": 1} == workers
    assert len(query(answers.url, "otelperf_server_kv_cache_utilization_ratio")) == 2


def test_one_that_is_slowed_straggles_until_it_is_as_fast_again_and_one_that_is_stopped_is_stuck(
    vllm: Process, start_agent: StartAgent, answers: Answers, tempo: Receiver
) -> None:
    watch(start_agent, vllm)
    server = 'otelperf_server_state{otelperf_server_state="stuck"}'
    answers.become(f'sum({STATE}{{otelperf_server_engine_state="ok"}})', 2)
    traffic.play(traffic.Client(vllm.url), traffic.trace(BEGIN, END))  # a minute and a half of production
    with load(vllm):
        with slowed(engine(vllm, 1)):
            answers.become(state("straggling"), 1, TO_STRAGGLE)
            assert answers.value(server) == 0
        answers.become(state("ok"), 1, TO_RECOVER)
        with stopped(engine(vllm, 1)):
            answers.become(state("stuck"), 1, 180)
            answers.become(server, 1)
        answers.become(state("ok"), 1)
        answers.become(server, 0)

    was_bad = f'{STATE}{{{INDEX}="0",otelperf_server_engine_state!="ok"}}[30m]'
    assert {0} == {value for _, samples in series_samples(answers.url, was_bad) for _, value in samples}
    expected = ["ok straggling", "straggling ok", "ok stuck", "stuck ok"]
    wait_until(lambda: len(changes(tempo)) >= len(expected), 30, "the spans have not come")
    assert expected == [change for change, _ in changes(tempo)]
    assert {"1"} == {span.attributes["otelperf.server.engine.index"] for _, span in changes(tempo)}


def state(of_one: str) -> str:
    return f'{STATE}{{{INDEX}="1",otelperf_server_engine_state="{of_one}"}}'


def changes(tempo: Receiver) -> list[tuple[str, Span]]:
    """Return what each span of an engine's state says, in the order of time."""
    found = [
        span for span in tempo.spans() if span.attributes["otelperf.metric.name"] == "otelperf.server.engine.state"
    ]
    found.sort(key=lambda span: int(span.span.end_time_unix_nano))
    keys = ("otelperf.state.previous", "otelperf.state.new")
    return [(" ".join(str(span.attributes[key]) for key in keys), span) for span in found]


@contextmanager
def load(server: Process) -> Iterator[None]:
    """Keep requests of the trace under way, always as many at once."""
    client = traffic.Client(server.url, stream=False)
    requests = itertools.cycle(traffic.trace(BEGIN, END))
    lock, done = threading.Lock(), threading.Event()

    def ask() -> None:
        while not done.is_set():
            with lock:
                request = next(requests)
            client.complete(request.prompt, min(request.output * LONGER, CONTEXT - request.prompt))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(TOGETHER)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
    for thread in threads:
        thread.join()
    assert not client.counts.errors


def engine(server: Process, index: int) -> int:
    """Return the process of an engine, which has its name from vLLM."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    [found] = [
        int(pid) for pid in children if f"EngineCore_DP{index}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return found


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Stop a process most of the time; on a busy machine a turn of work is longer than asked, so it is measured."""
    done = threading.Event()

    def turns() -> None:
        while not done.is_set():
            began = time.monotonic()
            time.sleep(TURN * (1 - STOPPED))
            worked = time.monotonic() - began
            os.kill(pid, signal.SIGSTOP)
            time.sleep(worked * STOPPED / (1 - STOPPED))
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=turns, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def own_page(server: Process, series: str) -> dict[str, float]:
    """Return a series of the server's own page by its engine."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        lines: Sequence[str] = response.read().decode().splitlines()
    found = (re.match(rf'{re.escape(series)}\{{engine="(\d+)".*\}} (\S+)$', line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}

"""The services in examples/, asked by a client that counts: Prometheus and the spans behind the Collector must say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stack import processes
from stack.processes import Process, free_port, wait_until
from tests.conftest import PROJECT
from tests.end_to_end.tempo import collector, tempo
from tests.receiver import Receiver

__all__ = ["collector", "tempo"]

pytestmark = pytest.mark.end_to_end

EXAMPLES = PROJECT / "examples"
SECRET = "PROMPT-THAT-NOBODY-MAY-SEE"


def environment(collector: Process, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTELPERF_EXPORT_SHUTDOWN_TIMEOUT": "9s",  # what is sent last is counted here, on a busy machine too
        "PYTHONWARNINGS": "default",
        **more,
    }


def stored(prometheus: Process, metric: str, job: str, by: str) -> dict[str, float]:
    """The last values of a service that has ended."""
    rows = processes.query(prometheus.url, f'sum by ({by}) (last_over_time({metric}{{job="{job}"}}[10m]))')
    return {row["metric"].get(by, ""): float(row["value"][1]) for row in rows}


def expect(prometheus: Process, expected: dict[str, float], metric: str, job: str, by: str) -> None:
    """Wait until Prometheus has that, and say what it has where it does not come."""
    try:
        wait_until(lambda: stored(prometheus, metric, job, by) == expected, 60, metric)
    except processes.ProcessError:
        assert stored(prometheus, metric, job, by) == expected


def rebuilt(tempo: Receiver) -> Counter[str]:
    """How many calls the spans stand for, by name."""
    counts: Counter[str] = Counter()
    for span in tempo.spans():
        counts[span.name] += span.attributes.get("otelperf.gate.represented", 0)
    return +counts


def ask(url: str, body: dict[str, Any] | None = None, *, leave: bool = False) -> tuple[int, bytes]:
    request = urllib.request.Request(
        url, None if body is None else json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(1) if leave else answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def without_the_line(example: str, folder: Path) -> Path:
    """A copy of an example that does not call instrument()."""
    lines = (EXAMPLES / example).read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("otelperf.instrument(")]
    assert len(kept) == len(lines) - 1
    (folder / example).write_text("".join(kept))
    return folder


@pytest.mark.parametrize("how", ["by its line", "by otelperf run"])
def test_a_chat_service(
    how: str, llama: Process, collector: Process, prometheus: Process, tempo: Receiver, tmp_path: Path
) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    port = free_port()
    folder = EXAMPLES
    before: tuple[str, ...] = ()
    if how == "by otelperf run":
        folder = without_the_line("chat_service.py", tmp_path)
        before = (sys.executable, "-m", "otelperf", "run", "--service-name", "chat-service", "--")
    service = Process(
        "chat-service",
        [*before, sys.executable, "-m", "uvicorn", "--app-dir", folder, "--port", str(port), "chat_service:app"],
        f"http://127.0.0.1:{port}",
        tmp_path / "service.log",
        f"http://127.0.0.1:{port}/openapi.json",
        environment(collector, OPENAI_BASE_URL=f"{llama.url}/v1", OPENAI_API_KEY="key", MODEL="tiny"),
    )
    tokens = 0
    with service:
        for number in range(12):
            status, body = ask(f"{service.url}/chat", {"text": SECRET, "max_tokens": 1 + number})
            assert status == 200
            tokens += json.loads(body)["tokens"]
        for _ in range(5):
            assert ask(f"{service.url}/chat/stream", {"text": SECRET, "max_tokens": 8})[0] == 200
        with urllib.request.urlopen(f"{llama.url}/metrics", timeout=30) as page:
            lines = dict(line.split() for line in page.read().decode().splitlines() if not line.startswith("#"))
        generated = float(lines["llamacpp:tokens_predicted_total"])
        assert generated > tokens
        assert ask(f"{service.url}/chat/stream", {"text": SECRET, "max_tokens": 900}, leave=True)[0] == 200
        assert ask(f"{service.url}/chat", {"text": 1})[0] == 422
        log = service.log_path
        wait_until(lambda: len(log.read_text().splitlines()) >= 20, 60, "the service has not ended its answers")
    assert "Traceback" not in log.read_text()

    job = "chat-service"
    requests = "http_server_request_duration_seconds_count"
    expect(prometheus, {"/openapi.json": 1, "/chat": 13, "/chat/stream": 6}, requests, job, "http_route")
    expect(prometheus, {"200": 19, "422": 1}, requests, job, "http_response_status_code")
    expect(prometheus, {"chat": 18}, "gen_ai_client_operation_duration_seconds_count", job, "gen_ai_operation_name")
    expect(
        prometheus,
        {"chat": 6},
        "gen_ai_client_operation_time_to_first_chunk_seconds_count",
        job,
        "gen_ai_operation_name",
    )
    # The usage of a stream that its reader left is never told.
    usage = stored(prometheus, "gen_ai_client_token_usage_sum", job, "gen_ai_token_type")
    assert usage["output"] == generated
    expect(prometheus, {"POST": 18}, "http_client_request_duration_seconds_count", job, "http_request_method")
    wait_until(lambda: rebuilt(tempo)["POST /chat"] == 13, 60, f"the spans stand for {rebuilt(tempo)}")
    assert rebuilt(tempo) == {"POST /chat": 13, "POST /chat/stream": 6, "GET /openapi.json": 1}
    assert SECRET not in repr(tempo.spans())


def test_a_flask_service_under_gunicorn(
    collector: Process, prometheus: Process, tempo: Receiver, tmp_path: Path
) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [
        *(sys.executable, "-m", "gunicorn", "--preload", "-w", "3", "--chdir", EXAMPLES, "-b", f"127.0.0.1:{port}"),
        "flask_service:app",
    ]
    service = Process(
        "flask-service",
        command,
        url,
        tmp_path / "service.log",
        f"{url}/squares/0",
        environment(collector, UPSTREAM_URL=f"{prometheus.url}/-/ready"),
    )
    with service:
        assert [ask(f"{url}/squares/{number}")[0] for number in range(30)] == [200] * 30
        assert [ask(f"{url}/countdown/3")[1] for _ in range(5)] == [b"3\n2\n1\n"] * 5
        assert [ask(f"{url}/busy")[0] for _ in range(4)] == [503] * 4
        assert [json.loads(ask(f"{url}/upstream?{SECRET}")[1]) for _ in range(3)] == [{"status": 200}] * 3
    job = "flask-service"
    counts = {"/squares/<int:number>": 31, "/countdown/<int:start>": 5, "/busy": 4, "/upstream": 3}
    expect(prometheus, dict(counts), "http_server_request_duration_seconds_count", job, "http_route")
    expect(prometheus, {"": 39, "503": 4}, "http_server_request_duration_seconds_count", job, "error_type")
    expect(prometheus, {"200": 3}, "http_client_request_duration_seconds_count", job, "http_response_status_code")
    calls = {f"GET {route}": count for route, count in counts.items()}
    wait_until(lambda: sum(rebuilt(tempo).values()) == 43, 60, f"the spans stand for {rebuilt(tempo)}")
    assert rebuilt(tempo) == calls
    assert SECRET not in repr(tempo.spans())
    # The one that forks, and the three workers.
    assert len(stored(prometheus, "process_memory_usage_bytes", job, "instance")) == 4


def test_a_batch_of_workers(collector: Process, prometheus: Process, tempo: Receiver, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "batch_workers.py", "120"],
        env=environment(collector),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    counted = json.loads(done.stdout)
    assert counted["documents"] == 120
    calls = "gen_ai_client_operation_duration_seconds_count"
    expect(prometheus, {"": 120 - counted["failed"], "TimeoutError": counted["failed"]}, calls, "batch", "error_type")
    first = "gen_ai_client_operation_time_to_first_chunk_seconds_count"
    expect(prometheus, {"tiny-summary": 120}, first, "batch", "gen_ai_request_model")
    usage = stored(prometheus, "gen_ai_client_token_usage_sum", "batch", "gen_ai_token_type")
    assert usage["output"] == counted["tokens"]
    expect(prometheus, {"summaries": 120}, "otelperf_worker_tasks_total", "batch", "otelperf_worker_id")
    expect(prometheus, {"TimeoutError": counted["failed"]}, "otelperf_worker_errors_total", "batch", "error_type")
    expect(prometheus, {"": 120}, "otelperf_cache_queries_total", "batch", "none")
    expect(prometheus, {"": 120 - counted["failed"]}, "otelperf_quality_score_count", "batch", "none")
    wait_until(lambda: sum(rebuilt(tempo).values()) >= 120, 60, f"the spans stand for {rebuilt(tempo)}")
    failures = [span.attributes for span in tempo.spans() if "error.type" in span.attributes]
    assert sum(each.get("otelperf.gate.represented", 0) for each in failures) == counted["failed"]
    assert rebuilt(tempo)["chat tiny-summary"] == 120

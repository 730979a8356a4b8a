"""``instrument()`` as a guest of real processes: forks, pools, servers, gevent, bad ends, and a Collector that is not there."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stack import processes
from stack.processes import Process, free_port, wait_until
from tests.receiver import Receiver

pytestmark = pytest.mark.end_to_end

CALLS = "gen_ai.client.operation.duration"
# What every program here does: a call is a span and a duration.
WORK = """
import os, sys, time, threading
import otelperf
from otelperf import telemetry
def work(n=1):
    for _ in range(n):
        with telemetry.tracer().start_as_current_span("chat m"):
            telemetry.record("gen_ai.client.operation.duration", 0.1, {"gen_ai.operation.name": "chat"})
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


def environment(url: str, folder: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_SERVICE_NAME": "chat",
        "OTELPERF_EXPORT_SHUTDOWN_TIMEOUT": "30s",  # what is sent last is counted here, on a busy machine too
        "PYTHONPATH": str(folder),
        **more,
    }


def run(
    code: str, url: str, folder: Path, *arguments: str, before: Sequence[str] = (), timeout: float = 180, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of WORK and *code*, with every warning an error."""
    script = folder / "program.py"
    script.write_text(WORK + code)
    return subprocess.run(
        [*before, sys.executable, "-W", "error", str(script), *arguments],
        env=environment(url, folder, **more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def clean(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout


def counted(receiver: Receiver) -> list[int]:
    """Return what each process has counted, least first."""
    return sorted(int(value) for value in receiver.last(CALLS).values())


def represented(receiver: Receiver) -> int:
    spans = receiver.spans()
    assert len({span.span.span_id for span in spans}) == len(spans), "a span was sent twice"
    return sum(span.attributes["otelperf.gate.represented"] for span in spans)


def test_each_forked_child_counts_for_itself(receiver: Receiver, tmp_path: Path) -> None:
    code = """
otelperf.instrument(libraries="none")
work(10)
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        work(5)
        sys.exit(0)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
work(1)
with telemetry.tracer().start_as_current_span("open"):
    child = os.fork()
    if not child:
        sys.exit(0)
    os.waitpid(child, 0)
"""
    assert clean(run(code, receiver.url, tmp_path)) == "[0, 0, 0]\n"
    assert counted(receiver) == [5, 5, 5, 11]
    assert represented(receiver) == 26 + 1  # the call that was open in both is sent once
    ended = {point.resource["service.instance.id"] for point in receiver.points(CALLS) if point.gone}
    assert len(ended) == 4


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_are_counted_to_the_last_call(
    method: str, receiver: Receiver, tmp_path: Path
) -> None:
    code = """
import multiprocessing
if __name__ == "__main__" or sys.argv[1] != "fork":
    otelperf.instrument(libraries="none")
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    work(2)
    children = [context.Process(target=work, args=(3,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    print([child.exitcode for child in children])
    with context.Pool(2) as pool:
        pool.map(work, [1] * 8)
        pool.close()
        pool.join()
"""
    assert clean(run(code, receiver.url, tmp_path, method)) == "[0, 0]\n"
    assert sum(counted(receiver)) == 2 + 2 * 3 + 8
    assert represented(receiver) == 16


def test_no_child_of_a_busy_program_hangs(receiver: Receiver, tmp_path: Path) -> None:
    code = """
otelperf.instrument(libraries="none")
stop = False
def spin():
    while not stop:
        work(20)
        time.sleep(0.001)
threads = [threading.Thread(target=spin) for _ in range(4)]
for thread in threads:
    thread.start()
children = set()
for i in range(60):
    child = os.fork()
    if not child:
        work(1)
        os._exit(0)
    children.add(child)
until = time.monotonic() + 90
while children and time.monotonic() < until:
    child, status = os.waitpid(-1, os.WNOHANG)
    children.discard(child)
    time.sleep(0 if child else 0.05)
stop = True
print("hanging", len(children))
for child in children:
    os.kill(child, 9)
"""
    assert clean(run(code, receiver.url, tmp_path)) == "hanging 0\n"


@pytest.mark.parametrize("when", ["before", "after"])
def test_gevent_may_patch_before_or_after_and_fork(when: str, receiver: Receiver, tmp_path: Path) -> None:
    pytest.importorskip("gevent")
    code = """
def patch():
    from gevent import monkey
    monkey.patch_all()
otelperf.instrument(libraries="none") if sys.argv[1] == "after" else None
work(1)
time.sleep(3 if sys.argv[1] == "after" else 0)
patch()
otelperf.instrument(libraries="none")
import gevent
def green():
    for _ in range(5):
        work(1)
        gevent.sleep(0.02)
gevent.joinall([gevent.spawn(green) for _ in range(3)])
child = os.fork()
if not child:
    work(4)
    sys.exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert clean(run(code, receiver.url, tmp_path, when)) == "0\n"
    before = {"before": 0, "after": 1}[when]  # what came before instrument() is nobody's
    assert represented(receiver) == before + 15 + 4
    assert counted(receiver) == [4, 15]  # patching begins the count anew


def test_asyncio_and_threads(receiver: Receiver, tmp_path: Path) -> None:
    code = """
import asyncio
async def main():
    async def one():
        work(1)
        await asyncio.sleep(0.01)
        work(1)
    asyncio.get_running_loop().slow_callback_duration = 60  # or a busy machine is told of as well
    await asyncio.gather(*(one() for _ in range(50)), *(asyncio.to_thread(work, 5) for _ in range(10)))
with otelperf.instrument(libraries="none"):
    asyncio.run(main(), debug=True)
"""
    clean(run(code, receiver.url, tmp_path))
    assert counted(receiver) == [150]
    assert represented(receiver) == 150


def test_starting_and_stopping_a_hundred_times_leaves_nothing(receiver: Receiver, tmp_path: Path) -> None:
    code = """
import atexit, gc
def left():
    gc.collect()
    with open("/proc/self/statm") as statm:
        rss = int(statm.read().split()[1]) * 4096
    return threading.active_count(), len(os.listdir("/proc/self/fd")), atexit._ncallbacks(), len(sys.meta_path), rss
def once():
    with otelperf.instrument(libraries="none") as handle:
        assert handle.enabled
        work(2)
for _ in range(5):
    once()
*before, rss = left()
for _ in range(100):
    once()
*after, rss_after = left()
print(before == after, (rss_after - rss) // 2**20 <= 4)
"""
    assert clean(run(code, receiver.url, tmp_path)) == "True True\n"
    assert represented(receiver) == 210


def listening_to_nobody() -> socket.socket:
    """Return a server that takes connections and never answers."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(16)
    return server


@pytest.mark.parametrize(("kind", "budget", "within"), [("refused", "30s", 10), ("silent", "1s", 8)])
def test_a_program_ends_in_time_without_a_collector(kind: str, budget: str, within: float, tmp_path: Path) -> None:
    """Where it is refused, long before its time is over; where it is not answered, when it is: a request may take 10 s."""
    with listening_to_nobody() as server:
        port = server.getsockname()[1] if kind == "silent" else free_port()
        code = """
handle = otelperf.instrument(libraries="none")
work(100)
time.sleep(1.2)
began = time.monotonic()
handle.shutdown()
print(time.monotonic() - began)
"""
        done = run(code, f"http://127.0.0.1:{port}", tmp_path, OTELPERF_EXPORT_SHUTDOWN_TIMEOUT=budget)
    assert done.returncode == 0
    assert float(done.stdout) <= within


def test_exceptions_and_signals_stay_the_programs_own(receiver: Receiver, tmp_path: Path) -> None:
    begin = "otelperf.instrument(libraries='none')\nwork(1)\n"
    raised = run(begin + "raise KeyError('theirs')", receiver.url, tmp_path)
    assert (raised.returncode, raised.stderr.splitlines()[-1]) == (1, "KeyError: 'theirs'")
    left = run(begin + "sys.exit(7)", receiver.url, tmp_path)
    assert clean(left, 7) == ""
    assert counted(receiver) == [1, 1]
    killed = run(begin + "os.kill(os.getpid(), 15)", receiver.url, tmp_path)
    assert clean(killed, -signal.SIGTERM) == ""
    gone = run(begin + "os._exit(3)", receiver.url, tmp_path)
    assert clean(gone, 3) == ""
    handlers = "import signal\nbefore = signal.getsignal(15), signal.getsignal(2)\n"
    same = run(
        handlers + begin + "print(before == (signal.getsignal(15), signal.getsignal(2)))", receiver.url, tmp_path
    )
    assert clean(same) == "True\n"


def test_in_a_subinterpreter_it_is_told_that_it_cannot(receiver: Receiver, tmp_path: Path) -> None:
    code = """
import _xxsubinterpreters as interpreters
other = interpreters.create()
interpreters.run_string(other, "import otelperf; print(otelperf.instrument(libraries='none').enabled)")
interpreters.destroy(other)
work(1)
"""
    done = run(code, receiver.url, tmp_path)
    assert (done.returncode, done.stdout) == (0, "False\n")
    assert done.stderr.startswith("otelperf: not started problem=")


# ── otelperf run ─────────────────────────────────────────────────────────────────────────────────────────────────────

OTELPERF_RUN = [sys.executable, "-m", "otelperf", "run", "--metrics-exporter", "otlp", "--"]


def test_run_measures_a_program_and_the_pythons_that_it_starts(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    code = """
import subprocess
print(sys.argv[1:])
work(2)
if len(sys.argv) < 3:
    subprocess.run([sys.executable, __file__, "--", "child"])
sys.exit(7)
"""
    done = run(code, receiver.url, tmp_path, "--", before=OTELPERF_RUN)
    # Once for `otelperf run` itself, which is a Python too; then for the program and its child.
    assert clean(done, 7) == "theirs\ntheirs\n['--']\ntheirs\n['--', 'child']\n"
    assert counted(receiver) == [2, 2]
    assert {point.resource["service.name"] for point in receiver.points()} == {"chat"}


def test_run_tells_wrong_settings_itself_and_exits_as_a_shell_would(tmp_path: Path) -> None:
    def told(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "otelperf", "run", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    code, message = told("--gate-heartbeat", "often", "--", "true")
    assert (code, message.partition(": expected")[0]) == (2, "otelperf: gate.heartbeat is 'often' (--gate-heartbeat)")
    none = tmp_path / "none"
    assert told("--", str(none)) == (127, f"otelperf: {none} cannot be started: No such file or directory\n")
    assert told("--", str(tmp_path)) == (126, f"otelperf: {tmp_path} cannot be started: Permission denied\n")
    assert told()[0] == 2


SERVICE = """
import os
from otelperf import telemetry
def app(environ, start_response):
    telemetry.record("gen_ai.client.operation.duration", 0.1)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
async def asgi(scope, receive, send):
    if scope["type"] == "http":
        telemetry.record("gen_ai.client.operation.duration", 0.1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})
    while scope["type"] == "lifespan":
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
"""


def serve(command: list[str], port: int, receiver: Receiver, folder: Path, *, workers: int = 1) -> tuple[int, int]:
    """Start a web server, ask it until each worker has answered, end it by SIGTERM; return its exit code and how many answered."""
    url = f"http://127.0.0.1:{port}"
    (folder / "service.py").write_text(SERVICE)
    with subprocess.Popen(command, cwd=folder, env=environment(receiver.url, folder)) as server:
        answers: list[bytes] = []

        def ask() -> bool:
            try:
                with urllib.request.urlopen(url, timeout=30) as answer:
                    answers.append(answer.read())
            except OSError:  # not listening yet
                return False
            return len(answers) >= 20 and len(set(answers)) >= workers

        try:
            # A worker of gunicorn that is still starting would not hear the signal.
            wait_until(ask, 60, "the web server, or one of its workers, does not answer")
            server.terminate()
            return server.wait(60), len(answers)
        finally:
            server.kill()


@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_gunicorn_with_preload(worker: str, receiver: Receiver, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    port = free_port()
    (tmp_path / "preloaded.py").write_text(
        "import otelperf\notelperf.instrument(libraries='none')\nfrom service import app\n"
    )
    command = [
        *(sys.executable, "-m", "gunicorn", "--preload", "-w", "3", "-k", worker, "-b", f"127.0.0.1:{port}"),
        *("--log-level", "error", "preloaded:app"),
    ]
    code, answers = serve(command, port, receiver, tmp_path, workers=3)
    assert (code, sum(counted(receiver))) == (0, answers)
    ended = {point.resource["service.instance.id"] for point in receiver.points("process.memory.usage") if point.gone}
    assert len(ended) == 4


def test_uvicorn_under_run_tells_its_last_second_though_it_dies_of_the_signal(
    receiver: Receiver, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn")
    port = free_port()
    command = [
        *OTELPERF_RUN,
        *(sys.executable, "-m", "uvicorn", "service:asgi", "--port", str(port), "--log-level", "error"),
    ]
    code, answers = serve(command, port, receiver, tmp_path)
    assert (code, counted(receiver)) == (-signal.SIGTERM, [answers])
    assert [point.gone for point in receiver.points(CALLS)][-1]


# ── The real Collector and Prometheus ────────────────────────────────────────────────────────────────────────────────


TRAFFIC = """
statuses = [200] * 90 + [404] * 6 + [503] * 2 + [504] * 2
with otelperf.instrument(libraries="none", gate_heartbeat="5s", gate_histogram_interval="1s", gate_linger=0):
    telemetry.add("http.server.active_requests", 3)
    until = time.monotonic() + 14
    while time.monotonic() < until:
        for i, status in enumerate(statuses):
            error = {"error.type": str(status)} if status >= 500 else {}
            telemetry.record("http.server.request.duration", 0.2, {
                "http.request.method": "POST", "http.route": "/chat", "http.response.status_code": status, **error,
            })
            failed = {"error.type": "APITimeoutError"} if i == 0 else {}
            telemetry.record("gen_ai.client.operation.duration", 0.5, {"gen_ai.request.model": "m", **failed})
        time.sleep(0.5)
    print("done", flush=True)
    sys.stdin.readline()
"""


def queries() -> dict[str, str]:
    """Return the queries of docs/instrument.md by what they tell."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "instrument.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| `(.+)` \|$", page.partition("in PromQL")[2], re.MULTILINE)
    return {what.partition(":")[0]: query.replace("\\|", "|") for what, query in rows}


def test_the_queries_of_the_page_tell_what_a_program_did(
    collector: Process, prometheus: Process, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(WORK + TRAFFIC)
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment(collector.url, tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout
        assert program.stdout.readline() == "done\n"

        def told(query: str) -> list[float]:
            return [float(row["value"][1]) for row in processes.query(prometheus.url, query)]

        answers = {what: told(query) for what, query in queries().items()}
        assert {what for what, values in answers.items() if len(values) != 1} == set()
        for what, expected in (
            ("completion rate", 0.96),
            ("share of 4xx", 0.06),
            ("share of 5xx", 0.04),
            ("share of timeouts", 0.02),
        ):
            assert answers[what] == [pytest.approx(expected, abs=0.01)], what
        assert answers["concurrency"] == [3]
        assert 0.1 < answers["latency p50"][0] <= 0.25  # the bucket that 0.2 s falls into
        assert 0.32 < answers["model calls p95"][0] <= 0.64
        program.communicate("\n", timeout=60)
        assert program.returncode == 0
    wait_until(
        lambda: told('{job="chat", __name__!="target_info"}') == [], 60, "the series did not end with the program"
    )


# ── Providers that the program has set ───────────────────────────────────────────────────────────────────────────────

PROVIDERS = """
import json
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
theirs = Resource({"service.name": "theirs"})
if sys.argv[1] != "none":
    metrics.set_meter_provider(MeterProvider([reader] if sys.argv[1] == "read" else [], theirs))
    trace.set_tracer_provider(TracerProvider(resource=theirs))
if sys.argv[1] == "read":
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))
orders = metrics.get_meter("shop").create_counter("orders")
with otelperf.instrument(libraries="none", set_global=sys.argv[1] == "none"):
    orders.add(1)
    with trace.get_tracer("shop").start_as_current_span("order"):
        work(1)
data = reader.get_metrics_data() if sys.argv[1] == "read" else None
read = [m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
print(json.dumps([read, [span.name for span in spans.get_finished_spans()]]))
"""


@pytest.mark.parametrize(
    ("which", "read", "service", "orders", "calls", "sent"),
    [
        # Its own readers and processors: it sends its orders and all spans, we send our calls under its name.
        ("read", [["orders"], ["chat m", "order"]], "theirs", 0, 1, []),
        ("unread", [[], []], "theirs", 1, 1, ["chat m", "order"]),
        ("none", [[], []], "chat", 1, 1, ["chat m", "order"]),
    ],
)
def test_providers_of_the_programs_own(
    which: str,
    read: list[list[str]],
    service: str,
    orders: int,
    calls: int,
    sent: list[str],
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    assert json.loads(clean(run(PROVIDERS, receiver.url, tmp_path, which))) == read
    assert sum(receiver.last("orders").values()) == orders
    assert counted(receiver) == [calls]
    assert {point.resource["service.name"] for point in receiver.points()} == {service}
    assert sorted(span.name for span in receiver.spans()) == sent

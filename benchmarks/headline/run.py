"""One run: vLLM under the trace, three ways beside it, a kill of the agent, a restart of the Collector; all answers, live."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks import traffic
from benchmarks.headline.public import Alert, Board
from stack import processes

DENSE, SCRAPE, OTELPERF = "1 s scrape", "15 s scrape", "otelperf"
WAYS = (OTELPERF, DENSE, SCRAPE)  # ours is asked first: what arrives while others are asked must not count for it
SCRAPES = {DENSE: 1, SCRAPE: 15}  # s
STEP = 15  # s between two evaluations of the rules
WATCHED = 0.5  # s between two looks at the queue
ASKED = 5  # s between two looks at rates
QUEUE = "sum(vllm:num_requests_waiting)"
RATES = (
    "sum(rate(vllm:prompt_tokens_total[2m]))",
    "sum(rate(vllm:generation_tokens_total[2m]))",
    "sum(rate(vllm:request_success_total[2m]))",
    "sum(rate(vllm:prefix_cache_queries_total[2m]))",
    "sum(rate(vllm:prefix_cache_hits_total[2m]))",
)
QUANTILES = (
    "histogram_quantile(0.5, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket[2m])))",
    "histogram_quantile(0.95, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket[2m])))",
)
CLASSES = {
    "queue, running, cache use and other gauges": '{__name__=~"vllm:.*",__name__!~".*_(bucket|sum|count|total|created)"}',
    "counters": '{__name__=~"vllm:.*_total"}',
    "histograms": '{__name__=~"vllm:.*_(bucket|sum|count)"}',
    "start times (_created)": '{__name__=~"vllm:.*_created"}',
    "process, Python and HTTP server": '{__name__=~"(process|python|http)_.*"}',
    "the way's own": '{__name__=~"up|scrape_.*|otelperf_.*|target_info"}',
}

# vLLM takes as many requests at once: a tiny model would never let one wait.
TOGETHER = 8
FIRST_SECOND = 180  # of the trace: where its first busy minute begins
SPEED = 0.5  # of the trace's
SPIKE = (50, 60)  # tokens of each request of a spike
SPIKE_REQUESTS = (25, 60)  # always under way
SPIKE_SECONDS = (4.0, 30.0)
SPIKE_PAUSE = (8.0, 20.0)
SATURATION = (240.0, 600.0)  # s of the run
SATURATED = (50, 150)  # tokens of each request
SATURATED_AT_FIRST, SATURATED_AT_MOST = 75, 1200  # requests under way
SATURATED_WAIT = 45.0  # s: as many are added as make each last so long
DRAINED = 5  # waiting requests, below which spikes may begin again
AGENT_KILLED, AGENT_AWAY = 372.0, 3.0  # s: while alerts are pending; how long until it is started again
COLLECTOR_KILLED, COLLECTOR_AWAY = 760.0, 10.0
_TIMEOUT = 20.0
_APPENDED = re.compile(r"^prometheus_tsdb_head_samples_appended_total\S* (\S+)$", re.MULTILINE)


@dataclass
class Record:
    """Everything that was answered. Times in s since the beginning; by way, then by question."""

    seconds: float
    began: float = 0.0
    load: list[float] = field(default_factory=list)  # the machine's load average, each minute
    queue: dict[str, list[list[float | None]]] = field(default_factory=dict)
    rates: dict[str, dict[str, list[list[float | None]]]] = field(default_factory=dict)
    # by alert and labels, the evaluations at which it was active; and what it compares, by evaluation
    active: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)
    compared: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    by_class: dict[str, dict[str, int]] = field(default_factory=dict)
    series: dict[str, int] = field(default_factory=dict)
    boards: dict[str, dict[str, list[bool]]] = field(default_factory=dict)
    board_series: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    spikes: list[float] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    page: dict[str, float] = field(default_factory=dict)  # how long vLLM's page took the dense scrape, in s, by share
    errors: list[str] = field(default_factory=list)


class Ask:
    """Asks one Prometheus; a connection for each thread."""

    def __init__(self, url: str) -> None:
        self._host = urllib.parse.urlsplit(url).netloc
        self._threads = threading.local()

    def get(self, path: str) -> bytes:
        """Return what is at *path*; a connection that broke is made anew once."""
        for attempt in (1, 2):
            connection = getattr(self._threads, "connection", None)
            if connection is None:
                connection = self._threads.connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                body: bytes = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self._threads.connection = None
                if attempt == 2:
                    raise
                continue
            if answer.status != http.HTTPStatus.OK:
                msg = f"{urllib.parse.unquote_plus(path)} was answered {answer.status}: {body[:300]!r}"
                raise processes.ProcessError(msg)
            return body
        raise AssertionError  # the second attempt returns or raises

    def vector(self, promql: str, moment: float) -> dict[str, float]:
        """Return values by labels (those of the resource left out), as of *moment* (Unix s)."""
        parameters = urllib.parse.urlencode({"query": promql, "time": f"{moment:.3f}"})
        found = json.loads(self.get(f"/api/v1/query?{parameters}"))["data"]["result"]
        return {_labels(each["metric"]): float(each["value"][1]) for each in found}

    def number(self, promql: str, moment: float) -> float | None:
        """Return the one value, None where there is none (or NaN, as of a quantile without traffic)."""
        found = [value for value in self.vector(promql, moment).values() if value == value]
        return found[0] if found else None

    def stored(self, selector: str, moment: float) -> int:
        """Return how many samples a range holds; stale marks are not among them."""
        parameters = urllib.parse.urlencode({"query": selector, "time": f"{moment:.3f}"})
        found = json.loads(self.get(f"/api/v1/query?{parameters}"))["data"]["result"]
        return sum(len(each["values"]) for each in found)

    def samples(self) -> int:
        """Return the samples that the TSDB has appended since its start."""
        return round(sum(map(float, _APPENDED.findall(self.get("/metrics").decode()))))


def _labels(metric: Mapping[str, str]) -> str:
    own = {key: value for key, value in metric.items() if key not in {"job", "instance", "host_name"}}
    return json.dumps({key: value for key, value in own.items() if not key.startswith("otel_scope")}, sort_keys=True)


@contextmanager
def started(folder: Path) -> Iterator[tuple[processes.Process, dict[str, Ask], processes.Process, processes.Process]]:
    """Start vLLM, a Prometheus for each way, and the agent with its Collector; give vLLM, whom to ask, agent and Collector."""
    with ExitStack() as stack:
        server = stack.enter_context(processes.vllm(folder / "vllm", flags=["--max-num-seqs", str(TOGETHER)]))
        stores = {}
        for way in WAYS:
            stores[way] = processes.prometheus(folder / way.replace(" ", "-"))
            _only_scrape(folder / way.replace(" ", "-") / "prometheus.yaml", server.url, SCRAPES.get(way))
            stack.enter_context(stores[way])
        collector = stack.enter_context(processes.collector(stores[OTELPERF].url, folder / "collector"))
        agent = stack.enter_context(_agent(collector, server, folder))
        yield server, {way: Ask(store.url) for way, store in stores.items()}, agent, collector


def _only_scrape(config: Path, url: str, interval: int | None) -> None:
    """Leave only the scrape of vLLM: what a Prometheus scrapes of itself would be counted."""
    settings = yaml.safe_load(config.read_text())
    for section in ("scrape_configs", "rule_files", "alerting"):
        settings.pop(section, None)
    if interval is not None:
        target = {"targets": [urllib.parse.urlsplit(url).netloc]}
        settings["scrape_configs"] = [
            {
                "job_name": "vllm",
                "scrape_interval": f"{interval}s",
                "scrape_timeout": f"{interval}s",
                "static_configs": [target],
            }
        ]
    config.write_text(yaml.safe_dump(settings))


def _agent(collector: processes.Process, server: processes.Process, folder: Path) -> processes.Process:
    """Return the agent as the documentation tells who wants the server's own names; all else is as it ships."""
    port = processes.free_port()
    url = f"http://{processes.HOST}:{port}"
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTELPERF_SERVER_URL": server.url,
        "OTELPERF_SERVER_PASSTHROUGH": "vllm:*,up",
        "OTELPERF_SERVER_MAPPED": "false",
        "OTELPERF_HOST_ENABLED": "false",
        "OTELPERF_ENDPOINT_PORT": str(port),
    }
    command = [sys.executable, "-m", "otelperf", "agent"]
    return processes.Process("agent", command, url, folder / "agent.log", f"{url}/readyz", environment)


def run(folder: Path, seconds: float, alerts: Sequence[Alert], boards: Sequence[Board]) -> Record:
    """Run for so long and return what was answered."""
    record = Record(seconds)
    done = threading.Event()
    with started(folder) as (server, asked, agent, collector):
        # All three have something before it begins: none is scored for its start.
        ready = [lambda ask=ask: bool(ask.vector(QUEUE, time.time())) for ask in asked.values()]
        for way, has_begun in zip(asked, ready, strict=True):
            processes.wait_until(has_begun, 60, f"nothing of vLLM arrived by the way {way}")
        record.began = began = time.time()
        before = {way: ask.samples() for way, ask in asked.items()}
        client = traffic.Client(server.url, stream=False)
        jobs: list[Callable[[], None]] = [
            lambda: traffic.play(
                client, traffic.trace(FIRST_SECOND, FIRST_SECOND + seconds * SPEED, speed=SPEED), done
            ),
            lambda: _spikes(client, record, done),
            lambda: _saturate(client, record, done),
            lambda: _disturb(agent, collector, record, done),
            lambda: _watch(asked, record, done),
            lambda: _ask_rates(asked, record, done),
            lambda: _evaluate(asked, alerts, record, done),
            lambda: _look_at_load(record, done),
        ]
        threads = [threading.Thread(target=_guarded(job, record), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        # Not in a thread: a process dies with the thread that started it, and _disturb starts two again.
        done.wait(began + seconds - time.time())
        end = time.time()
        _guarded(lambda: _count(asked, before, end - began, end, record), record)()
        _guarded(lambda: _ask_pages(asked[DENSE], end - began, end, record), record)()
        _guarded(lambda: _ask_boards(asked, boards, end, record), record)()
        done.set()
        for thread in threads[4:]:
            thread.join(_TIMEOUT)
        record.requests = dict(client.counts.requests) | {f"error {k}": v for k, v in client.counts.errors.items()}
    return record


def _guarded(job: Callable[[], None], record: Record) -> Callable[[], None]:
    def guarded() -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 # told in the report
            record.errors.append(f"{type(error).__name__}: {error}")
            print(record.errors[-1], file=sys.stderr, flush=True)

    return guarded


def _at(record: Record, second: float, done: threading.Event) -> bool:
    """Wait until that second of the run; False where it is over before."""
    return not done.wait(max(0.0, record.began + second - time.time()))


def _spikes(client: traffic.Client, record: Record, done: threading.Event) -> None:
    """Keep many requests under way for a few seconds, at odd moments, outside of the saturation."""
    chance = random.Random(7)
    second = 20.0
    while second < record.seconds - 30 and _at(record, second, done):
        lasts = chance.uniform(*SPIKE_SECONDS)
        if SATURATION[0] - 40 < second < SATURATION[1] or not _drained(record):
            second = time.time() - record.began + 2
            continue
        record.spikes.append(time.time() - record.began)
        until = record.spikes[-1] + lasts
        for _ in range(chance.randint(*SPIKE_REQUESTS)):
            threading.Thread(target=_ask_until, args=(client, SPIKE, record, until, done), daemon=True).start()
        second = until + chance.uniform(*SPIKE_PAUSE)


def _drained(record: Record) -> bool:
    rows = record.queue.get(DENSE)
    return not rows or (rows[-1][1] or 0) < DRAINED


def _ask_until(
    client: traffic.Client, tokens: tuple[int, int], record: Record, until: float, done: threading.Event
) -> None:
    while time.time() - record.began < until and not done.is_set():
        client.complete(*tokens)


def _saturate(client: traffic.Client, record: Record, done: threading.Event) -> None:
    """Keep so many requests under way that each waits long: one that was soon answered is followed by two."""
    if not _at(record, SATURATION[0], done):
        return
    under_way = [0]

    def ask_again() -> None:
        under_way[0] += 1
        while time.time() - record.began < SATURATION[1] and not done.is_set():
            began = time.monotonic()
            client.complete(*SATURATED)
            if time.monotonic() - began < SATURATED_WAIT and under_way[0] < SATURATED_AT_MOST:
                threading.Thread(target=ask_again, daemon=True).start()

    for _ in range(SATURATED_AT_FIRST):
        threading.Thread(target=ask_again, daemon=True).start()


def _disturb(agent: processes.Process, collector: processes.Process, record: Record, done: threading.Event) -> None:
    for process, second, away in ((agent, AGENT_KILLED, AGENT_AWAY), (collector, COLLECTOR_KILLED, COLLECTOR_AWAY)):
        if not _at(record, second, done):
            return
        process.kill()
        record.events.append((time.time() - record.began, f"{process.name} killed"))
        time.sleep(away)
        process.start()
        record.events.append((time.time() - record.began, f"{process.name} back"))
    done.wait()  # they die with the thread that started them


def _watch(asked: Mapping[str, Ask], record: Record, done: threading.Event) -> None:
    second = 0.0
    while _at(record, second, done):
        for way, ask in asked.items():
            now = time.time()
            record.queue.setdefault(way, []).append([now - record.began, ask.number(QUEUE, now)])
        second = max(second + WATCHED, time.time() - record.began)


def _ask_rates(asked: Mapping[str, Ask], record: Record, done: threading.Event) -> None:
    second = 120.0 + ASKED / 2
    while _at(record, second, done):
        for promql in (*RATES, *QUANTILES):
            for way, ask in asked.items():
                found = ask.number(promql, record.began + second)
                record.rates.setdefault(way, {}).setdefault(promql, []).append([second, found])
        second += ASKED


def _evaluate(asked: Mapping[str, Ask], alerts: Sequence[Alert], record: Record, done: threading.Event) -> None:
    """Ask every rule as it stands, and what it compares, each 15 s, as Prometheus does: as of now."""
    number = 0
    while _at(record, number * STEP, done):
        for way, ask in asked.items():
            for alert in alerts:
                moment = record.began + number * STEP
                active = record.active.setdefault(way, {}).setdefault(alert.name, {})
                for labels in ask.vector(alert.expr, moment):
                    active.setdefault(labels, []).append(number)
                if alert.threshold is not None:
                    values = record.compared.setdefault(way, {}).setdefault(alert.name, {})
                    for labels, value in ask.vector(alert.threshold[0], moment).items():
                        values.setdefault(labels, {})[str(number)] = value
        number += 1


def _look_at_load(record: Record, done: threading.Event) -> None:
    while not done.is_set():
        record.load.append(os.getloadavg()[0])
        done.wait(60)


def _count(asked: Mapping[str, Ask], before: Mapping[str, int], length: float, end: float, record: Record) -> None:
    for way, ask in asked.items():
        record.samples[way] = ask.samples() - before[way]
        record.series[way] = round(ask.number('count({__name__!=""})', end) or 0)
        record.by_class[way] = {
            name: ask.stored(f"{selector}[{length:.0f}s]", end) for name, selector in CLASSES.items()
        }


def _ask_pages(dense: Ask, length: float, end: float, record: Record) -> None:
    for share in ("0.5", "0.99"):
        found = dense.number(f"quantile_over_time({share}, scrape_duration_seconds[{length:.0f}s])", end)
        if found is not None:
            record.page[share] = found


def _ask_boards(asked: Mapping[str, Ask], boards: Sequence[Board], end: float, record: Record) -> None:
    """Ask each query of each board: does it answer, and with how many series?"""
    for way, ask in asked.items():
        for board in boards:
            found = [
                len([value for value in ask.vector(query, end).values() if value == value]) for query in board.queries
            ]
            record.boards.setdefault(way, {})[board.of] = [count > 0 for count in found]
            record.board_series.setdefault(way, {})[board.of] = found

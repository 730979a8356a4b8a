"""The real way: OTLP into our Collector, Prometheus behind it, and PromQL asked at simulated moments.

Simulated time runs as fast as the two keep up. Before each instant everything posted so far has been stored, and the query
carries the instant as its time: it sees what had arrived by then, and nothing else.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from opentelemetry.sdk.metrics.export import MetricsData

from benchmarks.fidelity import alerting
from benchmarks.fidelity.alerting import Episode, Labels
from benchmarks.fidelity.answers import LATER, STEP, Answers, instants, questions
from benchmarks.fidelity.inputs import Input
from benchmarks.fidelity.promql import SHARES, VALUE, WINDOW, WINDOWS
from benchmarks.fidelity.ways import MS, body
from stack import processes

_TIMEOUT = 30.0
_POLL = 0.002
_SAMPLES = re.compile(r"^prometheus_tsdb_head_samples_appended_total\S* (\S+)$", re.MULTILINE)
_SENT = re.compile(r"^otelcol_exporter_sent_metric_points\S* (\S+)$", re.MULTILINE)
_FAILED = re.compile(r"^otelcol_exporter_(?:send|enqueue)_failed_metric_points\S* (\S+)$", re.MULTILINE)

_NOT_ITS_OWN = re.compile(r"job|instance|otel_scope_.*")  # labels that every series of an input shares


class Vector(NamedTuple):
    """A series of an answer: its labels but those of its resource, and value by time (ms)."""

    labels: Labels
    values: Mapping[int, float]


class Stack:
    """A Collector and a Prometheus, empty."""

    def __init__(self, collector: processes.Process, prometheus: processes.Process) -> None:
        self._collector = _Connection(collector.url)
        self._telemetry = _Connection(f"http://{processes.HOST}:{collector.ports['telemetry']}")
        self._prometheus = _Connection(prometheus.url)
        self._log = collector.log_path
        self._posted = 0

    def post(self, body: bytes, points: int) -> None:
        """Post one request as the agent does."""
        self._collector.ask("POST", "/v1/metrics", body, {"Content-Type": "application/x-protobuf"})
        self._posted += points

    def settle(self) -> None:
        """Wait until Prometheus has answered for everything posted: then it can be queried."""
        deadline = time.monotonic() + _TIMEOUT
        while True:
            page = self._telemetry.ask("GET", "/metrics").decode()
            if failed := _sum(_FAILED, page):
                msg = f"Prometheus refused {failed:.0f} points: see {self._log}"
                raise processes.ProcessError(msg)
            if (sent := _sum(_SENT, page)) >= self._posted:
                return
            if time.monotonic() > deadline:
                msg = f"{sent:.0f} of {self._posted} points were stored within {_TIMEOUT:g} s: see {self._log}"
                raise processes.ProcessError(msg)
            time.sleep(_POLL)

    def samples(self) -> int:
        """Return the samples that the TSDB has appended."""
        return int(_sum(_SAMPLES, self._prometheus.ask("GET", "/metrics").decode()))

    def at(self, promql: str, instant: int) -> list[Vector]:
        """Ask at an instant (Unix ms)."""
        found = self._ask("query", {"query": promql, "time": f"{instant / 1000:.3f}"})
        return [Vector(_labels(each["metric"]), _values([each["value"]])) for each in found]

    def over(self, promql: str, first: int, last: int, step: int) -> list[Vector]:
        """Ask at each step from *first* to *last* (Unix ms)."""
        limits = {"start": f"{first / 1000:.3f}", "end": f"{last / 1000:.3f}", "step": f"{step / 1000:g}"}
        return [
            Vector(_labels(each["metric"]), _values(each["values"]))
            for each in self._ask("query_range", {"query": promql, **limits})
        ]

    def _ask(self, path: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        answer = self._prometheus.ask("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        found: list[dict[str, Any]] = json.loads(answer)["data"]["result"]
        return found


class _Connection:
    """A connection that stays open: thousands of questions are asked."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=_TIMEOUT)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
        self._connection.request(method, path, body, dict(headers or {}))
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != http.HTTPStatus.OK:
            msg = f"{method} {urllib.parse.unquote_plus(path)} was answered {answer.status}: {content[:500]!r}"
            raise processes.ProcessError(msg)
        return content


@contextmanager
def fresh(folder: Path) -> Iterator[Stack]:
    """Start the shipped Collector and Prometheus; the latter without what it scrapes of itself, which would be counted."""
    prometheus = processes.prometheus(folder / "prometheus")
    config = folder / "prometheus" / "prometheus.yaml"
    settings = yaml.safe_load(config.read_text())
    for section in ("scrape_configs", "rule_files", "alerting"):
        settings.pop(section, None)
    config.write_text(yaml.safe_dump(settings))
    with prometheus, processes.collector(prometheus.url, folder / "collector") as collector:
        yield Stack(collector, prometheus)


def _sum(pattern: re.Pattern[str], page: str) -> float:
    return sum(map(float, pattern.findall(page)))


def _labels(found: Mapping[str, str]) -> Labels:
    return frozenset((name, value) for name, value in found.items() if not _NOT_ITS_OWN.fullmatch(name))


def _values(found: Sequence[tuple[float, str]]) -> dict[int, float]:
    values = {round(moment * 1000): float(value) for moment, value in found}
    return {moment: value for moment, value in values.items() if not math.isnan(value)}


Requests = Sequence[tuple[int, MetricsData]]
Firings = dict[str, list[Episode]]


def play(stack: Stack, recording: Input, requests: Requests, start: int, *, live: bool) -> tuple[Answers, Firings, int]:
    """Post a way's requests and ask everything; return the answers, what fired, and the bytes posted. *start* is Unix ns.

    Live, each instant is asked as soon as what was sent by then has arrived. What is never late (a scrape is sent whole,
    at its own time) may as well be asked when all is there.
    """
    asking = _Asking(stack, recording, start // MS)
    sent, posted = 0, 0
    for instant in asking.answers.instants if live else ():
        while sent < len(requests) and requests[sent][0] * 1000 <= instant:
            posted += _post(stack, requests[sent][1])
            sent += 1
        stack.settle()
        asking.at(instant)
    for _, data in requests[sent:]:
        posted += _post(stack, data)
    stack.settle()
    asking.afterwards(live=live)
    return asking.answers, asking.firings(), posted


def _post(stack: Stack, data: MetricsData) -> int:
    encoded = body(data)
    scopes = (scope for resource in data.resource_metrics for scope in resource.scope_metrics)
    stack.post(encoded, sum(len(metric.data.data_points) for scope in scopes for metric in scope.metrics))
    return len(encoded)


class _Asking:
    """Asks a Prometheus every question of an input."""

    def __init__(self, stack: Stack, recording: Input, start: int) -> None:
        self._stack = stack
        self._start = start
        self._alerts = alerting.alerts(recording.name)
        self._active: dict[str, dict[Labels, list[int]]] = {alert.name: {} for alert in self._alerts}
        self.answers = Answers(instants(recording))
        self._queries: list[tuple[str, str, dict[Labels, int]]] = []
        wanted: dict[tuple[str, str], dict[Labels, int]] = {}
        for number, question in questions(recording):
            series = recording.series[number]
            name = series.prometheus_name
            labels = series.labels | {("__name__", name)} if question == VALUE else series.labels
            of = "" if question == VALUE else name
            wanted.setdefault((question, of), {})[labels] = number
            self.answers.by_series[number, question] = []
        for (question, name), series_of in wanted.items():
            names = sorted({dict(labels)["__name__"] for labels in series_of}) if question == VALUE else [name]
            self._queries.append((question, _promql(question, names, recording.name), series_of))

    def at(self, instant: int) -> None:
        """Ask everything now, as of the instant (ms since the start)."""
        moment = self._start + instant
        for question, promql, series_of in self._queries:
            found = {vector.labels: vector.values.get(moment) for vector in self._stack.at(promql, moment)}
            for labels, number in series_of.items():
                self.answers.by_series[number, question].append(found.get(labels))
        place = self.answers.instants.index(instant)
        if place * STEP % alerting.STEP == 0:
            for alert in self._alerts:
                for vector in self._stack.at(alert.expr, moment):
                    self._active[alert.name].setdefault(vector.labels, []).append(place * STEP // alerting.STEP)

    def afterwards(self, *, live: bool) -> None:
        """Ask what the instants show now that all is there; when asked *live*, only the values, as the later truth."""
        moments = [self._start + instant for instant in self.answers.instants]
        for question, promql, series_of in self._queries:
            if live and question != VALUE:
                continue
            found = {
                vector.labels: vector.values
                for vector in self._stack.over(promql, moments[0], moments[-1], STEP * 1000)
            }
            for labels, number in series_of.items():
                values = [found.get(labels, {}).get(moment) for moment in moments]
                if not live:
                    self.answers.by_series[number, question] = values
                if question == VALUE:
                    self.answers.by_series[number, LATER] = list(values)
        for alert in () if live else self._alerts:
            for vector in self._stack.over(alert.expr, moments[0], moments[-1], alerting.STEP * 1000):
                self._active[alert.name][vector.labels] = [
                    (moment - moments[0]) // (alerting.STEP * 1000) for moment in vector.values
                ]

    def firings(self) -> Firings:
        """Return what fired, by alert."""
        return {alert.name: alerting.episodes(self._active[alert.name], alert.seconds) for alert in self._alerts}


def _promql(question: str, names: Sequence[str], job: str) -> str:
    if question == VALUE:
        return f'{{__name__=~"{"|".join(names)}",job="{job}"}}'
    (name,) = names
    if question in WINDOWS:
        return f'rate({name}{{job="{job}"}}[{WINDOWS[question]}s])'
    return f'histogram_quantile({SHARES[question]}, rate({name}_bucket{{job="{job}"}}[{WINDOW // 1000}s]))'

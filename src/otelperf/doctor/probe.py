"""The test series: how they are made, sent one request at a time, and ended."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otelperf import __version__
from otelperf.doctor.asking import TIMEOUT
from otelperf.export import Transport, Verdict
from otelperf.gate.marks import encode, mark

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

RUN_LABEL = "otelperf_doctor_run"  # without dots, so that every translation leaves it as it is
COUNTER = "otelperf.doctor.counter"
COUNTER_UNIT = "By"
OLDER = 60.0  # s; further back than any previous point that the gate sends
BURST_TIME = 5.0

_PREFIX = "otelperf.doctor."
_BURST = 50


class Probe:
    """The test series of one run: makes their requests, and remembers each so that it can be ended."""

    def __init__(self, resource: Resource) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.latest: dict[str, Metric] = {}
        self.resource = resource
        self._attributes = {RUN_LABEL: self.run}
        self._time = 0
        self._start = self.now()

    def now(self) -> int:
        """Return Unix ns that rise by a millisecond at least, Prometheus' resolution."""
        self._time = max(time.time_ns() // 1_000_000, self._time + 1)
        return self._time * 1_000_000

    @property
    def horizon(self) -> float:
        """Unix seconds just after the newest point."""
        return max(time.time(), self._time / 1000 + 0.001)

    def gauge(self, name: str, *samples: tuple[int, float]) -> Metric:
        """Return samples (Unix ns, value) of the gauge *name*."""
        points = [NumberDataPoint(self._attributes, 0, when, value) for when, value in samples]
        return Metric(_PREFIX + name, "", "", Gauge(points))

    def one_of_each(self) -> tuple[Metric, ...]:
        """Return a point of each kind that the agent sends."""
        now, cumulative = self.now(), AggregationTemporality.CUMULATIVE
        counter = NumberDataPoint(self._attributes, self._start, now, 7)
        histogram = HistogramDataPoint(self._attributes, self._start, now, 3, 3.0, (1, 1, 1), (0.5, 1.0), 0.0, 0.0)
        return (
            self.gauge("gauge", (now, 1.0)),
            Metric(COUNTER, "", COUNTER_UNIT, Sum([counter], cumulative, is_monotonic=True)),
            Metric(f"{_PREFIX}histogram", "", "s", Histogram([histogram], cumulative)),
        )

    def request(self, *metrics: Metric) -> bytes:
        """Encode one request."""
        self.latest.update((metric.name, metric) for metric in metrics)
        scope = ScopeMetrics(InstrumentationScope("otelperf.doctor", __version__), metrics, "")
        body: bytes = encode(MetricsData([ResourceMetrics(self.resource, [scope], "")])).SerializeToString()
        return body

    def marks(self) -> tuple[Metric, ...]:
        """Return the marks that end all series sent so far."""
        now = self.now()
        return tuple(_marked(metric, now) for metric in self.latest.values())


def _marked(metric: Metric, now: int) -> Metric:
    points: Any = [mark(metric.data.data_points[-1], now)]
    return replace(metric, data=replace(metric.data, data_points=points))


class CutShort(Exception):
    """The rest cannot be tested, for the reason given."""


class Traffic:
    """Sends the probe's requests, all within *seconds* from now, and keeps what was not taken."""

    def __init__(self, transport: Transport, probe: Probe, seconds: float) -> None:
        self.probe = probe
        self.refused: list[str] = []
        self._transport = transport
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._open = False

    def send(self, *metrics: Metric) -> Verdict:
        """Send one request; a second time after a short pause where the other side asks for that."""
        body = self.probe.request(*metrics)
        verdict = self._transport.send(body, self._timeout())
        if verdict.outcome == "retry" and not verdict.unreachable:
            time.sleep(min(verdict.retry_after or 0.5, 2.0))
            verdict = self._transport.send(body, self._timeout())
        if verdict.outcome == "delivered":
            self._open = True
        if verdict.outcome != "delivered" or verdict.rejected:
            self.refused.append(verdict.message)
        return verdict

    def need(self, seconds: float) -> None:
        """Raise where less than that is left: a verdict before its time would be an invented one."""
        if self._deadline - time.monotonic() < seconds:
            raise CutShort(f"no time was left for it within {self._seconds:g} s")

    def end(self) -> Verdict:
        """Send the marks of all series."""
        verdict = self.send(*self.probe.marks())
        self._open = False
        return verdict

    def close(self) -> None:
        """End what is still open, also after Ctrl-C, and close the connection."""
        if self._open:
            self._deadline = time.monotonic() + 2.0
            self._transport.send(self.probe.request(*self.probe.marks()), self._timeout())
            self._open = False
        self._transport.close()

    def _timeout(self) -> float:
        return max(0.1, min(TIMEOUT, self._deadline - time.monotonic()))


def send_burst(traffic: Traffic) -> int:
    """Send numbered requests as fast as they are taken; return how many went before the time for it was over."""
    until = time.monotonic() + BURST_TIME
    for number in range(_BURST):
        if time.monotonic() > until:
            return number
        traffic.send(traffic.probe.gauge("burst", (traffic.probe.now(), float(number))))
    return _BURST


def send_previous(traffic: Traffic) -> None:
    """Send a new point and then an older one, and both in one request, oldest first, as the gate does."""
    probe, back = traffic.probe, int(OLDER * 1e9)
    now = probe.now()
    traffic.send(probe.gauge("late", (now, 2.0)))
    traffic.send(probe.gauge("late", (now - back, 1.0)))
    now = probe.now()
    traffic.send(probe.gauge("pair", (now - back, 1.0), (now, 2.0)))

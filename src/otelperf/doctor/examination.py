"""The examination: what is asked and sent in which order, and how long is waited for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from os import environ as process_environ
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from otelperf import __version__
from otelperf.agent import make_transport
from otelperf.connection import HttpError
from otelperf.doctor.asking import Offset, without_password
from otelperf.doctor.backend import Backend, connect, unread
from otelperf.doctor.clocks import check_clock, check_lookback
from otelperf.doctor.finding import Finding
from otelperf.doctor.probe import BURST_TIME, CutShort, Probe, Traffic, send_burst, send_previous
from otelperf.doctor.servers import check_servers
from otelperf.doctor.stored import (
    Stored,
    check_arrival,
    check_identity,
    check_marks,
    check_names,
    check_order,
    check_previous,
    check_promoted,
)
from otelperf.doctor.way_out import check_endpoint, check_points, check_settings
from otelperf.resource import resources

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from otelperf.config import Settings

T = TypeVar("T")
Tell = Callable[[str], None]

_TOTAL = 55.0  # s, all together
_ARRIVAL = 15.0
_PATIENCE = 5.0  # beyond the time that the first points took
_READ_BACK = ("arrival", "names", "promoted_attributes", "job_and_instance", "previous_points", "order", "stale_marks")


class Examined(NamedTuple):
    """What is asked: the way out, and Prometheus where it can be read; *offsets* are those of their clocks."""

    traffic: Traffic
    backend: Backend | None
    offsets: Mapping[str, Offset]


def examine(settings: Settings, tell: Tell, environ: Mapping[str, str] = process_environ) -> list[Finding]:
    """Run all checks, within a minute. Raises ConfigError where the settings allow no connection at all."""
    transport = make_transport(settings)
    traffic = Traffic(transport, Probe(_resource(settings, environ)), _TOTAL)
    backend = None
    try:
        tell("asking the endpoint")
        endpoint, theirs = check_endpoint(settings, transport)
        tell("asking Prometheus")
        prometheus, backend = connect(settings.doctor.prometheus_url)
        offsets = {"the endpoint": theirs} if theirs else {}
        offsets |= {"Prometheus": backend.offset} if backend else {}
        points, *read_back = _sent(settings, endpoint, Examined(traffic, backend, offsets), tell)
        clock, lookback = check_clock(offsets), check_lookback(settings, backend)
        tell("reading the servers")
        servers = check_servers(settings)
        return [check_settings(settings), servers, endpoint, points, clock, prometheus, lookback, *read_back]
    finally:
        traffic.close()
        if backend is not None:
            backend.prometheus.close()


def _sent(settings: Settings, endpoint: Finding, examined: Examined, tell: Tell) -> list[Finding]:
    """Send the test series and follow them."""
    if endpoint.status != "ok":
        return _skipped(("points", *_READ_BACK), "the endpoint cannot be used")
    tell("sending test series")
    probe = examined.traffic.probe
    points = check_points(settings, examined.traffic.send(*probe.one_of_each()))
    if points.status == "failed":
        return [points, *_skipped(_READ_BACK, "the endpoint does not take the points")]
    found: list[Finding] = []
    try:
        for each in _read_back(settings, examined, tell):
            found.append(each)  # noqa: PERF402 # what was found before it broke off counts
        why = ""
    except CutShort as error:
        why = str(error)
    except HttpError as error:
        found.append(
            Finding(_READ_BACK[len(found)], "failed", f"reading back broke off: {error}", "see Prometheus' log")
        )
        why = "reading back broke off"
    return [points, *found, *_skipped(_READ_BACK[len(found) :], why)]


def _read_back(settings: Settings, examined: Examined, tell: Tell) -> Iterator[Finding]:
    """Yield the findings of `_READ_BACK` in its order, as far as they can be had."""
    traffic, backend, offsets = examined
    if backend is None:
        raise CutShort(unread(settings))
    probe, prometheus = traffic.probe, backend.prometheus

    def read() -> Stored:
        refused = tuple(without_password(settings, each) for each in traffic.refused)
        return Stored(prometheus.stored(probe.run, probe.horizon), refused=refused)

    tell("waiting for them in Prometheus")
    stored, waited = _poll(read, Stored.came, _ARRIVAL)
    yield check_arrival(replace(stored, waited=waited), backend, offsets)
    if not stored.of("counter"):
        raise CutShort("the test series did not arrive")
    yield check_names(stored, backend)
    yield check_promoted(stored, backend, probe.resource)
    yield check_identity(stored, probe.resource)
    patience = _PATIENCE + waited
    tell("sending previous points")
    traffic.need(patience)
    send_previous(traffic)
    late, _ = _poll(read, Stored.previous_came, patience)
    previous = check_previous(late, backend)
    yield previous
    tell("sending numbered requests")
    traffic.need(patience + BURST_TIME)
    sent = send_burst(traffic)
    burst, _ = _poll(read, lambda now: len(now.values("burst")) == sent, patience)
    yield check_order(burst, sent, previous)
    tell("ending the test series")
    traffic.need(patience)
    verdict = traffic.end()
    alive, ended = _poll(lambda: prometheus.alive(probe.run, probe.horizon), lambda names: not names, patience)
    yield check_marks(settings, verdict, alive, ended)


def _poll(read: Callable[[], T], done: Callable[[T], bool], seconds: float) -> tuple[T, float]:
    """Read until *done*, for *seconds* at most; return what was read last and the time it took."""
    began, pause = time.monotonic(), 0.05
    while True:
        found, passed = read(), time.monotonic() - began
        if done(found) or passed >= seconds:
            return found, passed
        time.sleep(min(pause, seconds - passed))
        pause = min(2 * pause, 0.5)


def _resource(settings: Settings, environ: Mapping[str, str]) -> Resource:
    return resources(settings, __version__, (), environ)["agent"]


def _skipped(names: Iterable[str], why: str) -> list[Finding]:
    return [Finding(name, "skipped", why) for name in names]

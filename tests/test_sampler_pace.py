"""The pace of a source that may be slowed, and what becomes of its readings meanwhile; by clocks of the test's own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.sdk.resources import Resource

from otelperf import catalog
from otelperf.errors import SourceFailed
from otelperf.gate.metrics import DeltaGate, Emission
from otelperf.gate.policy import Policy
from otelperf.integrals import Integrals
from otelperf.logs import Log, Repeats
from otelperf.points import Points
from otelperf.readings import Reading
from otelperf.sampler import Sampler

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
TOKENS, ACTIVE = "otelperf.server.tokens", "otelperf.server.active_requests"


class Server:
    """A source that takes *takes* seconds for an answer, by a clock of its own, and fails while *fails*."""

    name = entity = "server"
    share = 0.02

    def __init__(self, takes: float = 0.01) -> None:
        self.takes = takes
        self.fails = False
        self.passed = 0.0
        self.times: list[float] = []

    def timer(self) -> float:
        return self.passed

    def read(self, now: int) -> list[Reading]:
        self.times.append((now - START) / SECOND)
        self.passed += self.takes
        if self.fails:
            raise SourceFailed("no whole answer", [Reading("otelperf.server.up", 0)])
        tokens = int(self.times[-1])
        return [Reading("otelperf.server.up", 1), Reading(TOKENS, tokens), Reading(ACTIVE, 2)]

    def close(self) -> None:
        pass


def sampler_of(server: Server, interval: float = 5.0, gone_after: float = 100.0) -> Sampler:
    return Sampler([(server, interval)], gone_after, timer=server.timer)


def pass_seconds(sampler: Sampler, first: int, last: int) -> list[set[str]]:
    """Sample each second, and return which metrics were known in each."""
    known = []
    for second in range(first, last):
        snapshot = sampler.sample(START + second * SECOND)
        known.append({reading.name for batch in snapshot.batches for reading in batch.readings})
    return known


def gaps(server: Server) -> list[float]:
    return [after - before for before, after in pairwise(server.times)]


@pytest.mark.parametrize(
    ("takes", "interval"), [(0.0, 5), (0.05, 5), (0.1, 5), (0.2, 10), (0.5, 25), (1.0, 50), (1.2, 60), (3.0, 60)]
)
def test_at_most_a_fiftieth_of_the_time_is_taken_but_a_reading_comes_each_minute(takes: float, interval: float) -> None:
    server = Server(takes)
    sampler = sampler_of(server)
    pass_seconds(sampler, 0, 2000)
    assert set(gaps(server)[-5:]) == {interval}
    [health] = sampler.sample(START + 2000 * SECOND).health
    assert health.interval == pytest.approx(interval, abs=0.5)


def test_whatever_the_answers_take_their_share_of_the_time_is_kept() -> None:
    server = Server()
    sampler = sampler_of(server)
    turns = [0.01, 0.9, 0.02, 0.4, 0.01, 0.01, 0.7, 0.05]
    for second in range(20_000):
        server.takes = turns[len(server.times) % len(turns)]
        sampler.sample(START + second * SECOND)
    assert server.passed / 20_000 <= 0.021
    assert max(gaps(server)) <= 60


def test_one_slow_answer_is_paid_back_and_forgotten() -> None:
    server = Server()
    sampler = sampler_of(server)
    pass_seconds(sampler, 0, 20)
    server.takes = 2.0
    pass_seconds(sampler, 20, 21)
    server.takes = 0.01
    pass_seconds(sampler, 21, 200)
    assert gaps(server)[4:10] == [21, 14, 10, 7, 5, 5]
    assert set(gaps(server)[10:]) == {5}


def test_after_a_long_hang_the_pace_is_back_within_three_minutes() -> None:
    server = Server(2.0)
    sampler = sampler_of(server)
    server.fails = True
    pass_seconds(sampler, 0, 3600)
    assert set(gaps(server)[-10:]) == {60}
    server.takes, server.fails = 0.01, False
    seen = len(server.times)
    pass_seconds(sampler, 3600, 4000)
    back = next(n for n, gap in enumerate(gaps(server)) if n >= seen and gap == 5)
    assert server.times[back] - 3600 <= 180


def test_an_interval_longer_than_a_minute_is_kept() -> None:
    server = Server(3.0)
    sampler = sampler_of(server, interval=90.0)
    pass_seconds(sampler, 0, 500)
    assert set(gaps(server)) == {90}


def test_a_source_without_a_share_is_never_slowed() -> None:
    server = Server(3.0)
    server.share = None  # type: ignore[assignment] # as other sources, which have none
    sampler = sampler_of(server)
    pass_seconds(sampler, 0, 50)
    assert set(gaps(server)) == {5}
    assert sampler.sample(START + 50 * SECOND).health[0].interval is None


def test_the_slowing_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = Server(0.5)
    server.name = server.entity = "a slow one"
    sampler = sampler_of(server)
    pass_seconds(sampler, 0, 500)
    told = "answer_seconds=0.5 interval_seconds=13.9 usual_interval_seconds=5.0"
    assert caplog.messages == [f'source answers slowly and is read less often source="a slow one" {told}']


def test_a_server_that_is_slow_now_and_then_is_told_once_until_it_is_normal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = Server()
    sampler = sampler_of(server)
    for second in range(2000):
        server.takes = 1.0 if second // 60 % 3 == 0 else 0.01
        sampler.sample(START + second * SECOND)
    assert [message.partition(" source=")[0] for message in caplog.messages] == [
        "source answers slowly and is read less often",
        "source answers slowly and is read less often",
    ]  # at twice and at four times the usual interval
    assert min(gaps(server)[-100:]) == 5
    server.takes = 0.01
    pass_seconds(sampler, 2000, 3000)
    assert caplog.messages[2:] == ["source is read as often as usual again source=server interval_seconds=5.0"]


def test_a_return_is_told_only_of_what_was_told_to_be_away(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr("otelperf.sampler._log", Log("otelperf.sampler", Repeats(clock=lambda: now[0])))
    server = Server()
    sampler = sampler_of(server)
    for second in range(0, 60, 5):
        now[0], server.fails = float(second), second % 10 == 0
        sampler.sample(START + second * SECOND)
    assert caplog.messages == ['source failed source=server problem="no whole answer"', "source is back source=server"]


# -- and its readings


@pytest.mark.parametrize("takes", [0.01, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("gone_after", [5.0, 100.0])
def test_what_lives_is_known_whatever_the_pace(takes: float, gone_after: float) -> None:
    server = Server(takes)
    known = pass_seconds(sampler_of(server, 1.0, gone_after), 0, 600)
    assert all(TOKENS in names for names in known)


@pytest.mark.parametrize("gone_after", [5.0, 100.0])
def test_one_answer_that_does_not_come_in_time_ends_nothing(gone_after: float) -> None:
    server = Server()
    sampler = sampler_of(server, 1.0, gone_after)
    pass_seconds(sampler, 0, 10)
    server.takes, server.fails = 2.0, True
    known = pass_seconds(sampler, 10, 11)
    server.takes, server.fails = 0.01, False
    known += pass_seconds(sampler, 11, 100)
    assert all(TOKENS in names for names in known)
    assert len(server.times) > 12


def test_what_a_hung_server_said_ends_though_it_is_seldom_asked() -> None:
    server = Server()
    sampler = sampler_of(server)
    pass_seconds(sampler, 0, 10)
    server.takes, server.fails = 2.0, True
    known = pass_seconds(sampler, 10, 300)
    assert [TOKENS in names for names in known].index(False) == 96  # read last at 5, gone when older than 100 s
    assert all("otelperf.server.up" in names for names in known)


class _Stored(MetricExporter):
    """Takes everything."""

    def export(self, *_: Any, **__: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **_: Any) -> None:
        pass


@pytest.mark.parametrize("takes", [0.01, 0.3, 0.6, 0.9, 1.2, 9.0])
@pytest.mark.parametrize("heartbeat", [5.0, 50.0, 110.0])
def test_prometheus_hears_of_each_series_well_within_its_five_minutes(takes: float, heartbeat: float) -> None:
    server, clock = Server(takes), [START]
    sampler = sampler_of(server, 5.0, 2 * heartbeat)
    emissions: list[Emission] = []
    gate = DeltaGate(
        _Stored(),
        Policy(catalog.rules(heartbeat)),
        lambda: clock[0],
        heartbeat=heartbeat,
        linger=0.0,
        complete=("otelperf",),
        observe=emissions.append,
    )
    points = Points({"server": Resource({})}, "0")
    for second in range(1500):
        clock[0] = START + second * SECOND
        gate.export(points.of(sampler.sample(clock[0])))
    times = [emission.time for emission in emissions if emission.name == ACTIVE]
    assert all(emission.new is not None for emission in emissions)
    assert max(after - before for before, after in pairwise(times)) / SECOND <= heartbeat + 60


@pytest.mark.parametrize("takes", [0.01, 0.5, 1.2])
def test_an_integral_goes_on_over_readings_that_are_far_apart(takes: float) -> None:
    server = Server(takes)
    sampler, integrals = sampler_of(server), Integrals([ACTIVE], {"server": 5.0})
    for second in range(1000):
        snapshot = integrals.added_to(sampler.sample(START + second * SECOND))
    [total] = [r.value for b in snapshot.batches for r in b.readings if r.name == catalog.integral_name(ACTIVE)]
    assert total == 2 * server.times[-1]


# -- stopped and continued (SIGSTOP, a frozen container)


def test_a_time_in_which_nobody_read_ends_nothing() -> None:
    server = Server()
    sampler = sampler_of(server)
    known = pass_seconds(sampler, 0, 10) + pass_seconds(sampler, 400, 410)
    assert all(TOKENS in names for names in known)


class Hanging:
    """A server on a thread of its own that answers when it is let to, or fails."""

    name = entity = "server"
    blocking = True

    def __init__(self) -> None:
        self.let = threading.Event()
        self.begun = threading.Event()
        self.fails = False
        self.reads = 0

    def read(self, _: int) -> list[Reading]:
        self.reads += 1
        self.begun.set()
        self.let.wait(20)
        if self.fails:
            self.fails = False
            raise SourceFailed("no whole answer within 2 s", [Reading("otelperf.server.up", 0)])
        return [Reading("otelperf.server.up", 1), Reading(TOKENS, self.reads)]

    def close(self) -> None:
        pass


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def tokens(sampler: Sampler, second: float) -> list[object]:
    snapshot = sampler.sample(START + round(second * SECOND))
    return [reading.value for batch in snapshot.batches for reading in batch.readings if reading.name == TOKENS]


def test_after_a_sleep_a_reading_stays_until_there_is_a_new_one() -> None:
    server = Hanging()
    server.let.set()
    sampler = Sampler([(server, 5.0)], 100.0)
    until(lambda: tokens(sampler, 0) == [1])
    server.let.clear()
    assert [tokens(sampler, second) for second in (400, 401, 402)] == [[1]] * 3
    server.let.set()
    until(lambda: tokens(sampler, 402) == [2])
    sampler.close()


def test_an_answer_that_was_slept_through_says_nothing_of_the_server() -> None:
    server = Hanging()
    server.let.set()
    sampler = Sampler([(server, 5.0)], 100.0)
    until(lambda: tokens(sampler, 0) == [1])
    server.let.clear()
    server.begun.clear()
    tokens(sampler, 5)
    assert server.begun.wait(10)
    assert tokens(sampler, 400) == [1]
    server.fails = True  # its time was over when it woke
    server.let.set()
    ups: list[object] = []

    def read_again() -> bool:
        snapshot = sampler.sample(START + 401 * SECOND)
        readings = [reading for batch in snapshot.batches for reading in batch.readings]
        ups.extend(reading.value for reading in readings if reading.name == "otelperf.server.up")
        return Reading(TOKENS, 3) in readings

    until(read_again)
    assert set(ups) == {1}
    assert sampler.sample(START + 401 * SECOND).health[0].failures == 0
    sampler.close()


def test_one_that_hangs_on_after_a_sleep_is_dropped_in_its_time() -> None:
    server = Hanging()
    server.let.set()
    sampler = Sampler([(server, 5.0)], 100.0)
    until(lambda: tokens(sampler, 0) == [1])
    server.let.clear()
    tokens(sampler, 400)
    assert [bool(tokens(sampler, second)) for second in (404, 405, 406)] == [True, True, False]
    server.let.set()
    sampler.close()


def test_a_source_that_is_removed_is_closed_and_its_readings_go() -> None:
    server, other = Server(), Server()
    sampler = Sampler([(server, 5.0), (other, 5.0)], timer=server.timer)
    pass_seconds(sampler, 0, 2)
    sampler.remove(server)
    snapshot = sampler.sample(START + 2 * SECOND)
    assert [batch.source for batch in snapshot.batches] == ["server"]
    assert len(snapshot.health) == 1
    pass_seconds(sampler, 3, 20)
    assert (len(server.times), len(other.times)) == (1, 4)

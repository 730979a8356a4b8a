"""The sampler: what is due, what is kept, what is told of a source; by a clock of the test's own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from otelperf.errors import SourceAbsent, SourceFailed, SourceFlawed
from otelperf.readings import Health, Reading
from otelperf.sampler import Sampler

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
A, B, C = Reading("a", 1), Reading("b", 2), Reading("c", 3)

Turn = Sequence[Reading] | Exception


class Turns:
    """A source that gives one turn after the other, the last for ever."""

    entity = "host"

    def __init__(self, *turns: Turn, name: str = "turns") -> None:
        self.name = name
        self.turns = list(turns)
        self.times: list[float] = []
        self.closed = False

    def read(self, now: int) -> list[Reading]:
        self.times.append((now - START) / SECOND)
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        if isinstance(turn, Exception):
            raise turn
        return list(turn)

    def close(self) -> None:
        self.closed = True


class Hanging:
    """A source on a thread of its own that answers when it is let to."""

    entity = "server"
    blocking = True

    def __init__(self, name: str = "hanging") -> None:
        self.name = name
        self.begun = threading.Event()
        self.let = threading.Event()
        self.closed = threading.Event()
        self.reads = 0

    def read(self, now: int) -> list[Reading]:
        self.reads += 1
        self.begun.set()
        self.let.wait(20)
        return [Reading("hanging", self.reads)]

    def close(self) -> None:
        self.closed.set()


def at(seconds: float) -> int:
    return START + round(seconds * SECOND)


def told(sampler: Sampler, seconds: float) -> list[tuple[str, float, float]]:
    """Return name, value and second of reading of all that is known."""
    batches = sampler.sample(at(seconds)).batches
    return [(r.name, r.value, (b.time - START) / SECOND) for b in batches for r in b.readings]  # type: ignore[misc] # no histograms here


def health(sampler: Sampler, seconds: float) -> Health:
    [found] = sampler.sample(at(seconds)).health
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for a thread's last step, which no event can tell."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


# -- when


def test_each_source_is_read_at_its_own_interval() -> None:
    fast, slow = Turns([A]), Turns([B])
    sampler = Sampler([(fast, 1.0), (slow, 3.0)])
    for second in range(8):
        sampler.sample(at(second))
    assert list(range(8)) == fast.times
    assert slow.times == [0, 3, 6]


def test_a_source_that_is_not_due_stands_with_its_old_time() -> None:
    sampler = Sampler([(Turns([A]), 1.0), (Turns([B]), 3.0)])
    told(sampler, 0)
    told(sampler, 1)
    assert told(sampler, 2) == [("a", 1, 2), ("b", 2, 0)]


def test_made_due_every_source_is_read_once_more_and_then_at_its_interval_again() -> None:
    fast, slow = Turns([A]), Turns([B])
    sampler = Sampler([(fast, 1.0), (slow, 3.0)])
    sampler.sample(at(0))
    sampler.make_due()
    for seconds in (0.5, 1, 2, 3.5):
        sampler.sample(at(seconds))
    assert slow.times == [0, 0.5, 3.5]
    assert fast.times[:2] == [0, 0.5]


@pytest.mark.parametrize("seed", range(5))
def test_ticks_that_are_never_quite_on_time_leave_no_reading_out(seed: int) -> None:
    jitter = random.Random(seed)
    source, slow = Turns([A]), Turns([A])
    sampler = Sampler([(source, 1.0), (slow, 5.0)])
    for second in range(100):
        sampler.sample(at(second + jitter.uniform(0, 0.1)))
    assert (len(source.times), len(slow.times)) == (100, 20)


def test_the_due_times_do_not_drift() -> None:
    source = Turns([A])
    sampler = Sampler([(source, 5.0)])
    for tick in range(1000):
        sampler.sample(at(tick * 1.001))
    due = [round(seconds / 5) * 5 for seconds in source.times]
    assert list(range(0, 1001, 5)) == due


def test_missed_intervals_are_left_out_and_the_next_is_on_the_grid() -> None:
    source = Turns([A])
    sampler = Sampler([(source, 2.0)])
    for second in (0, 7, 8, 9, 10):
        sampler.sample(at(second))
    assert source.times == [0, 7, 8, 10]


def test_an_absent_source_is_asked_again_after_a_minute() -> None:
    source = Turns(SourceAbsent("no swap here"), [A])
    sampler = Sampler([(source, 1.0)])
    for second in range(65):
        sampler.sample(at(second))
    assert source.times == [0, 60, 61, 62, 63, 64]


# -- what


def test_an_absent_source_is_no_failure_and_ends_what_was_read() -> None:
    sampler = Sampler([(Turns([A], SourceAbsent("swap was switched off")), 1.0)])
    told(sampler, 0)
    assert told(sampler, 1) == []
    found = health(sampler, 2)
    assert (False, True, 0, at(0)) == (found.ok, found.absent, found.failures, found.last_success)


@pytest.mark.parametrize(
    "error", [SourceFailed("no"), OSError("no"), ValueError("no"), RecursionError(), MemoryError()]
)
def test_a_failed_source_keeps_its_readings_at_their_old_time_until_they_are_gone(error: Exception) -> None:
    sampler = Sampler([(Turns([A, B], error), 1.0)], gone_after=5.0)
    expected = [("a", 1, 0), ("b", 2, 0)]
    assert [expected] * 6 + [[]] * 2 == [told(sampler, second) for second in range(8)]


def test_readings_are_never_gone_before_three_intervals() -> None:
    sampler = Sampler([(Turns([A], SourceFailed("no")), 10.0)], gone_after=5.0)
    assert [len(told(sampler, second)) for second in (0, 10, 20, 30, 31)] == [1, 1, 1, 1, 0]


def test_fresh_readings_of_a_failed_source_replace_their_namesakes() -> None:
    fresh = SourceFailed("half", [Reading("b", 5)])
    sampler = Sampler([(Turns([A, B], fresh, [A, B]), 1.0)])
    told(sampler, 0)
    assert told(sampler, 1) == [("a", 1, 0), ("b", 5, 1)]
    assert told(sampler, 2) == [("a", 1, 2), ("b", 2, 2)]


def test_namesakes_with_other_attributes_stay() -> None:
    cpu = [Reading("cpu", n, {"cpu": n}) for n in range(3)]
    sampler = Sampler([(Turns(cpu, SourceFailed("half", [Reading("cpu", 7, {"cpu": 1})])), 1.0)])
    told(sampler, 0)
    assert told(sampler, 1) == [("cpu", 0, 0), ("cpu", 2, 0), ("cpu", 7, 1)]


def test_what_a_source_never_reads_again_is_gone_while_the_rest_goes_on() -> None:
    sampler = Sampler([(Turns([A, B], SourceFailed("half", [B])), 1.0)], gone_after=5.0)
    assert [name for name, _, _ in [told(sampler, second) for second in range(6)][-1]] == ["a", "b"]
    assert told(sampler, 6) == [("b", 2, 6)]


def test_readings_of_a_flawed_source_replace_all() -> None:
    sampler = Sampler([(Turns([A, B], SourceFlawed("odd", [C])), 1.0)])
    told(sampler, 0)
    assert told(sampler, 1) == [("c", 3, 1)]


def test_what_a_source_leaves_out_has_ended() -> None:
    sampler = Sampler([(Turns([A, B], [B]), 1.0)])
    told(sampler, 0)
    assert told(sampler, 1) == [("b", 2, 1)]


def test_one_broken_source_does_not_take_the_others() -> None:
    sampler = Sampler([(Turns(ZeroDivisionError("oops"), name="broken"), 1.0), (Turns([B]), 1.0)])
    assert told(sampler, 0) == [("b", 2, 0)]


def test_a_snapshot_does_not_change_afterwards() -> None:
    sampler = Sampler([(Turns([A], [B]), 1.0)])
    first = sampler.sample(at(0))
    sampler.sample(at(1))
    assert first.batches[0].readings == (A,)


# -- health


def test_health_tells_how_the_last_read_went_and_counts_failures() -> None:
    source = Turns([A], SourceFailed("gone away"), SourceFlawed("odd", [A]), KeyError("x"), [A])
    sampler = Sampler([(source, 1.0)])
    found = [health(sampler, second) for second in range(5)]
    assert [h.ok for h in found] == [True, False, False, False, True]
    assert [h.absent for h in found] == [False] * 5
    assert [h.message for h in found] == ["", "gone away", "odd", "KeyError: 'x'", ""]
    assert [h.failures for h in found] == [0, 1, 2, 3, 3]
    assert [at(0)] * 4 + [at(4)] == [h.last_success for h in found]
    assert all(0 <= h.duration < 5 for h in found)


def test_a_source_that_never_succeeded_has_no_last_success() -> None:
    assert health(Sampler([(Turns(SourceFailed("no")), 1.0)]), 0).last_success is None


# -- threads


def test_a_hanging_source_delays_no_tick_is_told_and_dropped_and_recovers() -> None:
    hanging, quick = Hanging(), Turns([A])
    sampler = Sampler([(hanging, 1.0), (quick, 1.0)], gone_after=5.0)
    hanging.let.set()
    sampler.sample(at(0))
    until(lambda: ("hanging", 1, 0) in told(sampler, 0))

    hanging.let.clear()
    hanging.begun.clear()
    sampler.sample(at(1))
    assert hanging.begun.wait(10)
    seen = {second: told(sampler, second) for second in range(2, 9)}
    assert [("a", 1, second) for second in seen] == [readings[-1] for readings in seen.values()]
    assert [second for second, readings in seen.items() if ("hanging", 1, 0) in readings] == [2, 3, 4, 5]
    found = sampler.sample(at(9)).health[0]
    assert (found.ok, found.absent, found.message, found.duration) == (False, False, "no answer for 8 s", 8.0)
    assert found.last_success == at(0)
    assert hanging.reads == 2

    hanging.let.set()
    until(lambda: sampler.sample(at(9)).health[0].ok)
    until(lambda: ("hanging", 3, 9) in told(sampler, 9))
    sampler.close()
    assert hanging.closed.wait(10)


def test_a_slow_source_is_not_hanging_within_its_interval() -> None:
    hanging = Hanging()
    sampler = Sampler([(hanging, 5.0)])
    assert [sampler.sample(at(second)).health for second in range(6)] == [()] * 6
    assert sampler.sample(at(5.1)).health != ()
    hanging.let.set()
    sampler.close()


def test_a_source_on_a_thread_that_is_absent_is_asked_again_after_a_minute() -> None:
    class Absent(Turns):
        blocking = True

    source = Absent(SourceAbsent("none"))
    sampler = Sampler([(source, 1.0)])
    for second in range(65):
        sampler.sample(at(second))
        until(lambda: bool(sampler.sample(START).health))
    until(lambda: len(source.times) == 2)
    sampler.close()
    assert source.times == [0, 60]


def test_without_threads_a_blocking_source_is_read_in_the_callers() -> None:
    hanging = Hanging()
    hanging.let.set()
    sampler = Sampler([(hanging, 1.0)], threads=False)
    assert told(sampler, 0) == [("hanging", 1, 0)]
    sampler.close()
    assert hanging.closed.is_set()


def test_closing_never_blocks_and_a_hanging_source_is_closed_when_its_read_ends() -> None:
    hanging, idle, quick = Hanging(), Hanging("idle"), Turns([A])
    sampler = Sampler([(hanging, 1.0), (idle, 100.0), (quick, 1.0)])
    idle.let.set()
    sampler.sample(at(0))
    assert hanging.begun.wait(10)
    sampler.close()
    assert quick.closed
    assert idle.closed.wait(10)
    assert not hanging.closed.is_set()
    hanging.let.set()
    assert hanging.closed.wait(10)


def test_no_thread_is_left_after_closing() -> None:
    sampler = Sampler([(Hanging("to be closed"), 1.0)])
    sampler.close()
    until(lambda: "otelperf-to be closed" not in {thread.name for thread in threading.enumerate()})


def test_a_step_of_the_wall_clock_ends_nothing_and_delays_nothing() -> None:
    steady = [0]
    source = Turns([A])
    sampler = Sampler([(source, 5.0)], gone_after=100, steady=lambda: steady[0])
    sampler.sample(at(0))
    steady[0] = 1 * SECOND
    assert [batch.time for batch in sampler.sample(at(3600)).batches] == [at(0)]
    steady[0] = 5 * SECOND
    assert [batch.time for batch in sampler.sample(at(-3600)).batches] == [at(-3600)]

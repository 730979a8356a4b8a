"""Straggling engines: by simulated ranks whose speed falls with their batch, as a real one's does."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf.sources.engines.straggling import Load, Straggling

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
EVERY = 5  # s between readings
Name = tuple[tuple[str, str], ...]


def name(rank: int) -> Name:
    return (("otelperf.server.engine.index", str(rank)),)


def speed(running: float) -> float:
    """Tokens a second of each request: a batch of 64 makes half as many of each, and 32 times as many in all."""
    return 50.0 / (1 + running / 64)


class Ranks:
    """Data-parallel engines under load; *slow* are shares of the usual speed by rank."""

    def __init__(self, ranks: int, slow: dict[int, float] | None = None, every: int = EVERY) -> None:
        self.slow = slow or {}
        self.every = every
        self.loads = {name(rank): Load(0, 0, 0, 0) for rank in range(ranks)}
        self.straggling = Straggling()
        self.now = START
        self.seen: list[set[int]] = []

    def step(
        self, running: Callable[[int], float], noise: Callable[[], float], waiting: Callable[[int], float]
    ) -> None:
        self.now += self.every * SECOND
        for rank in range(len(self.loads)):
            load, work = self.loads[name(rank)], running(rank)
            made = self.every * work * speed(work) * self.slow.get(rank, 1.0) * noise()
            self.loads[name(rank)] = Load(work, waiting(rank), load.read + 4 * made, load.made + made)
        verdicts = self.straggling.judge(self.now, self.loads)
        self.seen.append({rank for rank in range(len(self.loads)) if verdicts[name(rank)]})

    def run(
        self,
        seconds: int,
        running: Callable[[int], float] = lambda _: 8,
        noise: Callable[[], float] = lambda: 1.0,
        waiting: Callable[[int], float] = lambda _: 0,
    ) -> set[int]:
        """Return who straggles at the end."""
        for _ in range(seconds // self.every):
            self.step(running, noise, waiting)
        return self.seen[-1]


def test_an_engine_at_a_third_of_its_peers_speed_straggles_after_four_windows() -> None:
    ranks = Ranks(4, {2: 0.33})
    assert ranks.run(75) == {2}
    assert not any(ranks.seen[:12])  # 60 s


def test_of_two_engines_the_slow_one_straggles() -> None:
    assert Ranks(2, {1: 0.4}).run(120) == {1}


def test_a_little_slower_is_no_straggling() -> None:
    ranks = Ranks(4, {2: 0.6})
    ranks.run(600)
    assert not any(ranks.seen)


def test_an_engine_that_recovers_straggles_no_longer_after_two_windows() -> None:
    ranks = Ranks(4, {2: 0.33})
    assert ranks.run(120) == {2}
    ranks.slow = {}
    ranks.run(60)
    assert ranks.seen[-1] == set()
    assert {2} in ranks.seen[-12:-8]


def test_between_the_two_levels_it_stays_what_it_was() -> None:
    ranks = Ranks(4, {2: 0.33})
    assert ranks.run(120) == {2}
    ranks.slow = {2: 0.6}
    assert ranks.run(300) == {2}


def test_a_slow_engine_to_which_as_many_requests_go_holds_more_of_them_and_straggles() -> None:
    """A router that counts requests gives each rank the same: the slow one makes as many tokens, with more requests at once."""
    assert Ranks(4, {0: 0.3}).run(120, lambda rank: 32 if rank == 0 else 8) == {0}


def test_an_engine_that_is_slower_because_it_does_more_is_busy() -> None:
    assert Ranks(4).run(600, lambda rank: 200 if rank == 0 else 4) == set()


def test_an_idle_engine_is_not_compared() -> None:
    assert Ranks(3, {1: 0.1}).run(600, lambda rank: 0 if rank == 1 else 8) == set()


def test_an_engine_that_makes_nothing_is_not_slow_but_at_a_long_prompt_or_stuck() -> None:
    assert Ranks(3, {1: 0.0}).run(300) == set()
    ranks = Ranks(3, {1: 0.3})
    assert ranks.run(120) == {1}
    ranks.slow = {1: 0.0}
    assert ranks.run(300) == {1}


def test_an_engine_that_is_alone_does_not_straggle() -> None:
    assert Ranks(1, {0: 0.1}).run(300) == set()


def test_peers_that_differ_much_among_themselves_have_no_straggler() -> None:
    assert Ranks(5, {0: 0.45, 1: 0.5, 2: 0.8, 3: 1.2, 4: 1.6}).run(300) == set()


def test_a_queue_of_its_own_makes_a_straggler() -> None:
    ranks = Ranks(3)
    assert ranks.run(120, waiting=lambda rank: 40 if rank == 1 else 2) == {1}
    assert ranks.run(60) == set()


def test_a_queue_at_all_is_load_and_no_straggling() -> None:
    assert Ranks(3).run(300, waiting=lambda rank: 40 + 10 * rank) == set()


def test_a_window_begins_anew_after_a_long_silence() -> None:
    ranks = Ranks(4, {2: 0.33})
    for _ in range(60):
        ranks.run(10)
        ranks.now += 80 * SECOND
    assert not any(ranks.seen)


@pytest.mark.parametrize("every", [10, 20, 60])
def test_a_server_that_is_read_less_often_is_judged_by_longer_windows(every: int) -> None:
    ranks = Ranks(2, {1: 0.33}, every=every)
    assert ranks.run(13 * every) == {1}
    assert not any(ranks.seen[:12])
    ranks.slow = {}
    assert ranks.run(8 * every) == set()


def test_a_reading_that_is_missing_is_made_up_for_by_the_counters() -> None:
    ranks = Ranks(4, {2: 0.33})
    for _ in range(12):
        ranks.run(10)
        ranks.now += 5 * SECOND
    assert ranks.seen[-1] == {2}


def test_an_engine_started_anew_is_left_out_of_the_window() -> None:
    ranks = Ranks(2)
    for _ in range(10):
        ranks.run(15)
        ranks.loads[name(1)] = Load(8, 0, 0, 0)
    assert not any(ranks.seen)


@given(st.integers(2, 8), st.integers())
def test_bursts_and_noise_alone_make_no_straggler(count: int, seed: int) -> None:
    random = Random(seed)
    ranks = Ranks(count)
    ranks.run(600, lambda _: random.choice((0, 1, 4, 16, 64, 128)), lambda: random.uniform(0.6, 1.4))
    assert not any(ranks.seen)


@given(st.integers(2, 8), st.integers())
def test_uneven_but_steady_load_makes_no_straggler(count: int, seed: int) -> None:
    random = Random(seed)
    load = [random.randint(1, 128) for _ in range(count)]
    ranks = Ranks(count)
    ranks.run(600, lambda rank: load[rank] * random.uniform(0.9, 1.1), lambda: random.uniform(0.8, 1.2))
    assert not any(ranks.seen)


@given(st.integers(2, 8), st.integers())
def test_a_much_slower_engine_is_found_through_noise(count: int, seed: int) -> None:
    random = Random(seed)
    slow = random.randrange(count)
    ranks = Ranks(count, {slow: 0.2})
    assert ranks.run(300, lambda _: random.uniform(14, 18), lambda: random.uniform(0.9, 1.1)) == {slow}
    assert all(each in ({slow}, set()) for each in ranks.seen)

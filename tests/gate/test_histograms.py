"""Histograms, exemplars, and delta temporality."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import HistogramDataPoint

from otelperf.gate.policy import Rule
from tests.gate.world import DELTA, SECOND, START, World, buckets, counter, data, exponential, histogram, number

COUNTS = st.lists(st.integers(0, 50), min_size=5, max_size=5)


def observe(world: World, counts: Sequence[int], *, start: int = START, exemplars: Sequence[Exemplar] = ()) -> None:
    world.tick(histogram("m", buckets(world.now, counts, start=start, exemplars=exemplars)))


def exemplar(second: float, trace: int | None = None) -> Exemplar:
    return Exemplar({}, 1.0, START + int(second * SECOND), trace, trace)


def sent(world: World) -> list[HistogramDataPoint]:
    world.flush()
    return world.points()


def seconds(world: World) -> list[float]:
    return [(p.time_unix_nano - START) / SECOND for p in sent(world)]


def test_a_histogram_whose_quantiles_stand_goes_once_an_interval() -> None:
    world = World()
    for second in range(151):
        observe(world, [second * 10, second, 0, 0, 0])
    assert seconds(world) == [0, 5, 35, 65, 95, 125]  # of one point alone nothing can be read


def test_the_interval_of_a_histogram_can_be_set() -> None:
    world = World(histogram_interval=12)
    for second in range(41):
        observe(world, [second * 10, second, 0, 0, 0])
    assert seconds(world) == [0, 2, 14, 26, 38]


def test_a_quantile_that_would_be_misread_does_not_wait_for_the_interval() -> None:
    world = World({"m": Rule(kind="histogram", relative=0.1, delta=1e9)})  # the count alone tells nothing
    counts = [1000, 0, 0, 0, 0]
    for second in range(161):
        counts[0 if second < 103 else 3] += 10
        observe(world, counts)
    times = seconds(world)
    assert times[:4] == [0, 5, 50, 100]
    assert times[4] == 105  # slow calls since 103; five seconds after the heartbeat
    assert min(b - a for a, b in pairwise(times)) == 5


def test_a_histogram_with_nothing_new_only_beats() -> None:
    world = World()
    for _ in range(151):
        observe(world, [5, 4, 3, 2, 1])
    assert seconds(world) == [0, 50, 100, 150]


def test_the_heartbeat_of_a_histogram_respects_its_interval() -> None:
    world = World()
    world.now += 22 * SECOND  # at a phase of heartbeats 28 s later
    for _ in range(100):
        observe(world, [5, 4, 3, 2, 1])
    times = seconds(world)
    assert min(b - a for a, b in pairwise(times)) >= 30


def test_a_count_that_grows_much_is_told() -> None:
    world = World()
    for second in range(61):
        observe(world, [second, 0, 0, 0, 0])
    assert world.gate.stats.emitted["rate"] == 1


@given(st.lists(COUNTS, min_size=1, max_size=100))
def test_what_is_sent_of_a_histogram_is_exact_and_cumulative(gains: list[list[int]]) -> None:
    world = World()
    counts, truth = [0] * 5, {}
    for gain in gains:
        counts = [a + b for a, b in zip(counts, gain, strict=True)]
        truth[world.now] = tuple(counts)
        observe(world, counts)
    last = truth[world.now - SECOND]
    world.gate.shutdown()
    points = world.points()
    assert {p.time_unix_nano: p.bucket_counts for p in points} == {
        p.time_unix_nano: truth[p.time_unix_nano] for p in points
    }
    assert points[-1].bucket_counts == last  # nothing is lost


def test_both_sides_of_the_reset_of_a_histogram_go() -> None:
    world = World()
    for counts in ([10, 0, 0, 0, 0], [11, 0, 0, 0, 0], [12, 0, 0, 0, 0], [1, 0, 0, 0, 0]):
        observe(world, counts, start=0)
    points = sent(world)
    assert [p.count for p in points] == [10, 12, 1]
    assert [(p.start_time_unix_nano - START) // SECOND for p in points] == [0, 0, 2]


def test_new_bounds_do_no_harm() -> None:
    world = World()
    observe(world, [1, 2, 3, 4, 5])
    world.now += 40 * SECOND
    world.tick(histogram("m", HistogramDataPoint({}, START, world.now, 20, 5.0, (10, 10), (1.0,), 0.0, 1.0)))
    assert [p.count for p in sent(world)] == [15, 20]


# Exemplars


def told() -> World:
    """Return a world that has told what there is to know of a histogram, so that nothing goes in the next half minute."""
    world = World()
    for second in range(6):
        observe(world, [1 + second, 0, 0, 0, 0])
    assert seconds(world) == [0, 5]
    return world


def test_exemplars_of_held_points_go_with_the_next_emission_sorted() -> None:
    world = told()
    for second in range(6, 36):
        held = {7: [exemplar(5, 55), exemplar(4.5)], 9: [exemplar(9, 99)], 20: [exemplar(9, 99)]}.get(second, [])
        observe(world, [1 + second, 0, 0, 0, 0], exemplars=held)
    times = [(e.time_unix_nano - START) / SECOND for e in sent(world)[-1].exemplars]
    assert times == [4.5, 5, 9]


def test_exemplars_are_sorted_by_time_not_by_its_digits() -> None:
    world = told()
    for second in range(6, 36):
        when = {8: 5, 9: 40, 10: 300}.get(second)
        observe(world, [1 + second, 0, 0, 0, 0], exemplars=[Exemplar({}, 1.0, when)] if when else [])
    assert [e.time_unix_nano for e in sent(world)[-1].exemplars] == [5, 40, 300]


def test_no_more_than_twenty_exemplars_are_carried_the_newest() -> None:
    world = told()
    for second in range(6, 36):
        observe(world, [1 + second, 0, 0, 0, 0], exemplars=[exemplar(second - 0.2, second), exemplar(second - 0.1)])
    carried = sent(world)[-1].exemplars
    assert [(e.time_unix_nano - START) / SECOND for e in carried[-2:]] == [34.8, 34.9]
    assert len(carried) == 20


def test_an_exemplar_goes_once() -> None:
    world = World()
    for second in range(91):
        observe(world, [1 + second, 0, 0, 0, 0], exemplars=[exemplar(5, 5)] if second == 5 else [])
    assert [len(p.exemplars) for p in sent(world)] == [0, 1, 0, 0]


# Exponential histograms


def test_an_exponential_histogram_is_gated_by_its_count() -> None:
    world = World()
    for second in range(91):
        world.tick(exponential("m", world.now, second * 10))
    assert seconds(world) == [0, 30, 60, 90]


def test_an_exponential_histogram_may_be_in_a_group() -> None:
    world = World({"m": Rule(kind="histogram", relative=0.1, group="g")})
    world.tick(exponential("m", world.now, 1))
    assert [p.count for p in sent(world)] == [1]


# Delta temporality


def test_delta_temporality_passes_ungated_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for _ in range(3):
        world.tick(
            counter("m", number(world.now, 5), temporality=DELTA), counter("n", number(world.now, 5), temporality=DELTA)
        )
    assert (world.values("m"), world.values("n")) == ([5, 5, 5], [5, 5, 5])
    assert [r.message.split(" metric=")[0] for r in caplog.records] == ["delta temporality passes ungated"]


def test_a_delta_point_that_could_not_be_sent_is_the_reader_s_to_know() -> None:
    from opentelemetry.sdk.metrics.export import MetricExportResult

    world = World()
    world.recorder.answers = [MetricExportResult.FAILURE]
    point = counter("m", number(world.now, 5), temporality=DELTA)
    assert world.gate.export(data(point)) is MetricExportResult.FAILURE

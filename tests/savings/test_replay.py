"""The replay: what the gate lets out of recorded series, and what scrapes would have read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf.savings.replay import Kept, in_catalogue, policy, replay, scraped, spacing
from otelperf.savings.score import difference, held
from tests.savings.files import START, lines, streamed


def replayed(tmp_path: Path, text: str, delta: float = 0.05) -> Kept:
    _, found = streamed(tmp_path, text)
    (kept,) = replay(found, [delta], 120.0, 50.0)
    return kept


def seconds(times: object) -> list[float]:
    return [time / 1000 - START for time in times]  # type: ignore[attr-defined] # any sequence of times


def test_a_gauge_that_stands_still_only_beats(tmp_path: Path) -> None:
    kept = replayed(tmp_path, lines("a", [5.0] * 121, step=1))
    (points,) = kept.points
    assert len(points.times) == 3
    assert kept.target_info == 3


def test_a_gauge_that_moves_is_sent_with_its_own_time_and_arrives_within_the_linger(tmp_path: Path) -> None:
    (points,) = replayed(tmp_path, lines("a", [5.0] * 10 + [6.0] * 10)).points
    assert seconds(points.times)[:2] == [0, 10]
    assert 10 <= seconds(points.arrivals)[1] <= 15


def test_data_sparser_than_the_linger_arrive_at_once(tmp_path: Path) -> None:
    (points,) = replayed(tmp_path, lines("a", [1.0, 2.0, 3.0, 4.0], step=15)).points
    assert list(points.arrivals) == list(points.times)
    assert list(points.values) == [1, 2, 3, 4]


def test_a_jump_of_a_counter_is_kept_with_its_own_time(tmp_path: Path) -> None:
    (points,) = replayed(tmp_path, lines("a_total", [float(n) for n in range(100)] + [1000.0] * 20)).points
    jump = list(points.values).index(1000.0)
    assert seconds(points.times)[jump] == 100
    assert 100 <= seconds(points.arrivals)[jump] <= 105
    assert all(arrival >= time for time, _, arrival in zip(*points, strict=True))
    assert list(points.arrivals) == sorted(points.arrivals)


def test_both_sides_of_a_reset_are_kept(tmp_path: Path) -> None:
    values = [float(n) for n in range(50)] + [float(n) for n in range(50)]
    (points,) = replayed(tmp_path, lines("a_total", values)).points
    assert {(49.0, 49), (50.0, 0)} <= set(zip(seconds(points.times), points.values, strict=True))


def test_a_histogram_is_kept_whole_and_seldom(tmp_path: Path) -> None:
    text = lines("h_bucket", [n // 2 for n in range(60)], labels='le="1",job="a"')
    text += lines("h_bucket", [float(n) for n in range(60)], labels='le="+Inf",job="a"')
    (points,) = replayed(tmp_path, text).points
    assert 2 <= len(points.times) <= 4
    assert all(value == second for value, second in zip(points.values, seconds(points.times), strict=True))


def test_after_a_long_gap_a_series_begins_anew(tmp_path: Path) -> None:
    text = lines("a", [5.0] * 3) + "".join(f'a{{job="a",instance="b"}} 5.0 {START + 1000 + n}\n' for n in range(3))
    (points,) = replayed(tmp_path, text).points
    assert seconds(points.times)[:2] == [0, 1000]


def test_samples_closer_than_a_tick_are_all_judged(tmp_path: Path) -> None:
    (points,) = replayed(tmp_path, lines("a", [float(n) for n in range(40)], step=0.1), delta=0.0).points
    assert list(points.values) == [float(n) for n in range(40)]


def test_series_read_at_different_times_are_judged_at_their_own(tmp_path: Path) -> None:
    text = lines("a", [1.0, 2.0, 3.0], step=15) + "".join(f"b {n} {START + 15 * n + 7.5}\n" for n in range(3))
    _, found = streamed(tmp_path, text)
    for stream in found:
        ((points,),) = [replay([stream], [0.0], 120.0, 50.0)[0].points]
        assert list(points.times) == list(stream.times)


def test_each_delta_has_a_gate_of_its_own(tmp_path: Path) -> None:
    numbers = random.Random(1)
    _, found = streamed(tmp_path, lines("a", [100 + numbers.gauss(0, 3) for _ in range(200)]))
    judged: list[int] = []
    kept = replay(found, [0.0, 0.05, 1.0], 120.0, 50.0, judged.append)
    counts = [len(each.points[0].times) for each in kept]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 200
    assert counts[2] <= 5
    assert sum(judged) == 200


@given(
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, float("nan"), float("inf")]), min_size=1, max_size=60),
    st.sampled_from([0.01, 0.1, 0.5]),
    st.sampled_from([1.0, 15.0]),
)
def test_no_gauge_is_off_by_more_than_the_delta(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], delta: float, step: float
) -> None:
    _, (stream,) = streamed(tmp_path_factory.getbasetemp(), lines("a", values, step=step))
    ((points,),) = [replay([stream], [delta], 120.0, 50.0)[0].points]
    read = held(points, stream.times)
    assert all(difference(r, true, 0.0) <= delta + 1e-12 for r, true in zip(read, stream.values, strict=True))


def test_series_of_ours_follow_the_catalogue(tmp_path: Path) -> None:
    names = (
        "system_cpu_time_seconds_total",
        "system_memory_utilization_ratio",
        "otelperf_server_up",
        "system.cpu.time",
    )
    assert [in_catalogue(name) for name in (*names, "up")] == [True] * 4 + [False]
    text = lines("otelperf_server_up", [1, 1, 0, 0, 1], step=10) + lines("up", [1, 1, 0, 0, 1], step=10)
    _, found = streamed(tmp_path, text)
    rules = policy(found, 0.05, 120.0, 50.0)
    assert rules.rule("otelperf.server.up", "gauge", {}).kind == "state"
    assert rules.rule("up", "gauge", {}).relative == 0.05


def test_members_of_a_group_of_ours_go_together(tmp_path: Path) -> None:
    modes = {"idle": [0.9] * 20 + [0.5] * 20, "user": [0.1] * 20 + [0.14] * 20}
    text = "".join(
        lines("system_cpu_utilization_ratio", values, labels=f'job="a",cpu_mode="{mode}"')
        for mode, values in modes.items()
    )
    idle, user = replayed(tmp_path, text).points
    assert (20.0 in seconds(idle.times), 20.0 in seconds(user.times)) == (True, True)


def test_a_scrape_reads_the_first_sample_of_each_interval() -> None:
    times = [n * 1000 for n in range(61)]
    assert scraped(times, 15) == [0, 15, 30, 45, 60]
    jittered = [n * 1000 + (n % 3) for n in range(61)]
    assert scraped(jittered, 15) == [0, 15, 30, 45, 60]
    assert scraped([n * 7000 for n in range(10)], 15) == [0, 3, 5, 7, 9]


def test_a_scrape_that_is_not_coarser_than_the_data_is_the_data() -> None:
    assert scraped([n * 15_000 + n % 7 for n in range(9)], 15) is None
    assert scraped([n * 30_000 for n in range(9)], 15) is None
    assert scraped([0], 15) == [0]


def test_after_a_gap_a_scrape_goes_on_with_the_grid() -> None:
    times = [0, 1000, 2000, 100_000, *(n * 1000 for n in range(101, 125))]
    kept = scraped(times, 15)
    assert kept is not None
    assert [times[index] for index in kept] == [0, 100_000, 105_000, 120_000]


def test_the_spacing_is_the_median() -> None:
    assert spacing([0, 1000, 2000, 60_000]) == 1000
    assert spacing([5]) == 0

from __future__ import annotations

import math

import pytest

from benchmarks.fidelity import alerting
from benchmarks.fidelity.alerting import Comparison, Episode
from benchmarks.fidelity.answers import Answers, instants, modelled, questions
from benchmarks.fidelity.inputs import BURSTY, HISTOGRAMS, INPUTS, STATES, Input, Series, load
from benchmarks.fidelity.promql import RATE_2M, VALUE, Stored, histogram_quantile
from benchmarks.fidelity.scoring import Errors, rate_floor, score
from benchmarks.fidelity.ways import SECOND, Point, Replay, TargetInfo, Way, fixed, fixed_requests, gated
from otelperf.gate.marks import is_mark
from otelperf.gate.policy import Rule

START = 1_700_000_400 * SECOND
HOST = frozenset({("device", "vda")})


def stored(*samples: tuple[int, float | None]) -> Stored:
    series = Stored()
    for time, value in samples:
        series.add(time, value)
    return series


def counter(*values: float | None, rule: Rule = Rule(kind="trend", relative=0.1)) -> Series:  # noqa: B008 # frozen
    return Series("requests", "counter", "", {}, rule, values, 1)


def gauge(*values: float | None, rule: Rule = Rule(delta=1.0)) -> Series:  # noqa: B008 # frozen
    return Series("load", "gauge", "", {}, rule, values, 1)


# What Prometheus answers: the numbers are those of its own extrapolation rules.


def test_a_steady_counter_has_its_rate_whatever_the_spacing() -> None:
    for step in (1, 15, 50):
        series = stored(*((second * 1000, 1000.0 + 3 * second) for second in range(0, 300, step)))
        assert series.rate(290_500, 120_000) == pytest.approx(3.0, rel=0.02)


def test_a_rate_needs_two_points_in_the_window() -> None:
    assert stored((0, 1.0), (100_000, 2.0)).rate(130_000, 60_000) is None


def test_a_window_is_open_on_the_left() -> None:
    assert stored((0, 1.0), (60_000, 2.0)).rate(60_000, 60_000) is None
    assert stored((1, 1.0), (60_000, 2.0)).rate(60_000, 60_000) is not None


def test_a_reset_adds_what_was_counted_before_it() -> None:
    series = stored((1_000, 100.0), (30_000, 110.0), (60_000, 5.0))
    assert series.rate(60_500, 60_000) == pytest.approx((5 - 100 + 110) * (59 + 0.5 + 0.5) / 59 / 60)


def test_a_counter_is_not_extrapolated_below_zero() -> None:
    series = stored((30_000, 1.0), (60_000, 31.0))
    assert series.rate(60_000, 60_000) == pytest.approx(30 * (30 + 1) / 30 / 60)


def test_a_value_is_the_newest_one_of_five_minutes_unless_it_ended() -> None:
    series = stored((0, 1.0), (10_000, 2.0))
    assert series.value(5_000) == 1.0
    assert series.value(309_999) == 2.0
    assert series.value(310_000) is None
    series.add(11_000, None)
    assert series.value(12_000) is None


def test_a_late_point_takes_its_place_in_time() -> None:
    assert stored((0, 1.0), (10_000, 3.0), (5_000, 2.0)).value(6_000) == 2.0


def test_a_quantile_is_read_off_its_bucket() -> None:
    assert histogram_quantile(0.5, (1.0, 2.0, 4.0), (0.0, 10.0, 20.0, 20.0)) == 2.0
    assert histogram_quantile(0.75, (1.0, 2.0, 4.0), (0.0, 10.0, 20.0, 20.0)) == 3.0
    assert histogram_quantile(0.5, (1.0, 2.0), (10.0, 10.0, 10.0)) == 0.5
    assert histogram_quantile(0.95, (1.0, 2.0), (0.0, 0.0, 10.0)) == 2.0
    assert histogram_quantile(0.5, (1.0, 2.0), (0.0, 0.0, 0.0)) is None


# The ways.


def test_a_scrape_takes_every_so_many_seconds_and_marks_what_has_gone() -> None:
    way = fixed(Input("tested", 1, [gauge(1, 2, 3, None, None, 6)]), 2, 0)
    assert [Point(0, 0, 0, 1), Point(2, 2000, 0, 3), Point(4, 4000, 0, None)] == way.points


def test_requests_of_a_scrape_carry_its_values_and_marks() -> None:
    recording = Input("tested", 1, [gauge(1, 2, None)])
    requests = list(fixed_requests(fixed(recording, 1, 0), recording, START))
    points = [
        point
        for _, data in requests
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    ]
    assert [0, 1, 2] == [second for second, _ in requests]
    assert [False, False, True] == [is_mark(point) for point in points]
    assert [START + second * SECOND for second in range(3)] == [point.time_unix_nano for point in points]


def test_the_gate_sends_every_change_when_every_change_is_asked_for() -> None:
    values = [float(second % 3) for second in range(100)]
    way = gated(Input("tested", 1, [gauge(*values, rule=Rule())]), START, {"load": Rule()}, linger=0)
    assert values == [point.value for point in way.points]
    assert [point.arrived for point in way.points] == list(range(100))


def test_nothing_arrives_before_it_is_read() -> None:
    recording = load("gpu")
    way = gated(recording, START, recording.rules)
    assert all(point.time <= point.arrived * 1000 for point in way.points)


def test_target_info_is_stored_at_the_first_and_the_last_time_of_a_request() -> None:
    info = TargetInfo()
    counts = []
    for times in [(5_000, 5_000), (6_000, 9_000), (9_000, 9_000), (6_000, 10_000), (6_000, 11_000), (20_000, 220_000)]:
        info.store(*times)
        counts.append(info.samples)
    # 5; 6 and 9; none; 6 again, late, and 10; 11; 20, 170 and 220
    assert counts == [1, 3, 3, 5, 6, 9]


# The inputs.


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_has_no_series_that_is_always_zero_and_none_twice(name: str) -> None:
    recording = load(name)
    assert all(any(series.values) for series in recording.series)
    names = [(series.prometheus_name, series.labels) for series in recording.series]
    assert len(set(names)) == len(names)
    assert {recording.ticks} == {len(series.values) for series in recording.series}


@pytest.mark.parametrize("name", INPUTS)
def test_a_tick_holds_every_series_that_is_there(name: str) -> None:
    recording = load(name)
    tick = Replay(recording, START).tick(10)
    there = sum(series.values[10] is not None for series in recording.series)
    assert there == sum(len(metric.data.data_points) for metric in tick.scope_metrics[0].metrics)


def test_classes_follow_kind_and_how_a_counter_gains() -> None:
    burst = [float(second // 60) for second in range(180)]
    assert BURSTY == counter(*burst).group
    assert counter(*map(float, range(180))).group != BURSTY
    assert STATES == gauge(1, 0, 1, rule=Rule(kind="state")).group
    assert HISTOGRAMS in load("vllm").classes


@pytest.mark.parametrize("name", INPUTS)
def test_every_ratio_and_every_alert_is_about_series_of_its_input(name: str) -> None:
    recording = load(name)
    for ratio in recording.ratios:
        assert recording.chosen(*ratio.above), ratio.name
        assert recording.chosen(*ratio.below), ratio.name
    assert alerting.alerts(name)


# Scores.


def test_dense_data_scored_against_itself_is_without_error() -> None:
    recording = Input("tested", 1, [counter(*(float(second * second) for second in range(200)))])
    dense = fixed(recording, 1, 0)
    answers = modelled(recording, dense)
    (scored,) = score(recording, answers, [(dense, answers)]).values()
    assert scored.of(RATE_2M).worst == 0
    assert scored.of(RATE_2M).no_answer == 0
    assert scored.samples == 200


def test_an_answer_that_is_missing_is_counted_apart() -> None:
    recording = Input("tested", 1, [gauge(*map(float, range(200)))])
    dense = modelled(recording, fixed(recording, 1, 0))
    nothing = Answers(dense.instants, {key: [None] * len(dense.instants) for key in dense.by_series})
    scored = score(recording, dense, [(Way("none", 1), nothing)])
    errors = next(iter(scored.values())).of("bound")
    assert errors.no_answer == 1
    assert math.isnan(errors.worst)


def test_an_instant_sees_only_what_has_arrived() -> None:
    recording = Input("tested", 1, [gauge(*[0.0] * 125, *[1.0] * 75)])
    way = Way("late", None, [Point(0, 0, 0, 0.0), Point(135, 125_000, 0, 1.0)])
    answers = modelled(recording, way)
    place = list(instants(recording)).index(130_500)
    assert answers.by_series[0, VALUE][place] == 0.0
    assert answers.by_series[0, VALUE][place + 1] == 1.0
    assert answers.by_series[0, "stored"][place] == 1.0


def test_what_never_moves_is_not_asked() -> None:
    assert questions(Input("tested", 1, [gauge(1, 1, 1)])) == []


def test_small_rates_are_set_against_a_floor() -> None:
    assert rate_floor(counter(1, 2, rule=Rule(kind="trend", delta=12)), 120, [100.0]) == 1.0
    assert rate_floor(counter(1, 2, rule=Rule(kind="trend", delta=12)), 120, [1.0]) == 0.1


def test_percentiles_are_nearest_rank() -> None:
    errors = Errors([float(number) for number in range(1, 101)])
    assert (50, 99, 100) == (errors.percentile(0.5), errors.percentile(0.99), errors.worst)


# Alerts.


def test_an_alert_fires_once_it_has_been_active_for_long_enough() -> None:
    assert [Episode(HOST, 4, 6)] == alerting.episodes({HOST: [2, 3, 4, 5, 6]}, 30)
    assert alerting.episodes({HOST: [2, 3, 5, 6]}, 30) == []
    assert [Episode(HOST, 2, 2)] == alerting.episodes({HOST: [2]}, 0)


@pytest.mark.parametrize(
    ("way", "missed", "false", "delays"),
    [
        ([Episode(HOST, 4, 6)], 0, 0, [0]),
        ([Episode(HOST, 5, 6)], 0, 0, [15]),
        ([Episode(HOST, 7, 8)], 0, 0, [45]),
        ([Episode(HOST, 8, 9)], 1, 1, []),
        ([Episode(frozenset(), 4, 6)], 1, 1, []),
        ([], 1, 0, []),
    ],
)
def test_firings_are_compared_with_those_of_dense_data(
    way: list[Episode], missed: int, false: int, delays: list[int]
) -> None:
    compared = Comparison()
    alerting.compare([Episode(HOST, 4, 6)], way, compared)
    assert Comparison(1, missed, false, delays) == compared

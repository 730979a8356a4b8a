"""docs/promql.md: each of its lines names the test that shows it, and its expressions are the ones that run here.

Forty minutes of readings, one a second, go through the real gate into a real Prometheus; beside them, under names in `_dense`,
every reading. What is about silence, marks and alerts is in promql/ends_and_alerts.yaml, which promtool runs.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

import pytest
import yaml
from opentelemetry.sdk.metrics.export import Gauge, Metric, Sum

from otelperf.gate.metrics import DeltaGate
from otelperf.gate.policy import Policy, Rule, Threshold
from stack.parts import ROOT, part
from stack.processes import Process, ProcessError, query, series_samples
from tests.end_to_end import test_native_histograms
from tests.end_to_end.otlp import PROMETHEUS_PATH, Direct, post, quiet_prometheus
from tests.gate.world import CUMULATIVE, SECOND, buckets, data, histogram, number

pytestmark = pytest.mark.end_to_end

PAGE = ROOT / "docs" / "promql.md"
CASES = Path(__file__).parent / "promql" / "ends_and_alerts.yaml"
HEARTBEAT = 51  # seconds, with half a tick
LENGTH = 2400
LIVE = "rate(things_total[2m])"  # asked while the points come in

COUNTERS = {"things", "steady", "slow", "hits", "queries", "errors", "level_integral"}
RULES = {
    "level": Rule(delta=1, thresholds=(Threshold(40),)),
    "fill": Rule(delta=0.5),
    "state": Rule("state"),
    "things": Rule("trend", relative=0.1),
    "steady": Rule("trend", relative=0.1),
    "slow": Rule("trend", delta=100),
    "level_integral": Rule("trend", relative=0.1),
    "used": Rule(relative=0.1, group="room"),
    "room": Rule(relative=0.1, group="room"),
    "hits": Rule("trend", relative=0.1, group="cache"),
    "queries": Rule("trend", relative=0.1, group="cache"),
    "errors": Rule("trend"),
}


def make_readings() -> dict[str, list[float]]:
    """Return the readings by name."""
    random, seconds = Random(4), range(LENGTH)

    def level(second: int) -> float:
        if 2220 <= second < 2325:
            return float(random.randint(20, 60))
        return 60.0 if 2325 <= second < 2348 else 2.0

    def things(second: int) -> float:
        return 200.0 if 1500 <= second < 1520 else float(random.randint(5, 15))

    def cumulative(rate: Callable[[int], float]) -> list[float]:
        return list(accumulate(rate(second) for second in seconds))

    found = {"level": [level(second) for second in seconds]}
    found["fill"] = [20 + second / 300 + max(0, second - 2100) / 20 for second in seconds]
    found["state"] = [float(second in range(1700, 1710) or second in range(2000, 2213)) for second in seconds]
    found["things"] = cumulative(things)
    found["things"][2000:] = [value - found["things"][2000] for value in found["things"][2000:]]
    found["steady"] = cumulative(lambda _: 10)
    found["slow"] = cumulative(lambda _: 0.1)
    found["used"] = [100 * 1.01 ** (second % 200) for second in seconds]
    found["room"] = [1000 + second / 10 for second in seconds]
    asked = [random.randint(0, 20) if second % 300 < 200 else 0 for second in seconds]
    found["queries"] = list(accumulate(map(float, asked)))
    found["hits"] = list(accumulate(float(sum(random.random() < 0.7 for _ in range(count))) for count in asked))
    found["errors"] = cumulative(lambda second: float(second in {1000, 2100}))
    found["level_integral"] = list(accumulate(found["level"]))
    return found


def metric(name: str, *points: tuple[int, float], start: int) -> Metric:
    numbers = [number(when, value, start=start) for when, value in points]
    if name.removesuffix("_dense") in COUNTERS:
        return Metric(name, "", "", Sum(numbers, CUMULATIVE, is_monotonic=True))
    return Metric(name, "", "", Gauge(numbers))


@dataclass
class Stored:
    """What Prometheus has; seconds count from the first reading."""

    prometheus: Process
    begin: int
    readings: dict[str, list[float]]
    live: dict[int, float] = field(default_factory=dict)

    def ask(self, promql: str, second: float = LENGTH - 1) -> float | None:
        """Return the one value of a query; None where there is none."""
        series = query(self.prometheus.url, promql, self.begin + second)
        assert len(series) <= 1, series
        return float(series[0]["value"][1]) if series else None

    def one(self, promql: str, second: float = LENGTH - 1) -> float:
        value = self.ask(promql, second)
        assert value is not None, f"{promql} has no answer at {second} s"
        return value

    def each(self, promql: str, since: int = 0, until: int = LENGTH - 1, step: int = 1) -> dict[int, float]:
        """Return the answers from *since* to *until*, by second."""
        found = series_samples(self.prometheus.url, f"({promql})[{until - since + 1}s:{step}s]", self.begin + until)
        return {round(when) - self.begin: value for _, samples in found for when, value in samples}

    def points(self, selector: str, second: float = LENGTH - 1) -> list[tuple[int, float]]:
        """Return the points stored in a range."""
        ((_, samples),) = series_samples(self.prometheus.url, selector, self.begin + second)
        return [(round(when) - self.begin, value) for when, value in samples]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    readings = make_readings()
    with quiet_prometheus(tmp_path_factory.mktemp("promql")) as prometheus:
        # A multiple of the heartbeat and of every step, so that the same numbers come out at any time of the day;
        # within the hour that a new Prometheus takes as in order.
        begin = int(time.time()) // 600 * 600 - 3000
        found = Stored(prometheus, begin, readings)
        start = now = begin * SECOND
        gate = DeltaGate(Direct(prometheus), Policy(RULES), lambda: now, linger=0)
        for second in range(LENGTH):
            gate.export(data(*(metric(name, (now, values[second]), start=start) for name, values in readings.items())))
            if 1500 <= second < 1520:
                found.live[second] = found.one(LIVE, second)
            now += SECOND
        for name, values in readings.items():
            points = [((begin + second) * SECOND, value) for second, value in enumerate(values)]
            post(prometheus.url + PROMETHEUS_PATH, data(metric(f"{name}_dense", *points, start=start)))
        yield found


# Good as they are


def test_level_is_held_within_its_delta(stored: Stored) -> None:
    held = stored.each("level")
    assert len(held) == LENGTH
    assert max(abs(held[second] - value) for second, value in enumerate(stored.readings["level"])) <= 1


def test_a_range_has_many_points_of_busy_times_and_few_of_quiet_ones(stored: Stored) -> None:
    times = [second for second, _ in stored.points("level[10m]")]
    assert 50 <= sum(2240 < second <= 2300 for second in times) <= 60
    assert all(1 <= sum(begin < second <= begin + 60 for second in times) <= 2 for begin in range(1860, 2100, 60))


def test_a_threshold_is_crossed_in_the_same_second(stored: Stored) -> None:
    above = [second for second, value in enumerate(stored.readings["level"]) if value > 40]
    assert len(above) > 50
    assert above == list(stored.each("level > 40"))


def test_a_state_is_told_in_its_second(stored: Stored) -> None:
    assert [second for second, value in enumerate(stored.readings["state"]) if value] == list(stored.each("state == 1"))


def test_the_share_of_time_above_a_threshold_is_exact(stored: Stored) -> None:
    window = stored.readings["level"][-600:]
    assert sum(value > 40 for value in window) / 600 == stored.one("avg_over_time((level > bool 40)[10m:1s])")


def test_deltas_add_up(stored: Stored) -> None:
    truth = [a + b for a, b in zip(stored.readings["level"], stored.readings["fill"], strict=True)]
    shown = stored.each("level + fill")
    assert max(abs(shown[second] - value) for second, value in enumerate(truth)) <= 1.5
    assert stored.one('sum({__name__=~"level|fill"})') == shown[LENGTH - 1]


@pytest.mark.parametrize(
    ("promql", "pick"), [("max_over_time(level[10m])", max), ("min_over_time(level[10m])", min)], ids=["max", "min"]
)
def test_the_highest_is_that_since_the_first_point(
    stored: Stored, promql: str, pick: Callable[[Sequence[float]], float]
) -> None:
    level = stored.readings["level"]
    for second, shown in stored.each(promql, 600).items():
        whole, seen = level[second - 599 : second + 1], level[second - 599 + HEARTBEAT : second + 1]
        low, high = sorted((pick(whole), pick(seen)))
        assert low - 1 <= shown <= high + 1


def test_counters_are_exact(stored: Stored) -> None:
    points = stored.points("things_total[40m]")
    assert points == [(second, stored.readings["things"][second]) for second, _ in points]
    assert len(points) < LENGTH / 6


def test_increases_over_long_windows_miss_a_heartbeat_at_most(stored: Stored) -> None:
    increase = stored.one("increase(things_total[30m])")
    truth = stored.one("increase(things_dense_total[30m])")
    assert abs(increase - truth) <= 2 * HEARTBEAT * 10


def test_every_reset_is_seen(stored: Stored) -> None:
    assert stored.one("resets(things_total[30m])") == stored.one("resets(things_dense_total[30m])") == 1
    things = dict(stored.points("things_total[40m]"))
    assert [things[1999], things[2000]] == stored.readings["things"][1999:2001]


def test_a_ratio_within_a_group_is_a_true_one(stored: Stored) -> None:
    ratios = [used / room for used, room in zip(stored.readings["used"], stored.readings["room"], strict=True)]
    shown = stored.each("used / room")
    read_at = stored.each("timestamp(used)")
    assert {second: ratios[int(at) - stored.begin] for second, at in read_at.items()} == shown
    truth = stored.each("rate(hits_dense_total[5m]) / rate(queries_dense_total[5m])", 600)
    rates = stored.each("rate(hits_total[5m]) / rate(queries_total[5m])", 600)
    assert max(abs(rates[second] / ratio - 1) for second, ratio in truth.items()) <= 0.1


def test_a_single_error_is_counted_once(stored: Stored) -> None:
    assert stored.one("errors_total - errors_total offset 10m") == 1
    seen = list(stored.each("increase(errors_total[10m]) > 0", 700, 1700))
    assert 1000 <= seen[0] <= 1001
    assert 1600 - HEARTBEAT <= seen[-1] <= 1600


# Bounded


def test_a_rise_is_read_at_once(stored: Stored) -> None:
    things = stored.readings["things"]
    for second in range(1500, 1520):
        truth = (things[second] - things[second - 120]) / 120
        assert stored.live[second] == pytest.approx(truth, rel=0.2)
    assert LIVE == "rate(things_total[2m])"


def test_a_steady_counter_is_read_right(stored: Stored) -> None:
    for promql in ("rate(steady_total[2m])", "rate(steady_total[5m])"):
        shown = stored.each(promql, 1200)
        assert len(shown) == LENGTH - 1200
        assert max(abs(value - 10) for value in shown.values()) < 0.001


def test_a_window_needs_two_heartbeats(stored: Stored) -> None:
    assert len(stored.each("rate(slow_total[1m])", 1200)) < 0.5 * (LENGTH - 1200)
    shown = stored.each("rate(slow_total[2m])", 1200)
    assert len(shown) == LENGTH - 1200
    assert (min(shown.values()), max(shown.values())) == pytest.approx((0.1, 0.1))


def test_irate_is_over_whatever_lay_between_two_points(stored: Stored) -> None:
    between = set()
    for second in range(1480, LENGTH, 20):
        if 2000 <= second < 2060:  # a reset
            continue
        *_, (earlier, before), (later, after) = stored.points("things_total[5m]", second)
        between.add(later - earlier)
        assert stored.one("irate(things_total[5m])", second) == pytest.approx((after - before) / (later - earlier))
    assert min(between) <= 2
    assert max(between) >= 20
    assert stored.one("rate(things_total[2m])") == pytest.approx(10, rel=0.1)


def test_a_quantile_is_read_right_within_five_seconds(stored: Stored) -> None:
    promql = "histogram_quantile(0.95, rate(latency_seconds_bucket[2m]))"
    start = now = stored.begin * SECOND
    gate = DeltaGate(Direct(stored.prometheus), Policy({"latency": Rule("histogram", relative=0.1)}), lambda: now)
    counts, off = [0] * 5, []
    for second in range(600):
        for bucket in (0, 1, 1, 1) if not 300 <= second < 380 else (1, 2, 3, 3):
            counts[bucket] += 1
        seen = buckets(now, counts, start=start)
        gate.export(data(histogram("latency", seen)))
        gate.force_flush()
        post(stored.prometheus.url + PROMETHEUS_PATH, data(histogram("latency_dense", seen)))
        if second >= 120:
            shown, truth = stored.one(promql, second), stored.one(promql.replace("latency", "latency_dense", 1), second)
            if second < 420 and abs(shown - truth) > 0.12 * truth:  # where the window begins is known to 10 s
                off.append(second)  # from 420 on, what was slow leaves the window
        now += SECOND
    assert off
    assert not [second for second in off if set(range(second, second + 6)) <= set(off)]
    assert gate.stats.emitted["quantile"] + gate.stats.emitted["rate"] + gate.stats.emitted["heartbeat"] < 60


# Wrong, and what to write


def test_wrong_and_what_to_write(stored: Stored) -> None:
    """The table's numbers are what Prometheus answers."""
    (table,) = re.findall(r"<!-- wrong_and_what_to_write -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    _, _, *rows = table.splitlines()
    assert [with_answers(stored, row) for row in rows] == rows


def with_answers(stored: Stored, row: str) -> str:
    what, bare, _, instead, *_ = (cell.strip() for cell in row.strip("|").split("|"))
    dense = re.sub(r"\b(level|fill)\b", r"\1_dense", bare.strip("`"))
    answers = [_written(stored.ask(promql.strip("`"))) for promql in (bare, instead, dense)]
    return f"| {what} | {bare} | {answers[0]} | {instead} | {answers[1]} | {answers[2]} |"


def _written(answer: float | None) -> str:
    if answer is None:
        return "nothing"
    return f"{answer:,.0f}" if abs(answer) >= 1000 else f"{answer:.3g}"


def test_the_rate_of_the_integral_is_the_mean(stored: Stored) -> None:
    truth = stored.one("avg_over_time(level_dense[10m])")
    assert stored.one("rate(level_integral_total[10m])") == pytest.approx(truth, rel=0.1)


def test_changes_counts_what_was_sent(stored: Stored) -> None:
    assert stored.one("changes(level[10m])") < stored.one("changes(level_dense[10m])")
    toggled = [second for second, (a, b) in enumerate(pairwise(stored.readings["state"]), 1) if a != b]
    missed = set()
    for second in range(1860, LENGTH, 7):
        truth = sum(second - 600 < at <= second for at in toggled)
        assert stored.one("changes(state[10m] anchored)", second) == truth
        missed.add(truth - stored.one("changes(state[10m])", second))
    assert missed == {0, 1}


# anchored and smoothed


def test_anchored_is_an_exact_difference(stored: Stored) -> None:
    promql = "increase(things_total[30m] anchored)"
    things = stored.readings["things"]
    for second in range(1860, LENGTH, 60):
        points = dict(stored.points("things_total[40m]", second))
        newest, held = max(points), max(at for at in points if at <= second - 1800)
        before_reset = things[1999] if newest >= 2000 else 0
        assert stored.one(promql, second) == things[newest] + before_reset - things[held]


def test_anchored_rates_need_long_windows(stored: Stored) -> None:
    shown = stored.each("rate(slow_total[2m] anchored)", 1200).values()
    assert 0.1 * (120 - HEARTBEAT) / 120 <= min(shown) <= 0.085
    assert 0.12 <= max(shown) <= 0.1 * (120 + HEARTBEAT) / 120


def test_smoothed_is_right_once_the_next_point_is_there(stored: Stored) -> None:
    (*_, (newest, _)) = stored.points("slow_total[2m]")
    graph = stored.each("rate(slow_total[2m] smoothed)", 1200, newest)
    assert (min(graph.values()), max(graph.values())) == pytest.approx((0.1, 0.1))
    assert stored.one("rate(slow_total[2m] smoothed)") < 0.099
    assert stored.one("rate(slow_total[2m] smoothed offset 1m)") == pytest.approx(0.1)


def test_modifiers_are_not_for_subqueries(stored: Stored) -> None:
    with pytest.raises(ProcessError):
        stored.ask("increase(things_total[30m:15s] anchored)")


# Grafana


def test_the_rate_interval_of_grafana(stored: Stored) -> None:
    assert len(stored.each("rate(slow_total[200s])", 1200)) == LENGTH - 1200
    assert len(stored.each("rate(slow_total[1m])", 1200)) < LENGTH - 1200


def test_a_graph_is_a_staircase_of_held_values(stored: Stored) -> None:
    points = stored.points("fill[40m]")
    for second, shown in stored.each("fill", 1800, step=15).items():
        assert shown == max(point for point in points if point[0] <= second)[1]


# What promtool runs


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay the page's rules beside the cases and return the cases' file."""
    folder = tmp_path_factory.mktemp("promtool")
    (rules,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "rules.yaml").write_text(rules)
    return Path(shutil.copy(CASES, folder))


@pytest.mark.parametrize("case", [case["name"] for case in yaml.safe_load(CASES.read_text())["tests"]])
def test_case(promtool: Path, case: str) -> None:
    command: list[str | Path] = [part("promtool"), "test", "rules", f"--run=^{case}$", promtool]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# The page


def lines_of_the_page() -> list[tuple[str, set[str]]]:
    """Return each bullet and table row of the page (but for the tested table) with the names of what shows it."""
    text = re.sub(r"<!-- wrong_and_what_to_write -->.*?<!-- end -->|```.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    lines = re.findall(r"^(?:- .*(?:\n  .*)*|\|.*`.*)", text, re.MULTILINE)
    return [(line, set(re.findall(r"<!-- (\w+) -->", line))) for line in lines]


def sources() -> dict[str, str]:
    """Return what each test runs, as text, by name."""
    found = {case["name"]: yaml.safe_dump(case, width=1000) for case in yaml.safe_load(CASES.read_text())["tests"]}
    for module in (sys.modules[__name__], test_native_histograms):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("test_"):
                found[name.removeprefix("test_")] = inspect.getsource(function)
    found["native_histograms_answer_what_buckets_do"] += repr(test_native_histograms.SAME)
    found["the_highest_is_that_since_the_first_point"] += "max_over_time(level[10m]) min_over_time(level[10m])"
    return found


@pytest.mark.parametrize(("line", "shown_by"), lines_of_the_page(), ids=lambda value: str(value)[:40])
def test_each_line_of_the_page_is_shown_by_a_test_that_runs_its_expressions(line: str, shown_by: set[str]) -> None:
    known = sources()
    assert shown_by, "name the test in a comment behind the line"
    assert shown_by <= known.keys()
    expressions = {code for code in re.findall(r"`([^`]+)`", line) if re.search(r"\w[(\[]| [=+*>/-]+ ", code)}
    run = " ".join(known[name] for name in shown_by)
    assert {expression for expression in expressions if expression not in run} == set()

"""State changes: what becomes one, when, for how long the state before it was held, and how it looks as a span."""

from __future__ import annotations

import logging
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from otelperf import catalog, logs
from otelperf.gate.policy import Override, Threshold
from otelperf.readings import Attributes, Batch, Health, Native, Reading, Snapshot
from otelperf.transitions import LEVELS, Transition, Transitions, span

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
SERVER = "server http://vllm:8000"
UP = "otelperf.server.up"
WORKER = "otelperf.worker.state"
CACHE = "otelperf.server.kv_cache.utilization"  # warning above 0.9, critical above 0.98, margins 0.02


def at(seconds: float) -> int:
    return START + int(seconds * SECOND)


def batch(seconds: float, *readings: Reading, source: str = SERVER, entity: str = "vllm") -> Batch:
    return Batch(source, entity, at(seconds), readings)


def snapshot(seconds: float, *batches: Batch, health: tuple[Health, ...] = ()) -> Snapshot:
    return Snapshot(at(seconds), batches, health)


def up(value: int) -> Reading:
    return Reading(UP, value)


def cache(value: float, **attributes: str) -> Reading:
    return Reading(CACHE, value, attributes)


def worker(state: str | None, number: str = "0") -> list[Reading]:
    names = ("active", "idle", "error")
    return [
        Reading(WORKER, int(name == state), {"otelperf.worker.id": number, "otelperf.worker.state": name})
        for name in names
    ]


def changes(tracker: Transitions, *readings: tuple[float, list[Reading]]) -> list[Transition]:
    """Return the changes of one source that is read at these seconds."""
    return [change for seconds, found in readings for change in tracker.of(snapshot(seconds, batch(seconds, *found)))]


class Told(NamedTuple):
    """The change in short: seconds since the start, and the seconds that the state before was held."""

    metric: str
    previous: str
    new: str
    at: float
    duration: float


def told(found: list[Transition]) -> list[Told]:
    return [Told(c.metric, c.previous, c.new, (c.at - START) / SECOND, c.duration) for c in found]


# What has a state


def test_nothing_is_told_on_first_sight_nor_while_nothing_changes() -> None:
    tracker = Transitions()
    assert (
        changes(tracker, (0, [up(1), cache(0.99), *worker("idle")]), (5, [up(1), cache(0.99), *worker("idle")])) == []
    )


def test_a_server_that_goes_down_and_comes_back_is_two_changes() -> None:
    found = changes(Transitions(), *((t, [up(int(t not in (10, 15)))]) for t in (0, 5, 10, 15, 20)))
    assert told(found) == [Told(UP, "up", "down", 10, 10), Told(UP, "down", "up", 20, 10)]
    assert [(change.after, change.partial) for change in found] == [(at(5), True), (at(15), False)]


def test_each_worker_has_a_state_of_its_own() -> None:
    found = changes(
        Transitions(),
        (0, [*worker("idle", "0"), *worker("idle", "1")]),
        (5, [*worker("idle", "0"), *worker("active", "1")]),
        (10, [*worker("error", "0"), *worker("active", "1")]),
    )
    assert told(found) == [Told(WORKER, "idle", "active", 5, 5), Told(WORKER, "idle", "error", 10, 10)]
    assert [change.attributes for change in found] == [{"otelperf.worker.id": "1"}, {"otelperf.worker.id": "0"}]


def test_an_enumeration_of_which_nothing_is_on_is_unknown() -> None:
    found = changes(Transitions(), (0, worker("idle")), (5, worker(None)), (10, worker("idle")))
    assert [(change.previous, change.new) for change in found] == [("idle", "unknown"), ("unknown", "idle")]


def test_what_is_unknown_on_first_sight_has_no_state_yet() -> None:
    assert changes(Transitions(), (0, [*worker(None), cache(float("nan"))]), (5, [*worker("idle"), cache(0.1)])) == []


def test_every_state_of_the_catalogue_is_watched_but_the_agents_own() -> None:
    expected = {
        row.name
        for row in catalog.METRICS
        if (row.rule.kind == "state" and (row.rule.within or row.unit == "1")) or row.rule.thresholds
    } - {"otelperf.source.success"}
    assert {UP, WORKER, CACHE} < expected
    for name in expected:
        tracker = Transitions()
        within = dict.fromkeys(catalog.BY_NAME[name].rule.within, "x")
        first, second = Reading(name, 1, within), Reading(name, 0, within)
        assert len(changes(tracker, (0, [first]), (5, [second]))) == 1, name
    tracker = Transitions()
    number, own = "system.cpu.logical.count", "otelperf.source.success"
    assert (
        changes(tracker, (0, [Reading(number, 4), Reading(own, 1)]), (5, [Reading(number, 2), Reading(own, 0)])) == []
    )


def test_the_page_names_every_metric_that_has_a_state() -> None:
    page = (Path(__file__).parent.parent / "docs" / "state-spans.md").read_text()
    assert {name for name in Transitions()._rows if f"`{name}`" not in page} == set()


def test_a_servers_own_series_by_the_name_of_a_state_is_none() -> None:
    native = Native("gauge")
    assert changes(Transitions(), (0, [Reading(UP, 1, native=native)]), (5, [Reading(UP, 0, native=native)])) == []


# Levels


def test_a_level_is_left_downwards_past_the_margin_only() -> None:
    values = [0.5, 0.91, 0.895, 0.99, 0.97, 0.95, 0.89, 0.87]
    found = changes(Transitions(), *((5.0 * n, [cache(value)]) for n, value in enumerate(values)))
    assert told(found) == [
        Told(CACHE, "normal", "warning", 5, 5),
        Told(CACHE, "warning", "critical", 15, 10),
        Told(CACHE, "critical", "warning", 25, 10),
        Told(CACHE, "warning", "normal", 35, 10),
    ]


def test_a_level_that_ends_carries_its_worst_and_its_mean_over_time() -> None:
    (rise, fall) = changes(
        Transitions(), (0, [cache(0.5)]), (2, [cache(0.92)]), (3, [cache(0.96)]), (6, [cache(0.92)]), (10, [cache(0.2)])
    )
    assert (rise.value, rise.peak, rise.mean) == (0.92, 0.5, 0.5)
    assert (fall.value, fall.peak) == (0.2, 0.96)
    assert fall.mean == pytest.approx((0.92 * 1 + 0.96 * 3 + 0.92 * 4) / 8)


def test_levels_that_are_bad_when_low_have_their_lowest_as_peak() -> None:
    low = (Threshold(10.0, "below", 1.0), Threshold(5.0, "below", 1.0))
    name = "otelperf.server.token.throughput"
    tracker = Transitions([Override(name, {"thresholds": low})])
    found = changes(tracker, *((float(n), [Reading(name, value)]) for n, value in enumerate([20.0, 8.0, 6.0, 12.0])))
    assert told(found) == [Told(name, "normal", "warning", 1, 1), Told(name, "warning", "normal", 3, 2)]
    assert found[1].peak == 6.0


def test_the_users_thresholds_are_obeyed() -> None:
    tracker = Transitions([Override(CACHE, {"thresholds": (Threshold(0.5),)})])
    found = changes(tracker, (0, [cache(0.4)]), (5, [cache(0.6)]), (10, [cache(0.99)]), (15, [cache(0.5)]))
    assert told(found) == [Told(CACHE, "normal", "warning", 5, 5), Told(CACHE, "warning", "normal", 15, 10)]


def test_no_thresholds_no_levels() -> None:
    tracker = Transitions([Override(CACHE, {"thresholds": ()})])
    assert changes(tracker, (0, [cache(0.4)]), (5, [cache(0.99)])) == []


LADDER = (Threshold(0.9, margin=0.02), Threshold(0.98, margin=0.02))


@given(st.lists(st.floats(0.8, 1.1), min_size=1, max_size=30))
def test_a_level_is_as_bad_as_the_value_and_no_worse_than_the_margin_lets_it(values: list[float]) -> None:
    tracker = Transitions()
    for n, value in enumerate(values):
        changes(tracker, (float(n), [cache(value)]))
        (track,) = tracker._tracks.values()
        at_least = sum(value > threshold.value for threshold in LADDER)
        at_most = sum(value > threshold.value - threshold.margin for threshold in LADDER)
        assert at_least <= LEVELS.index(track.seen.state) <= at_most


# Ends


def test_what_the_source_leaves_out_is_unknown_from_then_on() -> None:
    found = changes(Transitions(), (0, [up(1), *worker("idle")]), (5, [up(0)]), (20, [up(1), *worker("active")]))
    assert told(found) == [
        Told(UP, "up", "down", 5, 5),
        Told(WORKER, "idle", "unknown", 5, 5),
        Told(UP, "down", "up", 20, 15),
        Told(WORKER, "unknown", "active", 20, 15),
    ]


def test_a_source_that_falls_silent_held_its_state_until_it_was_last_heard_of() -> None:
    tracker, last = Transitions(), batch(5, up(1))
    assert changes(tracker, (0, [up(1)])) == tracker.of(snapshot(5, last)) == tracker.of(snapshot(60, last)) == []
    (end,) = tracker.of(snapshot(105))
    assert (end.new, end.duration, end.after, end.at) == ("unknown", 5, at(5), at(105))
    (again,) = changes(tracker, (200, [up(1)]))
    assert told([again]) == [Told(UP, "unknown", "up", 200, 195)]


def test_what_was_unknown_for_an_hour_is_forgotten() -> None:
    tracker = Transitions()
    changes(tracker, (0, [up(1)]))
    tracker.of(snapshot(10))
    other = batch(4000, Reading("system.uptime", 1), source="uptime", entity="host")
    assert tracker.of(snapshot(4000, other)) == []
    assert changes(tracker, (4005, [up(0)])) == []


def test_a_server_that_is_known_only_later_goes_on() -> None:
    tracker = Transitions()
    tracker.of(snapshot(0, batch(0, up(0), entity="http://vllm:8000")))
    (change,) = tracker.of(snapshot(5, batch(5, up(1), entity="vllm http://vllm:8000")))
    assert (change.previous, change.new, change.entity) == ("down", "up", "vllm http://vllm:8000")


def test_what_is_left_of_an_older_batch_changes_nothing() -> None:
    tracker = Transitions()
    old = batch(0, *worker("idle"))
    tracker.of(snapshot(0, old))
    part = batch(0, *worker("idle")[:1])  # the sampler leaves in it what the newer one lacks
    assert tracker.of(snapshot(5, part, batch(5, *worker("idle")[1:]))) == []


def test_a_clock_that_is_set_back_shortens_no_state() -> None:
    found = changes(Transitions(), (1000, [up(1)]), (1010, [up(1)]), (100, [up(1)]), (105, [up(0)]))
    assert told(found) == [Told(UP, "up", "down", 105, 15)]


# Bounds


def test_flapping_is_cut_off_and_counted() -> None:
    tracker = Transitions()
    found = changes(tracker, *((float(n), [up(n % 2)]) for n in range(152)))
    assert len(found) == 30 + 150 // 60
    assert found[-1].suppressed > 0
    (late,) = changes(tracker, (600, [up(0)]))
    assert sum(change.suppressed for change in [*found, late]) == 151 - len(found)


def test_workers_that_flap_do_not_silence_their_server() -> None:
    tracker = Transitions()
    found = changes(tracker, *((float(n), [up(1), *worker("active" if n % 2 else "idle")]) for n in range(60)))
    assert len(found) < 40
    assert told(changes(tracker, (60, [up(0), *worker("idle")])))[0][:3] == (UP, "up", "down")


def test_too_many_states_are_refused_and_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otelperf.transitions._log", logs.Log("otelperf.transitions", logs.Repeats()))
    tracker = Transitions(most=2)
    three = [reading for number in "012" for reading in worker("idle", number)]
    with caplog.at_level(logging.WARNING):
        changes(tracker, (0, three))
    assert [message.split(" most")[0] for message in caplog.messages] == ["too many states"]
    busy = [reading for number in "012" for reading in worker("active", number)]
    assert len(changes(tracker, (5, busy))) == 2


def test_those_that_are_gone_make_room() -> None:
    tracker = Transitions(most=1)
    assert changes(tracker, (0, worker("idle", "0")), (5, []), (10, worker("idle", "1")))[0].new == "unknown"
    assert [change.new for change in changes(tracker, (15, worker("active", "1")))] == ["active"]


WORKERS = ("0", "1", "2")
STATES = st.sampled_from(["active", "idle", "error", None, "gone"])
READS = st.lists(st.tuples(st.integers(1, 100), st.tuples(*[STATES] * len(WORKERS)), st.booleans()), max_size=30)


@given(READS)
def test_the_states_of_a_thing_add_up_to_the_time_it_was_watched(
    reads: list[tuple[int, tuple[Any, ...], bool]],
) -> None:
    """And none is lost: each change begins where the last one ended."""
    tracker = Transitions()
    now, last = 0, batch(0)
    sums: dict[str, float] = defaultdict(float)
    seen: dict[str, list[tuple[str, str]]] = defaultdict(list)
    first: dict[str, int] = {}
    for seconds, states, silent in reads:
        now += seconds
        if not silent:
            known = [(number, state) for number, state in zip(WORKERS, states, strict=True) if state != "gone"]
            last = batch(now, *(reading for number, state in known for reading in worker(state, number)))
            for number, state in known:
                if state:
                    first.setdefault(number, now)
        for change in tracker._changes(snapshot(now, last)):
            number = str(change.attributes["otelperf.worker.id"])
            sums[number] += change.duration
            seen[number].append((change.previous, change.new))
    for (_, _, attributes), track in tracker._tracks.items():
        number = str(dict(attributes)["otelperf.worker.id"])
        assert sums[number] == pytest.approx((track.since - START) / SECOND - first[number])
        assert track.since <= track.read <= at(now)
        assert all(earlier[1] == later[0] for earlier, later in pairwise(seen[number]))
        assert all(previous != new for previous, new in seen[number])
        if seen[number]:
            assert seen[number][-1][1] == track.seen.state


# The span

RESOURCE = Resource({"service.name": "vllm"})
SCOPE = InstrumentationScope("otelperf", "1")


def down(message: str = "http://vllm:8000: Connection refused", **more: Any) -> Transition:
    given = Transition(SERVER, "vllm", UP, {}, "up", "down", at(5), at(10), 10.0, partial=False, message=message)
    return given._replace(**more)


def test_a_span_lies_between_the_last_reading_before_and_the_first_after() -> None:
    made = span(down(), RESOURCE, SCOPE)
    assert made.name == "otelperf.server.up down"
    assert (made.start_time, made.end_time) == (at(5), at(10))
    assert (made.kind, made.parent, made.resource) == (SpanKind.INTERNAL, None, RESOURCE)
    assert made.attributes == {
        "otelperf.metric.name": UP,
        "otelperf.state.previous": "up",
        "otelperf.state.new": "down",
        "otelperf.state.duration": 10.0,
    }


def test_a_bad_state_is_an_error_with_what_the_source_said() -> None:
    made = span(down(), RESOURCE, SCOPE)
    assert (made.status.status_code, made.status.description) == (
        StatusCode.ERROR,
        "http://vllm:8000: Connection refused",
    )
    assert span(down(previous="down", new="up"), RESOURCE, SCOPE).status.status_code is StatusCode.UNSET
    assert len(span(down("x" * 5000), RESOURCE, SCOPE).status.description or "") == 200


def test_what_is_not_so_is_left_out_of_the_attributes() -> None:
    level = down(
        metric=CACHE, attributes={"gen_ai.request.model": "tiny"}, new="critical", value=0.99, peak=0.97, mean=0.95
    )
    made = span(level._replace(partial=True, suppressed=3), RESOURCE, SCOPE)
    assert made.attributes == {
        "gen_ai.request.model": "tiny",
        "otelperf.metric.name": CACHE,
        "otelperf.state.previous": "up",
        "otelperf.state.new": "critical",
        "otelperf.state.duration": 10.0,
        "otelperf.state.partial": True,
        "otelperf.state.value": 0.99,
        "otelperf.state.peak": 0.97,
        "otelperf.state.mean": 0.95,
        "otelperf.state.suppressed": 3,
    }


def test_each_span_is_a_sampled_trace_of_its_own() -> None:
    one, other = (span(down(), RESOURCE, SCOPE).get_span_context() for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.is_valid
    assert one.trace_flags.sampled
    assert one.trace_id != other.trace_id


def test_the_message_is_that_of_a_source_in_trouble() -> None:
    tracker = Transitions()
    changes(tracker, (0, [up(1), cache(0.5)]))
    told_by = Health(SERVER, ok=False, absent=False, message="HTTP 503", duration=0.1, last_success=None, failures=1)
    found = tracker.of(snapshot(5, batch(5, up(0), cache(0.99)), health=(told_by,)))
    assert {change.metric: change.message for change in found} == {UP: "HTTP 503", CACHE: ""}


def test_attributes_never_hold_the_state_twice() -> None:
    attributes: Attributes = changes(Transitions(), (0, worker("idle")), (5, worker("active")))[0].attributes
    assert attributes == {"otelperf.worker.id": "0"}

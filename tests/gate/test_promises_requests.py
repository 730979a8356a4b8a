"""Times, requests, heartbeats, failures, ends, memory and counts: what is promised of every stream, whatever comes.

Each promise is a predicate over a story; the tests tell stories and ask all of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import strategies as st

from otelperf.gate.policy import Rule, Threshold
from tests.gate.series import (
    ANY_GAP,
    EVENTS,
    FAST,
    IRREGULAR,
    ODD_GAINS,
    SECONDS,
    STATES,
    VALUES,
    Act,
    Key,
    Series,
    Step,
    Story,
    absent,
    acts,
    given,
    steps,
)
from tests.gate.world import MS, SECOND

RULES = {
    "level": Rule(delta=5, thresholds=(Threshold(3, margin=0.5), Threshold(-3, "below"))),
    "state": Rule(kind="state"),
    "updown": Rule(delta=2, group="g"),
    "grouped": Rule(kind="trend", relative=0.2, delta=3, group="g"),
    "beat": Rule(kind="heartbeat", heartbeat=7.0),
    "off": Rule(kind="off"),
    "slow": Rule(delta=100, heartbeat=11.0),
    "histogram": Rule(kind="histogram", relative=0.1),
    "exponential": Rule(kind="histogram", relative=0.1, group="g"),
}
# One of each kind, some at another home, and two of one metric.
CAST = [
    Series("level"),
    Series("state", scope=1),
    Series("updown", "updown"),
    Series("grouped", "counter"),
    Series("counter", "counter", resource=1),
    Series("counter", "counter", resource=1, attributes=(("device", "x"),)),
    Series("beat", resource=1, scope=1),
    Series("off", "counter", scope=1),
    Series("slow", "updown", scope=1),
    Series("histogram", "histogram"),
    Series("exponential", "exponential"),
    Series("unknown"),
]
SHAPES = {one.key: one.shape for one in CAST}
OF_EACH = [STATES if one.name == "state" else VALUES if one.shape in {"gauge", "updown"} else ODD_GAINS for one in CAST]
LINGERS = st.sampled_from([0, 0, 2])
COMPLETE = st.sampled_from([(), ("complete",)])
GONE = st.sampled_from([None, None, 3.0])
MOST_POINTS = st.sampled_from([1, 2, 2000])
MOST_STREAMS = st.sampled_from([2, 100, 100])


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Thousands of refusals and failures are told otherwise."""
    logging.getLogger("otelperf.gate").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("otelperf.gate").setLevel(logging.NOTSET)


@st.composite
def stories(
    draw: st.DrawFn,
    /,
    gaps: st.SearchStrategy[int] = IRREGULAR,
    events: st.SearchStrategy[str] = EVENTS,
    *,
    offsets: bool = False,
    comes_and_goes: bool = True,
    most: int = 14,
    **options: Any,
) -> Story:
    """Play a few of the cast before a gate; *options* are the gate's, values or strategies."""
    chosen = draw(st.lists(st.integers(0, len(CAST) - 1), min_size=1, max_size=3, unique=True))
    doing: list[Any] = [acts(OF_EACH[i], offsets=offsets, restarts=True) for i in chosen]
    drawn = {"linger": LINGERS, "complete": COMPLETE, "gone_after": GONE, "max_points": MOST_POINTS, **options}
    drawn = {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in drawn.items()}
    story = Story([CAST[i] for i in chosen], RULES, **{**FAST, **drawn})
    if comes_and_goes:
        doing = [absent(one) for one in doing]
    return story.play(draw(steps(*doing, gaps=gaps, events=events, most=most)))


# Time


def times_rise_by_a_millisecond(story: Story) -> None:
    """In every request and from one to the next: Prometheus counts in those. Earlier readings of a counter aside."""
    for key in story.streams():
        for before, after in pairwise(sent for sent in story.arrived(key) if not sent.earlier):
            assert after.point.time_unix_nano - before.point.time_unix_nano >= MS


def nothing_older_comes_but_what_was_tried_before(story: Story) -> None:
    """After a failure or ``forget()`` a point may be sent again, unchanged; never another at its time, nor an older one."""
    for key in story.streams():
        newest, tried = 0, set()
        for sent in story.sent:
            if sent.key == key and not sent.earlier:
                this = (sent.point.time_unix_nano, sent.tag, sent.mark)
                assert this[0] >= newest + MS or this in tried
                newest = max(newest, this[0])
                tried.add(this)


def a_time_is_that_of_the_reading_or_later(story: Story) -> None:
    """Later only where it would not have risen: never for the first of a series."""
    for sent in story.sent:
        if sent.tag >= 0:
            later = sent.point.time_unix_nano - story.readings[sent.tag].point.time_unix_nano
            assert later >= 0
            assert later == 0 or any(r.key == sent.key for r in story.readings[: sent.tag])


def a_start_is_not_later_than_its_point(story: Story) -> None:
    for sent in story.sent:
        if sent.tag >= 0 and SHAPES[sent.key] not in {"gauge", "updown"}:
            assert 0 < sent.point.start_time_unix_nano <= sent.point.time_unix_nano


# Requests


def a_request_is_whole_and_no_larger_than_allowed(story: Story) -> None:
    for request in story.witness.requests:
        assert request.resource_metrics
        assert len({r.resource for r in request.resource_metrics}) == len(request.resource_metrics)
        points = 0
        for resource in request.resource_metrics:
            assert len({s.scope for s in resource.scope_metrics}) == len(resource.scope_metrics) > 0
            for scope in resource.scope_metrics:
                assert len({m.name for m in scope.metrics}) == len(scope.metrics) > 0
                assert all(m.data.data_points for m in scope.metrics)
                points += sum(len(m.data.data_points) for m in scope.metrics)
        assert points <= story.gate._max_points


def nothing_waits_for_longer_than_the_linger(story: Story) -> None:
    """One that would be over before the next export (as far away as the last) is over now. What is urgent does not wait."""
    let_out = {(name, tag): export for export, name, _, tag in story.reasons if tag >= 0}
    urgent = {(e, name, tag) for e, name, reason, tag in story.reasons if reason in {"state", "threshold"}}
    for sent in story.sent:
        export = let_out.get((sent.key[2], sent.tag), sent.export)
        waited = [story.times[e] - story.times[export] for e in range(export, sent.export)]
        assert all(time <= story.gate._linger for time in waited)
        assert sent.export == export or (export, sent.key[2], sent.tag) not in urgent


# Failures


def everything_in_a_failed_request_is_sent_anew(story: Story) -> None:
    """The next reading of each of its streams goes; or the point itself once more, if no later one says the same (a last total)."""
    let_out = {(name, tag) for _, name, _, tag in story.reasons}
    tries = Counter((sent.key, sent.tag) for sent in story.sent)
    for sent in story.sent:
        if not sent.told and not sent.mark:
            anew = next((r for r in story.read(sent.key) if r.export > sent.export), None)
            assert anew is None or tries[sent.key, sent.tag] > 1 or (sent.key[2], anew.tag) in let_out


# Heartbeats


def no_living_stream_is_silent_for_longer_than_its_heartbeat(story: Story) -> None:
    """And half a tick. Where readings are irregular, what was held back was early enough by half of the step before it."""
    for one in story.series:
        heartbeat = int((RULES.get(one.name, Rule()).heartbeat or FAST["heartbeat"]) * SECOND)
        let_out = {tag for _, name, _, tag in story.reasons if name == one.name}
        lives = [r for r in story.read(one.key) if one.name != "counter"]  # there are two of that name
        last = 0
        for before, after in pairwise(lives):
            last = before.now if before.tag in let_out else last
            step = after.now - before.now
            assert after.now - last < heartbeat - step // 2 or after.tag in let_out


def what_only_beats_does_so_no_sooner_than_half_its_heartbeat(story: Story) -> None:
    because = {tag: reason for _, name, reason, tag in story.reasons if name == "beat"}
    for key in story.streams():
        if key[2] == "beat":
            for before, after in pairwise(s for s in story.arrived(key) if not s.mark):
                age = after.point.time_unix_nano - before.point.time_unix_nano
                assert age >= 3.5 * SECOND or because[after.tag] in {"first", "again"}


# Ends


def each_life_ends_in_one_mark(story: Story) -> None:
    """One more only if all that was sent of a life was lost."""
    for key in story.streams():
        handed = [sent for sent in story.sent if sent.key == key and (sent.stored or not sent.mark)]
        handed.sort(key=lambda sent: sent.point.time_unix_nano)  # a last total may come late, after its mark
        assert not any(before.mark and after.mark for before, after in pairwise(handed))
        arrived = [sent for sent in handed if sent.stored]
        assert not arrived or arrived[-1].mark


def a_lost_mark_is_sent_again(story: Story) -> None:
    """Unless the stream is back by then, and so later than its mark."""
    for i, sent in enumerate(story.sent):
        if sent.mark and not sent.told:
            assert any(later.key == sent.key for later in story.sent[i + 1 :])


def a_mark_has_the_shape_of_the_last_point(story: Story) -> None:
    """Else it would leave the other buckets alive."""
    for key in story.streams():
        for before, after in pairwise(story.arrived(key)):
            for name in ("explicit_bounds", "scale"):
                assert not after.mark or getattr(before.point, name, None) == getattr(after.point, name, None)


def a_stream_ends_when_it_is_gone_and_not_before(story: Story) -> None:
    """A complete source's at once; else absent for longer than told, or than two heartbeats and three of its own intervals."""
    told = story.gate._gone_after
    for key in story.streams():
        marks = [sent.export for sent in story.sent if sent.key == key and sent.mark]
        read = {r.export: r.now for r in story.read(key)}
        listed: int | None = None
        times: list[int] = []
        expected = []
        for export in range(1, story.exports + 1):
            now = story.times[export]
            if key in story.listed[export]:
                listed = now
                times += [read[export]] if export in read else []
            elif listed is not None:
                step = times[-1] - times[-2] if len(times) > 1 else 0
                limit = told if told is not None else max(10 * SECOND, 3 * step)
                if key[1] in story.gate._complete or now - listed > limit:
                    expected.append(export)
                    listed, times = None, []
        assert expected == marks


# Memory and counts


def living(story: Story) -> list[tuple[Key, Any]]:
    """Every stream that the gate remembers."""
    found = []
    for tray in story.gate._trays.values():
        for stream in tray.streams():
            resource, scope, name, _, attributes = stream.family.identity(stream)
            found.append(((_number(resource), scope.name, name, attributes), stream))
    return found


def _number(resource: Any) -> int:
    return 0 if resource.attributes["service.name"] == "a" else 1


def it_remembers_what_lives_and_nothing_else(story: Story) -> None:
    gate, streams = story.gate, living(story)
    trays = gate._trays.values()
    assert gate.stats.streams == len(streams) == sum(tray.size for tray in trays) <= gate._max_streams
    busy = {key[0] for key, _ in streams} | {_number(tray.meta.resource) for tray in trays if tray.waiting}
    just_ended = {sent.key[0] for sent in story.sent if sent.export == story.exports}
    assert busy <= {_number(tray.meta.resource) for tray in trays} <= busy | just_ended
    assert len(trays) == len(gate._tray_by_identity)
    scopes = [scope for tray in trays for scope in tray.scopes.values()]
    assert len(scopes) == len({key[:2] for key, _ in streams})
    families = [family for scope in scopes for family in scope.families.values()]
    assert len(families) == len({key[:3] for key, _ in streams})
    assert [len(f.by_identity) for f in families] == [len(f.streams) for f in families]
    groups = Counter(id(stream.group) for _, stream in streams if stream.group is not None)
    assert sorted(g.size for s in scopes for g in s.groups.values()) == sorted(groups.values())


def every_point_seen_is_accounted_for(story: Story) -> None:
    """Each new reading was let out, or held back, or its stream refused."""
    stats = story.gate.stats
    fresh = {r.tag for r in story.readings if r.fresh}
    at_once = {tag for export, _, _, tag in story.reasons if tag >= 0 and story.readings[tag].export == export}
    assert at_once <= fresh
    # What was refused is new when there is room again, also an old reading.
    assert stats.refused or len(fresh) == stats.seen == stats.suppressed + len(at_once)
    assert stats.emitted == Counter(reason for _, _, reason, _ in story.reasons)


def what_is_let_out_is_sent_once(story: Story) -> None:
    let_out = Counter(tag for _, _, _, tag in story.reasons if tag >= 0)
    assert let_out == Counter(sent.tag for sent in story.sent if sent.tag >= 0)
    assert max(let_out.values(), default=1) == 1


# The stories


@given(stories(ANY_GAP, offsets=True, max_streams=MOST_STREAMS))
def test_whatever_comes(story: Story) -> None:
    """Any values, ties and steps back in time, resets, streams that come and go, requests that fail."""
    it_remembers_what_lives_and_nothing_else(story)
    story.gate.force_flush()
    every_point_seen_is_accounted_for(story)
    if not story.gate.stats.refused:
        everything_in_a_failed_request_is_sent_anew(story)
    story.end()
    nothing_older_comes_but_what_was_tried_before(story)
    a_time_is_that_of_the_reading_or_later(story)
    a_request_is_whole_and_no_larger_than_allowed(story)
    each_life_ends_in_one_mark(story)
    a_lost_mark_is_sent_again(story)
    what_only_beats_does_so_no_sooner_than_half_its_heartbeat(story)


@given(stories(ANY_GAP, st.sampled_from(["", "", "flush"]), offsets=True, max_streams=MOST_STREAMS))
def test_when_nothing_is_lost(story: Story) -> None:
    story.end()
    what_is_let_out_is_sent_once(story)
    times_rise_by_a_millisecond(story)


@given(stories(IRREGULAR, st.sampled_from(["", "", "", "forget", "flush"])))
def test_when_nothing_is_lost_and_time_goes_on(story: Story) -> None:
    a_stream_ends_when_it_is_gone_and_not_before(story)
    nothing_waits_for_longer_than_the_linger(story)
    a_start_is_not_later_than_its_point(story)
    story.end()
    a_mark_has_the_shape_of_the_last_point(story)


@given(stories(SECONDS, st.sampled_from(["", "", "", "", "fail", "forget"]), comes_and_goes=False, most=30))
def test_as_long_as_it_lives(story: Story) -> None:
    no_living_stream_is_silent_for_longer_than_its_heartbeat(story)


@given(stories(ANY_GAP, st.sampled_from(["", "", "lost", "lost", "fail", "forget"]), offsets=True))
def test_when_what_arrived_is_told_as_lost(story: Story) -> None:
    everything_in_a_failed_request_is_sent_anew(story)
    story.end()
    nothing_older_comes_but_what_was_tried_before(story)


@given(stories(max_points=st.sampled_from([1, 2000])))
def test_what_is_forgotten_goes_at_the_next_export(story: Story) -> None:
    story.gate.forget()
    story.step(Step(SECOND, tuple(Act(1) for _ in story.series), "flush"))
    assert story.listed[story.exports] == {s.key for s in story.sent if s.export == story.exports and not s.mark}


@given(stories(ANY_GAP, offsets=True), st.booleans())
def test_after_the_end_nothing_passes_and_what_is_spared_gets_no_mark(story: Story, spares: bool) -> None:
    alive = {key for key, stream in living(story) if stream.known and stream.seen}
    before = len(story.sent)
    story.gate.end_streams(spare=lambda resource: spares and _number(resource) == 1)
    marked = {sent.key for sent in story.sent[before:] if sent.mark}
    assert {key for key in alive if not spares or key[0] == 0} == alive & marked
    sent = len(story.sent)
    story.step(Step(SECOND, tuple(Act(1) for _ in story.series)))
    story.gate.force_flush()
    assert len(story.sent) == sent


@given(
    steps(*[st.none() | st.sampled_from([Act(1), Act(50)])] * len(CAST), gaps=IRREGULAR, events=EVENTS, most=6),
    COMPLETE,
)
def test_many_come_and_go(script: list[Step], complete: tuple[str, ...]) -> None:
    story = Story(CAST, RULES, complete=complete, linger=0, gone_after=3.0, **FAST)
    for step in script:
        story.step(step)
        it_remembers_what_lives_and_nothing_else(story)


@given(steps(*[st.none() | st.just(Act(1))] * 5, most=8), st.integers(1, 3))
def test_a_full_gate_refuses_new_streams_and_ended_ones_make_room(script: list[Step], most: int) -> None:
    story = Story(CAST[:5], RULES, max_streams=most, complete=("complete", "foreign"), linger=0, **FAST)
    alive: set[Key] = set()
    refused = 0
    for step in script:
        story.step(step)
        listed = story.listed[story.exports]
        new, room = listed - alive, most - len(alive)
        refused += max(0, len(new) - room)
        assert (story.gate.stats.refused, story.gate.stats.streams) == (
            refused,
            len(alive & listed) + min(room, len(new)),
        )
        alive = {key for key, _ in living(story)}


@given(
    steps(absent(acts(VALUES)), absent(acts(VALUES)), gaps=ANY_GAP, events=EVENTS),
    st.sampled_from([0, 2]),
    st.sampled_from([(), ("complete",)]),
)
def test_delta_temporality_passes_as_it_is(script: list[Step], linger: int, complete: tuple[str, ...]) -> None:
    plain, other = Series("delta", "delta"), Series("level")
    story = Story([plain, other], RULES, linger=linger, complete=complete, **FAST).play(script)
    shown = [r for r in story.readings if r.key == plain.key]
    handed = [sent for sent in story.sent if sent.key == plain.key]
    assert [r.export for r in shown] == [s.export for s in handed]
    assert all(r.point is s.point for r, s in zip(shown, handed, strict=True))
    assert story.gate.stats.emitted["ungated"] == len(shown)

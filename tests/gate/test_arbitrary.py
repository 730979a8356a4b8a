"""Whatever comes: any values, ties and steps back in time, streams that come and go, requests that fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from math import inf, isfinite, nan
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import Metric, MetricExportResult

from otelperf.gate.marks import is_mark
from otelperf.gate.policy import Rule, Threshold
from tests.gate.world import (
    MS,
    SCOPE,
    SECOND,
    START,
    World,
    buckets,
    counter,
    exponential,
    gauge,
    histogram,
    number,
    updown,
)

NAMES = ("gauge", "level", "state", "updown", "counter", "grouped", "histogram", "exponential")
RULES = {
    "gauge": Rule(delta=1.0, relative=0.1),
    "level": Rule(delta=5.0, thresholds=(Threshold(3.0, margin=0.5), Threshold(-3.0, "below"))),
    "state": Rule(kind="state", urgent=True),
    "updown": Rule(delta=2.0, group="g"),
    "grouped": Rule(kind="trend", relative=0.2, delta=3, group="g"),
}
NUMBERS = st.sampled_from([0.0, 1.0, 2.9, 3.1, -4.0, nan, inf, -inf, 1e300, 1e-300]) | st.integers(-5, 50) | st.floats()
OFFSETS = st.sampled_from([0, 0, 0, 0, 0, 1, MS // 2, -SECOND, -3600 * SECOND, 3600 * SECOND])
ANSWERS = st.sampled_from([MetricExportResult.SUCCESS] * 4 + [MetricExportResult.FAILURE, OSError("lost")])


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Thousands of refusals and failures are told otherwise."""
    logging.getLogger("otelperf.gate").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("otelperf.gate").setLevel(logging.NOTSET)


class Step(NamedTuple):
    shown: dict[str, tuple[Any, int]]  # a value, and how far its time is off
    repeats: bool  # the times of the step before
    passes: int
    answers: list[Any]
    forget: bool


STEPS = st.builds(
    Step,
    st.dictionaries(st.sampled_from(NAMES), st.tuples(NUMBERS, OFFSETS)),
    st.sampled_from([False] * 6 + [True]),
    st.sampled_from([SECOND] * 5 + [0, 1, 6 * SECOND, 40 * SECOND, 130 * SECOND, -SECOND, -90 * SECOND]),
    st.lists(ANSWERS, max_size=2),
    st.sampled_from([False] * 9 + [True]),
)


def metric(name: str, value: Any, time: int, start: int) -> Metric:
    count = int(abs(value)) % 50 if isfinite(value) else 0
    if name in {"counter", "grouped"}:
        return counter(name, number(time, value, start=start))
    if name == "updown":
        return updown(name, number(time, value))
    if name == "histogram":
        return histogram(name, buckets(time, [count, 0, 1, 0, count // 2], start=start))
    if name == "exponential":
        return exponential(name, time, count, start=start)
    return gauge(name, number(time, value))


def same(one: Any, other: Any) -> bool:
    if hasattr(one, "value") and one.value != one.value:
        return bool(other.value != other.value)
    return bool(one == other)


@given(
    st.lists(STEPS, max_size=25),
    st.booleans(),
    st.sampled_from([3, 2000]),
    st.sampled_from([5, 100]),
    st.sampled_from([0, START]),
)
def test_whatever_comes_the_gate_keeps_its_word(  # noqa: C901 # one story, told to the end
    steps: list[Step], complete: bool, max_points: int, max_streams: int, start: int
) -> None:
    world = World(RULES, complete=(SCOPE.name,) if complete else (), max_points=max_points, max_streams=max_streams)
    last = world.now
    for step in steps:
        read = last if step.repeats else world.now
        last = read
        world.recorder.answers = list(step.answers)
        if step.forget:
            world.gate.forget()
        world.gate.stats.streams  # noqa: B018 # a reader may look at any time
        world.tick(
            *(metric(n, v, read + off, start) for n, (v, off) in step.shown.items()), seconds=step.passes / SECOND
        )
        assert world.gate.stats.streams <= max_streams

    # Healed: one clean look, and what is held is right again.
    world.recorder.answers = []
    world.now = max(world.now, START) + 2 * 3600 * SECOND
    world.tick(*(metric(n, 2.0, world.now, start) for n in NAMES[:max_streams]))
    world.flush()
    for name in NAMES[:4]:
        if world.points(name) and world.points(name)[-1].time_unix_nano == world.now - SECOND:
            assert abs(world.values(name)[-1] - 2.0) <= 5.0
    world.gate.shutdown()

    delivered: dict[str, list[Any]] = {}
    for request in world.recorder.requests:
        for resource in request.resource_metrics:
            assert len({s.scope for s in resource.scope_metrics}) == len(resource.scope_metrics) > 0
            for scope in resource.scope_metrics:
                assert len({m.name for m in scope.metrics}) == len(scope.metrics) > 0
                for m in scope.metrics:
                    assert m.data.data_points
                    delivered.setdefault(m.name, []).extend(m.data.data_points)
    for name, points in delivered.items():
        assert is_mark(points[-1])
        if name in {"counter", "grouped", "histogram", "exponential"}:  # earlier readings, and totals, may go late
            points.sort(key=lambda point: point.time_unix_nano)
        for before, after in pairwise(points):
            # What a failure or forget() made doubtful may come a second time, unchanged.
            assert after.time_unix_nano - before.time_unix_nano >= MS or (
                same(after, before) and after.time_unix_nano == before.time_unix_nano
            )
    assert world.gate.stats.streams == 0

"""The end of streams: when, in what shape, and what comes after."""

from __future__ import annotations

import struct
from itertools import pairwise

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as EncodedMetric
from opentelemetry.sdk.metrics.export import Metric, MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource

from otelperf.gate.marks import encode, is_mark
from otelperf.gate.policy import Rule
from tests.gate.world import (
    BOUNDS,
    MS,
    OTHER_SCOPE,
    RESOURCE,
    SCOPE,
    SECOND,
    START,
    Recorder,
    World,
    buckets,
    counter,
    data,
    exponential,
    gauge,
    histogram,
    number,
    updown,
)

STALE_NAN_BITS = 0x7FF0000000000002  # prometheus/model/value/value.go


def of_each_kind(time: int) -> tuple[Metric, ...]:
    return (
        gauge("g", number(time, 1.5, {"a": "b"})),
        updown("u", number(time, 3)),
        counter("c", number(time, 7)),
        histogram("h", buckets(time, [1, 2, 3, 4, 5])),
        exponential("e", time, 9),
    )


def ended(world: World) -> MetricsData:
    """Show one of each kind and shut down; return the last request."""
    world.tick(*of_each_kind(world.now))
    world.gate.shutdown()
    return world.recorder.requests[-1]


def encoded_metrics(request: MetricsData) -> dict[str, EncodedMetric]:
    return {m.name: m for r in encode(request).resource_metrics for s in r.scope_metrics for m in s.metrics}


def test_the_mark_of_a_number_has_the_flag_and_no_value() -> None:
    metrics = encoded_metrics(ended(World()))
    for points in (metrics["g"].gauge.data_points, metrics["u"].sum.data_points, metrics["c"].sum.data_points):
        assert [(p.flags, p.WhichOneof("value")) for p in points] == [(1, None)]
    assert [a.key for a in metrics["g"].gauge.data_points[0].attributes] == ["a"]
    assert metrics["c"].sum.is_monotonic


def test_the_mark_of_a_histogram_has_the_flag_and_its_bounds() -> None:
    (point,) = encoded_metrics(ended(World()))["h"].histogram.data_points
    assert (point.flags, tuple(point.explicit_bounds), tuple(point.bucket_counts), point.count) == (
        1,
        BOUNDS,
        (0,) * 5,
        0,
    )
    assert not any(point.HasField(field) for field in ("min", "max"))


def test_the_mark_of_an_exponential_histogram_has_the_flag_and_no_value() -> None:
    (point,) = encoded_metrics(ended(World()))["e"].exponential_histogram.data_points
    assert (point.flags, point.scale, point.count, list(point.positive.bucket_counts)) == (1, 3, 0, [])


def test_a_point_beside_a_mark_keeps_its_value() -> None:
    from opentelemetry.sdk.metrics.export import Gauge

    from otelperf.gate.marks import mark

    points = [number(START, 1.0), mark(number(START, 1.0), START + SECOND), number(START + 2 * SECOND, 2.0)]
    encoded = encoded_metrics(data(Metric("g", "", "1", Gauge(points))))  # type: ignore[arg-type] # marks are points too
    values = [(p.flags, p.as_double if p.HasField("as_double") else None) for p in encoded["g"].gauge.data_points]
    assert values == [(0, 1.0), (1, None), (0, 2.0)]


def test_without_marks_encode_does_what_the_library_does() -> None:
    request = data(*of_each_kind(START))
    assert encode(request) == encode_metrics(request)


def test_a_stock_exporter_sends_the_stale_nan() -> None:
    request = encode_metrics(ended(World(recorder=Recorder(flags_marks=False))))
    points = {m.name: m for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics}
    sent = [points["g"].gauge.data_points[0], points["u"].sum.data_points[0], points["c"].sum.data_points[0]]
    assert [struct.unpack("<Q", struct.pack("<d", p.as_double))[0] for p in sent] == [STALE_NAN_BITS] * 3


def test_a_stock_exporter_gets_no_mark_of_a_histogram() -> None:
    world = World(recorder=Recorder(flags_marks=False))
    ended(world)
    assert {n: len(world.marks(n)) for n in "guche"} == {"g": 1, "u": 1, "c": 1, "h": 0, "e": 1}


def test_a_mark_is_at_least_a_millisecond_after_the_last_point() -> None:
    world = World(complete=(SCOPE.name,))
    world.tick(gauge("m", number(world.now + 10 * SECOND, 1.0)))  # from a clock that is ahead
    world.tick()
    assert [m.time_unix_nano for m in world.marks()] == [START + 10 * SECOND + MS]


def test_a_stream_of_a_complete_scope_ends_at_once() -> None:
    world = World(complete=(SCOPE.name,))
    world.show(1.0)
    world.tick()
    assert [m.time_unix_nano for m in world.marks()] == [START + SECOND]


def test_a_complete_scope_may_vanish_with_its_resource() -> None:
    world = World(complete=(SCOPE.name,))
    world.show(1.0)
    world.gate.export(MetricsData([]))
    assert len(world.marks()) == 1
    assert world.gate.stats.streams == 0


def test_a_foreign_stream_ends_after_two_heartbeats() -> None:
    world = World()
    world.tick(gauge("m", number(world.now, 1.0)), gauge("n", number(world.now, 1.0)))
    while not world.marks() and world.now < START + 1000 * SECOND:
        world.tick(gauge("n", number(world.now, 1.0)))
    assert (world.marks()[0].time_unix_nano - START) / SECOND == 101
    assert world.marks("n") == []


def test_a_stream_read_rarely_ends_after_three_of_its_intervals() -> None:
    world = World()
    for _ in range(3):
        world.show(1.0, seconds=60)
    while not world.marks():
        world.tick()
    assert (world.marks()[0].time_unix_nano - START) / SECOND == 120 + 181


def test_the_absence_after_which_a_stream_ends_can_be_set() -> None:
    world = World(gone_after=3)
    world.show(1.0)
    for _ in range(5):
        world.tick()
    assert [(m.time_unix_nano - START) / SECOND for m in world.marks()] == [4]


def test_a_reading_repeated_long_is_not_gone_at_its_first_absence() -> None:
    world = World()
    for _ in range(300):
        world.tick(gauge("m", number(START, 1.0)))
    world.tick()
    assert world.marks() == []


def test_a_stream_that_returns_is_later_than_its_mark() -> None:
    world = World(complete=(SCOPE.name,))
    reading = gauge("m", number(START, 1.0))
    for metrics in ((reading,), (), (reading,), (), (reading,), (reading,)):
        world.tick(*metrics)
    world.flush()
    times = [p.time_unix_nano for _, _, p in world.arrivals()]
    assert [is_mark(p) for _, _, p in world.arrivals()] == [False, True, False, True, False]
    assert all(b - a >= MS for a, b in pairwise(times))


def test_a_stream_that_returns_with_its_resource_is_later_than_its_mark() -> None:
    world = World(complete=(SCOPE.name,))
    world.show(1.0)
    world.gate.export(MetricsData([]))
    world.gate.export(data(gauge("m", number(START, 1.0)), resource=Resource({"service.name": "tested"})))
    world.flush()
    times = [p.time_unix_nano for _, _, p in world.arrivals()]
    assert len(times) == 3
    assert times == sorted(set(times))


# Shutdown


def test_a_shutdown_marks_every_stream_and_nothing_follows() -> None:
    world = World()
    world.tick(*of_each_kind(world.now))
    world.gate.shutdown()
    assert {n: len(world.marks(n)) for n in "guche"} == dict.fromkeys("guche", 1)
    assert world.recorder.shutdowns == 1
    before = len(world.arrivals())
    assert world.tick(*of_each_kind(world.now)) is MetricExportResult.FAILURE
    world.gate.end_streams()
    world.flush()
    assert len(world.arrivals()) == before


def test_the_end_spares_what_lives_on_but_sends_what_waits() -> None:
    world = World({"m": Rule(delta=0.5)})
    server = Resource({"service.name": "server"})
    for values in ((1.0,), (1.0, 3.0)):  # the second one is new, and waits
        points = [number(world.now, value, {"n": value}) for value in values]
        world.tick(gauge("m", *points), resource=server, seconds=0)
        world.tick(gauge("m", *points))
    world.gate.end_streams(spare=lambda resource: resource == server)
    last = world.recorder.requests[-1]
    by_resource = {
        r.resource: [
            "mark" if is_mark(p) else getattr(p, "value", None)
            for s in r.scope_metrics
            for m in s.metrics
            for p in m.data.data_points
        ]
        for r in last.resource_metrics
    }
    assert by_resource == {server: [3.0], RESOURCE: [1.0, 3.0, "mark", "mark"]}


def test_a_scope_that_ends_and_returns_within_the_linger_is_in_the_request_once() -> None:
    world = World(complete=(SCOPE.name,), recorder=Recorder(flags_marks=False))
    for counts in ([1, 0, 0, 0, 0], None, [1, 0, 0, 0, 0], None, [1, 0, 0, 0, 0]):
        metrics = (histogram("h", buckets(world.now, counts)),) if counts else ()
        world.gate.export(data(gauge("g", number(world.now, 1.0)), scope=OTHER_SCOPE))
        world.tick(*metrics)
    world.flush()
    for request in world.recorder.requests:
        for resource in request.resource_metrics:
            scopes = [s.scope for s in resource.scope_metrics]
            assert len(scopes) == len(set(scopes))

"""What the inner exporter gets, whatever it answers: failures, order, shape, memory, and the stock SDK in front."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource

from otelperf.gate.metrics import DeltaGate, Emission
from otelperf.gate.policy import Override, Policy, Rule
from tests.gate.world import (
    MS,
    OTHER_SCOPE,
    RESOURCE,
    SCOPE,
    SECOND,
    START,
    Recorder,
    World,
    arrivals,
    counter,
    data,
    gauge,
    number,
)

FAILURE = MetricExportResult.FAILURE
HALF = Rule(delta=0.5)


# Failure


@pytest.mark.parametrize("answer", [FAILURE, ConnectionError("nobody there")])
def test_a_value_counts_as_sent_only_on_success(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    world = World({"m": HALF})
    world.recorder.answers = [answer]
    results = [world.tick(gauge("m", number(world.now, 1.0))) for _ in range(8)]
    assert results == [FAILURE] + [MetricExportResult.SUCCESS] * 7
    world.flush()
    assert world.series() == [(1, 1.0)]


def test_only_the_chunk_that_failed_is_sent_anew() -> None:
    world = World(max_points=2)
    world.recorder.answers = [MetricExportResult.SUCCESS, FAILURE]
    world.tick(*(gauge(n, number(world.now, 1.0)) for n in "abcde"))
    world.tick(*(gauge(n, number(world.now, 1.0)) for n in "abcde"))
    world.flush()
    assert {n: [t for t, _ in world.series(n)] for n in "abcde"} == {"a": [0], "b": [0], "c": [1], "d": [1], "e": [0]}


def test_what_is_forgotten_goes_anew_in_chunks() -> None:
    world = World(max_points=10)
    metrics = [f"m{i}" for i in range(25)]
    world.tick(*(gauge(n, number(world.now, 1.0)) for n in metrics))
    world.recorder.requests.clear()
    world.gate.forget()
    world.tick(*(gauge(n, number(world.now, 1.0)) for n in metrics))
    world.flush()
    assert [len(list(arrivals(r))) for r in world.recorder.requests] == [10, 10, 5]
    assert world.gate.stats.emitted["again"] == 25


def test_a_mark_that_could_not_be_sent_is_sent_again_unless_the_stream_is_back() -> None:
    world = World(complete=(SCOPE.name,))
    world.tick(*(counter(n, number(world.now, 1.0)) for n in "ab"))
    world.recorder.answers = [FAILURE]
    world.tick()
    for second in range(8):
        world.tick(counter("a", number(world.now, second)))
    world.flush()
    assert [len(world.marks(n)) for n in "ab"] == [1, 1]
    assert_order(world)
    world = World(complete=(SCOPE.name,))
    world.show(1.0)
    world.recorder.answers = [FAILURE, FAILURE]
    world.tick()
    world.show(1.0, seconds=60)
    world.show(1.0)
    world.flush()
    assert world.marks() == []


def test_forgetting_in_the_middle_of_an_export_is_for_the_next() -> None:
    def observe(_: Emission) -> None:
        if world.now == START:
            world.gate.forget()

    world = World({"m": HALF}, linger=0, observe=observe)
    for _ in range(3):
        world.show(1.0)
    assert [t for t, _ in world.series()] == [0, 1]


def test_attributes_of_any_kind_are_told_apart() -> None:
    world = World(linger=0)
    odd: list[dict[str, Any]] = [{"a": [1, 2]}, {"a": [2, 1]}, {"a": {"b": [1]}}, {"a": [[1], {}]}, {}, {"a": None}]
    for _ in range(2):
        world.tick(gauge("m", *(number(world.now, 1.0, a) for a in odd)))
    assert world.gate.stats.streams == len(odd)
    assert sum(
        len(m.data.data_points)
        for r in world.recorder.requests
        for s in r.resource_metrics[0].scope_metrics
        for m in s.metrics
    ) == len(odd)


def test_the_same_attributes_in_another_order_are_the_same_stream() -> None:
    world = World()
    for attributes in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}):
        world.show(1.0, attributes=attributes)
    assert world.gate.stats.streams == 1


# Time and order


def assert_order(world: World) -> None:
    """Each stream rises by at least a millisecond: Prometheus counts in those."""
    last: dict[Any, int] = {}
    for name, attributes, point in world.arrivals():
        key = name, attributes
        assert point.time_unix_nano - last.get(key, 0) >= MS
        last[key] = point.time_unix_nano


def test_a_reading_whose_clock_was_set_back_is_made_to_rise() -> None:
    world = World(linger=0)
    for offset, value in ((0, 1.0), (-3600, 2.0), (-3600, 3.0), (5, 4.0)):
        world.tick(gauge("m", number(world.now + offset * SECOND, value)))
    assert world.values() == [1.0, 2.0, 3.0, 4.0]
    assert_order(world)


def test_readings_within_a_millisecond_are_spread() -> None:
    world = World(linger=0)
    for nanosecond in range(5):
        world.tick(gauge("m", number(START + nanosecond, nanosecond)), seconds=0)
    assert world.values() == [0, 1, 2, 3, 4]
    assert_order(world)


def test_two_points_of_a_stream_in_one_export_are_both_judged() -> None:
    world = World({"m": Rule(kind="state")})
    for _ in range(3):
        now = world.now
        world.tick(gauge("m", number(now, 0), number(now + SECOND // 2, 1)))
    world.flush()
    assert world.series() == [(0, 0), (0.5, 1), (1, 0), (1.5, 1), (2, 0), (2.5, 1)]
    assert_order(world)


def test_a_gate_whose_clock_stands_or_steps_back_still_judges() -> None:
    world = World({"m": Rule(kind="state")}, complete=(SCOPE.name,))
    for step in (0, 0, -100, 50, 0, -1000):
        world.tick(gauge("m", number(world.now, world.now % 7)), seconds=step)
        world.tick(seconds=0)
    world.gate.shutdown()
    assert_order(world)
    assert world.gate.stats.streams == 0


def test_there_is_one_entry_a_resource_a_scope_and_a_metric_and_none_is_empty() -> None:
    world = World({"a": HALF, "b": HALF, "still": HALF})
    server = Resource({"service.name": "server"})
    for second in (0, 1, 2):
        points = [
            gauge("a", *(number(world.now, 1.0, {"new": n}) for n in range(second + 1))),
            gauge("b", *(number(world.now, 1.0, {"new": n}) for n in range(second + 1))),
            gauge("still", number(world.now, 0.0)),
        ]
        world.gate.export(
            MetricsData(
                [
                    ResourceMetrics(resource, [ScopeMetrics(scope, points, "") for scope in (SCOPE, OTHER_SCOPE)], "")
                    for resource in (RESOURCE, server)
                ]
            )
        )
        world.now += SECOND
    world.recorder.requests.clear()
    world.flush()
    (request,) = world.recorder.requests
    assert [r.resource for r in request.resource_metrics] == [RESOURCE, server]
    for resource in request.resource_metrics:
        assert [s.scope for s in resource.scope_metrics] == [SCOPE, OTHER_SCOPE]
        for scope in resource.scope_metrics:
            assert [(m.name, len(m.data.data_points)) for m in scope.metrics] == [("a", 2), ("b", 2)]


def test_nothing_to_send_is_no_request() -> None:
    world = World()
    world.gate.export(MetricsData([]))
    world.tick(gauge("m"))
    world.flush()
    assert world.recorder.attempts == 0


def test_name_description_unit_and_schema_pass_through() -> None:
    world = World()
    metric = counter("m", number(START, 1))
    world.gate.export(
        MetricsData([ResourceMetrics(RESOURCE, [ScopeMetrics(SCOPE, [metric], "scope schema")], "schema")])
    )
    (resource,) = world.recorder.requests[0].resource_metrics
    assert (resource.schema_url, resource.scope_metrics[0].schema_url) == ("schema", "scope schema")
    assert resource.scope_metrics[0].metrics[0] == metric


def test_an_observer_is_told_each_emission() -> None:
    told: list[Emission] = []
    world = World({"m": HALF}, observe=told.append)
    for value in (1.0, 1.1, 3.0):
        world.show(value)
    world.gate.shutdown()
    assert [(e.reason, e.old and e.old.value, e.new and e.new.value) for e in told] == [  # type: ignore[union-attr] # gauges
        ("first", None, 1.0),
        ("change", 1.0, 3.0),
        ("end", 3.0, None),
    ]


def test_an_observer_that_fails_stops_nothing_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Emission) -> None:
        raise ValueError

    world = World(linger=0, observe=fail)
    for value in (1.0, 2.0, 3.0):
        world.show(value)
    assert world.values() == [1.0, 2.0, 3.0]
    assert [r.message for r in caplog.records] == ["the observer of emissions failed"]


def test_an_override_of_nothing_known_fails_before_any_export() -> None:
    with pytest.raises(TypeError, match="heartbeet"):
        Policy({}, (Override("m", {"heartbeet": 5}),))


def test_a_gate_takes_a_policy_and_no_bare_rules() -> None:
    with pytest.raises(ValueError, match="DeltaGate: policy is "):
        DeltaGate(Recorder(), {"m": Rule()})  # type: ignore[arg-type] # what a newcomer tries


# Memory


def test_a_full_gate_refuses_counts_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World(max_streams=3, complete=(SCOPE.name,))
    for _ in range(2):
        world.tick(*(gauge(n, number(world.now, 1.0)) for n in "abcde"))
    assert (world.gate.stats.streams, world.gate.stats.refused) == (3, 4)
    assert len([r for r in caplog.records if "gate is full" in r.message]) == 1
    world.tick(*(gauge(n, number(world.now, 1.0)) for n in "cde"))
    world.tick(*(gauge(n, number(world.now, 1.0)) for n in "cde"))
    world.flush()
    assert [n for n in "abcde" if world.values(n)] == ["a", "b", "c", "d", "e"]


def entries(gate: DeltaGate) -> int:
    """Count all that the gate remembers by key."""
    scopes = [s for t in gate._trays.values() for s in t.scopes.values()]
    families = [f for s in scopes for f in s.families.values()]
    return (
        len(gate._trays)
        + len(gate._tray_by_identity)
        + len(gate._ended)
        + len(scopes)
        + len(families)
        + sum(len(s.groups) for s in scopes)
        + sum(len(f.streams) + len(f.by_identity) for f in families)
        + sum(len(t.waiting) for t in gate._trays.values())
    )


def test_new_but_equal_resources_and_attributes_do_not_grow() -> None:
    world = World()
    sizes = []
    for _ in range(100):
        world.tick(gauge("m", number(world.now, 1.0, {"a": "b"})), resource=Resource({"service.name": "same"}))
        sizes.append(entries(world.gate))
    assert max(sizes) <= sizes[0] + 1  # a heartbeat may wait


@pytest.mark.parametrize("churning", ["attributes", "names", "resources"])
def test_streams_that_come_and_go_do_not_grow(churning: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otelperf.gate.metrics._MOST_ENDED", 50)
    world = World(
        {"m": Rule(delta=1, group="g")}, max_streams=50, complete=(SCOPE.name,), recorder=Recorder(flags_marks=True)
    )
    sizes = []
    for i in range(300):
        names = ["m"] if churning != "names" else [f"m{i}"]
        resource = RESOURCE if churning != "resources" else Resource({"service.name": str(i)})
        attributes = {"n": i} if churning == "attributes" else {}
        world.tick(*(gauge(n, number(world.now, 1.0, attributes)) for n in names), resource=resource)
        sizes.append(entries(world.gate))
    assert max(sizes) <= 50 + 12


def test_what_was_refused_leaves_nothing_behind() -> None:
    world = World(max_streams=1)
    world.show(1.0)
    before = entries(world.gate)
    for i in range(100):
        world.tick(gauge(f"m{i}", number(world.now, 1.0)), seconds=0)
        world.tick(gauge("m", number(START, 1.0)), seconds=0, resource=Resource({"service.name": str(i)}))
    assert entries(world.gate) == before


def test_the_first_snapshot_is_not_kept() -> None:
    import gc
    import weakref

    world = World()
    metrics = data(gauge("m", number(START, 1.0)))
    point = metrics.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
    world.gate.export(metrics)
    for _ in range(8):
        world.now += SECOND
        world.show(2.0)
    world.recorder.requests.clear()
    gone = weakref.ref(point)
    del metrics, point
    gc.collect()
    assert gone() is None


# The stock SDK in front


def observed(_: CallbackOptions) -> Iterator[Observation]:
    yield Observation(21.5, {"room": "a"})
    yield Observation(19.0, {"room": "b"})


def test_a_meter_provider_reads_through_the_gate() -> None:
    recorder = Recorder()
    reader = PeriodicExportingMetricReader(DeltaGate(recorder), export_interval_millis=float("inf"))
    provider = MeterProvider([reader], Resource({"service.name": "app"}), shutdown_on_exit=False)
    meter = provider.get_meter("app")
    requests = meter.create_counter("requests", "1")
    active = meter.create_up_down_counter("active")
    latency = meter.create_histogram("latency", "s")
    meter.create_observable_gauge("temperature", [observed])
    for i in range(5):
        requests.add(1, {"code": 200})
        active.add(1)
        latency.record(i / 10)
        reader.collect()
    provider.force_flush()
    provider.shutdown()
    points: dict[str, list[Any]] = {}
    for request in recorder.requests:
        for name, _, point in arrivals(request):
            points.setdefault(name, []).append(getattr(point, "value", getattr(point, "count", None)))
    assert {name: values[0] for name, values in points.items()} == {
        "requests": 1,
        "active": 1,
        "latency": 1,
        "temperature": 21.5,
    }
    assert [v for v in points["active"] if v == v] == [1, 2, 3, 4, 5]
    assert 5 in points["requests"]
    assert [str(v) for v in points["temperature"]] == ["21.5", "19.0", "nan", "nan"]
    assert points["latency"][-2:] == [5, 0]  # the last total, then the mark
    assert recorder.shutdowns == 1


def test_a_periodic_reader_reads_through_the_gate() -> None:
    recorder = Recorder()
    reader = PeriodicExportingMetricReader(DeltaGate(recorder), export_interval_millis=20)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider.get_meter("app").create_counter("requests").add(3)
    provider.shutdown()  # collects a last time
    values = [str(p.value) for r in recorder.requests for _, _, p in arrivals(r)]  # type: ignore[union-attr] # a counter
    assert values == ["3", "nan"]


def test_snapshots_of_the_sdk_pass_by_hand() -> None:
    world = World()
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("app")
    meter.create_observable_gauge("temperature", [observed])
    for _ in range(50):
        metrics = reader.get_metrics_data()
        assert metrics is not None
        world.gate.export(metrics)
        world.now += SECOND
    assert world.values("temperature") == [21.5, 19.0]
    assert entries(world.gate) <= 10


def test_the_preferences_of_the_inner_exporter_are_passed_on() -> None:
    preferred: Any = {Counter: AggregationTemporality.DELTA}
    gate = DeltaGate(Recorder(preferred_temporality=preferred))
    assert gate._preferred_temporality == preferred


# The page


DOC = Path(__file__).parents[2] / "docs" / "gate.md"


def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    recorder = Recorder()
    monkeypatch.setattr("opentelemetry.exporter.otlp.proto.http.metric_exporter.OTLPMetricExporter", lambda: recorder)
    monkeypatch.setattr("opentelemetry.metrics.set_meter_provider", lambda _: None)
    names: dict[str, Any] = {}
    exec(example, names)
    names["provider"].shutdown()
    assert {name for r in recorder.requests for name, _, _ in arrivals(r)} == {"room.temperature"}


def test_the_rules_of_the_page_are_settings(tmp_path: Path) -> None:
    from otelperf import config

    (rules,) = re.findall(r"```yaml\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "otelperf.yaml"
    file.write_text(rules, encoding="utf-8")
    settings = config.load({}, {}, file)
    assert len(settings.gate.rules) == 4
    assert Policy({}, settings.gate.rules).rule("system.cpu.utilization", "gauge", {}).delta == 0.05


def test_after_a_rebase_older_points_go_and_every_stream_is_sent_anew() -> None:
    world = World(linger=0)
    world.show(1)
    world.show(1)
    world.now -= 3600 * SECOND
    world.gate.rebase()
    world.show(1)
    world.show(1)
    assert world.series() == [(0.0, 1), (-3598.0, 1)]
    world.show(2)
    assert world.series()[-1] == (-3596.0, 2)


def test_a_forked_child_neither_hangs_nor_ends_what_is_the_parents() -> None:
    import os

    world = World({"m": HALF})
    world.show(1.0)
    world.gate._lock.acquire()  # as if another thread were exporting
    child = os.fork()
    if child == 0:
        world.recorder.requests.clear()
        world.gate.shutdown()
        os._exit(len(world.recorder.requests))
    world.gate._lock.release()
    assert os.waitpid(child, 0)[1] == 0
    world.gate.shutdown()
    assert len(world.marks()) == 1

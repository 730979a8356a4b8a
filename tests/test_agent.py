"""Whole ticks with a manual clock: no thread, no sleep, no network."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otelperf import catalog, config
from otelperf.agent import Agent, Stop, make_budget
from otelperf.connection import Answer
from otelperf.gate.budget import Budget
from otelperf.gate.clock import Clock
from otelperf.gate.metrics import Emission

SECOND = 1_000_000_000
PROC = Path(__file__).parent / "proc" / "vm"


class ManualClock:
    """Unix time in ns that moves when told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def make_agent(clock: ManualClock, **settings: str) -> tuple[Agent, list[Emission]]:
    values = {"metrics.exporter": "none", "endpoint.enabled": "false", "mode": "node", **settings}
    agent = Agent(config.load(values, {}, None), environ={}, clock=clock, threads=False)
    emissions: list[Emission] = []
    agent.gate._observe = emissions.append
    return agent, emissions


def run(agent: Agent, clock: ManualClock, seconds: int) -> None:
    for _ in range(seconds):
        agent.tick()
        clock.pass_seconds(1)


def test_the_first_tick_lets_everything_out_and_a_still_machine_nothing_more(clock: ManualClock) -> None:
    agent, emissions = make_agent(clock, **{"host.root_path": str(PROC)})
    agent.tick()
    assert {emission.reason for emission in emissions} == {"first"}
    first = len(emissions)
    clock.pass_seconds(1)
    agent.tick()
    host = [e for e in emissions[first:] if e.name.startswith("system.") and e.reason != "first"]
    assert host == []
    agent.close()


def test_every_stream_is_heard_of_within_a_heartbeat(clock: ManualClock) -> None:
    agent, emissions = make_agent(clock, **{"host.root_path": str(PROC)})
    run(agent, clock, 240)
    times: dict[tuple[str, str], list[int]] = {}
    for emission in emissions:
        if emission.reason != "previous":  # at its own, earlier time
            times.setdefault((emission.name, str(emission.attributes)), []).append(emission.time)
    gaps = {
        stream: max(b - a for a, b in pairwise(all_times)) / SECOND
        for stream, all_times in times.items()
        if len(all_times) > 1
    }
    # Sources of 5 s are heard at their last reading within half their interval of the heartbeat.
    late = {
        stream: gap for stream, gap in gaps.items() if gap > (catalog.BY_NAME[stream[0]].rule.heartbeat or 50) + 2.5
    }
    assert late == {}
    agent.close()


def test_ticks_go_on_though_every_source_breaks(clock: ManualClock, tmp_path: Path) -> None:
    agent, _ = make_agent(clock, **{"host.root_path": str(tmp_path)})
    run(agent, clock, 3)
    assert agent.snapshot is not None
    assert {batch.entity for batch in agent.snapshot.batches if batch.readings} == {"agent"}
    agent.close()


def test_a_sidecar_leaves_the_host_alone(clock: ManualClock) -> None:
    agent, emissions = make_agent(clock, mode="sidecar", **{"server.find": "false"})
    run(agent, clock, 2)
    assert {e.name for e in emissions if e.name.startswith("system.")} == set()
    agent.close()


def test_gate_off_lets_every_point_out(clock: ManualClock) -> None:
    agent, emissions = make_agent(clock, **{"host.root_path": str(PROC), "gate.enabled": "false"})
    run(agent, clock, 4)
    memory = [e for e in emissions if e.name == "system.memory.limit"]
    assert [e.reason for e in memory] == ["first", "off", "off", "off"]
    agent.close()


def test_closing_ends_every_stream_unless_told_not_to(clock: ManualClock) -> None:
    for marks, expected in (("all", True), ("none", False)):
        agent, emissions = make_agent(clock, **{"host.root_path": str(PROC), "gate.shutdown_marks": marks})
        agent.tick()
        clock.pass_seconds(1)
        streams = agent.gate.stats.streams
        agent.close()
        assert len([e for e in emissions if e.new is None]) == (streams if expected else 0)


def names(emissions: list[Emission]) -> set[str]:
    return {emission.name for emission in emissions}


def test_integrals_are_sent_only_where_they_are_asked_for(clock: ManualClock) -> None:
    for asked, expected in (("", set()), ("system.*", {"system.memory.utilization.integral"})):
        agent, emissions = make_agent(clock, **{"host.root_path": str(PROC), "gate.integrals": asked})
        run(agent, clock, 3)
        assert {name for name in names(emissions) if name.endswith(".integral")} == expected
        assert ("system_memory_utilization_integral_seconds_total" in agent._metrics()[2]) == bool(expected)
        agent.close()


def test_an_integral_adds_up_to_the_time(clock: ManualClock) -> None:
    agent, emissions = make_agent(clock, **{"host.root_path": str(PROC), "gate.integrals": "system.memory.*"})
    run(agent, clock, 120)
    agent.close()
    totals = {
        str(e.attributes): e.new.value
        for e in emissions
        if e.name.endswith(".integral") and isinstance(e.new, NumberDataPoint) and e.reason == "end"
    }
    assert sum(totals.values()) == pytest.approx(119.0)  # the shares of the states add up to 1


def test_bounds_are_published_with_a_budget_or_when_told_to(clock: ManualClock) -> None:
    for given, expected in (
        ({"gate.publish_bounds": "true"}, True),
        ({"gate.budget": "10000"}, True),
        ({"gate.budget": "10000", "gate.publish_bounds": "false"}, False),
        ({}, False),
    ):
        agent, emissions = make_agent(clock, **{"host.root_path": str(PROC), **given})
        run(agent, clock, 7)
        assert ({"otelperf.gate.delta", "otelperf.gate.relative"} <= names(emissions)) == expected
        agent.close()


def test_bounds_are_asked_for_at_each_turn_only_with_a_budget(clock: ManualClock) -> None:
    for given, expected in (({}, False), ({"gate.budget": "10000"}, True), ({"gate.stream_budget": "2"}, True)):
        agent, _ = make_agent(clock, **{"host.root_path": str(PROC), "gate.publish_bounds": "true", **given})
        run(agent, clock, 2)
        now = agent.gate.stats.seen  # any time: the same for both
        assert (agent._read_bounds(now) is not agent._read_bounds(now)) == expected
        agent.close()


def test_bounds_that_stand_still_are_told_at_their_heartbeat_only(clock: ManualClock) -> None:
    agent, emissions = make_agent(clock, **{"host.root_path": str(PROC), "gate.publish_bounds": "true"})
    run(agent, clock, 600)
    told: dict[tuple[str, str], int] = {}
    for emission in emissions:
        if emission.name in {"otelperf.gate.delta", "otelperf.gate.relative"} and emission.new is not None:
            key = emission.name, str(emission.attributes)
            told[key] = told.get(key, 0) + 1
    assert told
    assert max(told.values()) <= 1 + 600 // 55
    agent.close()


def test_the_budget_and_the_backend_reach_the_gate(clock: ManualClock) -> None:
    more = {
        "gate.budget": "100",
        "gate.stream_budget": "2",
        "export.backend": "google",
        "gate.native_histograms": "true",
    }
    agent, emissions = make_agent(clock, **{"host.root_path": str(PROC), **more})
    run(agent, clock, 7)
    assert "otelperf.gate.budget.factor" in names(emissions)
    agent.close()
    assert make_budget(config.load(more)) == Budget(total=100.0, per_stream=2.0)
    assert make_budget(config.load()) is None


def ups(emissions: list[Emission]) -> list[float]:
    """Return what was told of the server's being up, in order."""
    points = [emission.new for emission in emissions if emission.name == "otelperf.server.up"]
    return [point.value for point in points if isinstance(point, NumberDataPoint)]


class _Llama(BaseHTTPRequestHandler):
    """A llama-server as its captures show it."""

    def do_GET(self) -> None:
        pages = {
            "/metrics": "llamacpp:prompt_tokens_total 9\nllamacpp:tokens_predicted_total 400\nllamacpp:requests_processing 0\n",
            "/slots": json.dumps([{"id": 0, "n_ctx": 512, "is_processing": False, "n_prompt_tokens": 256}]),
            "/props": json.dumps(
                {"total_slots": 1, "model_alias": "tiny", "default_generation_settings": {"n_ctx": 512}}
            ),
        }
        body = pages[self.path].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def llama() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Llama) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_a_server_that_stops_ends_in_the_next_reading_and_up_stays(clock: ManualClock, llama: HTTPServer) -> None:
    url = f"http://127.0.0.1:{llama.server_port}"
    agent, emissions = make_agent(clock, mode="sidecar", **{"server.url": url})
    run(agent, clock, 6)
    assert ups(emissions) == [1]
    llama.shutdown()
    llama.server_close()
    agent.servers[0].close()
    before = len(emissions)
    run(agent, clock, 6)
    ended = {e.name for e in emissions[before:] if e.new is None}
    assert "otelperf.server.tokens" in ended
    assert "otelperf.worker.state" in ended
    assert ups(emissions) == [1, 0]
    agent.close()


def test_a_server_that_lives_on_is_not_ended_by_the_agents_own_stop(clock: ManualClock, llama: HTTPServer) -> None:
    url = f"http://127.0.0.1:{llama.server_port}"
    agent, emissions = make_agent(clock, mode="sidecar", **{"server.url": url})
    run(agent, clock, 2)
    agent.close()
    ended = {e.name for e in emissions if e.new is None}
    assert "process.memory.usage" in ended
    assert {name for name in ended if name.startswith("otelperf.server")} == set()


def test_a_stuck_tick_is_unhealthy_and_an_absent_collector_is_not(clock: ManualClock) -> None:
    agent, _ = make_agent(clock, **{"host.root_path": str(PROC)})
    assert agent._readyz()[0] == 503
    agent.tick()
    assert (agent._healthz()[0], agent._readyz()[0]) == (200, 200)
    agent._last_tick -= 1000
    assert agent._healthz()[0] == 503
    agent.close()


def test_a_server_that_is_being_read_is_still_up(clock: ManualClock, llama: HTTPServer) -> None:
    agent, _ = make_agent(clock, mode="sidecar", **{"server.url": f"http://127.0.0.1:{llama.server_port}"})
    agent.tick()
    (server,) = agent.servers
    seen: list[bool] = []
    fetch = server._get

    def look_and_fetch(path: str) -> Answer:
        seen.append(server.up)
        return fetch(path)

    server._get = look_and_fetch  # type: ignore[method-assign] # a look in between
    run(agent, clock, 6)
    assert seen
    assert all(seen)
    agent.close()


def test_a_clock_set_back_far_is_followed() -> None:
    wall, monotonic = [1_800_000_000 * SECOND], [0]
    agent, emissions = make_agent(Clock(lambda: wall[0], lambda: monotonic[0]), **{"host.root_path": str(PROC)})  # type: ignore[arg-type] # as the agent's own

    agent._sampler._steady = lambda: monotonic[0]

    def pass_second() -> None:
        agent.tick()
        wall[0] += SECOND
        monotonic[0] += SECOND

    pass_second()
    wall[0] -= 7200 * SECOND
    for _ in range(3):
        pass_second()
    limit = [e for e in emissions if e.name == "system.memory.limit"]
    assert [(e.reason, e.time // SECOND) for e in limit] == [("first", 1_800_000_000), ("again", 1_800_000_000 - 7198)]
    agent.close()


def test_a_stop_is_waited_for_and_may_be_set_in_a_signal_handler() -> None:
    stop = Stop()
    assert not stop.wait(0)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGTERM, stop.on_signal)
    signal.raise_signal(signal.SIGTERM)
    assert stop.wait(0)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


def test_a_server_that_is_found_is_read_under_its_own_name(clock: ManualClock, llama: HTTPServer) -> None:
    agent, emissions = make_agent(clock, mode="sidecar", **{"server.ports": str(llama.server_port)})
    run(agent, clock, 12)
    (server,) = agent.servers
    assert server.url == f"http://127.0.0.1:{llama.server_port}"
    assert ups(emissions) == [1]
    assert agent._resource_of[server.entity].attributes["service.name"] == "llama.cpp"
    agent.close()
    assert {e.name for e in emissions if e.new is None and e.name.startswith("otelperf.server")} == set()


def test_a_server_that_moves_to_another_port_ends_there_and_begins_here(clock: ManualClock) -> None:
    with HTTPServer(("127.0.0.1", 0), _Llama) as reserved:
        other = reserved.server_port
    old = HTTPServer(("127.0.0.1", 0), _Llama)
    agent, emissions = make_agent(clock, mode="sidecar", **{"server.ports": f"{old.server_port},{other}"})

    def serve(server: HTTPServer, seconds: int) -> None:
        with server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            run(agent, clock, seconds)
            server.shutdown()
            for each in agent.servers:
                each._connection.close()

    serve(old, 20)
    (before,) = agent.servers
    resource = agent._resource_of[before.entity]
    serve(HTTPServer(("127.0.0.1", other), _Llama), 120)
    (after,) = agent.servers
    assert after.url == f"http://127.0.0.1:{other}"
    assert (
        agent._resource_of[after.entity].attributes["service.instance.id"] != resource.attributes["service.instance.id"]
    )
    ours = [each for each in emissions if each.resource == resource and each.name.startswith("otelperf.server")]
    known = {(each.name, str(each.attributes)) for each in ours}
    ended = [(each.name, str(each.attributes)) for each in ours if each.new is None]
    assert sorted(known) == sorted(ended)
    assert ups(ours)[-1] == 0  # docs/promql.md tells by that what has moved from what is lost
    assert before.entity not in agent._resource_of
    assert not any(each.new is None for each in emissions if each.resource == agent._resource_of[after.entity])
    agent.close()


def test_nothing_is_looked_for_on_a_plain_machine_or_where_a_url_is_given(clock: ManualClock) -> None:
    for more in ({"mode": "node"}, {"mode": "sidecar", "server.url": "http://127.0.0.1:1"}):
        agent, _ = make_agent(clock, **{"host.root_path": str(PROC), **more})
        assert agent._finder is None
        agent.close()


def test_a_server_that_is_recognised_late_keeps_its_instance(clock: ManualClock, llama: HTTPServer) -> None:
    url = f"http://127.0.0.1:{llama.server_port}"
    agent, emissions = make_agent(clock, mode="sidecar", **{"server.url": url})
    (server,) = agent.servers
    unknown = agent._resource_of[server.entity].attributes
    run(agent, clock, 6)
    known = agent._resource_of[server.entity].attributes
    assert (unknown["service.name"], known["service.name"]) == ("unknown_service", "llama.cpp")
    assert unknown["service.instance.id"] == known["service.instance.id"]
    assert ups(emissions) == [1]
    agent.close()


@pytest.mark.parametrize("setting", ["server.url", "server.ports"])
def test_the_engine_of_a_server_is_told_once(
    clock: ManualClock, llama: HTTPServer, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    caplog.set_level(logging.INFO, "otelperf.agent")
    url = f"http://127.0.0.1:{llama.server_port}"
    agent, _ = make_agent(
        clock, mode="sidecar", **{setting: url if setting == "server.url" else str(llama.server_port)}
    )
    run(agent, clock, 20)
    event = "server recognised" if setting == "server.url" else "server found"
    assert [message for message in caplog.messages if "engine=" in message] == [f"{event} url={url} engine=llama.cpp"]
    agent.close()


class _Spans(SpanExporter):
    """Takes spans, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.spans: list[ReadableSpan] = []
        self.error = error

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.error:
            raise self.error
        self.spans += spans
        return SpanExportResult.SUCCESS

    def states(self) -> list[tuple[str, object, object]]:
        """Return name, the finished state and how long it was held, in order."""
        told = [(span.name, span.attributes or {}) for span in self.spans]
        return [(name, a["otelperf.state.previous"], a["otelperf.state.duration"]) for name, a in told]


def test_what_changes_its_state_is_told_as_a_span_of_its_own_resource(clock: ManualClock, llama: HTTPServer) -> None:
    url = f"http://127.0.0.1:{llama.server_port}"
    agent, _ = make_agent(clock, mode="sidecar", **{"server.url": url, "traces.exporter": "otlp"})
    (server,) = agent.servers
    spans = agent.span_exporter = _Spans()
    run(agent, clock, 6)
    assert spans.spans == []
    llama.shutdown()
    llama.server_close()
    server.close()
    run(agent, clock, 6)
    assert ("otelperf.server.up down", "up", 10.0) in spans.states()
    assert ("otelperf.worker.state unknown", "idle", 10.0) in spans.states()
    assert {span.resource.attributes["service.name"] for span in spans.spans} == {"llama.cpp"}
    before = len(spans.spans)
    agent.close()
    assert len(spans.spans) == before


def test_spans_that_fail_keep_no_metrics_back(
    clock: ManualClock, llama: HTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{llama.server_port}"
    agent, emissions = make_agent(clock, mode="sidecar", **{"server.url": url, "traces.exporter": "otlp"})
    agent.span_exporter = _Spans(RuntimeError("broken"))
    run(agent, clock, 6)
    llama.shutdown()
    llama.server_close()
    agent.servers[0].close()
    run(agent, clock, 6)
    assert ups(emissions) == [1, 0]
    assert 'state changes not told problem="RuntimeError: broken"' in caplog.text
    agent.close()


def test_spans_cost_no_thread_before_the_first_and_none_at_all_where_they_go_nowhere(clock: ManualClock) -> None:
    agent, _ = make_agent(clock, **{"host.root_path": str(PROC), "traces.exporter": "otlp"})
    assert agent._span_sender is not None
    run(agent, clock, 3)
    assert not agent._span_sender.started
    agent.close()
    agent, _ = make_agent(clock, **{"host.root_path": str(PROC)})
    assert (agent._span_sender, agent.span_exporter, agent._transitions) == (None, None, None)
    agent.close()


def test_the_states_of_a_server_that_has_moved_end_with_it(clock: ManualClock, llama: HTTPServer) -> None:
    ports = {"server.ports": str(llama.server_port), "traces.exporter": "otlp"}
    agent, _ = make_agent(clock, mode="sidecar", **ports)
    spans = agent.span_exporter = _Spans()
    run(agent, clock, 12)
    assert agent._finder is not None
    agent._finder.gone.append(agent.servers[0])
    run(agent, clock, 1)
    assert "otelperf.server.up unknown" in {name for name, _, _ in spans.states()}
    assert {span.resource.attributes["service.name"] for span in spans.spans} == {"llama.cpp"}
    agent.close()

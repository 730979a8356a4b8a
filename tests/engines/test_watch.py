"""What a server's pages say together: states, restarts and last words, on canned readings and by a manual clock."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf import catalog, config
from otelperf.agent import Agent, make_search
from otelperf.errors import SourceError
from otelperf.readings import Reading
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import ACTIVE, MODEL, OUTPUT, RUNNING, TOKENS, WAITING, Engine
from otelperf.sources.engines.exposition import Lines, Place
from otelperf.sources.engines.finder import Finder
from otelperf.sources.engines.llamacpp import LLAMACPP
from otelperf.sources.engines.own_maps import engine_of
from otelperf.sources.engines.server import Server
from otelperf.sources.engines.sglang import SGLANG
from otelperf.sources.engines.stuck import Name
from otelperf.sources.engines.tgi import TGI
from otelperf.sources.engines.vllm import VLLM
from otelperf.sources.engines.watch import Signs, Silence, Watch, counters_of, steps_of
from tests.engines.loopback import Loopback, message, saying

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
INDEX = "otelperf.server.engine.index"
STATE = "otelperf.server.state"
ENGINE_STATE = "otelperf.server.engine.state"
RESTARTS = "otelperf.server.restarts"
EXITS = "otelperf.server.exits"
ALONE: Name = ()
Told = list[tuple[str, dict[str, Any]]]


@dataclass
class Proc:
    """A process in sight, as the watch wants it."""

    pid: int = 1
    arguments: int | None = 1
    started: int = START - 30 * SECOND
    end: str | None = None
    closed: bool = False

    def ended(self) -> str | None:
        return self.end

    def close(self) -> None:
        self.closed = True


@dataclass
class Watched:
    """A server that is watched, a reading each 5 s."""

    processes: list[Proc] = field(default_factory=list)  # to be found, one after the other
    local: bool = True
    now: int = START
    told: Told = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    sought: int = 0

    def __post_init__(self) -> None:
        self.watch = Watch(
            "http://127.0.0.1:8000",
            stuck_after=60,
            find=self.find,
            local=self.local,
            tell=lambda event, fields: self.told.append((event, fields)),
        )

    def find(self) -> Proc | None:
        self.sought += 1
        return self.processes.pop(0) if self.processes else None

    def ready(
        self,
        running: float = 0,
        tokens: float = 0,
        *,
        model: str = "tiny",
        started: int | None = None,
        engines: Mapping[str, tuple[float, float]] | None = None,
        steps: bool = True,
        engine: str = "vllm",
    ) -> Watched:
        """Let it answer; *engines* are running requests and tokens by index."""
        self.now += 5 * SECOND
        found = list[Reading]()
        each: dict[Name, tuple[float, float]] = {
            ((INDEX, index),): work for index, work in (engines or {}).items()
        } or {ALONE: (running, tokens)}
        for name, (requests, count) in each.items():
            found.append(Reading(ACTIVE, requests, {**dict(name), **RUNNING, MODEL: model}))
            found.append(Reading(ACTIVE, 0, {**dict(name), **WAITING, MODEL: model}))
            found.append(Reading(TOKENS, count, {**dict(name), **OUTPUT, MODEL: model}))
        moved: dict[Name, tuple[float | None, ...]] = {name: (count,) for name, (_, count) in each.items()}
        total = sum(count for _, count in each.values())
        signs = Signs(engine, moved if steps else {}, {"tokens": total}, started)
        self.readings = self.watch.answered(self.now, found, signs)
        return self

    def silent(self, state: Silence) -> Watched:
        self.now += 5 * SECOND
        self.readings = self.watch.silent(self.now, state)
        return self

    def values(self, name: str) -> dict[str, float]:
        """Return a metric's values by the attribute that is its own."""
        own = {RESTARTS: "otelperf.server.restart.changed", EXITS: "otelperf.server.exit.reason"}.get(name, name)
        own = "otelperf.server.startup.phase" if name == "otelperf.server.startup.duration" else own
        return {str(r.attributes[own]): r.value for r in self.readings if r.name == name}  # type: ignore[misc] # numbers

    @property
    def state(self) -> str:
        [state] = [name for name, value in self.values(STATE).items() if value == 1]
        return state

    def engine_states(self) -> dict[str, str]:
        found = [r.attributes for r in self.readings if r.name == ENGINE_STATE and r.value == 1]
        return {str(a[INDEX]): str(a[ENGINE_STATE]) for a in found}


# -- state


@pytest.mark.parametrize("state", ["loading", "unresponsive", "error", "down"])
def test_a_server_that_says_nothing_of_its_own_is_in_the_state_that_was_seen(state: Silence) -> None:
    watched = Watched().silent(state)
    assert watched.values(STATE) == {
        each: int(each == state) for each in ("ready", "loading", "unresponsive", "error", "down")
    }


def test_stuck_is_a_state_only_where_it_can_be_told() -> None:
    assert "stuck" not in Watched().ready(steps=False).values(STATE)
    assert Watched().ready().values(STATE)["stuck"] == 0
    assert Watched().ready().silent("down").values(STATE)["stuck"] == 0


def test_a_server_is_stuck_until_its_first_token() -> None:
    watched = Watched().ready(1, 10)
    states = [watched.ready(1, 10).state for _ in range(13)]
    assert states == ["ready"] * 11 + ["stuck"] * 2
    assert watched.ready(1, 11).state == "ready"
    assert [event for event, _ in watched.told] == ["engine is stuck", "engine is ok"]


def test_one_that_is_restarted_and_no_longer_tells_its_steps_is_not_stuck() -> None:
    watched = Watched()
    for _ in range(14):
        watched.ready(running=1, tokens=10)
    assert watched.state == "stuck"
    assert watched.ready(running=1, tokens=0, steps=False).state == "ready"


def test_a_server_that_hangs_is_unresponsive_and_not_stuck_when_it_answers_again() -> None:
    watched = Watched().ready(1, 10).ready(1, 10)
    for _ in range(60):
        assert watched.silent("unresponsive").state == "unresponsive"
    assert watched.ready(1, 10).state == "ready"


def test_one_stuck_engine_of_several_is_told_and_makes_the_server_stuck() -> None:
    watched = Watched()
    for step in range(14):
        watched.ready(engines={"0": (1, 10 * step), "1": (1, 10)})
    assert watched.engine_states() == {"0": "ok", "1": "stuck"}
    assert watched.state == "stuck"
    assert watched.told == [
        ("engine is stuck", {"url": "http://127.0.0.1:8000", "engine": "1", "running": 1, "waiting": 0.0})
    ]


def test_an_engine_alone_has_no_state_of_its_own() -> None:
    assert Watched().ready(engines={"0": (1, 10)}).engine_states() == {}


def test_a_straggling_engine_is_told() -> None:
    watched = Watched()
    for step in range(20):
        watched.ready(engines={"0": (4, 400 * step), "1": (4, 40 * step), "2": (4, 410 * step)})
    assert watched.engine_states() == {"0": "ok", "1": "straggling", "2": "ok"}
    assert watched.state == "ready"


def test_a_page_that_did_not_come_changes_no_engine() -> None:
    watched = Watched().ready(1, 10)
    for _ in range(13):
        watched.ready(1, 10)
    assert watched.state == "stuck"
    assert watched.ready(1, 10, steps=False).state == "stuck"


# -- restarts


def test_a_server_that_goes_and_comes_back_was_restarted() -> None:
    watched = Watched().ready()
    assert watched.values(RESTARTS) == {"model": 0, "unknown": 0}
    watched.silent("down").silent("loading").ready()
    assert watched.values(RESTARTS) == {"model": 0, "unknown": 1}


def test_a_server_that_comes_the_first_time_was_not_restarted() -> None:
    watched = Watched().silent("down").silent("loading").silent("loading").ready()
    assert watched.values(RESTARTS) == {"model": 0, "unknown": 0}


def test_a_fallen_counter_is_a_restart_that_nobody_saw() -> None:
    watched = Watched().ready(1, 100).ready(1, 3)
    assert watched.values(RESTARTS)["unknown"] == 1


def test_another_process_start_is_a_restart_and_the_same_is_none() -> None:
    watched = Watched().ready(started=START).silent("down").ready(started=START)
    assert watched.values(RESTARTS)["unknown"] == 0
    assert watched.ready(started=START + 1).values(RESTARTS)["unknown"] == 1


@pytest.mark.parametrize("state", ["unresponsive", "error", "loading"])
def test_a_server_that_did_not_refuse_is_the_same(state: Silence) -> None:
    watched = Watched().ready(1, 10).silent(state).ready(1, 10)
    assert watched.values(RESTARTS) == {"model": 0, "unknown": 0}


def test_elsewhere_a_refusal_may_be_the_networks_and_only_counters_tell() -> None:
    watched = Watched(local=False).ready(1, 10).silent("down").ready(1, 10)
    assert watched.values(RESTARTS)["unknown"] == 0
    assert watched.silent("down").ready(1, 3).values(RESTARTS)["unknown"] == 1


def test_another_model_is_told_by_name_in_the_log_and_by_one_word_in_the_metric() -> None:
    watched = Watched().ready(model="old").silent("down").ready(model="new")
    assert watched.values(RESTARTS) == {"model": 1, "unknown": 0}
    assert watched.told == [
        (
            "server restarted",
            {"url": "http://127.0.0.1:8000", "changed": "model", "model": "new", "model_before": "old"},
        )
    ]


def test_arguments_are_compared_where_the_process_is_in_sight() -> None:
    watched = Watched([Proc(1, 11), Proc(2, 11), Proc(3, 33), Proc(4, None)]).ready()
    counts = []
    for _ in range(3):
        assert watched.watch.process is not None
        watched.watch.process.end = "exit:0"  # type: ignore[attr-defined] # it is a Proc
        watched.silent("down").ready()
        counts.append(watched.values(RESTARTS))
    assert counts == [
        {"model": 0, "arguments": 0, "none": 1},
        {"model": 0, "arguments": 1, "none": 1},
        {"model": 0, "arguments": 1, "none": 1, "unknown": 0},  # a new series begins with 0
    ]
    assert watched.ready().values(RESTARTS)["unknown"] == 1


def test_a_server_that_dies_again_before_it_is_ready_is_counted_each_time() -> None:
    watched = Watched().ready(model="old")
    for _ in range(5):
        watched.silent("down").silent("loading")
    assert watched.silent("down").values(RESTARTS) == {"model": 0, "unknown": 5}
    assert watched.ready(model="new").values(RESTARTS) == {"model": 1, "unknown": 5}


def test_another_server_in_its_place_is_told() -> None:
    watched = Watched().ready().ready(engine="sglang")
    assert watched.values(RESTARTS) == {"model": 0, "unknown": 0, "engine": 0}
    assert watched.ready(engine="sglang").values(RESTARTS)["engine"] == 1
    # Each engine's series are its own: they begin with what was counted before, so that the change is an increase.
    assert watched.ready(engine="vllm").values(RESTARTS)["engine"] == 1
    assert watched.ready(engine="vllm").values(RESTARTS)["engine"] == 2


# -- the process


def test_the_process_is_looked_for_once_for_each_start() -> None:
    watched = Watched()
    for _ in range(5):
        watched.ready()
    assert watched.sought == 1
    for _ in range(5):
        watched.silent("down")
    assert watched.sought == 1
    watched.silent("loading").silent("loading").ready()
    assert watched.sought == 2


def test_its_last_words_are_counted_and_told_once() -> None:
    process = Proc(7)
    watched = Watched([process]).ready()
    assert watched.values(EXITS) == {}
    process.end = "signal:SIGKILL"
    assert watched.silent("down").values(EXITS) == {"signal:SIGKILL": 0}  # so that the 1 is an increase
    assert watched.silent("down").values(EXITS) == {"signal:SIGKILL": 1}
    assert process.closed
    assert watched.told == [("server ended", {"url": "http://127.0.0.1:8000", "reason": "signal:SIGKILL", "pid": 7})]


def test_a_process_replaced_between_two_readings_is_an_end_and_a_restart() -> None:
    first = Proc(1)
    watched = Watched([first, Proc(2, 2)]).ready()
    first.end = "exit:1"
    watched.ready().ready()
    assert watched.values(EXITS) == {"exit:1": 1}
    assert watched.values(RESTARTS) == {"model": 0, "arguments": 1, "none": 0}


def test_a_counter_that_falls_while_the_process_lives_is_no_restart() -> None:
    """Triton's fall when it loads a model anew."""
    watched = Watched([Proc()]).ready(1, 100).ready(1, 3)
    assert watched.values(RESTARTS) == {"model": 0, "arguments": 0, "none": 0}


def test_a_process_that_lives_while_its_port_refuses_is_the_same() -> None:
    watched = Watched([Proc()]).ready().silent("down").ready()
    assert watched.values(RESTARTS) == {"model": 0, "arguments": 0, "none": 0}


def test_ways_to_end_are_bounded() -> None:
    watched = Watched([Proc(n) for n in range(100)])
    for number in range(100):
        watched.ready()
        watched.watch.process.end = f"exit:{number}"  # type: ignore[union-attr] # it is a Proc
        watched.silent("down")
    assert len(watched.values(EXITS)) == 33
    assert watched.silent("down").values(EXITS)["other"] == 68


def test_the_phases_of_a_start_go_by_the_process_where_the_server_does_not_say_when_it_began() -> None:
    watched = Watched([Proc(started=START + 2 * SECOND)]).silent("down").silent("loading").silent("loading").ready()
    assert watched.values("otelperf.server.startup.duration") == {
        "process_to_listening": 8.0,
        "listening_to_ready": 10.0,
        "process_to_ready": 18.0,
    }
    assert watched.ready().values("otelperf.server.startup.duration")["process_to_ready"] == 18.0
    assert watched.silent("down").values("otelperf.server.startup.duration") == {}


def test_a_start_that_nobody_saw_has_no_phases() -> None:
    first = Proc(1)
    watched = Watched([first, Proc(2)]).silent("down").ready()
    assert watched.values("otelperf.server.startup.duration") != {}
    first.end = "exit:0"
    assert watched.ready().values("otelperf.server.startup.duration") == {}


def test_the_process_is_let_go_with_the_server() -> None:
    process = Proc()
    Watched([process]).ready().watch.close()
    assert process.closed


# -- every history


LOOKS = st.lists(
    st.one_of(
        st.sampled_from(["loading", "unresponsive", "error", "down"]),
        st.tuples(st.integers(0, 2), st.integers(0, 50), st.sampled_from(["a", "b"])),
    ),
    max_size=60,
)


@given(LOOKS, st.lists(st.integers(0, 2), max_size=5), st.booleans())
def test_in_every_history_there_is_one_state_and_counts_never_fall(
    looks: list[Any], arguments: list[int], local: bool
) -> None:
    watched = Watched([Proc(n, each) for n, each in enumerate(arguments)], local=local)
    counts: dict[tuple[str, str], float] = {}
    ends = {STATE: set[str]()}
    for look in looks:
        if isinstance(look, str):
            watched.silent(look)  # type: ignore[arg-type] # one of the four
        else:
            watched.ready(look[0], look[1], model=look[2])
        states = watched.values(STATE)
        assert sum(states.values()) == 1
        assert ends[STATE] <= states.keys()  # a state that was told once is told always
        ends[STATE] = set(states)
        for metric in (RESTARTS, EXITS):
            for key, value in watched.values(metric).items():
                assert value >= counts.get((metric, key), 0)
                counts[metric, key] = value
        restarts = sum(value for (metric, _), value in counts.items() if metric == RESTARTS)
        assert restarts <= len(looks)
        streams = [(r.name, frozenset(r.attributes.items())) for r in watched.readings]
        assert len(streams) == len(set(streams))


def test_every_row_of_the_catalogue_is_told_and_no_other() -> None:
    process = Proc()
    watched = Watched([process]).silent("down").ready(engines={"0": (1, 1), "1": (1, 1)})
    told = {r.name for r in watched.readings}
    process.end = "unknown"
    told |= {r.name for r in watched.silent("down").readings}
    assert {row.name for row in catalog.WATCH} | {"otelperf.server.startup.duration"} == told


# -- steps


def lines(*samples: tuple[str, dict[str, str], float]) -> Lines:
    found = Lines()
    for name, labels, value in samples:
        found.setdefault(name, []).append((Place(name, labels), value))
    return found


def test_steps_are_of_each_engine_whatever_other_labels_say() -> None:
    page = lines(
        ("vllm:generation_tokens_total", {"engine": "0", "model_name": "m"}, 5),
        ("vllm:generation_tokens_total", {"engine": "1", "model_name": "m"}, 7),
        ("vllm:kv_cache_usage_perc", {"engine": "1", "model_name": "m"}, 0.5),
        ("vllm:kv_cache_usage_perc", {"engine": "0", "model_name": "m"}, math.nan),
    )
    assert steps_of(VLLM, page) == {
        ((INDEX, "0"),): (None, 5, None, None),
        ((INDEX, "1"),): (None, 7, 0.5, None),
    }


def test_an_engine_that_goes_is_no_fallen_counter() -> None:
    series = "vllm:generation_tokens_total"
    both = lines((series, {"engine": "0"}, 5), (series, {"engine": "1"}, 7))
    assert list(counters_of(VLLM, both).values()) == [5, 7]
    alone = counters_of(VLLM, lines((series, {"engine": "1"}, 8)))
    assert list(alone) == list(counters_of(VLLM, both))[1:]


def test_a_server_without_labels_has_one_engine() -> None:
    page = lines(("llamacpp:n_decode_total", {}, 9), ("llamacpp:prompt_tokens_total", {}, 2))
    assert steps_of(LLAMACPP, page) == {ALONE: (2, 9)}


@pytest.mark.parametrize("engine", [LLAMACPP, SGLANG, TGI, VLLM], ids=lambda engine: engine.name)
def test_steps_are_read_off_the_page(engine: Engine) -> None:
    assert engine.steps
    assert set(engine.steps) <= engine.wanted()


def test_a_map_of_ones_own_says_its_steps_or_takes_over_those_of_the_map_that_it_extends() -> None:
    own = {"name": "mine", "pattern": "^mine_", "items": [], "steps": ["mine_steps_total"]}
    assert engine_of(own, ENGINES, frozenset()).steps == ("mine_steps_total",)
    renamed = {"name": "mine", "extends": "tgi", "rename": {"tgi_": "mine_"}}
    assert engine_of(renamed, ENGINES, frozenset()).steps == ("mine_batch_inference_count",)


def test_a_map_that_has_steps_has_running_requests_too() -> None:
    for engine in ENGINES:
        told = {item.attributes.get("otelperf.request.state") for item in engine.takes if item.metric == ACTIVE}
        assert not engine.steps or "running" in told


# -- with the source of a server


PAGE = "llamacpp:prompt_tokens_total 5\nllamacpp:n_decode_total {}\nllamacpp:requests_processing {}\n"


@contextmanager
def watched_server(pages: dict[str, bytes | str]) -> Iterator[tuple[Server, Loopback]]:
    with Loopback(saying(pages)) as loopback:
        server = Server(loopback.url, LLAMACPP)
        server.watch = Watch(loopback.url, stuck_after=60)
        yield server, loopback
        server.close()


def state_of(server: Server, now: int) -> str:
    readings: Any = ()
    try:
        readings = server.read(now)
    except SourceError as error:
        readings = error.readings
    [state] = [r.attributes[STATE] for r in readings if r.name == STATE and r.value == 1]
    return str(state)


def test_the_source_of_a_server_tells_its_watch_what_it_saw() -> None:
    pages: dict[str, bytes | str] = {"/metrics": message('{"error": "Loading model"}', "503 Service Unavailable")}
    with watched_server(pages) as (server, loopback):
        assert state_of(server, START) == "loading"
        pages["/metrics"] = PAGE.format(10, 1)
        states = [state_of(server, START + second * SECOND) for second in range(5, 75, 5)]
        assert states == ["ready"] * 12 + ["stuck"] * 2
        pages["/metrics"] = PAGE.format(11, 1)
        assert state_of(server, START + 80 * SECOND) == "ready"
        pages["/metrics"] = message("<html>", "500 Internal Server Error")
        assert state_of(server, START + 85 * SECOND) == "error"
        healthy, loopback.answer = loopback.answer, lambda *_: bool(loopback.closing.wait(20))
        patient, server._timeout = server._timeout, 0.3
        assert state_of(server, START + 90 * SECOND) == "unresponsive"
        loopback.answer, server._timeout = healthy, patient
    with suppress(SourceError):
        server.read(START + 95 * SECOND)
    assert state_of(server, START + 100 * SECOND) == "down"


def test_a_server_not_yet_known_that_loads_is_loading() -> None:
    with Loopback(saying({"/metrics": message("", "503 Service Unavailable")})) as loopback:
        server = Server(loopback.url, None, engines=ENGINES)
        server.watch = Watch(loopback.url, stuck_after=60)
        assert state_of(server, START) == "loading"
        server.close()


@pytest.mark.parametrize(("mapped", "watched"), [("true", True), ("false", False)])
def test_the_agent_watches_its_servers_unless_only_their_own_names_are_wanted(mapped: str, *, watched: bool) -> None:
    with Loopback(saying({"/metrics": PAGE.format(1, 0)})) as loopback:
        values = {
            "metrics.exporter": "none",
            "endpoint.enabled": "false",
            "host.enabled": "false",
            "server.url": loopback.url,
        }
        passed = {"server.mapped": mapped, "server.passthrough": "llamacpp:*"}
        agent = Agent(config.load({**values, **passed}, {}, None), environ={}, clock=lambda: START, threads=False)
        agent.tick()
        assert agent.snapshot is not None
        told = {r.name for batch in agent.snapshot.batches for r in batch.readings}
        assert (STATE in told) is watched
        assert agent.servers[0].up
        agent.close()


def test_the_agent_looks_for_no_process_elsewhere_or_when_told_not_to() -> None:
    local, remote = Server("http://localhost:1", None), Server("http://192.0.2.1:1", None)
    settings, without = config.load({}, {}, None), config.load({"server.process": "false"}, {}, None)
    assert make_search(settings, local) is not None
    assert make_search(settings, remote) is None
    assert make_search(without, local) is None


def test_numbers_that_are_none_say_nothing() -> None:
    watched = Watched()
    for number in (math.nan, math.inf, -math.inf):
        watched.ready(number, 1)
    assert watched.state == "ready"
    assert "stuck" not in watched.values(STATE)


def test_who_found_the_server_hands_on_what_it_saw_of_its_start() -> None:
    pages: dict[str, bytes | str] = {"/metrics": message("", "503 Service Unavailable")}
    with Loopback(saying(pages)) as loopback:
        finder = Finder(ENGINES, ports=[loopback.port])
        finder.read(START)
        pages["/metrics"] = PAGE.format(1, 0)
        finder.read(START + 5 * SECOND)
        server = finder.found.popleft()
        server.watch = Watch(
            loopback.url, stuck_after=60, find=lambda: Proc(started=START - 9 * SECOND), startup=server.startup
        )
        readings: Any = ()
        try:
            readings = server.read(START + 6 * SECOND)
        except SourceError as error:
            readings = error.readings
        phases = {r.attributes.get("otelperf.server.startup.phase"): r.value for r in readings if "startup" in r.name}
        assert phases == {"process_to_ready": 15.0}
        server.close()

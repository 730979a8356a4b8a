"""Recognising a server by its pages, and finding it on loopback."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from otelperf import config, config_maps
from otelperf.agent import make_finder, make_servers
from otelperf.errors import SourceError, SourceFailed, SourceFlawed
from otelperf.readings import Reading
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.finder import Finder
from otelperf.sources.engines.llamacpp import LLAMACPP
from otelperf.sources.engines.server import Server
from tests.engines.loopback import Loopback, free_ports, message, saying

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
VLLM_PAGE = (CAPTURES / "vllm-0.32.0" / "idle.txt").read_text()
LLAMA_PAGE = (CAPTURES / "llama.cpp-11434" / "fresh.txt").read_text()
PAGES = [
    pytest.param(engine, path, id=f"{path.parent.name}/{path.name}")
    for engine in ENGINES
    for path in sorted(CAPTURES.glob(f"{engine.name}-*/*.txt"))
]
UP, DOWN = Reading("otelperf.server.up", 1), Reading("otelperf.server.up", 0)


def attempt(server: Server, now: int = START) -> list[Reading]:
    try:
        return server.read(now)
    except SourceError as error:
        return list(error.readings)


def auto(loopback: Loopback, timeout: float = 2.0) -> Server:
    return Server(loopback.url, None, engines=ENGINES, timeout=timeout)


# -- recognised at a URL that was given


@pytest.mark.parametrize(("engine", "path"), PAGES)
def test_each_captured_page_is_recognised(engine: Engine, path: Path) -> None:
    with Loopback(saying({engine.metrics_path: path.read_text()})) as loopback:
        server = auto(loopback)
        assert attempt(server)[0] == UP
        assert server.engine is engine
        assert server.entity == f"{engine.name} {loopback.url}"
        server.close()


def test_a_server_whose_metrics_are_off_is_recognised_by_another_page() -> None:
    props = (CAPTURES / "llama.cpp-11434" / "props.json").read_text()
    answers: dict[str, bytes | str] = {"/metrics": message("{}", "501 Not Implemented"), "/props": props}
    with Loopback(saying(answers)) as loopback:
        server = auto(loopback)
        attempt(server)
        assert server.engine
        assert server.engine.name == "llama.cpp"
        server.close()


@pytest.mark.parametrize(
    "page", ["", "<html>Welcome</html>", "go_goroutines 5\n", "http_requests_total 5\n", "\0" * 99]
)
def test_a_stranger_is_down_and_told(page: str) -> None:
    with Loopback(saying({"/metrics": page})) as loopback:
        server = auto(loopback)
        with pytest.raises(SourceFlawed, match="is not recognised as an inference server") as failed:
            server.read(START)
        assert failed.value.readings == (DOWN,)
        assert server.engine is None
        server.close()


def test_what_refuses_is_down_and_recognised_once_it_is_there() -> None:
    with Loopback(saying({"/metrics": VLLM_PAGE})) as loopback:
        server = auto(loopback)
        answer, loopback.answer = loopback.answer, saying({"/metrics": message("", "503 Service Unavailable")})
        assert attempt(server) == [DOWN]
        assert server.entity == loopback.url
        loopback.answer = answer
        assert attempt(server, START + SECOND)[0] == UP
    assert attempt(server, START + 2 * SECOND) == [DOWN]
    assert server.entity.startswith("vllm ")  # a server that restarts is the same server
    server.close()


def test_one_that_loads_is_told_as_that() -> None:
    loading = message("", "503 Service Unavailable")
    with Loopback(saying({"/metrics": loading, "/v1/models": loading})) as loopback:
        server = auto(loopback)
        with pytest.raises(SourceFlawed) as failed:
            server.read(START)
        assert str(failed.value) == f"{loopback.url} answers HTTP 503, as a server does while it loads"
        server.close()


def test_another_server_in_its_place_is_recognised_anew() -> None:
    answers: dict[str, bytes | str] = {"/metrics": VLLM_PAGE}
    with Loopback(saying(answers)) as loopback:
        server = auto(loopback)
        server.read(START)
        answers |= {"/metrics": LLAMA_PAGE, "/props": "{}", "/slots": "[]"}
        told = [attempt(server, START + second * SECOND) for second in (5, 10)]
        assert told[0] == [DOWN]
        assert told[1][0] == UP
        assert server.entity.startswith("llama.cpp ")
        assert "vllm" not in json.dumps([dict(r.attributes) for r in told[1]])
        server.close()


def test_a_page_that_breaks_once_does_not_unmake_a_server() -> None:
    answers: dict[str, bytes | str] = {"/metrics": VLLM_PAGE}
    with Loopback(saying(answers)) as loopback:
        server = auto(loopback)
        server.read(START)
        answers["/metrics"] = message("oops", "500 Internal Server Error")
        assert [attempt(server, START + n * SECOND) for n in (5, 10)] == [[DOWN]] * 2
        assert server.entity.startswith("vllm ")
        answers["/metrics"] = VLLM_PAGE
        assert attempt(server, START + 15 * SECOND)[0] == UP
        server.close()


def test_one_that_hangs_while_it_is_looked_at_has_failed() -> None:
    def hang(loopback: Loopback, _client: socket.socket, _path: str) -> bool:
        loopback.closing.wait(20)
        return False

    with Loopback(hang) as loopback:
        server = auto(loopback, timeout=0.2)
        with pytest.raises(SourceFailed):
            server.read(START)
        server.close()


def test_the_settings_know_the_engines() -> None:
    assert {engine.name for engine in ENGINES} == set(config_maps.ENGINES)


@pytest.mark.parametrize(
    ("given", "find"),
    [
        ({"mode": "sidecar"}, True),
        ({"mode": "node"}, False),
        ({"mode": "sidecar", "server.url": "http://localhost"}, False),
        ({"mode": "node", "server.ports": "9000"}, True),
        ({"mode": "sidecar", "server.url": "http://localhost", "server.find": "true"}, True),
        ({"mode": "node", "server.find": "true"}, True),
        ({"mode": "sidecar", "server.find": "false"}, False),
    ],
)
def test_servers_are_looked_for_in_a_pod_unless_one_is_named(given: dict[str, str], find: bool) -> None:
    settings = config.load(given, {}, None)
    assert settings.server.find == find
    assert settings.server.engine == "auto"
    assert (make_finder(settings) is not None) == find


def test_where_an_engine_is_named_only_that_is_looked_for() -> None:
    finder = make_finder(config.load({"mode": "sidecar", "server.engine": "sglang"}, {}, None))
    assert finder
    assert finder.ports == (30000,)


def test_a_named_engine_is_not_taken_for_another() -> None:
    with Loopback(saying({"/metrics": LLAMA_PAGE})) as loopback:
        given = {"server.url": loopback.url, "server.engine": "vllm"}
        (server,) = make_servers(config.load(given, {}, None))
        with pytest.raises(SourceFlawed, match="has no series of vllm"):
            server.read(START)
        server.close()


# -- found


@pytest.fixture
def vllm() -> Iterator[Loopback]:
    with Loopback(saying({"/metrics": VLLM_PAGE})) as loopback:
        yield loopback


def found(finder: Finder) -> list[tuple[str, str]]:
    return [(server.url, server.engine.name if server.engine else "") for server in finder.found]


def test_servers_are_found_where_they_listen_and_told_apart_by_url(vllm: Loopback) -> None:
    with Loopback(saying({"/metrics": LLAMA_PAGE})) as llama:
        finder = Finder(ENGINES, ports=(llama.port, vllm.port))
        finder.read(START)
    assert found(finder) == [(llama.url, "llama.cpp"), (vllm.url, "vllm")]
    entities = {server.entity for server in finder.found}
    assert len(entities) == 2
    finder.close()


def test_a_found_server_is_not_looked_for_again(vllm: Loopback) -> None:
    finder = Finder(ENGINES, ports=(vllm.port,))
    for second in range(0, 3600, 5):
        finder.read(START + second * SECOND)
    assert vllm.paths == ["/metrics"]
    assert len(finder.found) == 1


def test_a_found_server_is_followed_through_a_restart(vllm: Loopback) -> None:
    finder = Finder(ENGINES, ports=(vllm.port,))
    finder.read(START)
    server = finder.found.popleft()
    assert attempt(server)[0] == UP
    answer, vllm.answer = vllm.answer, saying({"/metrics": message("", "503 Service Unavailable")})
    assert attempt(server, START + 5 * SECOND) == [DOWN]
    vllm.answer = answer
    assert attempt(server, START + 10 * SECOND)[0] == UP
    server.close()


def test_a_server_that_comes_late_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    finder = Finder(ENGINES, ports=(port,))
    for second in range(0, 300, 5):
        finder.read(START + second * SECOND)
    assert not finder.found
    with Loopback(saying({"/metrics": VLLM_PAGE}), port=port):
        for second in range(300, 335, 5):
            finder.read(START + second * SECOND)
        assert len(finder.found) == 1


def test_a_clock_that_is_set_back_does_not_put_the_next_look_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    finder = Finder(ENGINES, ports=(port,))
    finder.read(START)
    with Loopback(saying({"/metrics": VLLM_PAGE}), port=port):
        for second in range(5, 40, 5):
            finder.read(START + (second - 3600) * SECOND)
        assert len(finder.found) == 1


def looks(loopback: Loopback, seconds: int) -> list[int]:
    """Return the seconds at which the finder, read each 5 s, asked for /metrics."""
    finder = Finder(ENGINES, ports=(loopback.port,))
    at = []
    for second in range(0, seconds, 5):
        before = loopback.paths.count("/metrics")
        finder.read(START + second * SECOND)
        at += [second] * (loopback.paths.count("/metrics") - before)
    assert not finder.found
    return at


def test_a_stranger_is_asked_more_and_more_seldom() -> None:
    with Loopback(saying({"/metrics": "go_goroutines 5\n"})) as stranger:
        assert looks(stranger, 2000) == [0, 10, 30, 70, 150, 310, 630, 1230, 1830]
        assert all(line.startswith(b"GET ") for line in stranger.headers)


def usually_at(*ports: int) -> tuple[Engine, ...]:
    """Return the engines, of which vLLM alone listens at *ports*, and the others nowhere."""
    return tuple(replace(engine, ports=ports if engine.name == "vllm" else ()) for engine in ENGINES)


def test_a_stranger_is_asked_for_the_common_page_only_where_no_other_engine_usually_listens() -> None:
    with Loopback(saying({})) as stranger:
        Finder(usually_at(stranger.port)).read(START)
        assert stranger.paths == ["/metrics"]


def test_where_a_person_says_to_look_each_page_of_the_fingerprints_is_asked_for() -> None:
    with Loopback(saying({"/api/ps": '{"models": []}'})) as ollama:
        finder = Finder(ENGINES, ports=(ollama.port,))
        finder.read(START)
    assert found(finder) == [(ollama.url, "ollama")]


def test_one_that_loads_is_asked_each_half_minute() -> None:
    with Loopback(saying({"/metrics": message("", "503 Service Unavailable")})) as loading:
        assert looks(loading, 150) == [0, 5, 15, 35, 65, 95, 125]


def test_one_that_speaks_no_http_is_left_alone() -> None:
    def banner(_loopback: Loopback, client: socket.socket, _path: str) -> bool:
        client.sendall(b"220 mail.example ESMTP\r\n" * 10)
        return False

    with Loopback(banner) as stranger:
        assert looks(stranger, 60) == [0, 10, 30]


def test_an_endless_page_is_left_alone() -> None:
    def flood(_loopback: Loopback, client: socket.socket, _path: str) -> bool:
        client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:
            client.sendall(b"vllm:x 1\n" * 10_000)

    with Loopback(flood) as stranger:
        finder = Finder(ENGINES, ports=(stranger.port,), max_page=100_000)
        finder.read(START)
    assert not finder.found


@pytest.mark.parametrize(
    ("url", "looked_at"),
    [
        ("http://127.0.0.1:8000/base", False),
        ("http://localhost:8000", False),
        ("http://[::1]:8000", False),
        ("http://10.0.0.7:8000", False),  # the pod's own
        ("http://far.example:8000", True),
    ],
)
def test_a_server_whose_url_was_given_is_not_found_as_well(url: str, looked_at: bool) -> None:
    more = {"server.find": "true", "server.remote": "true", "k8s.pod_ip": "10.0.0.7,fd00::7"}
    finder = make_finder(config.load({"server.url": url, **more}, {}, None))
    assert finder
    assert (8000 in finder.ports) == looked_at


def test_the_agents_own_port_is_not_looked_at() -> None:
    finder = make_finder(config.load({"server.ports": "9464-9466", "endpoint.port": "9465"}, {}, None))
    assert finder
    assert finder.ports == (9464, 9466)


def test_the_usual_ports_are_those_of_the_engines_each_once() -> None:
    ports = Finder(ENGINES).ports
    assert set(ports) == {port for engine in ENGINES for port in engine.ports}
    assert len(set(ports)) == len(ports)


def test_it_says_once_that_nothing_was_found_and_who_wants_a_login() -> None:
    with Loopback(saying({"/metrics": message("no", "401 Unauthorized")})) as closed:
        (free,) = free_ports(1)
        finder = Finder((LLAMACPP,), ports=[closed.port, free])
        for second in (0, 60, 120):
            finder.read(START + second * SECOND)
    assert list(finder.notes) == [
        f"http://127.0.0.1:{closed.port} wants a login: if it is your server, name it in server.url",
        f"no inference server yet on ports {closed.port}, {free} of 127.0.0.1; they are looked at again",
    ]

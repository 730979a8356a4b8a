"""Servers that are found side by side, that move to another port, and that come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from otelperf.errors import SourceError
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.finder import Finder
from otelperf.sources.engines.server import Server
from tests.engines.loopback import Loopback, free_ports, message, saying

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
VLLM_PAGE = (CAPTURES / "vllm-0.32.0" / "idle.txt").read_text()
LLAMA_PAGE = (CAPTURES / "llama.cpp-11434" / "fresh.txt").read_text()
SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
ROW = 10


def at(second: float) -> int:
    return START + round(second * SECOND)


def usually_at(*ports: int) -> tuple[Engine, ...]:
    """Return the engines, of which vLLM alone listens at *ports*, and the others nowhere."""
    return tuple(replace(engine, ports=ports if engine.name == "vllm" else ()) for engine in ENGINES)


@contextmanager
def row(*pages: str | None) -> Iterator[list[Loopback | int]]:
    """Serve *pages* on consecutive ports; where one is None nobody listens."""
    with ExitStack() as stack:
        yield [
            port if page is None else stack.enter_context(serving(port, page))
            for port, page in zip(free_ports(len(pages)), pages, strict=True)
        ]


def serving(port: int, page: str = VLLM_PAGE) -> Loopback:
    return Loopback(saying({"/metrics": page}), port=port)


def urls(finder: Finder) -> list[str]:
    return [server.url for server in finder.found]


def port_of(each: Loopback | int) -> int:
    return each if isinstance(each, int) else each.port


# -- side by side


def test_data_parallel_servers_on_consecutive_ports_are_found() -> None:
    with row(*[VLLM_PAGE] * 4, None, VLLM_PAGE) as servers:
        finder = Finder(usually_at(port_of(servers[0])))
        finder.read(START)
    assert urls(finder) == [f"http://127.0.0.1:{port_of(each)}" for each in servers[:4]]
    assert len({server.entity for server in finder.found}) == 4


def test_a_rank_that_comes_late_is_found_and_the_row_goes_on_behind_it() -> None:
    with row(VLLM_PAGE, None, VLLM_PAGE) as servers:
        finder = Finder(usually_at(port_of(servers[0])))
        for second in range(0, 100, 5):
            finder.read(at(second))
        assert len(finder.found) == 1
        with Loopback(saying({"/metrics": VLLM_PAGE}), port=port_of(servers[1])):
            for second in range(100, 140, 5):
                finder.read(at(second))
        assert len(finder.found) == 3


def test_a_row_has_an_end() -> None:
    with row(*[VLLM_PAGE] * ROW) as servers:
        finder = Finder(usually_at(port_of(servers[0])))
        for second in range(60):
            finder.read(at(second))
        assert len(finder.found) == 8
        assert all(isinstance(each, int) or each.paths == [] for each in servers[8:])


def test_a_stranger_beside_a_server_is_left_alone_as_any_stranger_is() -> None:
    with row(VLLM_PAGE, "go_goroutines 5\n") as (server, stranger):
        finder = Finder(usually_at(port_of(server)))
        for second in range(0, 300, 5):
            finder.read(at(second))
        assert isinstance(stranger, Loopback)
        assert stranger.paths == ["/metrics"] * 5
        assert len(finder.found) == 1


def test_where_ports_are_given_no_other_is_looked_at() -> None:
    with row(VLLM_PAGE, VLLM_PAGE) as (server, beside):
        finder = Finder(ENGINES, ports=(port_of(server),))
        for second in range(0, 60, 5):
            finder.read(at(second))
        assert isinstance(beside, Loopback)
        assert beside.paths == []


def test_a_named_neighbour_is_not_found_as_well() -> None:
    with row(VLLM_PAGE, VLLM_PAGE) as (server, beside):
        finder = Finder(usually_at(port_of(server)), {port_of(beside)})
        finder.read(START)
        finder.read(at(5))
        assert urls(finder) == [f"http://127.0.0.1:{port_of(server)}"]


# -- moved


class Followed:
    """A finder, and each server that it finds read as often, second by second."""

    def __init__(self, *ports: int) -> None:
        self.finder = Finder(ENGINES, ports=ports)
        self.servers: list[Server] = []
        self.gone: list[str] = []
        self.second = 0

    def run(self, seconds: int) -> None:
        for _ in range(0, seconds, 5):
            self.second += 5
            self.finder.read(at(self.second))
            while self.finder.found:
                self.servers.append(self.finder.found.popleft())
            while self.finder.gone:
                server = self.finder.gone.popleft()
                self.servers.remove(server)
                self.gone.append(server.url)
                server.close()
            for server in self.servers:
                with suppress(SourceError):
                    server.read(at(self.second))

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def up(self) -> dict[str, bool]:
        return {server.url: server.up for server in self.servers}


def test_a_server_that_moves_to_another_port_is_there_once() -> None:
    old, new = free_ports(2)
    with closing(Followed(old, new)) as followed:
        with serving(old):
            followed.run(30)
        with serving(new):
            followed.run(120)
            assert followed.up() == {f"http://127.0.0.1:{new}": True}
            assert followed.gone == [f"http://127.0.0.1:{old}"]


def test_one_that_is_on_its_new_port_before_it_is_missed_on_the_old_one_has_moved_too() -> None:
    old, new = free_ports(2)
    with closing(Followed(old, new)) as followed:
        with serving(old):
            followed.run(30)
        (server,) = followed.servers
        with serving(new):
            followed.finder._places[new].due = 0
            server.read = lambda now: []  # type: ignore[method-assign] # noqa: ARG005 # it was read just before
            followed.run(5)
            assert followed.up() == {f"http://127.0.0.1:{port}": True for port in (old, new)}
            del server.read
            followed.run(120)
            assert followed.up() == {f"http://127.0.0.1:{new}": True}


def test_a_server_that_moved_and_comes_back_is_found_again() -> None:
    old, new = free_ports(2)
    with closing(Followed(old, new)) as followed:
        with serving(old):
            followed.run(30)
        with serving(new):
            followed.run(120)
        with serving(old):
            followed.run(120)
            assert followed.up() == {f"http://127.0.0.1:{old}": True}
            assert followed.gone == [f"http://127.0.0.1:{old}", f"http://127.0.0.1:{new}"]


def test_a_server_that_is_down_for_long_stays_known_while_none_took_its_place() -> None:
    old, other = free_ports(2)
    with serving(other), closing(Followed(old, other)) as followed:
        with serving(old):
            followed.run(30)
        followed.run(3600)
        assert followed.up() == {f"http://127.0.0.1:{old}": False, f"http://127.0.0.1:{other}": True}
        with serving(old):
            followed.run(5)
            assert all(followed.up().values())


def test_a_server_that_restarts_while_another_comes_is_not_given_up() -> None:
    old, other = free_ports(2)
    with closing(Followed(old, other)) as followed:
        with serving(old):
            followed.run(30)
        with serving(other):
            followed.run(50)
            with serving(old):
                followed.run(120)
                assert followed.up() == {f"http://127.0.0.1:{port}": True for port in (old, other)}
    assert followed.gone == []


def test_another_kind_of_server_is_not_taken_for_the_one_that_is_down() -> None:
    old, other = free_ports(2)
    with closing(Followed(old, other)) as followed:
        with serving(old):
            followed.run(30)
        with serving(other, LLAMA_PAGE):
            followed.run(300)
            assert f"http://127.0.0.1:{old}" in followed.up()
    assert followed.gone == []


def test_one_that_loads_at_its_old_port_has_not_moved_for_a_minute() -> None:
    old, other = free_ports(2)
    with closing(Followed(old, other)) as followed, serving(old) as server:
        followed.run(30)
        server.answer = saying({"/metrics": message("", "503 Service Unavailable")})
        with serving(other):
            followed.run(50)
            assert followed.gone == []
            followed.run(60)
            assert followed.gone == [server.url]
            server.answer = saying({"/metrics": VLLM_PAGE})
            followed.run(60)
            assert all(followed.up().values())
            assert len(followed.up()) == 2

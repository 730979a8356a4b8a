"""Finds inference servers on loopback by the ports that they usually listen on, and harms nobody who listens there instead.

A port is asked by one connection, one request at a time. Where nobody listens or somebody still loads, it is asked again after 5,
10, 20, then each 30 s; where somebody else answers, after 10 s, doubling up to 10 minutes: that may be anybody's web server.

Beside a server that was found the next port is looked at as well, and so on up to 8 in a row: data-parallel servers are often
started so. A server that was found and is silent for a minute has moved if another of its kind was found meanwhile: it is given
up, and its port is looked at again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from otelperf.connection import Answer, Connection, HttpError, Unreachable
from otelperf.errors import ConfigError, SourceFlawed
from otelperf.readings import Reading
from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.recognise import recognise
from otelperf.sources.engines.server import CLOSED, HEADERS, UNAVAILABLE, Server
from otelperf.sources.engines.startup import Startup

if TYPE_CHECKING:
    import ssl

    from otelperf.sources.engines.annotations import Annotations

_SECOND = 1_000_000_000
_FIRST, _SILENT, _STRANGE = 5 * _SECOND, 30 * _SECOND, 600 * _SECOND
_MOVED = 60 * _SECOND  # silent for so long, while another came: a restart takes as long, but then none comes
_NOTICED = 15 * _SECOND  # a silence is noticed so much later, at most, by a server's reading and ours after it
_TIMEOUT = 1.0  # s, at most, for one page
_ROW = 8  # servers on consecutive ports
_LAST_PORT = 65535


@dataclass(slots=True)
class _Place:
    """Where to look. *told*: by a person, so that every page may be asked for. *row* counts the ports since a usual one."""

    url: str
    told: bool = False
    row: int = 1
    known: bool = False  # a server was there before
    closed: bool = False  # it wanted a login, and that was told
    due: int = 0
    wait: int = 0
    startup: Startup = field(default_factory=Startup)  # of the server that comes


@dataclass(slots=True)
class _Followed:
    """A server that was found, and since when it is silent."""

    server: Server
    found: int
    silent: int | None = None


class Finder:
    """Looks for *engines* at *ports*, but not at those *taken*.

    *found* holds the servers that were found until they are taken from it, *gone* those that moved, *notes* what to tell the
    user. With *ports* None these
    are the engines' usual ones and their neighbours. *annotations* say more of them. *make* makes the source of a server at
    a URL; *tls*, the context, and *server_name*, what the certificate is for, are for one that is asked by https. *timeout*
    (s) and *max_page* (bytes) are limits.
    """

    name = "finder"
    entity = "agent"
    blocking = True

    def __init__(  # noqa: PLR0913 # settings, all but two by keyword
        self,
        engines: Sequence[Engine],
        taken: Iterable[int] = (),
        *,
        ports: Iterable[int] | None = None,
        annotations: Annotations | None = None,
        timeout: float = 2.0,
        max_page: int = 4 * 2**20,
        make: Callable[[str, Engine], Server] | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        server_name: str | None = None,
    ) -> None:
        self._engines = engines
        self._taken = frozenset(taken)
        self._annotations = annotations
        self._timeout = min(timeout, _TIMEOUT)
        self._max_page = max_page
        self._make = make or (
            lambda url, engine: Server(url, engine, engines=engines, timeout=timeout, max_page=max_page)
        )
        self._tls = tls
        self._server_name = server_name
        self.found: deque[Server] = deque()
        self.gone: deque[Server] = deque()
        self.notes: deque[str] = deque()
        self._told = ports is not None
        usual = (port for engine in engines for port in engine.ports)
        self._given = {port: _url(port) for port in (usual if ports is None else ports) if port not in self._taken}
        self._places = {port: _Place(url, self._told) for port, url in self._given.items()}
        self._noted: dict[int, str] = {}  # what the annotations say
        self._followed: dict[int, _Followed] = {}
        self._read = 0

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports that are looked at, or were before a server was found there."""
        return tuple(self._places)

    def read(self, now: int) -> list[Reading]:
        """Ask the ports that are due, one after the other. It has no readings of its own."""
        if now < self._read:
            self._step_back(self._read - now)
        first, self._read = not self._read, now
        self._heed()
        self._give_up_moved(now)
        troubles = [self._annotations.trouble] if self._annotations and self._annotations.trouble else []
        while due := [(port, place) for port, place in self._places.items() if self._is_due(port, place, now)]:
            for port, place in due:  # what is found there may have neighbours
                try:
                    self._look(port, place, now)
                except ConfigError as error:  # files for TLS that cannot be used
                    place.due = now + _SILENT
                    troubles.append(str(error))
        if first and not self._followed:
            ports = ", ".join(map(str, self._places))
            self.notes.append(f"no inference server yet on ports {ports} of 127.0.0.1; they are looked at again")
        if troubles:
            raise SourceFlawed("; ".join(troubles))
        return []

    def close(self) -> None:
        """Nothing is kept open."""

    def _step_back(self, by: int) -> None:
        """The clock was set back: what is due in a minute stays so."""
        for place in self._places.values():
            place.due -= by
        for each in self._followed.values():
            each.found -= by
            each.silent = None if each.silent is None else each.silent - by

    def _is_due(self, port: int, place: _Place, now: int) -> bool:
        return port not in self._followed and now >= place.due

    def _heed(self) -> None:
        """Look where the annotations say, now, if they have changed."""
        if self._annotations is None:
            return
        noted = {place.port: place.url for place in self._annotations.places() if place.port not in self._taken}
        if noted == self._noted:
            return
        for port in self._noted.keys() - noted.keys() - self._followed.keys():
            del self._places[port]
            if port in self._given:
                self._places[port] = _Place(self._given[port], self._told)
        new = {port: _Place(url, told=True) for port, url in noted.items() if self._noted.get(port) != url}
        self._places = {**new, **{port: place for port, place in self._places.items() if port not in new}}
        self._noted = noted

    def _give_up_moved(self, now: int) -> None:
        for each in self._followed.values():
            if each.server.up:
                each.silent = None
            elif each.silent is None:
                each.silent = now
        for port, each in list(self._followed.items()):
            silent, server = each.silent, each.server
            if silent is None or now - silent < _MOVED:
                continue
            if any(
                other.found >= silent - _NOTICED and other.server.up and other.server.engine is server.engine
                for other in self._followed.values()
            ):
                del self._followed[port]
                place = self._places[port]
                place.known, place.wait, place.due = True, 0, now + _FIRST
                self.gone.append(server)

    def _look(self, port: int, place: _Place, now: int) -> None:
        longest = self._look_at(port, place, now)
        if isinstance(longest, Server):  # it is followed by its own source from now on
            self._followed[port] = _Followed(longest, now)
            longest.startup, place.startup = place.startup, Startup()
            self.found.append(longest)
            neighbour = port + 1
            if not self._told and place.row < _ROW and neighbour <= _LAST_PORT and neighbour not in self._taken:
                self._places.setdefault(neighbour, _Place(_url(neighbour), row=place.row + 1, due=now))
            return
        if place.known:
            longest = _SILENT
        place.wait = min(longest, 2 * place.wait or (_FIRST if longest == _SILENT else 2 * _FIRST))
        place.due = now + place.wait - _FIRST // 4  # the source is read each few seconds, never quite on time

    def _look_at(self, port: int, place: _Place, now: int) -> Server | int:
        """Look who is there: the server, or how long to wait at most before the next look."""
        loads = closed = False

        def get(path: str) -> Answer:
            nonlocal loads, closed
            answer = connection.request(
                "GET", connection.path.rstrip("/") + path, headers=HEADERS, timeout=self._timeout, limit=self._max_page
            )
            loads = loads or answer.status == UNAVAILABLE
            closed = closed or answer.status in CLOSED
            return answer

        try:
            context = self._tls() if self._tls and place.url.startswith("https:") else None
            connection = Connection(place.url, context, self._server_name)
            with closing(connection):
                seen = recognise(get, self._engines, None if place.told else port)
            if seen.engine is not None:
                return self._make(place.url, seen.engine)
            if closed and not place.closed:
                place.closed = True
                self.notes.append(f"{place.url} wants a login: if it is your server, name it in server.url")
        except Unreachable:
            place.startup.look(now, "down")
            return _SILENT
        except HttpError:  # no HTTP, or too slow
            return _STRANGE
        if loads:
            place.startup.look(now, "loading")
        return _SILENT if loads else _STRANGE


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"

"""Finds inference servers on loopback by the ports that they usually listen on, and harms nobody who listens there instead.

A port is asked by one connection, one request at a time. Where nobody listens or somebody still loads, it is asked again after 5,
10, 20, then each 30 s; where somebody else answers, after 10 s, doubling up to 10 minutes: that may be anybody's web server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from otelperf.connection import Answer, Connection, HttpError, Unreachable
from otelperf.readings import Reading
from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.recognise import recognise
from otelperf.sources.engines.server import HEADERS, UNAVAILABLE, Server

_SECOND = 1_000_000_000
_FIRST, _SILENT, _STRANGE = 5 * _SECOND, 30 * _SECOND, 600 * _SECOND
_TIMEOUT = 1.0  # s, at most, for one page
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})


class Finder:
    """Looks for *engines* at *ports*, but not where *known* URLs are; what it has found is in *found* until it is taken.

    *timeout* (s) and *max_page* (bytes) are the limits of the servers found.
    """

    name = "finder"
    entity = "agent"
    blocking = True

    def __init__(
        self,
        engines: Sequence[Engine],
        known: Iterable[str] = (),
        *,
        ports: Iterable[int] | None = None,
        timeout: float = 2.0,
        max_page: int = 4 * 2**20,
    ) -> None:
        self._engines = engines
        self._timeout = timeout
        self._max_page = max_page
        self.found: deque[Server] = deque()
        usual = dict.fromkeys(port for engine in engines for port in engine.ports)
        taken = {parts.port for parts in map(urlsplit, known) if parts.hostname in _LOOPBACK}
        self.ports = tuple(port for port in (usual if ports is None else ports) if port not in taken)
        self._due = dict.fromkeys(self.ports, 0)
        self._wait = dict.fromkeys(self.ports, 0)

    def read(self, now: int) -> list[Reading]:
        """Ask the ports that are due, one after the other. It has no readings of its own."""
        for port in [port for port, due in self._due.items() if now >= due]:
            longest = self._look_at(port)
            if longest is None:
                del self._due[port]  # found: it is followed by its own source from now on
                continue
            self._wait[port] = min(longest, 2 * self._wait[port] or (_FIRST if longest == _SILENT else 2 * _FIRST))
            self._due[port] = (
                now + self._wait[port] - _FIRST // 4
            )  # the source is read each few seconds, never quite on time
        return []

    def close(self) -> None:
        """Nothing is kept open."""

    def _look_at(self, port: int) -> int | None:
        """Look who is there; return how long to wait at most before the next look, None if it is a server."""
        url = f"http://127.0.0.1:{port}"
        connection, loads = Connection(url), False

        def get(path: str) -> Answer:
            nonlocal loads
            answer = connection.request(
                "GET", path, headers=HEADERS, timeout=min(self._timeout, _TIMEOUT), limit=self._max_page
            )
            loads = loads or answer.status == UNAVAILABLE
            return answer

        try:
            engine = recognise(get, self._engines, port).engine
        except Unreachable:
            return _SILENT
        except HttpError:  # no HTTP, or too slow
            return _STRANGE
        finally:
            connection.close()
        if engine is None:
            return _SILENT if loads else _STRANGE
        self.found.append(Server(url, engine, engines=self._engines, timeout=self._timeout, max_page=self._max_page))
        return None

"""One kept-alive HTTP connection with limits on everything: time, size, redirects (none are followed)."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from otelperf.errors import OtelperfError

if TYPE_CHECKING:
    import ssl

_CHUNK = 64 * 1024
_CLOSED = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


class HttpError(OtelperfError):
    """No usable answer came."""


class Unreachable(HttpError):
    """Nobody listens there: the connection was refused or the name is unknown."""


class Timeout(HttpError):
    """The answer did not come, or did not end, in time."""


class TooLarge(HttpError):
    """The answer is larger than allowed."""


class Answer(NamedTuple):
    """A whole answer; *headers* by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """A connection to the server of *url*, opened when needed and kept. Not for several threads at once."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            msg = f"{url!r} is no URL of a server: expected http://host:port or https://host:port"
            raise HttpError(msg)
        self.url = url
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._host = parts.hostname
        self._port = parts.port
        self._tls = tls
        self._secure = parts.scheme == "https"
        self._connection: http.client.HTTPConnection | None = None

    def request(  # an HTTP request has these parts, and each limit is the caller's to set
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float,
        limit: int,
    ) -> Answer:
        """Ask, and read the whole answer. *timeout* (s) bounds all of it, *limit* (bytes) the body. Raises HttpError.

        A kept connection that the server has closed meanwhile is opened anew, once.
        """
        deadline = time.monotonic() + timeout
        while True:
            reused = self._connection is not None
            try:
                return self._once(method, path, body, headers or {}, deadline, limit)
            except Exception as error:
                self.close()
                if not (reused and isinstance(error, _CLOSED)):
                    raise self._explained(error, timeout) from error

    def close(self) -> None:
        """Close; the next request opens anew."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _once(  # as request
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float, limit: int
    ) -> Answer:
        connection = self._open(deadline)
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, found, self._read(connection, response, deadline, limit))
        if response.will_close:
            self.close()
        return answer

    def _open(self, deadline: float) -> http.client.HTTPConnection:
        remaining = _remaining(deadline)
        if self._connection is None:
            if self._secure:
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=remaining, context=self._tls
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=remaining)
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.timeout = remaining
        if self._connection.sock is not None:
            self._connection.sock.settimeout(remaining)
        return self._connection

    def _read(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline: float, limit: int
    ) -> bytes:
        """Read the body in pieces: a server that drips must not outlast the deadline, nor an endless body the memory."""
        pieces: list[bytes] = []
        size = 0
        while True:
            if connection.sock is not None:
                connection.sock.settimeout(_remaining(deadline))
            piece = response.read1(min(_CHUNK, limit + 1 - size))
            if not piece:
                response.close()  # a body that was read to its last byte does not count as ended for http.client otherwise
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                msg = f"{self.url}: the answer is larger than {limit} bytes"
                raise TooLarge(msg)

    def _explained(self, error: Exception, timeout: float) -> HttpError:
        if isinstance(error, HttpError):
            return error
        if isinstance(error, TimeoutError):
            return Timeout(f"{self.url}: no whole answer within {timeout:g} s")
        if isinstance(error, ConnectionRefusedError | socket.gaierror):
            return Unreachable(f"{self.url}: {error.strerror or error}")
        return HttpError(f"{self.url}: {error or type(error).__name__}")


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining

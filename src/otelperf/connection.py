"""One kept-alive HTTP connection with limits on everything: time, size, redirects (none are followed)."""

from __future__ import annotations

import http.client
import io
import select
import socket
import time
from base64 import b64encode
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from otelperf.errors import OtelperfError

if TYPE_CHECKING:
    import ssl

    from _typeshed import WriteableBuffer

_CHUNK = 64 * 1024
_CLOSED = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)
_MESSAGE = 200  # characters: what a server sends in place of a status line goes into the error's text


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


class _UntilDeadline(io.RawIOBase):
    """What the socket receives, until *deadline*: a server that drips must not outlast it, in headers or chunk sizes either."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open until both are closed
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._sock.settimeout(_remaining(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response whose every byte comes before the deadline."""

    def __init__(self, sock: socket.socket, method: str | None = None, *, deadline: float) -> None:
        super().__init__(sock, method=method)
        self.fp.close()
        self.fp = io.BufferedReader(_UntilDeadline(sock, deadline))


class Connection:
    """A connection to the server of *url*, opened when needed and kept. Not for several threads at once.

    *server_name* is what the server's certificate has to be for, where that is not the host in *url*.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None, server_name: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # a bracket or a port that is none
            parts, port = urlsplit(""), None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            msg = f"{url!r} is no URL of a server: expected http://host:port or https://host:port"
            raise HttpError(msg)
        self.url = url
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._host = parts.hostname
        self._tls = tls
        self._server_name = server_name or self._host
        self._secure = parts.scheme == "https"
        # Without a port, http.client would take the end of an IPv6 address for it.
        self._usual_port = 443 if self._secure else 80
        self._port = port or self._usual_port
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
        if self._connection is not None and self._unasked():
            self.close()
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

    def _unasked(self) -> bool:
        """Say whether something came that nobody asked for: the end, or bytes that would pass for the next answer."""
        if self._secure or self._connection is None:  # TLS has messages of its own
            return False
        sock = self._connection.sock
        if not hasattr(select, "poll"):  # Windows
            return bool(select.select([sock], [], [], 0)[0])
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))

    def _once(  # as request
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: float, limit: int
    ) -> Answer:
        connection = self._open(deadline)
        connection.response_class = partial(_Response, deadline=deadline)  # type: ignore[assignment] # it is only called
        connection.request(method, path, body, dict(headers))
        with connection.getresponse() as response:
            found = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, found, self._read(response, limit))
            if response.will_close:
                self.close()
        return answer

    def _open(self, deadline: float) -> http.client.HTTPConnection:
        remaining = _remaining(deadline)
        if self._connection is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=remaining)
            connection.default_port = self._usual_port  # the Host header goes without it
            connection.auto_open = 0  # it would open anew by itself, and without TLS
            self._connection = connection
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._secure:
                # As http.client.HTTPSConnection does, which is not there where OpenSSL was left out at the start.
                connection.sock.settimeout(_remaining(deadline))
                connection.sock = self._context().wrap_socket(connection.sock, server_hostname=self._server_name)
        self._connection.sock.settimeout(_remaining(deadline))
        return self._connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            import ssl

            self._tls = ssl.create_default_context()
        return self._tls

    def _read(self, response: http.client.HTTPResponse, limit: int) -> bytes:
        """Read the body in pieces: an endless one must not fill the memory."""
        body = bytearray()
        while piece := response.read1(min(_CHUNK, limit + 1 - len(body))):
            body += piece
            if len(body) > limit:
                msg = f"{self.url}: the answer is larger than {limit} bytes"
                raise TooLarge(msg)
        if response.length:  # read1 does not tell: half a page would pass for a whole one, and 12 for 12345
            raise http.client.IncompleteRead(b"", response.length)
        return bytes(body)

    def _explained(self, error: Exception, timeout: float) -> HttpError:
        if isinstance(error, HttpError):
            return error
        if isinstance(error, TimeoutError):
            return Timeout(f"{self.url}: no whole answer within {timeout:g} s")
        if isinstance(error, ConnectionRefusedError | socket.gaierror):
            return Unreachable(f"{self.url}: {error.strerror or error}")
        words = str(getattr(error, "strerror", None) or error)  # without the number of the error
        return HttpError(f"{self.url}: {words[:_MESSAGE] or type(error).__name__}")


def without_login(url: str) -> tuple[str, dict[str, str]]:
    """Take user and password out of a URL, so that no log shows them, and make a header of them."""
    parts = urlsplit(url)
    login, sign, host = parts.netloc.rpartition("@")
    if not sign:
        return url, {}
    token = b64encode(unquote_to_bytes(login)).decode()
    return parts._replace(netloc=host).geturl(), {"authorization": f"Basic {token}"}


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining

"""The HTTP endpoint: /healthz and /readyz for probes, /metrics for people and scrapers. Read only, small, bounded."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from otelperf.errors import ConfigError
from otelperf.logs import Log
from otelperf.prometheus_text import CONTENT_TYPE

_log = Log("otelperf.endpoint")

Page = Callable[[], tuple[int, str, str]]  # status, content type, body

_AT_ONCE = 8
_PATIENCE = 5.0  # s between two bytes of a client's request
_MAKE_ROOM = 0.2  # s for a slow client's thread to end


class Endpoint(ThreadingMixIn, HTTPServer):
    """Serve *pages* by path on a daemon thread; port 0 takes a free one.

    A few requests are answered at once, and more are turned away; but first whoever has not yet sent the request that it
    connected for: clients that do nothing must not keep a probe out.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_port = False
    request_queue_size = 16

    def __init__(self, host: str, port: int, pages: dict[str, Page]) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self.silent: dict[socket.socket, None] = {}  # clients that have not sent a request yet, oldest first
        self.pages = pages
        self._started = self._stopping = False
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            cure = "set endpoint.port to a free one, or endpoint.enabled to false"
            msg = f"cannot listen on {host}:{port}: {error.strerror or error}; {cure}"
            raise ConfigError(msg) from error

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def server_bind(self) -> None:
        """Bind, and no more: the base class also asks DNS for the host's name, which can take many seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def start(self) -> None:
        """Serve until shutdown() is called."""
        self._started = True
        threading.Thread(target=self._serve, name="otelperf-endpoint", daemon=True).start()

    def _serve(self) -> None:
        """Wait for one connection after another. serve_forever() would look twice a second: an eighth of the agent's CPU."""
        while not self._stopping:
            try:
                self.handle_request()
            except Exception as error:  # noqa: BLE001 # probes must be answered again after whatever this was
                if not self._stopping:
                    _log.trouble("endpoint failed", problem=f"{type(error).__name__}: {error}")
                    time.sleep(_MAKE_ROOM)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return not self._stopping

    def shutdown(self) -> None:
        """Stop, and free the port."""
        self._stopping = True
        if self._started:
            with suppress(OSError):  # a connection wakes the loop
                socket.create_connection(self.server_address[:2], timeout=1.0).close()  # type: ignore[arg-type] # host, port
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False) or (
            self._turn_away_silent() and self._places.acquire(timeout=_MAKE_ROOM)
        ):
            self.silent[request] = None
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no thread to be had
                self.silent.pop(request, None)
                self._places.release()
                self.shutdown_request(request)
        else:
            self.shutdown_request(request)

    def _turn_away_silent(self) -> bool:
        for client in list(self.silent):
            with suppress(OSError):  # gone by itself
                client.shutdown(socket.SHUT_RDWR)
            return True
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.silent.pop(request, None)
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("endpoint request failed", client=str(client_address))


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint
    timeout = _PATIENCE
    server_version = "otelperf"
    sys_version = ""

    def do_GET(self) -> None:
        self.server.silent.pop(self.connection, None)
        page = self.server.pages.get(self.path.split("?", 1)[0])
        if page is None:
            self._answer(404, "text/plain", f"not found; there are {' '.join(self.server.pages)}\n")
            return
        try:
            content = page()
        except Exception as error:  # noqa: BLE001 # the client is told, and so is the log
            _log.trouble("page failed", by=("path",), path=self.path, problem=f"{type(error).__name__}: {error}")
            content = 500, "text/plain", "the page could not be made; the agent's log says why\n"
        self._answer(*content)

    do_HEAD = do_GET  # noqa: N815 # as the base class looks it up

    def _answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the base class's name
        """Probes come every few seconds: they are not logged."""


def as_json(status: int, body: dict[str, Any]) -> tuple[int, str, str]:
    """Return a page of JSON."""
    return status, "application/json", json.dumps(body, default=str) + "\n"


def as_text(body: str) -> tuple[int, str, str]:
    """Return a page of metrics."""
    return 200, CONTENT_TYPE, body

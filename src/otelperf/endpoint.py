"""The HTTP endpoint: /healthz and /readyz for probes, /metrics for people and scrapers. Read only, small, bounded."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

from otelperf.errors import ConfigError
from otelperf.logs import Log
from otelperf.prometheus_text import CONTENT_TYPE

_log = Log("otelperf.endpoint")

Page = Callable[[], tuple[int, str, str]]  # status, content type, body

_AT_ONCE = 8
_PATIENCE = 5.0  # s for a client to send its request


class Endpoint(ThreadingMixIn, HTTPServer):
    """Serve *pages* by path on a daemon thread; port 0 takes a free one. More than a few requests at once are turned away."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, host: str, port: int, pages: dict[str, Page]) -> None:
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self.pages = pages
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            cure = "set endpoint.port to a free one, or endpoint.enabled to false"
            msg = f"cannot listen on {host}:{port}: {error.strerror or error}; {cure}"
            raise ConfigError(msg) from error

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        """Serve until shutdown() is called."""
        threading.Thread(target=self.serve_forever, name="otelperf-endpoint", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("endpoint request failed", client=str(client_address))


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint
    timeout = _PATIENCE
    server_version = "otelperf"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.split("?", 1)[0])
        if page is None:
            self._answer(404, "text/plain", f"not found; there are {' '.join(self.server.pages)}\n")
        else:
            self._answer(*page())

    do_HEAD = do_GET  # noqa: N815 # as the base class looks it up

    def _answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode()
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

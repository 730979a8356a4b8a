"""One HTTP request that a program answers, by the semantic conventions: https://opentelemetry.io/docs/specs/semconv/http/.

``wsgi.py`` and ``asgi.py`` tell it what they see. Nothing of a request's body, headers or query is recorded.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from otelperf import telemetry
from otelperf.logs import Log

_log = Log("otelperf.instrumentations")

# Any other method is _OTHER.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_SERVER_ERROR = 500

SEEN = "otelperf.measured"  # in environ or scope: an application that is mounted in another is not measured again


class Request:
    """A request from its beginning to its ``end``; *parent* is the caller's context, from its headers.

    *address* is where the server listens. Without *spans* somebody else has made the span, which is the current one.
    """

    def __init__(
        self,
        method: str,
        scheme: str,
        *,
        version: str | None,
        path: str | None,
        address: tuple[str | None, int | None],
        parent: Context | None,
        spans: bool = True,
    ) -> None:
        self._method = method if method in _METHODS else "_OTHER"
        self._active = {"http.request.method": self._method, "url.scheme": scheme}
        self._attributes: dict[str, Any] = dict(self._active)
        if version:
            self._attributes["network.protocol.version"] = version
        self._ended = False
        self._spans = spans
        if spans:
            given = {
                "url.path": path,
                "server.address": address[0],
                "server.port": address[1],
                "http.request.method_original": method if self._method == "_OTHER" else None,
            }
            self.span = self._start_span(parent, {key: value for key, value in given.items() if value})
            self.context = trace.set_span_in_context(self.span, parent)
        else:
            self.span = trace.get_current_span()
            self.context = trace.set_span_in_context(self.span)
        telemetry.add("http.server.active_requests", 1, self._active)
        self._began = time.perf_counter()

    def _start_span(self, parent: Context | None, more: dict[str, Any]) -> Span:
        self._name = name = "HTTP" if self._method == "_OTHER" else self._method
        try:
            return telemetry.tracer().start_span(name, parent, SpanKind.SERVER, {**self._attributes, **more})
        except Exception as error:  # noqa: BLE001 # a span processor of the application's
            _log.trouble("span not started", problem=f"{type(error).__name__}: {error}")
            return trace.INVALID_SPAN

    def answered(self, status: int | None, route: str | None) -> None:
        """The application has said its status. *route* is the template of the path, where it is known."""
        if isinstance(status, int):
            self._attributes["http.response.status_code"] = int(status)
            if status >= _SERVER_ERROR:
                self._attributes["error.type"] = str(status)
            else:
                self._attributes.pop("error.type", None)
        if route:
            self._attributes["http.route"] = route

    def end(self, error: BaseException | None = None) -> None:
        """The answer is sent, or will not be. A client that goes away is no error of the server's."""
        if self._ended:
            return
        self._ended = True
        if isinstance(error, Exception):
            self._attributes["error.type"] = type(error).__qualname__
        telemetry.add("http.server.active_requests", -1, self._active)
        seconds = time.perf_counter() - self._began
        telemetry.record("http.server.request.duration", seconds, self._attributes, self.context)
        if not self._spans:
            return
        try:
            if route := self._attributes.get("http.route"):
                self.span.update_name(f"{self._name} {route}")
            self.span.set_attributes(self._attributes)
            if "error.type" in self._attributes:
                self.span.set_status(Status(StatusCode.ERROR))
            self.span.end()
        except Exception as problem:  # noqa: BLE001 # as at the start
            _log.trouble("span not ended", problem=f"{type(problem).__name__}: {problem}")


def caller(carrier: Any, getter: Getter[Any]) -> Context | None:
    """Return the caller's context from the headers in *carrier*; None where a propagator of the application's fails."""
    try:
        return propagate.extract(carrier, getter=getter)
    except Exception as error:  # noqa: BLE001 # the request goes on
        _log.trouble("caller's context not read", problem=f"{type(error).__name__}: {error}")
        return None


def find_route(find: Any, *given: Any) -> str | None:
    """Return what *find* finds; another version of a framework may keep its routes elsewhere."""
    try:
        found = find(*given)
    except Exception as error:  # noqa: BLE001 # the request goes on
        _log.trouble("route not found out", problem=f"{type(error).__name__}: {error}")
        return None
    return found if isinstance(found, str) else None

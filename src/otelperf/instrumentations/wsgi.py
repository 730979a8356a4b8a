"""A WSGI application's requests: https://peps.python.org/pep-3333/. A request lasts until its body is read to the end, or closed.

OpenTelemetry's own middleware ends the duration before a streamed body begins, and has no route in its metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.propagators.textmap import Getter

from otelperf import telemetry
from otelperf.instrumentations.http_server import SEEN, Request, caller, find_route

Environ = dict[str, Any]
Application = Callable[..., Iterable[bytes]]


class _Headers(Getter[Environ]):
    """Reads HTTP headers off an environ for the propagators."""

    def get(self, carrier: Environ, key: str) -> list[str] | None:
        value = carrier.get("HTTP_" + key.upper().replace("-", "_"))
        return None if value is None else [value]

    def keys(self, carrier: Environ) -> list[str]:
        return [key[5:].lower().replace("_", "-") for key in carrier if key.startswith("HTTP_")]


_HEADERS = _Headers()


class Middleware:
    """*application* with its requests measured. *route* tells the template of the path while the request is answered, if it can."""

    def __init__(self, application: Application, route: Callable[[], str | None] = lambda: None) -> None:
        self._application = application
        self._route = route

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        if SEEN in environ or not telemetry.enabled():
            return self._application(environ, start_response)
        environ[SEEN] = True
        request = _begin(environ)

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            code = status[:3]
            request.answered(int(code) if code.isascii() and code.isdigit() else None, find_route(self._route))
            return start_response(status, headers, *more)

        outer = otel_context.attach(request.context)
        try:
            body = self._application(environ, start)
        except BaseException as error:
            request.end(error)
            raise
        finally:
            otel_context.detach(outer)
        return _measured(body, request, environ.get("wsgi.file_wrapper"))


def _begin(environ: Environ) -> Request:
    port = str(environ.get("SERVER_PORT", ""))
    return Request(
        str(environ.get("REQUEST_METHOD", "")),
        str(environ.get("wsgi.url_scheme", "http")),
        version=str(environ.get("SERVER_PROTOCOL", "")).partition("/")[2],
        path=_path(environ),
        address=(environ.get("SERVER_NAME"), int(port) if port.isascii() and port.isdigit() else None),
        parent=caller(environ, _HEADERS),
    )


def _measured(body: Iterable[bytes], request: Request, file_wrapper: Any) -> Iterable[bytes]:
    if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
        request.end()  # the server knows its own type again, and sends the file without us
        return body
    return (_Sized if isinstance(body, Sized) else _Body)(body, request)


class _Body:
    """The body of *request*, passed on as it comes; the span is current while the application makes it."""

    def __init__(self, body: Iterable[bytes], request: Request) -> None:
        self._body = body
        self._items: Iterator[bytes] | None = None
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        outer = otel_context.attach(self._request.context)
        try:
            if self._items is None:
                self._items = iter(self._body)
            return next(self._items)
        except StopIteration:
            self._request.end()
            raise
        except BaseException as error:
            self._request.end(error)
            raise
        finally:
            otel_context.detach(outer)

    def close(self) -> None:
        """Close the body; servers do so also where the client has gone."""
        error: BaseException | None = None
        try:
            close = getattr(self._body, "close", None)
            if close:
                close()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._request.end(error)


class _Sized(_Body):
    """A body of known length: from a length of 1 servers derive the Content-Length."""

    _body: Any

    def __len__(self) -> int:
        return len(self._body)


def _path(environ: dict[str, Any]) -> str:
    """Return the path as text: PEP 3333 has its bytes as if they were latin-1."""
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    return path.encode("latin-1", "replace").decode("utf-8", "replace")

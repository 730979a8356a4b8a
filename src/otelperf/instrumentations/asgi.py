"""An ASGI application's requests: https://asgi.readthedocs.io/en/latest/specs/www.html. A request lasts until its body is sent.

OpenTelemetry's own middleware has no route for Starlette, tells the size of one answer for the next if that is streamed, and
leaves a program that does not set OTEL_SEMCONV_STABILITY_OPT_IN with the old names. Web sockets are not measured.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import metrics
from opentelemetry.propagators.textmap import Getter

from otelperf import telemetry
from otelperf.instrumentations.http_server import SEEN, Request, caller, find_route

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_NATIVE = "fastapi.telemetry"  # in the scope: FastAPI measures the request itself, with the providers of the API


class _Headers(Getter[Scope]):
    """Reads HTTP headers off a scope for the propagators."""

    def get(self, carrier: Scope, key: str) -> list[str] | None:
        name = key.lower().encode("latin-1")
        return [value.decode("latin-1") for each, value in carrier.get("headers", ()) if each.lower() == name] or None

    def keys(self, carrier: Scope) -> list[str]:
        return [name.decode("latin-1").lower() for name, _ in carrier.get("headers", ())]


_HEADERS = _Headers()


class Middleware:
    """*app* with its requests measured."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        native = scope.get(_NATIVE) is not None
        if scope["type"] != "http" or SEEN in scope or not telemetry.enabled() or (native and _is_metered()):
            await self.app(scope, receive, send)
            return
        scope[SEEN] = True
        request = _begin(scope, spans=not native)

        async def measured(message: Message) -> None:
            kind = message["type"]
            if kind == "http.response.start":
                request.answered(message.get("status"), find_route(_route, scope))
            await send(message)
            if kind == "http.response.body" and not message.get("more_body", False):
                request.end()  # what runs in the background after that is not waited for

        outer = otel_context.attach(request.context)
        try:
            await self.app(scope, receive, measured)
        except BaseException as error:
            request.end(error)
            raise
        else:
            request.end()
        finally:
            otel_context.detach(outer)


def _is_metered() -> bool:
    """Say whether the program has a MeterProvider of its own: then what FastAPI measures by itself is complete."""
    return type(metrics.get_meter_provider()).__name__ not in {"_ProxyMeterProvider", "NoOpMeterProvider"}


def _begin(scope: Scope, *, spans: bool) -> Request:
    server = scope.get("server") or (None, None)
    return Request(
        scope.get("method", ""),
        scope.get("scheme", "http"),
        version=scope.get("http_version"),
        path=scope.get("path"),
        address=(server[0], server[1]),
        parent=caller(scope, _HEADERS) if spans else None,
        spans=spans,
    )


def _route(scope: Scope) -> str | None:
    """Return the template of the path, as Starlette and FastAPI note it once they have found out."""
    # FastAPI 0.137 and later: the route as its router knows it lacks the prefix under which the router is included.
    found = (scope.get("fastapi") or {}).get("effective_route_context") or scope.get("route") or _by_endpoint(scope)
    template = getattr(found, "path_format", None) or getattr(found, "path", None)
    if template is None:
        return None
    return _mounted_at(scope) + str(template)


def _by_endpoint(scope: Scope) -> Any:
    """Return the route of what answers, where only that is noted: before Starlette 1, and of Starlette's routes in FastAPI."""
    endpoint = scope.get("endpoint")
    routes = getattr(scope.get("app"), "routes", ()) if endpoint is not None else ()
    return next((route for route in routes if getattr(route, "endpoint", None) is endpoint), None)


def _mounted_at(scope: Scope) -> str:
    """Return where an application is mounted, with the names of its parameters in place of their values."""
    names = {str(value): f"{{{name}}}" for name, value in (scope.get("path_params") or {}).items()}
    return "/".join(names.get(part, part) for part in scope.get("root_path", "").rstrip("/").split("/"))

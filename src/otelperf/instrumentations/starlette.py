"""Starlette: the requests of every application that has not answered one yet. FastAPI has a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otelperf.instrumentations.asgi import Application, Middleware, Receive, Scope, Send
from otelperf.instrumentations.wrapping import Wrapped

_wrapped = Wrapped()
_OTHERS = {"opentelemetry.instrumentation.asgi", "starlette.middleware.opentelemetry"}


def instrument(**_providers: object) -> None:
    """Wrap what puts an application's middlewares together, at its first request."""
    from starlette.applications import Starlette

    _wrapped.wrap(Starlette, "build_middleware_stack", lambda original: measured(original, _wrapped))


def uninstrument() -> None:
    """Put Starlette's own method back. Middlewares that stand in applications pass requests on."""
    _wrapped.undo()


class _Found(Middleware):
    """Measures while its library is *wrapped*: it stays in the application for good."""

    def __init__(self, app: Application, wrapped: Wrapped) -> None:
        super().__init__(app)
        self._wrapped = wrapped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._wrapped:
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def measured(original: Callable[..., Any], wrapped: Wrapped) -> Callable[..., Any]:
    """Return *original*, which builds a stack of middlewares, with ours around all others; not where OpenTelemetry's is there."""

    def build_middleware_stack(self: Any) -> Any:
        stack = original(self)
        if getattr(self, "_is_instrumented_by_opentelemetry", False) or _has_other(stack):
            return stack
        return _Found(stack, wrapped)

    return build_middleware_stack


def _has_other(stack: Any) -> bool:
    for _ in range(100):  # a middleware may be its own ``app``
        if stack is None or type(stack).__module__ in _OTHERS:
            return stack is not None
        stack = getattr(stack, "app", None)
    return False

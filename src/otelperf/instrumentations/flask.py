"""Flask: the requests of every application, with the rules of their URLs as routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from otelperf.instrumentations.wrapping import Wrapped
from otelperf.instrumentations.wsgi import Middleware

_wrapped = Wrapped()


def instrument(**_providers: object) -> None:
    """Wrap the method that answers a request."""
    from flask.app import Flask

    _wrapped.wrap(Flask, "wsgi_app", _measured)


def uninstrument() -> None:
    """Put Flask's own method back."""
    _wrapped.undo()


def _measured(original: Callable[..., Any]) -> Callable[..., Any]:
    def wsgi_app(self: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return Middleware(lambda *given: original(self, *given), _route)(environ, start_response)

    return wsgi_app


def _route() -> str | None:
    from flask import has_request_context, request

    return request.url_rule.rule if has_request_context() and request.url_rule else None

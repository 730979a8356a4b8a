"""FastAPI: the requests of every application that has not answered one yet.

Newer versions measure by themselves if the program has set providers of OpenTelemetry: that is left to them.
"""

from __future__ import annotations

from otelperf.instrumentations.starlette import measured
from otelperf.instrumentations.wrapping import Wrapped

_wrapped = Wrapped()


def instrument(**_providers: object) -> None:
    """Wrap what puts an application's middlewares together, at its first request."""
    from fastapi.applications import FastAPI

    _wrapped.wrap(FastAPI, "build_middleware_stack", lambda original: measured(original, _wrapped))


def uninstrument() -> None:
    """Put FastAPI's own method back."""
    _wrapped.undo()

"""A Flask service for gunicorn: loaded once, then forked. Each worker process is an instance of the service by itself.

pip install ".[http]" flask gunicorn requests
gunicorn --preload -w 3 --chdir examples flask_service:app
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import requests
from flask import Flask, abort

import otelperf

otelperf.instrument("flask-service")

app = Flask(__name__)
session = requests.Session()


@app.get("/squares/<int:number>")
def square(number: int) -> dict[str, int]:
    """Answer at once."""
    return {"square": number * number}


@app.get("/countdown/<int:start>")
def countdown(start: int) -> Iterator[str]:
    """Answer in pieces."""
    return (f"{number}\n" for number in range(start, 0, -1))


@app.get("/busy")
def busy() -> str:
    """Answer that there is no time."""
    return abort(503)


@app.get("/upstream")
def upstream() -> dict[str, int]:
    """Ask another service, which gets the trace's context."""
    return {"status": session.get(os.environ["UPSTREAM_URL"], timeout=5).status_code}

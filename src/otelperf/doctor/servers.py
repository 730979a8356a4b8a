"""Check of what the agent reads: whether each inference server answers, and what of it is missing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from otelperf.agent import make_finder, make_servers
from otelperf.doctor.finding import Finding
from otelperf.errors import SourceError

if TYPE_CHECKING:
    from otelperf.config import Settings
    from otelperf.sources.engines.server import Server

_CURE = "start the server, or set server.url (OTELPERF_SERVER_URL) to where it listens"


def check_servers(settings: Settings) -> Finding:
    """Read each server once."""
    servers = (*make_servers(settings), *_found(settings))
    if not servers and settings.server.find:
        return Finding("servers", "warning", "no inference server was found on the usual ports of 127.0.0.1", _CURE)
    if not servers:
        return Finding("servers", "skipped", "no inference server is set (server.url)")
    read = [_read(server) for server in servers]
    told = "; ".join(said for _, said in read)
    outcomes = {outcome for outcome, _ in read}
    if "failed" in outcomes:
        return Finding("servers", "failed", told, _CURE)
    return (
        Finding("servers", "warning", told, "do as it says")
        if "warning" in outcomes
        else Finding("servers", "ok", told)
    )


def _found(settings: Settings) -> tuple[Server, ...]:
    """Look for servers as the agent does, once."""
    finder = make_finder(settings)
    if finder is None:
        return ()
    finder.read(time.time_ns())
    return tuple(finder.found)


def _read(server: Server) -> tuple[str, str]:
    try:
        readings = server.read(time.time_ns())
    except SourceError as error:
        return ("warning" if server.up else "failed"), str(error)
    finally:
        server.close()
    return "ok", f"{server.name} answers with {len(readings)} series"

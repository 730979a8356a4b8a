"""Check of what the agent reads: whether each inference server answers, and what of it is missing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from otelperf.agent import make_finder, make_search, make_servers
from otelperf.doctor.finding import Finding
from otelperf.errors import SourceError

if TYPE_CHECKING:
    from otelperf.config import Settings
    from otelperf.sources.engines.server import Server

_CURE = "start the server, or set server.url (OTELPERF_SERVER_URL) to where it listens"


def check_servers(settings: Settings) -> Finding:
    """Read each server once."""
    found, read = _found(settings)
    servers = (*make_servers(settings), *found)
    if not servers and settings.server.find:
        where = "the ports of server.ports" if settings.server.ports else "the usual ports"
        told = "; ".join([f"no inference server was found on {where} of 127.0.0.1", *(said for _, said in read)])
        return Finding("servers", "warning", told, _CURE)
    if not servers:
        return Finding("servers", "skipped", "no inference server is set (server.url)")
    read += [_read(settings, server) for server in servers]
    told = "; ".join(said for _, said in read)
    outcomes = {outcome for outcome, _ in read}
    if "failed" in outcomes:
        return Finding("servers", "failed", told, f"do as it says; else {_CURE}")
    return (
        Finding("servers", "warning", told, "do as it says")
        if "warning" in outcomes
        else Finding("servers", "ok", told)
    )


def _found(settings: Settings) -> tuple[tuple[Server, ...], list[tuple[str, str]]]:
    """Look for servers as the agent does, once; return them, and what is wrong with where to look."""
    finder = make_finder(settings)
    if finder is None:
        return (), []
    try:
        finder.read(time.time_ns())
    except SourceError as error:
        return tuple(finder.found), [("warning", str(error))]
    return tuple(finder.found), []


def _read(settings: Settings, server: Server) -> tuple[str, str]:
    try:
        readings = server.read(time.time_ns())
    except SourceError as error:
        return ("warning" if server.up else "failed"), str(error)
    finally:
        server.close()
    series = sum(reading.name != "otelperf.server.up" for reading in readings)
    told = f"answers with {len(readings)} series" if series else "is up, and has no series yet"
    return "ok", f"{server.name} {told}" + _process(settings, server)


def _process(settings: Settings, server: Server) -> str:
    """Say whether the server's process is in sight: how it ends can be told only then."""
    search = make_search(settings, server)
    if search is None:
        return ""
    process = search()
    if process is None:
        return ", and its process is not in sight: how it ends will not be told"
    process.close()
    return f", and its process {process.pid} is in sight"

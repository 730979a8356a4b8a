"""Check of what the agent reads: whether each inference server answers, and what of it is missing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from otelperf.agent import make_finder, make_search, make_servers
from otelperf.connection import Timeout, TooLarge
from otelperf.doctor.finding import Finding, Status
from otelperf.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otelperf.config import Settings
    from otelperf.sources.engines.server import Server

_ODD = "compare what it says with the server's version and log (docs/servers.md has the versions that are known)"
_CURE = "start the server, or set server.url (OTELPERF_SERVER_URL) to where it listens"


class _Seen(NamedTuple):
    """How it is, what is said of it, and what to do."""

    outcome: Status
    said: str
    cure: str = ""


def check_servers(settings: Settings) -> Finding:
    """Read each server once."""
    found, read = _found(settings)
    servers = (*make_servers(settings), *found)
    if not servers and settings.server.find:
        where = "the ports of server.ports" if settings.server.ports else "the usual ports"
        told = "; ".join([f"no inference server was found on {where} of 127.0.0.1", *(each.said for each in read)])
        return Finding("servers", "warning", told, "; ".join([*(each.cure for each in read), _CURE]))
    if not servers:
        return Finding("servers", "skipped", "no inference server is set (server.url)")
    read += [_read(settings, server) for server in servers]
    read += _unfit(servers)
    told = "; ".join(each.said for each in read)
    cures = "; ".join(dict.fromkeys(each.cure for each in read if each.cure))
    outcomes = {each.outcome for each in read}
    worst: Status = "failed" if "failed" in outcomes else "warning" if "warning" in outcomes else "ok"
    return Finding("servers", worst, told, cures)


def _found(settings: Settings) -> tuple[tuple[Server, ...], list[_Seen]]:
    """Look for servers as the agent does, once; return them, and what is wrong with where to look."""
    finder = make_finder(settings)
    if finder is None:
        return (), []
    try:
        finder.read(time.time_ns())
    except SourceError as error:
        return tuple(finder.found), [_Seen("warning", str(error), "correct the settings or the file that it names")]
    return tuple(finder.found), []


def _read(settings: Settings, server: Server) -> _Seen:
    try:
        readings = server.read(time.time_ns())
    except SourceError as error:
        return _Seen("warning" if server.up else "failed", str(error), _cure(server, error))
    finally:
        server.close()
    series = sum(reading.name != "otelperf.server.up" for reading in readings)
    told = f"answers with {len(readings)} series" if series else "is up, and has no series yet"
    return _Seen("ok", f"{server.name} {told}" + _process(settings, server))


def _cure(server: Server, error: SourceError) -> str:
    if server.cures:
        return "; ".join(server.cures)
    if isinstance(error.__cause__, Timeout):
        return "see in the server's log whether it hangs or is that busy, or set a longer server.timeout"
    if isinstance(error.__cause__, TooLarge):
        return "set server.url to an inference server's port, or a larger server.max_page"
    return _ODD if server.up else _CURE


def _unfit(servers: Sequence[Server]) -> list[_Seen]:
    """Say what of server.passthrough is on no server's page."""
    ready = [server for server in servers if server.up and server.fits.looked]
    pages = " and ".join(f"{server.url}{server.engine.metrics_path}" for server in ready if server.engine)
    missing = ready[0].fits.missing if ready else ()
    everywhere = [glob for glob in missing if all(glob in server.fits.missing for server in ready)]
    cure = f"compare server.passthrough with the names on {pages} (some come only with the first request)"
    return [_Seen("warning", f"{glob} of server.passthrough fits nothing on {pages}", cure) for glob in everywhere]


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

"""A server of any engine on loopback, what is read of it, and its pages damaged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies

from otelperf import catalog
from otelperf.connection import Answer, Connection
from otelperf.errors import SourceError
from otelperf.readings import NO_ATTRIBUTES, Attributes, Buckets, Reading
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import Engine, Facts
from otelperf.sources.engines.recognise import recognise
from otelperf.sources.engines.server import Server
from tests.engines.loopback import Loopback, saying

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
INPUT, OUTPUT = {"gen_ai.token.type": "input"}, {"gen_ai.token.type": "output"}
RUNNING, WAITING = {"otelperf.request.state": "running"}, {"otelperf.request.state": "waiting"}

Pages = dict[str, bytes | str]

# What a JSON page can hold, as json.loads gives it, with the names and numbers that maps look for.
_LEAVES = strategies.one_of(
    strategies.none(),
    strategies.booleans(),
    strategies.integers(),
    strategies.floats(),
    strategies.sampled_from([10**400, -1, 0, 2**53, "", "x" * 1000]),
    strategies.text(max_size=5),
)


def json_like(*keys: str) -> strategies.SearchStrategy[Any]:
    """Return JSON contents whose objects have some of *keys*."""
    return strategies.recursive(
        _LEAVES,
        lambda inner: (
            strategies.lists(inner, max_size=3)
            | strategies.dictionaries(strategies.sampled_from(keys), inner, max_size=len(keys))
        ),
        max_leaves=12,
    )


def reads_or_refuses(read: Callable[[Any, Facts], list[Reading]], content: Any) -> None:
    """Show that *read* makes numbers of the catalogue of any JSON, or raises what the source expects."""
    try:
        readings = read(content, Facts())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return
    for reading in readings:
        assert reading.name in catalog.BY_NAME
        assert not isinstance(reading.value, Buckets)
        assert isfinite(reading.value)
        assert reading.value >= 0


def page(name: str) -> str:
    """Return a capture, by folder/file."""
    return (CAPTURES / name).read_text()


@contextmanager
def reading(engine: Engine, pages: Mapping[str, bytes | str]) -> Iterator[tuple[Server, Loopback]]:
    """Serve *pages*, which may be changed."""
    with Loopback(saying(pages)) as loopback:
        server = Server(loopback.url, engine)
        try:
            yield server, loopback
        finally:
            server.close()


def read(server: Server, now: int = START) -> tuple[list[Reading], str]:
    """Return what is read, and what is said to be wrong."""
    try:
        return server.read(now), ""
    except SourceError as error:
        return list(error.readings), str(error)


def names(readings: list[Reading]) -> set[str]:
    return {reading.name for reading in readings}


def values(readings: list[Reading], name: str, attributes: Attributes = NO_ATTRIBUTES) -> list[Any]:
    return [r.value for r in readings if r.name == name and attributes.items() <= r.attributes.items()]


def recognised(pages: Pages) -> str | None:
    """Return the name of the engine that *pages* look like."""
    with Loopback(saying(pages)) as loopback:
        connection = Connection(loopback.url)

        def get(path: str) -> Answer:
            return connection.request("GET", path, headers={}, timeout=60, limit=2**20)

        found = recognise(get, ENGINES).engine
        connection.close()
    return found.name if found else None


def series(text: str, name: str, *labels: str) -> list[float]:
    """Return the values of the lines of *name* that have each of *labels*, read without any of our parsers."""
    lines = [line for line in text.splitlines() if re.match(rf"{re.escape(name)}[ {{]", line)]
    return [float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in labels)]


def keeping(text: str, *series: str) -> str:
    """Leave nothing but the lines of *series*, histograms in all their parts."""
    wanted = re.compile(rf"(?:{'|'.join(map(re.escape, series))})(?:_bucket|_sum|_count)?[ {{]")
    return "".join(f"{line}\n" for line in text.splitlines() if wanted.match(line))


def everywhere(text: str, value: str) -> str:
    """Give every line *value*."""
    return re.sub(r"(?m)^([^#\n]\S*(?: [^#\n]*\})?) \S+$", rf"\1 {value}", text)


def unlabelled(text: str) -> str:
    """Take every label away."""
    return re.sub(r"(?m)^([^#{\n]+)\{.*\} ", r"\1 ", text)


@contextmanager
def restarted(
    engine: Engine, pages: Pages, path: str, before: str, after: str
) -> Iterator[tuple[list[Reading], Loopback]]:
    """Read *before* and, two seconds later, *after* at *path*, where counters have fallen."""
    with reading(engine, {**pages, path: before}) as (server, loopback):
        read(server)
        loopback.answer = saying({**pages, path: after})
        yield read(server, START + 2 * SECOND)[0], loopback


ODD_VALUES = pytest.mark.parametrize("odd", ["NaN", "+Inf", "-Inf", "-1", "1e308", "0"])


def shrugs_off(engine: Engine, pages: Pages, path: str, odd: str) -> None:
    """Show that a page of *odd* values makes neither rates nor ratios without sense, and that the next page is read."""
    healthy = pages[path]
    assert isinstance(healthy, str)
    pages = {**pages, path: everywhere(healthy, odd)}
    with reading(engine, pages) as (server, _):
        first, _ = read(server)
        again, _ = read(server, START + SECOND)
        pages[path] = healthy
        after, said = read(server, START + 2 * SECOND)
    assert values(after, "otelperf.server.up") == [1]
    assert said == ""
    for found in [*first, *again, *after]:
        if found.name.endswith(("throughput", "_ratio", "batch.size", "batch.utilization")):
            assert not isinstance(found.value, Buckets)
            assert isfinite(found.value)
        if isinstance(found.value, Buckets):
            assert min(found.value.counts) >= 0

"""Which inference server answers: by fingerprints of its pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from otelperf.connection import Answer
from otelperf.sources.engines.engine import Engine


class Recognised(NamedTuple):
    """The engine, None if it is none that is known; *told* is what was seen."""

    engine: Engine | None
    told: str


def recognise(get: Callable[[str], Answer], engines: Sequence[Engine], port: int | None = None) -> Recognised:
    """Ask each page of the fingerprints at most once, the commonest first, and stop at the first that fits. Raises HttpError.

    With *port*, past the commonest page only those of the engines that usually listen there: it may be a stranger's.
    """
    told: list[str] = []
    for path in _paths(engines, port):
        answer = get(path)
        for engine in engines:
            for mark in engine.prints:
                if mark.path == path and mark.status == answer.status and mark.pattern.search(answer.body):
                    return Recognised(engine, f"{path} is of {engine.name}")
        told.append(f"{path} HTTP {answer.status}")
    return Recognised(None, ", ".join(told))


def _paths(engines: Sequence[Engine], port: int | None) -> list[str]:
    paths = [mark.path for engine in engines for mark in engine.prints]
    in_order = sorted(set(paths), key=lambda path: (-paths.count(path), paths.index(path)))
    usual = {mark.path for engine in engines if port is None or port in engine.ports for mark in engine.prints}
    return [path for path in in_order if path == in_order[0] or path in usual]

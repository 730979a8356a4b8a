"""Caches of the application: how often each is asked, how often it knows, how full it is."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from otelperf.errors import SourceFlawed
from otelperf.readings import Attributes, Reading

C = TypeVar("C", bound=Callable[..., Any])

_MOST_CACHES = 1000


class _Watched:
    """A cached function that is watched, by a weak reference: watching keeps no cache alive."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function = weakref.ref(function)
        self._name: Attributes = {"otelperf.cache.name": name}
        self._counted = (0, 0)
        self._start: int | None = None  # it may have been asked before anybody watched

    @property
    def gone(self) -> bool:
        return self._function() is None

    def readings(self) -> list[Reading]:
        """Ask the cache. Its ``cache_info()`` is named as functools does (hits, misses, maxsize, currsize)."""
        function: Any = self._function()
        if function is None:
            return []
        info = function.cache_info()
        hits, misses = int(info.hits), int(info.misses)
        if hits < self._counted[0] or misses < self._counted[1]:
            self._start = time.time_ns()  # cache_clear() makes it count anew
        self._counted = (hits, misses)
        limit = () if info.maxsize is None else (Reading("otelperf.cache.limit", info.maxsize, self._name),)
        return [
            Reading("otelperf.cache.queries", hits + misses, self._name, self._start),
            Reading("otelperf.cache.hits", hits, self._name, self._start),
            Reading("otelperf.cache.size", info.currsize, self._name),
            *limit,
        ]


class Caches:
    """The source of all caches of this process that are watched."""

    name = "caches"

    def __init__(self, entity: str) -> None:
        self.entity = entity

    def read(self, now: int) -> list[Reading]:
        """Ask each cache; one whose ``cache_info()`` fails is told and does not lose the others."""
        found: list[Reading] = []
        troubles: list[str] = []
        for name, watched in tuple(_watched.items()):
            if watched.gone:
                _watched.pop(name, None)
                continue
            try:
                found += watched.readings()
            except Exception as error:  # noqa: BLE001 # it is the application's code
                troubles.append(f"cache {name}: {type(error).__name__}: {error}")
        if troubles:
            raise SourceFlawed("; ".join(troubles), found)
        return found

    def close(self) -> None:
        """Nothing is kept open."""


_watched: dict[str, _Watched] = {}


def cache(function: C, name: str | None = None) -> C:
    """Watch the cache of *function* and return it, so that this can stand above its decorator as one.

    For whatever has ``cache_info()``: ``functools.lru_cache``, ``functools.cache``, ``cachetools.cached(..., info=True)``,
    ``async_lru``. *name* is by default the function's own. Of two caches by one name the later one is watched. Raises TypeError
    where there is nothing to ask.
    """
    if not callable(getattr(function, "cache_info", None)):
        msg = (
            f"otelperf.cache: {function!r} has no cache_info(), so nobody counts its hits: "
            "put it above @functools.lru_cache or @cachetools.cached(..., info=True)"
        )
        raise TypeError(msg)
    called = name or f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"
    for gone in [each for each, watched in tuple(_watched.items()) if watched.gone]:
        _watched.pop(gone, None)
    if called in _watched or len(_watched) < _MOST_CACHES:
        _watched[called] = _Watched(function, called)
    return function

from __future__ import annotations

import functools
import gc
from typing import Any

import cachetools
import pytest

from otelperf import catalog
from otelperf.errors import SourceFlawed
from otelperf.readings import Reading
from otelperf.sources.caches import Caches, cache


def told(name: str) -> dict[str, Any]:
    readings = Caches("process").read(0)
    return {
        r.name.removeprefix("otelperf.cache."): r.value for r in readings if r.attributes["otelperf.cache.name"] == name
    }


def test_the_cache_of_a_function_is_asked_for_its_hits() -> None:
    @cache
    @functools.lru_cache(maxsize=8)
    def square(x: int) -> int:
        return x * x

    assert [square(2), square(2), square(3)] == [4, 4, 9]
    name = f"{__name__}.{square.__qualname__}"
    assert told(name) == {"queries": 3, "hits": 1, "size": 2, "limit": 8}


def test_a_cache_without_a_limit_has_none() -> None:
    doubled = cache(functools.cache(lambda x: 2 * x), name="doubled")
    doubled(1)
    assert told("doubled") == {"queries": 1, "hits": 0, "size": 1}


def test_cachetools_counts_when_it_is_asked_to() -> None:
    @cachetools.cached(cachetools.TTLCache(maxsize=4, ttl=60), info=True)
    def halved(x: int) -> float:
        return x / 2

    cache(halved, name="halved")
    halved(2)
    halved(2)
    assert told("halved") == {"queries": 2, "hits": 1, "size": 1, "limit": 4}


def test_what_counts_no_hits_is_refused_with_the_cure() -> None:
    @cachetools.cached(cachetools.LRUCache(maxsize=4))
    def uncounted(x: int) -> int:
        return x

    with pytest.raises(TypeError, match="info=True"):
        cache(uncounted)


def test_a_cleared_cache_counts_from_a_new_start() -> None:
    kept = cache(functools.cache(lambda x: x), name="cleared")
    kept(1)
    kept(1)

    def hits() -> Reading:
        return next(
            r
            for r in Caches("process").read(0)
            if r.name == "otelperf.cache.hits" and r.attributes["otelperf.cache.name"] == "cleared"
        )

    before = hits()
    kept.cache_clear()
    after = hits()
    assert (before.value, after.value) == (1, 0)
    assert before.start is None  # it may have been asked before anybody watched
    assert after.start is not None


def test_watching_keeps_no_cache_alive() -> None:
    kept = cache(functools.cache(lambda x: x), name="mortal")
    kept(1)
    assert told("mortal") == {"queries": 1, "hits": 0, "size": 1}
    del kept
    gc.collect()
    assert told("mortal") == {}


def test_a_cache_that_fails_is_told_and_loses_no_other() -> None:
    class Broken:
        def __call__(self) -> None: ...

        def cache_info(self) -> None:
            raise OSError("gone")

    broken, sound = cache(Broken(), name="broken"), cache(functools.cache(lambda: 1), name="sound")
    sound()
    with pytest.raises(SourceFlawed, match="cache broken: OSError: gone") as error:
        Caches("process").read(0)
    names = {r.attributes["otelperf.cache.name"] for r in error.value.readings}
    assert "sound" in names
    assert "broken" not in names
    assert {r.name for r in error.value.readings} <= catalog.BY_NAME.keys()
    del broken

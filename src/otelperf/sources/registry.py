"""What an application counts of itself, by key: bounded, read as one source, and begun anew in a forked child."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from otelperf.readings import Reading

MOST = 1000
_LONGEST = 200  # characters


def text(value: object) -> str | None:
    """Return an attribute's value as OTLP can carry it, whatever the application gave: None stays None."""
    if value is None:
        return None
    try:
        told = str(value)
    except Exception:  # noqa: BLE001 # the application must not notice
        told = f"<{type(value).__name__}>"
    return told[:_LONGEST].encode("utf-8", "replace").decode()


class Counts(Protocol):
    """What is counted under one key."""

    def readings(self) -> list[Reading]: ...

    def begin_anew(self) -> None:
        """Forget what was counted: in a forked child it is the parent's, and so is the lock."""


K = TypeVar("K", bound=Hashable)
C = TypeVar("C", bound=Counts)


class Registry(Generic[K, C]):
    """The counts of this process, made by *make* when their key is first asked for.

    Further keys than 1,000 are one, *other*: names that are made for each call must not fill memory.
    """

    def __init__(self, make: Callable[[K], C], other: K) -> None:
        self._make = make
        self._other = other
        self._all: dict[K, C] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def __getitem__(self, key: K) -> C:
        found = self._all.get(key)
        if found is None:
            key = key if len(self._all) < MOST else self._other
            found = self._all.setdefault(key, self._make(key))  # atomic: no lock for a forked child to inherit
        return found

    def readings(self) -> list[Reading]:
        return [reading for each in tuple(self._all.values()) for reading in each.readings()]

    def _begin_anew(self) -> None:
        for each in self._all.values():
            each.begin_anew()


class RegistrySource:
    """The source of all that one *registry* holds."""

    name: str
    registry: ClassVar[Registry[Any, Any]]

    def __init__(self, entity: str) -> None:
        self.entity = entity

    def read(self, now: int) -> list[Reading]:
        """Read the counts under each key."""
        return self.registry.readings()

    def close(self) -> None:
        """Nothing is kept open, and the counts go on."""

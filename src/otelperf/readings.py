"""The values that travel from sources to points: readings, batches, snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

Attribute = str | bool | int | float
Attributes = Mapping[str, Attribute]

NO_ATTRIBUTES: Attributes = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Buckets:
    """A cumulative histogram: *counts* are per bucket (not running totals), one more than *bounds*."""

    count: int
    sum: float
    bounds: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Native:
    """A series that goes out under the name that its server gave it: what the server's page says of it.

    ``sum`` is a counter whose name Prometheus would change if it were told that it is one (it has no ``_total`` at its end).
    """

    kind: Literal["gauge", "counter", "sum", "histogram"]
    meaning: str = ""


class Reading(NamedTuple):
    """One value of one metric of the catalogue; *start* is the Unix time in ns since which a counter counts, if known.

    With *native* it is no metric of the catalogue, but a series of a server's own.

    Sources build their attribute mappings once and hand out the same object each time: the way to the gate is then cheap.
    """

    name: str
    value: float | Buckets
    attributes: Attributes = NO_ATTRIBUTES
    start: int | None = None
    native: Native | None = None


class Source(Protocol):
    """Something that can be read. One read is one sweep of its subject.

    *name* is unique in an agent; *entity* tells whose values they are (``host``, ``agent``, or the name of a server).
    ``read`` returns every reading of this moment: what it leaves out has ended.
    """

    name: str
    entity: str

    def read(self, now: int) -> list[Reading]:
        """Read everything; *now* is Unix time in ns. Raises a SourceError."""
        ...

    def close(self) -> None:
        """Give back files and connections."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """What one source read at one time (Unix ns)."""

    source: str
    entity: str
    time: int
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """How the last reads of a source went. Times are Unix ns, durations seconds; None is never.

    *interval* is the pace of a source that may be slowed, as it is now (s); None: its pace is as set.
    """

    source: str
    ok: bool
    absent: bool
    message: str
    duration: float
    last_success: int | None
    failures: int
    interval: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything known at one tick. A source that was not due stands in it with its old time."""

    time: int
    batches: tuple[Batch, ...]
    health: tuple[Health, ...]

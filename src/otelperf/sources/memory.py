"""Memory by state, from /proc/meminfo."""

from __future__ import annotations

from typing import NamedTuple

from otelperf.readings import Attributes, Reading
from otelperf.sources.procfs import File, numbers, odd

USED: Attributes = {"system.memory.state": "used"}
FREE: Attributes = {"system.memory.state": "free"}
BUFFERS: Attributes = {"system.memory.state": "buffers"}
CACHED: Attributes = {"system.memory.state": "cached"}


class Meminfo(NamedTuple):
    """Bytes. *available* is None on kernels before 3.14."""

    total: int
    free: int
    buffers: int
    cached: int
    available: int | None

    @property
    def used(self) -> int:
        """What is none of the others, so that the states add up to the total."""
        return self.total - self.free - self.buffers - self.cached


def parse(content: bytes) -> Meminfo:
    """Parse /proc/meminfo. https://docs.kernel.org/filesystems/proc.html#meminfo.

    The part of the slab that can be given back counts as cache, as free(1) and the Collector's hostmetrics count it.
    """
    total, free, buffers, cached, slab, available = (
        field(content, name)
        for name in (b"MemTotal", b"MemFree", b"Buffers", b"Cached", b"SReclaimable", b"MemAvailable")
    )
    if total is None or free is None or buffers is None or cached is None:
        raise odd("/proc/meminfo", content)
    memory = Meminfo(total, free, buffers, cached + (slab or 0), available)
    if memory.used < 0 or not total:
        raise odd("/proc/meminfo", content)
    return memory


def field(content: bytes, name: bytes) -> int | None:
    """Return one field in bytes, None if it is not there. Six finds cost a third of splitting all fifty lines."""
    key = name + b":"
    at = 0 if content.startswith(key) else content.find(b"\n" + key) + 1
    if not content.startswith(key, at):
        return None
    end = content.find(b"\n", at)
    line = content[at + len(key) : end if end >= 0 else None]
    try:
        (value,) = numbers([line.removesuffix(b"kB")])
    except ValueError as error:
        raise odd("/proc/meminfo", key + line) from error
    return value * 1024


def readings(memory: Meminfo) -> list[Reading]:
    """Return what is told about *memory*."""
    states = (
        (memory.used, USED),
        (memory.free, FREE),
        (memory.buffers, BUFFERS),
        (memory.cached, CACHED),
    )
    told = [Reading("system.memory.usage", value, state) for value, state in states]
    told.append(Reading("system.memory.limit", memory.total))
    told += [Reading("system.memory.utilization", value / memory.total, state) for value, state in states]
    if memory.available is not None:
        told.append(Reading("system.memory.linux.available", memory.available))
    return told


class Memory:
    """Read memory by state."""

    name = "memory"
    entity = "host"

    def __init__(self, root: str = "/") -> None:
        self._file = File(root, "proc/meminfo")

    def read(self, now: int) -> list[Reading]:
        """Read /proc/meminfo."""
        return readings(parse(self._file.read()))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

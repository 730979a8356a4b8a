"""Time since the machine started, from /proc/uptime."""

from __future__ import annotations

import re

from otelperf.readings import Reading
from otelperf.sources.procfs import File, odd

_SECONDS = re.compile(rb"(\d{1,12}\.\d\d)\s")


def parse(content: bytes) -> float:
    """Parse /proc/uptime: seconds since the start, then the idle time of all CPUs."""
    found = _SECONDS.match(content)
    if not found:
        raise odd("/proc/uptime", content)
    return float(found[1])


class Uptime:
    """Read the uptime."""

    name = "uptime"
    entity = "host"

    def __init__(self, root: str = "/") -> None:
        self._file = File(root, "proc/uptime")

    def read(self, now: int) -> list[Reading]:
        """Read /proc/uptime."""
        return [Reading("system.uptime", parse(self._file.read()))]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

"""Load averages, from /proc/loadavg."""

from __future__ import annotations

import re

from otelperf.readings import Reading
from otelperf.sources.procfs import File, odd

_AVERAGES = re.compile(rb"(\d{1,9}\.\d\d) (\d{1,9}\.\d\d) (\d{1,9}\.\d\d) ")


def parse(content: bytes) -> tuple[float, float, float]:
    """Parse /proc/loadavg: the averages over 1, 5 and 15 minutes."""
    found = _AVERAGES.match(content)
    if not found:
        raise odd("/proc/loadavg", content)
    return float(found[1]), float(found[2]), float(found[3])


class Load:
    """Read the load averages."""

    name = "load"
    entity = "host"

    def __init__(self, root: str = "/") -> None:
        self._file = File(root, "proc/loadavg")

    def read(self, now: int) -> list[Reading]:
        """Read /proc/loadavg."""
        one, five, fifteen = parse(self._file.read())
        return [
            Reading("system.cpu.load_average.1m", one),
            Reading("system.cpu.load_average.5m", five),
            Reading("system.cpu.load_average.15m", fifteen),
        ]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

"""Swap and page faults, from /proc/swaps and /proc/vmstat."""

from __future__ import annotations

from typing import NamedTuple

from otelperf.errors import SourceAbsent
from otelperf.readings import Attributes, Reading
from otelperf.sources.procfs import File, boot_time, numbers, odd

USED: Attributes = {"system.paging.state": "used"}
FREE: Attributes = {"system.paging.state": "free"}
MINOR: Attributes = {"system.paging.fault.type": "minor"}
MAJOR: Attributes = {"system.paging.fault.type": "major"}
IN: Attributes = {"system.paging.direction": "in"}
OUT: Attributes = {"system.paging.direction": "out"}
_HEADER = b"Filename"
_FIELDS = (b"pgfault", b"pgmajfault", b"pswpin", b"pswpout")


class Swap(NamedTuple):
    """Bytes of all swap areas together."""

    total: int
    used: int


class Vmstat(NamedTuple):
    """Counts of faults and of pages swapped. A kernel without swap has no *swapped_in* and *swapped_out*."""

    faults: int
    major_faults: int
    swapped_in: int | None
    swapped_out: int | None


def parse_swaps(content: bytes) -> Swap:
    """Parse /proc/swaps: a header, then of each area its name, type, size and use in KiB, and priority."""
    header, *areas = content.splitlines() or [b""]
    if not header.startswith(_HEADER):
        raise odd("/proc/swaps", content)
    try:
        sizes = [numbers(area.split()[2:4]) for area in areas]
        total, used = sum(size for size, _ in sizes) * 1024, sum(use for _, use in sizes) * 1024
    except ValueError as error:
        raise odd("/proc/swaps", content) from error
    if used > total:
        raise odd("/proc/swaps", content)
    return Swap(total, used)


def parse_vmstat(content: bytes) -> Vmstat:
    """Parse /proc/vmstat, lines of a name and a number."""
    faults, major_faults, swapped_in, swapped_out = (_field(content, name) for name in _FIELDS)
    if faults is None or major_faults is None or major_faults > faults:
        raise odd("/proc/vmstat", content)
    return Vmstat(faults, major_faults, swapped_in, swapped_out)


def _field(content: bytes, name: bytes) -> int | None:
    at = content.find(b"\n" + name + b" ") + 1
    if not at:
        return None
    end = content.find(b"\n", at)
    line = content[at : end if end >= 0 else None]
    try:
        (value,) = numbers(line.split()[1:])
    except ValueError as error:
        raise odd("/proc/vmstat", line) from error
    return value


class Paging:
    """Read page faults, and where there is swap its use and traffic."""

    name = "paging"
    entity = "host"

    def __init__(self, root: str = "/") -> None:
        self._swaps = File(root, "proc/swaps")
        self._vmstat = File(root, "proc/vmstat")
        self._start = boot_time(root)
        self._minor_faults = 0

    def read(self, now: int) -> list[Reading]:
        """Read /proc/vmstat and /proc/swaps."""
        vmstat, start = parse_vmstat(self._vmstat.read()), self._start
        # The kernel counts a major fault when it starts to read, and the fault itself when it is done: between the two
        # the difference is one short, and a counter must not fall.
        self._minor_faults = max(self._minor_faults, vmstat.faults - vmstat.major_faults)
        readings = [
            Reading("system.paging.faults", self._minor_faults, MINOR, start),
            Reading("system.paging.faults", vmstat.major_faults, MAJOR, start),
        ]
        swap = self._swap()
        if not swap.total:
            return readings
        readings += usage(swap)
        if vmstat.swapped_in is not None and vmstat.swapped_out is not None:
            readings.append(Reading("system.paging.operations", vmstat.swapped_in, IN, start))
            readings.append(Reading("system.paging.operations", vmstat.swapped_out, OUT, start))
        return readings

    def close(self) -> None:
        """Close the files."""
        self._swaps.close()
        self._vmstat.close()

    def _swap(self) -> Swap:
        try:
            return parse_swaps(self._swaps.read())
        except SourceAbsent:  # a kernel without swap
            return Swap(0, 0)


def usage(swap: Swap) -> list[Reading]:
    """Return what is told about *swap*, of which there is some."""
    free = swap.total - swap.used
    return [
        Reading("system.paging.usage", swap.used, USED),
        Reading("system.paging.usage", free, FREE),
        Reading("system.paging.utilization", swap.used / swap.total, USED),
        Reading("system.paging.utilization", free / swap.total, FREE),
    ]

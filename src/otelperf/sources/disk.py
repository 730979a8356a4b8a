"""Disk traffic, from /proc/diskstats."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from otelperf.errors import SourceAbsent
from otelperf.readings import Attributes, Reading
from otelperf.sources.procfs import File, boot_time, numbers, odd, text

_SECTOR_BYTES = 512  # whatever the disk's own: https://docs.kernel.org/block/stat.html
# Loop devices show their file's traffic a second time, ram and zram are memory, and a model is on no floppy and no CD.
_IGNORED = re.compile(rb"(?:loop|ram|zram|fd|sr)\d+")
_PARTITION_COLUMNS_BEFORE_2_6_25 = 7


class Counters(NamedTuple):
    """Counts of one disk: operations, bytes, and the seconds in which it had any work."""

    reads: int
    read_bytes: int
    writes: int
    written_bytes: int
    busy: float


class _Disk(NamedTuple):
    """The attributes of one disk."""

    device: Attributes
    read: Attributes
    write: Attributes


def parse(content: bytes) -> dict[bytes, Counters]:
    """Parse /proc/diskstats. https://docs.kernel.org/admin-guide/iostats.html."""
    disks = {}
    for line in content.splitlines():
        columns = line.split()
        if len(columns) == _PARTITION_COLUMNS_BEFORE_2_6_25:
            continue
        try:
            if not _IGNORED.fullmatch(columns[2]):
                disks[columns[2]] = _counters(columns)
        except (ValueError, IndexError) as error:
            raise odd("/proc/diskstats", line) from error
    return disks


def _counters(columns: list[bytes]) -> Counters:
    reads, _, read_sectors, _, writes, _, written_sectors, _, _, busy_ms = numbers(columns[3:13])
    return Counters(reads, read_sectors * _SECTOR_BYTES, writes, written_sectors * _SECTOR_BYTES, busy_ms / 1000)


class Disk:
    """Read the traffic of whole disks: those in /sys/block, not their partitions, whose traffic is in theirs."""

    name = "disk"
    entity = "host"

    def __init__(self, root: str = "/") -> None:
        self._file = File(root, "proc/diskstats")
        self._block = os.path.join(root, "sys/block")
        self._start = boot_time(root)
        self._disks: dict[bytes, _Disk | None] = {}

    def read(self, now: int) -> list[Reading]:
        """Read /proc/diskstats."""
        counted = parse(self._file.read())
        if counted.keys() != self._disks.keys():
            self._disks = {name: self._disk(name) for name in counted}
        readings: list[Reading] = []
        for name, counters in counted.items():
            if disk := self._disks[name]:
                readings += self._told(disk, counters)
        if not readings:
            msg = f"no disk of {self._block} is in {self._file.path}"
            raise SourceAbsent(msg)
        return readings

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _told(self, disk: _Disk, counters: Counters) -> tuple[Reading, ...]:
        start = self._start
        return (
            Reading("system.disk.io", counters.read_bytes, disk.read, start),
            Reading("system.disk.io", counters.written_bytes, disk.write, start),
            Reading("system.disk.operations", counters.reads, disk.read, start),
            Reading("system.disk.operations", counters.writes, disk.write, start),
            Reading("system.disk.io_time", counters.busy, disk.device, start),
        )

    def _disk(self, name: bytes) -> _Disk | None:
        # sysfs writes the slash of names like cciss/c0d0 as an exclamation mark.
        if not os.path.exists(os.path.join(os.fsencode(self._block), name.replace(b"/", b"!"))):
            return None
        device = text(name)
        return _Disk(
            device={"system.device": device},
            read={"system.device": device, "disk.io.direction": "read"},
            write={"system.device": device, "disk.io.direction": "write"},
        )

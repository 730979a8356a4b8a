"""What a process costs, as the kernel counts it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_MIB_KB = 1024
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
# Every process of a machine shares the C library; the other files count as if the program were alone with them.
_EVERYONES = re.compile(r"/(libc|libm|ld-linux[^/]*|libpthread|libdl)[-.][^/]*$")
_IDLE_COLUMNS = (3, 4)  # idle, iowait
_COUNTED_COLUMNS = 8  # guest time, which follows, is part of user time


class Memory(NamedTuple):
    """Memory of one process in MiB: *pss* as if no other process mapped its files, *uss* what is its own as it runs."""

    pss: float
    uss: float
    threads: int


def cpu_seconds(pid: int) -> float:
    """Return the user and system time that a process has used, all its threads together."""
    columns = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / _TICKS_PER_SECOND


def memory(pid: int) -> Memory:
    """Return the memory of a process.

    PSS divides a page among those that map it: a second Python on the machine would halve the interpreter's part. So
    pages of files count in full here, whoever else maps them, those of the C library aside. USS stays as the kernel
    has it, and does shrink when others map the same files.
    """
    pss = uss = 0
    in_full = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if header := _HEADER.match(line):
            in_full = header[1].startswith("/") and not _EVERYONES.search(header[1])
            continue
        name, _, rest = line.partition(":")
        if name == ("Rss" if in_full else "Pss"):
            pss += int(rest.split()[0])
        elif name in {"Private_Clean", "Private_Dirty"}:
            uss += int(rest.split()[0])
    return Memory(pss / _MIB_KB, uss / _MIB_KB, len(list(Path(f"/proc/{pid}/task").iterdir())))


def machine_busy_seconds() -> float:
    """Return the CPU time that the whole machine has spent on anything."""
    columns = Path("/proc/stat").read_text().splitlines()[0].split()[1 : 1 + _COUNTED_COLUMNS]
    return sum(int(value) for index, value in enumerate(columns) if index not in _IDLE_COLUMNS) / _TICKS_PER_SECOND

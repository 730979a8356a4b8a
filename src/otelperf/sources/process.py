"""The agent's own process, from /proc/self."""

from __future__ import annotations

import os
from typing import NamedTuple

from otelperf.errors import SourceFailed
from otelperf.readings import Attributes, Reading
from otelperf.sources.procfs import File, boot_time, numbers, odd, unreadable

USER: Attributes = {"cpu.mode": "user"}
SYSTEM: Attributes = {"cpu.mode": "system"}


class Stat(NamedTuple):
    """CPU time in ticks, threads, start in ticks since the machine's, resident memory in pages."""

    user: int
    system: int
    threads: int
    started: int
    resident: int


def parse(content: bytes) -> Stat:
    """Parse /proc/PID/stat. https://docs.kernel.org/filesystems/proc.html (table 1-4).

    The second column is the program's name in brackets, which may itself hold blanks and brackets.
    """
    columns = content.rpartition(b")")[2].split()
    try:
        return Stat(*numbers([columns[11], columns[12], columns[17], columns[19], columns[21]]))
    except (ValueError, IndexError) as error:
        raise odd("/proc/self/stat", content) from error


class Process:
    """Read this process. Always from its own /proc: the host's shows it under another number, if at all."""

    name = "process"
    entity = "agent"

    def __init__(self) -> None:
        self._file = File("/", "proc/self/stat")
        self._pid = os.getpid()
        self._ticks_per_second = os.sysconf("SC_CLK_TCK")
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def read(self, now: int) -> list[Reading]:
        """Read /proc/self/stat and count the open files."""
        if os.getpid() != self._pid:  # after a fork the descriptor still stands for the parent
            self._file.close()
            self._pid = os.getpid()
        stat = parse(self._file.read())
        second, start = self._ticks_per_second, self._started(stat)
        return [
            Reading("process.cpu.time", stat.user / second, USER, start),
            Reading("process.cpu.time", stat.system / second, SYSTEM, start),
            Reading("process.memory.usage", stat.resident * self._page_bytes),
            Reading("process.thread.count", stat.threads),
            Reading("process.unix.file_descriptor.count", open_files()),
        ]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _started(self, stat: Stat) -> int | None:
        booted = boot_time("/")
        return None if booted is None else booted + stat.started * 1_000_000_000 // self._ticks_per_second


def open_files(folder: str = "/proc/self/fd") -> int:
    """Return how many files the process has open."""
    try:
        # Since Linux 6.2 the folder's size is the count; before, it is zero. https://docs.kernel.org/filesystems/proc.html
        return os.stat(folder).st_size or len(os.listdir(folder)) - 1  # the listing opens one itself
    except OSError as error:
        raise SourceFailed(str(unreadable(folder, error))) from error

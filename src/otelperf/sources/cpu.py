"""CPU time by mode, from /proc/stat."""

from __future__ import annotations

import os
from operator import add, lt, sub
from typing import TYPE_CHECKING, NamedTuple

from otelperf.readings import Attributes, Reading
from otelperf.sources.procfs import File, boot_time, numbers, odd

if TYPE_CHECKING:
    from collections.abc import Sequence

MODES = ("user", "nice", "system", "idle", "iowait", "interrupt", "steal")
_TOTAL: tuple[Attributes, ...] = tuple({"cpu.mode": mode} for mode in MODES)
# A fall of idle or iowait by less is the kernel's rounding; by more, the CPU was taken off line and has come back,
# which before Linux 6.8 set both to zero. The border is node_exporter's.
_ROUNDING_SECONDS = 3


class Stat(NamedTuple):
    """The CPU lines: ticks by mode, of all CPUs together and of each that is on line."""

    total: list[int]
    logical: dict[int, list[int]]


def parse(content: bytes, *, per_logical: bool = True) -> Stat:
    """Parse /proc/stat; with *per_logical* false the single CPUs are only named, which costs far less on a big machine.

    https://docs.kernel.org/filesystems/proc.html#miscellaneous-kernel-statistics-in-proc-stat
    """
    total: list[int] | None = None
    logical: dict[int, list[int]] = {}
    # What follows the CPUs is long on a big machine: one number for each interrupt that there can be.
    for line in content.partition(b"\nintr ")[0].split(b"\n"):
        if not line.startswith(b"cpu"):
            continue
        label, _, columns = line.partition(b" ")
        try:
            if label == b"cpu":
                total = _modes(columns)
            else:
                logical[int(label[3:])] = _modes(columns) if per_logical else []
        except ValueError as error:
            raise odd("/proc/stat", line) from error
    if total is None:
        raise odd("/proc/stat", content)
    return Stat(total, logical)


def _modes(columns: bytes) -> list[int]:
    """Return ticks in the order of MODES, short on kernels that know fewer (Linux 2.4 had the first four).

    Guest time (the ninth and tenth column) is part of user and nice already.
    """
    user, nice, system, idle, *newer = numbers(columns.split(None, 8)[:8])
    iowait, interrupts, steal = newer[:1], newer[1:3], newer[3:]
    if len(interrupts) == 2:
        return [user, nice, system, idle, *iowait, sum(interrupts), *steal]
    return [user, nice, system, idle, *iowait]


def shares(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Return each mode's share of the time between two readings; nothing if no time passed."""
    spent = list(map(sub, after, before))
    whole = sum(spent)
    return [part / whole for part in spent] if whole > 0 else []


class Rising:
    """Tick counters that never fall, though the kernel's do."""

    __slots__ = ("_lost", "_rounding", "_shown")

    def __init__(self, rounding: int) -> None:
        self._rounding = rounding
        self._shown: list[int] = []
        self._lost: list[int] = []

    def follow(self, ticks: list[int]) -> list[int]:
        """Return *ticks*: after a small fall the old value stands, after a large one the count goes on from there."""
        if len(ticks) != len(self._shown):
            self._shown, self._lost = ticks, [0] * len(ticks)
            return ticks
        risen = list(map(add, ticks, self._lost))
        if any(map(lt, risen, self._shown)):
            risen = [self._held(mode, value) for mode, value in enumerate(risen)]
        self._shown = risen
        return risen

    def _held(self, mode: int, value: int) -> int:
        fall = self._shown[mode] - value
        if fall <= 0:
            return value
        if fall > self._rounding:
            self._lost[mode] += fall
        return self._shown[mode]


class Cpu:
    """Read CPU time of each logical CPU, or with *per_logical* false of all together, and the share of each mode."""

    name = "cpu"
    entity = "host"

    def __init__(self, root: str = "/", *, per_logical: bool = True) -> None:
        self._file = File(root, "proc/stat")
        self._per_logical = per_logical
        self._start = boot_time(root)
        self._ticks_per_second = os.sysconf("SC_CLK_TCK")
        self._total = self._rising()
        self._before: list[int] | None = None
        # Those of a CPU that went off line stay: it may come back.
        self._logical: dict[int, tuple[Rising, tuple[Attributes, ...]]] = {}

    def read(self, now: int) -> list[Reading]:
        """Read /proc/stat."""
        stat = parse(self._file.read(), per_logical=self._per_logical)
        total = self._total.follow(stat.total)
        readings = self._times(stat, total)
        readings += self._utilization(total)
        # The sandbox gVisor has no line per CPU; nothing runs on no CPU.
        if stat.logical:
            readings.append(Reading("system.cpu.logical.count", len(stat.logical)))
        return readings

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _times(self, stat: Stat, total: list[int]) -> list[Reading]:
        if not self._per_logical:
            return self._counters(total, _TOTAL)
        readings: list[Reading] = []
        for number, ticks in stat.logical.items():
            rising, attributes = self._logical.get(number) or self._new(number)
            readings += self._counters(rising.follow(ticks), attributes)
        return readings

    def _counters(self, ticks: list[int], attributes: Sequence[Attributes]) -> list[Reading]:
        second, start = self._ticks_per_second, self._start
        return [
            Reading("system.cpu.time", value / second, mode, start)
            for value, mode in zip(ticks, attributes, strict=False)
        ]

    def _utilization(self, total: list[int]) -> list[Reading]:
        """Return the shares of the time since the last reading: none at the first, nor within the same tick."""
        before = self._before
        if before is None or len(before) != len(total):
            self._before = total
            return []
        parts = shares(before, total)
        if parts:
            self._before = total
        return [Reading("system.cpu.utilization", part, mode) for part, mode in zip(parts, _TOTAL, strict=False)]

    def _rising(self) -> Rising:
        return Rising(_ROUNDING_SECONDS * self._ticks_per_second)

    def _new(self, number: int) -> tuple[Rising, tuple[Attributes, ...]]:
        modes: tuple[Attributes, ...] = tuple({"cpu.logical_number": number, "cpu.mode": mode} for mode in MODES)
        self._logical[number] = (self._rising(), modes)
        return self._logical[number]

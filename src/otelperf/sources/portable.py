"""The host where there is no /proc, by psutil: the same names, as far as psutil knows them."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from otelperf.errors import SourceAbsent, SourceError, SourceFailed, SourceFlawed
from otelperf.readings import Attributes, Reading
from otelperf.sources import cpu, filesystem, memory, network, paging, process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# psutil's names of our modes. Several of its fields may count as one mode, and a system has only some of them.
_MODES = {
    "user": ("user",),
    "nice": ("nice",),
    "system": ("system",),
    "idle": ("idle",),
    "iowait": ("iowait",),
    "interrupt": ("irq", "softirq", "interrupt"),
    "steal": ("steal",),
}


class Probe:
    """One subject read by one function. What psutil cannot tell on a system takes nothing else with it."""

    def __init__(
        self, name: str, function: Callable[[], list[Reading]], *, entity: str = "host", blocking: bool = False
    ) -> None:
        self.name = name
        self.entity = entity
        self.blocking = blocking
        self._function = function

    def read(self, now: int) -> list[Reading]:
        """Read the subject."""
        try:
            return self._function()
        except SourceError:
            raise
        except (AttributeError, NotImplementedError) as error:
            msg = f"psutil has no {self.name} on this system: {error}"
            raise SourceAbsent(msg) from error
        except Exception as error:
            # psutil lets through whatever a system call or its own parsing raises: RuntimeError, KeyError, ValueError …
            # (https://github.com/giampaolo/psutil/issues/2076).
            msg = f"psutil failed to read {self.name}: {error!r}"
            raise SourceFailed(msg) from error

    def close(self) -> None:
        """Keep nothing open."""


def sources(*, per_logical: bool = True, exclude: Sequence[str] = network.EXCLUDED) -> tuple[Probe, ...]:
    """Return a probe for each subject of the host."""
    return (
        Probe("cpu", Cpu(per_logical=per_logical).readings),
        Probe("load", load_readings),
        Probe("memory", memory_readings),
        Probe("paging", paging_readings),
        Probe("disk", disk_readings),
        Probe("filesystem", filesystem_readings, blocking=True),
        Probe("network", Network(exclude).readings),
        Probe("uptime", uptime_readings),
    )


def agent() -> Probe:
    """Return the probe of this process."""
    return Probe("process", process_readings, entity="agent")


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        msg = "psutil is not installed: pip install 'psutil>=6.1'"
        raise SourceFailed(msg) from error
    return psutil


def _booted() -> int:
    return int(_psutil().boot_time() * 1e9)


class Cpu:
    """CPU time and its shares."""

    def __init__(self, *, per_logical: bool = True) -> None:
        self._per_logical = per_logical
        self._before: dict[str, float] = {}
        self._attributes: dict[tuple[int | None, str], Attributes] = {}

    def readings(self) -> list[Reading]:
        """Return what psutil tells of the CPUs."""
        psutil, start = _psutil(), _booted()
        total = modes(psutil.cpu_times())
        each = dict(enumerate(map(modes, psutil.cpu_times(percpu=True))))
        told = [
            Reading("system.cpu.time", seconds, self._mode(number, mode), start)
            for number, times in (each.items() if self._per_logical else [(None, total)])
            for mode, seconds in times.items()
        ]
        told += self._utilization(total)
        told.append(Reading("system.cpu.logical.count", len(each)))
        return told

    def _utilization(self, total: dict[str, float]) -> list[Reading]:
        before, self._before = self._before, total
        if before.keys() != total.keys() or any(total[mode] < before[mode] for mode in total):
            return []
        parts = cpu.shares(list(before.values()), list(total.values()))
        return [
            Reading("system.cpu.utilization", part, self._mode(None, mode))
            for mode, part in zip(total, parts, strict=False)
        ]

    def _mode(self, number: int | None, mode: str) -> Attributes:
        """Return the same mapping each time."""
        place: Attributes = {} if number is None else {"cpu.logical_number": number}
        return self._attributes.setdefault((number, mode), {**place, "cpu.mode": mode})


def modes(times: Any) -> dict[str, float]:
    """Return the seconds of each mode that this system has. Guest time is part of user and nice already."""
    known = times._asdict()
    return {
        mode: sum(known[field] for field in fields if field in known)
        for mode, fields in _MODES.items()
        if any(field in known for field in fields)
    }


def load_readings() -> list[Reading]:
    """Return the load averages."""
    one, five, fifteen = _psutil().getloadavg()
    return [
        Reading("system.cpu.load_average.1m", one),
        Reading("system.cpu.load_average.5m", five),
        Reading("system.cpu.load_average.15m", fifteen),
    ]


_INACTIVE: Attributes = {"system.memory.state": "inactive"}


def memory_readings() -> list[Reading]:
    """Return memory by state, adding up to the limit; where there is no cache but inactive memory, that is a state."""
    found = _psutil().virtual_memory()._asdict()
    states = {
        "free": (found["free"], memory.FREE),
        "buffers": (found.get("buffers"), memory.BUFFERS),
        "cached": (found.get("cached"), memory.CACHED),
        "inactive": (found.get("inactive") if "cached" not in found else None, _INACTIVE),
    }
    parts = [(value, attributes) for value, attributes in states.values() if value is not None]
    total = found["total"]
    parts.append((total - sum(value for value, _ in parts), memory.USED))
    told = [Reading("system.memory.usage", value, attributes) for value, attributes in parts]
    told.append(Reading("system.memory.limit", total))
    told += [Reading("system.memory.utilization", value / total, attributes) for value, attributes in parts]
    return told


def paging_readings() -> list[Reading]:
    """Return the use of swap. What psutil calls sin and sout are pages of files too on macOS, so they are left out."""
    found = _psutil().swap_memory()
    if not found.total:
        msg = "there is no swap"
        raise SourceAbsent(msg)
    return paging.usage(paging.Swap(found.total, found.used))


@lru_cache(maxsize=256)
def _disk(device: str) -> tuple[Attributes, Attributes, Attributes]:
    disk: Attributes = {"system.device": device}
    return disk, {**disk, "disk.io.direction": "read"}, {**disk, "disk.io.direction": "write"}


def disk_readings() -> list[Reading]:
    """Return the traffic of each disk."""
    psutil, start = _psutil(), _booted()
    told: list[Reading] = []
    for device, found in (psutil.disk_io_counters(perdisk=True) or {}).items():
        disk, read, write = _disk(device)
        told += [
            Reading("system.disk.io", found.read_bytes, read, start),
            Reading("system.disk.io", found.write_bytes, write, start),
            Reading("system.disk.operations", found.read_count, read, start),
            Reading("system.disk.operations", found.write_count, write, start),
        ]
        if hasattr(found, "busy_time"):  # Linux and FreeBSD
            told.append(Reading("system.disk.io_time", found.busy_time / 1000, disk, start))
    return told


@lru_cache(maxsize=256)
def _watched(device: str, point: str, type_: str, options: str) -> filesystem.Watched:
    mount = filesystem.Mount(b"", b"/", os.fsencode(point), "ro" not in options.split(","), type_, device)
    return filesystem.Watched(mount, os.fsencode(point))


def filesystem_readings() -> list[Reading]:
    """Return the space on each file system with a device. Those that do not answer are named in a SourceFlawed."""
    psutil = _psutil()
    told: list[Reading] = []
    silent: list[str] = []
    for part in psutil.disk_partitions(all=False):
        # The volumes of an APFS container all show the container's space: / and Data stand for it.
        if part.mountpoint.startswith("/System/Volumes/") and part.mountpoint != "/System/Volumes/Data":
            continue
        try:
            found = psutil.disk_usage(part.mountpoint)
        except OSError as error:
            silent.append(f"{part.mountpoint}: {error.strerror}")
            continue
        if found.total > 0:
            reserved = max(0, found.total - found.used - found.free)
            has = filesystem.Space(found.total, found.used, found.free, reserved)
            told += _watched(part.device, part.mountpoint, part.fstype, part.opts).told(has)
    if silent:
        raise SourceFlawed("; ".join(silent), told)
    return told


class Network:
    """Traffic of the interfaces but those that match *exclude*."""

    def __init__(self, exclude: Sequence[str]) -> None:
        self._chosen = network.Chosen(exclude)

    def readings(self) -> list[Reading]:
        """Return the traffic. Connections are left out: psutil walks the sockets, and on macOS that takes root."""
        psutil, start = _psutil(), _booted()
        rows = psutil.net_io_counters(pernic=True)
        told: list[Reading] = []
        for name, interface in self._chosen.among(rows).items():
            found = rows[name]
            received = network.Counters(found.bytes_recv, found.packets_recv, found.errin, found.dropin)
            sent = network.Counters(found.bytes_sent, found.packets_sent, found.errout, found.dropout)
            told += network.told(interface, received, sent, start)
        return told


def uptime_readings() -> list[Reading]:
    """Return the uptime."""
    return [Reading("system.uptime", time.time() - _psutil().boot_time())]


def process_readings() -> list[Reading]:
    """Return what this process uses."""
    running = _psutil().Process()
    start = int(running.create_time() * 1e9)
    spent = running.cpu_times()
    return [
        Reading("process.cpu.time", spent.user, process.USER, start),
        Reading("process.cpu.time", spent.system, process.SYSTEM, start),
        Reading("process.memory.usage", running.memory_info().rss),
        Reading("process.thread.count", running.num_threads()),
        Reading("process.unix.file_descriptor.count", running.num_fds()),
    ]

"""The process that listens on a loopback port, where this machine lets us see it, and how it ended.

It is seen on a plain machine, and in a pod whose containers share their process namespace, by whoever runs as the same user
or may trace others (CAP_SYS_PTRACE). Else there is nothing to be had, and nothing is said.

Found by the socket: /proc/net/tcp names its inode, and one process' /proc/PID/fd holds it. Held by a pidfd, which cannot come to
stand for a successor of the same number.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from otelperf.errors import SourceError
from otelperf.sources.procfs import File

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_LINKS = 50_000  # open files looked at in one search, some 50 ms: a machine may have millions
_MOST_LISTENERS = 10_000
_MOST_PARENTS = 16
_LONGEST_ARGUMENTS = 2**20  # bytes
_SECOND = 1_000_000_000
_LISTENS = "0A"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

# ioctl PIDFD_GET_INFO of linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes. A process that has
# been waited for has its status there since Linux 6.15.
_INFO = struct.Struct("=QQ11Ii")
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_INFO_EXIT = 1 << 3


class ServerProcess:
    """A process, held until it ends. *ticks* is its start, since the machine's; *started* the same as Unix time in ns.

    *arguments* tells its command line from another; what is in that is not kept.
    """

    def __init__(self, pid: int, pidfd: int, ticks: int) -> None:
        self.pid = pid
        self.started = time.time_ns() - _age(ticks)
        self._ticks = ticks
        self.arguments = _arguments(pid)
        self._pidfd = pidfd
        self._kills = _oom_file(pid)
        self._killed = _oom_kills(self._kills)

    def ended(self) -> str | None:
        """Say how it ended: ``signal:SIGKILL``, ``exit:1``, ``oom``, or ``unknown`` where nobody tells; None while it lives.

        ``oom``: the kernel killed in its cgroup for want of memory since the last look, and nothing says that it ended otherwise.
        """
        if not _ready(self._pidfd):
            self._killed = _oom_kills(self._kills)
            return None
        status, killed = self._status(), _oom_kills(self._kills)
        by_oom = killed is not None and self._killed is not None and killed > self._killed
        if by_oom and (status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)):
            return "oom"
        return "unknown" if status is None else reason(status)

    def close(self) -> None:
        """Let go of it."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._kills:
            self._kills.close()

    def _status(self) -> int | None:
        """Return its wait status: from the pidfd once it has been waited for, from /proc before."""
        import fcntl

        try:
            info = _INFO.unpack(fcntl.ioctl(self._pidfd, _GET_INFO, _INFO.pack(_INFO_EXIT, *(0,) * 13)))
        except OSError:  # an older kernel
            info = (0,)
        if info[0] & _INFO_EXIT:
            return int(info[-1])
        # Whoever may not trace it reads 0 here. We may: we have read which files it had open.
        stat = _stat(self.pid)
        dead = stat is not None and stat[0] in {b"Z", b"X"} and int(stat[19]) == self._ticks
        return int(stat[49]) if dead and stat and len(stat) > 49 else None


def find(port: int) -> ServerProcess | None:
    """Return the process that listens on *port* of this machine's loopback, None where it cannot be seen."""
    if sys.platform != "linux":
        return None
    inode, left = _listener(port), _MOST_LINKS
    for pid in _pids() if inode else ():
        links = _links(pid, left)
        if inode in links:
            return _held(_eldest(pid, inode), inode)
        left -= len(links)
    return None


def reason(status: int) -> str:
    """Say a wait status in a word."""
    if not os.WIFSIGNALED(status):
        return f"exit:{os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    try:
        return f"signal:{signal.Signals(number).name}"
    except ValueError:  # a real-time signal
        return f"signal:{number}"


def _listener(port: int) -> str | None:
    """Return the link of the socket that takes connections to *port* from here: one on loopback alone goes before one on all."""
    found: dict[int, str] = {}
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for address, its_port, inode in _listeners(path):
            if its_port == port and (rank := _rank(address)) is not None:
                found.setdefault(rank, f"socket:[{inode}]")
    return found[min(found)] if found else None


def _listeners(path: str) -> Iterator[tuple[bytes, int, str]]:
    """Yield address, port and inode of each listening socket. The kernel lists them first, and there may be many others."""
    with suppress(OSError, ValueError, IndexError), open(path, encoding="ascii") as lines:
        next(lines, None)
        for _, line in zip(range(_MOST_LISTENERS), lines, strict=False):
            columns = line.split()
            if columns[3] != _LISTENS:
                return
            address, _, port = columns[1].partition(":")
            words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
            yield b"".join(word.to_bytes(4, sys.byteorder) for word in words), int(port, 16), columns[9]


def _rank(address: bytes) -> int | None:
    if not any(address):
        return 1  # every address
    mapped = address[-4:] if len(address) == 4 or address[:12] == bytes(10) + b"\xff\xff" else b""
    if mapped[:1] == b"\x7f" or address == bytes(15) + b"\x01":
        return 0
    return 1 if mapped == bytes(4) else None


def _pids() -> Iterator[int]:
    """Yield the processes, the newest first: a server that has just come is among them."""
    with suppress(OSError):
        yield from sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), reverse=True)


def _links(pid: int, most: int = _MOST_LINKS) -> set[str]:
    """Return what the process has open."""
    folder, found = f"/proc/{pid}/fd", set[str]()
    with suppress(OSError):  # gone, or not ours to see
        for name in os.listdir(folder)[:most]:
            with suppress(OSError):
                found.add(os.readlink(f"{folder}/{name}"))
    return found


def _eldest(pid: int, inode: str | None) -> int:
    """Go up to the parent that has the socket too: a server's workers inherit it."""
    for _ in range(_MOST_PARENTS):
        stat = _stat(pid)
        parent = int(stat[1]) if stat else 0
        if parent <= 1 or inode not in _links(parent):
            break
        pid = parent
    return pid


def _held(pid: int, inode: str | None) -> ServerProcess | None:
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, AttributeError):  # gone, or a kernel before 5.3
        return None
    stat = _stat(pid)
    # Only now is it certain that the number stands for the process that has the socket.
    if stat is None or inode not in _links(pid) or _ready(pidfd):
        os.close(pidfd)
        return None
    return ServerProcess(pid, pidfd, int(stat[19]))


def _age(ticks: int) -> int:
    """Return how old (ns) a process is, by a clock that goes on while the machine sleeps, as that of /proc does."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * _SECOND // os.sysconf("SC_CLK_TCK")


def _ready(pidfd: int) -> bool:
    poll = select.poll()  # select cannot take a number from 1024 on
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _stat(pid: int) -> list[bytes] | None:
    """Return the columns of /proc/PID/stat from the third on: the second is a name, which may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def _arguments(pid: int) -> int | None:
    """Return a number that stands for the command line, which may hold secrets; it means nothing outside this process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return hash(file.read(_LONGEST_ARGUMENTS))
    except OSError:
        return None


def _oom_file(pid: int) -> File | None:
    """Return the file in which the process' cgroup counts what was killed for want of memory, if it is in sight."""
    with suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            number, controllers, path = line.rstrip("\n").split(":", 2)
            if ".." in path.split("/"):  # outside of what this container sees
                continue
            if number == "0":
                name = f"sys/fs/cgroup{path}/memory.events"
            elif "memory" in controllers.split(","):
                name = f"sys/fs/cgroup/memory{path}/memory.oom_control"
            else:
                continue
            if os.path.exists(f"/{name}"):
                return File("/", name)
    return None


def _oom_kills(file: File | None) -> int | None:
    """Return the ``oom_kill`` of the file, None where there is none: the cgroup may go with its last process."""
    try:
        for line in file.read().splitlines() if file else ():
            name, _, count = line.partition(b" ")
            if name == b"oom_kill" and count.isdigit():
                return int(count)
    except SourceError:
        return None
    return None

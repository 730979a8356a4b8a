"""Files of /proc and /sys: opened once, read whole at each tick."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from typing import TYPE_CHECKING

from otelperf.errors import SourceAbsent, SourceError, SourceFailed

if TYPE_CHECKING:
    from collections.abc import Iterable

# EOPNOTSUPP is how a kernel answers for something it was booted without (psi=0).
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP})
_SHOWN = 80
_LARGEST_READ = 2**20  # Python allocates what is asked for, however little there is
_U64 = 2**64
_BOOT_TIME = re.compile(rb"^btime (\d{1,10})$", re.MULTILINE)


class File:
    """One file, kept open: a pread costs a tenth of open, read and close."""

    __slots__ = ("_fd", "_identity", "_size", "path")

    def __init__(self, root: str, path: str) -> None:
        self.path = os.path.join(root, path)
        self._fd = -1
        self._identity = (0, 0)
        self._size = 4096

    def read(self) -> bytes:
        """Return the whole content. Raises SourceAbsent where there is no such file, else SourceFailed."""
        if self._fd >= 0:
            # What the descriptor stands for can go (a process, a namespace): a fresh one may find its successor.
            with contextlib.suppress(OSError):
                return self._content()
            self.close()
        try:
            self._open()
            return self._content()
        except OSError as error:
            self.close()
            raise unreadable(self.path, error) from error

    def close(self) -> None:
        """Close the descriptor; a later read opens the file again."""
        fd, self._fd = self._fd, -1
        # A program that daemonizes closes all descriptors, and the number may since be somebody else's: leave that.
        with contextlib.suppress(OSError):
            if fd >= 0 and _identity(fd) == self._identity:
                os.close(fd)

    def __del__(self) -> None:
        """Close the descriptor of a file that was forgotten."""
        self.close()

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_RDONLY)
        self._identity = _identity(self._fd)

    def _content(self) -> bytes:
        content = os.pread(self._fd, self._size, 0)
        # The kernel gives about a page at a time of the longer files, whatever was asked for: only nothing is the end.
        # https://docs.kernel.org/filesystems/seq_file.html
        more = os.pread(self._fd, self._size, len(content))
        return self._longer(content, more) if more else content

    def _longer(self, *pieces: bytes) -> bytes:
        read, length = list(pieces), sum(map(len, pieces))
        while more := os.pread(self._fd, self._size, length):
            read.append(more)
            length += len(more)
        self._size = min(max(self._size, 2 * length), _LARGEST_READ)
        return b"".join(read)


def unreadable(path: str, error: OSError) -> SourceError:
    """Return the error that tells what *error* means for a source."""
    if error.errno in _MISSING:
        return SourceAbsent(f"{path}: {error.strerror}")
    return SourceFailed(f"cannot read {path}: {error.strerror}")


def odd(path: str, content: bytes) -> SourceFailed:
    """Return the error for content that is not what the kernel documents."""
    shown = content if len(content) <= _SHOWN else content[:_SHOWN] + b"..."
    return SourceFailed(f"{path}: unexpected content {shown!r}")


def numbers(words: Iterable[bytes]) -> list[int]:
    """Return the kernel's unsigned numbers. Raises ValueError."""
    values = list(map(int, words))
    if values and not 0 <= min(values) <= max(values) < _U64:
        msg = "not an unsigned 64-bit number"
        raise ValueError(msg)
    return values


def text(name: bytes) -> str:
    """Return a name that the kernel took as bytes as something that fits in an attribute."""
    return name.decode("utf-8", "backslashreplace")


@functools.cache
def boot_time(root: str) -> int | None:
    """Return when the machine started (Unix ns), None if the kernel does not say.

    Remembered: the kernel derives it from the wall clock, so after a clock step it would look like a restart.
    """
    file = File(root, "proc/stat")
    try:
        found = _BOOT_TIME.search(file.read())
    except SourceError:
        return None
    finally:
        file.close()
    return int(found[1]) * 1_000_000_000 if found else None


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino

"""Space on the file systems that hold data, from mountinfo and statvfs."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from otelperf.errors import SourceAbsent, SourceError, SourceFlawed
from otelperf.readings import Attributes, Reading
from otelperf.sources.procfs import File, odd, text, unreadable

# Types that /proc/filesystems calls nodev and that hold data nevertheless: on the network, or on devices of their own.
_REAL_WITHOUT_DEVICE = frozenset(
    {"9p", "ceph", "cifs", "fuse", "glusterfs", "lustre", "nfs", "nfs4", "smb3", "virtiofs", "zfs"}
)
# FUSE that shows no storage, or a read-only image.
_FUSE_IGNORED = frozenset(
    {"fuse.gvfsd-fuse", "fuse.lxcfs", "fuse.portal", "fuse.snapfuse", "fuse.squashfuse", "fuse.sysbox-fs"}
)
# Images are always full: a snap package would raise an alert that nobody can answer.
_IMAGES = frozenset({"cramfs", "erofs", "iso9660", "romfs", "squashfs", "udf"})
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo. *root* is the folder of the file system that is mounted: not / for a bind mount."""

    device_number: bytes
    root: bytes
    point: bytes
    writable: bool
    type: str
    device: str


class Space(NamedTuple):
    """Bytes. Users can have *free*; *reserved* is kept for root; the three add up to *limit*."""

    limit: int
    used: int
    free: int
    reserved: int


def parse_mountinfo(content: bytes) -> list[Mount]:
    """Parse mountinfo. https://docs.kernel.org/filesystems/proc.html#proc-pid-mountinfo-information-about-mounts."""
    return [_mount(line) for line in content.splitlines()]


def _mount(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    columns, more = before.split(b" "), after.split(b" ")
    try:
        number, root, point, options = columns[2:6]
        type_, device, of_all_mounts = more[:3]
    except ValueError as error:
        raise odd("mountinfo", line) from error
    writable = b"ro" not in options.split(b",") and b"ro" not in of_all_mounts.split(b",")
    return Mount(number, _plain(root), _plain(point), writable, text(type_), text(_plain(device)))


def _plain(escaped: bytes) -> bytes:
    r"""Return a name without mountinfo's octal escapes: blanks, line ends and backslashes (\040 is a blank)."""
    if b"\\" not in escaped:
        return escaped
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), escaped)


def parse_filesystems(content: bytes) -> frozenset[str]:
    """Parse /proc/filesystems: return the types that need no device."""
    words = (line.split() for line in content.splitlines())
    return frozenset(text(pair[1]) for pair in words if len(pair) == 2 and pair[0] == b"nodev")


def holds_data(mount: Mount, nodev: frozenset[str]) -> bool:
    """Say whether a person would ask how full this mount is."""
    if mount.type in _IMAGES or mount.type in _FUSE_IGNORED:
        return False
    if mount.type == "tmpfs":  # inference servers fill this one: tensors go through it from process to process
        return mount.point == b"/dev/shm"
    if mount.type == "overlay":
        # Those of a machine's containers repeat the disk that they lie on. But to somebody inside a container the one
        # at / is the only view of that disk, and the one that fills up.
        return mount.point == b"/"
    return mount.type not in nodev or mount.type in _REAL_WITHOUT_DEVICE or mount.type.startswith("fuse.")


def choose(mounts: list[Mount]) -> list[Mount]:
    """Return one mount of each file system, the best known: of its own root if there is one, then the shortest path."""
    visible = {mount.point: mount for mount in mounts}.values()  # a later mount hides an earlier one at the same point
    chosen: dict[bytes, Mount] = {}
    for mount in sorted(visible, key=lambda mount: (mount.root != b"/", len(mount.point), mount.point)):
        chosen.setdefault(mount.device_number, mount)
    return sorted(chosen.values(), key=lambda mount: mount.point)


def space(status: os.statvfs_result) -> Space | None:
    """Return the space, None where there is no notion of it (some FUSE and network mounts)."""
    block = status.f_frsize
    limit, used, free = status.f_blocks * block, (status.f_blocks - status.f_bfree) * block, status.f_bavail * block
    if limit <= 0 or used < 0:
        return None
    # Over quota or past the reserve, "free to users" is not what is left of the whole.
    free = min(free, limit - used)
    return Space(limit, used, free, limit - used - free)


class Watched:
    """A mounted file system with its path as we reach it, and its attributes."""

    __slots__ = ("free", "mount", "path", "reserved", "used")

    def __init__(self, mount: Mount, path: bytes) -> None:
        self.path = path
        self.mount: Attributes = {
            "system.device": mount.device,
            "system.filesystem.mountpoint": text(mount.point),
            "system.filesystem.type": mount.type,
            "system.filesystem.mode": "rw" if mount.writable else "ro",
        }
        self.used: Attributes = {**self.mount, "system.filesystem.state": "used"}
        self.free: Attributes = {**self.mount, "system.filesystem.state": "free"}
        self.reserved: Attributes = {**self.mount, "system.filesystem.state": "reserved"}

    def told(self, has: Space) -> list[Reading]:
        """Return what is told about the space that it *has*."""
        told = [
            Reading("system.filesystem.usage", has.used, self.used),
            Reading("system.filesystem.usage", has.free, self.free),
            Reading("system.filesystem.usage", has.reserved, self.reserved),
            Reading("system.filesystem.limit", has.limit, self.mount),
        ]
        if has.used + has.free:
            told.append(Reading("system.filesystem.utilization", has.used / (has.used + has.free), self.mount))
        return told


class Filesystem:
    """Read the space on every file system that holds data."""

    name = "filesystem"
    entity = "host"
    blocking = True  # statvfs on a mount whose server is gone can wait for ever

    def __init__(self, root: str = "/") -> None:
        self._root = os.fsencode(root)
        # The host's mounts are those of its first process; /proc/self is whoever reads.
        self._mountinfo = File(root, "proc/self/mountinfo" if root == "/" else "proc/1/mountinfo")
        self._types = File(root, "proc/filesystems")
        self._content = b""
        self._watched: list[Watched] = []

    def read(self, now: int) -> list[Reading]:
        """Read mountinfo and ask each file system. Those that do not answer are named in a SourceFlawed."""
        self._look_for_changes()
        if not self._watched:
            msg = f"no file system that holds data is in {self._mountinfo.path}"
            raise SourceAbsent(msg)
        readings: list[Reading] = []
        silent: list[SourceError] = []
        for watched in self._watched:
            try:
                has = space(os.statvfs(watched.path))
            except OSError as error:
                silent.append(unreadable(os.fsdecode(watched.path), error))
            else:
                readings += watched.told(has) if has else []
        if silent:
            raise SourceFlawed("; ".join(map(str, silent)), readings)
        return readings

    def close(self) -> None:
        """Close the files."""
        self._mountinfo.close()
        self._types.close()

    def _look_for_changes(self) -> None:
        content = self._mountinfo.read()
        if content == self._content:
            return
        nodev = parse_filesystems(self._types.read())
        mounts = [mount for mount in parse_mountinfo(content) if holds_data(mount, nodev)]
        # Container runtimes mount single files (/etc/hosts, the GPU driver's libraries): views of the host's disk.
        folders = [mount for mount in mounts if not os.path.isfile(self._path(mount))]
        self._watched = [Watched(mount, self._path(mount)) for mount in choose(folders)]
        self._content = content

    def _path(self, mount: Mount) -> bytes:
        return os.path.join(self._root, mount.point.lstrip(b"/"))

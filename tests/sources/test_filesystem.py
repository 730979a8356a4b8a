from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import psutil
import pytest

from otelperf.errors import SourceAbsent, SourceFailed, SourceFlawed
from otelperf.sources.filesystem import (
    Filesystem,
    Mount,
    Space,
    choose,
    holds_data,
    parse_filesystems,
    parse_mountinfo,
    space,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otelperf.readings import Reading

NODEV = frozenset({"tmpfs", "proc", "overlay", "nfs4", "autofs", "fuse", "zfs", "devtmpfs"})
OF_NODE = (
    "boot/efi", "dev/shm", "home", "mnt/bucket", "models and\tdata", "old", "pool", "srv/long/path", "snap/core22/1122",
    "var/lib/lxcfs", "a", "run/netns",
)  # fmt: skip


@pytest.fixture
def node(machine: Callable[[str], Path]) -> Path:
    """Return the node with folders where it has mounts."""
    root = machine("node")
    for point in OF_NODE:
        (root / point).mkdir(parents=True)
    return root


def points(readings: list[Reading] | tuple[Reading, ...]) -> list[object]:
    """Return the mount points told, in order."""
    return [
        reading.attributes["system.filesystem.mountpoint"]
        for reading in readings
        if reading.name == "system.filesystem.limit"
    ]


def mount(point: bytes = b"/", type_: str = "ext4", number: bytes = b"8:1", root: bytes = b"/") -> Mount:
    """Return a mount."""
    return Mount(number, root, point, writable=True, type=type_, device="/dev/sda1")


def status(blocks: int, free: int, available: int) -> os.statvfs_result:
    """Return what statvfs gives for blocks of 4096 bytes."""
    return os.statvfs_result((4096, 4096, blocks, free, available, 0, 0, 0, 0, 255))


def test_only_file_systems_that_hold_data_are_told_and_each_once(node: Path) -> None:
    """Neither pseudo file systems, snaps, lxcfs and overlays, nor bind mounts, nor what another mount hides."""
    assert points(Filesystem(str(node)).read(0)) == [
        "/", "/boot/efi", "/dev/shm", "/home", "/mnt/bucket", "/models and\tdata", "/old", "/pool",
    ]  # fmt: skip


def test_attributes_name_device_type_and_mode(node: Path) -> None:
    """Octal escapes are decoded; read-only is a mode."""
    told = {
        reading.attributes["system.filesystem.mountpoint"]: dict(reading.attributes)
        for reading in Filesystem(str(node)).read(0)
        if reading.name == "system.filesystem.utilization"
    }
    assert told["/models and\tdata"] == {
        "system.device": "nas:/export/models\\v1",
        "system.filesystem.mountpoint": "/models and\tdata",
        "system.filesystem.type": "nfs4",
        "system.filesystem.mode": "rw",
    }
    assert told["/boot/efi"]["system.filesystem.mode"] == "ro"
    assert told["/old"]["system.filesystem.type"] == "xfs"


def test_a_file_system_that_does_not_answer_loses_none_of_the_others(node: Path) -> None:
    """The mount point is gone, as with a dead server's ESTALE."""
    (node / "pool").rmdir()
    with pytest.raises(SourceFlawed, match="/pool: No such file") as flawed:
        Filesystem(str(node)).read(0)
    assert "/pool" not in points(flawed.value.readings)
    assert "/home" in points(flawed.value.readings)


def test_a_new_mount_is_told(node: Path) -> None:
    """The list of mounts is looked at anew when mountinfo changes."""
    source = Filesystem(str(node))
    source.read(0)
    (node / "new").mkdir()
    with (node / "proc/1/mountinfo").open("a") as file:
        file.write("99 28 0:99 / /new rw - xfs /dev/sdz rw\n")
    assert "/new" in points(source.read(0))


def test_attributes_are_the_same_objects_each_time(node: Path) -> None:
    """Identity makes the way to the gate cheap."""
    source = Filesystem(str(node))
    first, second = source.read(0), source.read(0)
    assert [id(reading.attributes) for reading in first] == [id(reading.attributes) for reading in second]


def test_inside_a_container_the_overlay_at_the_root_is_told_and_files_mounted_into_it_are_not(
    machine: Callable[[str], Path],
) -> None:
    """The files lie on the machine's disk; the container's own writes go to the overlay."""
    root = machine("node")
    (root / "etc").mkdir()
    (root / "etc/hosts").write_text("")
    (root / "models").mkdir()
    (root / "proc/1/mountinfo").write_text(
        "1 0 0:50 / / rw - overlay overlay rw,lowerdir=/l\n"
        "2 1 0:51 / /proc rw - proc proc rw\n"
        "3 1 259:1 /var/lib/docker/containers/1/hosts /etc/hosts rw - ext4 /dev/nvme0n1p1 rw\n"
        "4 1 259:3 /volume /models rw - xfs /dev/sdb1 rw\n"
    )
    assert points(Filesystem(str(root)).read(0)) == ["/", "/models"]


def test_nothing_that_holds_data_is_absence(machine: Callable[[str], Path]) -> None:
    """As in a machine that runs from memory."""
    root = machine("node")
    (root / "proc/1/mountinfo").write_text("28 1 0:1 / / rw - tmpfs tmpfs rw\n")
    with pytest.raises(SourceAbsent, match="no file system"):
        Filesystem(str(root)).read(0)


def test_no_mountinfo_is_absence(machine: Callable[[str], Path]) -> None:
    """There is no /proc."""
    root = machine("node")
    shutil.rmtree(root / "proc")
    with pytest.raises(SourceAbsent):
        Filesystem(str(root)).read(0)


def test_the_sampler_reads_it_in_its_own_thread() -> None:
    """It asks servers that may be gone."""
    assert Filesystem.blocking


@pytest.mark.parametrize(
    ("type_", "point", "expected"),
    [
        ("ext4", b"/data", True),
        ("fuseblk", b"/data", True),
        ("nfs4", b"/data", True),
        ("zfs", b"/data", True),
        ("fuse", b"/data", True),
        ("fuse.sshfs", b"/data", True),
        ("tmpfs", b"/dev/shm", True),
        ("overlay", b"/", True),
        ("proc", b"/proc", False),
        ("tmpfs", b"/run", False),
        ("overlay", b"/var/lib/docker/overlay2/1/merged", False),
        ("squashfs", b"/snap/core/1", False),
        ("iso9660", b"/media/cd", False),
        ("fuse.lxcfs", b"/var/lib/lxcfs", False),
        ("fuse.portal", b"/run/user/1000/doc", False),
        ("autofs", b"/net", False),
    ],
)
def test_what_holds_data(type_: str, point: bytes, *, expected: bool) -> None:
    """A person would ask how full it is."""
    assert expected == holds_data(mount(point, type_), NODEV)


def test_of_several_mounts_of_one_file_system_the_plainest_is_kept() -> None:
    """Its own root first, then the shortest path."""
    assert [kept.point for kept in choose([mount(b"/b", root=b"/sub"), mount(b"/very/long")])] == [b"/very/long"]
    assert [kept.point for kept in choose([mount(b"/long", root=b"/x"), mount(b"/b", root=b"/y")])] == [b"/b"]


def test_a_mount_over_another_hides_it() -> None:
    """The later one is on top."""
    assert [kept.type for kept in choose([mount(), mount(type_="xfs", number=b"8:2")])] == ["xfs"]


def test_optional_fields_of_mountinfo_are_passed_over() -> None:
    """There may be none, one or several before the dash."""
    for optional in (b"", b"shared:1 ", b"shared:1 master:2 propagate_from:3 "):
        line = b"28 1 259:1 /r /p rw,noatime " + optional + b"- ext4 /dev/sda ro,errors=x\n"
        assert [Mount(b"259:1", b"/r", b"/p", False, "ext4", "/dev/sda")] == parse_mountinfo(line)


@pytest.mark.parametrize(
    "content", [b"\n", b"28 1 259:1 / /\n", b"28 1 8:1 / / rw - ext4\n", b"28 1 8:1 / / rw ext4 a b\n"]
)
def test_odd_mountinfo_is_a_failure(content: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="mountinfo"):
        parse_mountinfo(content)


def test_types_without_device() -> None:
    """Lines with one word are types with a device."""
    assert parse_filesystems(b"nodev\tproc\n\text4\nnodev\n\nnodev\ttmpfs\n") == {"proc", "tmpfs"}


@pytest.mark.parametrize(
    ("blocks", "free", "available", "expected"),
    [
        (100, 40, 30, Space(100, 60, 30, 10)),
        (100, 40, 40, Space(100, 60, 40, 0)),
        (100, 5, 0, Space(100, 95, 0, 5)),
        (100, 40, 60, Space(100, 60, 40, 0)),
    ],
)
def test_space_adds_up(blocks: int, free: int, available: int, expected: Space) -> None:
    """Some network file systems give users more than there is."""
    assert Space(*(4096 * part for part in expected)) == space(status(blocks, free, available))


@pytest.mark.parametrize(("blocks", "free"), [(0, 0), (100, 200)])
def test_no_notion_of_space_is_no_reading(blocks: int, free: int) -> None:
    """Absent is not zero."""
    assert space(status(blocks, free, free)) is None


def test_this_machine_agrees_with_psutil() -> None:
    """Used, free and limit of each mount that both tell."""
    source = Filesystem()
    try:
        readings: list[Reading] | tuple[Reading, ...] = source.read(0)
    except SourceAbsent:
        pytest.skip("this machine has no file systems")
    except SourceFlawed as flawed:
        readings = flawed.readings
    finally:
        source.close()
    assert points(readings)
    for reading in readings:
        theirs = psutil.disk_usage(str(reading.attributes["system.filesystem.mountpoint"]))
        if reading.name == "system.filesystem.limit":
            assert reading.value == theirs.total
        elif reading.name == "system.filesystem.utilization":
            assert reading.value == pytest.approx(theirs.percent / 100, abs=0.01)

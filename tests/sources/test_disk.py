from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import psutil
import pytest

from otelperf.errors import SourceAbsent, SourceFailed
from otelperf.readings import Reading
from otelperf.sources.disk import Disk, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOOT = 1_700_000_000_000_000_000


def devices(readings: list[Reading]) -> set[object]:
    """Return the names of the disks told."""
    return {reading.attributes["system.device"] for reading in readings}


def test_a_disk_tells_bytes_operations_and_busy_seconds(machine: Callable[[str], Path]) -> None:
    """Sectors are of 512 bytes whatever the disk's own size."""
    disk = {"system.device": "nvme0n1"}
    read, write = {**disk, "disk.io.direction": "read"}, {**disk, "disk.io.direction": "write"}
    assert [
        Reading("system.disk.io", 80_000 * 512, read, BOOT),
        Reading("system.disk.io", 160_000 * 512, write, BOOT),
        Reading("system.disk.operations", 1000, read, BOOT),
        Reading("system.disk.operations", 2000, write, BOOT),
        Reading("system.disk.io_time", 12.5, disk, BOOT),
    ] == Disk(str(machine("node"))).read(0)[:5]


def test_only_whole_disks_are_told(machine: Callable[[str], Path]) -> None:
    """No partitions, loops, memory, floppies and CDs; a slash in a name is no folder."""
    assert devices(Disk(str(machine("node"))).read(0)) == {"nvme0n1", "cciss/c0d0", "dm-1"}
    assert devices(Disk(str(machine("vm"))).read(0)) == {"vda"}


def test_an_old_kernels_short_partition_lines_are_passed_over(machine: Callable[[str], Path]) -> None:
    """Before 2.6.25 they had seven columns."""
    assert devices(Disk(str(machine("old"))).read(0)) == {"sda"}


def test_a_disk_that_is_plugged_in_is_told_and_one_that_is_pulled_out_ends(machine: Callable[[str], Path]) -> None:
    """The list of disks is looked at anew when the names change."""
    root = machine("old")
    source = Disk(str(root))
    source.read(0)
    (root / "sys/block/sdb").mkdir()
    (root / "proc/diskstats").write_text("8 16 sdb 1 1 1 1 1 1 1 1 0 1 1\n")
    assert devices(source.read(0)) == {"sdb"}


def test_attributes_are_the_same_objects_each_time(machine: Callable[[str], Path]) -> None:
    """Identity makes the way to the gate cheap."""
    source = Disk(str(machine("node")))
    first, second = source.read(0), source.read(0)
    assert [id(reading.attributes) for reading in first] == [id(reading.attributes) for reading in second]


def test_no_disks_are_absence(machine: Callable[[str], Path]) -> None:
    """Without /sys/block nobody can say what is a whole disk."""
    root = machine("node")
    shutil.rmtree(root / "sys/block")
    with pytest.raises(SourceAbsent, match="no disk"):
        Disk(str(root)).read(0)


@pytest.mark.parametrize("content", [b"8 0\n", b"\n", b"8 0 sda one\n", b"8 0 sda 1 2 3 4 5 6 7 8 0 -1 9\n"])
def test_odd_content_is_a_failure(content: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="/proc/diskstats"):
        parse(content)


def test_an_empty_file_is_no_disks() -> None:
    """As in a sandbox."""
    assert parse(b"") == {}


def test_this_machine_agrees_with_psutil() -> None:
    """Read between two readings of psutil, each count lies between."""
    source = Disk()
    before = psutil.disk_io_counters(perdisk=True)
    try:
        readings = source.read(0)
    except SourceAbsent:
        pytest.skip("this machine has no disks")
    finally:
        source.close()
    after = psutil.disk_io_counters(perdisk=True)
    for reading in readings:
        low, high = (found[str(reading.attributes["system.device"])] for found in (before, after))
        field = {
            ("system.disk.io", "read"): "read_bytes",
            ("system.disk.io", "write"): "write_bytes",
            ("system.disk.operations", "read"): "read_count",
            ("system.disk.operations", "write"): "write_count",
        }.get((reading.name, str(reading.attributes.get("disk.io.direction"))))
        if field:
            assert getattr(low, field) <= reading.value <= getattr(high, field)

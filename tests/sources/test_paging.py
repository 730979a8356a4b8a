from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from otelperf.errors import SourceFailed
from otelperf.readings import Reading
from otelperf.sources.paging import FREE, IN, MAJOR, MINOR, OUT, USED, Paging, Swap, Vmstat, parse_swaps, parse_vmstat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOOT = 1_700_000_000_000_000_000
K = 1024
HEADER = b"Filename\tType\tSize\tUsed\tPriority\n"


def test_swap_and_faults_are_told(machine: Callable[[str], Path]) -> None:
    """Swap areas add up; a minor fault is one that is not major."""
    assert [
        Reading("system.paging.faults", 998_766, MINOR, BOOT),
        Reading("system.paging.faults", 1234, MAJOR, BOOT),
        Reading("system.paging.usage", 10_000 * K, USED),
        Reading("system.paging.usage", 20_000 * K, FREE),
        Reading("system.paging.utilization", 1 / 3, USED),
        Reading("system.paging.utilization", 2 / 3, FREE),
        Reading("system.paging.operations", 33, IN, BOOT),
        Reading("system.paging.operations", 44, OUT, BOOT),
    ] == Paging(str(machine("node"))).read(0)


@pytest.mark.parametrize("name", ["vm", "old"])
def test_without_swap_only_faults_are_told(machine: Callable[[str], Path], name: str) -> None:
    """Neither no swap area nor a kernel without swap is a fault or a zero."""
    readings = Paging(str(machine(name))).read(0)
    assert {"system.paging.faults"} == {reading.name for reading in readings}


def test_swap_that_is_switched_off_ends(machine: Callable[[str], Path]) -> None:
    """What is left out has ended."""
    root = machine("node")
    source = Paging(str(root))
    source.read(0)
    (root / "proc/swaps").write_bytes(HEADER)
    assert {"system.paging.faults"} == {reading.name for reading in source.read(0)}


def test_minor_faults_never_fall(machine: Callable[[str], Path]) -> None:
    """The kernel counts a major fault before it counts the fault."""
    root = machine("node")
    source = Paging(str(root))
    (root / "proc/vmstat").write_text("x 1\npgfault 100\npgmajfault 10\n")
    assert source.read(0)[0].value == 90
    (root / "proc/vmstat").write_text("x 1\npgfault 100\npgmajfault 11\n")
    assert source.read(0)[0].value == 90


def test_a_swap_file_whose_name_has_a_blank_is_one_word() -> None:
    """The kernel escapes it."""
    assert Swap(10 * K, 3 * K) == parse_swaps(HEADER + b"/a\\040b file 10 3 -2\n")


@pytest.mark.parametrize("content", [b"", b"what\n", HEADER + b"/a file 10\n", HEADER + b"/a file 10 11 -2\n"])
def test_odd_swaps_are_a_failure(content: bytes) -> None:
    """Use beyond the size is odd, too."""
    with pytest.raises(SourceFailed, match="/proc/swaps"):
        parse_swaps(content)


def test_a_kernel_without_swap_has_no_swap_counters() -> None:
    """Absent is not zero."""
    assert Vmstat(5, 1, None, None) == parse_vmstat(b"a 1\npgfault 5\npgmajfault 1")


@pytest.mark.parametrize("content", [b"", b"a 1\npgfault\npgmajfault 1\n", b"a 1\npgfault 1\npgmajfault 2\n"])
def test_odd_vmstat_is_a_failure(content: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="/proc/vmstat"):
        parse_vmstat(content)


def test_this_machine_agrees_with_psutil() -> None:
    """Where it has swap."""
    source = Paging()
    readings = source.read(0)
    source.close()
    theirs = psutil.swap_memory()
    usage = {
        reading.attributes["system.paging.state"]: reading.value
        for reading in readings
        if reading.name == "system.paging.usage"
    }
    assert sum(map(float, usage.values())) == theirs.total  # type: ignore[arg-type] # usage has no buckets

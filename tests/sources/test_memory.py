from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from otelperf.errors import SourceAbsent, SourceFailed
from otelperf.sources.memory import Meminfo, Memory, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otelperf.readings import Reading

K = 1024


def by_state(readings: list[Reading], name: str) -> dict[object, object]:
    """Return the values of a metric by state."""
    return {
        reading.attributes.get("system.memory.state"): reading.value for reading in readings if reading.name == name
    }


def test_states_are_those_of_free_and_add_up_to_the_limit(machine: Callable[[str], Path]) -> None:
    """The cache holds the part of the slab that can be given back; SwapCached is no Cached."""
    readings = Memory(str(machine("node"))).read(0)
    usage = by_state(readings, "system.memory.usage")
    assert usage == {"used": 500_000 * K, "free": 100_000 * K, "buffers": 50_000 * K, "cached": 350_000 * K}
    assert by_state(readings, "system.memory.limit") == {None: 1_000_000 * K}
    assert by_state(readings, "system.memory.linux.available") == {None: 600_000 * K}
    assert by_state(readings, "system.memory.utilization") == {
        "used": 0.5, "free": 0.1, "buffers": 0.05, "cached": 0.35,
    }  # fmt: skip


def test_an_old_kernel_has_no_available(machine: Callable[[str], Path]) -> None:
    """Absent is not zero. It has no SReclaimable either."""
    readings = Memory(str(machine("old"))).read(0)
    assert "system.memory.linux.available" not in {reading.name for reading in readings}
    assert by_state(readings, "system.memory.usage")["cached"] == 300 * K


def test_the_last_line_needs_no_end() -> None:
    """A container's file system in user space may leave it out."""
    assert Meminfo(100 * K, 10 * K, 1 * K, 20 * K, None) == parse(
        b"MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 1 kB\nCached: 20 kB"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"MemTotal: lots kB\n",
        b"MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 1 kB\n",
        b"MemTotal: 100 kB\nMemFree: 100 kB\nBuffers: 1 kB\nCached: 20 kB\n",
        b"MemTotal: 0 kB\nMemFree: 0 kB\nBuffers: 0 kB\nCached: 0 kB\n",
    ],
)
def test_odd_content_is_a_failure(content: bytes) -> None:
    """A part that exceeds the whole is odd, too."""
    with pytest.raises(SourceFailed, match="/proc/meminfo"):
        parse(content)


def test_no_file_is_absence(tmp_path: Path) -> None:
    """Nothing is invented."""
    with pytest.raises(SourceAbsent):
        Memory(str(tmp_path)).read(0)


def test_this_machine_agrees_with_psutil() -> None:
    """Within what other programs take or give in between."""
    source = Memory()
    readings, theirs = source.read(0), psutil.virtual_memory()
    source.close()
    usage = by_state(readings, "system.memory.usage")
    near = 0.05 * theirs.total
    assert by_state(readings, "system.memory.limit") == {None: theirs.total}
    assert usage["free"] == pytest.approx(theirs.free, abs=near)
    assert usage["cached"] == pytest.approx(theirs.cached, abs=near)
    assert usage["buffers"] == pytest.approx(theirs.buffers, abs=near)
    assert by_state(readings, "system.memory.linux.available")[None] == pytest.approx(theirs.available, abs=near)

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf.errors import SourceFailed
from otelperf.sources.cpu import MODES, Cpu, Rising, Stat, parse, shares

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from otelperf.readings import Reading

TICKS = os.sysconf("SC_CLK_TCK")
BOOT = 1_700_000_000_000_000_000


def times(readings: list[Reading], number: int | None) -> dict[object, object]:
    """Return system.cpu.time by mode, of one CPU or of all."""
    return {
        reading.attributes["cpu.mode"]: reading.value
        for reading in readings
        if reading.name == "system.cpu.time" and reading.attributes.get("cpu.logical_number") == number
    }


def utilization(readings: list[Reading]) -> dict[object, object]:
    """Return system.cpu.utilization by mode."""
    return {
        reading.attributes["cpu.mode"]: reading.value
        for reading in readings
        if reading.name == "system.cpu.utilization"
    }


def set_stat(root: Path, *lines: str) -> None:
    """Write /proc/stat."""
    (root / "proc/stat").write_text("\n".join((*lines, "intr 5 0 0", "btime 1700000000", "")))


def test_guest_time_is_not_counted_twice_and_interrupts_are_one_mode() -> None:
    """Columns 9 and 10 are inside user and nice; irq and softirq add up."""
    stat = parse(b"cpu  100 20 30 400 5 6 7 8 90 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 1\n")
    assert Stat([100, 20, 30, 400, 5, 13, 8], {0: [1, 2, 3, 4, 5, 13, 8]}) == stat


@pytest.mark.parametrize(
    ("columns", "modes"),
    [
        (b"1 2 3 4", [1, 2, 3, 4]),
        (b"1 2 3 4 5", [1, 2, 3, 4, 5]),
        (b"1 2 3 4 5 6", [1, 2, 3, 4, 5]),
        (b"1 2 3 4 5 6 7", [1, 2, 3, 4, 5, 13]),
        (b"1 2 3 4 5 6 7 8", [1, 2, 3, 4, 5, 13, 8]),
        (b"1 2 3 4 5 6 7 8 9", [1, 2, 3, 4, 5, 13, 8]),
        (b"1 2 3 4 5 6 7 8 9 10 11", [1, 2, 3, 4, 5, 13, 8]),
    ],
)
def test_a_kernel_that_knows_fewer_modes_tells_fewer(columns: bytes, modes: list[int]) -> None:
    """Absent is not zero."""
    assert parse(b"cpu " + columns + b"\n").total == modes


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"intr 1\n",
        b"cpu 1 2 3\n",
        b"cpu 1 2 3 x\n",
        b"cpu 1 2 3 -4\n",
        b"cpu 1 2 3 4\ncpux 1 2 3 4\n",
        b"cpu0 1 2 3 4\n",
    ],
)
def test_odd_content_is_a_failure(content: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="/proc/stat"):
        parse(content)


def test_each_cpu_counts_seconds_since_boot(machine: Callable[[str], Path]) -> None:
    """CPU 2 is off line: it has no line and no readings."""
    readings = Cpu(str(machine("node"))).read(0)
    assert times(readings, 0) == {
        "user": 500 / TICKS,
        "nice": 100 / TICKS,
        "system": 150 / TICKS,
        "idle": 20000 / TICKS,
        "iowait": 25 / TICKS,
        "interrupt": 7 / TICKS,
        "steal": 40 / TICKS,
    }
    assert {0, 1, 3} == {
        reading.attributes["cpu.logical_number"] for reading in readings if reading.name == "system.cpu.time"
    }
    assert {BOOT} == {reading.start for reading in readings if reading.name == "system.cpu.time"}
    assert [reading.value for reading in readings if reading.name == "system.cpu.logical.count"] == [3]


def test_totals_by_mode_carry_no_cpu_number(machine: Callable[[str], Path]) -> None:
    """For machines of very many CPUs."""
    readings = Cpu(str(machine("node")), per_logical=False).read(0)
    assert times(readings, None)["user"] == 1000 / TICKS
    assert len(MODES) + 1 == len(readings)


def test_utilization_is_absent_at_first_and_then_of_the_time_between(machine: Callable[[str], Path]) -> None:
    """The shares add up to one."""
    root = machine("node")
    source = Cpu(str(root))
    set_stat(root, "cpu 100 0 0 100 0 0 0 0")
    assert utilization(source.read(0)) == {}
    set_stat(root, "cpu 130 0 10 160 0 0 0 0")
    assert utilization(source.read(0)) == {
        "user": 0.3, "nice": 0, "system": 0.1, "idle": 0.6, "iowait": 0, "interrupt": 0, "steal": 0,
    }  # fmt: skip


def test_utilization_is_absent_when_no_time_passed(machine: Callable[[str], Path]) -> None:
    """Then the next one spans both intervals."""
    root = machine("node")
    source = Cpu(str(root))
    source.read(0)
    assert utilization(source.read(0)) == {}
    set_stat(root, "cpu 1010 200 300 40030 50 6 7 80")
    assert utilization(source.read(0))["user"] == 0.25


def test_a_small_step_back_stands_still(machine: Callable[[str], Path]) -> None:
    """The kernel's iowait is an estimate and may step back."""
    root = machine("node")
    source = Cpu(str(root))
    set_stat(root, "cpu 1 1 1 1000 500 0 0 0", "cpu0 1 1 1 1000 500 0 0 0")
    source.read(0)
    set_stat(root, "cpu 1 1 1 1090 490 0 0 0", "cpu0 1 1 1 1090 490 0 0 0")
    readings = source.read(0)
    assert times(readings, 0)["iowait"] == 500 / TICKS
    assert utilization(readings)["iowait"] == 0
    assert utilization(readings)["idle"] == 1
    set_stat(root, "cpu 1 1 1 1100 510 0 0 0", "cpu0 1 1 1 1100 510 0 0 0")
    assert times(source.read(0), 0)["iowait"] == 510 / TICKS


def test_a_cpu_that_comes_back_from_zero_counts_on(machine: Callable[[str], Path]) -> None:
    """Before Linux 6.8 idle and iowait of a CPU began anew when it came back on line."""
    root = machine("node")
    source = Cpu(str(root))
    set_stat(root, "cpu 9 9 9 9000", "cpu0 1 1 1 1000", "cpu1 5 5 5 5000")
    source.read(0)
    set_stat(root, "cpu 9 9 9 9000", "cpu0 1 1 1 1000")
    gone = source.read(0)
    assert times(gone, 1) == {}
    assert times(gone, 0)["idle"] == 1000 / TICKS
    set_stat(root, "cpu 9 9 9 4010", "cpu0 1 1 1 1000", "cpu1 5 5 5 10")
    assert times(source.read(0), 1)["idle"] == 5000 / TICKS
    set_stat(root, "cpu 9 9 9 4030", "cpu0 1 1 1 1000", "cpu1 5 5 5 30")
    readings = source.read(0)
    assert times(readings, 1)["idle"] == 5020 / TICKS
    assert utilization(readings)["idle"] == 1


def test_attributes_are_the_same_objects_each_time(machine: Callable[[str], Path]) -> None:
    """Identity makes the way to the gate cheap."""
    source = Cpu(str(machine("node")))
    first, second = source.read(0), source.read(0)
    assert [id(reading.attributes) for reading in first] == [id(reading.attributes) for reading in second]


@given(st.lists(st.lists(st.integers(0, 2000), min_size=3, max_size=3), min_size=1, max_size=20))
def test_no_counter_ever_falls(rows: list[list[int]]) -> None:
    """Whatever the kernel prints."""
    rising = Rising(rounding=300)
    shown = [rising.follow(row) for row in rows]
    for before, after in pairwise(shown):
        assert all(earlier <= later for earlier, later in zip(before, after, strict=True))


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**6)), min_size=1, max_size=7))
def test_shares_add_up_to_one(pairs: list[tuple[int, int]]) -> None:
    """Or there are none."""
    before = [start for start, _ in pairs]
    parts = shares(before, [start + more for start, more in pairs])
    assert not parts or sum(parts) == pytest.approx(1)


def test_this_machine_agrees_with_psutil() -> None:
    """Read between two readings of psutil, each mode lies between."""
    source = Cpu(per_logical=True)
    before = psutil.cpu_times(percpu=True)
    readings = source.read(0)
    after = psutil.cpu_times(percpu=True)
    source.close()
    numbers = sorted({int(reading.attributes["cpu.logical_number"]) for reading in readings if reading.start})
    for number, low, high in zip(numbers, before, after, strict=True):
        ours = times(readings, number)
        interrupts = low.irq + low.softirq, high.irq + high.softirq
        for mode, least, most in (
            ("user", low.user, high.user),
            ("system", low.system, high.system),
            ("interrupt", *interrupts),
        ):
            assert ours[mode] == pytest.approx(least, abs=most - least + 1e-9)
    assert [psutil.cpu_count()] == [reading.value for reading in readings if reading.name == "system.cpu.logical.count"]

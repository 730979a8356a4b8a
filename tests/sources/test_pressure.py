from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from otelperf.errors import SourceAbsent, SourceFailed
from otelperf.sources.pressure import Pressure, Stall, parse
from otelperf.sources.procfs import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOOT = 1_700_000_000_000_000_000


def test_each_resource_tells_seconds_and_share(machine: Callable[[str], Path]) -> None:
    """All but full of the CPU, which means nothing for a whole machine."""
    readings = Pressure(str(machine("node"))).read(0)
    told = [
        (reading.attributes["otelperf.pressure.resource"], reading.attributes["otelperf.pressure.kind"], reading.value)
        for reading in readings
    ]
    assert told == [
        ("cpu", "some", 1131.021768),
        ("cpu", "some", pytest.approx(0.9938)),
        ("memory", "some", 10.203245),
        ("memory", "some", pytest.approx(0.0018)),
        ("memory", "full", 3.700654),
        ("memory", "full", pytest.approx(0.0005)),
        ("io", "some", 2.0),
        ("io", "some", pytest.approx(0.015)),
        ("io", "full", 1.0),
        ("io", "full", pytest.approx(0.0125)),
    ]
    assert [reading.start for reading in readings] == [BOOT, None] * 5


def test_a_kernel_without_pressure_files_is_absence(machine: Callable[[str], Path]) -> None:
    """PSI came with Linux 4.20."""
    with pytest.raises(SourceAbsent, match="proc/pressure/cpu"):
        Pressure(str(machine("old"))).read(0)


def test_a_kernel_booted_without_pressure_is_absence() -> None:
    """With psi=0 the files may be there and refuse to be read."""
    error = unreadable("/proc/pressure/cpu", OSError(errno.EOPNOTSUPP, "Operation not supported"))
    assert isinstance(error, SourceAbsent)


def test_a_kernel_before_5_13_has_no_full_for_the_cpu() -> None:
    """One line is enough."""
    assert {"some": Stall(0.5, 1.5)} == parse(b"some avg10=50.00 avg60=0.00 avg300=0.00 total=1500000\n")


@pytest.mark.parametrize(
    "content", [b"", b"some\n", b"some avg10=x avg60=0 avg300=0 total=1\n", b"some avg10=1.00 total=-1\n"]
)
def test_odd_content_is_a_failure(content: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="/proc/pressure"):
        parse(content)

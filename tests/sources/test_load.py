from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from otelperf.errors import SourceFailed
from otelperf.readings import Reading
from otelperf.sources.load import Load, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_three_averages_are_told(machine: Callable[[str], Path]) -> None:
    """One metric each, as hostmetrics names them."""
    assert [
        Reading("system.cpu.load_average.1m", 4.25),
        Reading("system.cpu.load_average.5m", 3.5),
        Reading("system.cpu.load_average.15m", 2.75),
    ] == Load(str(machine("node"))).read(0)


@pytest.mark.parametrize("content", [b"", b"high\n", b"1.0 2.0", b"nan nan nan 1/1 1\n", b"-1.00 0.00 0.00 1/1 1\n"])
def test_odd_content_is_a_failure(content: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="/proc/loadavg"):
        parse(content)


def test_this_machine_agrees_with_psutil() -> None:
    """The average moves every five seconds, so a second try is always enough."""
    source = Load()
    pairs = [([reading.value for reading in source.read(0)], list(psutil.getloadavg())) for _ in range(2)]
    source.close()
    assert any(ours == pytest.approx(theirs, abs=0.01) for ours, theirs in pairs)

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil
import pytest

from otelperf.errors import SourceFailed
from otelperf.readings import Reading
from otelperf.sources.uptime import Uptime, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_seconds_since_the_start_are_told(machine: Callable[[str], Path]) -> None:
    """The second number is idle time."""
    assert [Reading("system.uptime", 350_735.47)] == Uptime(str(machine("node"))).read(0)


@pytest.mark.parametrize("content", [b"", b"-1\n", b"nan 1\n", b"1" * 400])
def test_odd_content_is_a_failure(content: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="/proc/uptime"):
        parse(content)


def test_this_machine_agrees_with_psutil() -> None:
    """Which derives it from whole seconds of the wall clock."""
    source = Uptime()
    (reading,) = source.read(0)
    source.close()
    assert reading.value == pytest.approx(time.time() - psutil.boot_time(), abs=5)

"""A Collector that sends its traces to a receiver in Tempo's place: fixtures for whoever imports both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import processes
from stack.processes import Process
from tests.receiver import Receiver


@pytest.fixture
def tempo() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


@pytest.fixture
def collector(prometheus: Process, tempo: Receiver, tmp_path: Path) -> Iterator[Process]:
    with processes.collector(prometheus.url, tmp_path / "collector", traces_url=tempo.url) as process:
        yield process

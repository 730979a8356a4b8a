"""Real servers, each with the real agent, Collector and Prometheus; the agent with its usual settings."""

from __future__ import annotations

import math
import time

import pytest

from stack.processes import POLL_SECONDS, Process, query
from tests.end_to_end.conftest import StartAgent, collector, prometheus, start_agent

__all__ = ["StartAgent", "collector", "prometheus", "start_agent"]

# An agent that has been idle sends what it holds at its next heartbeat: 50 s. The rest is for a busy machine.
HEARTBEAT = 90


class Answers:
    """What the real Prometheus answers."""

    def __init__(self, prometheus: Process) -> None:
        self.url = prometheus.url

    def value(self, promql: str) -> float | None:
        """Return the one value; None where there is no series, or NaN."""
        series = query(self.url, promql)
        assert len(series) <= 1, series
        found = float(series[0]["value"][1]) if series else math.nan
        return None if math.isnan(found) else found

    def by(self, label: str, promql: str) -> dict[str, float]:
        """Return the values by a label."""
        return {series["metric"].get(label, ""): float(series["value"][1]) for series in query(self.url, promql)}

    def become(self, promql: str, expected: float, seconds: float = HEARTBEAT) -> None:
        """Wait until the answer is exactly that."""
        last = self.value(promql)
        deadline = time.monotonic() + seconds
        while last != expected and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            last = self.value(promql)
        assert (promql, expected) == (promql, last)


@pytest.fixture
def answers(prometheus: Process) -> Answers:
    return Answers(prometheus)

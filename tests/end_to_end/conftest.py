"""Real programs for the tests, each on ports and data of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stack import processes
from stack.processes import Process

StartAgent = Callable[..., Process]


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Process]:
    with processes.prometheus(tmp_path / "prometheus") as process:
        yield process


@pytest.fixture
def collector(prometheus: Process, tmp_path: Path) -> Iterator[Process]:
    with processes.collector(prometheus.url, tmp_path / "collector") as process:
        yield process


@pytest.fixture
def llama(tmp_path: Path) -> Iterator[Process]:
    with processes.llama_server(tmp_path / "llama") as process:
        yield process


@pytest.fixture
def start_agent(collector: Process, tmp_path: Path) -> Iterator[StartAgent]:
    """Start agents that send to the Collector; keyword arguments are settings as environment variables."""
    started: list[Process] = []

    def start(**environment: str) -> Process:
        port = processes.free_port()
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTELPERF_ENDPOINT_PORT": str(port),
            "OTELPERF_LOG_LEVEL": "debug",
            **environment,
        }
        agent = Process(
            name="agent",
            command=[sys.executable, "-m", "otelperf", "agent"],
            url=f"http://127.0.0.1:{port}",
            ready_url=f"http://127.0.0.1:{port}/readyz",
            log_path=tmp_path / f"agent-{len(started)}.log",
            environment=settings,
        )
        started.append(agent)
        return agent.start()

    yield start
    for agent in started:
        agent.stop()

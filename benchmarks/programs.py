"""The agent and its peers, each ready to be started and measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from benchmarks.scraper import Scraper
from benchmarks.sink import Sink
from stack.processes import HOST, Process, free_port, wait_until

SYSTEM_METRICS = "opentelemetry-instrumentation-system-metrics"
NODE_EXPORTER = "prometheus-node-exporter"
OTELPERF = "otelperf"
# The collectors that read what the agent reads.
SAME_COLLECTORS = (
    *("cpu", "loadavg", "meminfo", "vmstat", "diskstats", "filesystem", "netdev", "sockstat", "netstat"),
    *("pressure", "time", "stat"),
)
# On Linux the agent does not depend on psutil, but the SDK imports it where it is found, and here a peer needs it.
WITHOUT_PSUTIL = "import sys; sys.modules['psutil'] = None"
_FIRST_REQUEST_SECONDS = 30.0


@dataclass
class Program:
    """A program under measurement: it sends to the sink as *sender*, or is scraped."""

    name: str
    process: Process
    sender: str = ""
    scraper: Scraper | None = None


class Programs:
    """Makes the programs; they send to *sink* and write into *folder*."""

    def __init__(self, sink: Sink, folder: Path) -> None:
        self._sink = sink
        self._folder = folder
        # Compiling at import inflates memory: each Python program runs once before, and its bytecode is kept here.
        self.environment = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}

    def agent(self, **environment: str) -> Program:
        """Return the agent as production has it: with the machine as its only source, unless *environment* says otherwise."""
        port = free_port()
        url = f"http://{HOST}:{port}"
        settings = {
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": self._sink.endpoint(OTELPERF),
            "OTELPERF_ENDPOINT_PORT": str(port),
            "OTELPERF_MODE": "node",
            **environment,
        }
        command = [sys.executable, "-c", f"{WITHOUT_PSUTIL}; from otelperf.cli import main; sys.exit(main())", "agent"]
        log = self._folder / "agent.log"
        process = Process(OTELPERF, command, url, log, f"{url}/readyz", self.environment | settings)
        return Program("otelperf agent, 1 s", process, sender=OTELPERF)

    def system_metrics(self) -> Program:
        """Return the OpenTelemetry project's own way to a machine's metrics in Python."""
        command = [sys.executable, "-m", "benchmarks.system_metrics", self._sink.endpoint("system-metrics"), "1"]
        log = self._folder / "system-metrics.log"
        process = Process("system-metrics", command, "", log, environment=self.environment)
        return Program(f"{SYSTEM_METRICS}, 1 s", process, sender="system-metrics")

    def node_exporter(self, name: str, interval: float, collectors: Sequence[str] = ()) -> Program:
        """Return a node_exporter scraped each *interval* seconds, with its default collectors or only with some."""
        port = free_port()
        url = f"http://{HOST}:{port}"
        only = ["--collector.disable-defaults", *(f"--collector.{each}" for each in collectors)] if collectors else []
        command = [NODE_EXPORTER, f"--web.listen-address={HOST}:{port}", *only]
        process = Process(NODE_EXPORTER, command, url, self._folder / f"{NODE_EXPORTER}-{port}.log", f"{url}/")
        return Program(f"{name}, {interval:g} s", process, scraper=Scraper(port, interval))

    def load(self) -> Process:
        """Return a program that keeps one core busy."""
        folder = self._folder / "load"
        folder.mkdir()
        command = [sys.executable, "-m", "benchmarks.load", str(folder)]
        return Process("load", command, "", self._folder / "load.log", environment=self.environment)

    def compile_bytecode(self, programs: Sequence[Program]) -> None:
        """Let each program run until it has sent something, and forget that."""
        for program in programs:
            received = self._sink.received[program.sender]
            with program.process:
                wait_until(lambda: bool(received), _FIRST_REQUEST_SECONDS, f"{program.name} sent nothing")  # noqa: B023 # called here
            received.clear()

    def peers(self) -> tuple[list[Program], dict[str, str]]:
        """Return the peers that are installed, and for the others why they are not measured."""
        peers: list[Program] = []
        absent = {"OpenTelemetry Collector, hostmetrics": "its Windows dependency breaks the module download"}
        if which(NODE_EXPORTER):
            peers += [
                self.node_exporter("node_exporter", 1),
                self.node_exporter("node_exporter, our collectors", 1, SAME_COLLECTORS),
                self.node_exporter("node_exporter", 15),
            ]
        else:
            absent["node_exporter"] = f"apt-get install {NODE_EXPORTER}"
        if find_spec("opentelemetry.instrumentation") and find_spec("opentelemetry.instrumentation.system_metrics"):
            peers.append(self.system_metrics())
        else:
            absent[SYSTEM_METRICS] = f"pip install {SYSTEM_METRICS}"
        return peers, absent


def start(programs: Sequence[Program], until: ExitStack) -> None:
    """Start all, and stop them with *until*."""
    for program in programs:
        until.enter_context(program.process)

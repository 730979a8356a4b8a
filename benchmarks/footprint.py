"""What watching a machine each second costs, beside the others, in one run: ``python -m benchmarks.footprint``.

All programs run at once, so that the machine's moods hit all alike. Then the peers stop, and the agent runs on, first
on a quiet machine and then on a busy one, where what it sends is counted as Prometheus would store it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import measure, tables
from benchmarks.page import machine
from benchmarks.programs import OTELPERF, WITHOUT_PSUTIL, Program, Programs, start
from benchmarks.scraper import page_value
from benchmarks.sink import Sink, tally
from benchmarks.tables import Cost, Phase

SECONDS = 120.0
QUICK_SECONDS = 15.0
SETTLE_SECONDS = 10.0  # start-up and first sight of every stream, and between two phases what still lingers
PAGE_TIMEOUT_SECONDS = 5.0
PARTS = {
    "bare Python": "",
    "+ OpenTelemetry SDK (metrics)": "import opentelemetry.sdk.metrics.export",
    "+ OTLP encoder, http.client": (
        "import opentelemetry.sdk.metrics.export, http.client; "
        "import opentelemetry.exporter.otlp.proto.common.metrics_encoder"
    ),
    "the stock OTLP/HTTP exporter instead": (
        "from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter; e = OTLPMetricExporter()"
    ),
}


def main() -> int:
    """Measure everything and print the tables."""
    options = _options()
    seconds: float = QUICK_SECONDS if options.quick else options.seconds
    print(_where(seconds), flush=True)
    with tempfile.TemporaryDirectory(prefix="otelperf-bench-") as folder, Sink() as sink, ExitStack() as running:
        programs = Programs(sink, Path(folder))
        agent = programs.agent()
        peers, absent = programs.peers()
        tables.show("Memory, part by part", tables.memory_parts(_parts(programs.environment)))
        programs.compile_bytecode([program for program in (agent, *peers) if program.sender])
        start([agent], running)
        with ExitStack() as beside:
            start(peers, beside)
            rows = _side_by_side([agent, *peers], sink, seconds)
        tables.show("Side by side", tables.costs(rows, absent))
        print("", *(f"{name}: {why}" for name, why in absent.items()), sep="\n", flush=True)
        phases = [_phase("quiet", agent, sink, seconds)]
        with programs.load():
            phases.append(_phase("busy", agent, sink, seconds))
        everything = tally(sink.between(OTELPERF, 0, time.monotonic()))
    tables.show("The agent on a quiet and on a busy machine", tables.conditions(phases))
    compared = [share for phase in phases for share in tables.compare(phase, everything)]
    tables.show("Samples as Prometheus stores them", tables.shares(compared))
    tables.show("The dearest metrics", tables.dearest(phases))
    totals = [share for share in compared if share.name == "all"]
    tables.show("Goals", tables.goals(rows, totals, quiet=phases[0].others <= tables.QUIET_CORES))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each of the three phases")
    parser.add_argument("--quick", action="store_true", help=f"phases of {QUICK_SECONDS:g} s, too short to be quoted")
    return parser.parse_args()


def _where(seconds: float) -> str:
    return f"{machine()}, phases of {seconds:g} s"


def _parts(environment: dict[str, str]) -> dict[str, measure.Memory]:
    for code in PARTS.values():
        _part(code, environment)  # compiles the bytecode
    return {name: _part(code, environment) for name, code in PARTS.items()}


def _part(code: str, environment: dict[str, str]) -> measure.Memory:
    """Return the memory of a Python that has run *code*."""
    command = [
        sys.executable,
        "-c",
        f"{WITHOUT_PSUTIL}; import os; {code or 'pass'}; os.write(1, b'.'); sys.stdin.read()",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment}
    ) as child:
        assert child.stdin  # a pipe, as asked for
        assert child.stdout
        child.stdout.read(1)
        found = measure.memory(child.pid)
        child.stdin.close()
    return found


def _side_by_side(programs: Sequence[Program], sink: Sink, seconds: float) -> list[Cost]:
    """Let all run at once, and return what each cost."""
    scrapers = [program.scraper for program in programs if program.scraper]
    for scraper in scrapers:
        scraper.start()
    time.sleep(SETTLE_SECONDS)
    seen, began = _seen(programs[0]), time.monotonic()
    before = [measure.cpu_seconds(program.process.pid) for program in programs]
    time.sleep(seconds)
    after = [measure.cpu_seconds(program.process.pid) for program in programs]
    ended = time.monotonic()
    seen = _seen(programs[0]) - seen
    memories = [measure.memory(program.process.pid) for program in programs]
    for scraper in scrapers:
        scraper.stop()
    rows = []
    for program, used0, used1, memory in zip(programs, before, after, memories, strict=True):
        cpu = (used1 - used0) / (ended - began) * 1000
        if program.scraper:
            series = program.scraper.series
            rows.append(Cost(program.name, cpu, memory, series, series / program.scraper.interval))
        else:
            series = len(tally(sink.between(program.sender, 0, ended)).series)
            sent = tally(sink.between(program.sender, began, ended))
            held = 1 - len(sent.points) / seen if program.sender == OTELPERF else None
            rows.append(Cost(program.name, cpu, memory, series, sent.samples / (ended - began), held))
    return rows


def _phase(machine: str, agent: Program, sink: Sink, seconds: float) -> Phase:
    """Let the agent run on, and return what it did."""
    time.sleep(SETTLE_SECONDS)
    pid = agent.process.pid
    seen, began = _seen(agent), time.monotonic()
    cpu, busy = measure.cpu_seconds(pid), measure.machine_busy_seconds()
    time.sleep(seconds)
    cpu, busy = measure.cpu_seconds(pid) - cpu, measure.machine_busy_seconds() - busy
    ended = time.monotonic()
    passed = ended - began
    sent = tally(sink.between(agent.sender, began, ended))
    held = 1 - len(sent.points) / (_seen(agent) - seen)
    return Phase(machine, passed, cpu / passed * 1000, (busy - cpu) / passed, measure.memory(pid), sent, held)


def _seen(agent: Program) -> float:
    """Return how many points have reached the agent's gate."""
    with urllib.request.urlopen(f"{agent.process.url}/metrics", timeout=PAGE_TIMEOUT_SECONDS) as answer:
        return page_value(answer.read().decode(), "otelperf_gate_seen_total")


if __name__ == "__main__":
    raise SystemExit(main())

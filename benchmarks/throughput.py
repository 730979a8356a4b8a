"""What a server loses by being read: tokens per second as its clients count them, with and without the agent beside it.

A real llama-server with a tiny model on one thread is kept busy on all its slots. The ways take turns within each round, in
turning order, so that the machine's moods hit all alike; one way, nobody, stands there twice: how far those two differ is what
the measurement cannot tell. A phase that something else disturbs is tried once more. And what one reading takes the server
while it is idle, from its CPU time: so small a thing is lost in the tokens.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from benchmarks import measure
from benchmarks.page import Table
from benchmarks.programs import Program, Programs
from benchmarks.sink import Sink
from benchmarks.tables import QUIET_CORES
from otelperf.sources.engines.llamacpp import LLAMACPP
from otelperf.sources.engines.server import Server
from stack.processes import Process, llama_server

SECONDS = 10.0  # of each phase
SETTLE_SECONDS = 3.0  # the agent's start is none of its reading
TRIES = 2
ROUNDS = 8
READINGS = 2000
SLOTS = 4
WAYS: dict[str, float | None] = {
    "nobody": None,
    "the agent, every 5 s": 5.0,
    "the agent, every 1 s": 1.0,
    "nobody, again": None,
}
_PROMPT = "the quick brown fox jumps over the lazy dog "
_TOKENS = 64  # of each answer: few, for a phase cuts some off at its ends
_TIMEOUT_SECONDS = 30.0


class Phase(NamedTuple):
    """One phase: *tokens* per second, CPU of the server in µs a token, of the agent in ms per s, of all else in cores."""

    tokens: float
    server: float
    agent: float | None
    others: float


class Clients:
    """As many clients as there are slots, each asking again as soon as it is answered; *tokens* is what all have received."""

    def __init__(self, server: Process) -> None:
        self._address = urlsplit(server.url).netloc
        self._done = threading.Event()
        self._tokens = [0] * SLOTS
        self._threads = [threading.Thread(target=self._ask, args=(slot,), daemon=True) for slot in range(SLOTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    @property
    def tokens(self) -> int:
        """Tokens received until now, of answers that are complete."""
        if not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("a client of llama-server ended; its error stands above")
        return sum(self._tokens)

    def _ask(self, slot: int) -> None:
        body = {"prompt": _PROMPT, "n_predict": _TOKENS, "ignore_eos": True, "cache_prompt": False, "seed": slot}
        with closing(HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)) as connection:
            while not self._done.is_set():
                connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
                self._tokens[slot] += json.load(connection.getresponse())["tokens_predicted"]


def measured(rounds: int = ROUNDS, seconds: float = SECONDS) -> tuple[dict[str, list[Phase]], float]:
    """Return the phases of each way, those of one round at the same place, and the server's CPU time for one reading, in ms."""
    found: dict[str, list[Phase]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="otelperf-bench-") as folder, Sink() as sink, ExitStack() as running:
        server = running.enter_context(llama_server(Path(folder), slots=SLOTS))
        reading = _reading(server)
        clients = running.enter_context(Clients(server))
        programs = Programs(sink, Path(folder))
        programs.compile_bytecode([_agent(programs, server, 1.0)])
        ways = list(WAYS)
        for number in range(rounds):
            turn = number % len(ways)
            for way in (*ways[turn:], *ways[:turn]):
                interval = WAYS[way]
                agent = None if interval is None else _agent(programs, server, interval)
                found[way].append(_quietest(server, clients, agent, seconds))
            last = ", ".join(f"{way} {found[way][-1].tokens:,.0f}" for way in ways)
            print(f"round {number + 1} of {rounds}, tokens/s: {last}", file=sys.stderr, flush=True)
    return found, reading


def _reading(server: Process) -> float:
    """Return the CPU time that one reading takes a server without work, in ms."""
    with closing(Server(server.url, LLAMACPP)) as source:
        source.read(0)  # what is asked only once
        before = measure.cpu_seconds(server.pid)
        for number in range(READINGS):
            source.read((number + 1) * 10**9)
        return (measure.cpu_seconds(server.pid) - before) / READINGS * 1e3


def _agent(programs: Programs, server: Process, interval: float) -> Program:
    return programs.agent(
        OTELPERF_MODE="sidecar", OTELPERF_SERVER_URL=server.url, OTELPERF_SERVER_INTERVAL=f"{interval:g}s"
    )


def _quietest(server: Process, clients: Clients, agent: Program | None, seconds: float) -> Phase:
    """Return a phase in which nothing else ran, or the better one."""
    best = _phase(server, clients, agent, seconds)
    for _ in range(TRIES - 1):
        if best.others > QUIET_CORES:
            best = min(best, _phase(server, clients, agent, seconds), key=lambda phase: phase.others)
    return best


def _phase(server: Process, clients: Clients, agent: Program | None, seconds: float) -> Phase:
    with ExitStack() as beside:
        if agent:
            beside.enter_context(agent.process)
        time.sleep(SETTLE_SECONDS)
        pids = [os.getpid(), server.pid, *([agent.process.pid] if agent else [])]
        tokens, began = clients.tokens, time.monotonic()
        before = [measure.machine_busy_seconds(), *map(measure.cpu_seconds, pids)]
        time.sleep(seconds)
        tokens, passed = clients.tokens - tokens, time.monotonic() - began
        after = [measure.machine_busy_seconds(), *map(measure.cpu_seconds, pids)]
    everything, *used = [now - then for then, now in zip(before, after, strict=True)]
    others = (everything - sum(used)) / passed
    return Phase(tokens / passed, used[1] / tokens * 1e6, used[2] / passed * 1e3 if agent else None, others)


def table(found: dict[str, list[Phase]]) -> Table:
    """Return a row for each way: medians, and between which values they lie; ratios are of phases of the same round."""
    speed = ("tokens/s", "least to most", "beside nobody")
    rows: Table = [
        ("read by", *speed, "server CPU, µs a token", "beside nobody", "agent CPU, ms per s", "all else, cores")
    ]
    for way, phases in found.items():
        tokens, costs = [phase.tokens for phase in phases], [phase.server for phase in phases]
        agents = [phase.agent for phase in phases if phase.agent is not None]
        rows.append(
            (
                way,
                f"{statistics.median(tokens):,.0f}",
                f"{min(tokens):,.0f} to {max(tokens):,.0f}",
                _beside(tokens, [phase.tokens for phase in found["nobody"]]),
                f"{statistics.median(costs):.1f}",
                _beside(costs, [phase.server for phase in found["nobody"]]),
                f"{statistics.mean(agents):.1f}" if agents else "-",  # in steps of 10 ms: a median would be one of few
                f"{statistics.median(phase.others for phase in phases):.2f}",
            )
        )
    return rows


def _beside(values: list[float], alone: list[float]) -> str:
    """Return the median ratio, and the least and the largest."""
    if values == alone:
        return "1"
    ratios = [value / other for value, other in zip(values, alone, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"

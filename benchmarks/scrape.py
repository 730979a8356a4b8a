"""What reading a server costs the agent, and what it costs the server: ``python -m benchmarks.scrape``.

The agent: by the length of the page, beside prometheus_client's parser. The pages are that of a real vLLM 0.32, cut or with more
data-parallel engines until they are long enough. CPU time of this process, median of many readings: all of a reading but
the network. The server: see benchmarks/throughput.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import throughput
from benchmarks.page import DOCS, Table, machine, markdown, write
from otelperf.connection import Answer, Connection
from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.server import Server
from otelperf.sources.engines.vllm import VLLM

PAGE = Path(__file__).resolve().parent.parent / "tests" / "captures" / "vllm-0.32.0" / "busy.txt"
LINES = (200, 609, 2_000, 20_000)
_SECONDS = 2.0  # for each figure
_INTERVAL = 5_000_000_000
BEGIN, END = "<!-- made by python -m benchmarks.scrape --write -->", "<!-- end of the figures -->"


def page(lines: int) -> str:
    """Return the page with as many engines as it takes, cut to *lines*."""
    text = PAGE.read_text().splitlines()
    found: list[str] = []
    engines = 1 if lines <= len(text) else 2 + lines // len(text)
    for line in text:
        several = engines if 'engine="0"' in line else 1
        found += [line.replace('engine="0"', f'engine="{number}"') for number in range(several)]
    return "\n".join(found[:lines]) + "\n"


class Answers(Connection):
    """Answers the metrics page without the network."""

    def __init__(self, body: bytes) -> None:
        super().__init__("http://127.0.0.1:1")
        self._body = body

    def request(self, method: str, path: str, *_: object, **_limits: object) -> Answer:
        """Return the page, and of others that they are not there."""
        return Answer(200, {}, self._body) if path == VLLM.metrics_path else Answer(404, {}, b"")


class Reading:
    """Reads the same page again and again, as the agent does: the first time takes names and labels apart."""

    def __init__(self, engine: Engine, body: bytes) -> None:
        self._server = Server("http://127.0.0.1:1", engine)
        self._server._connection = Answers(body)  # noqa: SLF001 # all of a reading but the network
        self._now = _INTERVAL

    def __call__(self) -> int:
        """Read, an interval later; return how many readings that made."""
        self._now += _INTERVAL
        return len(self._server.read(self._now))


def milliseconds(*works: Callable[[], object]) -> list[float]:
    """Return the median CPU time of one turn of each; they take turns, so that the machine's moods hit all alike."""
    times: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + _SECONDS * len(works)
    while len(times[0]) < 3 or time.perf_counter() < end:  # a median needs some
        for work, found in zip(works, times, strict=True):
            began = time.process_time()
            work()
            found.append((time.process_time() - began) * 1e3)
    return [*map(statistics.median, times)]


def pages() -> Table:
    """Return a row for each length."""
    head = ("lines", "kB", "wanted", "readings", "first time, ms", "then, ms", "all of `vllm:*` too, ms")
    table: Table = [(*head, "prometheus_client's parser alone, ms", "then / prometheus_client")]
    names = VLLM.wanted()
    for lines in LINES:
        text = page(lines)
        body = text.encode()
        reading, whole = Reading(VLLM, body), Reading(replace(VLLM, native=("vllm:*",)), body)
        began = time.process_time()
        reading()
        first = (time.process_time() - began) * 1e3
        made = reading()  # with rates
        then, native, other = milliseconds(
            reading,
            whole,
            lambda body=body: [*text_string_to_metric_families(body.decode())],  # type: ignore[misc] # bytes
        )
        wanted = sum(line.split("{", 1)[0].split(" ", 1)[0] in names for line in text.splitlines())
        counts = (f"{lines:,}", f"{len(body) / 1e3:,.0f}", f"{wanted:,}", f"{made:,}")
        times = (f"{first:.2f}", f"{then:.2f}", f"{native:.2f}", f"{other:.1f}")
        table.append((*counts, *times, f"1 / {other / then:.0f}"))
    return table


def main() -> None:
    """Print the tables."""
    options = _options()
    load = os.getloadavg()[0]
    shown = [f"{machine()}, load average {load:.1f} before", "", "**The agent's side**", "", *markdown(pages())]
    print(*shown, sep="\n", flush=True)
    found, reading = throughput.measured(options.rounds)
    side = [
        "",
        "**The server's side**",
        "",
        *markdown(throughput.table(found)),
        "",
        f"{options.rounds} phases of each, {throughput.SECONDS:g} s long. One reading takes an idle llama-server",
        f"{reading:.2f} ms of CPU: every 5 s {reading / 50:.3f} % of a core, every 1 s {reading / 10:.3f} %.",
    ]
    print(*side, sep="\n")
    if options.write:
        write(DOCS / "scrape-cost.md", BEGIN, END, "\n".join([*shown, *side]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scrape", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--rounds", type=int, default=throughput.ROUNDS, help="phases of each way to read the server")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/scrape-cost.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()

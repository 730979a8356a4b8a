"""What reading a server's page costs, by its length, beside prometheus_client's parser: ``python -m benchmarks.scrape``.

The pages are that of a real vLLM 0.32, cut or with more data-parallel engines until they are long enough. CPU time of this
process, median of many readings: decoding, parsing and the map, without the network.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.exposition import Reader
from otelperf.sources.engines.mapping import Mapper
from otelperf.sources.engines.vllm import VLLM

PAGE = Path(__file__).resolve().parent.parent / "tests" / "captures" / "vllm-0.32.0" / "busy.txt"
LINES = (200, 609, 2_000, 20_000)
_SECONDS = 2.0  # for each figure
_INTERVAL = 5_000_000_000


def page(lines: int) -> str:
    """Return the page with as many engines as it takes, cut to *lines*."""
    text = PAGE.read_text().splitlines()
    found: list[str] = []
    engines = 1 if lines <= len(text) else 2 + lines // len(text)
    for line in text:
        several = engines if 'engine="0"' in line else 1
        found += [line.replace('engine="0"', f'engine="{number}"') for number in range(several)]
    return "\n".join(found[:lines]) + "\n"


class Reading:
    """Reads the same page again and again, as the source does: the first time takes names and labels apart."""

    def __init__(self, engine: Engine, body: bytes) -> None:
        self._body = body
        self._reader, self._mapper, self._now = Reader(engine.wanted()), Mapper(engine), _INTERVAL
        self.wanted = self.readings = 0

    def __call__(self) -> None:
        self._now += _INTERVAL
        found = self._reader.read(self._body.decode("utf-8", "replace"))
        self.wanted = sum(map(len, found.lines.values()))
        self.readings = len(self._mapper.readings(self._now, found.lines, None, []))


def milliseconds(work: Callable[[], object]) -> float:
    """Return the median CPU time of one turn."""
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < 3 or time.perf_counter() < end:  # a median needs some
        began = time.process_time()
        work()
        times.append((time.process_time() - began) * 1e3)
    return statistics.median(times)


def main() -> None:
    """Print a row for each length."""
    print(
        f"{'lines':>7} {'kB':>6} {'wanted':>7} {'readings':>9} {'first ms':>9} {'then ms':>8} {'prometheus_client ms':>21}"
    )
    for lines in LINES:
        text = page(lines)
        body = text.encode()
        reading = Reading(VLLM, body)
        began = time.process_time()
        reading()
        first = (time.process_time() - began) * 1e3
        then = milliseconds(reading)
        other = milliseconds(lambda body=body: [*text_string_to_metric_families(body.decode())])  # type: ignore[misc] # bytes
        print(
            f"{lines:7} {len(body) / 1e3:6.0f} {reading.wanted:7} {reading.readings:9} {first:9.2f} {then:8.2f} {other:21.2f}"
        )


if __name__ == "__main__":
    main()

"""The inputs, as columns: one value a series and tick, and the rules that the gate follows for them."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.fidelity import vllm_page
from otelperf import catalog
from otelperf.gate.policy import Rule
from otelperf.prometheus_text import label_name, metric_name
from otelperf.readings import Attributes, Buckets
from otelperf.sources.engines.engine import Facts, Moment
from otelperf.sources.engines.exposition import Lines, Place
from otelperf.sources.engines.llamacpp import LLAMACPP
from otelperf.sources.engines.mapping import Mapper

DATA = Path(__file__).resolve().parent.parent / "data"

Value = float | Buckets
GAUGES, STATES, STEADY, BURSTY, HISTOGRAMS = "gauges", "states", "steady counters", "bursty counters", "histograms"
CLASSES = (GAUGES, STATES, STEADY, BURSTY, HISTOGRAMS)

# A counter is bursty if this share of each minute's ticks brings more than half of what it gained.
BURST_TICKS = 0.1
_MINUTE = 60

_MEMORY_BYTES = 8 * 2**30  # the recording holds shares only; bytes are those of a machine of 8 GiB
_CPU_BASE_SECONDS = 1000.0  # what each mode had counted before: the recording holds shares only
_LLAMA_SLOTS = 4  # the server of the recording was started with as many
_GPU_SECONDS = 600
_GPU_SEED = 20_260_101


@dataclass(frozen=True)
class Series:
    """One stream, by tick; None where it was not there."""

    name: str
    kind: catalog.Kind
    unit: str
    attributes: Attributes
    rule: Rule
    values: Sequence[Value | None]
    interval: int

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus; a histogram's without ``_bucket``."""
        return metric_name(self.name, self.unit, self.kind)

    @property
    def labels(self) -> frozenset[tuple[str, str]]:
        """Its own labels in Prometheus; those of its resource are the same for a whole input."""
        return frozenset((label_name(key), str(value)) for key, value in self.attributes.items())

    @property
    def samples(self) -> int:
        """Samples that Prometheus stores of one point."""
        first = next(value for value in self.values if value is not None)
        return len(first.counts) + 2 if isinstance(first, Buckets) else 1

    @property
    def present(self) -> int:
        """At how many ticks it is there."""
        return sum(value is not None for value in self.values)

    @property
    def ends(self) -> int:
        """How often it goes."""
        return sum(before is not None and after is None for before, after in pairwise(self.values))

    @property
    def group(self) -> str:
        """The class in which it is scored."""
        if self.kind == "histogram":
            return HISTOGRAMS
        if self.kind == "counter":
            return BURSTY if self.bursty else STEADY
        rule = self.rule
        return STATES if self.moves and not (rule.delta or rule.relative or rule.share) else GAUGES

    @property
    def moves(self) -> bool:
        """Whether it is ever another than at first."""
        return len({value for value in self.values if value is not None}) > 1

    @property
    def bursty(self) -> bool:
        """Whether a counter gains most of what it gains in a minute in a tenth of that minute."""
        values = [value for value in self.values if isinstance(value, int | float)]
        gains = [after - before for before, after in pairwise(values)]
        minute = _MINUTE // self.interval
        most = 0.0
        for begin in range(0, len(gains), minute):
            part = sorted(gains[begin : begin + minute], reverse=True)
            most += sum(part[: math.ceil(len(part) * BURST_TICKS)])
        return most > sum(gains) / 2


@dataclass(frozen=True)
class Ratio:
    """A ratio of rates that people look at; of each a metric and the attributes that choose among its series."""

    name: str
    above: tuple[str, Attributes]
    below: tuple[str, Attributes]


@dataclass(frozen=True)
class Input:
    """A recording. *interval* in seconds; *rules* by metric name; *sources*: how many the agent would read for it."""

    name: str
    interval: int
    series: Sequence[Series]
    sources: int = 1
    ratios: Sequence[Ratio] = ()
    classes: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Sort the series into classes."""
        for number, series in enumerate(self.series):
            self.classes.setdefault(series.group, []).append(number)

    @property
    def ticks(self) -> int:
        """How many readings there are."""
        return len(self.series[0].values)

    @property
    def seconds(self) -> int:
        """How long it lasts."""
        return self.ticks * self.interval

    def chosen(self, name: str, attributes: Attributes) -> list[int]:
        """Return the series of a metric that carry the attributes."""
        return [
            number
            for number, series in enumerate(self.series)
            if series.name == name and attributes.items() <= series.attributes.items()
        ]

    @property
    def rules(self) -> dict[str, Rule]:
        """The rule of each metric."""
        return {series.name: series.rule for series in self.series}


def load(name: str) -> Input:
    """Return the input of that name, without the series that are always zero."""
    return INPUTS[name]()


def _rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt") as lines:
        return [json.loads(line) for line in lines]


class Columns:
    """Collects readings tick by tick."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, frozenset[tuple[str, Any]]], tuple[Attributes, dict[int, Value]]] = {}
        self._ticks = 0

    def add(self, tick: int, name: str, value: Value, attributes: Attributes) -> None:
        """Take one reading."""
        column = self._columns.setdefault((name, frozenset(attributes.items())), (attributes, {}))
        column[1][tick] = value
        self._ticks = max(self._ticks, tick + 1)

    def series(self, row: Callable[[str], tuple[catalog.Kind, str, Rule]], interval: int = 1) -> list[Series]:
        """Return those that are not always zero; *row* says kind, unit and rule of a metric."""
        found = []
        for (name, _), (attributes, column) in self._columns.items():
            if any(value.count if isinstance(value, Buckets) else value for value in column.values()):
                values = [column.get(tick) for tick in range(self._ticks)]
                kind, unit, rule = row(name)
                found.append(Series(name, kind, unit, attributes, rule, values, interval))
        return found


def _catalogued(name: str) -> tuple[catalog.Kind, str, Rule]:
    metric = catalog.BY_NAME[name]
    return metric.kind, metric.unit, metric.rule


def host() -> Input:
    """A machine: quiet, then compiling."""
    columns = Columns()
    spent: dict[str, float] = {}
    for tick, row in enumerate(_rows("host-1s.jsonl.gz")):
        for name, value, attributes in _host_readings(row, spent):
            columns.add(tick, name, value, attributes)
    return Input("host", 1, columns.series(_catalogued), sources=5, ratios=_HOST_RATIOS)


_HOST_RATIOS = (
    *(
        Ratio(
            f"{mode} share of CPU {number}",
            ("system.cpu.time", {"cpu.logical_number": number, "cpu.mode": mode}),
            ("system.cpu.time", {"cpu.logical_number": number}),
        )
        for number in (0, 1)
        for mode in ("user", "system", "idle")
    ),
    *(
        Ratio(
            f"bytes per {direction}",
            ("system.disk.io", {"disk.io.direction": direction}),
            ("system.disk.operations", {"disk.io.direction": direction}),
        )
        for direction in ("read", "write")
    ),
    Ratio(
        "bytes per packet received",
        ("system.network.io", {"network.interface.name": "eth0", "network.io.direction": "receive"}),
        ("system.network.packet.count", {"network.interface.name": "eth0"}),
    ),
)


def _host_readings(row: Mapping[str, float], spent: dict[str, float]) -> Iterator[tuple[str, float, Attributes]]:
    shares: dict[str, list[float]] = {}
    for key in row:
        if key.startswith("cpu"):
            logical, mode = key.removeprefix("cpu").split(".")
            shares.setdefault(mode, []).append(row[key])
            spent[key] = spent.get(key, _CPU_BASE_SECONDS) + row[key]
            yield "system.cpu.time", round(spent[key], 2), {"cpu.logical_number": int(logical), "cpu.mode": mode}
    for mode, parts in shares.items():
        yield "system.cpu.utilization", sum(parts) / len(parts), {"cpu.mode": mode}
    for state in ("used", "cached", "free"):
        share, attributes = row[f"mem.{state}"], {"system.memory.state": state}
        yield "system.memory.utilization", share, attributes
        yield "system.memory.usage", int(share * _MEMORY_BYTES), attributes
    yield "system.memory.limit", _MEMORY_BYTES, {}
    for key in row:
        what, _, rest = key.partition(".")
        device, _, column = rest.partition(".")
        if what == "disk":
            direction = {"disk.io.direction": "read" if column[0] == "r" else "write"}
            name = "system.disk.io" if column[1] == "b" else "system.disk.operations"
            yield name, row[key], {"system.device": device, **direction}
        elif what == "net":
            direction = {"network.io.direction": "receive" if column[0] == "r" else "transmit"}
            name = "system.network.io" if column[1] == "x" else "system.network.packet.count"
            yield name, row[key], {"network.interface.name": device, **direction}
    yield "system.cpu.load_average.1m", row["load1"], {}


_SERVER_INTERVAL = 5  # s, as the agent reads servers; the recording is finer


def llama() -> Input:
    """A llama.cpp server, through the map that the agent uses and at its pace."""
    columns = Columns()
    before: Moment | None = None
    mapper = Mapper(LLAMACPP)
    facts = Facts(numbers={"slots": _LLAMA_SLOTS})
    for tick, row in enumerate(list(_rows("llama-server-1s.jsonl.gz"))[::_SERVER_INTERVAL]):
        now = Moment(round(row.pop("t") * 1e9), row)
        columns.add(tick, "otelperf.server.up", 1, {})
        lines = Lines({name: [(Place(name, {}), value)] for name, value in row.items()})
        for reading in (*mapper.readings(now.time, lines, None, []), *LLAMACPP.derive(before, now, facts)):
            columns.add(tick, reading.name, reading.value, reading.attributes)
        before = now
    ratios = [
        Ratio(
            f"{kind} tokens per second of processing",
            ("otelperf.server.tokens", {"gen_ai.token.type": kind}),
            ("otelperf.server.processing.time", {"gen_ai.token.type": kind}),
        )
        for kind in ("input", "output")
    ]
    return Input("llama", _SERVER_INTERVAL, columns.series(_catalogued, _SERVER_INTERVAL), ratios=ratios)


def vllm() -> Input:
    """A vLLM server, whole pages under their own names."""
    columns = Columns()
    kinds: dict[str, catalog.Kind] = {}
    for tick, row in enumerate(_rows("vllm-2s.jsonl.gz")):
        for name, kind, value, attributes in vllm_page.readings(row["page"]):
            kinds[name] = kind
            columns.add(tick, name, value, attributes)
    ratios = (
        Ratio("prefix cache hit ratio", ("vllm:prefix_cache_hits_total", {}), ("vllm:prefix_cache_queries_total", {})),
        Ratio(
            "output tokens per prompt token",
            ("vllm:generation_tokens_total", {}),
            ("vllm:prompt_tokens_total", {}),
        ),
        Ratio("output tokens per request", ("vllm:generation_tokens_total", {}), ("vllm:request_success_total", {})),
    )
    return Input(
        "vllm", 2, columns.series(lambda name: (kinds[name], "", vllm_page.rule(name, kinds[name])), 2), ratios=ratios
    )


_GPU_ROWS: Mapping[str, tuple[catalog.Kind, str, Rule]] = {
    "hw.gpu.utilization": ("gauge", "1", Rule(delta=0.15)),
    "hw.gpu.memory.utilization": ("gauge", "1", Rule(delta=0.03)),
    "hw.gpu.memory.usage": ("updown", "By", Rule(delta=2.5 * 2**30)),
    "hw.power": ("gauge", "W", Rule(delta=30, relative=0.15)),
    "hw.temperature": ("gauge", "Cel", Rule(delta=3)),
    "otelperf.gpu.clock.frequency": ("gauge", "MHz", Rule(delta=60)),
    "otelperf.gpu.throttled": ("updown", "1", Rule(kind="state")),
    "hw.energy": ("counter", "J", Rule(kind="trend", relative=0.1, delta=1000)),
}


def gpu() -> Input:
    """Two synthetic GPUs of 700 W under batches, from a fixed seed: no recording, but noisy as the sensors are.

    Batches of 6 to 20 s at 90 to 100 % with dips between them, idle spells of up to 60 s; power follows the load within a
    second, temperature with a time constant of 25 s in whole degrees, clocks in steps of 15 MHz; memory grows with
    the batch and is given back. Sensors jitter: utilisation by 2 points, power by 1 %.
    """
    columns = Columns()
    for number in range(2):
        attributes = {"hw.id": str(number)}
        for tick, row in enumerate(_gpu_rows(random.Random(_GPU_SEED + number))):
            for name, value in row.items():
                columns.add(tick, name, value, attributes)
    return Input("gpu", 1, columns.series(lambda name: _GPU_ROWS[name]))


def _gpu_rows(chance: random.Random) -> Iterator[dict[str, float]]:
    temperature, joules, memory = 38.0, 5_000_000.0, 0.42
    load, left = 0.0, 0
    for _ in range(_GPU_SECONDS):
        if left <= 0:
            idle = chance.random() < (0.25 if load else 0.1)
            load = 0.0 if idle else chance.uniform(0.9, 1.0)
            left = chance.randint(10, 60) if idle else chance.randint(6, 20)
        left -= 1
        dip = chance.uniform(0.1, 0.5) if load and left == 0 else 0.0
        used = min(1.0, max(0.0, load - dip + (chance.gauss(0, 0.02) if load else 0.0)))
        power = (75 + 590 * used) * chance.gauss(1, 0.01)
        temperature += (33 + power / 700 * 50 - temperature) / 25
        throttled = temperature > 77.5 and power > 600
        power = power * 0.9 if throttled else power
        joules += power
        memory += (0.42 + 0.45 * load - memory) / 8 + (chance.gauss(0, 0.002) if load else 0.0)
        clock = 1980 - 15 * round(max(0.0, temperature - 60) / 4 + (chance.random() < 0.3)) if load else 345
        yield {
            "hw.gpu.utilization": round(used, 2),
            "hw.gpu.memory.utilization": round(min(memory, 1.0), 3),
            "hw.gpu.memory.usage": int(min(memory, 1.0) * 80 * 2**30),
            "hw.power": round(power, 1),
            "hw.temperature": int(temperature + chance.gauss(0, 0.3)),
            "otelperf.gpu.clock.frequency": clock - (150 if throttled else 0),
            "otelperf.gpu.throttled": int(throttled),
            "hw.energy": round(joules, 1),
        }


INPUTS: Mapping[str, Callable[[], Input]] = {
    "host": lru_cache(host),
    "llama": lru_cache(llama),
    "vllm": lru_cache(vllm),
    "gpu": lru_cache(gpu),
}

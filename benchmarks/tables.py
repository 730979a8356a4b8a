"""The results as Markdown tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.measure import Memory
from benchmarks.page import Table, markdown
from benchmarks.sink import Point, Tally
from otelperf import catalog

# docs/design.md, section 6
MOST_CPU_RATIO = 0.3
MOST_PSS_MIB = 30.0
MOST_IDLE_SHARE = 0.035
SCRAPE_SECONDS = 15.0
DEAREST = 12
QUIET_CORES = 0.1  # CPU of all else on a machine that may be called quiet


class Cost(NamedTuple):
    """What one program costs: *cpu* in ms per s, *samples* per s; *held* is the share of points held back."""

    name: str
    cpu: float
    memory: Memory
    series: int
    samples: float
    held: float | None = None


class Phase(NamedTuple):
    """What the agent did while the machine was in one condition; *others* is the CPU of all else, in cores."""

    machine: str
    seconds: float
    cpu: float
    others: float
    memory: Memory
    sent: Tally
    held: float


class Share(NamedTuple):
    """Samples stored of some series, as a share of the same scraped each second and each 15 s."""

    machine: str
    name: str
    series: int
    samples: int
    of_dense: float
    of_scrape: float


def costs(rows: Sequence[Cost], absent: Iterable[str]) -> Table:
    """Return what everybody costs."""
    cost_head = ("CPU ms per s", "µs per series-second", "PSS MiB", "USS MiB", "threads")
    table: Table = [("program", *cost_head, "series", "samples per s", "held back", "CPU, otelperf = 1")]
    for row in rows:
        per_series = f"{row.cpu * 1000 / row.series:.1f}"
        held = "-" if row.held is None else f"{row.held:.1%}"
        memory = (f"{row.memory.pss:.1f}", f"{row.memory.uss:.1f}", str(row.memory.threads))
        counts = (str(row.series), f"{row.samples:.1f}", held, f"{row.cpu / rows[0].cpu:.2f}")
        table.append((row.name, f"{row.cpu:.2f}", per_series, *memory, *counts))
    table += [(name, "not measured here", *("-",) * (len(table[0]) - 2)) for name in absent]
    return table


def memory_parts(parts: Mapping[str, Memory]) -> Table:
    """Return what the agent's memory is made of."""
    rows = [(name, f"{memory.pss:.1f}", f"{memory.uss:.1f}") for name, memory in parts.items()]
    return [("part", "PSS MiB", "USS MiB"), *rows]


def conditions(phases: Sequence[Phase]) -> Table:
    """Return what the agent cost in each condition of the machine."""
    head = ("machine", "seconds", "CPU of all else, cores", "otelperf CPU ms per s", "PSS MiB")
    table: Table = [(*head, "requests", "bytes per s", "points held back")]
    for phase in phases:
        cost = (f"{phase.others:.2f}", f"{phase.cpu:.2f}", f"{phase.memory.pss:.1f}")
        sent = (str(phase.sent.requests), f"{phase.sent.body_bytes / phase.seconds:.0f}", f"{phase.held:.1%}")
        table.append((phase.machine, f"{phase.seconds:.0f}", *cost, *sent))
    return table


def compare(phase: Phase, everything: Tally) -> list[Share]:
    """Compare what was stored with scrapes, by class; series of *everything* that were always zero are left out."""
    alive = {point.series: point for point in everything.points if not point.zero}
    stored: dict[bytes, int] = {}
    for point in phase.sent.points:
        stored[point.series] = stored.get(point.series, 0) + point.samples

    def share(name: str, chosen: set[bytes], more: int = 0) -> Share:
        samples = sum(stored.get(series, 0) for series in chosen) + more
        dense = max(1.0, sum(alive[series].samples for series in chosen) * phase.seconds)
        return Share(phase.machine, name, len(chosen), samples, samples / dense, samples / dense * SCRAPE_SECONDS)

    everybody, info = set(alive), phase.sent.target_info
    machine = {series for series, point in alive.items() if point.metric.startswith(("system.", "otelperf.system."))}
    own = sum(stored.get(series, 0) for series in everybody - machine)
    return [
        *(share(name, {s for s, point in alive.items() if _class(point) == name}) for name in _CLASSES),
        Share(phase.machine, "target_info", 0, info, 0.0, 0.0),
        share("all", everybody, info),
        share("the machine's alone, at the cost of all", machine, own + info),
    ]


_CLASSES = ("gauges", "counters", "states")


def _class(point: Point) -> str:
    if catalog.BY_NAME[point.metric].rule.kind == "state":
        return "states"
    return "counters" if point.kind == "counter" else "gauges"


def shares(rows: Sequence[Share]) -> Table:
    """Return the samples stored."""
    table: Table = [("machine", "series", "number", "samples", "of dense 1 s", "of a 15 s scrape of the same")]
    for row in rows:
        compared = (f"{row.of_dense:.1%}", f"{row.of_scrape:.0%}") if row.series else ("-", "-")
        table.append((row.machine, row.name, str(row.series or "-"), str(row.samples), *compared))
    return table


def dearest(phases: Sequence[Phase]) -> Table:
    """Return the metrics that most samples are of."""
    stored = [Counter[str]() for _ in phases]
    for phase, samples in zip(phases, stored, strict=True):
        for point in phase.sent.points:
            samples[point.metric] += point.samples
    names = [name for name, _ in sum(stored, Counter()).most_common(DEAREST)]
    rows = [(name, *(str(samples[name]) for samples in stored)) for name in names]
    return [("metric", *(f"samples, {phase.machine}" for phase in phases)), *rows]


def goals(rows: Sequence[Cost], totals: Sequence[Share], *, quiet: bool) -> Table:
    """Return the goals, and whether this run met them; the first of *totals* is of the machine that should be *quiet*."""
    ours = rows[0]
    found: list[tuple[str, str, str, bool]] = []
    for row in rows[1:]:
        if row.name.startswith("node_exporter") and row.name.endswith(", 1 s"):
            ratio = ours.cpu / row.cpu
            found.append((f"CPU against {row.name}", f"≤ {MOST_CPU_RATIO}", f"{ratio:.2f}", ratio <= MOST_CPU_RATIO))
    pss, idle = ours.memory.pss, totals[0].of_dense
    found.append(("memory, PSS", f"≤ {MOST_PSS_MIB:.0f} MiB", f"{pss:.1f} MiB", pss <= MOST_PSS_MIB))
    found.append(("samples, quiet, of dense 1 s", f"≤ {MOST_IDLE_SHARE:.1%}", f"{idle:.1%}", idle <= MOST_IDLE_SHARE))
    for total in totals:
        of_scrape = total.of_scrape
        found.append((f"samples, {total.machine}, of a 15 s scrape", "< 100%", f"{of_scrape:.0%}", of_scrape < 1))
    met = [(name, goal, value, "met" if kept else "not met") for name, goal, value, kept in found]
    if not quiet:
        met = [(*row[:3], "void: not quiet") if ", quiet, " in row[0] else row for row in met]
    return [("goal", "limit", "measured", ""), *met]


def show(title: str, table: Table) -> None:
    """Print a Markdown table, its columns aligned."""
    print(f"\n{title}\n", *markdown(table), sep="\n", flush=True)

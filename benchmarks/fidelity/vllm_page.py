"""vLLM's page under its own names, and rules for it like those of the catalogue.

The agent's own map of vLLM is not written yet: this is what passing chosen series through would send. ``_created`` series are
start times, not metrics, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from otelperf.catalog import Kind
from otelperf.gate.policy import Rule
from otelperf.readings import Attributes, Buckets
from otelperf.sources.engines.engine import whole
from otelperf.sources.engines.exposition import Sample, as_buckets, parse

_COUNTER = Rule(kind="trend", relative=0.25)
_HISTOGRAM = Rule(kind="histogram", relative=0.15)
_EVERY_CHANGE = Rule(kind="hold")
_RULES = {
    "vllm:kv_cache_usage_perc": Rule(delta=0.05),
    "vllm:prefix_cache_queries_total": Rule(kind="trend", relative=0.25, delta=20, group="prefix_cache"),
    "vllm:prefix_cache_hits_total": Rule(kind="trend", relative=0.25, delta=20, group="prefix_cache"),
    "vllm:prompt_tokens_total": Rule(kind="trend", relative=0.25, delta=20, group="tokens"),
    "vllm:generation_tokens_total": Rule(kind="trend", relative=0.25, delta=20, group="tokens"),
    "vllm:prompt_tokens_cached_total": Rule(kind="trend", relative=0.25, delta=20),
    "vllm:prompt_tokens_by_source_total": Rule(kind="trend", relative=0.25, delta=20),
    "vllm:prompt_tokens_cached_by_source_total": Rule(kind="trend", relative=0.25, delta=20),
    "process_resident_memory_bytes": Rule(delta=16 * 2**20),
    "process_virtual_memory_bytes": Rule(delta=64 * 2**20),
    "process_open_fds": Rule(delta=2),
    "process_cpu_seconds_total": Rule(kind="trend", relative=0.2, delta=0.5),
    "python_gc_collections_total": Rule(kind="trend", relative=0.2, delta=2),
}

Found = tuple[str, Kind, float | Buckets, Attributes]


def rule(name: str, kind: Kind) -> Rule:
    """Return the rule of a series; queue lengths and whatever is not named follow each change."""
    default = {"counter": _COUNTER, "histogram": _HISTOGRAM}.get(kind, _EVERY_CHANGE)
    return _RULES.get(name, default)


def readings(page: str) -> Iterator[Found]:
    """Yield name, kind, value and labels of all counters, gauges and histograms; a summary's sum and count are counters."""
    types = {words[2]: words[3] for words in map(str.split, page.split("\n")) if words[:2] == ["#", "TYPE"]}
    types = {name: kind for name, kind in types.items() if not name.endswith("_created")}
    parts = {name: _parts(name, kind) for name, kind in types.items()}
    found: dict[str, list[Sample]] = {}
    for sample in parse(page, {part for names in parts.values() for part in names}).samples:
        found.setdefault(sample.name, []).append(sample)
    for name, kind in types.items():
        if kind == "histogram":
            lines = [sample for part in parts[name] for sample in found.get(part, ())]
            yield from ((name, "histogram", buckets, labels) for labels, buckets in _histograms(lines, name))
        else:
            ours: Kind = "gauge" if kind == "gauge" else "counter"
            for part in parts[name]:
                for sample in found.get(part, ()):
                    yield part, ours, whole(sample.value), sample.labels


def _histograms(lines: list[Sample], name: str) -> Iterator[tuple[Attributes, Buckets]]:
    running: dict[frozenset[tuple[str, str]], dict[float, float]] = {}
    sums: dict[frozenset[tuple[str, str]], float] = {}
    for line in lines:
        labels = frozenset(item for item in line.labels.items() if item[0] != "le")
        if line.name == f"{name}_bucket":
            running.setdefault(labels, {})[float(line.labels["le"])] = line.value
        elif line.name == f"{name}_sum":
            sums[labels] = line.value
    for labels, counts in running.items():
        if (buckets := as_buckets(counts, sums.get(labels))) is not None:
            yield dict(labels), buckets


def _parts(name: str, kind: str) -> tuple[str, ...]:
    if kind == "histogram":
        return f"{name}_bucket", f"{name}_sum", f"{name}_count"
    return (f"{name}_sum", f"{name}_count") if kind == "summary" else (name,)

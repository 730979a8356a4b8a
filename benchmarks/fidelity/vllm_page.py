"""vLLM's page under its own names, as ``server.passthrough`` reads it, and rules for it like those of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator

from otelperf.catalog import Kind
from otelperf.gate.policy import Rule
from otelperf.readings import Attributes, Buckets
from otelperf.sources.engines.exposition import Families, Reader
from otelperf.sources.engines.native import Chosen, Natives

_COUNTER = Rule(kind="trend", relative=0.25)
_HISTOGRAM = Rule(kind="histogram", relative=0.15)
_EVERY_CHANGE = Rule(kind="hold")
_RULES = {
    "vllm:kv_cache_usage_perc": Rule(delta=0.05),
    "vllm:prefix_cache_queries_total": Rule(kind="trend", relative=0.15, delta=20, group="prefix_cache"),
    "vllm:prefix_cache_hits_total": Rule(kind="trend", relative=0.15, delta=20, group="prefix_cache"),
    "vllm:prompt_tokens_total": Rule(kind="trend", relative=0.15, delta=20, group="tokens"),
    "vllm:generation_tokens_total": Rule(kind="trend", relative=0.15, delta=20, group="tokens"),
    "vllm:prompt_tokens_cached_total": Rule(kind="trend", relative=0.15, delta=20),
    "vllm:prompt_tokens_by_source_total": Rule(kind="trend", relative=0.15, delta=20),
    "vllm:prompt_tokens_cached_by_source_total": Rule(kind="trend", relative=0.15, delta=20),
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
    chosen = Chosen(["*"])
    families = Families(chosen)
    lines = Reader(chosen, families).read(page.encode()).lines
    for reading in Natives(["*"]).readings(lines, families, None, []):
        assert reading.native is not None  # as Natives makes them
        kind: Kind = "counter" if reading.native.kind == "sum" else reading.native.kind
        yield reading.name, kind, reading.value, reading.attributes

"""vLLM: /metrics, on unless --disable-log-stats, and /v1/models for the context's limit.

Names and meanings: vllm/v1/metrics/loggers.py, entrypoints/serve/instrumentator/metrics.py and docs/design/metrics.md in
vllm-project/vllm, 0.6 to 0.33. vLLM hides a name one release after it has a new one, and deletes it later: so names are
lists. ``prompt_tokens_total`` has the tokens found in the prefix cache too. ``kv_cache_usage_perc`` is a ratio.
``request_success_total`` counts aborted and failed requests as well. ``iteration_tokens_total`` is a histogram.
``engine`` is the rank of a data-parallel engine; the HTTP server in front of them is one, and its series have no such label.
"""

from __future__ import annotations

import re
from typing import Any

from otelperf.readings import Reading
from otelperf.sources.engines.engine import (
    ACTIVE,
    ENGINE_INDEX,
    ERROR_TYPE,
    ERRORS,
    FINISH_REASON,
    INPUT,
    MODEL,
    OUTPUT,
    REQUEST_STATE,
    REQUESTS,
    RUNNING,
    THROUGHPUT,
    TOKENS,
    WAITING,
    Engine,
    Facts,
    Item,
    Of,
    Print,
    Rate,
    Ratio,
    States,
    Take,
)

_LARGEST = 2**53  # no count of tokens is near it
LABELS = {"model_name": MODEL, "engine": ENGINE_INDEX}


def items(prefix: str = "vllm:") -> tuple[Item, ...]:
    """Return the map under *prefix*: Ray Serve renames ``vllm:`` to ``ray_vllm_``."""

    def named(*names: str) -> tuple[str, ...]:
        return tuple(prefix + name for name in names)

    prompt, generation = named("prompt_tokens_total"), named("generation_tokens_total")
    running, finished = named("num_requests_running"), named("request_success_total")
    queries = named("prefix_cache_queries_total", "gpu_prefix_cache_queries_total")
    hits = named("prefix_cache_hits_total", "gpu_prefix_cache_hits_total")
    drafted = named("spec_decode_num_draft_tokens_total")
    accepted = named("spec_decode_num_accepted_tokens_total")
    per_token = named("inter_token_latency_seconds", "time_per_output_token_seconds")  # the old name misled
    return (
        Take(prompt, TOKENS, INPUT),
        Take(generation, TOKENS, OUTPUT),
        Rate(THROUGHPUT, Of(prompt), INPUT),
        Rate(THROUGHPUT, Of(generation), OUTPUT),
        Take(running, ACTIVE, RUNNING),
        Take(named("num_requests_waiting"), ACTIVE, WAITING),
        Take(named("num_requests_swapped"), ACTIVE, {REQUEST_STATE: "swapped"}),  # until 0.10
        Take(finished, REQUESTS, labels={"finished_reason": FINISH_REASON}),
        Take(finished, ERRORS, {ERROR_TYPE: "abort"}, only={"finished_reason": ("abort",)}),
        Take(finished, ERRORS, {ERROR_TYPE: "error"}, only={"finished_reason": ("error",)}),
        Take(named("admission_rejections_total"), ERRORS, {ERROR_TYPE: "rejected"}, combine="sum"),
        Take("http_requests_total", ERRORS, {ERROR_TYPE: "4xx"}, only={"status": ("4xx",)}, combine="sum", zero=True),
        Take("http_requests_total", ERRORS, {ERROR_TYPE: "5xx"}, only={"status": ("5xx",)}, combine="sum", zero=True),
        Take(named("e2e_request_latency_seconds"), "gen_ai.server.request.duration", histogram=True),
        Take(named("time_to_first_token_seconds"), "gen_ai.server.time_to_first_token", histogram=True),
        Take(named("request_time_per_output_token_seconds"), "gen_ai.server.time_per_output_token", histogram=True),
        Take(per_token, "otelperf.server.inter_token.latency", histogram=True),
        Take(named("request_queue_time_seconds"), "otelperf.server.queue.duration", histogram=True),
        Take(named("request_prefill_time_seconds"), "otelperf.server.prefill.duration", histogram=True),
        Take(named("request_decode_time_seconds"), "otelperf.server.decode.duration", histogram=True),
        Take(named("iteration_tokens_total"), "otelperf.server.iteration.tokens", histogram=True),
        Take(named("num_preemptions_total"), "otelperf.server.preemptions"),
        # Until 0.12 each API server process told it, under its pid.
        Take(
            named("kv_cache_usage_perc", "gpu_cache_usage_perc"), "otelperf.server.kv_cache.utilization", combine="max"
        ),
        Take(named("cache_config_info"), "otelperf.server.kv_cache.limit", number="kv_cache_size_tokens"),
        Take(queries, "otelperf.server.prefix_cache.queries"),
        Take(hits, "otelperf.server.prefix_cache.hits"),
        Ratio("otelperf.server.prefix_cache.hit_ratio", (Of(hits),), (Of(queries),)),
        Take(drafted, "otelperf.server.speculative.drafted"),
        Take(accepted, "otelperf.server.speculative.accepted"),
        Ratio("otelperf.server.speculative.acceptance_ratio", (Of(accepted),), (Of(drafted),)),
        States(
            Of(running),
            Of(named("engine_sleep_state"), {"sleep_state": ("weights_offloaded", "discard_all")}),
            worker="engine",
        ),
    )


def steps(prefix: str = "vllm:") -> tuple[str, ...]:
    """Return what changes with each step. A prompt counts as tokens when all of it is read, but takes up cache chunk by chunk."""
    names = ("prompt_tokens_total", "generation_tokens_total", "kv_cache_usage_perc", "gpu_cache_usage_perc")
    return tuple(prefix + name for name in names)


def facts(models: Any) -> Facts:
    """Read /v1/models: the first is the model, the others its adapters."""
    limit = models["data"][0].get("max_model_len")
    known = isinstance(limit, int) and not isinstance(limit, bool) and 0 < limit < _LARGEST
    return Facts(numbers={"context": limit} if known else {})


def limits(known: Facts) -> list[Reading]:
    """Return what /v1/models tells."""
    return [Reading("otelperf.server.context.limit", int(limit)) for limit in known.numbers.values()]


VLLM = Engine(
    name="vllm",
    metrics_path="/metrics",
    items=items(),
    prints=(Print("/metrics", re.compile(rb"^vllm:", re.MULTILINE)),),
    ports=(8000,),
    labels=LABELS,
    off={404: "is this vLLM's own port?"},
    facts_path="/v1/models",
    facts=facts,
    facts_readings=limits,
    facts_quiet=(401, 403, 404),  # with --api-key the metrics are open and the models are not
    counters=("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
    started="process_start_time_seconds",
    steps=steps(),
)

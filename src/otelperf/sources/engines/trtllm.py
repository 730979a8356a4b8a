"""TensorRT-LLM's trtllm-serve: /prometheus/metrics, and /v1/models for the model's name.

Names and meanings: tensorrt_llm/metrics/collector.py in NVIDIA/TensorRT-LLM, 1.1 to main of 2026. ``/metrics`` is JSON and
gives each iteration away once: it is not read. Two settings make series appear: ``return_perf_metrics`` those of requests
(without it there is no page), ``enable_iter_perf_stats`` those of iterations: running, waiting, KV cache. 1.1 has five
series in all, without a prefix.

Label ``model_name`` was "undefined" for long: the name is that of /v1/models. Gauges have the ``pid`` of the process that
set them, and what a dead process set stays: the largest counts. They say what the last iteration was, and stay when there
is none. Tokens are counted when a request ends, prompts with what the cache had of them.
"""

from __future__ import annotations

import re
from typing import Any

from otelperf.readings import Reading
from otelperf.sources.engines.engine import (
    ACTIVE,
    ERROR_TYPE,
    ERRORS,
    FINISH_REASON,
    INPUT,
    OUTPUT,
    REQUESTS,
    RUNNING,
    THROUGHPUT,
    TOKENS,
    WAITING,
    Engine,
    Facts,
    Moment,
    Of,
    Print,
    Rate,
    Ratio,
    States,
    Take,
    grown,
)

_PROMPT = "trtllm_prompt_tokens_total"
_GENERATED = "trtllm_generation_tokens_total"
_CACHED = "trtllm_prompt_cached_tokens_total"
_REUSED = "trtllm_kv_cache_reused_blocks_total"
_MISSED = "trtllm_kv_cache_missed_blocks_total"
_DRAFTED = "trtllm_spec_decode_num_draft_tokens_total"
_ACCEPTED = "trtllm_spec_decode_num_accepted_tokens_total"
_RUNNING = "trtllm_num_requests_running"
# Those of 1.1 had no prefix yet.
_FINISHED = ("trtllm_request_success_total", "request_success_total")
_DURATION = ("trtllm_e2e_request_latency_seconds", "e2e_request_latency_seconds")
_FIRST_TOKEN = ("trtllm_time_to_first_token_seconds", "time_to_first_token_seconds")
_PER_TOKEN = ("trtllm_time_per_output_token_seconds", "time_per_output_token_seconds")
_QUEUE = ("trtllm_request_queue_time_seconds", "request_queue_time_seconds")
_MOST = "trtllm_max_num_active_requests"
_LONGEST_NAME = 200  # characters of a model's name


def facts(models: Any) -> Facts:
    """Read /v1/models."""
    name = models["data"][0]["id"]
    return Facts(model=name[:_LONGEST_NAME] or None if isinstance(name, str) else None)


def derive(before: Moment | None, now: Moment, _: Facts) -> list[Reading]:
    """Make the prefix cache's hit ratio: of tokens, or of blocks where tokens found in the cache are not counted."""
    if before is None:
        return []
    if _CACHED in now.values:
        hits, queries = grown(before, now, _CACHED), grown(before, now, _PROMPT)
    else:
        hits, missed = grown(before, now, _REUSED), grown(before, now, _MISSED)
        queries = None if hits is None or missed is None else hits + missed
    if hits is None or not queries:
        return []
    return [Reading("otelperf.server.prefix_cache.hit_ratio", hits / queries)]


TRTLLM = Engine(
    name="trtllm",
    metrics_path="/prometheus/metrics",
    items=(
        Take(_PROMPT, TOKENS, INPUT, combine="sum"),
        Take(_GENERATED, TOKENS, OUTPUT, combine="sum"),
        Rate(THROUGHPUT, Of(_PROMPT), INPUT),
        Rate(THROUGHPUT, Of(_GENERATED), OUTPUT),
        Take(_RUNNING, ACTIVE, RUNNING, combine="max"),
        Take("trtllm_num_requests_waiting", ACTIVE, WAITING, combine="max"),
        Take(_FINISHED, REQUESTS, labels={"finished_reason": FINISH_REASON}, combine="sum"),
        Take("trtllm_request_error_total", ERRORS, labels={"http_code": ERROR_TYPE}, combine="sum"),
        Take(_DURATION, "gen_ai.server.request.duration", histogram=True, combine="sum"),
        Take(_FIRST_TOKEN, "gen_ai.server.time_to_first_token", histogram=True, combine="sum"),
        Take(
            _PER_TOKEN,
            "gen_ai.server.time_per_output_token",
            histogram=True,
            combine="sum",
        ),
        Take(_QUEUE, "otelperf.server.queue.duration", histogram=True, combine="sum"),
        Take("trtllm_request_prefill_time_seconds", "otelperf.server.prefill.duration", histogram=True, combine="sum"),
        Take("trtllm_request_decode_time_seconds", "otelperf.server.decode.duration", histogram=True, combine="sum"),
        Take(_MOST, "otelperf.server.batch.limit", combine="max"),
        Ratio("otelperf.server.batch.utilization", (Of(_RUNNING),), (Of(_MOST),), growth=False),
        Take("trtllm_kv_cache_utilization", "otelperf.server.kv_cache.utilization", combine="max"),
        Take(_CACHED, "otelperf.server.prefix_cache.hits", combine="sum"),
        Take(_PROMPT, "otelperf.server.prefix_cache.queries", combine="sum"),
        Take(_DRAFTED, "otelperf.server.speculative.drafted", combine="sum"),
        Take(_ACCEPTED, "otelperf.server.speculative.accepted", combine="sum"),
        Ratio("otelperf.server.speculative.acceptance_ratio", (Of(_ACCEPTED),), (Of(_DRAFTED),)),
        States(Of(_RUNNING)),
    ),
    also=(_REUSED, _MISSED),
    derive=derive,
    prints=(
        Print(
            "/prometheus/metrics",
            re.compile(rb"^(?:# (?:TYPE|HELP) )?(?:trtllm_|request_success|e2e_request_latency)", re.MULTILINE),
        ),
        Print("/v1/models", re.compile(rb'"owned_by":\s*"tensorrt_llm"')),
    ),
    ports=(8000,),
    off={404: "start trtllm-serve with return_perf_metrics: true and enable_iter_perf_stats: true in its --config"},
    facts_path="/v1/models",
    facts=facts,
    facts_quiet=(401, 403, 404),
    counters=(*_FINISHED, _PROMPT, _GENERATED),
)

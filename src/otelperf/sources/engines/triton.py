"""NVIDIA Triton: /metrics on a port of its own (8002), with what the TensorRT-LLM and the vLLM backend add to it.

Names and meanings: src/metrics.cc in triton-inference-server/core, README.md in tensorrtllm_backend, src/utils/metrics.py
in vllm_backend, 2.51 to 2.70. Every series has the model; versions, instances on several GPUs and namespaces of one model
are added up.

Times are sums in microseconds, of successful requests: over ``requests`` they are a mean, and there are no quantiles of
them. REJECTED is a queue that is full or a wait that is too long. Of the histograms, ``first_response`` (``--metrics-config
histogram_latencies=true``) is the time to the first answer: for a model that streams, its first token.

TensorRT-LLM: ``request_metrics`` tells in one label what it counts; what is active is scheduled or waits. Its iterations'
batches are its own, so that Triton's count of executions says nothing there; nor does it with vLLM. It counts no tokens.
vLLM: the names of V0 and seven series only; ``time_per_output_token_seconds`` has one value a token, and is inter-token
latency.
"""

from __future__ import annotations

import re

from otelperf.sources.engines.engine import (
    ACTIVE,
    ERROR_TYPE,
    ERRORS,
    INPUT,
    MODEL,
    OUTPUT,
    REQUESTS,
    RUNNING,
    THROUGHPUT,
    TOKENS,
    WAITING,
    Engine,
    Of,
    Print,
    Rate,
    Ratio,
    States,
    Take,
)

_SUCCESS = "nv_inference_request_success"
_FAILURE = "nv_inference_request_failure"
_TRTLLM = "nv_trt_llm_request_metrics"
_PROMPT = "vllm:prompt_tokens_total"
_GENERATED = "vllm:generation_tokens_total"
_FIRST_TOKEN = "vllm:time_to_first_token_seconds"  # noqa: S105 # a series' name
_LOADING = {"otelperf.server.startup.phase": "load"}
_MICROSECOND = 1e-6
_MILLISECOND = 1e-3

# Executions say how many requests ran together, unless a backend batches by itself. Its series then stands for Triton's, and the
# label that all its samples have leaves nothing of it.
_OWN_BATCHES = (_TRTLLM, f"{_FIRST_TOKEN}_bucket")
_NOT_OWN = {"request_type": ("",), "le": ("",)}

TRITON = Engine(
    name="triton",
    metrics_path="/metrics",
    items=(
        Take(_PROMPT, TOKENS, INPUT, combine="sum"),
        Take(_GENERATED, TOKENS, OUTPUT, combine="sum"),
        Rate(THROUGHPUT, Of(_PROMPT), INPUT),
        Rate(THROUGHPUT, Of(_GENERATED), OUTPUT),
        Take(_TRTLLM, ACTIVE, RUNNING, only={"request_type": ("scheduled",)}, combine="sum"),
        # TensorRT-LLM takes every request at once: what waits, waits there. Without it, in Triton's queue.
        Take(
            (_TRTLLM, "nv_inference_pending_request_count"),
            ACTIVE,
            WAITING,
            only={"request_type": ("waiting", "")},
            combine="sum",
        ),
        Take(_SUCCESS, REQUESTS, combine="sum"),
        Take(_FAILURE, ERRORS, {ERROR_TYPE: "rejected"}, only={"reason": ("REJECTED",)}, combine="sum"),
        Take(_FAILURE, ERRORS, {ERROR_TYPE: "abort"}, only={"reason": ("CANCELED",)}, combine="sum"),
        Take(_FAILURE, ERRORS, {ERROR_TYPE: "backend"}, only={"reason": ("BACKEND",)}, combine="sum"),
        Take(_FAILURE, ERRORS, {ERROR_TYPE: "_OTHER"}, only={"reason": ("OTHER", "")}, combine="sum"),
        Take("nv_inference_request_duration_us", "otelperf.server.request.time", scale=_MICROSECOND, combine="sum"),
        Take("nv_inference_queue_duration_us", "otelperf.server.queue.time", scale=_MICROSECOND, combine="sum"),
        Take("vllm:e2e_request_latency_seconds", "gen_ai.server.request.duration", histogram=True, combine="sum"),
        Take(_FIRST_TOKEN, "gen_ai.server.time_to_first_token", histogram=True, combine="sum"),
        Take(
            "nv_inference_first_response_histogram_ms",
            "gen_ai.server.time_to_first_token",
            histogram=True,
            scale=_MILLISECOND,
            combine="sum",
            fallback=True,  # vLLM's own is finer
        ),
        Take(
            "vllm:time_per_output_token_seconds", "otelperf.server.inter_token.latency", histogram=True, combine="sum"
        ),
        Ratio(
            "otelperf.server.batch.size",
            (Of((*_OWN_BATCHES, "nv_inference_count"), _NOT_OWN),),
            (Of((*_OWN_BATCHES, "nv_inference_exec_count"), _NOT_OWN),),
        ),
        Take(_TRTLLM, "otelperf.server.batch.limit", only={"request_type": ("max",)}, combine="sum"),
        Ratio(
            "otelperf.server.batch.utilization",
            (Of(_TRTLLM, {"request_type": ("scheduled",)}),),
            (Of(_TRTLLM, {"request_type": ("max",)}),),
            growth=False,
        ),
        Take(
            "nv_trt_llm_kv_cache_block_metrics",
            "otelperf.server.kv_cache.utilization",
            only={"kv_cache_block_type": ("fraction",)},
            combine="max",
        ),
        Take("nv_model_load_duration_secs", "otelperf.server.startup.duration", _LOADING, combine="max"),
        States(Of(_TRTLLM, {"request_type": ("scheduled",)}), worker="model"),
    ),
    prints=(Print("/metrics", re.compile(rb"^(?:# TYPE )?nv_(?:inference|pinned|cpu|gpu|energy)_", re.MULTILINE)),),
    ports=(8002,),
    labels={"model": MODEL},
    off={404: "start tritonserver with --allow-metrics=true, and give the metrics port (8002)"},
    counters=(_SUCCESS, "nv_inference_count", "nv_inference_request_duration_us"),
)

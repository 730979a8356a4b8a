"""Hugging Face Text Generation Inference: /metrics on the router's own port, and /info.

Names and meanings: router/src/server.rs, router/src/validation.rs and backends/v3/src in
huggingface/text-generation-inference, 3.3. No series names the model: /info does. The only counts of tokens are the sums of
two histograms; prompts are counted when they are accepted, with what a prefix cache may hold of them, and generated tokens
when a request ends: the rate of a long answer is not seen before its end. ``mean_time_per_token_duration`` has the first
token, and so the prompt, in it. ``tgi_request_count`` counts a chat request twice and is not read. ``tgi_batch_next_size``
has 1024 buckets and is not read. There is no time to first token and no prefix cache. ``tgi_batch_max_total_tokens`` is
what fits into the KV cache, and ``tgi_batch_current_max_tokens`` the blocks that the batch holds, for the answers to come
too. A series is not on the page before it has its first value.
"""

from __future__ import annotations

import re
from typing import Any

from otelperf.readings import Reading
from otelperf.sources.engines.engine import (
    ACTIVE,
    ERROR_TYPE,
    ERRORS,
    INPUT,
    OUTPUT,
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

_PROMPT = "tgi_request_input_length_sum"
_GENERATED = "tgi_request_generated_tokens_sum"
_BUDGET = "tgi_batch_max_total_tokens"
_LARGEST = 2**53  # no count of tokens is near it
_LONGEST_NAME = 200  # characters of a model's name
_ERRORS = {  # TGI's word: that of all servers, or else its own
    "overloaded": "rejected",
    "dropped": "abort",
    "validation": "validation",
    "template": "template",
    "incomplete": "incomplete",
    "generation": "generation",
}


def _errors() -> tuple[Item, ...]:
    return tuple(
        Take("tgi_request_failure", ERRORS, {ERROR_TYPE: common}, only={"err": (own,)}, zero=True)
        for own, common in _ERRORS.items()
    )


def facts(info: Any) -> Facts:
    """Read /info: ``max_total_tokens`` are a request's prompt and answer together."""
    model, limit = info["model_id"], info.get("max_total_tokens")
    known = isinstance(limit, int) and not isinstance(limit, bool) and 0 < limit < _LARGEST
    name = model[:_LONGEST_NAME] if isinstance(model, str) else ""
    return Facts(model=name or None, numbers={"context": limit} if known else {})


def limits(known: Facts) -> list[Reading]:
    """Return what /info tells."""
    return [Reading("otelperf.server.context.limit", int(limit)) for limit in known.numbers.values()]


TGI = Engine(
    name="tgi",
    metrics_path="/metrics",
    items=(
        Take(_PROMPT, TOKENS, INPUT),
        Take(_GENERATED, TOKENS, OUTPUT),
        Rate(THROUGHPUT, Of(_PROMPT), INPUT),
        Rate(THROUGHPUT, Of(_GENERATED), OUTPUT),
        Take("tgi_batch_current_size", ACTIVE, RUNNING),
        Take("tgi_queue_size", ACTIVE, WAITING),
        Take("tgi_request_success", REQUESTS),
        *_errors(),
        Take("tgi_request_duration", "gen_ai.server.request.duration", histogram=True),
        Take("tgi_request_mean_time_per_token_duration", "gen_ai.server.time_per_output_token", histogram=True),
        Take("tgi_request_queue_duration", "otelperf.server.queue.duration", histogram=True),
        Take(_BUDGET, "otelperf.server.kv_cache.limit"),
        Ratio(
            "otelperf.server.kv_cache.utilization",
            (Of("tgi_batch_current_max_tokens"),),
            (Of(_BUDGET),),
            growth=False,
        ),
        # A summary: one value a step and request, of the tokens that speculation saved.
        Take("tgi_request_skipped_tokens_sum", "otelperf.server.speculative.accepted"),
        States(Of("tgi_batch_current_size")),
    ),
    prints=(
        Print("/metrics", re.compile(rb"^tgi_", re.MULTILINE)),
        Print("/info", re.compile(rb'"router":\s*"text-generation-router')),
    ),
    ports=(3000, 80),
    off={404: "is this TGI's own port? (--prometheus-port is not where its metrics are)"},
    facts_path="/info",
    facts=facts,
    facts_readings=limits,
    facts_quiet=(401, 403, 404),
    counters=(_PROMPT, _GENERATED, "tgi_request_success"),
    steps=("tgi_batch_inference_count",),
)

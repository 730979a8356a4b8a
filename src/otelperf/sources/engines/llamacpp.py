"""llama.cpp's llama-server: /metrics (with --metrics), /slots, /props.

Names and meanings: tools/server/README.md and server-task.cpp in ggml-org/llama.cpp, builds of 2026. Its series carry no
labels. ``prompt_tokens_total`` leaves out tokens found in the cache; ``n_busy_slots_per_decode`` is a mean over the server's life,
so the mean since the last reading comes from differences.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from otelperf.readings import Attributes, Reading
from otelperf.sources.engines.engine import (
    ACTIVE,
    INPUT,
    OUTPUT,
    RUNNING,
    THROUGHPUT,
    TOKENS,
    WAITING,
    WORKER_ID,
    WORKER_STATE,
    Engine,
    Facts,
    JsonPage,
    Moment,
    Of,
    Print,
    Rate,
    Ratio,
    Sum,
    Take,
)

_PROMPT = "llamacpp:prompt_tokens_total"
_CACHED = "llamacpp:prompt_tokens_cached_total"
_PREDICTED = "llamacpp:tokens_predicted_total"
_DECODES = "llamacpp:n_decode_total"
_BUSY = "llamacpp:n_busy_slots_per_decode"
_WORKERS = 256  # slots told apart at most
_LARGEST = 2**53  # no count of slots or tokens is near it
_LONGEST_NAME = 200  # characters of a model's name: whoever starts the server chooses it


def facts(props: Any) -> Facts:
    """Read /props."""
    numbers: dict[str, float] = {}
    slots, settings = props.get("total_slots"), props.get("default_generation_settings")
    if _is_number(slots):
        numbers["slots"] = slots
    if isinstance(settings, dict) and _is_number(settings.get("n_ctx")):
        numbers["context"] = settings["n_ctx"]
    model = props.get("model_alias") or props.get("model_path")
    name = model.rsplit("/", 1)[-1][:_LONGEST_NAME] if isinstance(model, str) else ""
    return Facts(model=name or None, numbers=numbers)


def slots(page: Any, known: Facts) -> list[Reading]:
    """Read /slots: each slot is a worker, active or idle, and holds so many tokens of its context."""
    readings: list[Reading] = []
    fills: list[float] = []
    for slot in page[:_WORKERS]:
        number, active = slot["id"], slot["is_processing"]
        if not _is_number(number) or not isinstance(active, bool):
            raise TypeError(f"slot {number!r:.40} with is_processing {active!r:.40}")
        readings += [
            Reading("otelperf.worker.state", int(active == (state == "active")), _worker(number, state))
            for state in ("active", "idle")
        ]
        tokens, context = slot.get("n_prompt_tokens"), slot.get("n_ctx")
        if not active:
            fills.append(0.0)  # what an idle slot holds is cache, and makes room for the next request
        elif _is_number(tokens) and _is_number(context) and context > 0:
            fills.append(tokens / context)
    if fills:
        readings.append(Reading("otelperf.server.context.utilization", max(fills)))
    if "context" in known.numbers:
        readings.append(Reading("otelperf.server.context.limit", int(known.numbers["context"])))
    return readings


def derive(before: Moment | None, now: Moment, known: Facts) -> list[Reading]:
    """Make batch sizes of two scrapes."""
    limit = known.numbers.get("slots")
    readings = [Reading("otelperf.server.batch.limit", int(limit))] if limit else []
    size = _batch_size(before, now) if before else None
    if size is not None:
        readings.append(Reading("otelperf.server.batch.size", size))
        if limit:
            readings.append(Reading("otelperf.server.batch.utilization", size / limit))
    return readings


def _batch_size(before: Moment, now: Moment) -> float | None:
    """The mean since the last reading, out of two means over the server's life; None where nothing was decoded."""
    try:
        old, new = before.values[_BUSY] * before.values[_DECODES], now.values[_BUSY] * now.values[_DECODES]
        decodes = now.values[_DECODES] - before.values[_DECODES]
    except KeyError:
        return None
    if decodes < 0:
        old, decodes = 0.0, now.values[_DECODES]
    # The page prints six digits, so that the product is off by up to 1e-5 of the life's total: no sharper than that.
    return max(1.0, (new - old) / decodes) if decodes > 0 and new * 1e-5 < decodes else None


@lru_cache(maxsize=2 * _WORKERS)
def _worker(slot: int, state: str) -> Attributes:
    return {WORKER_ID: str(slot), WORKER_STATE: state}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST  # so no NaN either


LLAMACPP = Engine(
    name="llama.cpp",
    metrics_path="/metrics",
    prints=(
        Print("/metrics", re.compile(rb"^llamacpp:", re.MULTILINE)),
        Print("/props", re.compile(rb'"total_slots"')),  # where metrics are off
    ),
    ports=(8080,),
    items=(
        Take(_PROMPT, TOKENS, INPUT),
        Take(_PREDICTED, TOKENS, OUTPUT),
        Take("llamacpp:prompt_seconds_total", "otelperf.server.processing.time", INPUT),
        Take("llamacpp:tokens_predicted_seconds_total", "otelperf.server.processing.time", OUTPUT),
        Take("llamacpp:requests_processing", ACTIVE, RUNNING),
        Take("llamacpp:requests_deferred", ACTIVE, WAITING),
        Take("llamacpp:spec_decode_num_draft_tokens_total", "otelperf.server.speculative.drafted"),
        Take("llamacpp:spec_decode_num_accepted_tokens_total", "otelperf.server.speculative.accepted"),
        # Prompt tokens are either found in the cache or processed: together they are what was looked up.
        Sum("otelperf.server.prefix_cache.queries", (Of(_PROMPT), Of(_CACHED))),
        Take(_CACHED, "otelperf.server.prefix_cache.hits"),
        Ratio("otelperf.server.prefix_cache.hit_ratio", (Of(_CACHED),), (Of(_PROMPT), Of(_CACHED))),
        Ratio(
            "otelperf.server.speculative.acceptance_ratio",
            (Of("llamacpp:spec_decode_num_accepted_tokens_total"),),
            (Of("llamacpp:spec_decode_num_draft_tokens_total"),),
        ),
        Rate(THROUGHPUT, Of(_PROMPT), INPUT),
        Rate(THROUGHPUT, Of(_PREDICTED), OUTPUT),
    ),
    also=(_DECODES, _BUSY),
    counters=(_PROMPT, _PREDICTED, _DECODES),
    steps=(_PROMPT, _DECODES),
    off={
        404: "start llama-server with --metrics (a router also wants ?model=)",
        501: "start llama-server with --metrics",
    },
    pages=(JsonPage("/slots", slots, off={501: "start llama-server with --slots"}),),
    facts_path="/props",
    facts=facts,
    derive=derive,
)

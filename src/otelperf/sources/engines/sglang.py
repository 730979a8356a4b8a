"""SGLang: /metrics (with --enable-metrics), /v1/loads, /v1/models.

Names and meanings: python/sglang/srt/observability/metrics_collector.py and managers/load_snapshot.py in
sgl-project/sglang, 0.5.23. Each scheduler tells of itself (``dp_rank``, where there are several), the HTTP process of all
requests.

``realtime_tokens_total`` counts as tokens come, the first of each answer left out, which the prefill makes; prompts with
what the cache had of them. ``prompt_tokens_total`` and ``generation_tokens_total`` count a request when it ends; they are
read where a release has nothing else. With priorities, queues are told for each and, with ``priority=""``, in all: that is
what is read. Every stage of a pipeline tells the same: the first is read. ``--enable-metrics-for-all-schedulers`` makes
every tensor-parallel rank tell it once more, and so multiplies counts. ``num_requests_total`` has aborted requests too.
Gauges stay as they were at the last batch, for up to half a minute when idle. A limit to running requests, and what
speculation accepted lately, are in /v1/loads only; with metrics off that page is all there is, and the rates in it are 0,
so that they are not read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from otelperf.readings import Attributes, Reading
from otelperf.sources.engines.engine import (
    ACTIVE,
    ENGINE_INDEX,
    ERROR_TYPE,
    ERRORS,
    INPUT,
    MODEL,
    OUTPUT,
    REQUEST_STATE,
    REQUESTS,
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
    States,
    Take,
    grown,
    whole,
)

_LIVE = "sglang:realtime_tokens_total"
_PROMPT = "sglang:prompt_tokens_total"
_GENERATED = "sglang:generation_tokens_total"
_PREFILL = "sglang:prefill_effective_tokens_total"
_RUNNING = "sglang:num_running_reqs"
_STARTUP = "otelperf.server.startup.duration"
_PHASE = "otelperf.server.startup.phase"
_ONCE = {"pp_rank": ("0", "")}
_TOTAL = {**_ONCE, "priority": ("",)}
_PROMPTS = {**_ONCE, "mode": ("prefill_compute", "prefill_cache")}
_DECODED = {**_ONCE, "mode": ("decode",)}
_HITS = {**_ONCE, "mode": ("device_hit", "host_hit", "storage_hit")}
_HTTP_ERRORS = tuple(str(code) for code in range(400, 600))
_ENGINES = 256  # data-parallel engines told apart at most
_LARGEST = 2**53  # no count of requests or tokens is near it
_LONGEST_NAME = 200  # characters of a model's name
_SECOND = 1e9


def facts(models: Any) -> Facts:
    """Read /v1/models: the first is the model, the others its adapters."""
    first = models["data"][0]
    name, limit = first["id"], _amount(first.get("max_model_len"))
    return Facts(
        model=name[:_LONGEST_NAME] or None if isinstance(name, str) else None,
        numbers={"context": limit} if limit else {},
    )


def context(known: Facts) -> list[Reading]:
    """Return what /v1/models tells."""
    return [Reading("otelperf.server.context.limit", int(limit)) for limit in known.numbers.values()]


def limits(page: Any, _: Facts) -> list[Reading]:
    """Read of /v1/loads what the metrics do not have."""
    readings: list[Reading] = []
    for load, rank in _loads(page):
        engine = _of(rank)
        running, most = _amount(load["num_running_reqs"]), _amount(load.get("max_running_requests"))
        if running is not None and most:
            readings.append(Reading("otelperf.server.batch.limit", int(most), engine))
            readings.append(Reading("otelperf.server.batch.utilization", running / most, engine))
        accepted = _amount((load.get("speculative") or {}).get("accept_rate"))
        if accepted and accepted <= 1:  # 0 is also what a server says that does not count it
            readings.append(Reading("otelperf.server.speculative.acceptance_ratio", accepted, engine))
    return readings


def loads(page: Any, _: Facts) -> list[Reading]:
    """Read /v1/loads in the place of the metrics."""
    readings: list[Reading] = []
    for load, rank in _loads(page):
        running, waiting = _amount(load["num_running_reqs"]), _amount(load["num_waiting_reqs"])
        used, most = _amount(load.get("token_usage")), _amount(load.get("max_total_num_tokens"))
        if running is not None:
            readings.append(Reading(ACTIVE, whole(float(running)), _of(rank, REQUEST_STATE, "running")))
            readings += [
                Reading("otelperf.worker.state", int((running > 0) == (state == "active")), _worker(rank, state))
                for state in ("active", "idle")
            ]
        if waiting is not None:
            readings.append(Reading(ACTIVE, whole(float(waiting)), _of(rank, REQUEST_STATE, "waiting")))
        if used is not None:
            readings.append(Reading("otelperf.server.kv_cache.utilization", used, _of(rank)))
        if most:
            readings.append(Reading("otelperf.server.kv_cache.limit", int(most), _of(rank)))
    return readings


def _loads(page: Any) -> list[tuple[Any, str]]:
    """Return each engine's load and rank: none where there is one engine, as in the metrics."""
    several = page["loads"][:_ENGINES]
    ranks = [load["dp_rank"] for load in several]
    if not all(isinstance(rank, int) and abs(rank) < _LARGEST for rank in ranks):
        raise TypeError(f"dp_rank {ranks!r:.40}")
    return [(load, str(rank) if len(several) > 1 else "") for load, rank in zip(several, ranks, strict=True)]


@lru_cache(maxsize=4 * _ENGINES)
def _of(rank: str, more: str = "", value: str = "") -> Attributes:
    return {**({ENGINE_INDEX: rank} if rank else {}), **({more: value} if more else {})}


@lru_cache(maxsize=2 * _ENGINES)
def _worker(rank: str, state: str) -> Attributes:
    return {**({WORKER_ID: rank} if rank else {}), WORKER_STATE: state}


def _amount(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LARGEST  # so no NaN either
    return value if known else None


def derive(before: Moment | None, now: Moment, _: Facts) -> list[Reading]:
    """Make tokens of what ended requests had, where the release does not count them as they come."""
    if _LIVE in now.values:
        return []
    readings: list[Reading] = []
    for series, kind in ((_PROMPT, INPUT), (_GENERATED, OUTPUT)):
        if series in now.values:
            readings.append(Reading(TOKENS, whole(now.values[series]), kind))
        tokens = grown(before, now, series) if before else None
        if before and tokens is not None and now.time > before.time:
            readings.append(Reading(THROUGHPUT, tokens / ((now.time - before.time) / _SECOND), kind))
    return readings


SGLANG = Engine(
    name="sglang",
    metrics_path="/metrics",
    items=(
        Take(_LIVE, TOKENS, INPUT, only=_PROMPTS, combine="sum"),
        Take(_LIVE, TOKENS, OUTPUT, only=_DECODED, combine="sum"),
        Rate(THROUGHPUT, Of(_LIVE, _PROMPTS), INPUT),
        Rate(THROUGHPUT, Of(_LIVE, _DECODED), OUTPUT),
        Take(_RUNNING, ACTIVE, RUNNING, only=_TOTAL, combine="max"),
        Take("sglang:num_queue_reqs", ACTIVE, WAITING, only=_TOTAL, combine="max"),
        Take("sglang:num_paused_reqs", ACTIVE, {REQUEST_STATE: "paused"}, only=_TOTAL, combine="max"),
        Take("sglang:num_requests_total", REQUESTS, combine="sum"),
        Take("sglang:num_aborted_requests_total", ERRORS, {ERROR_TYPE: "abort"}, combine="sum"),
        Take(
            "sglang:http_responses_total",
            ERRORS,
            labels={"status_code": ERROR_TYPE},
            only={"status_code": _HTTP_ERRORS},
            combine="sum",
        ),
        Take("sglang:e2e_request_latency_seconds", "gen_ai.server.request.duration", histogram=True, combine="sum"),
        Take("sglang:time_to_first_token_seconds", "gen_ai.server.time_to_first_token", histogram=True, combine="sum"),
        Take(
            "sglang:request_time_per_output_token_seconds",
            "gen_ai.server.time_per_output_token",
            histogram=True,
            combine="sum",
        ),
        Take(
            "sglang:inter_token_latency_seconds", "otelperf.server.inter_token.latency", histogram=True, combine="sum"
        ),
        Take("sglang:queue_time_seconds", "otelperf.server.queue.duration", histogram=True, only=_ONCE, combine="sum"),
        Take("sglang:num_retracted_requests_total", "otelperf.server.preemptions", only=_ONCE, combine="max"),
        Take("sglang:token_usage", "otelperf.server.kv_cache.utilization", combine="max"),
        Take("sglang:max_total_num_tokens", "otelperf.server.kv_cache.limit", combine="max"),
        Take(_PREFILL, "otelperf.server.prefix_cache.queries", only=_ONCE, combine="sum"),
        Take(_PREFILL, "otelperf.server.prefix_cache.hits", only=_HITS, combine="sum"),
        Ratio("otelperf.server.prefix_cache.hit_ratio", (Of(_PREFILL, _HITS),), (Of(_PREFILL, _ONCE),)),
        Take("sglang:startup_time_seconds", _STARTUP, labels={"phase": _PHASE}, combine="max"),
        States(Of(_RUNNING, _TOTAL), worker="dp_rank"),
    ),
    also=(_PROMPT, _GENERATED),
    derive=derive,
    prints=(
        Print("/metrics", re.compile(rb"^sglang:", re.MULTILINE)),
        Print("/v1/models", re.compile(rb'"owned_by":\s*"sglang"')),  # where metrics are off
    ),
    ports=(30000,),
    labels={"model_name": MODEL, "dp_rank": ENGINE_INDEX},
    off={404: "start SGLang with --enable-metrics"},
    pages=(
        JsonPage("/v1/loads", loads, instead=True),
        JsonPage("/v1/loads", limits, quiet=(401, 403, 404)),
    ),
    facts_path="/v1/models",
    facts=facts,
    facts_readings=context,
    facts_quiet=(401, 403, 404),
    counters=(_LIVE, _PROMPT, _GENERATED),
    steps=(_LIVE, _PREFILL, "sglang:token_usage"),
)

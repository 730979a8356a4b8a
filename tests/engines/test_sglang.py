"""The map of SGLang, with metrics and without."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from otelperf.sources.engines.sglang import SGLANG, facts, limits, loads
from tests.engines.loopback import message
from tests.engines.pages import (
    INPUT,
    ODD_VALUES,
    OUTPUT,
    RUNNING,
    SECOND,
    START,
    WAITING,
    Pages,
    json_like,
    keeping,
    names,
    page,
    read,
    reading,
    reads_or_refuses,
    recognised,
    restarted,
    series,
    shrugs_off,
    unlabelled,
    values,
)

BUSY, LATER = page("sglang-0.5.23/busy.txt"), page("sglang-0.5.23/later.txt")
MODELS, LOADS = page("sglang-0.5.23/v1-models.json"), page("sglang-0.5.23/v1-loads.json")
TWO, TWO_LOADS = page("sglang-0.5.23-dp2/busy.txt"), page("sglang-0.5.23-dp2/v1-loads.json")
OFF = page("sglang-0.5.23-metrics-off/v1-loads.json")
LIVE = "sglang:realtime_tokens_total"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
HEALTHY: Pages = {"/metrics": BUSY, "/v1/models": MODELS, "/v1/loads": LOADS}


def load(**changed: Any) -> str:
    """Return /v1/loads with its engine changed."""
    content = json.loads(OFF)
    content["loads"][0] |= changed
    return json.dumps(content)


def test_tokens_are_counted_as_they_come(pages: Pages) -> None:
    with reading(SGLANG, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    prompts = series(BUSY, LIVE, 'mode="prefill_compute"') + series(BUSY, LIVE, 'mode="prefill_cache"')
    assert values(readings, "otelperf.server.tokens", INPUT) == [sum(prompts)]
    assert values(readings, "otelperf.server.tokens", OUTPUT) == series(BUSY, LIVE, 'mode="decode"')


def test_releases_that_do_not_count_them_so_tell_those_of_ended_requests(pages: Pages) -> None:
    def old(text: str) -> str:
        return "".join(f"{line}\n" for line in text.splitlines() if LIVE not in line)

    pages["/metrics"] = old(BUSY)
    with reading(SGLANG, pages) as (server, _):
        readings, _ = read(server)
        pages["/metrics"] = old(LATER)
        later, _ = read(server, START + SECOND)
    made, made_later = (sum(series(text, "sglang:generation_tokens_total")) for text in (BUSY, LATER))
    assert values(readings, "otelperf.server.tokens", OUTPUT) == [made]
    assert values(later, "otelperf.server.token.throughput", OUTPUT) == [made_later - made]


def test_requests_that_stream_and_that_do_not_are_one_histogram(pages: Pages) -> None:
    with reading(SGLANG, pages) as (server, _):
        readings, _ = read(server)
    [first] = values(readings, "gen_ai.server.time_to_first_token")
    assert len(series(BUSY, "sglang:time_to_first_token_seconds_count")) == 2
    assert first.count == sum(series(BUSY, "sglang:time_to_first_token_seconds_count"))
    assert len(first.bounds) == 18


def test_of_priorities_the_total_is_read(pages: Pages) -> None:
    pages |= {"/metrics": TWO, "/v1/loads": TWO_LOADS}
    with reading(SGLANG, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.server.active_requests", RUNNING) == [12, 15]
    assert values(readings, "otelperf.server.active_requests", WAITING) == [3, 4]


def test_data_parallel_engines_are_told_apart_under_the_same_names_on_both_pages(pages: Pages) -> None:
    pages |= {"/metrics": TWO, "/v1/loads": TWO_LOADS}
    with reading(SGLANG, pages) as (server, _):
        readings, _ = read(server)
    second = {"otelperf.server.engine.index": "1"}
    assert values(readings, "otelperf.server.tokens", {**OUTPUT, **second}) == series(
        TWO, LIVE, 'mode="decode"', 'dp_rank="1"'
    )
    assert values(readings, "otelperf.server.kv_cache.utilization", second) == [171_552 / 454_656]
    assert values(readings, "otelperf.server.batch.utilization", second) == [15 / 48]
    assert values(readings, "otelperf.worker.state", {"otelperf.worker.id": "1"}) == [1, 0]


def test_every_stage_of_a_pipeline_counts_once(pages: Pages) -> None:
    second = "".join(f"{line}\n" for line in BUSY.splitlines() if 'pp_rank="0"' in line).replace(
        'pp_rank="0"', 'pp_rank="1"'
    )
    with reading(SGLANG, pages) as (server, _):
        alone, _ = read(server)
    with reading(SGLANG, {**pages, "/metrics": BUSY + second}) as (server, _):
        both, said = read(server)
    assert said == ""
    assert both == alone


def test_errors_are_told_by_code_and_not_by_path(pages: Pages) -> None:
    scanned = "".join(
        f'sglang:http_responses_total{{endpoint="/{n}.php",status_code="404",method="GET"}} 1.0\n' for n in range(2000)
    )
    pages["/metrics"] = BUSY + scanned
    with reading(SGLANG, pages) as (server, _):
        readings, said = read(server)
    errors = {r.attributes["error.type"]: r.value for r in readings if r.name == "otelperf.server.request.errors"}
    assert said == ""
    assert errors == {"abort": 2, "400": 3, "503": 1, "404": 2000}


def test_the_hit_ratio_is_of_the_tokens_between_two_pages(pages: Pages) -> None:
    with reading(SGLANG, pages) as (server, _):
        read(server)
        assert "otelperf.server.prefix_cache.hit_ratio" not in names(read(server, START + SECOND)[0])
        pages["/metrics"] = LATER
        readings, _ = read(server, START + 2 * SECOND)
    name = "sglang:prefill_effective_tokens_total"
    hits, queries = (
        sum(series(LATER, name, mode)) - sum(series(BUSY, name, mode)) for mode in ('mode="device_hit"', "mode=")
    )
    assert values(readings, "otelperf.server.prefix_cache.hit_ratio") == [hits / queries]


def test_a_server_that_has_just_started_is_idle_and_tells_how_long_it_took() -> None:
    folder = "sglang-0.5.23-started"
    answers: Pages = {
        "/metrics": page(f"{folder}/idle.txt"),
        "/v1/models": page(f"{folder}/v1-models.json"),
        "/v1/loads": page(f"{folder}/v1-loads.json"),
    }
    with reading(SGLANG, answers) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.worker.state", {"otelperf.worker.state": "idle"}) == [1]
    assert values(readings, "otelperf.server.startup.duration", {"otelperf.server.startup.phase": "load_weight"}) == [
        21.5
    ]


def test_without_the_page_of_loads_the_metrics_are_all_there_is(pages: Pages) -> None:
    del pages["/v1/loads"]
    with reading(SGLANG, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert "otelperf.server.tokens" in names(readings)
    assert "otelperf.server.batch.limit" not in names(readings)


# -- metrics off


@pytest.fixture
def off() -> Pages:
    """Return what a server without --enable-metrics answers."""
    return {"/metrics": message("", "404 Not Found"), "/v1/models": MODELS, "/v1/loads": OFF}


def test_with_metrics_off_the_loads_are_read_and_the_cure_is_told(off: Pages) -> None:
    with reading(SGLANG, off) as (server, _):
        readings, said = read(server)
        assert server.up
    assert "start SGLang with --enable-metrics" in said
    assert values(readings, "otelperf.server.active_requests", {**RUNNING, "gen_ai.request.model": MODEL}) == [12]
    assert values(readings, "otelperf.server.active_requests", WAITING) == [3]
    assert values(readings, "otelperf.server.kv_cache.utilization") == [0.3333]
    assert values(readings, "otelperf.server.batch.limit") == [48]
    assert values(readings, "otelperf.worker.state") == [1, 0]


def test_with_metrics_off_rates_that_nobody_counts_are_not_told(off: Pages) -> None:
    with reading(SGLANG, off) as (server, _):
        read(server)
        readings, _ = read(server, START + SECOND)
    untold = {"token.throughput", "prefix_cache.hit_ratio", "speculative.acceptance_ratio"}
    assert {f"otelperf.server.{name}" for name in untold} & names(readings) == set()


@pytest.mark.parametrize("odd", [None, "8", True, -1, 2**60, float("nan"), float("inf"), [], {}], ids=repr)
def test_odd_numbers_in_the_loads_give_no_reading(off: Pages, odd: Any) -> None:
    fields = ("num_running_reqs", "num_waiting_reqs", "token_usage", "max_total_num_tokens", "max_running_requests")
    off["/v1/loads"] = load(**dict.fromkeys(fields, odd))
    with reading(SGLANG, off) as (server, _):
        readings, _ = read(server)
    assert names(readings) == {"otelperf.server.up"}


@pytest.mark.parametrize(
    "text", ["null", "[]", "{}", '{"loads": 5}', '{"loads": [5]}', '{"loads": [{}]}', "<html>", "["]
)
def test_an_odd_page_of_loads_is_told_and_the_server_is_not_up(off: Pages, text: str) -> None:
    off["/v1/loads"] = text
    with reading(SGLANG, off) as (server, _):
        readings, said = read(server)
    assert values(readings, "otelperf.server.up") == [0]
    assert "/v1/loads is not what sglang answers" in said


KEYS = (
    "loads",
    "dp_rank",
    "num_running_reqs",
    "num_waiting_reqs",
    "token_usage",
    "max_running_requests",
    "speculative",
)


@given(json_like(*KEYS, "accept_rate", "max_total_num_tokens"))
def test_any_loads_are_read_or_refused(content: object) -> None:
    for whole in (
        content,
        {"loads": [content]},
        {"loads": [{"dp_rank": 0, "num_running_reqs": 1, "num_waiting_reqs": content}]},
    ):
        reads_or_refuses(loads, whole)
        reads_or_refuses(limits, whole)


@given(json_like("data", "id", "max_model_len"))
def test_any_list_of_models_is_read_or_refused(content: object) -> None:
    for whole in (content, {"data": [content]}):
        reads_or_refuses(lambda models, _: SGLANG.facts_readings(facts(models)), whole)


# -- damaged


def test_after_a_restart_tokens_count_from_it(pages: Pages) -> None:
    with restarted(SGLANG, pages, "/metrics", LATER, BUSY) as (readings, loopback):
        [made] = series(BUSY, LIVE, 'mode="decode"')
        assert values(readings, "otelperf.server.token.throughput", OUTPUT) == [made / 2]
        assert loopback.paths.count("/v1/models") == 2


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ("sglang:num_queue_reqs", {"otelperf.server.active_requests"}),
        ("sglang:num_running_reqs", {"otelperf.server.active_requests", "otelperf.worker.state"}),
        ("sglang:token_usage", {"otelperf.server.kv_cache.utilization"}),
        ("sglang:queue_time_seconds", {"otelperf.server.queue.duration"}),
        ("sglang:num_retracted_requests_total", {"otelperf.server.preemptions"}),
        ("sglang:startup_time_seconds", {"otelperf.server.startup.duration"}),
    ],
)
def test_what_is_not_on_the_page_gives_no_reading(pages: Pages, kept: str, found: set[str]) -> None:
    pages["/metrics"] = keeping(BUSY, kept)
    del pages["/v1/loads"]
    with reading(SGLANG, pages) as (server, _):
        read(server)
        readings, said = read(server, START + SECOND)
    assert said == ""
    assert names(readings) == {"otelperf.server.up", "otelperf.server.context.limit", *found}


@ODD_VALUES
def test_odd_values_make_no_nonsense(pages: Pages, odd: str) -> None:
    shrugs_off(SGLANG, pages, "/metrics", odd)


def test_series_without_labels_are_read_as_far_as_they_can_be(pages: Pages) -> None:
    pages["/metrics"] = unlabelled(keeping(BUSY, "sglang:num_running_reqs", LIVE, "sglang:num_requests_total"))
    with reading(SGLANG, pages) as (server, _):
        readings, _ = read(server)
    assert values(readings, "otelperf.server.active_requests", RUNNING) == [12]
    assert values(readings, "otelperf.server.requests") == [16]
    assert "otelperf.server.tokens" not in names(readings)


def test_it_is_recognised_with_and_without_metrics() -> None:
    for text in (BUSY, TWO, page("sglang-0.5.23-started/idle.txt")):
        assert recognised({"/metrics": text}) == "sglang"
    assert recognised({"/v1/models": MODELS}) == "sglang"

"""The map of trtllm-serve."""

from __future__ import annotations

import pytest
from hypothesis import given

from otelperf.sources.engines.trtllm import TRTLLM, facts
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

PATH = "/prometheus/metrics"
BUSY, LATER = page("trtllm-050f80d/busy.txt"), page("trtllm-050f80d/later.txt")
IDLE, OLD, MODELS = page("trtllm-050f80d/idle.txt"), page("trtllm-1.1/busy.txt"), page("trtllm-1.1/v1-models.json")
HIT_RATIO = "otelperf.server.prefix_cache.hit_ratio"
HEALTHY: Pages = {PATH: BUSY, "/v1/models": MODELS}


def test_tokens_are_those_of_ended_requests(pages: Pages) -> None:
    with reading(TRTLLM, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.server.tokens", INPUT) == series(BUSY, "trtllm_prompt_tokens_total")
    assert values(readings, "otelperf.server.tokens", OUTPUT) == series(BUSY, "trtllm_generation_tokens_total")


def test_the_page_of_iterations_that_is_given_away_once_is_not_asked_for(pages: Pages) -> None:
    with reading(TRTLLM, pages) as (server, loopback):
        read(server)
        assert loopback.paths == [PATH, "/v1/models"]


def test_the_model_is_that_of_v1_models_whatever_the_label_says(pages: Pages) -> None:
    pages[PATH] = OLD
    with reading(TRTLLM, pages) as (server, _):
        readings, _ = read(server)
    assert 'model_name="undefined"' in OLD
    assert values(
        readings, "otelperf.server.requests", {"gen_ai.request.model": "meta-llama/Llama-3.1-8B-Instruct"}
    ) == [5, 13]


def test_the_names_without_a_prefix_are_read(pages: Pages) -> None:
    pages[PATH] = OLD
    with reading(TRTLLM, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert "trtllm_" not in "".join(line for line in OLD.splitlines() if not line.startswith("#"))
    assert names(readings) == {
        "otelperf.server.up",
        "otelperf.server.requests",
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "otelperf.server.queue.duration",
    }


def test_requests_are_told_by_reason_and_errors_by_code(pages: Pages) -> None:
    with reading(TRTLLM, pages) as (server, _):
        readings, _ = read(server)
    assert sum(values(readings, "otelperf.server.requests")) == 18
    assert values(readings, "otelperf.server.request.errors", {"error.type": "400"}) == [2]
    assert values(readings, "otelperf.server.request.errors", {"error.type": "500"}) == [1]


def test_of_two_processes_gauges_the_largest_counts(pages: Pages) -> None:
    dead = 'trtllm_num_requests_running{engine_type="trtllm",model_name="m",pid="17"} 3.0\n'
    pages[PATH] = BUSY + dead
    with reading(TRTLLM, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.server.active_requests", RUNNING) == [11]
    assert values(readings, "otelperf.server.active_requests", WAITING) == [2]


def test_the_hit_ratio_is_of_the_tokens_between_two_pages(pages: Pages) -> None:
    with reading(TRTLLM, pages) as (server, _):
        assert HIT_RATIO not in names(read(server)[0])
        assert HIT_RATIO not in names(read(server, START + SECOND)[0])
        pages[PATH] = LATER
        [ratio] = values(read(server, START + 2 * SECOND)[0], HIT_RATIO)
    hits, queries = (
        series(LATER, name)[0] - series(BUSY, name)[0]
        for name in ("trtllm_prompt_cached_tokens_total", "trtllm_prompt_tokens_total")
    )
    assert ratio == hits / queries


def test_where_cached_tokens_are_not_counted_the_hit_ratio_is_of_blocks(pages: Pages) -> None:
    blocks = ("trtllm_kv_cache_reused_blocks_total", "trtllm_kv_cache_missed_blocks_total")
    beside = "trtllm_num_requests_running"
    pages[PATH] = keeping(BUSY, *blocks, beside)
    with reading(TRTLLM, pages) as (server, _):
        read(server)
        pages[PATH] = keeping(LATER, *blocks, beside)
        [ratio] = values(read(server, START + SECOND)[0], HIT_RATIO)
    reused, missed = (series(LATER, name)[0] - series(BUSY, name)[0] for name in blocks)
    assert ratio == reused / (reused + missed)


def test_a_server_without_requests_yet_is_up(pages: Pages) -> None:
    pages[PATH] = IDLE
    with reading(TRTLLM, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.server.up") == [1]


def test_with_metrics_off_the_cure_is_told() -> None:
    with reading(TRTLLM, {"/v1/models": MODELS}) as (server, _):
        _, said = read(server)
    assert "return_perf_metrics: true" in said


def test_after_a_restart_tokens_count_from_it(pages: Pages) -> None:
    with restarted(TRTLLM, pages, PATH, LATER, BUSY) as (readings, loopback):
        [made] = series(BUSY, "trtllm_generation_tokens_total")
        assert values(readings, "otelperf.server.token.throughput", OUTPUT) == [made / 2]
        assert loopback.paths.count("/v1/models") == 2


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ("trtllm_num_requests_waiting", {"otelperf.server.active_requests"}),
        ("trtllm_max_num_active_requests", {"otelperf.server.batch.limit"}),
        ("trtllm_kv_cache_utilization", {"otelperf.server.kv_cache.utilization"}),
        ("trtllm_request_decode_time_seconds", {"otelperf.server.decode.duration"}),
        ("trtllm_request_error_total", {"otelperf.server.request.errors"}),
    ],
)
def test_what_is_not_on_the_page_gives_no_reading(pages: Pages, kept: str, found: set[str]) -> None:
    pages[PATH] = keeping(BUSY, kept)
    with reading(TRTLLM, pages) as (server, _):
        read(server)
        readings, said = read(server, START + SECOND)
    assert said == ""
    assert names(readings) == {"otelperf.server.up", *found}


@ODD_VALUES
def test_odd_values_make_no_nonsense(pages: Pages, odd: str) -> None:
    shrugs_off(TRTLLM, pages, PATH, odd)


def test_series_without_labels_are_one_stream(pages: Pages) -> None:
    pages[PATH] = unlabelled(BUSY)
    with reading(TRTLLM, pages) as (server, _):
        readings, _ = read(server)
    assert values(readings, "otelperf.server.requests") == [18]


@given(json_like("data", "id"))
def test_any_list_of_models_is_read_or_refused(content: object) -> None:
    reads_or_refuses(lambda models, _: TRTLLM.facts_readings(facts(models)), content)


def test_it_is_recognised_with_and_without_metrics() -> None:
    for text in (IDLE, BUSY, OLD):
        assert recognised({PATH: text}) == "trtllm"
    assert recognised({"/v1/models": MODELS}) == "trtllm"

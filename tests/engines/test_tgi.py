"""The map of Text Generation Inference."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from otelperf.sources.engines.tgi import TGI, facts
from tests.engines.pages import (
    INPUT,
    ODD_VALUES,
    OUTPUT,
    START,
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
    values,
)

BUSY, LATER, INFO = page("tgi-3.3/busy.txt"), page("tgi-3.3/later.txt"), page("tgi-3.3/info.json")
HEALTHY: Pages = {"/metrics": BUSY, "/info": INFO}


def test_tokens_are_the_sums_of_two_histograms(pages: Pages) -> None:
    with reading(TGI, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.server.tokens", INPUT) == series(BUSY, "tgi_request_input_length_sum")
    assert values(readings, "otelperf.server.tokens", OUTPUT) == series(BUSY, "tgi_request_generated_tokens_sum")


def test_histograms_keep_the_servers_bounds(pages: Pages) -> None:
    with reading(TGI, pages) as (server, _):
        readings, _ = read(server)
    [duration] = values(readings, "gen_ai.server.request.duration")
    assert duration.bounds == pytest.approx([0.0001 * 1.5**n for n in range(1, 36)])
    assert [duration.count] == series(BUSY, "tgi_request_duration_count")


def test_the_histogram_of_a_thousand_buckets_is_not_read(pages: Pages) -> None:
    assert not any(name.startswith("tgi_batch_next_size") for name in TGI.wanted())


def test_the_model_and_its_context_are_those_of_info(pages: Pages) -> None:
    with reading(TGI, pages) as (server, _):
        readings, _ = read(server)
    assert {r.attributes.get("gen_ai.request.model") for r in readings} == {None, json.loads(INFO)["model_id"]}
    assert values(readings, "otelperf.server.context.limit") == [4096]


def test_failures_have_the_words_of_all_servers_where_there_are_some(pages: Pages) -> None:
    with reading(TGI, pages) as (server, _):
        readings, _ = read(server)
    errors = {r.attributes["error.type"]: r.value for r in readings if r.name == "otelperf.server.request.errors"}
    assert errors == {"rejected": 3, "abort": 1, "validation": 2, "template": 0, "incomplete": 1, "generation": 0}


def test_a_server_that_has_just_started_is_up_and_says_what_it_holds(pages: Pages) -> None:
    pages["/metrics"] = page("tgi-3.3/idle.txt")
    with reading(TGI, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert names(readings) == {"otelperf.server.up", "otelperf.server.kv_cache.limit", "otelperf.server.context.limit"}


def test_info_behind_a_key_does_not_lose_the_metrics(pages: Pages) -> None:
    del pages["/info"]
    with reading(TGI, pages) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert "otelperf.server.tokens" in names(readings)
    assert {r.attributes.get("gen_ai.request.model") for r in readings} == {None}


def test_after_a_restart_tokens_count_from_it(pages: Pages) -> None:
    with restarted(TGI, pages, "/metrics", LATER, BUSY) as (readings, loopback):
        [made] = series(BUSY, "tgi_request_generated_tokens_sum")
        assert values(readings, "otelperf.server.token.throughput", OUTPUT) == [made / 2]
        assert loopback.paths.count("/info") == 2


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ("tgi_queue_size", {"otelperf.server.active_requests"}),
        ("tgi_request_queue_duration", {"otelperf.server.queue.duration"}),
        ("tgi_batch_current_size", {"otelperf.server.active_requests", "otelperf.worker.state"}),
        ("tgi_request_success", {"otelperf.server.requests"}),
    ],
)
def test_what_is_not_on_the_page_gives_no_reading(pages: Pages, kept: str, found: set[str]) -> None:
    pages["/metrics"] = keeping(BUSY, kept)
    with reading(TGI, pages) as (server, _):
        read(server)
        readings, _ = read(server, START + 1_000_000_000)
    assert names(readings) == {"otelperf.server.up", "otelperf.server.context.limit", *found}


@ODD_VALUES
def test_odd_values_make_no_nonsense(pages: Pages, odd: str) -> None:
    shrugs_off(TGI, pages, "/metrics", odd)


def test_a_failure_without_a_label_is_none_that_is_known(pages: Pages) -> None:
    pages["/metrics"] = BUSY + "tgi_request_failure 5\n"
    with reading(TGI, pages) as (server, _):
        assert sum(values(read(server)[0], "otelperf.server.request.errors")) == 7


@given(json_like("model_id", "max_total_tokens"))
def test_any_info_is_read_or_refused(content: object) -> None:
    reads_or_refuses(lambda info, _: TGI.facts_readings(facts(info)), content)


def test_it_is_recognised(pages: Pages) -> None:
    assert recognised({"/metrics": BUSY}) == "tgi"
    assert recognised({"/metrics": page("tgi-3.3/idle.txt")}) == "tgi"
    assert recognised({"/info": INFO}) == "tgi"

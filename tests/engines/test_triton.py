"""The map of Triton, alone and with the TensorRT-LLM and the vLLM backend."""

from __future__ import annotations

import pytest

from otelperf.sources.engines.triton import TRITON
from tests.engines.pages import (
    INPUT,
    ODD_VALUES,
    OUTPUT,
    RUNNING,
    SECOND,
    START,
    WAITING,
    keeping,
    names,
    page,
    read,
    reading,
    recognised,
    restarted,
    series,
    shrugs_off,
    unlabelled,
    values,
)

REAL = page("triton-2.51/five-requests.txt")
TRTLLM = page("triton-2.70-trtllm/busy.txt")
VLLM, VLLM_LATER = page("triton-2.70-vllm/busy.txt"), page("triton-2.70-vllm/later.txt")
MODEL = {"gen_ai.request.model": "tensorrt_llm"}


def test_times_are_in_seconds() -> None:
    with reading(TRITON, {"/metrics": REAL}) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.server.request.time") == [pytest.approx(0.095771)]
    assert values(readings, "otelperf.server.queue.time") == [pytest.approx(0.005217)]


def test_the_batch_is_inferences_by_executions_since_the_last_page() -> None:
    grown = (
        REAL.replace('count{model="dbl",version="1"} 5', 'count{model="dbl",version="1"} 17')
        .replace('exec_count{model="dbl",version="1"} 17', 'exec_count{model="dbl",version="1"} 8')
        .replace('success{model="dbl",version="1"} 5', 'success{model="dbl",version="1"} 17')
    )
    with reading(TRITON, pages := {"/metrics": REAL}) as (server, _):
        assert "otelperf.server.batch.size" not in names(read(server)[0])
        assert "otelperf.server.batch.size" not in names(read(server, START + SECOND)[0])  # nothing was executed
        pages["/metrics"] = grown
        assert values(read(server, START + 2 * SECOND)[0], "otelperf.server.batch.size") == [4.0]


@pytest.mark.parametrize("backend", ["triton-2.70-trtllm", "triton-2.70-vllm"])
def test_where_a_backend_batches_by_itself_executions_say_nothing(backend: str) -> None:
    with reading(TRITON, pages := {"/metrics": page(f"{backend}/busy.txt")}) as (server, _):
        read(server)
        pages["/metrics"] = page(f"{backend}/later.txt")
        assert "otelperf.server.batch.size" not in names(read(server, START + SECOND)[0])


def test_versions_and_gpus_of_a_model_are_added_up() -> None:
    text = "".join(
        f'nv_inference_request_success{{model="a",version="{version}",gpu_uuid="GPU-{gpu}"}} 10\n'
        for version in (1, 2)
        for gpu in (1, 2)
    )
    with reading(TRITON, {"/metrics": text}) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.server.requests", {"gen_ai.request.model": "a"}) == [40]


def test_failures_have_the_words_of_all_servers() -> None:
    with reading(TRITON, {"/metrics": TRTLLM}) as (server, _):
        readings, _ = read(server)
    errors = {
        r.attributes["error.type"]: r.value
        for r in readings
        if r.name == "otelperf.server.request.errors" and MODEL.items() <= r.attributes.items()
    }
    assert errors == {"rejected": 3, "abort": 2, "backend": 1, "_OTHER": 0}


def test_failures_of_releases_without_reasons_are_counted() -> None:
    with reading(TRITON, {"/metrics": 'nv_inference_request_failure{model="a",version="1"} 3\n'}) as (server, _):
        readings, _ = read(server)
    assert values(readings, "otelperf.server.request.errors", {"error.type": "_OTHER"}) == [3]


def test_with_tensorrt_llm_what_runs_and_waits_is_what_it_says() -> None:
    with reading(TRITON, {"/metrics": TRTLLM}) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.server.active_requests", {**MODEL, **RUNNING}) == [24]
    assert values(readings, "otelperf.server.active_requests", {**MODEL, **WAITING}) == [5]
    assert values(readings, "otelperf.server.batch.limit", MODEL) == [512]
    assert values(readings, "otelperf.server.batch.utilization", MODEL) == [24 / 512]
    assert values(readings, "otelperf.server.kv_cache.utilization", MODEL) == [0.25]
    assert values(readings, "otelperf.worker.state", {"otelperf.worker.id": "tensorrt_llm"}) == [1, 0]


def test_the_timestamp_that_always_changes_is_not_read() -> None:
    assert "nv_trt_llm_general_metrics" not in TRITON.wanted()


def test_without_it_what_waits_is_tritons_queue() -> None:
    text = REAL.replace(
        'pending_request_count{model="dbl",version="1"} 0', 'pending_request_count{model="dbl",version="1"} 6'
    )
    with reading(TRITON, {"/metrics": text}) as (server, _):
        assert values(read(server)[0], "otelperf.server.active_requests", WAITING) == [6]


def test_with_vllm_tokens_and_histograms_are_vllms() -> None:
    with reading(TRITON, {"/metrics": VLLM}) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert values(readings, "otelperf.server.tokens", INPUT) == series(VLLM, "vllm:prompt_tokens_total")
    assert values(readings, "otelperf.server.tokens", OUTPUT) == series(VLLM, "vllm:generation_tokens_total")
    [first] = values(readings, "gen_ai.server.time_to_first_token", {"gen_ai.request.model": "llama"})
    [between] = values(readings, "otelperf.server.inter_token.latency")
    assert [first.count] == series(VLLM, "vllm:time_to_first_token_seconds_count")
    assert [between.count] == series(VLLM, "vllm:time_per_output_token_seconds_count")


def test_the_time_to_the_first_answer_is_in_seconds() -> None:
    text = "".join(
        f'nv_inference_first_response_histogram_ms_{part}{{model="a",version="1"{more}}} {value}\n'
        for part, more, value in [
            ("count", "", 3),
            ("sum", "", 700),
            ("bucket", ',le="100"', 1),
            ("bucket", ',le="500"', 3),
            ("bucket", ',le="+Inf"', 3),
        ]
    )
    with reading(TRITON, {"/metrics": text}) as (server, _):
        [first] = values(read(server)[0], "gen_ai.server.time_to_first_token")
    assert (first.count, first.sum, first.bounds, first.counts) == (3, pytest.approx(0.7), (0.1, 0.5), (1, 2, 0))


def test_of_two_times_to_the_first_token_of_one_model_the_finer_is_taken() -> None:
    """vLLM behind a Triton that counts first responses as well; another model has those alone."""
    coarse = "".join(
        f'nv_inference_first_response_histogram_ms_{part}{{model="{model}",version="1"{more}}} {value}\n'
        for model in ("llama", "other")
        for part, more, value in [("sum", "", 700), ("bucket", ',le="100"', 1), ("bucket", ',le="+Inf"', 3)]
    )
    with reading(TRITON, {"/metrics": VLLM + coarse}) as (server, _):
        readings, said = read(server)
    assert said == ""
    [first] = values(readings, "gen_ai.server.time_to_first_token", {"gen_ai.request.model": "llama"})
    assert [first.count] == series(VLLM, "vllm:time_to_first_token_seconds_count")
    [other] = values(readings, "gen_ai.server.time_to_first_token", {"gen_ai.request.model": "other"})
    assert other.bounds == (0.1,)


def test_after_a_restart_tokens_count_from_it() -> None:
    with restarted(TRITON, {}, "/metrics", VLLM_LATER, VLLM) as (readings, _):
        [made] = series(VLLM, "vllm:generation_tokens_total")
        assert values(readings, "otelperf.server.token.throughput", OUTPUT) == [made / 2]


@pytest.mark.parametrize(
    ("text", "kept", "found"),
    [
        (REAL, "nv_inference_request_success", {"otelperf.server.requests"}),
        (REAL, "nv_inference_queue_duration_us", {"otelperf.server.queue.time"}),
        (TRTLLM, "nv_trt_llm_kv_cache_block_metrics", {"otelperf.server.kv_cache.utilization"}),
        (TRTLLM, "nv_model_load_duration_secs", {"otelperf.server.startup.duration"}),
        (VLLM, "vllm:generation_tokens_total", {"otelperf.server.tokens", "otelperf.server.token.throughput"}),
    ],
)
def test_what_is_not_on_the_page_gives_no_reading(text: str, kept: str, found: set[str]) -> None:
    sign = "# TYPE nv_inference_count counter\n"
    with reading(TRITON, {"/metrics": sign + keeping(text, kept)}) as (server, _):
        read(server)
        readings, said = read(server, START + SECOND)
    assert said == ""
    assert names(readings) == {"otelperf.server.up", *found}


@ODD_VALUES
@pytest.mark.parametrize("text", [REAL, TRTLLM, VLLM], ids=["alone", "trtllm", "vllm"])
def test_odd_values_make_no_nonsense(text: str, odd: str) -> None:
    shrugs_off(TRITON, {"/metrics": text}, "/metrics", odd)


def test_series_without_labels_are_read_as_far_as_they_can_be() -> None:
    with reading(TRITON, {"/metrics": unlabelled(TRTLLM)}) as (server, _):
        readings, _ = read(server)
    assert values(readings, "otelperf.server.kv_cache.utilization") == []
    assert values(readings, "otelperf.server.requests") == [24 + 27]


def test_it_is_recognised_before_vllm() -> None:
    for text in (REAL, TRTLLM, VLLM):
        assert recognised({"/metrics": text}) == "triton"

"""A map of one's own: what the settings file says is what is read, of a new server or of one that is known under other names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from otelperf import catalog
from otelperf.agent import make_engines
from otelperf.config import load
from otelperf.readings import Reading
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import Engine, States, Take
from otelperf.sources.engines.own_maps import engine_of
from otelperf.sources.engines.recognise import recognise
from otelperf.sources.engines.server import Server
from tests.engines.loopback import Loopback, saying
from tests.engines.pages import INPUT, OUTPUT, SECOND, START, page, read, reading, values

HISTOGRAMS = frozenset(row.name for row in catalog.SERVER if row.kind == "histogram")
ACME = """
server:
  passthrough: acme_queue
  maps:
  - name: acme
    pattern: ^acme_
    ports: [9000]
    labels: {model: gen_ai.request.model}
    passthrough: [acme_experts_*]
    started: process_start_time_seconds
    items:
    - {metric: otelperf.server.tokens, series: [acme_out_tokens_total, acme_out_total], attributes: {gen_ai.token.type: output}}
    - {metric: otelperf.server.token.throughput, rate: acme_out_total, attributes: {gen_ai.token.type: output}}
    - {metric: gen_ai.server.time_to_first_token, series: acme_ttft_ms, scale: 0.001}
    - {metric: otelperf.server.prefix_cache.queries, sum: [acme_hits_total, acme_misses_total]}
    - {metric: otelperf.server.prefix_cache.hit_ratio, ratio: {part: acme_hits_total, whole: [acme_hits_total, acme_misses_total]}}
    - {metric: otelperf.server.batch.utilization, ratio: {part: acme_running, whole: acme_slots, growth: false}}
    - metric: otelperf.server.request.errors
      series: acme_http_total
      labels: {code: error.type}
      only: {code: ["400", "500"]}
      combine: sum
      zero: true
    - {metric: otelperf.server.kv_cache.limit, series: acme_info, number: tokens}
    - states: {running: acme_running, sleeping: {series: acme_mode, only: {mode: [sleep, off]}}}
"""
PAGE = """process_start_time_seconds 1.6e9
acme_out_total{{model="m"}} {out}
acme_ttft_ms_bucket{{model="m",le="100"}} 3
acme_ttft_ms_bucket{{model="m",le="+Inf"}} 4
acme_ttft_ms_sum{{model="m"}} 400
acme_hits_total {hits}
acme_misses_total {misses}
acme_running{{model="m"}} 2
acme_slots{{model="m"}} 8
acme_mode{{model="m",mode="sleep"}} 1
acme_http_total{{code="200",path="/a"}} 5
acme_http_total{{code="500",path="/a"}} {errors}
acme_http_total{{code="500",path="/b"}} 1
acme_info{{tokens="4096"}} 1
# TYPE acme_experts_active gauge
acme_experts_active{{layer="1"}} 3
# TYPE acme_queue gauge
acme_queue 0
"""


@pytest.fixture
def engines(tmp_path: Path) -> tuple[Engine, ...]:
    file = tmp_path / "settings.yaml"
    file.write_text(ACME)
    return make_engines(load(file=file))


def made(given: Mapping[str, object]) -> Engine:
    return engine_of(given, ENGINES, HISTOGRAMS)


def test_a_map_in_the_settings_file_reads_a_server_that_nobody_made_one_for(engines: tuple[Engine, ...]) -> None:
    pages: dict[str, bytes | str] = {"/metrics": PAGE.format(out=10, hits=1, misses=1, errors=0)}
    model = {"gen_ai.request.model": "m"}
    with reading(engines[0], pages) as (server, _):
        read(server)
        pages["/metrics"] = PAGE.format(out=30, hits=4, misses=2, errors=2)
        readings, said = read(server, START + 2 * SECOND)
    assert said == ""
    found = {(r.name, tuple(sorted(r.attributes.items()))): r for r in readings}

    def value(name: str, **attributes: str) -> object:
        return found[name, tuple(sorted((k.replace("__", "."), v) for k, v in attributes.items()))].value

    assert values(readings, "otelperf.server.tokens", {**OUTPUT, **model}) == [30]
    assert values(readings, "otelperf.server.token.throughput", {**OUTPUT, **model}) == [10.0]
    [first] = values(readings, "gen_ai.server.time_to_first_token", model)
    assert (first.count, first.sum, first.bounds) == (4, 0.4, (0.1,))
    assert value("otelperf.server.prefix_cache.queries") == 6
    assert value("otelperf.server.prefix_cache.hit_ratio") == 0.75
    assert values(readings, "otelperf.server.batch.utilization", model) == [0.25]
    assert value("otelperf.server.request.errors", error__type="500") == 3
    assert value("otelperf.server.kv_cache.limit") == 4096
    assert [r.attributes["otelperf.worker.state"] for r in readings if "worker" in r.name and r.value] == ["sleeping"]
    assert {r.start for r in readings if r.name == "otelperf.server.tokens"} == {1_600_000_000 * SECOND}
    assert {(r.name, r.value) for r in readings if r.native} == {("acme_experts_active", 3), ("acme_queue", 0)}


def test_a_map_of_ones_own_comes_before_the_others_and_all_pass_through_what_is_wanted_of_all(
    engines: tuple[Engine, ...],
) -> None:
    assert [engine.name for engine in engines] == ["acme", *(engine.name for engine in ENGINES)]
    assert [engine.native for engine in engines] == [
        ("acme_experts_*", "acme_queue"),
        *[("acme_queue",)] * len(ENGINES),
    ]


def test_its_server_is_recognised(engines: tuple[Engine, ...]) -> None:
    text = PAGE.format(out=1, hits=1, misses=1, errors=0)
    with Loopback(saying({"/metrics": text})) as loopback:
        server = Server(loopback.url, None, engines=engines)
        read(server)
        server.close()
    assert server.engine
    assert server.engine.name == "acme"


def told(engine: Engine, pages: Mapping[str, bytes | str]) -> list[Reading]:
    """Return what two readings give."""
    with reading(engine, pages) as (server, _):
        read(server)
        readings, said = read(server, START + SECOND)
    assert said == ""
    return readings


@pytest.mark.parametrize(
    ("name", "old", "new", "path", "others"),
    [
        ("vllm", "vllm:", "my_vllm_", "vllm-0.32.0/busy.txt", {"/v1/models": "vllm-0.32.0/v1-models.json"}),
        (
            "sglang",
            "sglang:",
            "sglang_",
            "sglang-0.5.23-dp2/busy.txt",
            {"/v1/models": "sglang-0.5.23-dp2/v1-models.json"},
        ),
        (
            "llama.cpp",
            "llamacpp:",
            "llama_",
            "llama.cpp-11434/one-request.txt",
            {"/props": "llama.cpp-11434/props.json", "/slots": "llama.cpp-11434/slots.json"},
        ),
    ],
)
def test_a_known_server_under_other_names_is_read_as_ever(
    name: str, old: str, new: str, path: str, others: Mapping[str, str]
) -> None:
    more = {where: page(file) for where, file in others.items()}
    known = next(engine for engine in ENGINES if engine.name == name)
    renamed = made({"name": "mine", "extends": name, "rename": {old: new}})
    text = page(path)
    expected = told(known, {known.metrics_path: text, **more})
    assert told(renamed, {known.metrics_path: text.replace(old, new), **more}) == expected
    assert len(expected) > 8
    assert renamed.series() == {series.replace(old, new) for series in known.series()}


def test_a_renamed_server_is_recognised_by_its_names() -> None:
    renamed = made({"name": "mine", "extends": "vllm", "rename": {"vllm:": "my_vllm_"}})
    for text, expected in (("# TYPE my_vllm_x gauge\n", "mine"), ("vllm:x 1\n", "vllm")):
        with Loopback(saying({"/metrics": text})) as loopback:
            server = Server(loopback.url, None, engines=(renamed, *ENGINES))
            recognised = recognise(server._get, (renamed, *ENGINES)).engine
            server.close()
        assert recognised
        assert recognised.name == expected


def test_a_map_that_extends_one_adds_to_it() -> None:
    vllm = next(engine for engine in ENGINES if engine.name == "vllm")
    item = {"metric": "otelperf.server.batch.limit", "series": "acme_max_num_seqs"}
    extended = made({"name": "mine", "extends": "vllm", "items": [item], "labels": {"pod": "acme.pod"}})
    assert extended.items == (*vllm.items, Take("acme_max_num_seqs", "otelperf.server.batch.limit"))
    assert extended.labels == {**vllm.labels, "pod": "acme.pod"}
    assert (extended.prints, extended.ports, extended.facts_path) == (vllm.prints, vllm.ports, vllm.facts_path)
    pages = {"/metrics": page("vllm-0.32.0/busy.txt") + "acme_max_num_seqs 256\n"}
    assert values(told(extended, pages), "otelperf.server.batch.limit") == [256]


def test_another_page_is_where_the_fingerprint_is_looked_for() -> None:
    moved = made({"name": "mine", "extends": "vllm", "page": "/inner/metrics"})
    assert [mark.path for mark in moved.prints] == ["/inner/metrics"]
    pages = {"/inner/metrics": page("vllm-0.32.0/busy.txt")}
    assert values(told(moved, pages), "otelperf.server.tokens", INPUT)


def test_states_of_several_workers_are_told_apart_by_their_label() -> None:
    item = {"states": {"running": {"series": "a_running"}, "worker": "rank"}}
    engine = made({"name": "a", "pattern": "^a_", "labels": {"rank": "acme.rank"}, "items": [item]})
    assert isinstance(engine.items[0], States)
    readings = told(engine, {"/metrics": 'a_running{rank="0"} 1\na_running{rank="1"} 0\n'})
    active = {
        r.attributes["otelperf.worker.id"]
        for r in readings
        if r.attributes.get("otelperf.worker.state") == "active" and r.value
    }
    assert active == {"0"}

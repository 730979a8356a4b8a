"""The settings server.maps and server.passthrough: what is understood, and how each fault is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from otelperf.config import Settings, load, schema
from otelperf.config_maps import _ATTRIBUTES, ENGINES, MAPS
from otelperf.config_values import UnfitError
from otelperf.errors import ConfigError
from otelperf.sources import engines
from otelperf.sources.engines.own_maps import engine_of

WHOLE = """
server:
  maps:
  - name: acme
    page: /stats
    pattern: ^acme_
    ports: [9000, 9001]
    labels: {model: gen_ai.request.model, rank: otelperf.server.engine.index}
    passthrough: [acme_experts_*]
    counters: [acme_out_total]
    steps: [acme_out_total]
    started: process_start_time_seconds
    items:
    - {metric: otelperf.server.tokens, series: [acme_out_total, acme_out], attributes: {gen_ai.token.type: output}}
    - {metric: otelperf.server.token.throughput, rate: {series: acme_out_total, only: {kind: real}}}
    - {metric: gen_ai.server.time_to_first_token, series: acme_ttft_ms, scale: 0.001, combine: sum}
    - {metric: otelperf.server.prefix_cache.queries, sum: [acme_hits_total, acme_misses_total]}
    - {metric: otelperf.server.batch.utilization, ratio: {part: acme_running, whole: acme_slots, growth: false}}
    - {metric: otelperf.server.request.errors, series: acme_http, labels: {code: error.type}, only: {code: ["500"]}, zero: true}
    - {metric: otelperf.server.kv_cache.limit, series: acme_info, number: tokens}
    - states: {running: acme_running, sleeping: {series: acme_mode, only: {mode: [sleep, off]}}, worker: rank}
  - name: renamed
    extends: vllm
    rename: {"vllm:": "my_vllm_"}
"""
GOOD = {"name": "a", "pattern": "^a_", "items": [{"metric": "otelperf.server.tokens", "series": "a_total"}]}


def loaded(text: str, tmp_path: Path, **environ: str) -> Settings:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return load(environ=environ, file=file)


def problems(maps: Any, tmp_path: Path) -> list[str]:
    """Return what is said of *maps*, without where they are."""
    with pytest.raises(ConfigError) as caught:
        loaded(json.dumps({"server": {"maps": maps}}), tmp_path)
    return [line.partition("): ")[2] for line in str(caught.value).splitlines()]


def test_a_map_is_read(tmp_path: Path) -> None:
    acme, renamed = loaded(WHOLE, tmp_path).server.maps
    assert acme["ports"] == [9000, 9001]
    assert acme["items"][2] == {
        "metric": "gen_ai.server.time_to_first_token",
        "series": "acme_ttft_ms",
        "scale": 0.001,
        "combine": "sum",
    }
    assert acme["items"][4]["ratio"] == {
        "part": [{"series": "acme_running"}],
        "whole": [{"series": "acme_slots"}],
        "growth": False,
    }
    assert renamed == {"name": "renamed", "extends": "vllm", "rename": {"vllm:": "my_vllm_"}}


def test_a_map_that_is_right_fits_the_schema_and_is_shown_so_that_it_reads_back(tmp_path: Path) -> None:
    jsonschema.validate(yaml.safe_load(WHOLE), schema())
    maps = loaded(WHOLE, tmp_path).server.maps
    again = loaded(json.dumps({"server": {"maps": MAPS.plain(maps)}}), tmp_path).server.maps
    assert again == maps


def test_the_engines_known_here_are_the_engines_there_are() -> None:
    assert [engine.name for engine in engines.ENGINES] == list(ENGINES)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": None}, "in map 1 expected name, what the server is to be called"),
        ({"name": "A b"}, "in map 1 name is 'A b': expected a name of small letters, digits, . _ and -"),
        (
            {"name": "vllm"},
            "in map 1 name is 'vllm': expected another name than auto, " + ", ".join(ENGINES),
        ),
        ({"nane": "x"}, "in map 1 nane is unknown, did you mean name?"),
        ({"extends": "vlm"}, f"in map 1 extends is 'vlm': expected one of {', '.join(ENGINES)}, did you mean vllm?"),
        ({"rename": {"a": "b"}}, "in map 1 rename has no meaning without extends"),
        (
            {"items": [{"states": {"running": "a_running", "worker": "rank"}}]},
            (
                "in map 1 worker is 'rank': its workers would be one, expected it in labels as well, "
                "such as labels: {rank: otelperf.server.engine.index}"
            ),
        ),
        ({"page": "metrics"}, "in map 1 page is 'metrics': expected a path such as /metrics"),
        (
            {"pattern": None},
            "in map 1 expected pattern, what is found on the page of this server and no other, or extends",
        ),
        (
            {"pattern": "a*"},
            "in map 1 pattern is 'a*': expected a regular expression that not every page has, such as ^mine_",
        ),
        ({"ports": [0]}, "in map 1 ports is ['0']: expected a list of ports from 1 to 65535"),
        ({"labels": {"a-b": "c"}}, "in map 1 labels is 'a-b': expected the name of a label"),
        (
            {"passthrough": ["a.b"]},
            "in map 1 passthrough: a.b: expected names of series as they are on the server's page, or globs",
        ),
        ({"items": []}, "in map 1 expected items or passthrough: it would read nothing"),
        ({"items": "x"}, "in map 1 items: expected a list of mappings"),
        ({"items": ["x"]}, "in map 1 item 1: expected a mapping"),
    ],
)
def test_a_wrong_map_is_told_with_the_value_and_what_to_do(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert problems([{**GOOD, **change}], tmp_path) == [expected]


TOKENS = {"metric": "otelperf.server.tokens"}
FIRST = {"metric": "gen_ai.server.time_to_first_token"}
MEANT = "expected a server's metric of docs/metrics.md (what none is like goes by passthrough)"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({**TOKENS}, "expected one of series, sum, rate, ratio, states"),
        (
            {**TOKENS, "series": "a", "rate": "b"},
            "expected one of series, sum, rate, ratio, states, not series and rate",
        ),
        ({"series": "a"}, MEANT),
        (
            {"metric": "otelperf.server.up", "series": "a"},
            "metric is 'otelperf.server.up': otelperf makes it itself",
        ),
        (
            {"metric": "otelperf.server.tokenz", "series": "a"},
            "metric is 'otelperf.server.tokenz': " + MEANT.replace(" (", ", did you mean otelperf.server.tokens? ("),
        ),
        (
            {"metric": "system.cpu.time", "series": "a"},
            "metric is 'system.cpu.time': " + MEANT,
        ),
        ({**TOKENS, "rate": "a"}, "metric is 'otelperf.server.tokens', a counter: rate makes a gauge"),
        ({**TOKENS, "series": "a b"}, "series is 'a b': expected the name of a series as it is on the page"),
        ({**TOKENS, "series": []}, "series is []: expected at least one series"),
        (
            {**TOKENS, "series": "a", "scale": -1},
            "scale is '-1': expected a number above 0, by which the server's values are multiplied",
        ),
        ({**TOKENS, "series": "a", "combine": "avg"}, "combine is 'avg': expected one of first, sum, max"),
        ({**TOKENS, "series": "a", "zero": "maybe"}, "zero is 'maybe': expected true or false"),
        (
            {**TOKENS, "series": "a", "only": {"b": {}}},
            "only is {'b': {}}: expected a mapping of labels to the values wanted",
        ),
        ({**TOKENS, "sum": ["a"], "zero": True}, "zero has no meaning beside sum"),
        (
            {"metric": "gen_ai.server.time_to_first_token", "series": "a_bucket"},
            "series is 'a_bucket': expected the histogram's name, without _bucket",
        ),
        (
            {"metric": "gen_ai.server.time_to_first_token", "series": "a", "combine": "max"},
            "combine is 'max': histograms can be added up (sum) or not",
        ),
        (
            {**FIRST, "sum": "a"},
            "metric is 'gen_ai.server.time_to_first_token', a histogram: expected series, a histogram's name",
        ),
        ({"states": {"sleeping": "a"}}, "states: expected running as well"),
        ({"states": "a"}, "states: expected a mapping of running, sleeping, worker"),
        (
            {"metric": "otelperf.server.up", "states": {"running": "a"}},
            "metric is 'otelperf.server.up': leave it out, states are otelperf.worker.state",
        ),
        ({"metric": "otelperf.server.prefix_cache.hit_ratio", "ratio": {"part": "a"}}, "ratio: expected whole as well"),
    ],
)
def test_a_wrong_item_is_told_with_the_value_and_what_to_do(
    item: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert problems([{**GOOD, "items": [*GOOD["items"], item]}], tmp_path) == [f"in map 1 item 2: {expected}"]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("gen_ai.token.typ", "gen_ai.token.type"),
        ("gen_ai.request.modell", "gen_ai.request.model"),
        ("otelperf.finish.reason", "otelperf.finish_reason"),
        ("error.typ", "error.type"),
    ],
)
def test_an_attribute_that_is_a_letter_off_is_refused_at_its_place(wrong: str, meant: str, tmp_path: Path) -> None:
    expected = f"is '{wrong}': expected {meant}, or an attribute's name that is less like it"
    assert problems([{**GOOD, "labels": {"a": wrong}}], tmp_path) == [f"in map 1 labels {expected}"]
    for key, value in (("attributes", {wrong: "x"}), ("labels", {"a": wrong})):
        item = {"metric": "otelperf.server.tokens", "series": "b", key: value}
        assert problems([{**GOOD, "items": [*GOOD["items"], item]}], tmp_path) == [f"in map 1 item 2: {key} {expected}"]


def test_attributes_of_ones_own_are_taken(tmp_path: Path) -> None:
    names = dict.fromkeys(("tenant", "gen_ai.response.model", "acme.request.state", *_ATTRIBUTES), "x")
    item = {"metric": "otelperf.server.tokens", "series": "a_total", "attributes": names}
    (found,) = loaded(json.dumps({"server": {"maps": [{**GOOD, "items": [item]}]}}), tmp_path).server.maps
    assert found["items"][0]["attributes"] == names


def test_the_attributes_known_here_are_those_of_the_maps_there_are() -> None:
    known: set[str] = set()
    for engine in engines.ENGINES:
        known |= set(engine.labels.values())
        for item in engine.items:
            known |= {*getattr(item, "attributes", ()), *getattr(item, "labels", {}).values()}
    assert sorted(known) == list(_ATTRIBUTES)


def test_all_faults_are_told_at_once_each_in_a_line(tmp_path: Path) -> None:
    wrong = [{"name": "a", "pattern": "(", "ports": "x", "items": [{}, {}]}, {"name": "b"}, 7]
    assert len(problems(wrong, tmp_path)) == 7


def test_two_maps_of_one_name_are_refused(tmp_path: Path) -> None:
    assert problems([GOOD, GOOD], tmp_path) == ["two maps are named a, expected each name once"]


_KEYS = [
    "name",
    "extends",
    "rename",
    "page",
    "pattern",
    "ports",
    "labels",
    "passthrough",
    "counters",
    "started",
    "items",
]
_KEYS += [
    "metric",
    "series",
    "sum",
    "rate",
    "ratio",
    "states",
    "only",
    "combine",
    "scale",
    "zero",
    "number",
    "part",
    "whole",
]
_TEXTS = ["a", "vllm", "^a", "(", "/a", "9000", "0.5", "-1", "true", "", "a b", "otelperf.server.tokens", "é"]
_ANY = st.recursive(
    st.none() | st.sampled_from(_TEXTS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=15,
)
_ITEMS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(_KEYS[11:], _ANY)), max_size=2)
_MAPS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(_TEXTS), "pattern": st.just("^a"), "items": _ITEMS},
        optional={key: _ANY for key in _KEYS[1:10] if key != "pattern"},
    )
    | _ANY,
    max_size=2,
)


@given(_MAPS)
def test_whatever_is_written_is_understood_or_refused_in_words(content: Any) -> None:
    """What is understood makes an engine."""
    maps: Sequence[Mapping[str, Any]] = ()
    told: Sequence[str] = ()
    try:
        maps = MAPS.parse(content)
    except UnfitError as error:
        told = error.args
    assert all(line.startswith(("in map", "two maps")) for line in told)
    assert [engine_of(each, engines.ENGINES, frozenset()).name for each in maps] == [each["name"] for each in maps]


def test_maps_are_for_the_file_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.maps can only be set in the settings file"):
        loaded("", tmp_path, OTELPERF_SERVER_MAPS="[]")


def test_the_engine_may_be_a_map_of_ones_own(tmp_path: Path) -> None:
    assert loaded(f"{WHOLE}  engine: acme\n", tmp_path).server.engine == "acme"
    with pytest.raises(
        ConfigError, match=r"server.engine is acne .*: expected one of auto, acme, .*, did you mean acme\?"
    ):
        loaded(f"{WHOLE}  engine: acne\n", tmp_path)


def test_series_to_pass_through_are_globs(tmp_path: Path) -> None:
    assert loaded("", tmp_path, OTELPERF_SERVER_PASSTHROUGH="vllm:*,up").server.passthrough == ("vllm:*", "up")
    with pytest.raises(ConfigError, match=r"gen_ai\.\*: expected names of series as they are on the server's page"):
        loaded("", tmp_path, OTELPERF_SERVER_PASSTHROUGH="vllm:*,gen_ai.*")


def test_a_server_of_which_nothing_would_be_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.mapped is false .* nothing of a server would be sent"):
        loaded("", tmp_path, OTELPERF_SERVER_MAPPED="false")
    assert not loaded("", tmp_path, OTELPERF_SERVER_MAPPED="false", OTELPERF_SERVER_PASSTHROUGH="vllm:*").server.mapped

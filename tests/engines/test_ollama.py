"""The map of Ollama."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from otelperf.sources.engines.ollama import OLLAMA, loaded
from tests.engines.pages import (
    SECOND,
    START,
    json_like,
    names,
    page,
    read,
    reading,
    reads_or_refuses,
    recognised,
    values,
)

TWO, NONE = page("ollama-2026-08/api-ps.json"), page("ollama-2026-08-empty/api-ps.json")
MEMORY = "otelperf.server.model.memory"


def listing(**changed: Any) -> str:
    """Return the page with its first model changed."""
    content = json.loads(TWO)
    content["models"][0] |= changed
    return json.dumps(content)


def test_a_models_memory_is_on_the_gpu_and_beside_it() -> None:
    with reading(OLLAMA, {"/api/ps": TWO}) as (server, _):
        readings, said = read(server)
    assert said == ""
    models = {model["name"]: model for model in json.loads(TWO)["models"]}
    for name, model in models.items():
        of = {"gen_ai.request.model": name}
        gpu, host = model["size_vram"], model["size"] - model["size_vram"]
        assert values(readings, MEMORY, {**of, "otelperf.memory.kind": "gpu"}) == [gpu]
        assert values(readings, MEMORY, {**of, "otelperf.memory.kind": "host"}) == [host]
        assert values(readings, "otelperf.server.context.limit", of) == [model["context_length"]]


def test_nothing_else_is_asked_for() -> None:
    with reading(OLLAMA, {"/api/ps": TWO}) as (server, loopback):
        read(server)
        read(server, START + SECOND)
        assert loopback.paths == ["/api/ps", "/api/ps"]


@pytest.mark.parametrize("text", [NONE, '{"models": null}'])
def test_without_a_loaded_model_it_is_up(text: str) -> None:
    with reading(OLLAMA, {"/api/ps": text}) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert [(r.name, r.value) for r in readings] == [("otelperf.server.up", 1), ("otelperf.server.models", 0)]


def test_a_server_that_refuses_the_connection_is_down() -> None:
    with reading(OLLAMA, {"/api/ps": TWO}) as (server, _):
        read(server)
    readings, said = read(server, START + SECOND)
    server.close()
    assert [(r.name, r.value) for r in readings] == [("otelperf.server.up", 0)]
    assert "/api/ps" in said or server.url in said


def test_a_model_that_is_unloaded_is_gone_from_the_next_reading() -> None:
    with reading(OLLAMA, pages := {"/api/ps": TWO}) as (server, _):
        read(server)
        pages["/api/ps"] = NONE
        readings, _ = read(server, START + SECOND)
    assert names(readings) == {"otelperf.server.up", "otelperf.server.models"}


def test_releases_without_a_context_length_tell_none() -> None:
    content = json.loads(TWO)
    for model in content["models"]:
        del model["context_length"]
    with reading(OLLAMA, {"/api/ps": json.dumps(content)}) as (server, _):
        readings, said = read(server)
    assert said == ""
    assert "otelperf.server.context.limit" not in names(readings)
    assert MEMORY in names(readings)


@pytest.mark.parametrize("odd", [None, "8", True, -1, 2**60, 1.5, float("nan"), float("inf"), [], {}], ids=repr)
def test_odd_numbers_give_no_reading(odd: Any) -> None:
    pages = {"/api/ps": listing(size=odd, size_vram=odd, context_length=odd)}
    with reading(OLLAMA, pages) as (server, _):
        readings, _ = read(server)
    first = {"gen_ai.request.model": "llama3.1:8b"}
    assert values(readings, MEMORY, first) == []
    assert values(readings, "otelperf.server.context.limit", first) == []
    assert values(readings, "otelperf.server.models") == [2]


def test_more_on_the_gpu_than_there_is_leaves_nothing_beside_it() -> None:
    with reading(OLLAMA, {"/api/ps": listing(size=5, size_vram=10)}) as (server, _):
        readings, _ = read(server)
    assert values(readings, MEMORY, {"gen_ai.request.model": "llama3.1:8b"}) == [10]


@pytest.mark.parametrize(
    "text", ["null", "[]", "{}", '{"models": 5}', '{"models": [5]}', '{"models": [{}]}', "<html>", "["]
)
def test_an_odd_page_is_told_and_the_server_is_not_up(text: str) -> None:
    with reading(OLLAMA, {"/api/ps": text}) as (server, _):
        readings, said = read(server)
    assert values(readings, "otelperf.server.up") == [0]
    assert "/api/ps" in said


def test_a_thousand_models_are_told_to_a_limit() -> None:
    model = json.loads(TWO)["models"][0]
    many = json.dumps({"models": [{**model, "name": f"m{n}"} for n in range(1000)]})
    with reading(OLLAMA, {"/api/ps": many}) as (server, _):
        readings, _ = read(server)
    assert values(readings, "otelperf.server.models") == [1000]
    assert len(values(readings, "otelperf.server.context.limit")) == 256


@given(json_like("models", "name", "size", "size_vram", "context_length"))
def test_any_listing_is_read_or_refused(content: object) -> None:
    reads_or_refuses(loaded, content)


def test_it_is_recognised() -> None:
    assert recognised({"/api/ps": TWO}) == "ollama"
    assert recognised({"/api/ps": NONE}) == "ollama"

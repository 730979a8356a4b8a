"""The source of an inference server, against healthy and hostile ones."""

from __future__ import annotations

import gzip
import json
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from otelperf.errors import SourceError, SourceFailed, SourceFlawed
from otelperf.readings import NO_ATTRIBUTES, Attributes, Reading
from otelperf.sources.engines.llamacpp import LLAMACPP
from otelperf.sources.engines.server import Server
from tests.engines.loopback import Loopback, message, saying

CAPTURE = Path(__file__).resolve().parent.parent / "captures" / "llama.cpp-11434"
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
UP, DOWN = Reading("otelperf.server.up", 1), Reading("otelperf.server.up", 0)
OUTPUT = {"gen_ai.token.type": "output"}

Pages = dict[str, bytes | str]


@pytest.fixture
def pages() -> Pages:
    """Return what a healthy server answers, to be changed."""
    return {
        "/metrics": (CAPTURE / "one-request.txt").read_text(),
        "/slots": (CAPTURE / "slots.json").read_text(),
        "/props": (CAPTURE / "props.json").read_text(),
    }


@contextmanager
def reading(pages: Pages, **limits: Any) -> Iterator[tuple[Server, Loopback]]:
    with Loopback(saying(pages)) as loopback:
        server = Server(loopback.url, LLAMACPP, **limits)
        try:
            yield server, loopback
        finally:
            server.close()


def failing(server: Server, now: int = START) -> SourceError:
    with pytest.raises(SourceError) as caught:
        server.read(now)
    return caught.value


def names(readings: Any) -> set[str]:
    return {reading.name for reading in readings}


def values(readings: Any, name: str, attributes: Attributes = NO_ATTRIBUTES) -> list[Any]:
    return [r.value for r in readings if r.name == name and attributes.items() <= r.attributes.items()]


def counters(tokens: float = 0, decodes: float = 0, busy: float = 0) -> str:
    return (
        f"llamacpp:prompt_tokens_total 0\nllamacpp:tokens_predicted_total {tokens}\n"
        f"llamacpp:n_decode_total {decodes}\nllamacpp:n_busy_slots_per_decode {busy}\n"
    )


# -- healthy


def test_one_connection_carries_one_request_at_a_time(pages: Pages) -> None:
    with reading(pages) as (server, loopback):
        for second in range(5):
            server.read(START + second * SECOND)
        assert (loopback.connections, loopback.most_at_once) == (1, 1)
        assert loopback.paths == ["/metrics", "/props", "/slots"] + ["/metrics", "/slots"] * 4


def test_nothing_but_plain_gets_are_sent(pages: Pages) -> None:
    with reading(pages) as (server, loopback):
        server.read(START)
        for request in loopback.headers:
            assert request.startswith(b"GET ")
            assert b"Accept-Encoding: identity" in request
            assert b"User-Agent: otelperf" in request


def test_the_pages_are_below_the_path_of_the_url(pages: Pages) -> None:
    with Loopback(saying({f"/one{path}": page for path, page in pages.items()})) as loopback:
        server = Server(f"{loopback.url}/one/", LLAMACPP)
        assert server.read(START)[0] == UP
        server.close()


def test_facts_are_asked_for_once_a_minute_and_a_swapped_model_is_seen(pages: Pages) -> None:
    with reading(pages) as (server, loopback):
        server.read(START)
        pages["/props"] = json.dumps({"model_alias": "other", "total_slots": 8})
        seconds = [START + second * SECOND for second in (1, 59, 60, 61)]
        models = [{r.attributes.get("gen_ai.request.model") for r in server.read(now)} for now in seconds]
        assert models == [{None, "tiny.gguf"}] * 2 + [{None, "other"}] * 2
        assert loopback.paths.count("/props") == 2


def test_a_swapped_model_is_seen_though_the_clock_was_set_back(pages: Pages) -> None:
    with reading(pages) as (server, _):
        server.read(START)
        pages["/props"] = json.dumps({"model_alias": "other", "total_slots": 4})
        after = server.read(START - 3600 * SECOND)
        assert {r.attributes["gen_ai.request.model"] for r in after if "gen_ai.request.model" in r.attributes} == {
            "other"
        }


def test_the_same_attributes_are_the_same_object(pages: Pages) -> None:
    with reading(pages) as (server, _):
        before, now = server.read(START), server.read(START + SECOND)
        by_name = {(r.name, *r.attributes.items()): r.attributes for r in before}
        assert all(r.attributes is by_name.get((r.name, *r.attributes.items()), r.attributes) for r in now)


def test_an_idle_server_has_a_throughput_of_zero_and_no_batch_size(pages: Pages) -> None:
    with reading(pages) as (server, _):
        server.read(START)
        readings = server.read(START + SECOND)
        assert values(readings, "otelperf.server.token.throughput") == [0.0, 0.0]
        assert "otelperf.server.batch.size" not in names(readings)
        assert "otelperf.server.batch.utilization" not in names(readings)


def test_rates_need_two_readings(pages: Pages) -> None:
    with reading(pages) as (server, _):
        assert "otelperf.server.token.throughput" not in names(server.read(START))


def test_rates_are_absent_when_no_time_has_passed(pages: Pages) -> None:
    with reading(pages) as (server, _):
        server.read(START)
        assert "otelperf.server.token.throughput" not in names(server.read(START))


def test_rates_over_a_missed_interval_are_over_all_of_it(pages: Pages) -> None:
    pages["/metrics"] = counters(tokens=100)
    with reading(pages) as (server, _):
        server.read(START)
        pages["/metrics"] = counters(tokens=400)
        readings = server.read(START + 3 * SECOND)
        assert values(readings, "otelperf.server.token.throughput", OUTPUT) == [100.0]


def test_after_a_restart_rates_count_from_it(pages: Pages) -> None:
    pages["/metrics"] = counters(tokens=10_000, decodes=5_000, busy=2)
    with reading(pages) as (server, _):
        server.read(START)
        pages["/metrics"] = counters(tokens=30, decodes=10, busy=3)
        readings = server.read(START + 2 * SECOND)
        assert values(readings, "otelperf.server.token.throughput", OUTPUT) == [15.0]
        assert values(readings, "otelperf.server.batch.size") == [3.0]
        assert values(readings, "otelperf.server.tokens", OUTPUT) == [30]


def test_batch_size_is_absent_when_the_means_six_digits_do_not_tell_it(pages: Pages) -> None:
    pages["/metrics"] = counters(decodes=10_000_000, busy=1.5)
    with reading(pages) as (server, _):
        server.read(START)
        pages["/metrics"] = counters(decodes=10_000_010, busy=1.5)
        assert "otelperf.server.batch.size" not in names(server.read(START + SECOND))


# -- down


def test_a_server_that_refuses_the_connection_is_down(pages: Pages) -> None:
    with reading(pages) as (server, loopback):
        server.read(START)
        assert server.up
    error = failing(server, START + SECOND)
    assert isinstance(error, SourceFlawed)  # so that what was read before ends
    assert error.readings == (DOWN,)
    assert loopback.url in str(error)
    assert not server.up
    server.close()


def test_a_loading_server_is_down(pages: Pages) -> None:
    pages["/metrics"] = message('{"error":{"message":"Loading model"}}', "503 Service Unavailable")
    with reading(pages) as (server, loopback):
        error = failing(server)
        assert loopback.paths == ["/metrics"]
    assert isinstance(error, SourceFlawed)
    assert error.readings == (DOWN,)
    assert "HTTP 503" in str(error)
    assert "Loading model" in str(error)


def test_another_server_in_the_place_of_one_that_was_down_is_known_by_itself_alone(pages: Pages) -> None:
    healthy = pages["/metrics"]
    with reading(pages) as (server, _):
        server.read(START)
        pages["/metrics"] = message("", "503 Service Unavailable")
        failing(server, START + SECOND)
        pages |= {"/metrics": healthy, "/props": message("", "404 Not Found")}
        error = failing(server, START + 2 * SECOND)
    assert {None} == {r.attributes.get("gen_ai.request.model") for r in error.readings}
    assert "otelperf.server.token.throughput" not in names(error.readings)


@pytest.mark.parametrize("status", ["404 Not Found", "501 Not Implemented"])
def test_with_metrics_off_the_slots_are_read_and_the_cure_is_told(pages: Pages, status: str) -> None:
    pages["/metrics"] = message("{}", status)
    with reading(pages) as (server, _):
        error = failing(server)
        assert server.up
    assert isinstance(error, SourceFlawed)
    assert "start llama-server with --metrics" in str(error)
    assert names(error.readings) == {
        "otelperf.server.up",
        "otelperf.worker.state",
        "otelperf.server.context.utilization",
        "otelperf.server.context.limit",
    }
    assert values(error.readings, "otelperf.server.context.limit", {"gen_ai.request.model": "tiny.gguf"}) == [512]


def test_with_slots_off_the_metrics_are_read(pages: Pages) -> None:
    pages["/slots"] = message("{}", "501 Not Implemented")
    with reading(pages) as (server, _):
        error = failing(server)
    assert isinstance(error, SourceFlawed)
    assert "/slots answered HTTP 501" in str(error)
    assert UP in error.readings
    assert "otelperf.server.tokens" in names(error.readings)
    assert "otelperf.worker.state" not in names(error.readings)


@pytest.mark.parametrize("page", ["<!DOCTYPE html><html>Welcome</html>", "", "# nothing\n", "go_goroutines 5\n"])
def test_another_server_at_the_address_is_no_inference_server(page: str) -> None:
    with reading(dict.fromkeys(["/metrics", "/slots", "/props"], page)) as (server, _):
        error = failing(server)
        assert not server.up
    assert error.readings == (DOWN,)
    assert "has no series of llama.cpp" in str(error)


def test_a_redirect_is_not_followed(pages: Pages) -> None:
    with Loopback(saying(pages)) as elsewhere:
        moved = message("", "302 Found", Location=f"{elsewhere.url}/metrics")
        with reading(dict.fromkeys(pages, moved)) as (server, _):
            error = failing(server)
        assert elsewhere.paths == []
    assert error.readings == (DOWN,)
    assert "HTTP 302" in str(error)


# -- failing: what was read before may still be true


def hang(loopback: Loopback, client: socket.socket, _: str) -> bool:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nllamacpp:prompt_tokens_total 1")
    loopback.closing.wait(20)
    return False


def break_off(_: Loopback, client: socket.socket, path: str) -> bool:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nllamacpp:prompt_tokens_total 1")
    return False


def flood(_: Loopback, client: socket.socket, path: str) -> bool:
    client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    while True:
        client.sendall(b"llamacpp:requests_processing 1\n" * 1000)


@pytest.mark.parametrize(
    ("answer", "said"), [(hang, "within 0.2 s"), (break_off, "Incomplete"), (flood, "larger than 100000 bytes")]
)
def test_a_server_that_does_not_end_its_page_has_failed_and_recovers(pages: Pages, answer: Any, said: str) -> None:
    with reading(pages, timeout=10, max_page=100_000) as (server, loopback):
        server.read(START)
        healthy, loopback.answer, server._timeout = loopback.answer, answer, 0.2 if answer is hang else 10
        error = failing(server, START + SECOND)
        loopback.answer, server._timeout = healthy, 10
        readings = server.read(START + 2 * SECOND)
    assert isinstance(error, SourceFailed)
    assert error.readings == (DOWN,)
    assert said in str(error)
    assert readings[0] == UP
    assert values(readings, "otelperf.server.token.throughput") == [0.0, 0.0]


def test_a_hanging_page_does_not_lose_the_others(pages: Pages) -> None:
    healthy = saying(pages)

    def slots_hang(loopback: Loopback, client: socket.socket, path: str) -> bool:
        return (hang if path == "/slots" else healthy)(loopback, client, path)

    with Loopback(slots_hang) as loopback:
        server = Server(loopback.url, LLAMACPP, timeout=2)
        error = failing(server)
        server.close()
    assert isinstance(error, SourceFailed)
    assert UP in error.readings
    assert "otelperf.server.tokens" in names(error.readings)


def test_a_compressed_page_that_nobody_asked_for_is_not_unpacked(pages: Pages) -> None:
    pages["/metrics"] = message(gzip.compress(b"llamacpp:prompt_tokens_total 1\n" * 500_000), Content_Encoding="gzip")
    with reading(pages) as (server, _):
        error = failing(server)
    assert isinstance(error, SourceFailed)
    assert error.readings == (DOWN,)
    assert "compressed" in str(error)


# -- odd


SLOTS_ODD = [
    "null",
    "5",
    '"slots"',
    "{}",
    "[5]",
    "[[]]",
    "[null]",
    '["ab"]',
    "[{}]",
    '[{"id": 0}]',
    '[{"id": 0, "is_processing": null}]',
    '[{"id": 0, "is_processing": "no"}]',
    '[{"id": 0, "is_processing": 1}]',
    '[{"id": [], "is_processing": true}]',
    '[{"id": "' + "x" * 10_000 + '", "is_processing": true}]',
    '[{"id": 1' + "0" * 400 + ', "is_processing": true}]',
    '[{"id": NaN, "is_processing": true}]',
    "[" * 100_000,
    "{" * 10,
    "not json",
    "[" + "9" * 10_000 + "]",
    "\udcff",
]


@pytest.mark.parametrize("slots", SLOTS_ODD, ids=lambda page: page[:40])
def test_odd_slots_are_told_and_do_not_lose_the_metrics(pages: Pages, slots: str) -> None:
    pages["/slots"] = message(slots.encode("utf-8", "surrogateescape"))
    with reading(pages) as (server, _):
        error = failing(server)
    assert isinstance(error, SourceFlawed)
    assert "/slots is not what llama.cpp answers" in str(error)
    assert len(str(error)) < 500
    assert "otelperf.server.tokens" in names(error.readings)
    assert "otelperf.worker.state" not in names(error.readings)


@pytest.mark.parametrize(
    ("tokens", "context"),
    [
        ("null", "512"),
        ('"8"', "512"),
        ("true", "512"),
        ("8", "0"),
        ("8", "-1"),
        ("NaN", "512"),
        ("1e999", "512"),
        ("8", "NaN"),
        ("1" + "0" * 400, "512"),
        ("[]", "{}"),
    ],
)
def test_odd_context_numbers_give_no_utilization(pages: Pages, tokens: str, context: str) -> None:
    slot = f'[{{"id": 0, "is_processing": true, "n_prompt_tokens": {tokens}, "n_ctx": {context}}}]'
    pages["/slots"] = slot
    with reading(pages) as (server, _):
        readings = server.read(START)
    assert "otelperf.server.context.utilization" not in names(readings)
    assert values(readings, "otelperf.worker.state") == [1, 0]


@pytest.mark.parametrize(
    "props",
    ["null", "[]", "5", '"x"', "not json", "", "[" * 100_000],
    ids=["null", "list", "number", "string", "not json", "empty", "deep"],
)
def test_odd_props_are_told_and_do_not_lose_the_metrics(pages: Pages, props: str) -> None:
    pages["/props"] = props
    with reading(pages) as (server, _):
        error = failing(server)
    assert isinstance(error, SourceFlawed)
    assert "/props is not what llama.cpp answers" in str(error)
    assert "otelperf.server.tokens" in names(error.readings)


@pytest.mark.parametrize(
    "number", ["null", '"4"', "true", "NaN", "Infinity", "1e999", "1" + "0" * 400, "{}"], ids=lambda text: text[:9]
)
def test_odd_numbers_in_props_give_no_limits(pages: Pages, number: str) -> None:
    pages["/props"] = f'{{"total_slots": {number}, "default_generation_settings": {{"n_ctx": {number}}}}}'
    with reading(pages) as (server, _):
        server.read(START)
        pages["/metrics"] = counters(tokens=900, decodes=900, busy=2)
        readings = server.read(START + SECOND)
    limits = {"otelperf.server.batch.limit", "otelperf.server.batch.utilization", "otelperf.server.context.limit"}
    assert limits & names(readings) == set()
    assert "otelperf.server.batch.size" in names(readings)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ('"a/b/c.gguf"', "c.gguf"),
        ('""', None),
        ("5", None),
        ("[1]", None),
        ('"models/"', None),
        ('"' + "x" * 10_000 + '"', "x" * 200),
    ],
    ids=["path", "empty", "number", "list", "folder", "long"],
)
def test_the_models_name_is_short_text_or_not_known(pages: Pages, model: str, name: str | None) -> None:
    pages["/props"] = f'{{"model_path": {model}}}'
    with reading(pages) as (server, _):
        assert {None, name} == {r.attributes.get("gen_ai.request.model") for r in server.read(START)}


@pytest.mark.parametrize("odd", ["NaN", "+Inf", "-Inf"])
def test_values_that_are_no_numbers_give_no_rates_and_no_error(pages: Pages, odd: str) -> None:
    pages["/metrics"] = "".join(f"{series} {odd}\n" for series in server_series())
    with reading(pages) as (server, _):
        first = values(server.read(START), "otelperf.server.tokens")
        pages["/metrics"] = counters(tokens=5)
        then = server.read(START + SECOND)
    assert not any(math.isfinite(value) for value in first)
    assert "otelperf.server.token.throughput" not in names(then)


def server_series() -> list[str]:
    return sorted(LLAMACPP.series())


@pytest.mark.parametrize("huge", ["1e30", "1e308", "-1e30", "9223372036854775808"])
def test_values_too_large_for_otlps_whole_numbers_stay_floats(pages: Pages, huge: str) -> None:
    pages["/metrics"] = "".join(f"{series} {huge}\n" for series in server_series())
    with reading(pages) as (server, _):
        server.read(START)
        readings = server.read(START + SECOND)
    assert all(isinstance(r.value, float) or abs(r.value) < 2**53 for r in readings if not hasattr(r.value, "count"))


def test_malformed_lines_are_told_and_the_good_ones_read(pages: Pages) -> None:
    pages["/metrics"] = counters(tokens=5) + "llamacpp:requests_processing many\n"
    with reading(pages) as (server, _):
        error = failing(server)
    assert "1 malformed lines, the first: 'llamacpp:requests_processing many'" in str(error)
    assert values(error.readings, "otelperf.server.tokens", OUTPUT) == [5]


def test_an_explosion_of_labels_makes_no_stream_twice(pages: Pages) -> None:
    pages["/metrics"] = "".join(f'llamacpp:requests_processing{{id="{n}"}} {n}\n' for n in range(20_000))
    with reading(pages) as (server, _):
        error = failing(server)
    assert isinstance(error, SourceFlawed)
    assert "19999 series that are not told apart" in str(error)
    assert values(error.readings, "otelperf.server.active_requests") == [0]


def test_of_a_page_of_wanted_lines_without_end_the_beginning_is_read_and_that_is_said(pages: Pages) -> None:
    pages["/metrics"] = counters(tokens=5) + "".join(
        f'llamacpp:requests_processing{{id="{n}"}} {n}\n' for n in range(50_000)
    )
    with reading(pages) as (server, _):
        error = failing(server)
    assert isinstance(error, SourceFlawed)
    assert f"{server.url}/metrics has more than 26214 lines that are wanted: the rest is not read" in str(error)
    assert values(error.readings, "otelperf.server.tokens", OUTPUT) == [5]


def test_a_hundred_thousand_slots_are_256_workers(pages: Pages) -> None:
    pages["/slots"] = json.dumps([{"id": n, "is_processing": True} for n in range(100_000)])
    with reading(pages) as (server, _):
        assert values(server.read(START), "otelperf.worker.state") == [1, 0] * 256


def test_one_slot_told_twice_is_one_worker(pages: Pages) -> None:
    pages["/slots"] = '[{"id": 0, "is_processing": true}, {"id": 0, "is_processing": false}]'
    with reading(pages) as (server, _):
        assert values(failing(server).readings, "otelperf.worker.state") == [1, 0]

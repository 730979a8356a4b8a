"""Servers that do what servers should not, on every page and to every map: each ends in time, in bounded memory, and recovers."""

from __future__ import annotations

import gc
import gzip
import json
import random
import socket
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource

from otelperf.errors import SourceError, SourceFailed
from otelperf.points import Points
from otelperf.readings import Batch, Reading, Snapshot
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.finder import Finder
from otelperf.sources.engines.server import Server
from otelperf.sources.engines.watch import Watch
from tests.engines.loopback import Loopback, message, saying

CAPTURES = Path(__file__).resolve().parent.parent / "captures"
SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
UP, DOWN = Reading("otelperf.server.up", 1), Reading("otelperf.server.up", 0)
LIMIT = 200_000
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LONG = OK + b"Content-Length: 10000\r\n\r\n"

Pages = dict[str, bytes | str]
Deed = Callable[[Loopback, socket.socket, str], bool]
BY_NAME = {engine.name: engine for engine in ENGINES}


def healthy(name: str) -> Pages:
    """Return the pages of a capture."""
    folder = min(CAPTURES.glob(f"{name}-*"))
    engine = BY_NAME[name]
    pages: Pages = {f"/{file.stem.replace('-', '/')}": file.read_text() for file in folder.glob("*.json")}
    texts = sorted(folder.glob("*.txt"))
    return {**pages, engine.metrics_path: texts[0].read_text()} if texts else pages


def sending(*pieces: bytes) -> Deed:
    """Send what is none, or no whole, answer, and close."""

    def send(_: Loopback, client: socket.socket, _path: str) -> bool:
        for piece in pieces:
            client.sendall(piece)
        return False

    return send


def waiting(start: bytes) -> Deed:
    """Send *start* and then nothing: an answer that would take 10 s."""

    def wait(loopback: Loopback, client: socket.socket, _: str) -> bool:
        client.sendall(start)
        loopback.closing.wait(20)
        return False

    return wait


def trickling(start: bytes, piece: bytes) -> Deed:
    def trickle(loopback: Loopback, client: socket.socket, _: str) -> bool:
        client.sendall(start)
        while not loopback.closing.wait(0.02):
            client.sendall(piece)
        return False

    return trickle


def endless(start: bytes, piece: bytes) -> Deed:
    def flood(_: Loopback, client: socket.socket, _path: str) -> bool:
        client.sendall(start)
        while True:
            client.sendall(piece)

    return flood


def resetting(start: bytes) -> Deed:
    def reset(_: Loopback, client: socket.socket, _path: str) -> bool:
        client.sendall(start)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends RST
        return False

    return reset


# Nothing whole comes: what was read before may still be true.
BROKEN: dict[str, Deed] = {
    "nothing, for long": waiting(b""),
    "headers, then nothing": waiting(OK + b"Content-Length: 99\r\n"),
    "half a page, then nothing": waiting(LONG + b"vllm:prompt_tokens_total 1"),
    "a status that trickles": trickling(b"", b"H"),
    "headers that trickle": trickling(OK, b"X: y\r\n"),
    "a page that trickles": trickling(LONG, b"x"),
    "chunks that trickle": trickling(CHUNKED, b"1\r\nx\r\n"),
    "a page without end": endless(b"HTTP/1.0 200 OK\r\n\r\n", b"vllm:num_requests_running 1\n" * 1000),
    "a line without end": endless(b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 65536),
    "chunks without end": endless(CHUNKED, b"100\r\n" + b"x" * 256 + b"\r\n"),
    "headers without end": endless(OK, b"X: y\r\n" * 100),
    "one header without end": endless(OK + b"X: ", b"y" * 65536),
    "a huge header": sending(OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n"),
    "too many headers": sending(OK + b"X: y\r\n" * 500 + b"\r\n"),
    "a page cut short": sending(LONG + b"vllm:prompt_tokens_total 12"),
    "a chunk cut short": sending(CHUNKED + b"ff\r\nvllm:"),
    "a chunk's size that is none": sending(CHUNKED + b"lots\r\nx\r\n0\r\n\r\n"),
    "a chunk of less than nothing": sending(CHUNKED + b"-5\r\nx\r\n0\r\n\r\n"),
    "a chunk larger than all memory": sending(CHUNKED + b"f" * 30 + b"\r\nx"),
    "reset at once": resetting(b""),
    "reset in the headers": resetting(OK),
    "reset in the page": resetting(LONG + b"vllm:"),
    "another protocol": sending(b"220 mail.example ESMTP\r\n"),
    "TLS": sending(b"\x15\x03\x03\x00\x02\x02\x46"),
    "a gzip bomb": sending(message(gzip.compress(b"x 1\n" * 5_000_000), Content_Encoding="gzip")),
    "a deflate bomb": sending(message(zlib.compress(b"x 1\n" * 5_000_000), Content_Encoding="deflate")),
    "a packing nobody knows": sending(message(b"x", Content_Encoding="br, zstd")),
}
# Whole answers, which nobody asked for.
ODD: dict[str, bytes] = {
    "html": message("<!DOCTYPE html><html>Welcome to nginx!</html>", Content_Type="text/html"),
    "json": message('{"error": {"message": "no"}}'),
    "a list": message("[]"),
    "null": message("null"),
    "a number": message("5"),
    "deep json": message("[" * 100_000),
    "huge number": message("9" * 100_000),
    "null bytes": message(b"\0" * 100_000),
    "random bytes": message(random.Random(5).randbytes(100_000)),
    "one long line": message("x" * 150_000),
    "quotes without end": message('vllm:num_requests_running{a="' + "\\" * 100_000),
    "many braces": message("vllm:num_requests_running" + "{" * 50_000),
    "an image": message(b"\x89PNG\r\n\x1a\n" + b"\0" * 50, Content_Type="image/png"),
    "nothing": message(b""),
    "no content": message(b"", "204 No Content"),
    "redirect": message("", "302 Found", Location="http://127.0.0.1:1/metrics"),
    "teapot": message("", "418 I'm a teapot"),
    "login": message("", "401 Unauthorized", WWW_Authenticate="Basic"),
    "broken": message("Traceback (most recent call last):", "500 Internal Server Error"),
    "a status that is none": b"HTTP/1.1 999 Whatever\r\nContent-Length: 0\r\n\r\n",
}
NAMES = pytest.mark.parametrize("name", BY_NAME)


def attempt(server: Server, second: float = 0) -> tuple[list[Reading], str]:
    try:
        return server.read(START + round(second * SECOND)), ""
    except SourceError as error:
        return list(error.readings), str(error)


def sendable(readings: list[Reading]) -> None:
    """Encode *readings*, and show that no stream is there twice."""
    keys = [(reading.name, frozenset(reading.attributes.items())) for reading in readings]
    assert len(keys) == len(set(keys))
    batch = Batch("s", "e", START, tuple(readings))
    encode_metrics(Points({"e": Resource({})}, "0").of(Snapshot(START, (batch,), ())))


@pytest.mark.parametrize("deed", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["vllm", "ollama"])
def test_what_does_not_come_whole_is_left_in_time_and_the_next_page_is_read(name: str, deed: Deed) -> None:
    pages = healthy(name)
    with (
        Loopback(saying(pages)) as loopback,
        closing(Server(loopback.url, BY_NAME[name], timeout=10, max_page=LIMIT)) as server,
    ):
        before, _ = attempt(server)
        good, loopback.answer, server._timeout = loopback.answer, deed, 0.2
        tracemalloc.start()
        readings, said = attempt(server, 5)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        loopback.answer, server._timeout = good, 10
        after, trouble = attempt(server, 10)
    assert before[0] == after[0] == UP
    assert DOWN in readings
    assert loopback.url in said
    assert len(said) < 1000
    assert trouble == ""
    assert most < 20 * LIMIT


@pytest.mark.parametrize("deed", BROKEN.values(), ids=BROKEN)
def test_a_stranger_that_answers_so_is_no_server(deed: Deed) -> None:
    with Loopback(deed) as loopback:
        finder = Finder(ENGINES, ports=(loopback.port,), timeout=0.2, max_page=LIMIT)
        assert finder.read(START) == []
        server = Server(loopback.url, None, engines=ENGINES, timeout=0.2, max_page=LIMIT)
        with closing(server), pytest.raises(SourceFailed) as failed:
            server.read(START)
    assert not finder.found
    assert failed.value.readings == (DOWN,)


@pytest.mark.parametrize("name", ["auto", *BY_NAME])
@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_what_is_not_a_servers_page_makes_it_down_and_never_breaks(name: str, answer: bytes) -> None:
    def always(_: Loopback, client: socket.socket, _path: str) -> bool:
        client.sendall(answer)
        return True

    engine = BY_NAME.get(name)
    with Loopback(always) as loopback:
        server = Server(loopback.url, engine, engines=() if engine else ENGINES, max_page=LIMIT)
        for second in range(2):
            readings, said = attempt(server, second)
            assert readings == [DOWN]
            assert loopback.url in said
            assert len(said) < 2000
        server.close()


@NAMES
@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_one_odd_page_among_sound_ones_loses_no_other(name: str, answer: bytes) -> None:
    pages = healthy(name)
    with Loopback(saying(pages)) as loopback:
        with closing(Server(loopback.url, BY_NAME[name], max_page=LIMIT)) as server:
            before, _ = attempt(server)
            asked = set(loopback.paths)
        for path in asked:
            loopback.answer = saying({**pages, path: answer})
            with closing(Server(loopback.url, BY_NAME[name], max_page=LIMIT)) as server:
                readings, _ = attempt(server)
            sendable(readings)
            if path != BY_NAME[name].metrics_path and name != "ollama":  # which has but one
                assert readings[0] == UP
                assert len(readings) > len(before) / 2


# -- pages that are well formed, and hostile


def explosion(engine: Engine, label: str, many: int) -> str:
    """Give every series that the engine's map wants *many* values of a label."""
    series = sorted(engine.wanted())
    each = max(1, many // len(series))
    return "".join(f'{name}{{{label}="{n}",le="{n}"}} {n}\n' for name in series for n in range(each))


@pytest.mark.parametrize("name", [name for name in BY_NAME if BY_NAME[name].metrics_path])
def test_an_explosion_of_labels_is_bounded_each_time_it_changes(name: str) -> None:
    engine = BY_NAME[name]
    labels = [*list(engine.labels)[-1:], "adapter"]
    items = [next(iter(replace(engine, items=(item,)).metrics())) for item in engine.items]
    most = 3 + max(items.count(metric) for metric in items)  # and what is derived; a worker has up to three states
    pages: Pages = {}
    with Loopback(saying(pages)) as loopback, closing(Server(loopback.url, engine)) as server:
        for turn, label in enumerate(labels):
            pages[engine.metrics_path] = explosion(engine, label, 300 * len(engine.wanted()))
            readings, _ = attempt(server, 5 * turn)
            sendable(readings)
            streams: dict[str, int] = {}
            for reading in readings:
                streams[reading.name] = streams.get(reading.name, 0) + 1
            assert max(streams.values()) <= 256 * most  # a metric may be of several items


def test_labels_that_are_new_at_each_reading_do_not_fill_the_memory() -> None:
    pages: Pages = {}
    remembered = []
    with Loopback(saying(pages)) as loopback, closing(Server(loopback.url, BY_NAME["vllm"])) as server:
        for turn in range(15):
            names = (f"{turn}-{n}" for n in range(800))
            pages["/metrics"] = "".join(f'vllm:num_requests_running{{engine="{name}"}} 1\n' for name in names)
            sendable(attempt(server, 5 * turn)[0])
            remembered += [len(server._mapper._attributes), len(server._attributes)]
    assert 5_000 < max(remembered) < 12_000


ONE_MEBIBYTE = "x" * 2**20
ENDLESS = {
    "comments": "# TYPE vllm:other_{turn}{long} gauge\n",
    "names": "vllm:{turn}{long} 1\n",
    "names alone": "vllm:{turn}{long}\n",
    "labels": 'vllm:num_requests_running{{engine="{turn}{long}"}} 1\n',
    "counters' labels": 'vllm:prompt_tokens_total{{engine="{turn}{long}"}} 1\n',
    "histograms' labels": 'vllm:e2e_request_latency_seconds_bucket{{engine="{turn}{long}",le="1"}} 1\n',
    "histograms under their own names": (
        '# TYPE vllm:h histogram\nvllm:h_bucket{{engine="{turn}{long}",le="+Inf"}} 1\n'
        'vllm:h_sum{{engine="{turn}{long}"}} 1\n'
    ),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_text_without_end_that_is_new_at_each_reading_does_not_fill_the_memory(what: str) -> None:
    engine = replace(BY_NAME["vllm"], native=("vllm:*",))
    pages: Pages = {}
    with Loopback(saying(pages)) as loopback, closing(Server(loopback.url, engine, timeout=10)) as server:
        server.watch = Watch(loopback.url, stuck_after=60)
        gc.collect()
        tracemalloc.start()
        try:
            for turn in range(24):
                pages["/metrics"] = ENDLESS[what].format(turn=turn, long=ONE_MEBIBYTE)
                attempt(server, 5 * turn)
            del pages["/metrics"]
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept < 16 * 2**20


@pytest.mark.parametrize("odd", ["NaN", "+Inf", "-Inf", "1e400", "-1", "0x10", "1_000", "١٢", "", "1 2 3", "nan(5)"])
@pytest.mark.parametrize("name", [name for name in BY_NAME if BY_NAME[name].metrics_path])
def test_values_that_are_no_counts_can_be_sent_or_are_left_out(name: str, odd: str) -> None:
    engine = BY_NAME[name]
    pages = healthy(name)
    good = pages[engine.metrics_path]
    assert isinstance(good, str)
    lines = [line if line.startswith("#") else f"{line.rpartition(' ')[0]} {odd}" for line in good.splitlines()]
    with Loopback(saying(pages)) as loopback, closing(Server(loopback.url, engine)) as server:
        for second, page in enumerate([good, "\n".join(lines) + "\n", good]):
            pages[engine.metrics_path] = page
            readings, said = attempt(server, 5 * second)
            sendable(readings)
        assert readings[0] == UP
        assert said == ""


@pytest.mark.parametrize("name", [name for name in BY_NAME if BY_NAME[name].metrics_path])
def test_a_page_that_says_everything_twice_sends_nothing_twice(name: str) -> None:
    engine = BY_NAME[name]
    pages = healthy(name)
    pages[engine.metrics_path] = str(pages[engine.metrics_path]) * 2
    with Loopback(saying(pages)) as loopback, closing(Server(loopback.url, engine)) as server:
        for second in (0, 5):
            sendable(attempt(server, second)[0])


def test_a_model_that_is_swapped_between_two_readings_is_told_by_its_own_name() -> None:
    pages = healthy("vllm")
    good = str(pages["/metrics"])
    with Loopback(saying(pages)) as loopback, closing(Server(loopback.url, BY_NAME["vllm"])) as server:
        before, _ = attempt(server)
        [old] = {str(r.attributes["gen_ai.request.model"]) for r in before if "gen_ai.request.model" in r.attributes}
        pages["/metrics"] = good.replace(f'model_name="{old}"', 'model_name="another"')
        pages["/v1/models"] = json.dumps({"data": [{"id": "another", "max_model_len": 77}]})
        after, _ = attempt(server, 65)
    assert {r.attributes.get("gen_ai.request.model") for r in after} == {None, "another"}
    assert [r.value for r in after if r.name == "otelperf.server.context.limit"] == [77]


def test_each_page_may_take_its_time_and_no_more() -> None:
    """One that uses up the timeout on each page is down at the first that counts, not at the sum of all."""
    pages = healthy("vllm")
    good = saying(pages)

    def slow_models(loopback: Loopback, client: socket.socket, path: str) -> bool:
        if path == "/v1/models":
            loopback.closing.wait(20)
            return False
        return good(loopback, client, path)

    with Loopback(slow_models) as loopback, closing(Server(loopback.url, BY_NAME["vllm"], timeout=2)) as server:
        readings, said = attempt(server)
    assert readings[0] == UP
    assert "/v1/models" in loopback.paths
    assert "no whole answer within 2 s" in said

"""The HTTP connection, against servers that do what servers should not."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, repeat

import pytest

from otelperf.connection import Answer, Connection, HttpError, Timeout, TooLarge, Unreachable
from tests.engines.loopback import Loopback, message, saying

LIMIT = 1_000_000


def get(url: str, path: str = "/", timeout: float = 30.0, limit: int = LIMIT) -> Answer:
    with closing(Connection(url)) as connection:
        return connection.request("GET", path, timeout=timeout, limit=limit)


@contextmanager
def sending(*pieces: bytes, then: Callable[[Loopback, socket.socket], None] | None = None) -> Iterator[Loopback]:
    """Answer every request with *pieces* as they are, do *then*, and close."""

    def answer(loopback: Loopback, client: socket.socket, _: str) -> bool:
        for piece in pieces:
            client.sendall(piece)
        if then:
            then(loopback, client)
        return False

    with Loopback(answer) as loopback:
        yield loopback


def wait(loopback: Loopback, _: socket.socket) -> None:
    loopback.closing.wait(20)


def drip(piece: bytes) -> Callable[[Loopback, socket.socket], None]:
    def dripping(loopback: Loopback, client: socket.socket) -> None:
        while not loopback.closing.wait(0.02):
            client.sendall(piece)

    return dripping


def reset(_: Loopback, client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends RST


def test_an_answer_comes_with_status_lower_case_headers_and_body() -> None:
    with Loopback(saying({"/a": message("hello", "201 Created", X_Some="Thing")})) as loopback:
        answer = get(loopback.url, "/a")
    assert (answer.status, answer.body, answer.headers["x-some"]) == (201, b"hello", "Thing")


def test_a_chunked_answer_is_put_together() -> None:
    with sending(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") as loopback:
        assert get(loopback.url).body == b"abcde"


def test_an_answer_without_length_ends_with_the_connection() -> None:
    with sending(b"HTTP/1.0 200 OK\r\n\r\nabc") as loopback:
        assert get(loopback.url).body == b"abc"


def test_a_connection_is_kept_and_used_again() -> None:
    with Loopback(saying({"/": "hello"})) as loopback, closing(Connection(loopback.url)) as connection:
        for _ in range(5):
            assert connection.request("GET", "/", timeout=30, limit=LIMIT).body == b"hello"
        assert loopback.connections == 1


def test_an_empty_answer_keeps_the_connection() -> None:
    with Loopback(saying({"/": ""})) as loopback, closing(Connection(loopback.url)) as connection:
        for _ in range(3):
            assert connection.request("GET", "/", timeout=30, limit=LIMIT).body == b""
        assert loopback.connections == 1


def test_a_kept_connection_that_the_server_closed_is_opened_anew_once() -> None:
    def then_close(_: Loopback, client: socket.socket, path: str) -> bool:
        client.sendall(message(path))  # says nothing of closing, and closes
        return False

    with Loopback(then_close) as loopback, closing(Connection(loopback.url)) as connection:
        for number in range(3):
            assert connection.request("GET", f"/{number}", timeout=30, limit=LIMIT).body == f"/{number}".encode()
        assert loopback.connections == 3
        assert loopback.paths == ["/0", "/1", "/2"]


def test_a_server_that_only_closes_is_asked_once_more_and_not_for_ever() -> None:
    turns = chain([True], repeat(False))

    def first_only(_: Loopback, client: socket.socket, path: str) -> bool:
        if not next(turns):
            return False
        client.sendall(message("hello"))
        return True

    with Loopback(first_only) as loopback, closing(Connection(loopback.url)) as connection:
        connection.request("GET", "/", timeout=30, limit=LIMIT)
        with pytest.raises(HttpError):
            connection.request("GET", "/", timeout=30, limit=LIMIT)
        assert len(loopback.paths) == 3


def test_a_refused_connection_is_unreachable() -> None:
    with socket.socket() as bound:  # to a port that nobody else can take meanwhile, and not listening
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="refused"):
            get(f"http://127.0.0.1:{bound.getsockname()[1]}")


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "host:8080", "http://", "http://host:port", "http://host:99999", "http://[::1"]
)
def test_what_is_no_url_of_a_server_is_told(url: str) -> None:
    with pytest.raises(HttpError, match="is no URL of a server"):
        Connection(url)


def test_an_ipv6_address_without_port_is_an_address() -> None:
    connection = Connection("http://[fe80::80]/metrics")
    assert (connection._host, connection._port) == ("fe80::80", 80)


def test_a_port_without_number_is_the_schemes() -> None:
    assert [Connection(f"{scheme}://host")._port for scheme in ("http", "https")] == [80, 443]


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.0 200 OK\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
    ids=["before the answer", "in the headers", "in the body", "in a body without length", "in a chunk"],
)
def test_a_server_that_hangs_is_left_at_the_deadline(start: bytes) -> None:
    with sending(start, then=wait) as loopback, pytest.raises(Timeout, match=r"within 0\.2 s"):
        get(loopback.url, timeout=0.2)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b"x"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    ],
    ids=[
        "status",
        "a header",
        "headers",
        "continue",
        "body",
        "body without length",
        "last body",
        "chunks",
        "a chunk's size",
        "trailers",
    ],
)
def test_a_server_that_drips_does_not_outlast_the_deadline(start: bytes, piece: bytes) -> None:
    with sending(start, then=drip(piece)) as loopback, pytest.raises(HttpError) as caught:
        get(loopback.url, timeout=0.2)
    assert isinstance(caught.value, Timeout)


def test_an_answer_that_hides_its_end_is_not_half_taken() -> None:
    with (
        sending(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx 12") as loopback,
        pytest.raises(HttpError, match="IncompleteRead"),
    ):
        get(loopback.url)


def test_a_chunked_answer_that_breaks_off_is_not_half_taken() -> None:
    with (
        sending(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nx 12\r\n") as loopback,
        pytest.raises(HttpError, match="IncompleteRead"),
    ):
        get(loopback.url)


def test_a_connection_reset_in_the_middle_is_told() -> None:
    with (
        sending(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", then=reset) as loopback,
        pytest.raises(HttpError),
    ):
        get(loopback.url)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000),
    ],
    ids=["without length", "with a length", "in small chunks"],
)
def test_an_endless_body_stops_at_the_limit_in_bounded_memory(start: bytes, piece: bytes) -> None:
    def endless(_: Loopback, client: socket.socket) -> None:
        while True:
            client.sendall(piece)

    limit = 20_000 if b"chunked" in start else LIMIT
    with sending(start, then=endless) as loopback:
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge, match=f"larger than {limit} bytes"):
                get(loopback.url, limit=limit)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 6 * LIMIT


def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    with Loopback(saying({"/": "x" * 1000})) as loopback:
        assert len(get(loopback.url, limit=1000).body) == 1000
        with pytest.raises(TooLarge):
            get(loopback.url, limit=999)


def test_a_gzip_bomb_is_handed_over_as_it_came() -> None:
    bomb = gzip.compress(b"0" * 10_000_000)
    with Loopback(saying({"/": message(bomb, Content_Encoding="gzip")})) as loopback:
        assert get(loopback.url).body == bomb


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
def test_a_redirect_is_an_answer_and_is_not_followed(status: str) -> None:
    with Loopback(saying({"/": "elsewhere"})) as elsewhere:
        moved = message("", status, Location=elsewhere.url)
        with Loopback(saying({"/": moved})) as loopback:
            assert get(loopback.url).status == int(status[:3])
        assert elsewhere.paths == []


@pytest.mark.parametrize(
    "answer",
    [
        b"\r\n",
        b"x" * 100_000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x00",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200,
    ],
    ids=["nothing", "a long line", "ssh", "tls", "too many headers"],
)
def test_what_is_no_http_is_told_in_few_words(answer: bytes) -> None:
    with sending(answer) as loopback, pytest.raises(HttpError) as caught:
        get(loopback.url)
    assert len(str(caught.value)) < 300


def test_bytes_after_an_answer_do_not_become_the_next_one() -> None:
    def twice(_: Loopback, client: socket.socket, path: str) -> bool:
        client.sendall(message(path) + message("smuggled"))
        return True

    with Loopback(twice) as loopback, closing(Connection(loopback.url)) as connection:
        assert connection.request("GET", "/1", timeout=30, limit=LIMIT).body == b"/1"
        assert connection.request("GET", "/2", timeout=30, limit=LIMIT).body == b"/2"


def test_an_answer_that_nobody_asked_for_does_not_become_the_next_one() -> None:
    read, sent = threading.Event(), threading.Event()

    def twice(_: Loopback, client: socket.socket, path: str) -> bool:
        client.sendall(message(path))
        read.wait(10)
        client.sendall(message("smuggled"))
        sent.set()
        return True

    with Loopback(twice) as loopback, closing(Connection(loopback.url)) as connection:
        for path in ("/1", "/2", "/3"):
            read.clear()
            sent.clear()
            assert connection.request("GET", path, timeout=30, limit=LIMIT).body == path.encode()
            read.set()
            assert sent.wait(10)
        assert loopback.connections == 3


def test_after_a_failure_the_next_request_opens_anew() -> None:
    turns = iter([b"garbage\r\n\r\n", message("hello")])

    def answer(_: Loopback, client: socket.socket, path: str) -> bool:
        client.sendall(next(turns))
        return True

    with Loopback(answer) as loopback, closing(Connection(loopback.url)) as connection:
        with pytest.raises(HttpError):
            connection.request("GET", "/", timeout=30, limit=LIMIT)
        assert connection.request("GET", "/", timeout=30, limit=LIMIT).body == b"hello"
        assert loopback.connections == 2


def test_a_tls_server_that_is_none_is_told() -> None:
    with (
        sending(b"HTTP/1.1 400 Bad Request\r\n\r\n") as loopback,
        closing(Connection(f"https://127.0.0.1:{loopback.port}", ssl.create_default_context())) as connection,
        pytest.raises(HttpError),
    ):
        connection.request("GET", "/", timeout=0.2, limit=LIMIT)


def test_a_path_that_cannot_be_asked_for_is_told() -> None:
    with Loopback(saying({})) as loopback:
        for path in ("/a b", "/é", "/\r\nX: y"):
            with pytest.raises(HttpError):
                get(loopback.url, path)

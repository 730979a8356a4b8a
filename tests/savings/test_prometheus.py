"""Reading from Prometheus' HTTP API: in pages, within limits, and whatever it answers."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from otelperf import cli
from otelperf.connection import HttpError, Timeout, TooLarge
from otelperf.errors import OtelperfError
from otelperf.savings.prometheus import Prometheus
from otelperf.savings.recording import Recording
from tests.engines.loopback import Loopback, message

Respond = Callable[[str, dict[str, list[str]]], bytes]
START, END = 1_700_000_000_000, 1_700_003_600_000


class Server(Loopback):
    """Answers by path and form, which it reads from the request's body."""

    def __init__(self, respond: Respond) -> None:
        super().__init__(self._answer)
        self.respond = respond
        self.asked: list[tuple[str, dict[str, list[str]]]] = []

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream, suppress(OSError):  # who asked may have left
            while line := stream.readline():
                headers = b""
                while (header := stream.readline()) not in {b"", b"\r\n"}:
                    headers += header
                self.headers.append(headers)
                length = re.search(rb"(?i)content-length: (\d+)", headers)
                form = parse_qs(stream.read(int(length[1]) if length else 0).decode())
                path = line.split()[1].decode()
                self.asked.append((path, form))
                client.sendall(self.respond(path, form))

    @staticmethod
    def _answer(_: Loopback, __: socket.socket, ___: str) -> bool:
        return False


def success(data: Any, **more: Any) -> bytes:
    return message(json.dumps({"status": "success", "data": data, **more}), content_type="application/json")


def refused(status: str, kind: str, error: str) -> bytes:
    return message(json.dumps({"status": "error", "errorType": kind, "error": error}), status)


def page(form: dict[str, list[str]], *, step: int, closed: bool = False, series: int = 1) -> list[dict[str, Any]]:
    """Return what a range selector answers of series with a sample each *step* ms: (begin, end], or [begin, end]."""
    (query,), (at,) = form["query"], form["time"]
    length = int(re.fullmatch(r".*\[(\d+)ms\]", query)[1])  # type: ignore[index] # or the test fails, as it should
    end = round(float(at) * 1000)
    begin = end - length
    times = [time for time in range(begin - begin % step, end + 1, step) if begin < time or (closed and time == begin)]
    values = [[time / 1000, str(time)] for time in times]
    return [{"metric": {"__name__": "a", "n": str(n)}, "values": values} for n in range(series)]


@contextmanager
def served(
    respond: Respond, timeout: float = 10.0, url: str = "", headers: Mapping[str, str] | None = None
) -> Iterator[tuple[Server, Prometheus]]:
    with Server(respond) as server:
        parts = urlsplit(server.url)
        prometheus = Prometheus(url.format(parts.netloc) or server.url, headers or {}, None, timeout)
        with closing(prometheus):
            yield server, prometheus


def matrix(step: int, **more: Any) -> Respond:
    return lambda _, form: success({"resultType": "matrix", "result": page(form, step=step, **more)})


@pytest.mark.parametrize("closed", [False, True])
def test_every_sample_is_read_once_in_pages(closed: bool) -> None:
    with served(matrix(100, closed=closed, series=10)) as (server, prometheus):
        recording, passed = Recording(10**6), list[int]()
        prometheus.read(["a"], START, END, recording, passed.append)
        series = recording.finish()
    assert [list(each.times) for each in series] == [list(range(START + (0 if closed else 100), END + 1, 100))] * 10
    assert len(server.asked) > 1
    assert sum(passed) == END - START
    assert recording.notes.total() == 0


def test_dense_data_are_read_in_short_pages_and_sparse_ones_in_long_pages() -> None:
    lengths = {}
    for step in (10, 60_000):
        with served(matrix(step)) as (server, prometheus):
            prometheus.read(["a"], START, END, Recording(10**6), lambda _: None)
        lengths[step] = len(server.asked)
    assert lengths[60_000] < lengths[10]


def test_a_page_that_is_too_large_for_the_server_is_cut() -> None:
    def respond(path: str, form: dict[str, list[str]]) -> bytes:
        found = page(form, step=1000)
        if len(found[0]["values"]) > 50:
            return refused(
                "422 Unprocessable Entity", "execution", "query processing would load too many samples into memory"
            )
        return success({"resultType": "matrix", "result": found})

    with served(respond) as (_, prometheus):
        recording = Recording(10**6)
        prometheus.read(["a"], START, END, recording, lambda _: None)
        (series,) = recording.finish()
    assert len(series.times) == 3600


def test_a_server_for_which_every_page_is_too_large_is_told() -> None:
    answer = refused(
        "422 Unprocessable Entity", "execution", "query processing would load too many samples into memory"
    )
    with served(lambda *_: answer) as (_, prometheus), pytest.raises(TooLarge, match="too many samples"):
        prometheus.read(["a"], START, END, Recording(1), lambda _: None)


def test_reading_ends_when_there_are_more_samples_than_allowed() -> None:
    with served(matrix(100)) as (server, prometheus):
        with pytest.raises(OtelperfError, match="more than 1000 samples"):
            prometheus.read(["a"], START, END, Recording(1000), lambda _: None)
        assert len(server.asked) < 5


def test_several_selectors_may_meet_the_same_series() -> None:
    with served(matrix(1000)) as (_, prometheus):
        recording = Recording(10**6)
        prometheus.read(["a", '{n="0"}'], START, END, recording, lambda _: None)
        (series,) = recording.finish()
    assert len(series.times) == 3600


def test_series_are_counted_before_they_are_read() -> None:
    with served(lambda *_: success([{"__name__": "a"}] * 11)) as (server, prometheus):
        assert prometheus.series(["a", "b"], START, END, 11) == 11
        with pytest.raises(OtelperfError, match=r"more than 10 series match: choose fewer .* --max-series"):
            prometheus.series(["a"], START, END, 10)
    path, form = server.asked[0]
    assert path == "/api/v1/series"
    assert form == {"match[]": ["a", "b"], "start": ["1700000000.000"], "end": ["1700003600.000"], "limit": ["12"]}


def test_types_are_those_of_the_metadata_where_targets_agree() -> None:
    found = {"a": [{"type": "counter"}], "b": [{"type": "gauge"}, {"type": "counter"}], "c": "odd", "d": ["odd"]}
    with served(lambda *_: success(found)) as (_, prometheus):
        assert prometheus.types() == {"a": "counter"}


@pytest.mark.parametrize("answer", [message("no", "404 Not Found"), success([]), message("<html>")])
def test_without_metadata_no_types_are_known(answer: bytes) -> None:
    with served(lambda *_: answer) as (_, prometheus):
        assert prometheus.types() == {}


@pytest.mark.parametrize("odd", [5, "abc", {"a": 1}, [5, None, ["abc"]], None])
def test_warnings_that_are_no_texts_in_a_list_are_passed_over(odd: Any) -> None:
    data = {"resultType": "matrix", "result": []}
    with served(lambda *_: success(data, warnings=odd)) as (_, prometheus):
        recording = Recording(1)
        prometheus.read(["a"], START, START + 1000, recording, lambda _: None)
    assert recording.notes.total() == 0


@pytest.mark.parametrize(
    "answer",
    [
        message("", "302 Found", Location="/\x1b[2Jlogin"),
        refused("400 Bad Request", "bad_data", "\x1b[2Jlogin"),
        b"HTTP/1.1 \x1b[2Jlogin\r\n\r\n",
    ],
)
def test_what_a_server_says_cannot_steer_the_terminal(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(lambda *_: answer) as server:
        assert cli.main(["savings", "--url", server.url, "--selector", "a"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "\\x1b[2Jlogin" in line
    assert line.isprintable()


def test_a_time_beyond_the_calendar_is_named() -> None:
    data = {"resultType": "matrix", "result": [{"metric": {"__name__": "a"}, "values": [[9e12, "1"]]}]}
    told = r"answers otherwise than Prometheus does: 9000000000000\.0 is no time"
    with served(lambda *_: success(data)) as (_, prometheus), pytest.raises(HttpError, match=told):
        prometheus.read(["a"], START, END, Recording(10), lambda _: None)


def test_warnings_are_passed_on() -> None:
    data = {"resultType": "matrix", "result": []}
    with served(lambda *_: success(data, warnings=["store x is away"])) as (_, prometheus):
        recording = Recording(1)
        prometheus.read(["a"], START, START + 1000, recording, lambda _: None)
    assert recording.notes == {"answers with the warning 'store x is away'": 1}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (refused("400 Bad Request", "bad_data", "parse error"), "/api/v1/query answers HTTP 400: parse error"),
        (refused("422 Unprocessable Entity", "execution", "no"), "answers HTTP 422: no"),
        (message("<html>gateway</html>", "502 Bad Gateway"), "answers HTTP 502: <html>gateway</html>"),
        (message("", "500 Internal Server Error"), "answers HTTP 500: nothing more"),
        (message("", "401 Unauthorized"), "HTTP 401: nothing more (see --bearer-token-file"),
        (message("", "302 Found", Location="/login"), "it points to /login, and redirects are not followed"),
        (message("<html>login</html>"), "answers otherwise than Prometheus does: HTTP 200 <html>login</html>"),
        (success({"resultType": "vector", "result": []}), "answers otherwise than Prometheus does"),
        (success(None), "answers otherwise than Prometheus does"),
        (message('{"status":"success","data":{"resultType":"mat'), "answers otherwise than Prometheus does"),
    ],
)
def test_what_is_no_answer_gets_one_clear_error(answer: bytes, told: str) -> None:
    with served(lambda *_: answer) as (server, prometheus), pytest.raises(HttpError) as raised:
        prometheus.read(["a"], START, END, Recording(10), lambda _: None)
    assert told in str(raised.value)
    assert str(raised.value).startswith(server.url)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "answer", [message("<html>"), success({}), refused("503 Unavailable", "unavailable", "starting")]
)
def test_a_count_of_series_that_is_none_is_told(answer: bytes) -> None:
    with served(lambda *_: answer) as (_, prometheus), pytest.raises(HttpError, match="/api/v1/series answers"):
        prometheus.series(["a"], START, END, 10)


def test_a_query_that_takes_too_long_is_tried_with_shorter_pages() -> None:
    with served(lambda *_: refused("503 Unavailable", "timeout", "query timed out")) as (server, prometheus):
        with pytest.raises(Timeout, match="query timed out"):
            prometheus.read(["a"], START, END, Recording(10), lambda _: None)
        assert len({form["query"][0] for _, form in server.asked}) > 2


def test_nobody_there_is_told() -> None:
    with Server(lambda *_: b"") as server:
        url = server.url
    with pytest.raises(HttpError, match="refused"):
        Prometheus(url, {}, None, 5.0).series(["a"], START, END, 10)


def test_headers_the_login_and_the_path_of_the_url_are_used() -> None:
    with served(matrix(1000), url="http://me:secret@{}/prometheus/", headers={"x-scope-orgid": "team"}) as (
        server,
        prometheus,
    ):
        prometheus.read(["a"], START, START + 1000, Recording(10), lambda _: None)
        assert "secret" not in prometheus.url
    assert server.asked[0][0] == "/prometheus/api/v1/query"
    assert b"x-scope-orgid: team" in server.headers[0]
    assert b"authorization: Basic bWU6c2VjcmV0" in server.headers[0]

"""The bearer token: read again when its file changes, told when it cannot be used, shown to nobody else."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from otelperf import config
from otelperf.agent import make_finder, make_servers
from otelperf.errors import ConfigError, SourceFlawed
from otelperf.readings import Reading
from otelperf.sampler import Sampler
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.bearer import Bearer
from otelperf.sources.engines.server import Server
from tests.engines.loopback import Loopback, message, saying

VLLM_PAGE = (Path(__file__).resolve().parent.parent / "captures" / "vllm-0.32.0" / "idle.txt").read_text()
SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
SECRET = "s3cret-t0ken"
HEADER = f"authorization: Bearer {SECRET}\r\n".encode()
UP = Reading("otelperf.server.up", 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(SECRET + "\n")
    return path


@pytest.fixture
def vllm() -> Iterator[Loopback]:
    with Loopback(saying({"/metrics": VLLM_PAGE})) as loopback:
        yield loopback


def swap(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.rename(file)


def test_the_token_goes_with_each_request(file: Path, vllm: Loopback) -> None:
    with closing(Server(vllm.url, None, engines=ENGINES, token_file=str(file))) as server:
        server.read(START)
    assert len(vllm.headers) > 2
    assert all(HEADER in request for request in vllm.headers)


def test_a_renewed_token_is_used_from_the_next_request_on(file: Path) -> None:
    bearer = Bearer(str(file))
    assert bearer.headers() == {"authorization": f"Bearer {SECRET}"}
    swap(file, b"another")
    assert bearer.headers() == {"authorization": "Bearer another"}
    assert bearer.trouble == ""


def test_an_unchanged_file_is_not_read_again(file: Path) -> None:
    bearer = Bearer(str(file))
    bearer.headers()
    before = file.stat()
    with file.open("r+") as writing:
        writing.write("S")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert bearer.headers() == {"authorization": f"Bearer {SECRET}"}


BAD = {
    "empty": b"",
    "blank": b" \n",
    "two lines": f"{SECRET}\nX-Other: 1".encode(),
    "a return": f"{SECRET}\rX-Other: 1".encode(),
    "a space": f"Bearer {SECRET}".encode(),
    "not ASCII": f"{SECRET}é".encode(),
    "a null": f"{SECRET}\0".encode(),
    "too long": b"s3cret" * 2000,
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_used_is_told_without_what_is_in_it(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    bearer = Bearer(str(file))
    assert bearer.headers() == {}
    assert bearer.trouble.startswith(f"server.token_file {file}: ")
    assert bearer.trouble.endswith("requests go without it")
    assert "s3cret" not in bearer.trouble
    swap(file, SECRET.encode())
    assert bearer.headers() == {"authorization": f"Bearer {SECRET}"}
    assert bearer.trouble == ""


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe", "link to itself"])
def test_what_is_no_file_is_told_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "token"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to itself":
        path.symlink_to(path)
    bearer = Bearer(str(path))
    assert bearer.headers() == {}
    assert str(path) in bearer.trouble


def test_while_the_file_is_missing_the_last_token_is_used_and_that_is_told(file: Path, vllm: Loopback) -> None:
    with closing(Server(vllm.url, None, engines=ENGINES, token_file=str(file))) as server:
        server.read(START)
        file.unlink()
        with pytest.raises(SourceFlawed, match="No such file or directory; the last token is used") as flawed:
            server.read(START + SECOND)
    assert flawed.value.readings[0] == UP
    assert HEADER in vllm.headers[-1]


def test_a_server_that_wants_a_token_says_what_to_set() -> None:
    with Loopback(saying({"/metrics": message("", "401 Unauthorized")})) as loopback:
        for engine in (None, ENGINES[0]):
            server = Server(loopback.url, engine, engines=() if engine else ENGINES)
            with closing(server), pytest.raises(SourceFlawed, match=r"it wants a login: set server\.token_file"):
                server.read(START)


def test_no_message_has_the_token(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answers: dict[str, bytes | str] = {"/metrics": message("who?", "401 Unauthorized")}
    with Loopback(saying(answers)) as loopback:
        server = Server(loopback.url, None, engines=ENGINES, token_file=str(file))
        sampler = Sampler([(server, 1.0)], threads=False)
        for second in range(3):
            snapshot = sampler.sample(START + second * SECOND)
            assert SECRET not in str(snapshot)
            answers["/metrics"] = VLLM_PAGE
        sampler.close()
    assert "HTTP 401" in caplog.text
    assert SECRET not in caplog.text


def test_strangers_on_the_ports_that_are_looked_at_do_not_get_the_token(file: Path, vllm: Loopback) -> None:
    with Loopback(saying({"/metrics": "go_goroutines 5\n"})) as stranger:
        given = {"server.ports": f"{stranger.port},{vllm.port}", "server.token_file": str(file)}
        finder = make_finder(config.load(given, {}, None))
        assert finder
        finder.read(START)
        assert not any(HEADER in request for request in stranger.headers + vllm.headers)
    with closing(finder.found.popleft()) as server:
        server.read(START)
    assert HEADER in vllm.headers[-1]


@pytest.mark.parametrize(
    "status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"]
)
def test_no_page_is_followed_elsewhere_nor_is_the_token(file: Path, vllm: Loopback, status: str) -> None:
    llama = next(engine for engine in ENGINES if engine.name == "llama.cpp")
    with Loopback(saying({})) as asked:
        answers: dict[str, bytes | str] = {
            path: message("", status, Location=f"{vllm.url}{path}") for path in ("/props", "/slots", "/metrics")
        }
        asked.answer = saying(answers)
        remote = {"server.url": asked.url, "server.remote": "true", "server.token_file": str(file)}
        (auto,) = make_servers(config.load(remote, {}, None))
        (named,) = make_servers(config.load({**remote, "server.engine": llama.name}, {}, None))
        for server in (auto, named):
            with closing(server), pytest.raises(SourceFlawed, match=f"HTTP {status[:3]}"):
                server.read(START)
        assert {"/props", "/slots", "/metrics"} <= set(asked.paths)
    assert vllm.paths == []


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"server.url": "http://far.example:1", "server.remote": "true"}, "in the clear, expected https"),
        ({"server.url": "http://me:it@127.0.0.1:1"}, "a token or a login in the URL, not both"),
    ],
)
def test_a_token_that_others_could_see_is_refused_at_the_start(file: Path, given: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as raised:
        config.load({**given, "server.token_file": str(file)}, {}, None)
    assert ":it@" not in str(raised.value)


def test_a_token_may_go_to_the_pod_itself_and_by_https_elsewhere(file: Path) -> None:
    for url in ("http://127.0.0.1:1", "http://10.0.0.7:1", "https://far.example"):
        given = {"server.url": url, "server.remote": "true", "server.token_file": str(file)}
        assert config.load(given, {"POD_IP": "10.0.0.7"}, None).server.token_file == str(file)

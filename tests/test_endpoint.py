"""The endpoint: probes, the metrics page, and clients that behave badly."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from otelperf import config
from otelperf.agent import Agent
from otelperf.endpoint import Endpoint, Page, as_json, as_text
from otelperf.errors import ConfigError
from stack.processes import wait_until

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now


def get(url: str, path: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


Serve = Callable[..., Endpoint]


@pytest.fixture
def serve() -> Iterator[Serve]:
    endpoints: list[Endpoint] = []

    def start(host: str = "127.0.0.1", **pages: Page) -> Endpoint:
        endpoint = Endpoint(host, 0, {f"/{name}": page for name, page in pages.items()})
        endpoints.append(endpoint)
        endpoint.start()
        return endpoint

    yield start
    for endpoint in endpoints:
        endpoint.shutdown()


@pytest.fixture
def agent() -> Iterator[tuple[Agent, str]]:
    values = {"metrics.exporter": "none", "endpoint.port": "0", "mode": "node"}
    agent = Agent(config.load(values, {}, None), environ={}, clock=Clock(), threads=False)
    agent.start()
    assert agent.url is not None
    yield agent, agent.url
    agent.close()


# The agent's pages


def test_ready_once_there_is_something_to_show(agent: tuple[Agent, str]) -> None:
    ours, url = agent
    assert get(url, "/readyz")[0] == 503
    assert get(url, "/healthz")[0] == 200
    ours.tick()
    status, headers, body = get(url, "/readyz")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    page = json.loads(body)
    assert page["status"] == "ok"
    assert page["sources"]["memory"] == "ok"


def test_ready_though_a_source_fails_and_the_collector_is_away() -> None:
    values = {"export.endpoint": "http://127.0.0.1:1/v1/metrics", "endpoint.port": "0", "mode": "node"}
    values |= {"server.url": "http://127.0.0.1:1", "export.shutdown_timeout": "0s"}
    ours = Agent(config.load(values, {}, None), environ={}, clock=Clock(), threads=False)
    ours.start()
    ours.tick()
    assert ours.url is not None
    status, _, body = get(ours.url, "/readyz")
    page = json.loads(body)
    ours.close()
    assert status == 200
    assert "Connection refused" in page["sources"]["server http://127.0.0.1:1"]
    assert page["export"]["delivered"] == 0
    assert page["export"]["queued_bytes"] > 0


def test_not_healthy_when_the_tick_hangs(agent: tuple[Agent, str]) -> None:
    ours, url = agent
    ours.tick()
    assert get(url, "/healthz")[0] == 200
    ours._last_tick = time.monotonic() - 31
    status, _, body = get(url, "/healthz")
    assert (status, json.loads(body)) == (503, {"status": "the tick hangs", "last_tick_seconds": 31.0})
    ours.tick()
    assert get(url, "/healthz")[0] == 200


def test_the_metrics_page_is_what_prometheus_reads(agent: tuple[Agent, str]) -> None:
    ours, url = agent
    assert get(url, "/metrics")[0] == 200  # before the first tick
    ours.tick()
    status, headers, page = get(url, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    identities = [(sample.name, frozenset(sample.labels.items())) for sample in samples]
    assert len(identities) == len(set(identities))
    names = {sample.name for sample in samples}
    assert {"system_memory_usage_bytes", "system_cpu_time_seconds_total", "otelperf_gate_seen_total"} <= names


def test_a_closed_agent_frees_the_port(agent: tuple[Agent, str]) -> None:
    ours, url = agent
    ours.close()
    address = urlsplit(url)

    def refused() -> bool:
        with socket.socket() as client:
            return client.connect_ex((address.hostname, address.port)) != 0

    wait_until(refused, 5, "the endpoint still listens")


# The server


def test_an_unknown_path_lists_those_there_are(serve: Serve) -> None:
    url = serve(healthz=lambda: as_json(200, {}), metrics=lambda: as_text("")).url
    for path in ("/", "/healthz/", "/metrics/../x", "/%68ealthz"):
        status, _, body = get(url, path)
        assert (status, body) == (404, "not found; there are /healthz /metrics\n")


def test_a_query_is_ignored(serve: Serve) -> None:
    assert get(serve(healthz=lambda: as_json(200, {})).url, "/healthz?verbose=1")[0] == 200


def test_head_is_get_without_the_body(serve: Serve) -> None:
    url = serve(page=lambda: as_text("ü" * 10)).url
    status, headers, body = get(url, "/page", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "20", "")
    assert get(url, "/page")[2] == "ü" * 10


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(serve: Serve, method: str) -> None:
    assert get(serve(page=lambda: as_text("")).url, "/page", method)[0] == 501


def test_a_page_that_fails_says_so_and_the_next_is_served(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> tuple[int, str, str]:
        raise KeyError("gone")

    url = serve(broken=broken, page=lambda: as_text("fine")).url
    status, _, body = get(url, "/broken")
    assert (status, body) == (500, "the page could not be made; the agent's log says why\n")
    assert "page failed path=/broken problem=\"KeyError: 'gone'\"" in caplog.messages
    assert get(url, "/page")[2] == "fine"


def test_text_that_is_no_unicode_is_served_all_the_same(serve: Serve) -> None:
    assert get(serve(page=lambda: as_text("/mnt/\udcff")).url, "/page")[2] == "/mnt/?"


def test_a_port_that_is_taken_is_one_clear_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as raised:
            Endpoint("127.0.0.1", port, {})
    assert str(raised.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; "
        "set endpoint.port to a free one, or endpoint.enabled to false"
    )


def test_two_endpoints_do_not_share_a_port(serve: Serve) -> None:
    with pytest.raises(ConfigError, match="Address already in use"):
        Endpoint("127.0.0.1", serve().server_port, {})


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_ours_is_one_clear_fault(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:0: "):
        Endpoint(host, 0, {})


def test_starting_does_not_ask_dns_for_our_name(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(socket, "getfqdn", asked.append)
    assert get(serve("0.0.0.0", page=lambda: as_text("")).url, "/page")[0] == 200
    assert asked == []


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_an_ipv6_address_can_be_listened_on(serve: Serve) -> None:
    try:
        url = serve("::1", page=lambda: as_text("six")).url
    except ConfigError as error:
        pytest.skip(f"needs IPv6: {error}")
    assert url.startswith("http://[::1]:")
    assert get(url, "/page")[2] == "six"


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((str(address.hostname), address.port or 0), timeout=30)


def test_more_than_a_few_requests_at_once_are_turned_away(serve: Serve) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def slow() -> tuple[int, str, str]:
        entered.release()
        leave.wait(60)
        return as_text("done")

    url = serve(slow=slow).url
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(get(url, "/slow")[2])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert entered.acquire(timeout=30)
    with connect(url) as ninth:
        assert ninth.recv(100) == b""
    leave.set()
    for thread in threads:
        thread.join(30)
    assert answers == ["done"] * 8
    assert get(url, "/slow")[2] == "done"


def test_clients_that_say_nothing_do_not_keep_a_probe_out(serve: Serve) -> None:
    url = serve(healthz=lambda: as_json(200, {})).url
    with ExitStack() as idle:
        clients = [idle.enter_context(connect(url)) for _ in range(50)]
        for client in clients[-8:]:
            client.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        for _ in range(5):
            assert get(url, "/healthz")[0] == 200


def test_a_client_that_leaves_early_harms_nobody(serve: Serve) -> None:
    url = serve(page=lambda: as_text("x" * 5_000_000)).url
    for _ in range(20):
        with connect(url) as client:
            client.sendall(b"GET /page HTTP/1.1\r\n\r\n")
    assert len(get(url, "/page")[2]) == 5_000_000


@pytest.mark.parametrize(
    "noise", [b"\r\n", b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"G" * 70_000]
)
def test_noise_harms_nobody(serve: Serve, noise: bytes) -> None:
    url = serve(page=lambda: as_text("fine")).url
    with connect(url) as client:
        client.sendall(noise)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
    assert get(url, "/page")[2] == "fine"

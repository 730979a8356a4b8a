"""Settings that say where servers are: here only, unless told otherwise."""

from __future__ import annotations

import pytest

from otelperf.config import load
from otelperf.errors import ConfigError

HERE = (
    "http://127.0.0.1:8000",
    "https://127.0.0.1",
    "http://127.9.9.9:1/base",
    "http://localhost:8000",
    "http://LocalHost",
    "http://[::1]:8000",
)
ELSEWHERE = (
    "http://10.0.0.8:8000",
    "http://vllm:8000",
    "http://vllm.prod.svc.cluster.local",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://127.0.0.256",
    "http://127.1",
    "http://2130706433",
    "http://0.0.0.0:8000",
    "http://[::]:8000",
    "http://[::ffff:127.0.0.1]:8000",
    "http://127.0.0.1@far.example",
    "http://10.0.0.7.example",
)


@pytest.mark.parametrize("url", HERE)
def test_a_server_on_loopback_is_read(url: str) -> None:
    assert load({"server.url": url}, {}, None).server.url == (url,)


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_server_elsewhere_is_refused_with_the_setting_that_allows_it(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load({"server.url": f"http://localhost:1,{url}"}, {}, None)
    (fault,) = str(raised.value).splitlines()
    assert "is not on loopback" in fault
    assert "set server.remote to true to read a server elsewhere" in fault
    assert load({"server.url": url, "server.remote": "true"}, {}, None).server.url == (url,)


def test_the_refusal_shows_no_password() -> None:
    with pytest.raises(ConfigError) as raised:
        load({"server.url": "http://me:s3cret@far.example"}, {}, None)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"POD_IP": "10.0.0.7"}, "http://10.0.0.7:8000"),
        ({"POD_IPS": "10.0.0.7,fd00::7"}, "http://[fd00::7]:8000"),
        ({"POD_IPS": "10.0.0.7,FD00::7"}, "http://[fd00::7]:8000"),
        ({"OTELPERF_K8S_POD_IP": "10.0.0.7"}, "http://10.0.0.7:8000"),
    ],
)
def test_the_pods_own_address_is_here(environ: dict[str, str], url: str) -> None:
    assert load({"server.url": url}, environ, None).server.url == (url,)


def test_another_pods_address_is_not() -> None:
    with pytest.raises(ConfigError, match="is not on loopback"):
        load({"server.url": "http://10.0.0.77:8000"}, {"POD_IP": "10.0.0.7"}, None)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("9000", (9000,)),
        ("8000-8003, 9000", (8000, 8001, 8002, 8003, 9000)),
        ("9000,9000", (9000,)),
        ("1-64", tuple(range(1, 65))),
    ],
)
def test_ports_are_a_list_with_ranges(text: str, ports: tuple[int, ...]) -> None:
    settings = load({"server.ports": text}, {}, None)
    assert settings.server.ports == ports
    assert settings.server.find
    assert settings.origin("server.find") == "default with server.ports"


@pytest.mark.parametrize(
    "text", ["http", "0", "65536", "8003-8000", "8000-", "-1", "1-65", "1-99999", "8000;8001", "8000.5"]
)
def test_what_are_no_ports_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.ports is"):
        load({"server.ports": text}, {}, None)


@pytest.mark.parametrize(("text", "share"), [("0.02", 0.02), ("1", 1.0), ("0.0001", 0.0001)])
def test_the_share_is_of_the_whole(text: str, share: float) -> None:
    assert load({"server.share": text}, {}, None).server.share == share


@pytest.mark.parametrize("text", ["0", "1.01", "-1", "2%", "all"])
def test_what_is_no_share_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number above 0, at most 1"):
        load({"server.share": text}, {}, None)


def test_a_key_to_show_servers_needs_its_certificate() -> None:
    with pytest.raises(ConfigError, match=r"server\.client_key is /k\.pem .* expected both or neither"):
        load({"server.client_key": "/k.pem"}, {}, None)

"""What a pod's annotations say of where its server listens, in the file that the downward API writes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf import config
from otelperf.agent import make_finder
from otelperf.errors import SourceFlawed
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.annotations import Annotations
from otelperf.sources.engines.finder import Finder
from tests.engines.loopback import Loopback, saying

VLLM_PAGE = (Path(__file__).resolve().parent.parent / "captures" / "vllm-0.32.0" / "idle.txt").read_text()
SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
PAGES = [engine.metrics_path for engine in ENGINES]
HERE = config.load({"k8s.pod_ip": "10.0.0.7"}, {}, None).is_here


def read(path: Path, text: str | bytes) -> tuple[list[tuple[int, str]], str]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    annotations = Annotations(str(path), PAGES, HERE, needed=True)
    return [tuple(place) for place in annotations.places()], annotations.trouble  # type: ignore[misc] # two each


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations"


def test_the_file_of_a_pod_golden(path: Path) -> None:
    text = (
        'kubernetes.io/config.seen="2026-11-21T10:00:00.000000000Z"\n'
        'kubernetes.io/config.source="api"\n'
        'note="she said \\"9000\\",\\nand left\\t\\u200b"\n'
        'otelperf/server.url="http://127.0.0.1:9000, https://10.0.0.7:9443/llm/"\n'
        'prometheus.io/path="/v2/metrics"\n'
        'prometheus.io/port="8200"\n'
        'prometheus.io/scheme="https"\n'
        'prometheus.io/scrape="true"'
    )
    assert read(path, text) == (
        [(9000, "http://127.0.0.1:9000"), (9443, "https://10.0.0.7:9443/llm"), (8200, "https://127.0.0.1:8200/v2")],
        "",
    )


@pytest.mark.parametrize(
    ("annotated", "base"),
    [
        ("/metrics", ""),
        ("/prometheus/metrics", ""),  # trtllm-serve's own
        ("/llm/metrics", "/llm"),
        ("/llm/prometheus/metrics", "/llm"),
        ("/actuator/prometheus", ""),
        ("", ""),
        ("/a b/metrics", ""),
        ("/x?y=/metrics", ""),
        ("//evil.example/metrics", ""),
        ("@evil.example/metrics", ""),
        (":1@evil.example/metrics", ""),
    ],
)
def test_the_path_is_a_hint_at_what_comes_before_a_page_that_is_known(path: Path, annotated: str, base: str) -> None:
    places, trouble = read(path, f'prometheus.io/path="{annotated}"\nprometheus.io/port="8200"\n')
    assert places == [(8200, f"http://127.0.0.1:8200{base}")]
    assert trouble == ""


@pytest.mark.parametrize(
    "text",
    [
        'otelperf/server.url="http://far.example:8000"',
        'otelperf/server.url="http://10.0.0.8:8000"',
        'otelperf/server.url="http://127.0.0.1@far.example"',
        'otelperf/server.url="http://me:secret@127.0.0.1:1"',
        'otelperf/server.url="ftp://127.0.0.1"',
        'otelperf/server.url="http://127.0.0.1:99999"',
        'otelperf/server.url="http://[::1"',
        'otelperf/server.url="http://127.0.0.1:80\\n"',
        'otelperf/server.url="9000"',
        'prometheus.io/port="0x50"',
        'prometheus.io/port="80@far.example"',
        'prometheus.io/port="99999"',
        'prometheus.io/port="http"',
        'prometheus.io/port="8000"\nprometheus.io/scheme="gopher"',
        "server: 8000",
        'otelperf/server.url="http://127.0.0.1:9000',
        '{"otelperf/server.url": "http://127.0.0.1:9000"}',
        b"\x00\xff" * 50,
        "x" * 2_000_000,
    ],
    ids=lambda text: text[:50] if isinstance(text, str) else "bytes",
)
def test_what_cannot_be_used_is_one_trouble_and_leads_nowhere(path: Path, text: str | bytes) -> None:
    places, trouble = read(path, text)
    assert places == []
    assert trouble.startswith(f"server.annotations {path}: ")
    assert "\n" not in trouble
    assert len(trouble) < 400


def test_no_setting_lets_annotations_lead_elsewhere(path: Path) -> None:
    settings = config.load({"server.remote": "true"}, {}, None)
    path.write_text('otelperf/server.url="http://far.example:8000"\n')
    annotations = Annotations(str(path), PAGES, settings.is_here, needed=True)
    assert annotations.places() == ()
    assert "far.example" in annotations.trouble


def test_what_is_sound_before_what_is_not_is_used(path: Path) -> None:
    places, trouble = read(path, 'prometheus.io/port="8200"\noops\n')
    assert places == [(8200, "http://127.0.0.1:8200")]
    assert "line 2" in trouble


@pytest.mark.parametrize(("needed", "told"), [(True, True), (False, False)])
def test_a_file_that_is_absent_is_told_only_where_it_was_asked_for(path: Path, needed: bool, told: bool) -> None:
    annotations = Annotations(str(path), PAGES, HERE, needed=needed)
    assert annotations.places() == ()
    assert bool(annotations.trouble) == told


def test_a_folder_and_a_pipe_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "pipe"):
        annotations = Annotations(str(tmp_path / name), PAGES, HERE, needed=False)
        assert annotations.places() == ()
    assert Annotations(str(tmp_path), PAGES, HERE, needed=False).places() == ()


def test_it_is_read_again_when_kubernetes_swaps_the_volume(tmp_path: Path) -> None:
    for port, version in ((8200, "v1"), (8300, "v2")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "annotations").write_text(f'prometheus.io/port="{port}"\n')
        os.utime(tmp_path / version / "annotations", ns=(1, 1))
    link = tmp_path / "..data"
    link.symlink_to("v1")
    annotations = Annotations(str(link / "annotations"), PAGES, HERE, needed=True)
    assert [place.port for place in annotations.places()] == [8200]
    (tmp_path / "new").symlink_to("v2")
    (tmp_path / "new").rename(link)
    assert [place.port for place in annotations.places()] == [8300]
    link.unlink()
    assert annotations.places() == ()
    assert "No such file" in annotations.trouble


def quoted(value: str) -> str:
    """Quote as Go's %q does, as far as our parser must see it: quotes, backslashes, control characters."""
    return '"' + re.sub(r'["\\]|[^\x20-\x7e]', lambda found: f"\\u{ord(found[0]) & 0xFFFF:04x}", value) + '"'


@given(
    st.dictionaries(st.from_regex(r"[a-z.]+/[a-z.-]+", fullmatch=True), st.text(max_size=30), max_size=5),
    st.integers(1, 65535),
)
def test_other_annotations_are_passed_over_whatever_they_hold(
    tmp_path_factory: pytest.TempPathFactory, others: dict[str, str], port: int
) -> None:
    lines = {**{key: quoted(value) for key, value in others.items()}, "prometheus.io/port": f'"{port}"'}
    lines = {key: value for key, value in lines.items() if key == "prometheus.io/port" or "prometheus" not in key}
    text = "\n".join(f"{key}={value}" for key, value in lines.items())
    assert read(tmp_path_factory.getbasetemp() / "annotations", text) == ([(port, f"http://127.0.0.1:{port}")], "")


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: f'otelperf/server.url="{text}"\n'.encode("utf-8", "replace"))
)
def test_any_bytes_lead_nowhere_else(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    places, _ = read(tmp_path_factory.getbasetemp() / "annotations", content)
    assert all(HERE(url) and 1 <= port <= 65535 for port, url in places)


# -- followed by the finder


def test_the_finder_looks_where_the_annotations_say_and_follows_them(path: Path) -> None:
    with Loopback(saying({"/llm/metrics": VLLM_PAGE})) as server:
        annotations = Annotations(str(path), PAGES, HERE, needed=False)
        finder = Finder(ENGINES, ports=(1,), annotations=annotations)
        assert finder.read(START) == []
        path.write_text(f'otelperf/server.url="http://127.0.0.1:{server.port}/llm"\n')
        finder.read(START + 5 * SECOND)
        assert [each.url for each in finder.found] == [f"{server.url}/llm"]
        assert finder.ports == (server.port, 1)


def test_an_annotation_that_is_gone_is_looked_at_no_more(path: Path) -> None:
    path.write_text('prometheus.io/port="2"\notelperf/server.url="http://[::1]:1"\n')
    finder = Finder(ENGINES, ports=(1,), annotations=Annotations(str(path), PAGES, HERE, needed=True))
    finder.read(START)
    assert set(finder.ports) == {1, 2}
    assert finder._places[1].url == "http://[::1]:1"
    path.write_text("")
    finder.read(START + 5 * SECOND)
    assert finder.ports == (1,)
    assert finder._places[1].url == "http://127.0.0.1:1"


def test_a_trouble_with_the_annotations_stops_no_looking(path: Path) -> None:
    path.write_text("oops\n")
    with Loopback(saying({"/metrics": VLLM_PAGE})) as server:
        finder = Finder(ENGINES, ports=(server.port,), annotations=Annotations(str(path), PAGES, HERE, needed=True))
        with pytest.raises(SourceFlawed, match="line 1 is not key="):
            finder.read(START)
        assert len(finder.found) == 1


def test_tls_files_that_cannot_be_used_are_told_and_stop_no_looking(path: Path) -> None:
    path.write_text('otelperf/server.url="https://127.0.0.1:1"\n')
    with Loopback(saying({"/metrics": VLLM_PAGE})) as server:
        given = {
            "server.annotations": str(path),
            "server.certificate": "/nowhere.pem",
            "server.ports": str(server.port),
        }
        finder = make_finder(config.load(given, {}, None))
        assert finder
        with pytest.raises(SourceFlawed, match=r"/nowhere\.pem.*check server\.certificate"):
            finder.read(START)
        assert [each.url for each in finder.found] == [server.url]

"""A server's series under its own names: name, labels, help and type as they are on its page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource
from prometheus_client.parser import text_string_to_metric_families

from otelperf import config
from otelperf.agent import Agent
from otelperf.doctor.servers import check_servers
from otelperf.errors import SourceError
from otelperf.points import Points
from otelperf.prometheus_text import render
from otelperf.readings import Batch, Buckets, Native, Reading, Snapshot
from otelperf.sources.engines.engine import unmapped
from otelperf.sources.engines.exposition import Families, Reader
from otelperf.sources.engines.mapping import STREAMS
from otelperf.sources.engines.native import Chosen, Natives
from otelperf.sources.engines.ollama import OLLAMA
from otelperf.sources.engines.server import Server
from otelperf.sources.engines.tgi import TGI
from otelperf.sources.engines.vllm import VLLM
from tests.engines.loopback import Loopback, message, saying
from tests.engines.pages import SECOND, START, names, page, read, reading

BUSY = page("vllm-0.32.0/busy.txt")
MODELS = page("vllm-0.32.0/v1-models.json")
PAGES: dict[str, bytes | str] = {"/metrics": BUSY, "/v1/models": MODELS}


class Pages:
    """Reads one page after the other, without the network."""

    def __init__(self, *globs: str) -> None:
        chosen = Chosen(globs)
        self.families = Families(chosen)
        self.reader = Reader(chosen, self.families)
        self.natives = Natives(globs)
        self.troubles: list[str] = []

    def read(self, text: str, start: int | None = None) -> list[Reading]:
        return self.natives.readings(self.reader.read(text.encode()).lines, self.families, start, self.troubles)


def read_once(text: str, *globs: str) -> list[Reading]:
    return Pages(*globs).read(text)


def text_of(readings: Sequence[Reading]) -> str:
    """Return what Prometheus would store of them, as text."""
    batch = Batch("s", "e", START, tuple(readings))
    return render(Points({"e": Resource({})}, "0").of(Snapshot(START, (batch,), ())))


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples of a page; empty labels are none, and bounds are numbers."""
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    return {
        (
            sample.name,
            frozenset((k, str(float(v)) if k == "le" else v) for k, v in sample.labels.items() if v),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    "capture",
    ["vllm-0.32.0/busy.txt", "tgi-3.3/busy.txt", "triton-2.51/five-requests.txt", "sglang-0.5.23/busy.txt"],
)
def test_all_that_passes_through_is_stored_as_a_scrape_of_the_page_would_be(capture: str) -> None:
    """Counters without _total and summaries too. Prometheus writes a label that begins with _ otherwise: only that differs."""
    text = page(capture)
    expected = {key: value for key, value in samples(text).items() if not key[0].endswith("_created")}
    expected = {
        (name, frozenset((f"key{k}" if k.startswith("_") else k, v) for k, v in labels)): value
        for (name, labels), value in expected.items()
    }
    assert samples(text_of(read_once(text, "*"))) == expected


def test_a_series_keeps_its_help_and_its_type() -> None:
    rendered = text_of(read_once(BUSY, "vllm:generation_tokens_total", "vllm:num_requests_running"))
    kept = [line for line in BUSY.splitlines() if line.startswith("#") and line in rendered]
    assert [line.split()[1:3] for line in kept] == [
        [what, name]
        for name in ("vllm:num_requests_running", "vllm:generation_tokens_total")
        for what in ("HELP", "TYPE")
    ]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("vllm:num_requests_waiting", {"vllm:num_requests_waiting"}),
        ("vllm:num_requests_*", {f"vllm:num_requests_{x}" for x in ("running", "waiting", "waiting_by_reason")}),
        ("vllm:time_to_first_token_seconds", {"vllm:time_to_first_token_seconds"}),
        ("vllm:time_to_first_token_seconds_bucket", {"vllm:time_to_first_token_seconds"}),
        ("vllm:prompt_tokens_created", {"vllm:prompt_tokens_created"}),
        ("vllm:prompt_tokens_c*", {"vllm:prompt_tokens_cached_total", "vllm:prompt_tokens_cached_by_source_total"}),
        ("*_lengt?", set()),
    ],
)
def test_a_glob_means_series_and_whole_histograms(glob: str, expected: set[str]) -> None:
    assert names(read_once(BUSY, glob)) == expected


def test_a_histogram_is_whole_with_the_servers_bounds() -> None:
    [histogram] = read_once(BUSY, "vllm:time_to_first_token_seconds_sum")
    assert isinstance(histogram.value, Buckets)
    assert len(histogram.value.bounds) == 22
    assert dict(histogram.attributes) == {"engine": "0", "model_name": "tiny"}


@pytest.mark.parametrize(
    ("comment", "name", "kind"),
    [
        ("# TYPE x_total counter", "x_total", "counter"),
        ("# TYPE x counter", "x_total", "counter"),  # OpenMetrics
        ("# TYPE x counter", "x", "sum"),
        ("# TYPE x_total_total counter", "x_total_total", "sum"),  # Prometheus would take one away
        ("# TYPE x gauge", "x", "gauge"),
        ("# TYPE x_total gauge", "x_total", "gauge"),
        ("# TYPE x untyped", "x", "gauge"),
        ("# HELP x no type", "x", "gauge"),
        ("# TYPE x summary", "x_count", "sum"),
        ("# TYPE x summary", "x", "gauge"),  # a quantile
        ("# TYPE x", "x", "gauge"),
        ("#", "x_bucket", "gauge"),
    ],
)
def test_a_series_is_of_the_type_that_the_page_says(comment: str, name: str, kind: str) -> None:
    [found] = read_once(f'{comment}\n{name}{{quantile="0.5"}} 5\n', "x*")
    assert (found.name, found.native and found.native.kind) == (name, kind)


def test_a_help_is_unescaped() -> None:
    [found] = read_once("# HELP x one\\\\two\\nthree\n# TYPE x gauge\nx 5\n", "x")
    assert found.native == Native("gauge", "one\\two\nthree")


def test_counters_count_from_the_start_of_the_process() -> None:
    with reading(replace(VLLM, native=("vllm:*",)), PAGES) as (server, _):
        found = [r for r in read(server)[0] if r.native]
    started = {r.start for r in found if r.native and r.native.kind != "gauge"}
    assert len(started) == 1
    assert None not in started
    assert {r.start for r in found if r.native and r.native.kind == "gauge"} == {None}


def test_our_names_are_read_beside_them_as_without() -> None:
    with reading(VLLM, PAGES) as (server, _):
        alone, _ = read(server)
    with reading(replace(VLLM, native=("vllm:*", "http_*")), PAGES) as (server, _):
        both, said = read(server)
    assert said == ""
    assert [r for r in both if not r.native] == alone


def test_without_the_map_the_native_ones_and_up_are_all() -> None:
    with reading(unmapped(replace(VLLM, native=("vllm:num_requests_*",))), PAGES) as (server, loopback):
        readings, said = read(server)
    assert said == ""
    assert names(readings) == {
        "otelperf.server.up",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:num_requests_waiting_by_reason",
    }
    assert set(loopback.paths) == {"/metrics"}


def test_a_server_is_up_though_nothing_of_it_is_chosen() -> None:
    with reading(unmapped(replace(VLLM, native=("sglang:*",))), PAGES) as (server, _):
        readings, said = read(server)
    assert (said, [(r.name, r.value) for r in readings]) == ("", [("otelperf.server.up", 1)])


def test_a_server_without_a_metrics_page_keeps_its_map() -> None:
    assert unmapped(OLLAMA) is OLLAMA


def test_the_model_that_another_page_tells_is_not_added_to_native_series() -> None:
    pages: dict[str, bytes | str] = {"/metrics": page("tgi-3.3/busy.txt"), "/info": page("tgi-3.3/info.json")}
    with reading(replace(TGI, native=("tgi_queue_size",)), pages) as (server, _):
        readings, _ = read(server)
    [queue] = [r for r in readings if r.native]
    assert dict(queue.attributes) == {}
    assert all("gen_ai.request.model" in r.attributes for r in readings if r.name == "otelperf.server.requests")


def test_label_sets_without_end_are_cut_and_told_once() -> None:
    pages = Pages("x*")
    text = "# TYPE xh histogram\n" + "".join(
        f'x{{user="{n}"}} {n}\nxh_bucket{{user="{n}",le="+Inf"}} 1\nxh_sum{{user="{n}"}} 1\n'
        for n in range(STREAMS + 9)
    )
    found = pages.read(text)
    assert [r.attributes["user"] for r in found if r.name == "x"] == [str(n) for n in range(STREAMS)]
    assert [r.attributes["user"] for r in found if r.name == "xh"] == [str(n) for n in range(STREAMS)]
    assert pages.troubles == [
        f"{STREAMS + 9} series of {name}, {STREAMS} at most are passed through" for name in ("x", "xh")
    ]
    pages.read(text)
    assert len(pages.troubles) == 2


def test_the_same_line_gives_the_same_attributes_each_time() -> None:
    pages = Pages("vllm:*")
    first, second = ([id(r.attributes) for r in pages.read(BUSY)] for _ in range(2))
    assert first == second


def test_a_type_that_another_version_changes_is_followed() -> None:
    """Also from a series to a part of a histogram."""
    pages = Pages("x*")
    assert [
        r.native and r.native.kind for r in pages.read('# TYPE x_bucket gauge\nx_bucket{le="+Inf"} 1\nx_sum 1\n')
    ] == [
        "gauge",
        "gauge",
    ]
    found = [pages.read('# TYPE x histogram\nx_bucket{le="+Inf"} 1\nx_sum 1\n') for _ in range(12)][-1]
    assert [r.value for r in found] == [Buckets(1, 1.0, (), (1,))]
    found = [pages.read('# TYPE x gauge\nx_bucket{le="+Inf"} 1\nx_sum 1\n') for _ in range(12)][-1]
    assert [r.value for r in found] == [1, 1]


def test_a_server_that_restarts_with_another_page_is_read_anew() -> None:
    pages: dict[str, bytes | str] = {**PAGES, "/metrics": "# TYPE vllm:x gauge\nvllm:x 1\n" + BUSY}
    with reading(replace(VLLM, native=("vllm:x*",)), pages) as (server, _):
        assert [r.native.kind for r in read(server)[0] if r.native] == ["gauge"]
        pages["/metrics"] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        read(server, START + SECOND)
        pages["/metrics"] = "# TYPE vllm:x counter\nvllm:x 1\n\n" + BUSY
        assert [r.native.kind for r in read(server, START + 2 * SECOND)[0] if r.native] == ["sum"]


_NAMES = st.sampled_from(["x", "x_total", "x_bucket", "x_sum", "x_count", "x_created", "y:z", "x_total_total"])
_KINDS = st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped", "info", "", "many words"])
_LABELS = st.dictionaries(
    st.sampled_from(["le", "quantile", "engine", "job", "__name__", "_x"]),
    st.sampled_from(["", "0", "+Inf", "NaN", "-1", "0.5", "y" * 300]),
    max_size=3,
)
_VALUES = st.sampled_from(["0", "-1", "2.5", "NaN", "+Inf", "1e308", "9007199254740993"])


@given(st.lists(st.lists(st.tuples(_NAMES, _KINDS, _LABELS, _VALUES), max_size=8), max_size=3))
def test_whatever_is_on_the_page_passes_through_or_does_not_but_can_be_sent(
    several: list[list[tuple[str, str, dict[str, str], str]]],
) -> None:
    pages = Pages("*")
    for lines in several:
        text = ""
        for name, kind, labels, value in lines:
            inside = ",".join(f'{label}="{told}"' for label, told in labels.items())
            text += f"# TYPE {name} {kind}\n{name}{{{inside}}} {value}\n"
        batch = Batch("s", "e", START, tuple(pages.read(text, START)))
        encode_metrics(Points({"e": Resource({})}, "0").of(Snapshot(START, (batch,), ())))


def test_up_is_said_by_the_name_that_a_scrape_gives_it_where_it_is_named_itself() -> None:
    """Not where a glob fits it: it is on no page."""
    for globs, expected in ((("vllm:*", "up"), [1]), (("*",), []), ((), [])):
        with reading(replace(VLLM, native=globs), dict(PAGES)) as (server, loopback):
            assert [each.value for each in read(server)[0] if each.name == "up"] == expected
            loopback.answer = saying({"/metrics": message("busy", "503 Service Unavailable")})
            with pytest.raises(SourceError) as caught:
                server.read(START + SECOND)
            assert [each.value for each in caught.value.readings if each.name == "up"] == [0 for _ in expected]


def test_names_that_prometheus_or_otelperf_make_are_left_out() -> None:
    text = 'up 0\ntarget_info{a="b"} 1\notel_scope_info 1\notelperf_server_up 7\nmine 1\n'
    assert names(read_once(text, "*")) == {"mine"}


# -- globs that fit nothing

MINUTE = 60 * SECOND


def told(server: Server, *minutes: float) -> list[str]:
    """Read at these minutes; return what was to be told of globs by then."""
    for minute in minutes:
        read(server, START + int(minute * MINUTE))
    found, server.unfit = list(server.unfit), deque()
    return found


GLOBS = (
    "vllm:num_requests_runing",
    "vllm:num_requests_*",
    "http_requests_total",
    "up",
    "target_info",
    "vllm:*_created",
)


def test_a_glob_that_fits_nothing_is_told_once_when_the_server_has_been_ready_for_long() -> None:
    pages = {**PAGES, "/metrics": BUSY + "target_info 1\n"}
    with reading(replace(VLLM, native=GLOBS), pages) as (server, _):
        assert told(server, 0, 1, 4.9) == []
        assert told(server, 5) == ["vllm:num_requests_runing", "target_info", "vllm:*_created"]
        assert told(server, 6, 60) == []
        assert set(server.fits.missing) == {"vllm:num_requests_runing", "target_info", "vllm:*_created"}


def test_a_series_that_comes_late_is_not_missed() -> None:
    pages = dict(PAGES)
    with reading(unmapped(replace(VLLM, native=("vllm:late_*",))), pages) as (server, _):
        assert told(server, 0, 4) == []
        pages["/metrics"] = f"{BUSY}vllm:late_total 1\n"
        assert told(server, 4.5) == []
        pages["/metrics"] = BUSY
        assert told(server, 5, 20) == []


def test_time_in_which_a_server_is_not_ready_does_not_count() -> None:
    pages: dict[str, bytes | str] = {"/metrics": message("loads", "503 Service Unavailable")}
    with reading(replace(VLLM, native=("vllm:x",)), pages) as (server, _):
        assert told(server, 0, 6) == []
        pages.update(PAGES)
        assert told(server, 7, 11.9) == []
        assert told(server, 12) == ["vllm:x"]


def test_after_a_restart_globs_are_looked_at_anew_and_what_was_told_is_not_told_again() -> None:
    """The new version may lack a series that the old one had."""
    late, down = f"{BUSY}vllm:late_total 1\n", message("loads", "503 Service Unavailable")
    pages = {**PAGES, "/metrics": late}
    with reading(replace(VLLM, native=("vllm:late_total", "vllm:x")), pages) as (server, _):
        assert told(server, 0, 5) == ["vllm:x"]
        pages["/metrics"] = down
        assert told(server, 6) == []
        pages["/metrics"] = BUSY
        assert told(server, 7, 11) == []
        assert told(server, 12, 20) == ["vllm:late_total"]


def test_the_agent_tells_of_a_glob_once_unless_another_of_its_servers_has_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = START
    with Loopback(saying(PAGES)) as vllm, Loopback(saying({"/metrics": page("tgi-3.3/busy.txt")})) as tgi:
        values = {
            "metrics.exporter": "none",
            "endpoint.enabled": "false",
            "host.enabled": "false",
            "server.url": f"{vllm.url},{tgi.url}",
            "server.passthrough": "vllm:*,tgi_*,vllm:num_requests_runing",
        }
        agent = Agent(config.load(values, {}, None), environ={}, clock=lambda: now, threads=False)
        for _ in range(70):
            agent.tick()
            now += 10 * SECOND
        agent.close()
    lines = [record.getMessage() for record in caplog.records if "passthrough" in record.getMessage()]
    where = f'url={vllm.url} see="the names on {vllm.url}/metrics"'
    assert lines == [f"passthrough fits nothing glob=vllm:num_requests_runing {where}"]


def test_the_doctor_says_which_globs_are_on_no_servers_page() -> None:
    with (
        Loopback(saying(PAGES)) as vllm,
        Loopback(saying({"/metrics": page("tgi-3.3/busy.txt"), "/info": page("tgi-3.3/info.json")})) as tgi,
    ):
        urls = {"server.url": f"{vllm.url},{tgi.url}", "server.process": "false"}
        finding = check_servers(config.load({**urls, "server.passthrough": "vllm:*,tgi_*,up,vllm:x"}, {}, None))
        assert finding.status == "warning"
        where = f"{vllm.url}/metrics and {tgi.url}/metrics"
        assert f"vllm:x of server.passthrough fits nothing on {where}" in finding.seen
        assert f"compare server.passthrough with the names on {where}" in finding.cure
        assert "tgi_*" not in finding.seen
        assert check_servers(config.load({**urls, "server.passthrough": "vllm:*,tgi_*,up"}, {}, None)).status == "ok"

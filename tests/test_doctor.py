"""The doctor against small servers in this process: one that answers what it is told, and one that stores like Prometheus."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from otelperf import config, doctor
from otelperf.connection import Unreachable
from otelperf.doctor import clocks, examination, way_out
from otelperf.doctor.asking import Offset, date_offset
from otelperf.doctor.clocks import check_clock
from otelperf.doctor.examination import examine
from otelperf.doctor.finding import Finding, as_json, as_lines, well
from otelperf.doctor.servers import check_servers
from otelperf.doctor.stored import PROMOTED, STRATEGY
from otelperf.doctor.way_out import check_settings
from otelperf.export import Verdict
from otelperf.prometheus_text import label_name, metric_name
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.finder import Finder
from tests.engines.loopback import Loopback, message, saying

PROJECT = Path(__file__).resolve().parent.parent
PROTOBUF = "application/x-protobuf"

Handle = Callable[[BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes]]


@contextmanager
def serving(handle: Handle) -> Iterator[str]:
    """Serve on loopback; *handle* makes status, headers and body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer: in two, the second waits for an acknowledgement

        def do_GET(self) -> None:
            status, headers, body = handle(self)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 # http.server's name

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def body_of(request: BaseHTTPRequestHandler) -> bytes:
    return request.rfile.read(int(request.headers.get("Content-Length", 0)))


def settings(**values: str) -> config.Settings:
    """Return settings by key, dots as double underscores."""
    return config.load({key.replace("__", "."): value for key, value in values.items()})


def found(given: config.Settings, name: str) -> Finding:
    return {each.name: each for each in examine(given, lambda _: None, {})}[name]


# ── A backend ────────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES: dict[str, Callable[[str, str, str], str]] = {
    "UnderscoreEscapingWithSuffixes": metric_name,
    "UnderscoreEscapingWithoutSuffixes": lambda name, _unit, _kind: metric_name(name, "", "histogram"),
    "NoTranslation": lambda name, _unit, _kind: name,
    "other": lambda name, unit, kind: "ns_" + metric_name(name, unit, kind),
}


@dataclass
class Backend:
    """A Collector and a Prometheus in one, with faults to choose."""

    strategy: str = "UnderscoreEscapingWithSuffixes"
    promoted: tuple[str, ...] = PROMOTED
    window: bool = True
    lost: tuple[float, ...] = ()
    deaf_to_marks: tuple[str, ...] = ()
    rejected: int = 0
    remark: str = ""
    busy: int = 0
    store: bool = True
    delay: float = 0.0
    ahead: float = 0.0
    job: str | None = None
    lookback: str = "5m"
    otlp: bool = True
    status: bool = True
    refuse_empty: bool = False
    series: dict[tuple[str, frozenset[tuple[str, str]]], dict[float, float | None]] = field(default_factory=dict)
    authorization: set[str | None] = field(default_factory=set)
    newest: float = 0.0

    def handle(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        self.authorization.add(request.headers.get("Authorization"))
        if request.command == "POST":
            return self.take(body_of(request))
        parts = urlsplit(request.path)
        data = self.answer(parts.path.removeprefix("/api/v1/"), {k: v[0] for k, v in parse_qs(parts.query).items()})
        if data is None:
            return 404, {}, b"404 page not found"
        return 200, {"Content-Type": "application/json"}, json.dumps({"status": "success", "data": data}).encode()

    def take(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if not body and self.refuse_empty:
            return 400, {}, b"empty request"
        if body and self.busy:
            self.busy -= 1
            return 503, {"Retry-After": "0"}, b"queue full"
        answer = ExportMetricsServiceResponse()
        if body and (self.rejected or self.remark):
            answer.partial_success.rejected_data_points = self.rejected
            answer.partial_success.error_message = self.remark
        if body and self.store:
            self.write(ExportMetricsServiceRequest.FromString(body))
        return 200, {"Content-Type": PROTOBUF}, answer.SerializeToString()

    def write(self, request: ExportMetricsServiceRequest) -> None:
        for resource in request.resource_metrics:
            attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
            labels = {"job": self.job or attributes["service.name"], "instance": attributes["service.instance.id"]}
            labels |= {label_name(key): attributes[key] for key in self.promoted if key in attributes}
            rows = [row for metric in resource.scope_metrics[0].metrics for row in self.rows(metric, labels)]
            times = [when for *_, when, _ in rows]
            if not self.window and min(times) < self.newest:  # as target_info has it
                return
            self.newest = max(self.newest, *times)
            for name, all_labels, when, value in rows:
                if not (name.endswith("burst") and value in self.lost):
                    self.series.setdefault((name, frozenset(all_labels.items())), {})[when] = value

    def rows(self, metric: Any, labels: dict[str, str]) -> Iterator[tuple[str, dict[str, str], float, float | None]]:
        kind = metric.WhichOneof("data")
        name = NAMES[self.strategy](metric.name, metric.unit, "counter" if kind == "sum" else kind)
        for point in getattr(metric, kind).data_points:
            own = labels | {each.key: each.value.string_value for each in point.attributes}
            when = point.time_unix_nano / 1e9
            if point.flags and kind in self.deaf_to_marks:
                continue
            if kind == "histogram":
                # Prometheus leaves the sum out where the point has none, and so does not end it either.
                for suffix in ("_count", "_sum", "_bucket") if point.HasField("sum") else ("_count", "_bucket"):
                    yield name + suffix, own, when, None if point.flags else float(point.count)
            else:
                yield name, own, when, None if point.flags else point.as_double or float(point.as_int)

    def answer(self, path: str, query: dict[str, str]) -> Any:
        if path == "query" and query["query"] == "time()":
            now = time.time() + self.ahead
            return {"resultType": "scalar", "result": [now, str(now)]}
        if path == "query":
            return {"result": list(self.found(float(query["time"]), whole=query["query"].endswith("[10m]")))}
        if path == "status/flags" and self.status:
            return {"query.lookback-delta": self.lookback, "web.enable-otlp-receiver": str(self.otlp).lower()}
        if path == "status/config" and self.status:
            otlp = {"translation_strategy": self.strategy, "promote_resource_attributes": list(self.promoted)}
            storage = {"tsdb": {"out_of_order_time_window": "2h"} if self.window else {}}
            return {"yaml": yaml.safe_dump({"otlp": otlp, "storage": storage})}
        return None

    def found(self, at: float, *, whole: bool) -> Iterator[dict[str, Any]]:
        for (name, labels), samples in self.series.items():
            told = [(when, value) for when, value in sorted(samples.items()) if when <= at - self.delay]
            kept = [[when, str(value)] for when, value in told if value is not None]
            if whole and kept:
                yield {"metric": {"__name__": name, **dict(labels)}, "values": kept}
            elif not whole and told and told[-1][1] is not None:
                yield {"metric": {"__name__": name, **dict(labels)}, "value": kept[-1]}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "_ARRIVAL", 0.4)
    monkeypatch.setattr(examination, "_PATIENCE", 0.3)


@contextmanager
def examined(backend: Backend, **values: str) -> Iterator[dict[str, Finding]]:
    with serving(backend.handle) as url:
        given = settings(export__endpoint=f"{url}/v1/metrics", doctor__prometheus_url=url, **values)
        yield {each.name: each for each in examine(given, lambda _: None, {})}


def test_all_is_well_with_a_faithful_backend() -> None:
    backend = Backend()
    with examined(backend) as findings:
        assert {name: each.status for name, each in findings.items() if each.status != "ok"} == {"servers": "skipped"}
    assert not list(backend.found(time.time() + 60, whole=False)), "every test series is ended"
    assert {dict(labels)["job"] for _, labels in backend.series} == {"otelperf"}


@pytest.mark.parametrize(
    ("backend", "name", "status", "words"),
    [
        (Backend(strategy="NoTranslation"), "names", "warning", "otlp.translation_strategy: Underscore"),
        (
            Backend(strategy="UnderscoreEscapingWithoutSuffixes"),
            "names",
            "warning",
            "(now: UnderscoreEscapingWithoutSuffixes)",
        ),
        (Backend(strategy="other"), "names", "warning", "of no strategy that we know"),
        (Backend(promoted=()), "promoted_attributes", "warning", "otlp.promote_resource_attributes"),
        (Backend(job="collector"), "job_and_instance", "warning", "job is collector, not otelperf"),
        (Backend(window=False), "previous_points", "failed", "out_of_order_time_window: 2h"),
        (Backend(window=False), "order", "ok", "50 numbered requests"),
        (Backend(lost=(7.0, 8.0)), "order", "failed", "num_consumers: 1"),
        (Backend(deaf_to_marks=("gauge",)), "stale_marks", "failed", "otelperf_doctor_gauge"),
        (Backend(deaf_to_marks=("histogram",)), "stale_marks", "failed", "otelperf_doctor_histogram_seconds_bucket"),
        (Backend(store=False), "arrival", "failed", "otelcol_exporter_send_failed_metric_points"),
        (Backend(store=False, otlp=False), "arrival", "failed", "--web.enable-otlp-receiver"),
        (Backend(store=False, ahead=900), "arrival", "failed", "the clocks differ"),
        (Backend(ahead=30), "clock", "warning", "our clock is 30.0 s behind"),
        (Backend(ahead=-30), "clock", "warning", "our clock is 30.0 s ahead"),
        (Backend(lookback="40s"), "lookback", "failed", "--query.lookback-delta=220s"),
        (Backend(lookback="3m"), "lookback", "warning", "one lost request"),
        (Backend(status=False), "lookback", "skipped", "flags cannot be read"),
        (Backend(status=False), "previous_points", "ok", "are stored"),
        (Backend(rejected=2, remark="too long"), "points", "failed", "2 of 3 points were rejected: too long"),
        (Backend(remark="deprecated"), "points", "warning", "deprecated"),
        (Backend(busy=9), "points", "failed", "HTTP 503 queue full"),
        (Backend(busy=1), "points", "ok", "accepted"),
        (Backend(refuse_empty=True), "endpoint", "ok", "an empty request with HTTP 400"),
        (Backend(refuse_empty=True), "stale_marks", "ok", "ended"),
    ],
)
def test_a_fault_is_found_and_has_a_cure(backend: Backend, name: str, status: str, words: str) -> None:
    with examined(replace(backend, series={}, newest=0.0)) as findings:
        finding = findings[name]
        assert (finding.status, words in f"{finding.seen} {finding.cure}") == (status, True), finding
        assert bool(finding.cure) == (status in {"warning", "failed"})


def test_what_cannot_be_tested_is_skipped_with_the_reason() -> None:
    with examined(Backend(store=False)) as findings:
        assert {findings[name].seen for name in ("names", "order", "stale_marks")} == {"the test series did not arrive"}
    with serving(Backend().handle) as url:
        findings = {each.name: each for each in examine(settings(export__endpoint=url), lambda _: None, {})}
        assert findings["arrival"] == Finding("arrival", "skipped", "doctor.prometheus_url is not set")
        assert (findings["points"].status, well(findings.values())) == ("ok", True)


def test_no_verdict_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "_TOTAL", 0.4)
    with examined(Backend(delay=0.2)) as findings:
        assert findings["arrival"].status == "ok"
        assert findings["stale_marks"] == Finding("stale_marks", "skipped", "no time was left for it within 0.4 s")


def test_ctrl_c_ends_the_test_series() -> None:
    backend = Backend()

    def interrupt(what: str) -> None:
        if what == "sending numbered requests":
            raise KeyboardInterrupt

    with serving(backend.handle) as url, pytest.raises(KeyboardInterrupt):
        examine(settings(export__endpoint=url, doctor__prometheus_url=url), interrupt, {})
    assert backend.series
    assert not list(backend.found(time.time() + 60, whole=False))


# ── The endpoint ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "headers", "body", "seen", "cure"),
    [
        (404, {}, b"404 page not found", "HTTP 404 404 page not found", ":4318/v1/metrics"),
        (404, {}, b"needs --web.enable-otlp-receiver", "HTTP 404", "start Prometheus with --web.enable-otlp-receiver"),
        (405, {}, b"", "HTTP 405", ":4318/v1/metrics"),
        (401, {}, b"", "HTTP 401", "headers sent now: x-tenant"),
        (403, {}, b"", "HTTP 403", "OTEL_EXPORTER_OTLP_HEADERS"),
        (
            307,
            {"Location": "https://there/v1/metrics"},
            b"",
            "HTTP 307",
            "set export.endpoint to https://there/v1/metrics",
        ),
        (400, {}, b"Client sent an HTTP request to an HTTPS server.", "HTTP 400", "write https://"),
        (429, {}, b"", "HTTP 429", "takes nothing now"),
        (503, {}, b"", "HTTP 503", "takes nothing now"),
        (502, {}, b"", "HTTP 502", "nobody behind it"),
        (500, {}, b"oh \x1b[31m", "HTTP 500 oh [31m", ":4318/v1/metrics"),
        (200, {"Content-Type": "text/html"}, b"<html>", "not OTLP: HTTP 200 with text/html", ":4318/v1/metrics"),
        (200, {"Content-Type": "application/json"}, b'{"hello": 1}', "not OTLP", ":4318/v1/metrics"),
        (200, {"Content-Type": "text/html"}, b"<" * 100_000, "not OTLP: more than", ":4318/v1/metrics"),
    ],
)
def test_an_answer_that_is_not_that_of_a_receiver(
    status: int, headers: dict[str, str], body: bytes, seen: str, cure: str
) -> None:
    def handle(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        body_of(request)
        return status, headers, body

    with serving(handle) as url:
        finding = found(settings(export__endpoint=f"{url}/v1/metrics", export__headers="x-tenant=1"), "endpoint")
    assert finding.status == "failed"
    assert seen in finding.seen
    assert cure in finding.cure


@pytest.mark.parametrize(
    "answer", [(PROTOBUF, b"\x0a\x00"), (PROTOBUF, b""), ("application/json", b'{"partialSuccess": {}}')]
)
def test_answers_of_receivers(answer: tuple[str, bytes]) -> None:
    kind, body = answer

    def handle(request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        body_of(request)
        return 200, {"Content-Type": kind}, body

    with serving(handle) as url:
        assert found(settings(export__endpoint=url), "endpoint").status == "ok"


def test_an_endpoint_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/metrics"
        began = time.monotonic()
        finding = found(settings(export__endpoint=url, export__timeout="200ms"), "endpoint")
        assert time.monotonic() - began < 8  # the usual timeout is 10 s
    assert finding.seen == f"{url} does not answer within 200ms"
    assert "firewall" in finding.cure


def test_an_endpoint_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1/metrics"
    findings = examine(settings(export__endpoint=url, doctor__prometheus_url=url), lambda _: None, {})
    by_name = {each.name: each for each in findings}
    assert by_name["endpoint"].seen == f"{url} refuses connections: nobody listens there"
    assert by_name["prometheus"].status == "failed"
    assert by_name["order"] == Finding("order", "skipped", "the endpoint cannot be used")
    assert by_name["clock"].status == "skipped"


def test_an_endpoint_that_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        finding = found(settings(export__endpoint=f"http://127.0.0.1:{server.getsockname()[1]}/"), "endpoint")
    assert "gives no HTTP answer" in finding.seen
    assert "gRPC port" in finding.cure


def test_https_where_only_http_is_spoken() -> None:
    with serving(Backend().handle) as url:
        finding = found(settings(export__endpoint=url.replace("http:", "https:")), "endpoint")
    assert "speaks no TLS" in finding.seen
    assert finding.cure == "write http:// instead of https://"


def test_what_tls_can_complain_of() -> None:
    untrusted = ssl.SSLCertVerificationError(1, "failed")
    untrusted.verify_message = "self-signed certificate"
    assert way_out._broken_tls("https://x", untrusted)[0].endswith("not trusted: self-signed certificate")
    alert = ssl.SSLError(1, "alert")
    alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert "export.client_certificate" in way_out._broken_tls("https://x", alert)[1]
    # A server that asks for a certificate may also just hang up, before its alert was read.
    seen, cure = way_out._broken_tls("https://x", ssl.SSLEOFError(8, "EOF occurred in violation of protocol"))
    assert (seen, "export.client_certificate" in cure) == ("https://x breaks off TLS: the connection was closed", True)


def test_a_name_that_is_unknown() -> None:
    error = Unreachable("unknown")
    error.__cause__ = socket.gaierror(-2, "Name or service not known")
    seen, cure = way_out._silence(settings(export__endpoint="http://colector:4318/v1/metrics"), error)
    assert (seen, cure) == ("the name colector is unknown", "correct the host in export.endpoint")


@pytest.mark.parametrize(
    ("verdict", "status", "cure"),
    [
        (Verdict("delivered"), "ok", ""),
        (Verdict("refused", "gRPC INVALID_ARGUMENT empty"), "ok", ""),
        (Verdict("retry", "gRPC UNAVAILABLE failed to connect", unreachable=True), "failed", "start the Collector"),
        (Verdict("retry", "gRPC DEADLINE_EXCEEDED"), "failed", "firewall"),
        (Verdict("refused", "gRPC UNAUTHENTICATED no token"), "failed", "OTEL_EXPORTER_OTLP_HEADERS"),
        (Verdict("refused", "gRPC UNIMPLEMENTED unknown service"), "failed", "metrics pipeline"),
        (Verdict("refused", "gRPC INTERNAL"), "failed", "log"),
    ],
)
def test_verdicts_of_grpc(verdict: Verdict, status: str, cure: str) -> None:
    finding = way_out._judged_call(settings(export__protocol="grpc"), verdict)
    assert (finding.status, cure in finding.cure) == (status, True)


# ── Settings, clocks, limits ─────────────────────────────────────────────────────────────────────────────────────────


def test_settings_that_send_nothing() -> None:
    assert "sdk.disabled" in check_settings(settings(sdk__disabled="true")).seen
    finding = check_settings(settings(profile="development"))
    assert (finding.status, "profile development" in finding.seen) == ("warning", True)


def test_a_difference_that_rounding_explains_is_none() -> None:
    date = date_offset("Sat, 21 Nov 2026 13:12:15 GMT", 1795266735.9, 1795266735.95)
    assert date is not None
    assert date.sure == 0.0
    assert check_clock({"it": Offset(-1.5, 0.4)}).status == "ok"
    assert date_offset("yesterday", 0, 0) is None
    assert date_offset(None, 0, 0) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("1500ms", 1.5), ("", None), ("5 m", None)]
)
def test_durations_of_prometheus(text: str, seconds: float | None) -> None:
    assert clocks._seconds(text) == seconds


def test_the_longest_heartbeat_counts(tmp_path: Path) -> None:
    file = tmp_path / "otelperf.yaml"
    file.write_text("gate: {heartbeat: 10s, rules: [{metric: 'system.*', heartbeat: 100s}]}")
    assert clocks._longest_heartbeat(config.load(file=file)) == 100


def test_a_url_that_is_no_prometheus() -> None:
    def page(_: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "text/html"}, b"<html>Grafana</html>"

    with serving(Backend().handle) as collector, serving(page) as url:
        given = settings(export__endpoint=collector, doctor__prometheus_url=url)
        findings = {each.name: each for each in examine(given, lambda _: None, {})}
    assert "answers otherwise than Prometheus does: HTTP 200 <html>Grafana</html>" in findings["prometheus"].seen
    assert findings["arrival"] == Finding("arrival", "skipped", "Prometheus cannot be read")


def test_a_password_is_used_and_never_shown() -> None:
    backend = Backend(lost=(1.0,), window=False)
    with serving(backend.handle) as url:
        secret = url.replace("//", "//me:s3cret@")
        given = settings(export__endpoint=f"{secret}/v1/metrics", doctor__prometheus_url=secret)
        findings = examine(given, lambda _: None, {})
        assert backend.authorization == {"Basic bWU6czNjcmV0"}
    findings += examine(given, lambda _: None, {})  # now nobody listens
    assert "s3cret" not in as_json(findings)


# ── Views ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_and_text_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Backend(promoted=()).handle) as url:
        given = settings(export__endpoint=url, doctor__prometheus_url=url)
        assert doctor.run(given, json=True) == 1
        said = json.loads(capsys.readouterr().out)
        assert doctor.run(given, json=False) == 1
    told = capsys.readouterr()
    assert said["ok"] is False
    assert [each["name"] for each in said["findings"] if each["status"] not in {"ok", "skipped"}] == [
        "promoted_attributes"
    ]
    assert "warning  promoted_attributes" in told.out
    assert told.out.endswith("\n\n12 ok, 1 warning, 1 skipped\n")
    assert told.err == ""


def test_a_long_finding_is_wrapped_and_its_cure_is_below() -> None:
    lines = as_lines([Finding("previous_points", "failed", "word " * 40, "do this")])
    assert lines[0].startswith("failed   previous_points      word")
    assert lines[-3].strip() == "cure: do this"
    assert max(map(len, lines)) <= 110


def test_the_promoted_attributes_are_those_of_the_shipped_configuration() -> None:
    shipped = yaml.safe_load((PROJECT / "prometheus" / "prometheus.yaml").read_text())["otlp"]
    assert list(PROMOTED) == shipped["promote_resource_attributes"]
    assert shipped["translation_strategy"] == STRATEGY


def test_a_server_that_answers_one_that_lacks_a_switch_and_one_that_is_gone_are_told_apart() -> None:
    page = "llamacpp:prompt_tokens_total 9"
    whole = saying({"/metrics": page, "/slots": "[]", "/props": "{}"})
    with Loopback(whole) as well, Loopback(saying({"/metrics": page, "/props": "{}"})) as lacking:
        assert check_servers(settings(server__url=well.url)).status == "ok"
        finding = check_servers(settings(server__url=f"{well.url},{lacking.url}"))
        assert (finding.status, "/slots answered HTTP 404" in finding.seen) == ("warning", True)
        gone = lacking.url
    finding = check_servers(settings(server__url=gone))
    cure = "start the server, or set server.url (OTELPERF_SERVER_URL) to where it listens"
    assert (finding.status, finding.cure) == ("failed", cure)


@pytest.mark.parametrize(
    ("pages", "status", "cure"),
    [
        ({"/metrics": "501 Not Implemented"}, "warning", "start llama-server with --metrics"),
        ({"/slots": "501 Not Implemented"}, "warning", "start llama-server with --slots"),
        (
            {"/metrics": "501 Not Implemented", "/slots": "501 Not Implemented"},
            "failed",
            "start llama-server with --metrics; start llama-server with --slots",
        ),
        ({"/metrics": "503 Service Unavailable"}, "failed", "wait until the server has loaded"),
        ({"/metrics": "401 Unauthorized", "/props": "401 Unauthorized"}, "failed", "set server.token_file"),
        ({"/metrics": "404 Not Found", "/props": "404 Not Found"}, "failed", "set server.url to the port of"),
    ],
)
def test_each_trouble_of_a_server_has_its_cure(pages: dict[str, str], status: str, cure: str) -> None:
    slots = '[{"id": 0, "is_processing": false}]'
    whole: dict[str, bytes | str] = {"/metrics": "llamacpp:prompt_tokens_total 9", "/slots": slots}
    whole |= {"/props": '{"total_slots": 1}'} | {path: message("", line) for path, line in pages.items()}
    with Loopback(saying(whole)) as llama:
        finding = check_servers(settings(server__url=llama.url))
    assert (finding.status, finding.cure[: len(cure)]) == (status, cure), finding


def test_a_pods_server_is_looked_for_as_the_agent_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback(saying({"/metrics": "llamacpp:prompt_tokens_total 9", "/slots": "[]", "/props": "{}"})) as llama:
        # The usual ports may be taken here.
        monkeypatch.setattr("otelperf.doctor.servers.make_finder", lambda _: Finder(ENGINES, ports=(llama.port,)))
        finding = check_servers(settings(mode="sidecar"))
        assert (finding.status, llama.url in finding.seen) == ("ok", True)
    assert check_servers(settings(mode="sidecar")).status == "warning"


def test_annotations_that_cannot_be_read_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "annotations").write_text("oops\n")
    with Loopback(saying({"/metrics": "llamacpp:prompt_tokens_total 9", "/slots": "[]", "/props": "{}"})) as llama:
        more = {"server__annotations": str(tmp_path / "annotations"), "server__ports": str(llama.port)}
        finding = check_servers(settings(**more))
        assert (finding.status, llama.url in finding.seen, "line 1 is not" in finding.seen) == ("warning", True, True)
    finding = check_servers(settings(**more))
    assert finding.seen.startswith(
        "no inference server was found on the ports of server.ports of 127.0.0.1; server.annot"
    )


def test_a_server_without_series_yet_is_well() -> None:
    models = '{"data": [{"id": "m", "owned_by": "tensorrt_llm"}]}'
    with Loopback(saying({"/prometheus/metrics": "", "/v1/models": models})) as trtllm:
        finding = check_servers(settings(server__url=trtllm.url))
    assert finding.status == "ok"
    assert "is up, and has no series yet" in finding.seen

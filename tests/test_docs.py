"""What the pages tell people to type works."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

PROJECT = Path(__file__).resolve().parent.parent
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("[!.]*/README.md")])


def test_the_readme_example_runs_and_delivers(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ExportMetricsServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    (example,) = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        names: dict[str, object] = {}
        exec(example, names)
        names["provider"].force_flush()  # type: ignore[attr-defined] # the example's MeterProvider
        names["provider"].shutdown()  # type: ignore[attr-defined] # as above
        server.shutdown()
    metric = received[0].resource_metrics[0].scope_metrics[0].metrics[0]
    assert ("queue.length", 12) == (metric.name, metric.gauge.data_points[0].as_int)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    mentioned = re.findall(r"\b(docs/[a-z_-]+\.(?:md|svg))\b", page.read_text())
    missing = [t for t in targets if not (page.parent / t).exists()]
    missing += [t for t in mentioned if not (PROJECT / t).exists()]
    assert missing == []


def test_every_command_in_contributing_and_readme_is_a_make_target() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    text = (PROJECT / "README.md").read_text() + (PROJECT / "CONTRIBUTING.md").read_text()
    for target in set(re.findall(r"make ([a-z]+)\b", text)) - {"a"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def examples(page: str) -> list[str]:
    """Return the Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("example", examples("application.md"))
def test_the_examples_of_the_application_page_run(example: str) -> None:
    exec(compile(example, "docs/application.md", "exec"), {})

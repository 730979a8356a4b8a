"""What a measured call costs the program, beside peers: ``python -m benchmarks.overhead``.

Each row is a process of its own, in several rounds one after the other, so that all see the same moods of the machine; medians
are shown. A process measures the bare call first, then the same call with what the row names: the difference is the overhead. CPU
time is counted. The OpenAI client is real, its HTTP transport a stand-in in the same process. What is exported goes to a local
OTLP server.

OpenLIT and OpenLLMetry need environments of their own: ``--openlit PYTHON --openllmetry PYTHON``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks import page
from benchmarks.page import Table
from benchmarks.sink import Request, Sink
from benchmarks.traffic import trace

# docs/design.md, section 6
MOST_MICROSECONDS = 60.0
MOST_IMPORT_MS = 30.0
CALLS, QUICK_CALLS = 800, 300
ROUNDS, QUICK_ROUNDS = 3, 1
SPEED = 10  # the trace's time, compressed; the heartbeat and the peers' export interval with it
SECONDS, QUICK_SECONDS = 600, 200  # of the trace
CLIENT = Path(__file__).with_name("overhead_client.py")
PAGE = page.DOCS / "overhead.md"
BEGIN = "<!-- made by python -m benchmarks.overhead --write -->"
END = "<!-- end of the figures -->"


class Variant(NamedTuple):
    """One way to measure; *python* runs it, None: it is not installed here."""

    key: str
    name: str
    python: str | None
    how_to_get: str = ""


class Overhead(NamedTuple):
    """µs a call beyond the bare one, in the caller's thread and in others; *empty*: around nothing, in all."""

    whole: float
    whole_others: float
    stream: float
    stream_others: float
    empty: float = float("nan")

    @property
    def all_in(self) -> float:
        return self.whole + self.whole_others


def variants(openlit: str | None, openllmetry: str | None) -> list[Variant]:
    here = sys.executable
    return [
        Variant("by hand", "OpenTelemetry by hand: a span, three histogram records", here),
        Variant("inference", "otelperf, by hand: `inference()`", here),
        Variant("automatic", "otelperf, automatic: `instrument()`", here),
        Variant("genai", "opentelemetry-instrumentation-genai-openai alone, with the SDK's exporters", here),
        Variant("openlit", "OpenLIT 1.45", openlit, 'pip install "openlit~=1.45.0" "openai<3"'),
        Variant(
            "openllmetry",
            "OpenLLMetry (traceloop-sdk 0.62.4)",
            openllmetry,
            'pip install traceloop-sdk==0.62.4 "openai<3"',
        ),
    ]


def run(variant: Variant, sink: Sink, how: str, what: dict[str, Any], **environ: str) -> dict[str, Any]:
    """Run one process of *variant* to its end, and return what it found out."""
    url = sink.endpoint(variant.key.replace(" ", "-")).removesuffix("/v1/metrics")
    done = subprocess.run(
        [str(variant.python), str(CLIENT), variant.key, url, how],
        input=json.dumps(what),
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{variant.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def overheads(present: list[Variant], sink: Sink, rounds: int, calls: int) -> tuple[dict[str, Overhead], Overhead]:
    """Return the medians of each variant, and of the bare call itself."""
    found: dict[str, list[Overhead]] = {variant.key: [] for variant in present}
    bare: list[Overhead] = []
    for number in range(rounds):
        for variant in present:
            result = run(variant, sink, "calls", {"calls": calls})
            (bare_whole, _), (bare_stream, _) = result["bare"]
            (whole, whole_others), (stream, stream_others), *empty = result["measured"]
            bare.append(Overhead(bare_whole, 0.0, bare_stream, 0.0))
            around_nothing = sum(empty[0]) if empty else float("nan")
            found[variant.key].append(
                Overhead(whole - bare_whole, whole_others, stream - bare_stream, stream_others, around_nothing)
            )
            print(f"round {number + 1}: {variant.name}: done", file=sys.stderr, flush=True)
    return {key: _median(rows) for key, rows in found.items()}, _median(bare)


def _median(rows: list[Overhead]) -> Overhead:
    return Overhead(*(statistics.median(column) for column in zip(*rows, strict=True)))


def cost_table(variants: list[Variant], found: dict[str, Overhead], bare: Overhead) -> Table:
    """Return what each adds to a call."""
    table: Table = [
        ("µs of CPU", "one piece", "other threads", "stream", "other threads", "around nothing", "by hand = 1")
    ]
    table.append(("the bare call", *(f"{value:.0f}" for value in bare[:4]), "", ""))
    for variant in variants:
        row = found.get(variant.key)
        if row is None:
            table.append((f"+ {variant.name}", f"not measured here: `{variant.how_to_get}`", *("",) * 5))
            continue
        empty = "" if math.isnan(row.empty) else f"{row.empty:.0f}"
        ratio = f"{row.all_in / found['by hand'].all_in:.1f}"
        table.append((f"+ {variant.name}", *(f"{value:.0f}" for value in row[:4]), empty, ratio))
    return table


def spans(requests: list[Request]) -> int:
    """Count the spans in what was sent."""
    count = 0
    for request in requests:
        if not request.metrics:
            body = gzip.decompress(request.body) if request.body[:2] == b"\x1f\x8b" else request.body
            decoded = ExportTraceServiceRequest.FromString(body)
            count += sum(len(scope.spans) for each in decoded.resource_spans for scope in each.scope_spans)
    return count


def sent_table(present: list[Variant], sink: Sink, seconds: int) -> Table:
    """Let each make the calls of the trace, one after the other, and count what it sent."""
    arrivals = [request.at for request in trace(0, seconds, speed=SPEED)]
    table: Table = [("sent", "calls", "spans", "bytes of spans", "bytes of metrics", "bytes a call")]
    for variant in present:
        if variant.key == "inference":
            continue  # sends what the automatic one does
        key = variant.key.replace(" ", "-")
        sink.received[key].clear()
        interval = {
            "OTELPERF_GATE_HEARTBEAT": f"{50 // SPEED}s",
            "OTELPERF_GATE_LINGER": "500ms",
            "OTEL_METRIC_EXPORT_INTERVAL": str(60_000 // SPEED),
        }
        found = run(variant, sink, "arrivals", {"arrivals": arrivals}, **interval)
        requests = sink.received[key]
        of_spans = sum(len(request.body) for request in requests if not request.metrics)
        of_metrics = sum(len(request.body) for request in requests if request.metrics)
        each = (of_spans + of_metrics) / found["calls"]
        table.append(
            (
                variant.name,
                f"{found['calls']:,}",
                f"{spans(requests):,}",
                f"{of_spans:,}",
                f"{of_metrics:,}",
                f"{each:.0f}",
            )
        )
        print(f"{variant.name}: arrivals done", file=sys.stderr, flush=True)
    return table


def import_ms(code: str, rounds: int = 9) -> float:
    """Return the CPU time that a line of Python adds to an empty program, in ms: the median."""
    measured = []
    for _ in range(rounds):
        both = []
        for each in ("pass", code):
            script = f"import time\nbegan = time.process_time()\n{each}\nprint((time.process_time() - began) * 1e3)"
            both.append(
                float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
            )
        measured.append(both[1] - both[0])
    return statistics.median(measured)


def goals(found: dict[str, Overhead]) -> Table:
    importing = import_ms("import otelperf")
    table: Table = [("goal", "limit", "measured", "")]
    rows = [
        ("`inference()` around nothing, all threads", MOST_MICROSECONDS, found["inference"].empty, "µs"),
        ("`inference()` around a call, all threads", MOST_MICROSECONDS, found["inference"].all_in, "µs"),
        ("`instrument()` and a call, all threads", MOST_MICROSECONDS, found["automatic"].all_in, "µs"),
    ]
    rows.append(("`import otelperf`", MOST_IMPORT_MS, importing, "ms"))
    for name, limit, value, unit in rows:
        table.append((name, f"≤ {limit:.0f} {unit}", f"{value:.1f} {unit}", "met" if value <= limit else "not met"))
    started = import_ms("import otelperf; otelperf.instrument('x', libraries='none', metrics_exporter='none')")
    table.append(("`otelperf.instrument()`, with all that it imports", "", f"{started:.0f} ms", ""))
    return table


def main() -> int:
    """Measure, print, and on request write the page."""
    options = _options()
    every = variants(options.openlit, options.openllmetry)
    present = [variant for variant in every if variant.python]
    load = os.getloadavg()[0]
    with Sink() as sink:
        found, bare = overheads(
            present, sink, QUICK_ROUNDS if options.quick else ROUNDS, QUICK_CALLS if options.quick else CALLS
        )
        costs = cost_table(every, found, bare)
        sent = sent_table(present, sink, QUICK_SECONDS if options.quick else SECONDS)
    where = f"{page.machine()}, load average {load:.1f} before and {os.getloadavg()[0]:.1f} after"
    shown = [f"{where}; the quick run" if options.quick else where]
    for title, table in (
        ("What a call costs", costs),
        (f"What is sent, under azure-llm-code {SPEED} times as fast", sent),
        ("Goals", goals(found)),
    ):
        shown += ["", f"**{title}**", "", *page.markdown(table)]
    print(*shown, sep="\n")
    if options.write:
        page.write(PAGE, BEGIN, END, "\n".join(shown))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, in some minutes")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/overhead.md")
    parser.add_argument("--openlit", metavar="PYTHON", help="the interpreter of an environment that has OpenLIT")
    parser.add_argument("--openllmetry", metavar="PYTHON", help="the same with traceloop-sdk")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

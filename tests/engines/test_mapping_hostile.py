"""Whatever a server puts on its page, the maps make readings of it that can be sent, or none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource

from otelperf.points import Points
from otelperf.readings import Batch, Snapshot
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.server import Server
from tests.engines.loopback import Loopback, saying

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
NUMBERS = [
    "0",
    "-1",
    "1",
    "2.5",
    "NaN",
    "+Inf",
    "-Inf",
    "1e300",
    "1e308",
    "-1e308",
    "1e-320",
    "9007199254740993",
    "many",
]
LABELS = ["engine", "dp_rank", "model_name", "model", "le", "status", "finished_reason", "sleep_state", "priority", "x"]
TEXTS = ["", "0", "1", "+Inf", "NaN", "-1", "0.5", "4xx", "stop", "abort", "awake", "discard_all", "é\\n", "y" * 300]


@st.composite
def pages(draw: st.DrawFn, engine: Engine) -> str:
    names = sorted(engine.wanted())
    lines = []
    for _ in range(draw(st.integers(1, 8))):
        labels = draw(st.dictionaries(st.sampled_from(LABELS), st.sampled_from(TEXTS), max_size=3))
        inside = ",".join(f'{name}="{text}"' for name, text in labels.items())
        lines.append(f"{draw(st.sampled_from(names))}{{{inside}}} {draw(st.sampled_from(NUMBERS))}")
    return "\n".join(lines) + "\n"


def sendable(server: Server, page: str, second: int) -> None:
    """Read *page*, without the network, and encode what it gives."""
    engine = server.engine
    assert engine
    found = server._reader.read(page.encode())
    readings = server._mapper.readings(START + second * SECOND, found.lines, None, [])
    batch = Batch("s", "e", START + second * SECOND, tuple(readings))
    encode_metrics(Points({"e": Resource({})}, "0").of(Snapshot(batch.time, (batch,), ())))


@pytest.mark.parametrize("engine", [each for each in ENGINES if each.metrics_path], ids=lambda engine: engine.name)
@settings(max_examples=30)
@given(data=st.data())
def test_any_values_and_labels_are_read_and_can_be_sent(engine: Engine, data: st.DataObject) -> None:
    server = Server("http://127.0.0.1:1", engine)
    for second in range(2):
        sendable(server, data.draw(pages(engine)), second)


@pytest.mark.parametrize("start", ["1e300", "-5", "NaN", "1e18", "0"])
def test_a_process_start_that_cannot_be_is_none(start: str) -> None:
    vllm = next(engine for engine in ENGINES if engine.name == "vllm")
    with Loopback(
        saying({"/metrics": f"process_start_time_seconds {start}\nvllm:prompt_tokens_total 1\n"})
    ) as loopback:
        server = Server(loopback.url, vllm)
        starts: Sequence[int | None] = [reading.start for reading in server.read(START)]
        server.close()
    assert set(starts) == {None}

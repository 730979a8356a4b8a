"""Providers of the application's own: what is sent by whom, also where the application makes up its mind late."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

import otelperf
from otelperf import tracing
from otelperf.inprocess import Handle
from otelperf.sources.calls import Calls
from tests.receiver import Receiver

ORDERS = "orders"
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "tiny"}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@pytest.fixture
def tracers(monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    """The application's TracerProvider, set as the API's for this test."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return provider


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> Iterator[MeterProvider]:
    """The application's MeterProvider, set as the API's for this test."""
    provider = MeterProvider(shutdown_on_exit=False)
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", provider)
    yield provider
    provider.shutdown()


def exported_by(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def names(spans: Any) -> list[str]:
    return [span.name for span in spans]


def said(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(str(record.msg).startswith(event) for record in caplog.records)


def test_an_exporter_that_is_added_late_gets_the_spans_and_nobody_else(
    receiver: Receiver, tracers: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "otelperf")
    tracer = tracers.get_tracer("shop")
    with otelperf.instrument("chat", libraries="none") as handle:
        assert handle.tracer_provider is tracers
        with tracer.start_as_current_span("before"):
            pass
        with tracer.start_as_current_span("under way"):
            exporter = exported_by(tracers)
        with tracer.start_as_current_span("after"):
            pass
        assert receiver.wait(lambda: handle.tracer_provider is None)
        with otelperf.inference(model="tiny"):
            pass
    assert names(exporter.get_finished_spans()) == ["under way", "after", "chat tiny"]
    assert names(receiver.spans()) == ["before"]
    assert said(caplog, "spans are left to the application") == 1


def test_a_program_that_ends_before_the_next_tick_sends_nothing_twice(
    receiver: Receiver, tracers: TracerProvider
) -> None:
    tracer = tracers.get_tracer("shop")
    with otelperf.instrument("chat", libraries="none"):
        exporter = exported_by(tracers)
        for _ in range(3):
            with tracer.start_as_current_span("order"):
                pass
    assert (len(exporter.get_finished_spans()), receiver.spans()) == (3, [])


def test_a_processor_that_only_adds_attributes_exports_nothing(receiver: Receiver, tracers: TracerProvider) -> None:
    class Tenant(SpanProcessor):
        def on_start(self, span: Span, parent_context: object = None) -> None:
            span.set_attribute("tenant", "red")

    tracers.add_span_processor(Tenant())
    with otelperf.instrument("chat", libraries="none") as handle:
        tracers.add_span_processor(Tenant())
        with tracers.get_tracer("shop").start_as_current_span("order"):
            pass
        assert handle.tracer_provider is tracers
    assert [(span.name, span.attributes["tenant"]) for span in receiver.spans()] == [("order", "red")]


def test_a_provider_that_was_named_is_sent_whoever_else_exports_it(receiver: Receiver, tracers: TracerProvider) -> None:
    with otelperf.instrument("chat", libraries="none", tracer_provider=tracers):
        exporter = exported_by(tracers)
        with tracers.get_tracer("shop").start_as_current_span("order"):
            pass
    assert names(exporter.get_finished_spans()) == names(receiver.spans()) == ["order"]


def test_a_span_that_is_too_large_to_be_sent_takes_no_other_with_it(receiver: Receiver) -> None:
    with otelperf.instrument("chat", libraries="none"):
        for model, text in (("one", ""), ("large", "x" * 3_000_000), ("two", "")):
            with otelperf.inference(model=model, attributes={"mine": text}):
                pass
    assert names(receiver.spans()) == ["chat one", "chat two"]


def test_begun_anew_it_looks_again(receiver: Receiver, tracers: TracerProvider) -> None:
    with otelperf.instrument("chat", libraries="none") as handle:
        assert handle.tracer_provider is tracers
    exporter = exported_by(tracers)
    with otelperf.instrument("chat", libraries="none") as handle:
        assert handle.tracer_provider is None
        with otelperf.inference(model="tiny"):
            pass
    assert (names(exporter.get_finished_spans()), receiver.spans()) == (["chat tiny"], [])


def left(handle: Handle) -> bool:
    plan = handle._process.plan
    return plan is not None and plan.left


def test_a_reader_that_is_added_late_gets_the_metrics_and_nobody_else(
    receiver: Receiver, meters: MeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "otelperf")
    counter = meters.get_meter("shop").create_counter(ORDERS)
    counter.add(1)
    with otelperf.instrument("chat", libraries="none") as handle:
        counter.add(2)
        assert receiver.wait(lambda: receiver.points(ORDERS) != [])
        reader = InMemoryMetricReader()
        meters.add_metric_reader(reader)
        assert receiver.wait(lambda: left(handle))
        counter.add(4)
        assert handle.meter_provider is meters
    assert {point.value for point in receiver.points(ORDERS) if not point.gone} == {2}
    data: Any = reader.get_metrics_data()
    assert [point.value for point in data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points] == [4]
    assert receiver.points("process.cpu.time") != []
    assert said(caplog, "metrics are left to the application") == 1


def test_a_meter_provider_that_was_named_is_sent_whoever_else_reads_it(
    receiver: Receiver, meters: MeterProvider
) -> None:
    counter = meters.get_meter("shop").create_counter(ORDERS)
    with otelperf.instrument("chat", libraries="none", meter_provider=meters):
        meters.add_metric_reader(InMemoryMetricReader())
        counter.add(2)
    assert {point.value for point in receiver.points(ORDERS) if not point.gone} == {2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_leaves_what_its_parent_has_left(
    receiver: Receiver, tracers: TracerProvider, meters: MeterProvider
) -> None:
    with otelperf.instrument("chat", libraries="none") as handle:
        meters.add_metric_reader(InMemoryMetricReader())
        exported_by(tracers)
        with tracers.get_tracer("shop").start_as_current_span("order"):
            pass
        assert receiver.wait(lambda: left(handle) and handle.tracer_provider is None)
        child = os.fork()
        if not child:
            code = 1
            try:
                meters.get_meter("shop").create_counter(ORDERS).add(1)
                with otelperf.inference(model="tiny"):
                    pass
                code = 0 if handle.enabled and left(handle) and handle.shutdown(10) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert receiver.spans() == []
    assert receiver.points(ORDERS) == receiver.points("gen_ai.client.operation.duration") == []
    assert len({point.resource["service.instance.id"] for point in receiver.points("process.cpu.time")}) == 2


# -- calls of models that OpenTelemetry's own packages measure


def under_way() -> float:
    """Return how many calls like CHAT there are now."""
    readings = [each for each in Calls("agent").read(0) if each.name == "otelperf.client.active_requests"]
    return sum(each.value for each in readings if each.attributes == CHAT)  # type: ignore[misc] # numbers


def test_calls_of_other_packages_are_under_way_from_their_spans_start_to_its_end(receiver: Receiver) -> None:
    with otelperf.instrument("chat", libraries="none") as handle:
        assert handle.tracer_provider is not None
        tracer = handle.tracer_provider.get_tracer("opentelemetry.util.genai")
        one = tracer.start_span("chat tiny", kind=SpanKind.CLIENT, attributes=CHAT)
        two = tracer.start_span("chat tiny", kind=SpanKind.CLIENT, attributes=CHAT)
        tracer.start_span("POST", kind=SpanKind.CLIENT).end()
        assert under_way() == 2
        one.end()
        one.end()
        assert under_way() == 1
        del two  # a stream that nobody ends
        gc.collect()
        assert under_way() == 0
        last = tracer.start_span("chat tiny", kind=SpanKind.CLIENT, attributes=CHAT)
    assert under_way() == 1
    last.end()
    assert under_way() == 0


def chunk(text: str) -> str:
    told = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return f"data: {json.dumps({**told, 'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n"


def test_a_stream_of_the_openai_client_is_under_way_until_it_is_closed(receiver: Receiver) -> None:
    openai: Any = pytest.importorskip("openai")
    http: Any = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
    answer = "".join(map(chunk, "abc")) + "data: [DONE]\n\n"
    headers = {"content-type": "text/event-stream"}
    transport = http.MockTransport(lambda _: http.Response(200, content=answer.encode(), headers=headers))
    client = openai.OpenAI(
        api_key="x", base_url="http://model/v1", http_client=openai.DefaultHttpxClient(transport=transport)
    )

    def stream() -> Any:
        return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], stream=True)

    with otelperf.instrument("chat", libraries=["openai"]):
        left, read = stream(), stream()
        assert next(iter(left)).choices[0].delta.content == "a"
        assert under_way() == 2
        assert len(list(read)) == 3
        assert under_way() == 1
        left.close()
        assert under_way() == 0


def test_our_own_call_of_a_server_counts_once(receiver: Receiver) -> None:
    with (
        otelperf.instrument("chat", libraries="none"),
        otelperf.inference(model="tiny", provider="openai", server_address="model"),
    ):
        assert under_way() == 1
    assert under_way() == 0


def test_where_a_sampler_of_the_applications_drops_calls_none_are_counted(
    receiver: Receiver, tracers: TracerProvider
) -> None:
    with otelperf.instrument("chat", libraries="none"):
        span = tracers.get_tracer("x").start_span("chat tiny", kind=SpanKind.CLIENT, attributes=CHAT)
        assert under_way() == 0
        span.end()


# -- OTEL_TRACES_SAMPLER


@pytest.fixture
def fresh_sampler() -> Iterator[None]:
    tracing.sampler_of_environment.cache_clear()
    yield
    tracing.sampler_of_environment.cache_clear()


@pytest.mark.usefixtures("fresh_sampler")
@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("always_off", "", "AlwaysOffSampler"),
        ("always_on", "", "None"),
        ("traceidratio", "0.25", "TraceIdRatioBased{0.25}"),
        ("parentbased_always_on", "", "None"),
        ("parentbased_traceidratio", "0.25", "ParentBased{root:TraceIdRatioBased{0.25}"),
        ("", "", "None"),
        ("no_such_sampler", "", "None"),
    ],
)
def test_the_sampler_of_the_environment_is_the_sdks(
    name: str, argument: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    found = tracing.sampler_of_environment()
    assert str(found.get_description() if found else None).startswith(expected)


@pytest.mark.usefixtures("fresh_sampler")
@pytest.mark.parametrize(("name", "expected"), [("traceidratio", 20), ("always_off", 0)])
def test_a_sampler_of_the_environment_decides_in_the_gates_place(
    name: str, expected: int, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    with otelperf.instrument("chat", libraries="none"):
        for _ in range(20):
            with otelperf.inference(model="tiny"):
                pass
    assert len(receiver.spans()) == expected

"""No prompt, no answer, no exception's text and no URL's query leaves the process, unless asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, StatusCode

from otelperf.gate.content import is_content, without_query
from otelperf.gate.spans import SpanGate
from tests.gate.traced import Traced, of

SECRET = "my mother's maiden name"


def written(*spans: ReadableSpan) -> bytes:
    """Return what the exporters of OpenTelemetry put on the wire."""
    return bytes(encode_spans(spans).SerializeToString())


CONTENT = [
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "gen_ai.prompt",
    "gen_ai.prompt.0.content",
    "gen_ai.completion.0.content",
    "gen_ai.content.prompt",
    "input.value",
    "output.value",
    "llm.input_messages.0.message.content",
    "llm.output_messages.0.message.content",
    "llm.prompt_template.variables",
    "llm.prompts",
    "retrieval.documents.0.document.content",
    "traceloop.entity.input",
    "traceloop.entity.output",
    "exception.message",
    "url.query",
    "prompt",
]
HARMLESS = [
    "gen_ai.request.model",
    "gen_ai.usage.input_tokens",
    "gen_ai.output.type",
    "gen_ai.prompt.name",
    "gen_ai.response.finish_reasons",
    "input.mime_type",
    "llm.model_name",
    "llm.token_count.prompt",
    "http.request.body.size",
    "error.type",
    "exception.type",
    "messaging.system",
]


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("sampled", [True, False])
def test_attributes_that_hold_content_stay_here(name: str, *, sampled: bool) -> None:
    traced = Traced()
    if not sampled:
        traced.call()
        traced.clear()
    root = traced.begin()
    child = traced.begin("child", root)
    for span in (child, root):
        span.set_attribute(name, SECRET)
        span.add_event("said", {name: SECRET})
        traced.end(span, failed=True)
    assert len(traced.sent) == 2
    assert SECRET.encode() not in written(*traced.sent)


def test_what_says_nothing_of_the_content_passes() -> None:
    assert [name for name in HARMLESS if is_content(name)] == []
    traced = Traced()
    root = traced.begin()
    root.set_attributes(dict.fromkeys(HARMLESS, "x"))
    traced.end(root)
    assert dict.fromkeys(HARMLESS, "x") == {n: v for n, v in of(traced.sent[0]).items() if "gate" not in n}


@pytest.mark.parametrize(
    "event",
    [
        "gen_ai.user.message",
        "gen_ai.system.message",
        "gen_ai.assistant.message",
        "gen_ai.tool.message",
        "gen_ai.choice",
        "gen_ai.content.prompt",
    ],
)
def test_message_events_keep_their_outline(event: str) -> None:
    traced = Traced()
    root = traced.begin()
    root.add_event(event, {"content": SECRET, "message": SECRET, "tool_calls": SECRET, "role": "user"}, timestamp=5)
    traced.end(root)
    (kept,) = traced.sent[0].events
    assert (kept.name, kept.timestamp, dict(kept.attributes or {})) == (event, 5, {"role": "user"})


def test_an_exception_keeps_its_type_only() -> None:
    exporter = InMemorySpanExporter()
    gate = SpanGate(SimpleSpanProcessor(exporter), background=False)
    provider = TracerProvider(gate.sampler, shutdown_on_exit=False)
    provider.add_span_processor(gate)
    for _ in range(2):  # sampled, and late
        with pytest.raises(ValueError, match=SECRET), provider.get_tracer("t").start_as_current_span("call"):
            raise ValueError(SECRET)
    assert len(exporter.get_finished_spans()) == 2
    for span in exporter.get_finished_spans():
        assert SECRET.encode() not in written(span)
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError")
        assert (span.events[0].attributes or {})["exception.type"] == "ValueError"


@pytest.mark.parametrize("description", [f"cannot answer {SECRET}", SECRET, f"{SECRET}: no", f"ValueError {SECRET}"])
def test_a_description_that_names_no_error_stays_here(description: str) -> None:
    traced = Traced()
    root = traced.begin(error__type="ValueError")
    root.record_exception(TypeError("no"))
    root.set_status(StatusCode.ERROR, description)
    traced.end(root)
    assert (traced.sent[0].status.status_code, traced.sent[0].status.description) == (StatusCode.ERROR, None)


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        (f"BadRequestError: {SECRET}", "BadRequestError"),
        (f"openai.BadRequestError: {SECRET}", "openai.BadRequestError"),
        (f"RuntimeError: {SECRET}", "RuntimeError"),
        (f"Error: {SECRET}", None),
    ],
)
def test_a_description_keeps_the_error_that_the_span_names(description: str, expected: str | None) -> None:
    traced = Traced()
    root = traced.begin(error__type="openai.BadRequestError")
    root.record_exception(RuntimeError("no"))
    root.set_status(StatusCode.ERROR, description)
    traced.end(root)
    assert expected == traced.sent[0].status.description


def test_links_are_cleaned_too() -> None:
    traced = Traced()
    context = SpanContext(1, 2, is_remote=True)
    root = traced.tracer.start_span("call", Context(), links=[Link(context, {"prompt": SECRET, "a": 1}), Link(context)])
    root.end()
    assert [dict(link.attributes or {}) for link in traced.sent[0].links] == [{"a": 1}, {}]
    assert traced.sent[0].links[0].context == context


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/v1/chat?q=secret", "https://a.example/v1/chat?REDACTED"),
        ("https://me:secret@a.example:8000/x#secret", "https://REDACTED@a.example:8000/x"),
        ("/search?q=secret&b=@", "/search?REDACTED"),
        ("https://a.example/users/@me", "https://a.example/users/@me"),
        ("https://a.example", "https://a.example"),
        ("", ""),
    ],
)
def test_a_url_keeps_its_host_and_path(url: str, expected: str) -> None:
    assert expected == without_query(url)
    traced = Traced()
    traced.call(url__full=url, http__url=url, http__target=url)
    assert {of(traced.sent[0])[name] for name in ("url.full", "http.url", "http.target")} == {expected}


@given(st.text(), st.text(min_size=8))
def test_no_query_survives_whatever_the_url(begin: str, secret: str) -> None:
    plain = begin.replace(secret, "")
    assert without_query(f"{plain}?{secret}") == without_query(f"{plain}?x")


@pytest.mark.parametrize("value", [SECRET, [SECRET], [{"content": SECRET}]])
def test_content_passes_when_asked(value: Any) -> None:
    traced = Traced(content=True)
    root = traced.begin(prompt=value, url__full="https://a/?q=1")
    root.record_exception(ValueError(SECRET))
    root.set_status(StatusCode.ERROR, SECRET)
    traced.end(root)
    (span,) = traced.sent
    assert written(span).count(SECRET.encode()) == 4  # the value, twice in the exception, the status
    assert of(span)["url.full"] == "https://a/?q=1"


def test_what_the_sdk_dropped_is_still_said() -> None:
    exporter = InMemorySpanExporter()
    gate = SpanGate(SimpleSpanProcessor(exporter), background=False)
    limits = SpanLimits(max_span_attributes=2, max_events=1)
    provider = TracerProvider(gate.sampler, span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(gate)
    span = provider.get_tracer("t").start_span("call", attributes={"a": 1, "b": 2, "c": 3})
    span.add_event("x", {"prompt": SECRET})
    span.add_event("y", {"prompt": SECRET})
    span.end()
    (sent,) = exporter.get_finished_spans()
    assert (sent.dropped_attributes, sent.dropped_events, sent.dropped_links) == (1, 1, 0)

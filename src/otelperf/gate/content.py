"""What leaves a span before it leaves the process: prompts, answers, exception texts, URL queries, logins. On copies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanContext, Status

_REDACTED = "REDACTED"  # the word of the semantic conventions for URLs

_CONTENT = frozenset(
    {
        # OpenTelemetry; exceptions quote what they were given
        "exception.message",
        "exception.stacktrace",
        "error.message",
        "gen_ai.system_instructions",
        "gen_ai.tool.call.arguments",
        "gen_ai.tool.call.result",
        "gen_ai.tool.definitions",
        "gen_ai.retrieval.query.text",
        "gen_ai.retrieval.documents",
        "gen_ai.evaluation.explanation",
        "gen_ai.request.stop_sequences",
        # logins
        "http.request.header.authorization",
        "http.request.header.proxy-authorization",
        "http.request.header.cookie",
        "http.request.header.x-api-key",
        "http.response.header.set-cookie",
        # Sentry's and OpenLIT's spellings
        "gen_ai.request.messages",
        "gen_ai.response.text",
        "gen_ai.response.tool_calls",
        "gen_ai.system.message",
        "gen_ai.tool.input",
        "gen_ai.tool.output",
        "gen_ai.tool.args",
        # OpenInference
        "input.value",
        "output.value",
        "llm.function_call",
        "llm.invocation_parameters",
        "tool.parameters",
        "reranker.query",
        "embedding.text",
        # Traceloop (OpenLLMetry)
        "traceloop.entity.input",
        "traceloop.entity.output",
        # Langfuse, MLflow, Logfire and Pydantic AI
        "langfuse.observation.input",
        "langfuse.observation.output",
        "langfuse.trace.input",
        "langfuse.trace.output",
        "mlflow.spanInputs",
        "mlflow.spanOutputs",
        "request_data",
        "response_data",
        "all_messages_events",
        "pydantic_ai.all_messages",
        "final_result",
        "tool_arguments",
        "tool_response",
        # by hand
        "content",
        "prompt",
        "completion",
        "http.request.body",
        "http.response.body",
    }
)
_CONTENT_BEGINS = (  # also flattened: gen_ai.prompt.0.content, llm.input_messages.0.message.content
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.prompt",
    "gen_ai.completion",
    "gen_ai.content.",
    "input.images",
    "input.documents",
    "input.audio",
    "output.images",
    "output.documents",
    "output.audio",
    "llm.input_messages",
    "llm.output_messages",
    "llm.prompt_template",
    "llm.prompts",
    "llm.completions",
    "llm.choices",
    "llm.tools",
    "llm.request.functions",
    "message.",
    "tool_call.function.arguments",
    "retrieval.documents",
    "reranker.input_documents",
    "reranker.output_documents",
    "embedding.embeddings",
    "document.",
    "traceloop.prompt",
)
_HARMLESS = frozenset({"gen_ai.prompt.name"})
_URLS = frozenset({"url.full", "url.original", "http.url", "http.target"})
_MESSAGE_EVENT = re.compile(
    r"gen_ai\.(.*\.message|choice|content\..*)"
)  # one event a message, the conventions up to 1.36
_OF_MESSAGES = frozenset({"gen_ai.system", "gen_ai.provider.name", "role", "id", "index", "finish_reason"})
_USER = re.compile(r"//[^/?#]*@")


class KeptSpan(ReadableSpan):
    """A copy of *span* for the exporter, with what is given in place of its own."""

    def __init__(
        self,
        span: ReadableSpan,
        attributes: Mapping[str, Any],
        events: Sequence[Event],
        links: Sequence[Link],
        status: Status,
        context: SpanContext | None,
        dropped: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(
            name=span.name,
            context=context,
            parent=span.parent,
            resource=span.resource,
            attributes=attributes,
            events=events,
            links=links,
            kind=span.kind,
            instrumentation_info=span._instrumentation_info,  # noqa: SLF001 # reading the property warns
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )
        self._dropped = dropped or (span.dropped_attributes, span.dropped_events, span.dropped_links)

    @property
    def dropped_attributes(self) -> int:
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        return self._dropped[2]


def attributes_of(holder: ReadableSpan | Event | Link) -> dict[str, Any]:
    """Return a copy: reading the SDK's own mapping one by one is many times slower."""
    attributes: Any = holder.attributes
    return attributes.copy() if hasattr(attributes, "copy") else dict(attributes or {})


@lru_cache(maxsize=4096)
def is_content(name: str) -> bool:
    """Say whether attributes of this name hold what people or models wrote."""
    return name in _CONTENT or (name.startswith(_CONTENT_BEGINS) and name not in _HARMLESS)


def without_query(url: str) -> str:
    """Return the URL without user, query and fragment."""
    path, mark, _ = url.partition("#")[0].partition("?")
    return _USER.sub(f"//{_REDACTED}@", path) + (mark and f"?{_REDACTED}")


def clean(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes without content; the same object if there is none."""
    cleaned = {}
    changed = False
    for name, value in attributes.items():
        if is_content(name):
            changed = True
            continue
        if name in _URLS:
            new = without_query(str(value))
        elif name == "url.query":
            new = _REDACTED if value else value
        else:
            cleaned[name] = value
            continue
        cleaned[name] = new
        changed = changed or new != value
    return cleaned if changed else attributes


def clean_event(event: Event) -> Event:
    """Return the event without content; the same one if it has none."""
    attributes = attributes_of(event)
    if _MESSAGE_EVENT.fullmatch(event.name):
        cleaned = {name: value for name, value in attributes.items() if name in _OF_MESSAGES}
    else:
        cleaned = clean(attributes)
    return event if cleaned == attributes else Event(event.name, cleaned, event.timestamp)


def clean_status(status: Status, attributes: Mapping[str, Any], events: Sequence[Event]) -> Status:
    """Return the status with no more in its description than the type of the error that *attributes* or *events* name too.

    The SDK puts ``type: message`` there, instrumentations the error's text: of a word alone nobody can tell what it is.
    """
    if not status.description:
        return status
    word = status.description.partition(":")[0]
    types = [attributes.get("error.type"), *((event.attributes or {}).get("exception.type") for event in events)]
    # The SDK leaves the module out here, and not in the event.
    named = any(isinstance(each, str) and word in {each, each.rpartition(".")[2]} for each in types)
    return Status(status.status_code, word if named else None)


def clean_links(links: Sequence[Link]) -> Sequence[Link]:
    """Return the links without content."""
    return [Link(link.context, clean(attributes_of(link))) if link.attributes else link for link in links]

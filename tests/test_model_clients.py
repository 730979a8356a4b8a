"""OpenTelemetry's instrumentations of the OpenAI and Anthropic clients, as ``instrument()`` loads them."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otelperf import libraries
from tests.seen import Seen

PROMPT, ANSWER = "PROMPT-THAT-NOBODY-MAY-SEE", "ANSWER-THAT-NOBODY-MAY-SEE"
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

CHAT = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
}
MESSAGE = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "tiny",
    "content": [{"type": "text", "text": ANSWER}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 5, "output_tokens": 7},
}


def client_of(package: str, client: str, answer: dict[str, Any], url: str) -> Any:
    """Return a client whose server answers the same to everything."""
    module: Any = pytest.importorskip(package)
    http: Any = importlib.import_module(module.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
    headers = {"content-type": "application/json"}
    transport = http.MockTransport(lambda _: http.Response(200, content=json.dumps(answer).encode(), headers=headers))
    return getattr(module, client)(
        api_key="SECRET-KEY", base_url=url, http_client=module.DefaultHttpxClient(transport=transport)
    )


def openai_call() -> None:
    client = client_of("openai", "OpenAI", CHAT, "http://model/v1")
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": PROMPT}])


def anthropic_call() -> None:
    client = client_of("anthropic", "Anthropic", MESSAGE, "http://model")
    client.messages.create(model="tiny", max_tokens=9, messages=[{"role": "user", "content": PROMPT}])


@pytest.fixture
def instrument(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    monkeypatch.setattr(os, "environ", {**os.environ})
    wanted = [library for library in libraries.LIBRARIES if library.name in {"openai", "anthropic"}]
    started: list[libraries.Instrumented] = []

    def start(content: bool) -> None:
        started.append(libraries.Instrumented(wanted, seen.tracer_provider, seen.meter_provider, content=content))
        started[0].start()

    yield start
    started[0].stop()


@pytest.mark.parametrize(("provider", "call"), [("openai", openai_call), ("anthropic", anthropic_call)])
@pytest.mark.parametrize("content", [False, True])
def test_calls_have_their_tokens_and_what_was_written_only_if_asked_for(
    provider: str, call: Callable[[], None], content: bool, instrument: Callable[[bool], None], seen: Seen
) -> None:
    instrument(content)
    call()
    [span] = seen.spans
    attributes = span.attributes or {}
    assert (attributes["gen_ai.provider.name"], attributes["gen_ai.request.model"]) == (provider, "tiny")
    usage = seen.points("gen_ai.client.token.usage")
    assert {(point.attributes or {})["gen_ai.token.type"]: point.sum for point in usage} == {"input": 5, "output": 7}
    assert len(seen.points("gen_ai.client.operation.duration")) == 1
    assert (PROMPT in span.to_json(), ANSWER in span.to_json()) == (content, content)
    assert "SECRET-KEY" not in span.to_json()


def test_after_that_the_clients_are_as_they_were(instrument: Callable[[bool], None], seen: Seen) -> None:
    instrument(False)
    client = client_of("openai", "OpenAI", CHAT, "http://model/v1")
    created = type(client.chat.completions).create
    assert hasattr(created, "__wrapped__")
    openai_call()
    once_more = libraries.Instrumented(libraries.LIBRARIES, seen.tracer_provider, seen.meter_provider)
    once_more.start()  # what is instrumented is left as it is
    once_more.stop()
    openai_call()
    assert len(seen.spans) == 2

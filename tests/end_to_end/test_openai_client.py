"""OpenTelemetry's instrumentation of the OpenAI client, against a real llama-server: what it says is what a client sees."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from typing import Any

import pytest

from otelperf import libraries
from stack.processes import Process
from tests.seen import Seen

pytestmark = pytest.mark.end_to_end
openai = pytest.importorskip("openai")

SECRET = "PROMPT-THAT-NOBODY-MAY-SEE"
MESSAGES = [{"role": "user", "content": SECRET}]
DURATION = "gen_ai.client.operation.duration"
FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"
PER_CHUNK = "gen_ai.client.operation.time_per_output_chunk"


@pytest.fixture
def instrumented(seen: Seen) -> Iterator[None]:
    wanted = [library for library in libraries.LIBRARIES if library.name in {"openai", "httpx2"}]
    instrumented = libraries.Instrumented(wanted, seen.tracer_provider, seen.meter_provider)
    instrumented.start()
    yield
    instrumented.stop()


@pytest.fixture
def client(instrumented: None, llama: Process) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{llama.url}/v1", api_key=SECRET, max_retries=0) as client:
        yield client


def total(seen: Seen, metric: str, **wanted: str) -> float:
    """The sum of a histogram over what has these attributes, with ``_`` for ``.``"""
    return sum(point.sum for point in seen.points(metric) if _has(point, wanted))


def count(seen: Seen, metric: str, **wanted: str) -> int:
    return sum(point.count for point in seen.points(metric) if _has(point, wanted))


def _has(point: Any, wanted: dict[str, str]) -> bool:
    attributes = {key.replace(".", "_"): value for key, value in point.attributes.items()}
    return wanted.items() <= attributes.items()


def model_spans(seen: Seen) -> list[dict[str, Any]]:
    return [dict(span.attributes or {}) for span in seen.spans if span.name.startswith("chat")]


def test_answers_in_one_piece_have_the_tokens_that_the_client_is_told(client: Any, seen: Seen) -> None:
    answers = [client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=n) for n in (3, 5, 9)]
    assert count(seen, DURATION) == 3
    usage = "gen_ai.client.token.usage"
    assert total(seen, usage, gen_ai_token_type="output") == sum(each.usage.completion_tokens for each in answers)
    assert total(seen, usage, gen_ai_token_type="input") == sum(each.usage.prompt_tokens for each in answers)
    http = [span for span in seen.spans if span.name == "POST"]
    parents = {span.context.span_id for span in seen.spans if span.name == "chat tiny" and span.context}
    assert {span.parent.span_id for span in http if span.parent} == parents  # a child, not a second call
    assert SECRET not in repr([span.to_json() for span in seen.spans])


def test_a_stream_has_its_first_chunk_and_its_chunks_as_the_client_counts_them(client: Any, seen: Seen) -> None:
    list(client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, stream=True))  # imports
    before = total(seen, FIRST_CHUNK), count(seen, PER_CHUNK), total(seen, DURATION)
    began = time.perf_counter()
    first, last, chunks, usage = 0.0, 0.0, 0, None
    for chunk in client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=40, stream=True, stream_options={"include_usage": True}
    ):
        last = time.perf_counter() - began
        first = first or last
        chunks += 1
        usage = chunk.usage or usage
    whole = time.perf_counter() - began
    # What is measured inside lies within what we measure around it, however busy the machine is.
    assert 0 < total(seen, FIRST_CHUNK) - before[0] <= first
    assert last - first <= total(seen, DURATION) - before[2] <= whole
    assert count(seen, PER_CHUNK) - before[1] == chunks - 1
    assert usage is not None
    assert model_spans(seen)[-1]["gen_ai.usage.output_tokens"] == usage.completion_tokens


def test_a_stream_that_is_closed_is_a_call_and_no_error(client: Any, seen: Seen) -> None:
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=400, stream=True)
    next(stream)
    stream.close()
    [span] = model_spans(seen)
    assert "error.type" not in span
    assert count(seen, DURATION) == 1


def test_a_stream_that_nobody_closes_ends_when_it_is_forgotten(client: Any, seen: Seen) -> None:
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=400, stream=True)
    next(stream)
    del stream
    gc.collect()
    assert [span["error.type"] for span in model_spans(seen)] == ["_OTHER"]


def test_refusals_and_a_server_that_dies_are_errors_of_their_type(client: Any, llama: Process, seen: Seen) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=[{"role": "user"}])
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3000, stream=True)
    next(stream)
    llama.kill()
    with pytest.raises(openai.APIConnectionError):
        list(stream)
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert [span["error.type"] for span in model_spans(seen)] == [
        "openai.BadRequestError",
        "openai.APIConnectionError",
        "openai.APIConnectionError",
    ]
    assert count(seen, DURATION, error_type="openai.APIConnectionError") == 2


def test_asynchronous_calls_at_once_and_a_cancelled_one(instrumented: None, llama: Process, seen: Seen) -> None:
    async def ask() -> int:
        async with openai.AsyncOpenAI(base_url=f"{llama.url}/v1", api_key="key", max_retries=0) as client:

            async def whole() -> int:
                answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5)
                return int(answer.usage.completion_tokens)

            async def stream() -> int:
                chunks = await client.chat.completions.create(
                    model="tiny", messages=MESSAGES, max_tokens=20, stream=True
                )
                return len([chunk async for chunk in chunks])

            tokens = await asyncio.gather(*(whole() for _ in range(6)))
            chunks = await asyncio.gather(*(stream() for _ in range(4)))
            assert count(seen, PER_CHUNK) == sum(chunks) - 4
            long = asyncio.create_task(
                client.chat.completions.create(
                    model="tiny", messages=MESSAGES, max_tokens=100_000, extra_body={"ignore_eos": True}
                )
            )
            await asyncio.sleep(0.1)
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            return sum(tokens)

    tokens = asyncio.run(ask())
    assert total(seen, "gen_ai.client.token.usage", gen_ai_token_type="output") == tokens
    assert count(seen, DURATION) == 11
    assert [span["error.type"] for span in model_spans(seen) if "error.type" in span] == [
        "asyncio.exceptions.CancelledError"
    ]

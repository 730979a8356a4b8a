"""Calls of models through the SDK's real providers."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from otelperf import catalog, telemetry
from otelperf.calls import current_call, inference
from otelperf.readings import Buckets
from otelperf.sources.histogram import DOUBLING
from otelperf.sources.workers import worker
from tests.seen import Seen, active, call_readings

WHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm", "gen_ai.request.model": "m"}


def test_a_call_is_a_span_and_its_metrics(seen: Seen) -> None:
    with inference("m", provider="vllm") as call:
        assert current_call() is call
        assert active() == [1]
        call.first_token()
        call.first_token()
        call.tokens(input=7)
        call.tokens(output=3)
        call.response(model="m-1", finish_reasons=("stop",))
    assert current_call() is None
    assert active() == [0]
    (span,) = seen.spans
    first = dict(span.attributes or {}).pop("gen_ai.response.time_to_first_chunk")
    assert (span.name, span.kind, span.status.status_code) == ("chat m", SpanKind.INTERNAL, StatusCode.UNSET)
    assert dict(span.attributes or {}) == {
        **WHAT,
        "gen_ai.response.model": "m-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": first,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
    }
    (duration,) = seen.points("gen_ai.client.operation.duration")
    (to_first,) = seen.points("gen_ai.client.operation.time_to_first_chunk")
    assert (duration.count, dict(duration.attributes or {})) == (1, WHAT)
    assert to_first.sum == first
    assert duration.sum >= to_first.sum > 0
    usage = {(p.attributes or {})["gen_ai.token.type"]: p.sum for p in seen.points("gen_ai.client.token.usage")}
    assert usage == {"input": 7, "output": 3}
    assert duration.exemplars[0].span_id == (span.context.span_id if span.context else None)


def test_what_is_not_told_is_absent(seen: Seen) -> None:
    with inference("m"):
        pass
    assert seen.points("gen_ai.client.token.usage") == []
    assert seen.points("gen_ai.client.operation.time_to_first_chunk") == []
    assert call_readings("gen_ai.client.operation.time_per_output_chunk") == []
    assert set(seen.spans[0].attributes or {}) == {"gen_ai.operation.name", "gen_ai.request.model"}


def test_a_call_that_leaves_the_process_is_a_clients(seen: Seen) -> None:
    with inference("m", server_address="llm", server_port=8000, attributes={"user": "u"}):
        pass
    (span,) = seen.spans
    assert span.kind is SpanKind.CLIENT
    assert {"server.address": "llm", "server.port": 8000, "user": "u"}.items() <= dict(span.attributes or {}).items()
    (point,) = seen.points("gen_ai.client.operation.duration")
    assert "user" not in (point.attributes or {})


def test_an_error_passes_through_and_its_text_is_nowhere(seen: Seen) -> None:
    with pytest.raises(ValueError, match="secret prompt"), inference("m"):
        raise ValueError("secret prompt")
    (span,) = seen.spans
    assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert "secret" not in span.to_json()
    (point,) = seen.points("gen_ai.client.operation.duration")
    assert (point.attributes or {})["error.type"] == "ValueError"


def test_the_chunks_of_a_stream_are_counted_and_the_code_between_them_is_not_inside(seen: Seen) -> None:
    @inference("m")
    def stream() -> Iterator[str]:
        yield from "abc"

    between = [current_call() for _ in stream()]
    assert between == [None, None, None]
    (gaps,) = call_readings("gen_ai.client.operation.time_per_output_chunk")
    assert isinstance(gaps.value, Buckets)
    assert gaps.value.count == 2
    assert seen.points("gen_ai.client.operation.time_to_first_chunk")[0].count == 1
    assert active() == [0]


def test_a_stream_that_is_closed_early_is_cancelled_and_in_no_error(seen: Seen) -> None:
    @inference("m")
    async def stream() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def first() -> int:
        items = stream()
        found = await anext(items)
        await items.aclose()  # type: ignore[attr-defined] # it is a generator
        return found

    assert asyncio.run(first()) == 1
    (span,) = seen.spans
    assert (span.attributes or {})["error.type"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET
    assert active() == [0]


def test_a_cancelled_coroutine_is_over(seen: Seen) -> None:
    @inference("m")
    async def waits() -> None:
        await asyncio.Event().wait()

    async def program() -> None:
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        assert active() == [1]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(program())
    assert active() == [0]
    assert (seen.spans[0].attributes or {})["error.type"] == "cancelled"


def test_one_measure_serves_many_calls_at_a_time(seen: Seen) -> None:
    shared = inference("m")

    async def call(number: int) -> None:
        async with shared as call:
            await asyncio.sleep(0)
            call.tokens(input=number)
            assert current_call() is call

    async def program() -> None:
        await asyncio.gather(*(call(number) for number in range(20)))

    asyncio.run(program())
    assert sorted((span.attributes or {})["gen_ai.usage.input_tokens"] for span in seen.spans) == list(range(20))  # type: ignore[type-var] # numbers
    assert active() == [0]


def test_calls_inside_calls_end_in_any_order(seen: Seen) -> None:
    """A generator's call is still open while its reader begins and ends others."""

    def reads() -> Iterator[None]:
        with inference("outer"):
            yield

    generator = reads()
    next(generator)
    with inference("inner"):
        next(generator, None)
    assert sorted(span.name for span in seen.spans) == ["chat inner", "chat outer"]
    assert active() == [0, 0]
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_call_ends_where_each_step_is_in_another_context(seen: Seen) -> None:
    """Starlette runs each step of a plain generator in a thread, with a copy of the context."""

    def stream(tokens: int) -> Iterator[None]:
        with inference("m") as call:
            yield
            call.tokens(output=tokens)

    streams = [stream(1), stream(2)]
    for each in (*streams, *streams):
        contextvars.copy_context().run(next, each, None)
    assert {(span.attributes or {})["gen_ai.usage.output_tokens"] for span in seen.spans} == {1, 2}
    assert active() == [0]


def test_of_calls_at_a_time_one_that_was_ended_by_hand_leaves_the_others_alone(seen: Seen) -> None:
    shared = inference("m")

    def reads() -> Iterator[None]:
        with shared:
            yield

    with shared as call:
        other = contextvars.copy_context()
        generator = reads()
        other.run(next, generator)
        call.end()
    assert active() == [1]
    other.run(next, generator, None)
    assert active() == [0]


def test_a_chunk_may_come_while_its_kind_is_read(seen: Seen) -> None:
    """A garbage collection closes generators wherever anything is made, so under the lock too."""
    call = inference("m").start()
    call.first_token()

    class Collecting(list[int]):
        def __iter__(self) -> Iterator[int]:
            call.chunk()
            return super().__iter__()

    gaps = call.what.kind._gaps
    gaps._counts = Collecting(gaps._counts)
    reading = threading.Thread(target=active, daemon=True)
    reading.start()
    reading.join(10)
    assert not reading.is_alive()


@pytest.mark.parametrize("measure", [inference("m"), worker("generators")], ids=["call", "worker"])
def test_a_decorated_generator_is_sent_to_and_thrown_into_as_ever(
    measure: Callable[[Callable[..., Any]], Callable[..., Any]], seen: Seen
) -> None:
    @measure
    def plain() -> Generator[str, str, str]:
        try:
            return (yield "asks") + (yield "again")
        except KeyError:
            return "thrown"

    @measure
    async def asynchronous() -> AsyncGenerator[str, str]:
        try:
            yield "got " + (yield "asks")
        except KeyError:
            yield "thrown"

    def answered() -> Iterator[str]:
        items = plain()
        yield next(items)
        yield items.send("a")
        with pytest.raises(StopIteration) as end:
            items.send("b")
        yield end.value.value
        items = plain()
        next(items)
        with pytest.raises(StopIteration) as end:
            items.throw(KeyError())
        yield end.value.value

    async def answered_later() -> list[str]:
        items, others = asynchronous(), asynchronous()
        return [
            await anext(items),
            await items.asend("a"),
            await anext(items, "end"),
            await anext(others),
            await others.athrow(KeyError()),
            await anext(others, "end"),
        ]

    assert list(answered()) == ["asks", "again", "ab", "thrown"]
    assert asyncio.run(answered_later()) == ["asks", "got a", "end", "asks", "thrown", "end"]
    assert active() in ([], [0])


def test_spans_inside_a_call_are_its_children(seen: Seen) -> None:
    with inference("m"), telemetry.tracer().start_as_current_span("inside"):
        pass
    inside, outside = seen.spans
    assert inside.parent is not None
    assert outside.context is not None
    assert inside.parent.span_id == outside.context.span_id


class Mute:
    """What cannot be told as text, nor as a number."""

    def __str__(self) -> str:
        raise OSError("mute")

    __repr__ = __str__

    def __index__(self) -> int:
        raise OSError("mute")

    __float__ = __index__


def test_bare_above_a_function_it_says_how_to_write_it() -> None:
    def answer(prompt: str) -> str:
        return prompt

    for function in (answer, functools.lru_cache(answer), staticmethod(answer), print):
        with pytest.raises(TypeError, match=r"a function: write @otelperf\.inference\(model=\.\.\.\) above it"):
            inference(function)  # type: ignore[arg-type] # wrong on purpose


def test_a_model_that_is_an_object_which_can_be_called_is_told_in_words(seen: Seen) -> None:
    class Model:
        def __call__(self) -> None: ...

        def __str__(self) -> str:
            return "mine"

    with inference(Model()):  # type: ignore[arg-type] # as above
        pass
    assert [span.name for span in seen.spans] == ["chat mine"]


@pytest.mark.parametrize("wrong", [-1, 1.5, "7", math.nan, math.inf, 2**70, Mute()], ids=type)
def test_a_wrong_number_of_tokens_is_left_out(wrong: Any, seen: Seen) -> None:
    with inference("m") as call:
        call.tokens(input=wrong, output=2)
    usage = {(p.attributes or {})["gen_ai.token.type"]: p.sum for p in seen.points("gen_ai.client.token.usage")}
    assert usage == {"output": 2}


def test_a_count_of_another_library_is_a_number_too(seen: Seen) -> None:
    class Count:  # as numpy's integers are, which are no int
        def __index__(self) -> int:
            return 7

    with inference("m") as call:
        call.tokens(input=Count())  # type: ignore[arg-type] # as above
    assert seen.points("gen_ai.client.token.usage")[0].sum == 7


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf, "soon", 10**400, Mute()], ids=type)
def test_a_wrong_time_of_the_first_token_is_left_out(wrong: Any, seen: Seen) -> None:
    with inference("m") as call:
        call.first_token(wrong)
    assert seen.points("gen_ai.client.operation.time_to_first_chunk") == []
    assert "gen_ai.response.time_to_first_chunk" not in (seen.spans[0].attributes or {})


@pytest.mark.parametrize("port", [-1, 0, 10**30, "80", Mute()], ids=type)
def test_a_wrong_port_is_left_out(port: Any, seen: Seen) -> None:
    with inference("m", server_address="model", server_port=port):
        pass
    attributes = seen.spans[0].attributes or {}
    assert (attributes["server.address"], "server.port" in attributes) == ("model", False)


def test_what_cannot_be_told_as_text_reaches_nobody(seen: Seen) -> None:
    mute: Any = Mute()
    with inference(mute, operation=mute, provider=mute, server_address=mute, attributes={"mine": mute}) as call:
        call.response(model=mute, id=mute, finish_reasons=(mute,))
        call.end(mute)
    point = seen.points("gen_ai.client.operation.duration")[0]
    assert (point.count, (point.attributes or {})["gen_ai.request.model"]) == (1, "<Mute>")
    assert active() == [0]


def test_an_error_in_a_word_is_short_and_can_be_sent(seen: Seen) -> None:
    inference("m").start().end("\ud800" + "x" * 10**6)
    assert (seen.points("gen_ai.client.operation.duration")[0].attributes or {})["error.type"] == "?" + "x" * 199


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_call_that_is_under_way_during_a_fork_is_the_parents(seen: Seen) -> None:
    read, write = os.pipe()
    with inference("m"):
        child = os.fork()
        if not child:
            try:
                own = inference("m").start()
                current = current_call()
                assert current is not None
                current.end()
                os.write(write, f"{active()} {seen.points('gen_ai.client.operation.duration')}".encode())
                own.end()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    assert os.read(read, 99) == b"[1] []"
    assert seen.points("gen_ai.client.operation.duration")[0].count == 1


def test_one_finish_reason_is_not_spelt_out(seen: Seen) -> None:
    reason: Any = "stop"
    with inference("m") as call:
        call.response(finish_reasons=reason)
    assert (seen.spans[0].attributes or {})["gen_ai.response.finish_reasons"] == ("stop",)


def test_what_comes_after_the_end_changes_nothing(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    call = inference("m").start()
    call.end()
    call.response(model="late")
    assert not caplog.records  # the SDK's "Setting attribute on ended span"
    call.chunk()
    call.end("late")
    assert len(seen.spans) == 1
    assert "error.type" not in (seen.spans[0].attributes or {})
    assert active() == [0]


class Broken(SpanProcessor):
    def on_start(self, span: object, parent_context: object = None) -> None:
        raise OSError("broken processor")


def test_a_broken_span_processor_does_not_reach_the_caller(seen: Seen) -> None:
    seen.tracer_provider.add_span_processor(Broken())
    with inference("m") as call:
        call.first_token()
    assert seen.points("gen_ai.client.operation.duration")[0].count == 1


def test_nothing_is_recorded_where_telemetry_is_disabled(seen: Seen) -> None:
    telemetry.disable()
    with inference("m") as call:
        call.chunk()
        call.tokens(input=1)
    assert seen.spans == []


def test_the_bounds_are_the_catalogues() -> None:
    assert catalog.BY_NAME["gen_ai.client.operation.time_per_output_chunk"].bounds == pytest.approx(DOUBLING)


def test_a_call_that_nobody_can_end_any_more_is_not_under_way(seen: Seen) -> None:
    call = inference("m").start()
    assert active() == [1]
    del call
    assert active() == [0]
    assert seen.spans == []


def test_kinds_are_bounded(seen: Seen) -> None:
    calls = [inference(f"model {number}").start() for number in range(1100)]
    assert len(calls) == 1100
    assert sorted(active(), key=str) == [1] * 1000 + [100]


@pytest.mark.parametrize(
    ("model", "told"), [("\ud800", "?"), (["a"], "['a']"), ("x" * 999, "x" * 200)], ids=["no Unicode", "a list", "long"]
)
def test_whatever_is_given_as_the_model_can_be_sent(model: Any, told: str, seen: Seen) -> None:
    with inference(model):
        pass
    (span,) = seen.spans
    assert span.name == f"chat {told}"
    assert (span.attributes or {})["gen_ai.request.model"] == told

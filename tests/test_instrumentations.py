"""What is put around libraries' functions, here around stand-ins of the same shape; tests/real_servers has the real vLLM."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from otelperf.instrumentations import llama_cpp, vllm, vllm_engine
from tests.seen import Seen, active


def attributes(seen: Seen) -> list[dict[str, Any]]:
    """The spans' attributes, less the times."""
    return [{key: value for key, value in (span.attributes or {}).items() if "time" not in key} for span in seen.spans]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: object) -> None:
    """Put a module into the place of the real one, and of its packages."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    vars(sys.modules[name]).update(content)


def completion(tokens: list[int], reason: str | None = None, index: int = 0) -> SimpleNamespace:
    return SimpleNamespace(index=index, token_ids=tokens, finish_reason=reason)


def output(prompt: list[int] | None, *completions: SimpleNamespace, latency: float = 0.0) -> SimpleNamespace:
    metrics = SimpleNamespace(first_token_latency=latency)
    return SimpleNamespace(prompt_token_ids=prompt, outputs=list(completions), metrics=metrics)


class LLM:
    """As vllm.LLM, which chats by its own way or, in older versions, by generate."""

    model_config = SimpleNamespace(served_model_name="tiny", model="/models/tiny")

    def generate(self, prompts: list[str], sampling_params: object = None) -> list[SimpleNamespace]:
        if not prompts:
            raise ValueError("no prompts")
        return [output([1, 2, 3], completion([7, 8], "stop"), latency=0.25) for _ in prompts]

    def chat(self, messages: list[str], sampling_params: object = None) -> list[SimpleNamespace]:
        return self.generate(messages, sampling_params)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    module(monkeypatch, "vllm.entrypoints.llm", LLM=LLM)
    vllm.instrument()
    yield LLM()
    vllm.uninstrument()


CALL = {"gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "vllm", "gen_ai.request.model": "tiny"}


def test_a_batch_is_one_call_with_the_tokens_of_all(llm: LLM, seen: Seen) -> None:
    assert len(llm.generate(["a", "b"], SimpleNamespace(max_tokens=9, temperature=0.5, top_p=None))) == 2
    assert attributes(seen) == [
        {
            **CALL,
            "gen_ai.request.max_tokens": 9,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": 6,
            "gen_ai.usage.output_tokens": 4,
        }
    ]
    assert seen.points("gen_ai.client.operation.time_to_first_chunk") == []


def test_the_first_token_of_a_single_prompt_is_known(llm: LLM, seen: Seen) -> None:
    llm.generate(["a"])
    assert seen.points("gen_ai.client.operation.time_to_first_chunk")[0].sum == 0.25


def test_a_chat_that_generates_counts_once(llm: LLM, seen: Seen) -> None:
    llm.chat(["a"])
    assert [each["gen_ai.operation.name"] for each in attributes(seen)] == ["chat"]


def test_errors_pass_through(llm: LLM, seen: Seen) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        llm.generate([])
    assert attributes(seen)[0]["error.type"] == "ValueError"


def test_another_versions_outputs_do_not_fail_the_call(
    llm: LLM,
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vllm.uninstrument()
    monkeypatch.setattr(LLM, "generate", lambda *_: ["text"])
    vllm.instrument()
    assert llm.generate(["a"]) == ["text"]
    assert attributes(seen) == [CALL]


def test_the_originals_come_back() -> None:
    assert "wrapper" not in repr(LLM.generate)
    assert not hasattr(LLM.generate, "__wrapped__")


class AsyncLLM:
    """As vllm.v1.engine.async_llm.AsyncLLM."""

    model_config = LLM.model_config

    async def generate(
        self, prompt: str, sampling_params: Any, request_id: str = ""
    ) -> AsyncGenerator[SimpleNamespace, None]:
        delta = sampling_params.output_kind.name == "DELTA"
        for end in (1, 2, 3):
            yield output([1, 2], completion([9] if delta else [9] * end, "length" if end == 3 else None))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[AsyncLLM]:
    module(monkeypatch, "vllm.v1.engine.async_llm", AsyncLLM=AsyncLLM)
    vllm_engine.instrument()
    yield AsyncLLM()
    vllm_engine.uninstrument()


@pytest.mark.parametrize("kind", ["DELTA", "CUMULATIVE"])
def test_a_stream_of_the_engine_counts_its_tokens_however_it_tells_them(
    kind: str,
    engine: AsyncLLM,
    seen: Seen,
) -> None:
    params = SimpleNamespace(output_kind=SimpleNamespace(name=kind))

    async def read() -> int:
        return len([each async for each in engine.generate("p", params, request_id="r")])

    assert asyncio.run(read()) == 3
    assert attributes(seen) == [
        {
            **CALL,
            "gen_ai.response.finish_reasons": ("length",),
            "gen_ai.usage.input_tokens": 2,
            "gen_ai.usage.output_tokens": 3,
        }
    ]
    assert seen.points("gen_ai.client.operation.time_to_first_chunk")[0].count == 1


def test_a_stream_that_is_left_has_the_tokens_until_then(engine: AsyncLLM, seen: Seen) -> None:
    params = SimpleNamespace(output_kind=SimpleNamespace(name="DELTA"))

    async def read() -> None:
        stream = engine.generate("p", params)
        await anext(stream)
        await stream.aclose()

    asyncio.run(read())
    assert attributes(seen)[0]["error.type"] == "cancelled"
    assert attributes(seen)[0]["gen_ai.usage.output_tokens"] == 1
    assert active() == [0]


class Llama:
    """As llama_cpp.Llama, whose chat handlers ask for a completion."""

    model_path = "/models/tiny.gguf"

    def create_completion(self, prompt: str, *, stream: bool = False) -> Any:
        if stream:
            return iter([{"choices": [{"text": "a"}]}, {"choices": [{"text": "b", "finish_reason": "stop"}]}])
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        return {"choices": [{"text": "ab", "finish_reason": "stop"}], "usage": usage}

    def create_chat_completion(self, messages: list[str], *, stream: bool = False) -> Any:
        answer = self.create_completion("".join(messages), stream=stream)
        if not stream:
            return answer
        first: dict[str, Any] = {"choices": [{"delta": {"role": "assistant"}}]}
        return iter([first, *({"choices": [{"delta": {"content": each["choices"][0]["text"]}}]} for each in answer)])


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> Iterator[Llama]:
    module(monkeypatch, "llama_cpp.llama", Llama=Llama)
    llama_cpp.instrument()
    yield Llama()
    llama_cpp.uninstrument()


def test_a_completion_has_its_usage(llama: Llama, seen: Seen) -> None:
    assert llama.create_completion("p")["choices"][0]["text"] == "ab"
    assert attributes(seen) == [
        {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "llama_cpp",
            "gen_ai.request.model": "tiny.gguf",
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 2,
        }
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_counts_once_and_not_before_its_stream_ends(llama: Llama, seen: Seen, *, stream: bool) -> None:
    answer = llama.create_chat_completion(["p"], stream=stream)
    if stream:
        assert active() == [1]
        assert len(list(answer)) == 3
    assert [each["gen_ai.operation.name"] for each in attributes(seen)] == ["chat"]
    assert len(seen.points("gen_ai.client.operation.time_to_first_chunk")) == int(stream)
    assert active() == [0]


def test_a_stream_that_nobody_begins_to_read_is_not_under_way_for_ever(llama: Llama, seen: Seen) -> None:
    answer = llama.create_completion("p", stream=True)
    assert active() == [1]
    del answer
    assert active() == [0]

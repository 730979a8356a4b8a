"""vLLM's asynchronous engine inside this process: ``AsyncLLM.generate``, which its own HTTP server asks, too.

Written after vLLM 0.32 (https://docs.vllm.ai/en/stable/api/vllm/v1/engine/async_llm/).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from otelperf.calls import Call
from otelperf.instrumentations.vllm import measure, tell_why
from otelperf.instrumentations.wrapping import Wrapped, told

_wrapped = Wrapped()


def instrument(**_providers: object) -> None:
    """Wrap the engine's one function that generates."""
    from vllm.v1.engine.async_llm import (  # type: ignore[import-not-found, unused-ignore] # no part of ours
        AsyncLLM,
    )

    _wrapped.wrap(AsyncLLM, "generate", _stream)


def uninstrument() -> None:
    """Put vLLM's own function back."""
    _wrapped.undo()


def _stream(original: Callable[..., Any]) -> Callable[..., Any]:
    async def generate(
        self: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        call = measure(self, "text_completion", sampling_params).start()
        # A delta has the new tokens, everything else all so far: vllm.sampling_params.RequestOutputKind.
        delta = getattr(getattr(sampling_params, "output_kind", None), "name", "") == "DELTA"
        counts: dict[int, int] = {}
        error: BaseException | None = None
        last: Any = None
        try:
            async with aclosing(original(self, prompt, sampling_params, *args, **kwargs)) as outputs:
                async for last in outputs:
                    told(call, lambda: _tell_chunk(call, last, counts, delta=delta))  # noqa: B023 # it is run at once
                    yield last
        except BaseException as raised:
            error = raised
            raise
        finally:
            if last is not None:
                told(call, lambda: _tell_end(call, last, counts))
            call.end(error)

    return generate


def _tell_chunk(call: Call, output: Any, counts: dict[int, int], *, delta: bool) -> None:
    before = sum(counts.values())
    for completion in output.outputs:
        new = len(completion.token_ids)
        counts[completion.index] = counts.get(completion.index, 0) + new if delta else new
    if sum(counts.values()) > before:
        call.chunk()


def _tell_end(call: Call, output: Any, counts: dict[int, int]) -> None:
    prompt = output.prompt_token_ids
    call.tokens(input=None if prompt is None else len(prompt), output=sum(counts.values()))
    tell_why(call, output.outputs)

"""llama-cpp-python: ``Llama.create_completion`` (and calling the object), ``create_chat_completion``.

https://llama-cpp-python.readthedocs.io/en/latest/api-reference/. A stream's chunks are counted, its tokens are not: it has no
usage in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

from otelperf.calls import Call, inference
from otelperf.instrumentations.wrapping import Wrapped, inside, told

PROVIDER = "llama_cpp"
_wrapped = Wrapped()


def instrument(**_providers: object) -> None:
    """Wrap both ways to ask; a chat asks by the other, too, and is counted once."""
    from llama_cpp.llama import Llama  # type: ignore[import-not-found, unused-ignore] # no part of ours

    _wrapped.wrap(Llama, "create_completion", lambda original: _asked(original, "text_completion"))
    _wrapped.wrap(Llama, "create_chat_completion", lambda original: _asked(original, "chat"))


def uninstrument() -> None:
    """Put the library's own functions back."""
    _wrapped.undo()


def _asked(original: Callable[..., Any], operation: str) -> Callable[..., Any]:
    def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        if inside(PROVIDER):
            return original(self, *args, **kwargs)
        model = PurePath(str(getattr(self, "model_path", ""))).name or None
        call = inference(model, operation=operation, provider=PROVIDER).start(attach=True)
        try:
            answer = original(self, *args, **kwargs)
        except BaseException as error:
            call.end(error)
            raise
        call.leave()
        if isinstance(answer, dict):
            told(call, lambda: _tell(call, answer))
            call.end()
            return answer
        return _stream(call, answer)

    return create


def _stream(call: Call, chunks: Iterator[Any]) -> Iterator[Any]:
    error: BaseException | None = None
    try:
        for chunk in chunks:
            told(call, lambda: _tell_chunk(call, chunk))  # noqa: B023 # it is run at once
            yield chunk
    except BaseException as raised:
        error = raised
        raise
    finally:
        call.end(error)


def _tell(call: Call, answer: dict[str, Any]) -> None:
    usage = answer.get("usage") or {}
    call.tokens(input=usage.get("prompt_tokens"), output=usage.get("completion_tokens"))
    _tell_why(call, answer)


def _tell_why(call: Call, answer: dict[str, Any]) -> None:
    reasons = {choice["finish_reason"] for choice in answer["choices"] if choice.get("finish_reason")}
    if reasons:
        call.response(finish_reasons=tuple(sorted(reasons)))


def _tell_chunk(call: Call, chunk: dict[str, Any]) -> None:
    # A chat's first chunk says only who speaks.
    if any(choice.get("text") or (choice.get("delta") or {}).get("content") for choice in chunk["choices"]):
        call.chunk()
    _tell_why(call, chunk)

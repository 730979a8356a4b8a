"""Hugging Face transformers: ``model.generate``.

A call with a batch of prompts is one call. Tokens are positions: padding counts where the model has no token for it.
With a ``streamer`` the first token and the time between tokens are known as well.
https://huggingface.co/docs/transformers/main_classes/text_generation
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otelperf.calls import Call, inference
from otelperf.instrumentations.wrapping import Wrapped, inside, model_name, told

PROVIDER = "transformers"
_wrapped = Wrapped()


def instrument(**_providers: object) -> None:
    """Wrap the one function that all generative models inherit."""
    from transformers.generation.utils import (  # type: ignore[import-not-found, unused-ignore] # no part of ours
        GenerationMixin,
    )

    _wrapped.wrap(GenerationMixin, "generate", _generate)


def uninstrument() -> None:
    """Put transformers' own function back."""
    _wrapped.undo()


class _Streamer:
    """The caller's *streamer*, and *call* told of each chunk. The first that it gets is the prompt."""

    def __init__(self, streamer: Any, call: Call) -> None:
        self._streamer = streamer
        self._call = call
        self._prompt = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streamer, name)

    def put(self, value: Any) -> None:
        if self._prompt:
            self._prompt = False
        else:
            self._call.chunk()
        self._streamer.put(value)

    def end(self) -> None:
        self._streamer.end()


def _generate(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if inside(PROVIDER):  # assisted or custom generation calls it again
            return original(self, *args, **kwargs)
        model = model_name(getattr(getattr(self, "config", None), "name_or_path", None)) or type(self).__name__
        with inference(model, operation="text_completion", provider=PROVIDER) as call:
            if kwargs.get("streamer") is not None:
                kwargs["streamer"] = _Streamer(kwargs["streamer"], call)
            result = original(self, *args, **kwargs)
            told(call, lambda: _tell(call, self, args[0] if args else None, kwargs, result))
            return result

    return generate


def _tell(call: Call, model: Any, inputs: Any, kwargs: dict[str, Any], result: Any) -> None:
    prompt = next((each for each in (inputs, kwargs.get("inputs"), kwargs.get("input_ids")) if each is not None), None)
    sequences = getattr(result, "sequences", result)
    whole = bool(getattr(model.config, "is_encoder_decoder", False))
    prompt_length = 0 if prompt is None else prompt.shape[-1]
    mask = kwargs.get("attention_mask")
    if prompt is not None and prompt.dim() == 2:  # rows of tokens; speech and images have more
        call.tokens(input=int(mask.sum()) if mask is not None and mask.dim() == 2 else prompt.shape[0] * prompt_length)
    generated = sequences if whole or prompt is None else sequences[:, prompt_length:]
    call.tokens(output=_without_padding(model, generated) if generated.shape[0] > 1 else generated.shape[-1])


def _without_padding(model: Any, generated: Any) -> int:
    """Count what was generated: a row that ended before the others is filled up with the token for padding."""
    config = getattr(model, "generation_config", None)
    pad, eos = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    if pad is None:
        return int(generated.numel())
    padding = generated == pad
    count = int(generated.numel() - padding.sum())
    # Where the same token also ends a row, the first of each row's is generated.
    ends = pad in (eos if isinstance(eos, list | tuple) else [eos])
    return count + (int(padding.any(dim=-1).sum()) if ends else 0)

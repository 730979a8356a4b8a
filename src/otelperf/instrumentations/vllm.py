"""vLLM inside this process: ``LLM.generate`` and ``LLM.chat``.

A call with many prompts is one call, with the tokens of all. Written after vLLM 0.32
(https://docs.vllm.ai/en/stable/api/vllm/entrypoints/llm/); what another version does not have is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from otelperf.calls import Call, Inference, inference
from otelperf.instrumentations.wrapping import Wrapped, inside, model_name, told

PROVIDER = "vllm"
_wrapped = Wrapped()


def instrument(**_providers: object) -> None:
    """Wrap both ways to ask."""
    from vllm.entrypoints.llm import LLM  # type: ignore[import-not-found, unused-ignore] # no part of ours

    _wrapped.wrap(LLM, "generate", lambda original: _batch(original, "text_completion"))
    _wrapped.wrap(LLM, "chat", lambda original: _batch(original, "chat"))


def uninstrument() -> None:
    """Put vLLM's own functions back."""
    _wrapped.undo()


def _model(engine: Any) -> str | None:
    """Return the name under which the model is served, else the one it was loaded by."""
    config = getattr(engine, "model_config", None) or getattr(getattr(engine, "llm_engine", None), "model_config", None)
    served = getattr(config, "served_model_name", None)
    name = served[0] if isinstance(served, list) and served else served or getattr(config, "model", None)
    return model_name(name)


def measure(engine: Any, operation: str, params: Any) -> Inference:
    """Return the measure of a call of *engine* with these sampling parameters."""
    wanted = {
        "gen_ai.request.max_tokens": getattr(params, "max_tokens", None),
        "gen_ai.request.temperature": getattr(params, "temperature", None),
        "gen_ai.request.top_p": getattr(params, "top_p", None),
    }
    given = {name: value for name, value in wanted.items() if isinstance(value, int | float)}
    return inference(_model(engine), operation=operation, provider=PROVIDER, attributes=given)


def _batch(original: Callable[..., Any], operation: str) -> Callable[..., Any]:
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if inside(PROVIDER):
            return original(self, *args, **kwargs)
        params = kwargs.get("sampling_params", args[1] if len(args) > 1 else None)
        with measure(self, operation, params) as call:
            outputs = original(self, *args, **kwargs)
            told(call, lambda: _tell(call, outputs))
            return outputs

    return generate


def _tell(call: Call, outputs: Sequence[Any]) -> None:
    """Tell the tokens of all prompts; of a single one also when its first token came, where vLLM keeps that."""
    completions = [completion for output in outputs for completion in output.outputs]
    prompts = [output.prompt_token_ids for output in outputs if output.prompt_token_ids is not None]
    call.tokens(
        input=sum(map(len, prompts)) if len(prompts) == len(outputs) else None,
        output=sum(len(completion.token_ids) for completion in completions),
    )
    tell_why(call, completions)
    latency = getattr(getattr(outputs[0], "metrics", None), "first_token_latency", None) if len(outputs) == 1 else None
    if latency:
        call.first_token(after=latency)


def tell_why(call: Call, completions: Sequence[Any]) -> None:
    """Tell why each completion ended."""
    reasons = {str(each.finish_reason) for each in completions if each.finish_reason is not None}
    if reasons:
        call.response(finish_reasons=tuple(sorted(reasons)))

"""Ollama: it has no metrics page. /api/ps tells which models are loaded, where, and with what context.

Names and meanings: api/types.go and server/routes.go in ollama/ollama, 2026. ``size`` is what a loaded model takes,
``size_vram`` the part of it on GPUs. Tokens and times are only in the answers to those who ask (nanoseconds, in the last
message): nothing here tells them, nor whether a model is in use. A model that is being loaded is in the list too.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from otelperf.readings import Attributes, Reading
from otelperf.sources.engines.engine import MODEL, Engine, Facts, JsonPage, Print

_MEMORY_KIND = "otelperf.memory.kind"
_LARGEST = 2**53  # no size or length is near it
_MODELS = 256  # told apart at most
_LONGEST_NAME = 200  # characters of a model's name


def loaded(page: Any, _: Facts) -> list[Reading]:
    """Read /api/ps."""
    models = page["models"] or []  # an empty list of Go can be null
    readings = [Reading("otelperf.server.models", len(models))]
    for model in models[:_MODELS]:
        name = model["name"]
        if not isinstance(name, str) or not name:
            raise TypeError(f"model {name!r:.40}")
        name = name[:_LONGEST_NAME]
        size, on_gpu, context = (_amount(model.get(key)) for key in ("size", "size_vram", "context_length"))
        if on_gpu is not None:
            readings.append(Reading("otelperf.server.model.memory", on_gpu, _of(name, "gpu")))
        if size is not None and on_gpu is not None and size >= on_gpu:
            readings.append(Reading("otelperf.server.model.memory", size - on_gpu, _of(name, "host")))
        if context:
            readings.append(Reading("otelperf.server.context.limit", context, _of(name)))
    return readings


@lru_cache(maxsize=3 * _MODELS)
def _of(model: str, memory: str = "") -> Attributes:
    return {MODEL: model, _MEMORY_KIND: memory} if memory else {MODEL: model}


def _amount(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST else None


OLLAMA = Engine(
    name="ollama",
    metrics_path="",
    items=(),
    prints=(Print("/api/ps", re.compile(rb'^\s*\{\s*"models":')),),
    ports=(11434,),
    pages=(JsonPage("/api/ps", loaded),),
)

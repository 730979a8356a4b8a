"""Inference servers: one map each, and the source that reads any of them."""

from __future__ import annotations

from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.llamacpp import LLAMACPP

ENGINES: tuple[Engine, ...] = (LLAMACPP,)

"""Inference servers: one map each, and the source that reads any of them."""

from __future__ import annotations

from otelperf.sources.engines.engine import Engine
from otelperf.sources.engines.llamacpp import LLAMACPP
from otelperf.sources.engines.ollama import OLLAMA
from otelperf.sources.engines.ray_vllm import RAY_VLLM
from otelperf.sources.engines.sglang import SGLANG
from otelperf.sources.engines.tgi import TGI
from otelperf.sources.engines.triton import TRITON
from otelperf.sources.engines.trtllm import TRTLLM
from otelperf.sources.engines.vllm import VLLM

# In the order in which fingerprints are looked at: a page of Triton can have vLLM's series too.
ENGINES: tuple[Engine, ...] = (LLAMACPP, TRITON, SGLANG, TGI, TRTLLM, RAY_VLLM, VLLM, OLLAMA)

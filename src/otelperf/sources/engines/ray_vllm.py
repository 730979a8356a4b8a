"""Ray Serve LLM: vLLM's series on the metrics page of a Ray node, under other names.

Names and meanings: vllm/v1/metrics/ray_wrappers.py in vllm-project/vllm, and ray-project/ray: Ray puts ``ray_`` before every
name, and ``:`` becomes ``_``. One page has all replicas on the node, told apart by ``ReplicaId`` (in vLLM since the end of
2025; before that by nothing that a person knows). A counter is not on the page before it first counts. Labels of the node
(``Component``, ``NodeAddress``, ``SessionName``, ``Version``, ``WorkerId``) are left out. What Ray's own HTTP proxies count
is theirs, not vLLM's: it is not read.
"""

from __future__ import annotations

import re
from dataclasses import replace

from otelperf.sources.engines.engine import Engine, Print, States, Take, names_of
from otelperf.sources.engines.vllm import LABELS, items, steps

_PREFIX = "ray_vllm_"
_REPLICA = "ReplicaId"

RAY_VLLM = Engine(
    name="ray-vllm",
    metrics_path="/metrics",
    items=tuple(
        replace(item, worker=_REPLICA) if isinstance(item, States) else item
        for item in items(_PREFIX)
        if not isinstance(item, Take) or names_of(item.series)[0].startswith(_PREFIX)
    ),
    prints=(Print("/metrics", re.compile(rb"^(?:# (?:TYPE|HELP) )?ray_vllm_", re.MULTILINE)),),
    ports=(8080,),
    labels={**LABELS, _REPLICA: "otelperf.server.replica.id"},
    off={404: "is this the metrics port of a Ray node? (--metrics-export-port; 8080 under KubeRay)"},
    counters=(f"{_PREFIX}prompt_tokens_total", f"{_PREFIX}generation_tokens_total"),
    steps=steps(_PREFIX),
)

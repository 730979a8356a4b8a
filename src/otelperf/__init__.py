"""A performance agent for AI inference: OpenTelemetry metrics every second, sent only when they move.

Importing this does no work: each name is loaded when it is first used.
"""

TYPE_CHECKING = False  # importing it from typing would take 8 ms; type checkers know the name

if TYPE_CHECKING:
    from otelperf.adapters import watch_celery, watch_pool, watch_tasks
    from otelperf.calls import current_call, inference
    from otelperf.gate.budget import Budget
    from otelperf.gate.metrics import DeltaGate
    from otelperf.gate.policy import Override, Policy, Rule, Threshold
    from otelperf.gate.spans import SpanGate
    from otelperf.inprocess import instrument
    from otelperf.relief import on_memory_pressure
    from otelperf.sources.caches import cache
    from otelperf.sources.quality import quality, quality_baseline
    from otelperf.sources.workers import worker

    __version__: str

__all__ = [
    "Budget",
    "DeltaGate",
    "Override",
    "Policy",
    "Rule",
    "SpanGate",
    "Threshold",
    "__version__",
    "cache",
    "current_call",
    "inference",
    "instrument",
    "on_memory_pressure",
    "quality",
    "quality_baseline",
    "watch_celery",
    "watch_pool",
    "watch_tasks",
    "worker",
]

_HOMES = {
    "Budget": "otelperf.gate.budget",
    "DeltaGate": "otelperf.gate.metrics",
    "Override": "otelperf.gate.policy",
    "Policy": "otelperf.gate.policy",
    "Rule": "otelperf.gate.policy",
    "SpanGate": "otelperf.gate.spans",
    "Threshold": "otelperf.gate.policy",
    "instrument": "otelperf.inprocess",
    "cache": "otelperf.sources.caches",
    "current_call": "otelperf.calls",
    "inference": "otelperf.calls",
    "on_memory_pressure": "otelperf.relief",
    "quality": "otelperf.sources.quality",
    "quality_baseline": "otelperf.sources.quality",
    "watch_celery": "otelperf.adapters",
    "watch_pool": "otelperf.adapters",
    "watch_tasks": "otelperf.adapters",
    "worker": "otelperf.sources.workers",
}

if not TYPE_CHECKING:  # else a type checker would believe in any name

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("otelperf")
            except PackageNotFoundError:  # run from a checkout
                return "0+unknown"
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""A performance agent for AI inference: OpenTelemetry metrics every second, sent only when they move.

Importing this does no work: each name is loaded when it is first used.
"""

TYPE_CHECKING = False  # importing it from typing would take 8 ms; type checkers know the name

if TYPE_CHECKING:
    from otelperf.gate.budget import Budget
    from otelperf.gate.metrics import DeltaGate
    from otelperf.gate.policy import Override, Policy, Rule, Threshold

    __version__: str

__all__ = ["Budget", "DeltaGate", "Override", "Policy", "Rule", "Threshold", "__version__"]

_HOMES = {
    "Budget": "otelperf.gate.budget",
    "DeltaGate": "otelperf.gate.metrics",
    "Override": "otelperf.gate.policy",
    "Policy": "otelperf.gate.policy",
    "Rule": "otelperf.gate.policy",
    "Threshold": "otelperf.gate.policy",
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

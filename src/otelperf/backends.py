"""What stores the metrics in the end, and which defaults of other settings follow from it. Reasons: docs/backends.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# Values by the key of their setting, durations in seconds. What is not named keeps its ordinary default.
BACKENDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "prometheus": {},  # and Mimir
        "amp": {"export.replay_age": 3000.0, "gate.previous": False},
        "google": {"gate.linger": 2.0, "gate.previous": False, "gate.spacing": 5.0},
        "victoriametrics": {"gate.previous": False},
        "grafana-cloud": {"gate.heartbeat": 110.0, "gate.rate_window": 240.0, "gate.histogram_interval": 60.0},
    }
)

"""`otelperf doctor`: write a few test series the way the agent would, read them back, and say what does not fit.

Everything that is sent goes through the configured endpoint, under the agent's own resource, as ``otelperf.doctor.*`` with the
run's id as an attribute; at the end each test series is closed by a stale mark. Prometheus is only read.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otelperf.config import Settings


def run(settings: Settings, json: bool) -> int:  # noqa: FBT001 # the command line's own word
    """Examine, print the findings to standard output, and return 0 if all is well, else 1."""
    from otelperf.doctor.examination import examine
    from otelperf.doctor.finding import as_json, as_lines, well

    findings = examine(settings, _progress if sys.stderr.isatty() else lambda _: None)
    print(as_json(findings) if json else "\n".join(as_lines(findings)))
    return 0 if well(findings) else 1


def _progress(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)

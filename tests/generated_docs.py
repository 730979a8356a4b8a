"""Write the tables in docs/ that are made from the code: ``make docs``."""

from __future__ import annotations

from pathlib import Path

from otelperf import catalog
from otelperf.gate.policy import Rule
from otelperf.prometheus_text import metric_name

METRICS_PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
_PARTS = {
    "host": catalog.HOST,
    "server": catalog.SERVER,
    "process": catalog.PROCESS,
    "agent": catalog.AGENT,
}


def metrics_page(page: str) -> str:
    """Return *page* with each part's table made anew between its markers."""
    for part, rows in _PARTS.items():
        table = "\n".join(
            ["| metric | in Prometheus | unit | meaning | sent when |", "|---|---|---|---|---|", *map(_row, rows)]
        )
        begin, end = f"<!-- {part}: made from catalog.py -->", f"<!-- end of {part} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return page


def _row(metric: catalog.Metric) -> str:
    name = metric_name(metric.name, metric.unit, metric.kind)
    return f"| `{metric.name}` | `{name}` | `{metric.unit}` | {metric.meaning} | {sent_when(metric)} |"


def sent_when(metric: catalog.Metric) -> str:
    """Say a rule in a few words."""
    rule, unit = (
        metric.rule,
        "" if metric.unit == "1" else f" {metric.unit.strip('{}').replace('{', '').replace('}', '')}",
    )
    if rule.kind == "heartbeat":
        return f"heartbeat only, {rule.heartbeat:g} s" if rule.heartbeat else "heartbeat only"
    if rule.kind == "state":
        return "every change, at once"
    if rule.kind == "trend":
        return f"rate off by {rule.relative:.0%}" + (f" and {_amount(rule.delta, unit)}" if rule.delta else "")
    measures = _measures(rule, unit)
    said = f"moved by more than {' or '.join(measures)}" if measures else "every change"
    if len(measures) > 1:
        said += ", whichever is more"
    levels = ", ".join(f"{threshold.value:g}" for threshold in rule.thresholds)
    return said + (f"; at once across {levels}" if levels else "")


def _measures(rule: Rule, unit: str) -> list[str]:
    found = []
    if rule.delta:
        found.append(_amount(rule.delta, unit))
    if rule.relative:
        found.append(f"{rule.relative:.0%}")
    if rule.share:
        found.append(f"{rule.share:.1%} of `{rule.share_of}`")
    return found


def _amount(value: float, unit: str) -> str:
    if unit == " By" and value >= 2**20 and value % 2**20 == 0:
        return f"{value / 2**20:g} MiB"
    return f"{value:,g}{unit}"


if __name__ == "__main__":
    METRICS_PAGE.write_text(metrics_page(METRICS_PAGE.read_text()))

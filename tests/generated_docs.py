"""Write the tables in docs/ that are made from the code: ``make docs``."""

from __future__ import annotations

import json
from pathlib import Path

from otelperf import catalog
from otelperf.backends import BACKENDS
from otelperf.config import SETTINGS, Setting
from otelperf.gate.policy import Rule
from otelperf.libraries import LIBRARIES
from otelperf.prometheus_text import metric_name
from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import Engine

DOCS = Path(__file__).resolve().parent.parent / "docs"
METRICS_PAGE = DOCS / "metrics.md"
BACKENDS_PAGE = DOCS / "backends.md"
SERVERS_PAGE = DOCS / "servers.md"
INSTRUMENT_PAGE = DOCS / "instrument.md"
_CAPTURES = Path(__file__).resolve().parent / "captures"
_PARTS = {
    "host": catalog.HOST,
    "server": catalog.SERVER,
    "watch": catalog.WATCH,
    "application": catalog.APPLICATION,
    "integrals": catalog.INTEGRALS,
    "process": catalog.PROCESS,
    "runtime": catalog.RUNTIME,
    "agent": catalog.AGENT,
}


def metrics_page(page: str) -> str:
    """Return *page* with each part's table made anew between its markers."""
    for part, rows in _PARTS.items():
        table = "\n".join(
            ["| metric | in Prometheus | unit | meaning | sent when |", "|---|---|---|---|---|", *map(_row, rows)]
        )
        page = _between(page, f"<!-- {part}: made from catalog.py -->", f"<!-- end of {part} -->", table)
    return page


def _between(page: str, begin: str, end: str, table: str) -> str:
    before, rest = page.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def backends_page(page: str) -> str:
    """Return *page* with the table of what each backend sets made anew."""
    heads = ["setting", *(f"`{name}`" for name in BACKENDS)]
    rows = [_backend_row(each) for each in SETTINGS if each.backends]
    table = "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows])
    return _between(page, "<!-- backends: made from backends.py -->", "<!-- end of backends -->", table)


def _backend_row(setting: Setting) -> str:
    """Say the usual default, and what differs from it."""
    others = [f"`{setting.show(setting.backends[name])}`" if name in setting.backends else "" for name in BACKENDS][1:]
    cells = [setting.usual or f"`{setting.show(setting.default)}`", *others]
    return f"| `{setting.key}` | " + " | ".join(cells) + " |"


def servers_page(page: str) -> str:
    """Return *page* with the table of who gives what made anew."""
    given = [metrics_of(engine) for engine in ENGINES]
    table = "\n".join(
        [
            "| metric | " + " | ".join(engine.name for engine in ENGINES) + " |",
            "|---" * (len(ENGINES) + 1) + "|",
            *(
                f"| `{row.name}` | " + " | ".join("yes" if row.name in each else "" for each in given) + " |"
                for row in catalog.SERVER
            ),
        ]
    )
    return _between(page, "<!-- who gives what: made from the maps -->", "<!-- end of who gives what -->", table)


def instrument_page(page: str) -> str:
    """Return *page* with the table of libraries made anew."""
    rows = [f"| `{each.name}` | {each.what} |" for each in LIBRARIES]
    table = "\n".join(["| library | what it gives |", "|---|---|", *rows])
    return _between(page, "<!-- libraries: made from libraries.py -->", "<!-- end of libraries -->", table)


def metrics_of(engine: Engine) -> frozenset[str]:
    """Return what the map gives: its items, and what its captures show that code makes."""
    pages = _CAPTURES.glob(f"{engine.name}-*/*.readings.json")
    return engine.metrics() | {reading["name"] for page in pages for reading in json.loads(page.read_text())}


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
    if rule.kind == "histogram":
        return f"a quantile off by {rule.relative:.0%}, or the count's rate (that not within `gate.histogram_interval`)"
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
    BACKENDS_PAGE.write_text(backends_page(BACKENDS_PAGE.read_text()))
    SERVERS_PAGE.write_text(servers_page(SERVERS_PAGE.read_text()))
    INSTRUMENT_PAGE.write_text(instrument_page(INSTRUMENT_PAGE.read_text()))

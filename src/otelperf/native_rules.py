"""The gate's rules for series that go under a server's own names (``server.passthrough``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from otelperf.catalog import BY_NAME
from otelperf.gate.policy import UNKNOWN, Rule
from otelperf.sources.engines.engine import Engine, names_of

# Nobody knows what unit a gauge has that no map knows: 5 % is every step of a count below 20 and every change of a switch.
BY_TYPE: Mapping[str, Rule] = {
    **UNKNOWN,
    "gauge": Rule(kind="hold", relative=0.05),
    "monotonic": Rule(kind="trend", relative=0.25),
    "histogram": Rule(kind="histogram", relative=0.25),
}


def native_rules(engines: Iterable[Engine]) -> dict[str, Rule]:
    """Return the rules of the series that a map makes a metric of ours of, all of its samples and in its unit: that metric's."""
    rules: dict[str, Rule] = {}
    for engine in engines:
        for take in engine.takes:
            if take.only or take.number or take.scale != 1.0:
                continue
            rule = _translated(BY_NAME[take.metric].rule, {**engine.labels, **take.labels})
            for name in names_of(take.series):
                rules.setdefault(name, rule)
    return rules


def _translated(rule: Rule, labels: Mapping[str, str]) -> Rule:
    """Name the attributes that a group reaches over as the server's labels do."""
    own = {new: old for old, new in labels.items()}
    return replace(rule, within=tuple(own.get(name, name) for name in rule.within))

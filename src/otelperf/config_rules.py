"""The settings ``gate.rules``, a user's changes to the gate's rules, and ``gate.integrals``, the gauges to integrate."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from otelperf.config_values import (
    DURATION_SCHEMA,
    NAMES,
    NUMBER,
    PERIOD,
    SCALAR,
    Kind,
    UnfitError,
    near,
    quoted,
    show_duration,
    within,
)
from otelperf.gate.policy import Override, Threshold

HEARTBEAT_CEILING = 110.0  # Prometheus forgets a series after 5 min: two heartbeats may be lost before a gap shows

_RULE_KEYS = ("metric", "attributes", "delta", "relative", "share", "heartbeat", "thresholds", "gate")
_DECIMAL = re.compile(rf"[+-]?{NUMBER}")


def _rules(value: Any) -> tuple[Override, ...]:
    """Read the list of rules; each wrong rule is told, at its place."""
    if not isinstance(value, list):
        raise UnfitError
    rules, wrong = [], []
    for place, item in enumerate(value):
        try:
            rules.append(_rule(item))
        except UnfitError as error:
            wrong.append(f"in rule {place + 1} {error}")
    if wrong:
        raise UnfitError(*wrong)
    return tuple(rules)


def _rule(item: Any) -> Override:
    given = _known(item, _RULE_KEYS)
    if not isinstance(given.get("metric"), str) or not given["metric"]:
        raise UnfitError("expected metric, the name or glob of the metrics meant")
    changes = {name: _CHANGES[name](name, each) for name, each in given.items() if name in _CHANGES}
    if not changes:
        raise UnfitError("expected something to change: " + ", ".join(_RULE_KEYS[2:]))
    if changes.pop("gate", None):
        if changes:
            raise UnfitError("gate: off passes everything, so leave out " + ", ".join(changes))
        changes = {"kind": "off"}
    if "share" in changes:
        _check_share(given["metric"])
    attributes = given.get("attributes")
    return Override(given["metric"], MappingProxyType(changes), None if attributes is None else _patterns(attributes))


def _known(item: Any, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise UnfitError("expected a mapping")
    for name in item:
        if name not in known:
            raise UnfitError(f"{name} is unknown{near(name, known)}")
    return {name: each for name, each in item.items() if each is not None}


def _decimal(name: str, value: Any, *, signed: bool = False) -> float:
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value) or (value.startswith("-") and not signed):
        raise UnfitError(f"{name} is {quoted(value)}: expected a number" + ("" if signed else ", 0 or more"))
    number = float(value)
    if number in {float("inf"), float("-inf")}:
        raise UnfitError(f"{name} is {quoted(value)}: expected a finite number")
    return number


def _rule_heartbeat(name: str, value: Any) -> float:
    try:
        seconds = PERIOD.parse(value)
        within(seconds, 0, HEARTBEAT_CEILING)
    except ValueError:
        message = f"{name} is {quoted(value)}: expected a duration above 0, at most {show_duration(HEARTBEAT_CEILING)}"
        raise UnfitError(message) from None
    return seconds


def _rule_thresholds(name: str, value: Any) -> tuple[Threshold, ...]:
    if not isinstance(value, list):
        raise UnfitError(f"{name}: expected a list of value, worse, margin")
    return tuple(_threshold(each) for each in value)


def _threshold(item: Any) -> Threshold:
    given = _known(item, ("value", "worse", "margin"))
    worse = given.get("worse", "above")
    if worse not in ("above", "below"):
        raise UnfitError(f"worse is {quoted(worse)}: expected above or below")
    margin = _decimal("margin", given.get("margin", "0"))
    return Threshold(_decimal("value", given.get("value"), signed=True), worse, margin)


def _rule_gate(name: str, value: Any) -> bool:
    if not isinstance(value, str) or value.lower() not in {"off", "false", "no"}:
        raise UnfitError(f"{name} is {quoted(value)}: expected off")
    return True


def _patterns(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise UnfitError("attributes: expected a mapping of names to globs")
    return MappingProxyType(dict(value))


def _check_share(pattern: str) -> None:
    """A share is one of another metric's value: only the catalogue knows which, so elsewhere it would do nothing."""
    from fnmatch import fnmatchcase

    from otelperf.catalog import METRICS

    able = [metric.name for metric in METRICS if metric.rule.share_of]
    if not any(fnmatchcase(name, pattern) for name in able):
        raise UnfitError(f"share has no meaning for {pattern}: it has for " + ", ".join(able))


_CHANGES: Mapping[str, Callable[[str, Any], Any]] = {
    "delta": _decimal,
    "relative": _decimal,
    "share": _decimal,
    "heartbeat": _rule_heartbeat,
    "thresholds": _rule_thresholds,
    "gate": _rule_gate,
}


def _plain_rules(rules: tuple[Override, ...]) -> list[dict[str, Any]]:
    return [_plain_rule(rule) for rule in rules]


def _plain_rule(rule: Override) -> dict[str, Any]:
    plain: dict[str, Any] = {"metric": rule.metric}
    if rule.attributes is not None:
        plain["attributes"] = dict(rule.attributes)
    for name, value in rule.changes.items():
        if name == "thresholds":
            plain[name] = [{"value": each.value, "worse": each.worse, "margin": each.margin} for each in value]
        else:
            plain[name] = show_duration(value) if name == "heartbeat" else value
    if plain.pop("kind", None) == "off":
        plain["gate"] = "off"
    return plain


_AMOUNT: Mapping[str, Any] = {"type": "number", "minimum": 0}
_RULE_SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["metric"],
        "minProperties": 2,
        "additionalProperties": False,
        "properties": {
            "metric": {"type": "string"},
            "attributes": {"type": "object", "additionalProperties": SCALAR},
            "delta": _AMOUNT,
            "relative": _AMOUNT,
            "share": _AMOUNT,
            "heartbeat": DURATION_SCHEMA,
            "thresholds": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["value"],
                    "additionalProperties": False,
                    "properties": {
                        "value": {"type": "number"},
                        "worse": {"enum": ["above", "below"]},
                        "margin": _AMOUNT,
                    },
                },
            },
            "gate": {"enum": ["off", False]},
        },
    },
}
RULES = Kind(
    "rules", "a list of rules, each a mapping with metric and what to change", _rules, _plain_rules, _RULE_SCHEMA
)


def _integrals(value: Any) -> tuple[str, ...]:
    """Read globs; one that fits no gauge with an integral would do nothing."""
    from fnmatch import fnmatchcase

    from otelperf.catalog import METRICS

    patterns = NAMES.parse(value)
    able = [metric.name for metric in METRICS if metric.averaged is not None]
    lost = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in able)]
    if lost:
        raise UnfitError(f"{', '.join(lost)} fits no metric that has an integral; these have: " + ", ".join(able))
    return patterns


INTEGRALS = Kind("list", "a list of metrics, as globs, separated by commas", _integrals, list, NAMES.schema)

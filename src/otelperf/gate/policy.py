"""Which rule a stream follows: the user's patterns first, then the defaults passed in, then the rule for its data type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

Kind = Literal["hold", "trend", "histogram", "state", "heartbeat", "off"]
_KINDS = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A value at which a person or an alert changes their mind.

    Crossing it towards *worse* is always emitted; the way back once the value is past it by *margin* (same unit).
    """

    value: float
    worse: Literal["above", "below"] = "above"
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class Rule:
    """How far a stream may move unseen.

    *kind*: ``hold`` (gauges: emit past the delta), ``trend`` (counters: emit when ``rate()`` read now would be off),
    ``histogram``, ``state`` (every change, at once), ``heartbeat`` (only at the heartbeat), ``off`` (pass everything).
    *delta* is absolute, in the metric's unit; *relative* a share of the last emitted value; *share* a share of the latest
    value of the metric *share_of* in the same group. The largest of the three is in force.
    For a trend, *relative* is the tolerated error of the rate (0.1 is 10 %), and *delta* an increase, in the metric's unit,
    too small to matter within one rate window.
    *group*: streams with the same group name and the same attributes, those in *within* aside, are emitted together.
    *heartbeat* in seconds; None is the gate's own.
    """

    kind: Kind = "hold"
    delta: float = 0.0
    relative: float = 0.0
    share: float = 0.0
    share_of: str | None = None
    thresholds: tuple[Threshold, ...] = ()
    group: str | None = None
    within: tuple[str, ...] = ()
    heartbeat: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.kind not in _KINDS:
            raise ValueError(f"Rule: kind is {self.kind!r}, expected one of {', '.join(_KINDS)}")
        if not (isinstance(self.thresholds, tuple) and all(isinstance(each, Threshold) for each in self.thresholds)):
            raise ValueError(
                f"Rule: thresholds is {self.thresholds!r}, expected a tuple of Threshold, such as (Threshold(0.9),)"
            )
        for name in ("delta", "relative", "share", "heartbeat"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value >= 0):
                raise ValueError(f"Rule: {name} is {value!r}, expected a number of 0 or more")
        if self.heartbeat == float("inf"):
            raise ValueError("Rule: heartbeat is inf, expected seconds; a series that is silent for 5 min is gone")


@dataclass(frozen=True, slots=True)
class Override:
    """A user's change to whatever rule *metric* (a glob) would follow, for streams that carry *attributes*."""

    metric: str
    changes: Mapping[str, Any]
    attributes: Mapping[str, str] | None = None

    def fits(self, name: str, attributes: Mapping[str, Any]) -> bool:
        """Say whether the stream is meant: the glob matches and each attribute given matches its own glob."""
        return fnmatchcase(name, self.metric) and all(
            key in attributes and fnmatchcase(str(attributes[key]), pattern)
            for key, pattern in (self.attributes or {}).items()
        )


# For metrics nobody wrote a rule for. Gauges: 1 % of the last value sent. Counters: 10 % of the rate. Up-down counters
# count things (connections, requests), so each change is told.
UNKNOWN: Mapping[str, Rule] = {
    "gauge": Rule(kind="hold", relative=0.01),
    "sum": Rule(kind="hold"),
    "monotonic": Rule(kind="trend", relative=0.1),
    "histogram": Rule(kind="histogram", relative=0.1),
}


class Policy:
    """Rules by metric name, in the order: overrides (the later wins), *rules* by exact name, the data type's in *unknown*."""

    def __init__(
        self,
        rules: Mapping[str, Rule] | None = None,
        overrides: Sequence[Override] = (),
        unknown: Mapping[str, Rule] = UNKNOWN,
    ) -> None:
        _check(rules, overrides)
        self._rules = dict(rules or {})
        self._unknown = unknown
        self._overrides = tuple(overrides)

    def rule(self, name: str, shape: str, attributes: Mapping[str, Any]) -> Rule:
        """Return the rule of one stream; *shape* is ``gauge``, ``sum``, ``monotonic`` or ``histogram``."""
        rule = self._rules.get(name, self._unknown[shape])
        for override in self._overrides:
            if override.fits(name, attributes):
                rule = replace(rule, **_absolute(override.changes))
        return _fitting(rule, shape)


def _check(rules: Any, overrides: Any) -> None:
    """Refuse here what would else fail in each export."""
    if rules is not None and not isinstance(rules, Mapping):
        raise TypeError(
            f"Policy: rules is {rules!r}, expected a mapping of metrics' names to rules, such as "
            "{'queue.length': Rule(delta=5)}"
        )
    for name, rule in (rules or {}).items():
        if not (isinstance(name, str) and isinstance(rule, Rule)):
            raise TypeError(
                f"Policy: rules has {rule!r} for {name!r}, expected a Rule for a metric's name, such as Rule(delta=5)"
            )
    if not isinstance(overrides, Sequence):
        raise TypeError(f"Policy: overrides is {overrides!r}, expected a list of Override")
    for override in overrides:
        _check_override(override)


def _check_override(override: Any) -> None:
    if not isinstance(override, Override):
        raise TypeError(
            f"Policy: overrides has {override!r}, expected an Override, such as Override('system.*', {{'delta': 0.05}})"
        )
    metric, changes, attributes = override.metric, override.changes, override.attributes
    if not isinstance(metric, str):
        raise TypeError(f"Override: metric is {metric!r}, expected a metric's name, or a glob")
    if not (attributes is None or isinstance(attributes, Mapping)):
        raise TypeError(f"Override of {metric}: attributes is {attributes!r}, expected a mapping of names to globs")
    if not isinstance(changes, Mapping):
        raise TypeError(f"Override of {metric}: changes is {changes!r}, expected a mapping, such as {{'delta': 0.05}}")
    known = [field.name for field in fields(Rule)]
    for name in changes:
        if name not in known:
            raise TypeError(f"Override of {metric}: {name!r} is nothing of a Rule, expected some of {', '.join(known)}")
    try:
        replace(Rule(), **changes)
    except ValueError as error:
        raise ValueError(f"Override of {metric}: {error}") from None


def _absolute(changes: Mapping[str, Any]) -> dict[str, Any]:
    """A user who states a delta means that one: the default's other measures must not widen it."""
    measures = {"delta", "relative", "share"} & changes.keys()
    return {"delta": 0.0, "relative": 0.0, "share": 0.0, **changes} if measures else dict(changes)


def _fitting(rule: Rule, shape: str) -> Rule:
    """A rule made for another data type (a foreign metric under a known name) falls back to what the type allows."""
    if rule.kind in {"off", "heartbeat"} or (rule.kind == "histogram") == (shape == "histogram"):
        if rule.kind == "trend" and shape != "monotonic":
            return replace(rule, kind="hold")
        return rule
    return UNKNOWN[shape]

"""Alerts as Prometheus evaluates them: active, pending for `for`, firing; and what a way fires beside dense data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

STEP = 15  # s between two evaluations
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Alert:
    """One alert; *seconds* is its ``for``, *of* the rule that it follows."""

    name: str
    input: str
    expr: str
    seconds: int
    of: str
    changed: str


class Episode(NamedTuple):
    """One firing, from the first evaluation to the last (numbers of evaluations)."""

    labels: Labels
    first: int
    last: int


@dataclass
class Comparison:
    """What a way fired beside dense data; *delays* in s of the episodes that it did fire."""

    fired: int = 0
    missed: int = 0
    false: int = 0
    delays: list[int] = field(default_factory=list)


def alerts(name: str) -> list[Alert]:
    """Return the alerts of an input."""
    found: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())
    return [
        Alert(each["alert"], each["input"], each["expr"], each["for"], each["of"], each["changed"])
        for each in found
        if each["input"] == name
    ]


def episodes(active: Mapping[Labels, Iterable[int]], seconds: int) -> list[Episode]:
    """Return the firings, given the evaluations at which each set of labels was active."""
    pending = -(-seconds // STEP)
    found = []
    for labels, evaluations in active.items():
        for first, last in _runs(sorted(evaluations)):
            if last - first >= pending:
                found.append(Episode(labels, first + pending, last))
    return sorted(found, key=lambda episode: episode.first)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def compare(dense: Sequence[Episode], way: Sequence[Episode], into: Comparison) -> None:
    """Count what was missed and what was false: one evaluation early or late is neither."""
    for episode in dense:
        into.fired += 1
        firings = [other.first for other in way if _meet(episode, other)]
        if firings:
            into.delays.append((min(firings) - episode.first) * STEP)
        else:
            into.missed += 1
    into.false += sum(not any(_meet(episode, other) for episode in dense) for other in way)


def _meet(dense: Episode, way: Episode) -> bool:
    return dense.labels == way.labels and way.first <= dense.last + 1 and way.last >= dense.first - 1

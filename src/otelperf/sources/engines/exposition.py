"""Prometheus' text format, read for the wanted series only.

A server's page has thousands of lines and the agent wants dozens: an unwanted line costs one look at its name. (The
parser of prometheus_client reads every line whole; it is some twenty times dearer on a real page.)
Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from itertools import pairwise
from math import inf, isfinite
from typing import NamedTuple

from otelperf.readings import Buckets

# Every repetition is possessive (*+ ++ ?+): the page comes from outside, and no line may cost the square of its length.
_QUOTED = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_LINE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+"  # name
    rf'(?:\{{([^"}}]*+(?:{_QUOTED}[^"}}]*+)*+)\}}[ \t]*+)?'  # labels
    r"([^\s#]\S*+)(?:[ \t]++-?[0-9][0-9.]*+)?+"  # value, and a time that is not used
    r"(?:[ \t]++(?:#.*+)?+)?+"  # an exemplar of OpenMetrics
)
_LABEL = re.compile(rf"[ \t]*+([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+({_QUOTED})[ \t]*+(?:,[ \t]*+|$)")
_NAME_END = re.compile(r"[{ \t]")
_ESCAPE = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n", "\\": "\\", '"': '"'}


class Sample(NamedTuple):
    """One line."""

    name: str
    labels: Mapping[str, str]
    value: float


class Page(NamedTuple):
    """The wanted samples, how many wanted lines could not be read, and the first of those."""

    samples: list[Sample]
    malformed: int
    first_malformed: str


def histograms(samples: Iterable[Sample], series: str) -> list[tuple[Mapping[str, str], Buckets]]:
    """Put the lines of histogram *series* together, by labels; one with a part missing or counts that fall is left out."""
    found: dict[frozenset[tuple[str, str]], tuple[dict[float, float], dict[str, float]]] = {}
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        running, totals = found.setdefault(frozenset(labels.items()), ({}, {}))
        if sample.name == f"{series}_bucket":
            with suppress(KeyError, ValueError):
                running[float(sample.labels["le"])] = sample.value
        elif sample.name.startswith(series):
            totals[sample.name.removeprefix(series)] = sample.value
    whole = ((dict(labels), _buckets(running, totals)) for labels, (running, totals) in found.items())
    return [(labels, buckets) for labels, buckets in whole if buckets is not None]


def _buckets(running: Mapping[float, float], totals: Mapping[str, float]) -> Buckets | None:
    bounds = sorted(running)
    if not bounds or bounds[-1] != inf or not {"_sum", "_count"} <= totals.keys():
        return None
    levels = [running[bound] for bound in bounds]
    if not all(isfinite(level) for level in levels):
        return None
    counts = tuple(int(after - before) for before, after in pairwise([0.0, *levels]))
    if min(counts) < 0:
        return None
    return Buckets(sum(counts), totals["_sum"], tuple(bounds[:-1]), counts)


def parse(text: str, wanted: AbstractSet[str]) -> Page:
    """Read the lines whose metric is *wanted*; the others are not looked at further. Never raises."""
    samples: list[Sample] = []
    malformed, first = 0, ""
    for line in text.split("\n"):
        line = line.strip()  # noqa: PLW2901 # blanks around a line mean nothing
        end = _NAME_END.search(line)
        if (line[: end.start()] if end else line) not in wanted:
            continue
        sample = _sample(line)
        if sample is None:
            malformed += 1
            first = first or line[:120]
        else:
            samples.append(sample)
    return Page(samples, malformed, first)


def _sample(line: str) -> Sample | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    name, labels_text, value_text = match.groups()
    labels = _labels(labels_text or "")
    # float() takes 1_000 and digits of other scripts, the format does not.
    if labels is None or "_" in value_text or not value_text.isascii():
        return None
    try:
        return Sample(name, labels, float(value_text))
    except ValueError:
        return None


def _labels(text: str) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            return None
        value = match[2][1:-1]
        labels[match[1]] = _ESCAPE.sub(lambda m: _UNESCAPED.get(m[1], m[0]), value) if "\\" in value else value
        position = match.end()
    return labels

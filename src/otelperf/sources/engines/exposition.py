"""Prometheus' text format, read for the wanted series only.

A server's page has thousands of lines and the agent wants dozens: an unwanted line costs one look at its name. (The
parser of prometheus_client reads every line whole; it is some twenty times dearer on a real page.)
Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from math import inf, isfinite
from operator import sub
from typing import Any, NamedTuple

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
_KNOWN = 6 * 2**20  # bytes of lines that are remembered, about
_PLACE = 600  # bytes that one takes besides its text
_LAID_OUT = 25_000  # lines, some 20 MiB: a page with more is read whole each time
_COMMENTS = 10_000  # lines remembered
_LONGEST_HELP = 1_000  # characters
_TRUSTED = 11  # pages that are read by the places of the lines alone, between two that are read whole
_COUNTABLE = 2.0**53  # a larger count is none, and OTLP could not carry it
_UNESCAPED = {"n": "\n", "\\": "\\", '"': '"'}


class Place:
    """A line's name and labels: the same object for the same line of each page. *memo* is its user's, for what they mean."""

    __slots__ = ("labels", "memo", "name")

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:
        self.name = name
        self.labels = labels
        self.memo: dict[Any, Any] = {}


Lines = dict[str, list[tuple[Place, float]]]


class Found(NamedTuple):
    """The wanted lines with their values by series, how many wanted lines could not be read, and the first of those."""

    lines: Lines
    malformed: int
    first_malformed: str


class Families:
    """What the comments of a page say of its series: their types and helps, for the names in *wanted*.

    *changes* counts how often something new was said.
    """

    def __init__(self, wanted: Container[str]) -> None:
        self.changes = 0
        self._wanted = wanted
        self._kinds: dict[str, str] = {}
        self._meanings: dict[str, str] = {}
        self._seen: set[int] = set()  # hashes: the comments themselves may be long

    def read(self, comment: str) -> None:
        """Read ``# TYPE name kind`` or ``# HELP name text``. Never raises."""
        seen = hash(comment)
        if seen in self._seen:
            return
        if len(self._seen) > _COMMENTS:  # a server that invents names must not fill our memory
            self._seen, self._kinds, self._meanings = set(), {}, {}
        self._seen.add(seen)
        _, what, name, rest = (*comment.split(None, 3), "", "", "", "")[:4]
        if what not in {"TYPE", "HELP"} or not (name in self._wanted or f"{name}_total" in self._wanted):
            return
        self.changes += 1
        if what == "TYPE":
            if self._kinds.get(name, rest) != rest:
                self._seen = {seen}  # the other type may come back
            self._kinds[name] = rest
        else:
            self._meanings[name] = _ESCAPE.sub(lambda m: _UNESCAPED.get(m[1], m[0]), rest)[:_LONGEST_HELP]

    def kind(self, name: str) -> str:
        """Return the type of the series of that name, ``""`` if none is told."""
        return self._kinds.get(name, "")

    def meaning(self, name: str) -> str:
        """Return the help of the series of that name, ``""`` if there is none."""
        return self._meanings.get(name, "")


class Reader:
    """Reads a server's pages, one after the other: they repeat all but the values.

    So names and labels are taken apart once. And in a page of as many lines as the last, where each wanted line is where it was,
    the others are not looked at; every twelfth page is read whole all the same. Comments go to *families*.
    """

    def __init__(self, wanted: Container[str], families: Families | None = None) -> None:
        self._wanted = wanted
        self._families = families
        self._places: dict[str, Place] = {}
        self._known = 0
        # By series, each line: its number, how it begins, how long that is.
        self._layout: dict[str, list[tuple[int, str, int, Place]]] = {}
        self._count = 0
        self._trust = 0

    def read(self, text: str) -> Found:
        """Read the lines whose metric is wanted; the others are not looked at further. Never raises."""
        texts = text.split("\n")
        if self._trust and len(texts) == self._count:
            self._trust -= 1
            lines = self._as_before(texts)
            if lines is not None:
                return Found(lines, 0, "")
        found, plain = self._whole(texts)
        self._count, self._trust = len(texts), _TRUSTED if plain else 0
        return found

    def _as_before(self, texts: list[str]) -> Lines | None:
        """Read the page by the last one's layout; None where it has another."""
        found: Lines = {}
        for series, layout in self._layout.items():
            found[series] = values = []
            for number, start, length, place in layout:
                text = texts[number]
                value = text[length:]
                # As in _number, without the call.
                if not text.startswith(start) or "_" in value or not value.isascii():
                    return None
                try:
                    values.append((place, float(value)))
                except ValueError:
                    return None
        return found

    def _whole(self, texts: list[str]) -> tuple[Found, bool]:
        """Read the page and learn its layout; say as well whether all its wanted lines have a place in that."""
        lines: Lines = {}
        malformed, first, odd = 0, "", False
        places, wanted = self._places, self._wanted
        layout = self._layout = {}
        for number, line in enumerate(texts):
            head, _, value = line.rpartition(" ")
            place = places.get(head)
            if place is None or (read := _number(value)) is None:
                line = line.strip()  # noqa: PLW2901 # blanks around a line mean nothing
                if line[:1] in {"#", ""}:
                    if line and self._families is not None:
                        self._families.read(line)
                    continue
                end = _NAME_END.search(line)
                if (line[: end.start()] if end else line) not in wanted:
                    continue
                found = self._take_apart(line)
                if found is None:
                    malformed += 1
                    first = first or line[:120]
                    continue
                place, read = found
            lines.setdefault(place.name, []).append((place, read))
            if places.get(head) is place:
                layout.setdefault(place.name, []).append((number, head + " ", len(head) + 1, place))
            else:  # with a time or an exemplar, the value is not its end
                odd = True
        plain = 0 < sum(map(len, layout.values())) <= _LAID_OUT and not (malformed or odd)
        if not plain:
            self._layout = {}
        return Found(lines, malformed, first), plain

    def _take_apart(self, line: str) -> tuple[Place, float] | None:
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        name, labels_text, value_text = match.groups()
        labels, value = _labels(labels_text or ""), _number(value_text)
        if labels is None or value is None:
            return None
        place = Place(name, labels)
        # What is known by its head must be all of the line but the value: no time, no exemplar, one blank.
        if line == f"{line[: match.start(3) - 1]} {value_text}":
            head = line[: match.start(3) - 1]
            self._known += len(head) + _PLACE
            if self._known > _KNOWN:  # a server that invents labels must not fill our memory
                self._places.clear()
                self._known = len(head) + _PLACE
            self._places[head] = place
        return place, value


def as_buckets(running: Mapping[float, float], total: float | None) -> Buckets | None:
    """Make a histogram of its running counts by upper bound and its sum; None where it has no end, no sum or falls."""
    bounds = sorted(running)
    if not bounds or bounds[-1] != inf or total is None:
        return None
    levels = [running[bound] for bound in bounds]
    if not isfinite(sum(levels)) or max(levels) >= _COUNTABLE:
        return None
    whole = list(map(int, levels))
    counts = (whole[0], *map(sub, whole[1:], whole))
    if min(counts) < 0:
        return None
    return Buckets(whole[-1], total, tuple(bounds[:-1]), counts)


def _number(text: str) -> float | None:
    # float() takes 1_000 and digits of other scripts, the format does not.
    if "_" in text or not text.isascii():
        return None
    try:
        return float(text)
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

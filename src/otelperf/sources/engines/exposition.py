"""Prometheus' text format, read for the wanted series only.

A server's page has thousands of lines and the agent wants dozens: an unwanted line costs one look at its name. (The
parser of prometheus_client reads every line whole; it is some twenty times dearer on a real page.)
Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import chain
from math import inf, isfinite, nan
from operator import getitem, sub
from types import MappingProxyType
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
_LAID_OUT = 25_000  # lines of a page whose layout is learnt, and
_LEARNT = 2 * 2**20  # bytes: a larger page is taken apart piece by piece, so that its lines are never all there at once
_PIECE = 2**16  # bytes
_COMMENTS = 10_000  # lines remembered
_LONGEST_HELP = 1_000  # characters
_TRUSTED = 11  # pages that are read by the places of the lines alone, between two that are read whole
LONGEST = 200  # characters of a label's value
_HISTOGRAMS = 10_000  # remembered
_COUNTABLE = 2.0**53  # a larger count is none, and OTLP could not carry it
_UNESCAPED = {"n": "\n", "\\": "\\", '"': '"'}


class Place:
    """A line's name and labels: the same object for the same line of each page. *memo* is its user's, for what they mean.

    A histogram, of whose lines each is a *part*, has one as well: its name, and its labels without ``le``.
    """

    __slots__ = ("labels", "memo", "name", "part")

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:
        self.name = name
        self.labels = labels
        self.memo: dict[Any, Any] = {}
        self.part: _Part | None = None


class Lines(dict[str, list[tuple[Place, float]]]):
    """The wanted lines of a page with their values, by series."""

    def __init__(
        self,
        lines: Mapping[str, list[tuple[Place, float]]] = MappingProxyType({}),
        known: dict[tuple[str, int], _Running] | None = None,
    ) -> None:
        super().__init__(lines)
        self._known = {} if known is None else known  # the reader's
        self._histograms: dict[str, list[tuple[Place, Buckets]]] = {}

    def histograms(self, name: str) -> list[tuple[Place, Buckets]]:
        """Return the histograms that the lines of *name* make up, ``le`` taken out of their labels; made once, whoever asks."""
        found = self._histograms.get(name)
        if found is None:
            found = self._histograms[name] = self._made(name)
        return found

    def _made(self, name: str) -> list[tuple[Place, Buckets]]:
        several: list[_Running] = []
        for suffix in ("_bucket", "_sum"):
            for place, value in self.get(name + suffix, ()):
                histogram, bound = place.part or self._part(name, place, suffix)
                values = histogram.values
                if not values:
                    several.append(histogram)
                if bound == bound:  # NaN is no bound
                    values[bound] = value
        found = []
        for each in several:
            total = each.values.pop(None, None)
            buckets = as_buckets(each.values, total)  # type: ignore[arg-type] # no None is left
            each.values.clear()
            if buckets is not None:
                found.append((each.place, buckets))
        return found

    def _part(self, name: str, place: Place, suffix: str) -> _Part:
        labels = {label: text for label, text in place.labels.items() if label != "le"}
        key = (name, hash(frozenset(labels.items())))  # a hash, because labels may be long
        histogram = self._known.get(key)
        if histogram is None:
            if len(self._known) > _HISTOGRAMS:  # a server that invents labels must not fill our memory
                self._known.clear()
            labels = {label: text[:LONGEST] for label, text in labels.items()}
            histogram = self._known[key] = _Running(Place(name, labels), {})
        place.part = histogram, _upper_bound(place.labels.get("le", "")) if suffix == "_bucket" else None
        return place.part


class _Running(NamedTuple):
    """A histogram while its lines are gathered: the running counts by upper bound, and its sum under None."""

    place: Place
    values: dict[float | None, float]


_Part = tuple[_Running, float | None]  # which histogram a line is of, and its upper bound, None for the sum


class Found(NamedTuple):
    """The wanted lines with their values by series, how many wanted lines could not be read, and the first of those.

    *cut*: there were more than are taken, and the rest of the page was not read.
    """

    lines: Lines
    malformed: int = 0
    first_malformed: str = ""
    cut: bool = False


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


class _Layout:
    """Where the wanted lines of a page are, series by series: each line's number, how it begins, and where its value is."""

    def __init__(self, lines: Mapping[str, list[tuple[int, str, Place]]]) -> None:
        every = [line for several in lines.values() for line in several]
        self._numbers = [number for number, _, _ in every]
        self._heads = [head for _, head, _ in every]
        rests = {length: slice(length, None) for length in set(map(len, self._heads))}
        self._values = [rests[len(head)] for head in self._heads]
        self._places = [place for _, _, place in every]
        self._counts = {series: len(several) for series, several in lines.items()}

    def read(self, texts: list[str], into: Lines) -> bool:
        """Read the lines of a page of as many; False where the wanted ones are not where they were."""
        # Each step is one call for all lines: a line costs a third of what it costs in a loop.
        lines = [texts[number] for number in self._numbers]
        if not all(map(str.startswith, lines, self._heads)):
            return False
        values: list[str] = list(map(getitem, lines, self._values))
        if not _is_plain("".join(values)):
            return False
        try:
            found = list(zip(self._places, map(float, values), strict=True))
        except ValueError:
            return False
        end = 0
        for series, count in self._counts.items():
            begin, end = end, end + count
            into[series] = found[begin:end]
        return True


class Reader:
    """Reads a server's pages, one after the other: they repeat all but the values.

    So names and labels are taken apart once. And in a page of as many lines as the last, where each wanted line is where it was,
    the others are not looked at; every twelfth page is read whole all the same. Comments go to *families*. Of a page no more than
    *most* wanted lines are taken.
    """

    def __init__(self, wanted: Container[str], families: Families | None = None, most: int = 25_000) -> None:
        self._wanted = wanted
        self._most = most
        self._families = families
        self._places: dict[str, Place] = {}  # by how the line begins, the blank before the value included
        self._known = 0
        self._histograms: dict[tuple[str, int], _Running] = {}
        self._layout: _Layout | None = None
        self._count = 0  # lines
        self._trust = 0

    def read(self, body: bytes) -> Found:
        """Read the lines whose metric is wanted; the others are not looked at further. Never raises."""
        count = body.count(b"\n")
        if count > _LAID_OUT or len(body) > _LEARNT:
            return self._whole(chain.from_iterable(map(_split, _pieces(body))), learn=False)
        texts = _split(body)
        if self._layout and self._trust and count == self._count:
            self._trust -= 1
            lines = Lines(known=self._histograms)
            if self._layout.read(texts, lines):
                return Found(lines)
        self._count, self._trust = count, _TRUSTED
        return self._whole(texts, learn=True)

    def _whole(self, texts: Iterable[str], *, learn: bool) -> Found:
        """Read the page, and *learn* its layout if all its wanted lines have a place in one."""
        self._layout = None
        lines = Lines(known=self._histograms)
        malformed, first, room = 0, "", self._most
        places = self._places
        layout: dict[str, list[tuple[int, str, Place]]] = {}
        for number, line in enumerate(texts):
            if not line:
                continue
            end = line.rfind(" ") + 1
            head = line[:end]
            place = places.get(head)
            if place is None or (read := _number(line[end:])) is None:
                line = line.strip()  # noqa: PLW2901 # blanks around a line mean nothing
                if not self._wants(line):
                    continue
                found = self._take_apart(line)
                if found is None:
                    malformed += 1
                    first = first or line[:120]
                    continue
                place, read = found
            if not room:
                return Found(lines, malformed, first, cut=True)
            room -= 1
            lines.setdefault(place.name, []).append((place, read))
            if learn and places.get(head) is place:
                layout.setdefault(place.name, []).append((number, head, place))
            else:  # with a time or an exemplar, the value is not its end
                learn = False
        if learn and layout and not malformed:
            self._layout = _Layout(layout)
        return Found(lines, malformed, first)

    def _wants(self, line: str) -> bool:
        """Say whether it is a line of a wanted metric; a comment is read."""
        if line[:1] in {"#", ""}:
            if line and self._families is not None:
                self._families.read(line)
            return False
        end = _NAME_END.search(line)
        return (line[: end.start()] if end else line) in self._wanted

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
        head = line[: match.start(3)]
        if line == f"{head[:-1]} {value_text}":
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


def _pieces(body: bytes) -> Iterator[bytes]:
    """Cut the page between lines."""
    begin = 0
    while begin < len(body):
        end = body.rfind(b"\n", begin, begin + _PIECE)
        if end < 0 and (end := body.find(b"\n", begin + _PIECE)) < 0:
            end = len(body)
        yield body[begin:end]
        begin = end + 1


def _split(body: bytes) -> list[str]:
    return body.decode("utf-8", "replace").split("\n")


def _is_plain(numbers: str) -> bool:
    """Say whether there is nothing in it that float() takes but the format does not: 1_000, and digits of other scripts."""
    return "_" not in numbers and numbers.isascii()


def _number(text: str) -> float | None:
    if not _is_plain(text):
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


def _upper_bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan

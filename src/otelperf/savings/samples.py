"""A file of samples: what Prometheus' HTTP API answered, or lines of text, each with its time.

Lines are those of OpenMetrics and of Prometheus' text format, as ``promtool tsdb dump-openmetrics`` and ``promtool tsdb dump``
print them. (The parsers of prometheus_client take a page of one moment; this reads a line for itself, and each set of labels
once.)
"""

from __future__ import annotations

import re
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from otelperf.errors import OtelperfError
from otelperf.savings.recording import NAME, TIMES, NoTimeError, Recording, Series, UnfitError, in_calendar

STDIN = "-"

# Every repetition is possessive (*+ ++ ?+): no line may cost the square of its length.
_QUOTED = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_HEAD = re.compile(rf'([a-zA-Z_:][a-zA-Z0-9_:]*+)?+[ \t]*+(?:\{{([^"}}]*+(?:{_QUOTED}[^"}}]*+)*+)\}})?+')
_LABEL = re.compile(rf"[ \t]*+([a-zA-Z_][a-zA-Z0-9_]*+|{_QUOTED})[ \t]*+=[ \t]*+({_QUOTED})[ \t]*+(?:,[ \t]*+|$)")
_QUOTED_NAME = re.compile(rf"[ \t]*+({_QUOTED})[ \t]*+(?:,[ \t]*+|$)")
_ESCAPE = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_TYPE = re.compile(r"#[ \t]+TYPE[ \t]+(\S+)[ \t]+(\S+)")
_JSON = re.compile(rb'\s*\{\s*"[^"]*"\s*:')
_MILLISECONDS = 1e11  # a larger time is in ms (1973 and later), a smaller one in s
_FIRST = 4096
_PIECE = 2**20
_LINE_LIMIT = 2**20  # bytes; memory must not depend on what the file is
_JSON_LIMIT = 2**29  # bytes: some 20 million samples, as many as --max-samples has them by default
_SHOWN = 80


def read(name: str, recording: Recording, advance: Callable[[int], None]) -> None:
    """Add all samples of a file, or of standard input where the name is ``-``; *advance* is told the bytes read."""
    shown = "standard input" if name == STDIN else name
    try:
        with _opened(name) as file:
            beginning = file.peek(_FIRST)[:_FIRST]  # type: ignore[attr-defined] # both are buffered
            if beginning.startswith(b"\x1f\x8b"):
                raise OtelperfError(f"{shown} is compressed: give `zcat FILE | otelperf savings --file -`")
            if beginning.startswith(BOM_UTF8):
                file.read(len(BOM_UTF8))
                beginning = beginning.removeprefix(BOM_UTF8)
            if _JSON.match(beginning):
                _read_json(shown, file, recording, advance)
            else:
                _read_lines(shown, file, recording, advance)
    except OSError as error:
        raise OtelperfError(f"cannot read {shown}: {error.strerror or error}") from error


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == STDIN:
        if sys.stdin is None:  # started with it closed
            raise OtelperfError("standard input is closed: give --file FILE, or open it")
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as file:
        yield file


def _read_json(shown: str, file: BinaryIO, recording: Recording, advance: Callable[[int], None]) -> None:
    text = bytearray()
    while piece := file.read(_PIECE):
        text += piece
        if len(text) > _JSON_LIMIT:
            raise OtelperfError(
                f"{shown}: more than {_JSON_LIMIT} bytes of JSON: ask for a shorter time or fewer series, or give lines"
            )
        advance(len(piece))
    try:
        recording.take_matrix(text)
    except UnfitError as error:
        raise OtelperfError(f"{shown}: {error}") from error


def _read_lines(shown: str, file: BinaryIO, recording: Recording, advance: Callable[[int], None]) -> None:
    lines = _Lines(recording)
    read = 0
    for number, line in enumerate(iter(partial(file.readline, _LINE_LIMIT + 1), b""), 1):
        if len(line) > _LINE_LIMIT:
            raise OtelperfError(f"{shown}, line {number}: it has more than {_LINE_LIMIT} bytes: no sample is so long")
        read += len(line)
        if read > _PIECE:
            advance(read)
            read = 0
        try:
            if not line.endswith(b"\n") and line.rstrip() != b"# EOF":
                recording.notes["last line without an end, left out as it may be cut"] += 1
            else:
                lines.take(line.decode())
        except ValueError as error:
            text = line.decode(errors="replace").strip()
            told = "".join(each for each in text if each.isprintable())[:_SHOWN]
            why = "it is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise OtelperfError(f"{shown}, line {number}: {told!r} is no sample: {why}") from error


class _Lines:
    """Lines into a recording; each set of labels is read once."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._by_head: dict[str, Series] = {}

    def take(self, line: str) -> None:
        """Add a line's sample; raises ValueError."""
        line = line.strip()
        if not line:
            return
        if line.startswith("#"):
            found = _TYPE.match(line)
            if found:
                self._recording.types[found[1].strip('"')] = found[2]
            return
        head = _HEAD.match(line)
        text = head[0] if head else ""
        if not text.strip():
            raise UnfitError("expected name{labels} value time")
        rest = line[len(text) :]
        if rest.lstrip().startswith("{count:"):
            self._recording.notes["samples of native histograms, skipped (classic ones are replayed)"] += 1
            return
        value, time = _value_and_time(rest.partition("#")[0].split())  # behind # is an exemplar
        series = self._by_head.get(text)
        if series is None:
            assert head is not None  # it has text
            series = self._by_head[text] = self._recording.of(_labels(head[1], head[2] or ""))
        series.times.append(time)
        series.values.append(value)
        self._recording.took(1)


def _value_and_time(words: list[str]) -> tuple[float, int]:
    if len(words) == 1:
        raise UnfitError("it has no time; expected name{labels} value time")
    if len(words) != 2 or any("_" in word or not word.isascii() for word in words):  # float() takes 1_000
        raise UnfitError("expected name{labels} value time")
    value, time = map(float, words)
    milliseconds = time if time > _MILLISECONDS else time * 1000
    if not in_calendar(milliseconds):
        raise NoTimeError(f"{words[1][:_SHOWN]} is no time: {TIMES}, in Unix seconds or milliseconds")
    return value, round(milliseconds)


def _labels(name: str | None, text: str) -> dict[str, str]:
    labels = {NAME: name} if name else {}
    position = 0
    if not name and (quoted := _QUOTED_NAME.match(text)):  # UTF-8 names stand among the labels
        labels[NAME] = _unquoted(quoted[1])
        position = quoted.end()
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            raise UnfitError(f"its labels cannot be read from {text[position:][:_SHOWN]!r} on")
        labels[_unquoted(match[1])] = _unquoted(match[2])
        position = match.end()
    if not labels.get(NAME):
        raise UnfitError("it has no name")
    return labels


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    return _ESCAPE.sub(lambda found: _UNESCAPED.get(found[1], found[1]), text[1:-1])

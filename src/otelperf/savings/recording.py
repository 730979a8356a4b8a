"""Samples as they were read, in little memory: two arrays a series. What makes no sense is left out, and told."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice, pairwise
from operator import lt
from typing import Any

from otelperf.errors import OtelperfError

NAME = "__name__"
LAST_TIME = 253_402_300_799_999  # ms: the end of the year 9999, which calendars and datetime know as the last
TIMES = "expected a time in the years 1970 to 9999"
_SHOWN = 80


class UnfitError(ValueError):
    """The text is not what it should be."""


class NoTimeError(UnfitError):
    """A sample has a time that is none."""


def visible(text: str) -> str:
    """Write what cannot be printed as Python would: a name from outside must not steer the terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def in_calendar(milliseconds: float) -> bool:
    """Say whether a time is one that can be shown; NaN is not."""
    return 0 <= milliseconds <= LAST_TIME


class Series:
    """One series: *times* in Unix ms, and *values*."""

    __slots__ = ("labels", "name", "times", "values")

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = {key: value for key, value in labels.items() if key != NAME}
        self.name = labels.get(NAME, "")
        self.times = array("q")
        self.values = array("d")

    def put_in_order(self) -> tuple[int, int]:
        """Sort by time and keep one sample a time; return how many were out of order, and how many contradicted another."""
        if all(map(lt, self.times, islice(self.times, 1, None))):
            return 0, 0
        disordered = sum(after < before for before, after in pairwise(self.times))
        samples: dict[int, float] = {}
        contradictions = 0
        for time, value in zip(self.times, self.values, strict=True):
            kept = samples.setdefault(time, value)
            contradictions += not (kept == value or (kept != kept and value != value))
        self.times = array("q", sorted(samples))
        self.values = array("d", map(samples.__getitem__, self.times))
        return disordered, contradictions


class Recording:
    """All that was read. *most* samples may be added; *types* are metric types by metric family, where they are known."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.samples = 0
        self.types: dict[str, str] = {}
        self.notes: Counter[str] = Counter()  # what a person should know, and how often
        self._series: dict[frozenset[tuple[str, str]], Series] = {}

    def of(self, labels: Mapping[str, str]) -> Series:
        """Return the series with these labels, the metric's name among them."""
        key = frozenset(labels.items())
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = Series(labels)
        return found

    def took(self, samples: int) -> None:
        """Count samples that were added to a series."""
        self.samples += samples
        if self.samples > self.most:
            raise OtelperfError(
                f"more than {self.most} samples: choose fewer series or a shorter time, or raise --max-samples"
            )

    def finish(self) -> list[Series]:
        """Return the series that have samples, in order."""
        found = []
        for series in self._series.values():
            disordered, contradictions = series.put_in_order()
            self.notes["samples out of order, sorted"] += disordered
            self.notes["samples that contradict another of the same time, left out"] += contradictions
            if series.times:
                found.append(series)
        self.notes = +self.notes
        return found

    def take_matrix(self, text: str | bytes | bytearray) -> tuple[int, Any]:
        """Add an answer of Prometheus' HTTP API, a matrix; return how many samples it had, and the answer without them.

        Raises UnfitError.
        """
        before = self.samples
        try:
            answer = json.loads(text, object_hook=self._take_object)
            kind = answer["data"]["resultType"]
        except NoTimeError:
            raise
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            raise UnfitError("it is no answer of Prometheus' HTTP API, or not the whole of one") from error
        if kind != "matrix":
            raise UnfitError(f"the result is of type {kind}, not a matrix: ask for a range, such as up[6h]")
        return self.samples - before, answer

    def _take_object(self, found: dict[str, Any]) -> Any:
        """Make arrays of a series as soon as it is read: as lists, its samples would take ten times the memory."""
        labels = found.get("metric")
        if not isinstance(labels, dict) or not found.keys() & {"values", "histograms"}:
            return found
        if found.get("histograms"):
            self.notes["series with native histograms, skipped (classic ones are replayed)"] += 1
        samples = found.get("values", ())
        if samples:
            series = self.of({str(key): str(value) for key, value in labels.items()})
            self.add(series, samples)
        return None

    def add(self, series: Series, samples: Iterable[tuple[float, str]]) -> None:
        """Add samples: Unix seconds, and the value as Prometheus writes it. Raises ValueError or TypeError."""
        before = len(series.times)
        for when, value in samples:
            if not in_calendar(when * 1000):
                raise NoTimeError(f"{str(when)[:_SHOWN]} is no time: {TIMES}, in Unix seconds")
            series.values.append(float(value))
            series.times.append(round(when * 1000))
        self.took(len(series.times) - before)

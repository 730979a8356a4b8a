"""Series as the gate sees them: gauges, counters, and classic histograms put together again."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isfinite, nan
from typing import Literal

from otelperf.savings.recording import Recording, Series

Kind = Literal["gauge", "counter", "histogram"]
Target = tuple[str, str]  # job and instance

_BUCKET, _SUM, _COUNT, _TOTAL = "_bucket", "_sum", "_count", "_total"


@dataclass(slots=True)
class Stream:
    """What the gate judges as one: a series, or all series of one histogram.

    *values* are a histogram's counts. *cost* is how many samples one point is, *known* whether its type was told or guessed by
    name. A histogram has *bounds* (without +Inf), the cumulative *levels* of each bucket, and *sums*.
    """

    metric: str
    kind: Kind
    labels: Mapping[str, str]
    times: array[int]
    values: array[float]
    known: bool
    cost: int = 1
    bounds: tuple[float, ...] = ()
    levels: Sequence[array[float]] = field(default=())
    sums: array[float] | None = None

    @property
    def target(self) -> Target:
        """Whom it was read from."""
        return self.labels.get("job", ""), self.labels.get("instance", "")

    def counts(self, index: int) -> tuple[float, ...]:
        """Return a histogram's count in each bucket."""
        levels = [level[index] for level in self.levels]
        return tuple(after - before for before, after in pairwise([0.0, *levels]))


def streams(recording: Recording, series: Sequence[Series]) -> list[Stream]:
    """Type the series and put histograms together; *recording*'s notes say what had to be left out."""
    by_name: dict[str, list[Series]] = {}
    for each in series:
        by_name.setdefault(each.name, []).append(each)
    found: list[Stream] = []
    for name in list(by_name):
        base = name.removesuffix(_BUCKET)
        if base != name and recording.types.get(base, "histogram") in {"histogram", "unknown", "untyped"}:
            found += _histograms(base, by_name, recording)
    for name, members in by_name.items():
        kind, known = _kind(name, recording.types, by_name)
        for each in members:
            stream = Stream(name, kind, each.labels, each.times, each.values, known)
            if kind == "counter":
                _drop_odd(stream, recording.notes)
            if stream.times:
                found.append(stream)
    recording.notes = +recording.notes
    return found


def _kind(name: str, types: Mapping[str, str], by_name: Mapping[str, Sequence[Series]]) -> tuple[Kind, bool]:
    """Return the type of a series with this name, and whether it was told (TYPE, /api/v1/metadata) or is a guess."""
    for family in (name, name.removesuffix(_TOTAL)):  # OpenMetrics names a counter's family without the suffix
        told = types.get(family)
        if told in {"counter", "gauge"}:
            return ("counter" if told == "counter" else "gauge"), True
    for suffix in (_BUCKET, _SUM, _COUNT):
        base = name.removesuffix(suffix)
        if base == name:
            continue
        if types.get(base) in {"histogram", "summary"}:
            return "counter", True
        if suffix != _BUCKET and base + _SUM in by_name and base + _COUNT in by_name:
            return "counter", False
    if name in types and types[name] not in {"unknown", "untyped"}:
        return "gauge", True  # the quantiles of a summary, an info, a state set
    return ("counter" if name.endswith(_TOTAL) else "gauge"), False


def _drop_odd(stream: Stream, notes: Counter[str]) -> None:
    """Leave out a counter's values that are no numbers: no rate has a meaning there."""
    odd = sum(not isfinite(value) for value in stream.values)
    if odd:
        notes["samples of counters that are not finite, left out"] += odd
        kept = [(time, value) for time, value in zip(stream.times, stream.values, strict=True) if isfinite(value)]
        stream.times, stream.values = array("q", (t for t, _ in kept)), array("d", (v for _, v in kept))


def _histograms(base: str, by_name: dict[str, list[Series]], recording: Recording) -> Iterator[Stream]:
    """Take the parts of histogram *base* out of *by_name* and put them together, one histogram for each set of labels."""
    parts: dict[frozenset[tuple[str, str]], list[tuple[float | str, Series]]] = {}
    known = recording.types.get(base) == "histogram"
    for suffix in (_BUCKET, _SUM, _COUNT):
        for series in by_name.pop(base + suffix, ()):
            part: float | str = suffix
            labels = dict(series.labels)
            if suffix == _BUCKET:
                part = _bound(labels.pop("le", ""))
            parts.setdefault(frozenset(labels.items()), []).append((part, series))
    for labels_key, members in parts.items():
        stream = _histogram(base, dict(labels_key), dict(members), recording.notes)
        if stream is None:
            recording.notes["series left out, no whole histogram"] += len(members)
        else:
            stream.known = known
            yield stream


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def _histogram(
    base: str, labels: Mapping[str, str], parts: Mapping[float | str, Series], notes: Counter[str]
) -> Stream | None:
    """Put one histogram together from the instants at which all its parts have a number; None where there is none.

    The count stands in for a missing bucket +Inf; buckets that do not rise from one to the next are no histogram.
    """
    bounds = sorted(bound for bound in parts if isinstance(bound, float) and bound == bound)
    levels = [parts[bound] for bound in bounds]
    if not bounds or (bounds[-1] != inf and _COUNT not in parts):
        return None
    if bounds[-1] != inf:
        levels.append(parts[_COUNT])
        bounds.append(inf)
    used = {id(each): each for each in (*levels, *(parts[each] for each in (_SUM, _COUNT) if each in parts))}
    columns = _aligned(list(used.values()))
    times, values = next(iter(columns.values())) if columns else (array("q"), array("d"))
    level_values = [columns[id(each)][1] for each in levels]
    sums = columns[id(parts[_SUM])][1] if _SUM in parts else None
    good = [index for index in range(len(times)) if _rises([level[index] for level in level_values])]
    notes["samples of histograms left out, parts missing at that time or no histogram"] += sum(
        len(each.times) - len(good) for each in used.values()
    )
    if not good:
        return None
    if len(good) < len(times):
        times = array("q", (times[index] for index in good))
        level_values = [array("d", (level[index] for index in good)) for level in level_values]
        sums = sums and array("d", (sums[index] for index in good))
    values = level_values[-1]
    return Stream(base, "histogram", labels, times, values, False, len(used), tuple(bounds[:-1]), level_values, sums)


def _aligned(parts: Sequence[Series]) -> dict[int, tuple[array[int], array[float]]]:
    """Return times and values of each part, by its id, at the instants that all have."""
    first = parts[0].times
    if all(part.times == first for part in parts):
        return {id(part): (part.times, part.values) for part in parts}
    common = array("q", sorted(set(first).intersection(*(part.times for part in parts))))
    found = {}
    for part in parts:
        by_time = dict(zip(part.times, part.values, strict=True))
        found[id(part)] = common, array("d", (by_time[time] for time in common))
    return found


def _rises(levels: Sequence[float]) -> bool:
    return all(isfinite(level) for level in levels) and all(
        after >= before for before, after in pairwise([0.0, *levels])
    )

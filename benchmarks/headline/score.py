"""What a run shows: spikes noticed, alerts missed and false, errors of rates, beside the dense scrape."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.fidelity import alerting
from benchmarks.fidelity.alerting import Comparison, Episode
from benchmarks.headline.public import Alert
from benchmarks.headline.run import DENSE, STEP, Record

LONG_QUEUE = 10  # waiting requests: what most rules that people write call a queue
FLOOR = 0.01  # of the largest dense rate: below it, an error is set against the floor
_READING, _HEARD_AGAIN = 5.0, 10.0  # s: between two readings of the agent; a reading and the sender's pause
LOWERED_SECONDS = 30  # the ``for`` of the alerts whose thresholds are lowered


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that *share* of them do not exceed (nearest rank); NaN without any."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else math.nan


@dataclass
class Noticed:
    """How long after the dense scrape a long queue showed, in s; and of how many it never did while it lasted."""

    delays: list[float] = field(default_factory=list)
    missed: int = 0


def queues(record: Record) -> list[tuple[float, float]]:
    """Return from when to when the dense scrape showed a long queue."""
    found: list[tuple[float, float]] = []
    since: float | None = None
    for when, waiting in _known(record.queue[DENSE]):
        if waiting > LONG_QUEUE:
            since = when if since is None else since
        elif since is not None:
            found.append((since, when))
            since = None
    return found


def outages(record: Record) -> list[tuple[float, float]]:
    """Return from when to when the agent or the Collector was away, and as long as it takes to be heard again."""
    times = [when for when, _ in record.events]
    return [(first, last + _HEARD_AGAIN) for first, last in zip(times[::2], times[1::2], strict=True)]


def quiet_queues(record: Record) -> list[tuple[float, float]]:
    """Return the long queues that began outside of the outages."""
    away = outages(record)
    return [queue for queue in queues(record) if not any(_begins_in(queue[0], each) for each in away)]


def _begins_in(first: float, outage: tuple[float, float]) -> bool:
    # One that began just before may not have been read yet.
    return outage[0] - _READING < first < outage[1]


def noticed(record: Record, way: str, during: Sequence[tuple[float, float]] | None = None) -> Noticed:
    """Say when somebody who looks all the time sees each long queue, or each of *during*."""
    result = Noticed()
    for first, last in queues(record) if during is None else during:
        seen = [when for when, waiting in _known(record.queue[way]) if first <= when < last and waiting > LONG_QUEUE]
        if seen:
            result.delays.append(seen[0] - first)
        else:
            result.missed += 1
    return result


def evaluated(record: Record, way: str) -> Noticed:
    """Say when a rule without ``for`` that is evaluated each 15 s sees it: for each second in which evaluation may begin."""
    result = Noticed()
    known = _known(record.queue[way])
    times = [when for when, _ in known]
    for first, last in queues(record):
        for phase in range(STEP):
            moment = phase + math.ceil((first - phase) / STEP) * STEP
            while moment < last:
                place = bisect_right(times, moment) - 1
                if place >= 0 and known[place][1] > LONG_QUEUE:
                    result.delays.append(moment - first)
                    break
                moment += STEP
            else:
                result.missed += 1
    return result


def _known(rows: Sequence[Sequence[float | None]]) -> list[tuple[float, float]]:
    """Return what was answered; where nothing was, the queue is not known to be long."""
    return [(when, 0.0 if value is None else value) for when, value in rows if when is not None]


def errors(record: Record, way: str, promql: str) -> tuple[list[float], int]:
    """Return the relative errors of a rate, and how often the way has no answer where dense has."""
    truth = [value for _, value in record.rates[DENSE][promql]]
    shown = [value for _, value in record.rates[way][promql]]
    floor = FLOOR * max((value for value in truth if value is not None), default=0.0) or 1.0
    pairs = list(zip(truth, shown, strict=False))
    found = [abs(way - true) / max(abs(true), floor) for true, way in pairs if true is not None and way is not None]
    return found, sum(true is not None and way is None for true, way in pairs)


def known_to(record: Record, alert: Alert) -> bool:
    """Say whether any way has something that the rule is about."""
    return any(record.active[way].get(alert.name) or record.compared[way].get(alert.name) for way in record.active)


def fired(record: Record, way: str, alert: Alert) -> list[Episode]:
    """Return the firings of a rule as it stands."""
    active = record.active[way].get(alert.name, {})
    return alerting.episodes({frozenset([("", labels)]): numbers for labels, numbers in active.items()}, alert.seconds)


def lowered(record: Record, alert: Alert) -> float | None:
    """Return the threshold half way between what dense data has least and most; None where it does not move."""
    if alert.threshold is None:
        return None
    values = [v for by in record.compared[DENSE].get(alert.name, {}).values() for v in by.values() if math.isfinite(v)]
    return (min(values) + max(values)) / 2 if values and min(values) < max(values) else None


def fired_lowered(record: Record, way: str, alert: Alert, limit: float) -> list[Episode]:
    """Return the firings with that threshold instead, for 30 s."""
    assert alert.threshold is not None  # it has been lowered
    above = alert.threshold[1] == ">"
    active = {
        frozenset([("", labels)]): [
            int(number) for number, value in values.items() if (value > limit if above else value < limit)
        ]
        for labels, values in record.compared[way].get(alert.name, {}).items()
    }
    return alerting.episodes(active, LOWERED_SECONDS)


def compared(truth: Sequence[Episode], way: Sequence[Episode]) -> Comparison:
    """Return what a way missed and fired falsely."""
    found = Comparison()
    alerting.compare(truth, way, found)
    return found

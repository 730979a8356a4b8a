"""Every question asked of one way, at every instant: by the model here, by the real Prometheus in pipeline.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.fidelity.inputs import BURSTY, GAUGES, HISTOGRAMS, STATES, STEADY, Input
from benchmarks.fidelity.promql import MEDIAN, P95, RATE_1M, RATE_2M, VALUE, Stored, ask
from benchmarks.fidelity.ways import Way

STEP = 5  # s between two instants
AFTER_TICK = 500  # ms: an instant lies between two ticks
WARM_UP = 120  # s: windows reach no further back than the recording
LATER = "stored"  # the value at the instant, asked when all has arrived

QUESTIONS = {
    GAUGES: (VALUE,),
    STATES: (VALUE,),
    STEADY: (RATE_1M, RATE_2M),
    BURSTY: (RATE_1M, RATE_2M),
    HISTOGRAMS: (MEDIAN, P95),
}

Answer = list[float | None]


@dataclass
class Answers:
    """By series and question, one answer an instant."""

    instants: Sequence[int]
    by_series: dict[tuple[int, str], Answer] = field(default_factory=dict)


def instants(recording: Input) -> range:
    """Return the instants in ms since the start."""
    return range(WARM_UP * 1000 + AFTER_TICK, recording.seconds * 1000, STEP * 1000)


def questions(recording: Input) -> list[tuple[int, str]]:
    """Return what is asked: of each series that moves at all, by class."""
    return [
        (number, question)
        for name, numbers in recording.classes.items()
        for number in numbers
        if recording.series[number].moves
        for question in QUESTIONS[name]
    ]


def modelled(recording: Input, way: Way) -> Answers:
    """Ask the model. Each instant sees what had arrived by then."""
    asked, found = questions(recording), Answers(instants(recording))
    stored = [Stored() for _ in recording.series]
    arrivals = iter(sorted(way.points, key=lambda point: point.arrived))
    following = next(arrivals, None)
    for instant in found.instants:
        while following is not None and following.arrived * 1000 <= instant:
            stored[following.series].add(following.time, following.value)
            following = next(arrivals, None)
        for number, question in asked:
            found.by_series.setdefault((number, question), []).append(ask(stored[number], question, instant))
    while following is not None:
        stored[following.series].add(following.time, following.value)
        following = next(arrivals, None)
    for number, question in asked:
        if question == VALUE:
            found.by_series[number, LATER] = [stored[number].value(instant) for instant in found.instants]
    return found

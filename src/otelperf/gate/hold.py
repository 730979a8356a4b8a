"""Gauges: emit when the value has left the band around the last emitted one, or has crossed a threshold."""

from __future__ import annotations

from collections.abc import Sequence

from otelperf.gate.policy import Threshold

_INFINITY = float("inf")


def moved(value: float, held: float, delta: float, relative: float) -> bool:
    """Say whether *value* is further from the last emitted one than both measures allow (strictly; NaN only on entry and leaving).

    OPC UA Part 4 (DataChangeFilter) has the same two choices: compare with what was last sent, and a strict bound.
    """
    if value != value or held != held:
        return (value != value) != (held != held)
    if value == held:
        return False
    # An infinity is moved to or from, whatever the delta.
    return not abs(value - held) <= max(delta, relative * abs(held)) or _INFINITY in (abs(held), abs(value))


def crossed(value: float, held: float, thresholds: Sequence[Threshold]) -> bool:
    """Say whether *value* got worse across a threshold since *held*, or better and past the margin of one."""
    return any(
        not beyond(value, threshold, threshold.margin)
        if beyond(held, threshold, 0.0)
        else beyond(value, threshold, 0.0)
        for threshold in thresholds
    )


def beyond(value: float, threshold: Threshold, margin: float) -> bool:
    """Say whether *value* is on the worse side; a value that was there is still, up to *margin* back."""
    if threshold.worse == "above":
        return value > threshold.value - margin
    return value < threshold.value + margin

"""Histograms: emit when a quantile of what came since the last emission has moved."""

from __future__ import annotations

from collections.abc import Sequence

QUANTILES = (0.5, 0.95)


def quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return the quantile by linear interpolation inside its bucket, as PromQL's ``histogram_quantile``; None if empty.

    The first bucket starts at zero and the last one answers with the highest bound.
    """
    total = sum(counts)
    if not total or not bounds:
        return None
    rank = share * total
    below = 0
    for index, count in enumerate(counts):
        if below + count >= rank and count:
            if index >= len(bounds):
                return bounds[-1]
            low = bounds[index - 1] if index else min(0.0, bounds[0])
            return low + (bounds[index] - low) * (rank - below) / count
        below += count
    return bounds[-1]


def quantiles(bounds: Sequence[float], counts: Sequence[int]) -> tuple[float, ...]:
    """Return the watched quantiles of the counts; empty if nothing was counted."""
    found = [quantile(share, bounds, counts) for share in QUANTILES]
    return tuple(value for value in found if value is not None)


def shifted(now: Sequence[float], then: Sequence[float], relative: float) -> bool:
    """Say whether a quantile differs from its predecessor by more than the share; a first one always does."""
    if len(now) != len(then):
        return bool(now)
    return any(abs(new - old) > relative * abs(old) for new, old in zip(now, then, strict=True))

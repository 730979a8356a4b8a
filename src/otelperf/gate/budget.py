"""A budget of samples: every delta is multiplied by one factor, which rises with what was spent too much.

What was spent beyond the allowance is a debt; time pays it back. The factor is e to the debt, counted in allowances for two
minutes. Emissions fall as the factor rises, so the debt settles where they meet the allowance, from either side and without
overshoot (one integrator, and no delay). One factor for all, because then no stream is worse off, measured by its own
delta, than the others: the worst error is the smallest that the budget can have.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

_MINUTE = 60e9  # ns
_SCALE = 2.0  # minutes' allowances by which the factor grows e-fold
_LEAST, _MOST = 1e-3, 1e12  # samples a minute
_COARSEST = 1000.0  # beyond, only heartbeats are left, and a debt that grew on would take hours to pay


@dataclass(frozen=True, slots=True)
class Budget:
    """Samples a minute, as Prometheus stores them: *total* of all streams, *per_stream* of each; None is no limit.

    *finest* is the least factor: 1 keeps the rules' deltas when there is less to tell than may be told; 0.1 spends what is left
    on deltas ten times finer.
    """

    total: float | None = None
    per_stream: float | None = None
    finest: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("total", "per_stream"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and _LEAST <= value <= _MOST):
                raise ValueError(
                    f"Budget: {name} is {value!r}, expected a number of samples a minute, {_LEAST:g} to {_MOST:g}, or None"
                )
        if not (isinstance(self.finest, int | float) and 0 < self.finest <= 1):
            raise ValueError(f"Budget: finest is {self.finest!r}, expected a factor above 0, at most 1")


class Account:
    """What was spent of an allowance of *per_minute* samples. Times are Unix ns and may stand still or step back."""

    __slots__ = ("_allowance", "_debt", "_least", "_most", "_scale", "_time", "factor")

    def __init__(self, per_minute: float, finest: float, now: int) -> None:
        self._allowance = per_minute / _MINUTE
        self._scale = per_minute * _SCALE
        self._least, self._most = self._scale * log(finest), self._scale * log(_COARSEST)
        self._debt = 0.0
        self._time = now
        self.factor = 1.0

    @property
    def exhausted(self) -> bool:
        """Whether deltas can do no more: what may not be held back costs more than the allowance."""
        return self._debt > 0.9 * self._most

    def pay(self, now: int) -> float:
        """Let the time that has passed pay; return the factor."""
        passed = max(0, now - self._time)
        self._time = now
        if self._debt > self._least:
            self._debt = max(self._least, self._debt - self._allowance * passed)
            self.factor = exp(self._debt / self._scale)
        return self.factor

    def spend(self, samples: float) -> None:
        """Count samples that were sent."""
        self._debt = min(self._most, self._debt + samples)
        self.factor = exp(self._debt / self._scale)

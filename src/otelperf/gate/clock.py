"""Unix time that never steps back: the wall clock, anchored on the monotonic one."""

from __future__ import annotations

import time
from collections.abc import Callable

_TOLERATED = 500_000_000  # ns that the wall clock may be off before it is followed


class Clock:
    """Call it for Unix time in ns, strictly rising.

    A wall clock that jumps forward is followed at once. One that is set back cannot be (a point older than the last makes
    Prometheus refuse its whole request): then this clock runs at half speed until the two meet. *ahead* is by how many ns
    it is ahead of the wall clock; when that is too long to wait, ``follow`` takes the step.
    """

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._then = monotonic()
        self._now = wall()
        self.ahead = 0

    def follow(self) -> None:
        """Step back to the wall clock."""
        self._now, self.ahead = self._wall(), 0

    def __call__(self) -> int:
        then, self._then = self._then, self._monotonic()
        passed = self._then - then
        ahead = self._now + passed - self._wall()
        if ahead < -_TOLERATED:
            passed -= ahead
        elif ahead > _TOLERATED:
            passed //= 2
        self._now += max(passed, 1)
        self.ahead = max(0, ahead)
        return self._now

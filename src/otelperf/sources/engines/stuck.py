"""Which engines are stuck: requests run, and not one step of work was seen for too long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_SECOND = 1_000_000_000

Name = tuple[tuple[str, str], ...]  # the attributes that tell one engine from another
Steps = tuple[float | None, ...]


@dataclass(slots=True)
class _Engine:
    steps: Steps
    running: float
    quiet: int = 0  # ns
    stuck: bool = False


class Stuck:
    """Judges the engines of one server, which are told apart by a name each, by one reading after the other.

    *after* is in seconds. A reading that failed in between says nothing: its time is not counted. One gap counts as half of
    *after* at most, so that it takes three readings that say the same.
    """

    def __init__(self, after: float) -> None:
        self._after = int(after * _SECOND)
        self._engines: dict[Name, _Engine] = {}
        self._time: int | None = None

    def judge(self, now: int, running: Mapping[Name, float], steps: Mapping[Name, Steps]) -> dict[Name, bool]:
        """Say of each engine whether it is stuck; of one that lacks in *running* or *steps* nothing can be said.

        *running* are its requests in work, *steps* numbers that change with each step of work.
        """
        passed = 0 if self._time is None else min(max(0, now - self._time), self._after // 2)
        self._time = now
        engines: dict[Name, _Engine] = {}
        for name in running.keys() & steps.keys():
            engine = self._engines.get(name)
            if engine is None or engine.steps != steps[name] or running[name] <= 0:
                engine = _Engine(steps[name], running[name])
            elif engine.running > 0:  # at both ends: a request that has just come has not waited yet
                engine.quiet += passed
                engine.stuck = engine.stuck or engine.quiet >= self._after
            engine.running = running[name]
            engines[name] = engine
        self._engines = engines
        return {name: engine.stuck for name, engine in engines.items()}

    def interrupted(self) -> None:
        """Note that a reading failed."""
        self._time = None

    def forget(self) -> None:
        """Begin anew: it may be another server."""
        self._engines, self._time = {}, None

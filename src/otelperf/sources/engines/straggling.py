"""Which of a server's data-parallel engines lags behind its peers.

Time is cut into windows of some 15 s, and of three pauses between readings at least: a server that answers slowly is read less
often, up to once a minute. An engine lags in a window if it is slow or has a queue of its own:

- **slow**: for each request in work it made less than half the tokens of the median of its peers. Half the median's speed is
  twice its time: schedulers of batch jobs call a task slow from 1.5 times (``spark.speculation.multiplier``). With three peers
  or more it must also stand out of their own spread: by more than 3.5 times MAD / 0.6745 (Iglewicz and Hoaglin, How to Detect
  and Handle Outliers, 1993). And it must not be that it just had more to do: an engine that made or read more than 1.25 times
  its peers' tokens in all is busy, not slow; one that made none reads a long prompt, or is stuck (stuck.py).
- **queue**: more requests wait than are in work there, at least 8, and more than four times the median of its peers.

Engines are compared only in windows in which they have work at every reading. Four windows of lagging in a row and it
straggles; two in a row in which it is well clear of that (0.7 of the speed, half of the queue) or cannot be compared, and it no
longer does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from otelperf.sources.engines.stuck import Name

_SECOND = 1_000_000_000
_WINDOW = 15 * _SECOND
_READINGS = 3  # of a window, at least
_GAP = 75 * _SECOND  # without a reading: longer than the slowest pace (60 s, sampler.py) with a slow answer
_SLOW, _FAST_ENOUGH = 0.5, 0.7
_MORE_WORK = 1.25
_FAR_OUT = 3.5 / 0.6745  # times the median absolute deviation
_PEERS_WITH_SPREAD = 3
_LONG_QUEUE, _QUEUE_TIMES = 8.0, 4.0
_ENTER, _LEAVE = 4, 2  # windows


class Load(NamedTuple):
    """One engine at one reading: requests in work and waiting, and tokens read and made so far."""

    running: float
    waiting: float
    read: float
    made: float


@dataclass(slots=True)
class _Window:
    """What one engine did since the window began."""

    first: Load
    last: Load
    running: float = 0.0  # request-seconds
    waiting: float = 0.0
    idle: bool = False  # at a reading


class _Work(NamedTuple):
    """A whole window: tokens made for each request-second, tokens made and read, mean requests in work and waiting."""

    speed: float
    made: float
    read: float
    running: float
    waiting: float


@dataclass(slots=True)
class _Verdict:
    straggles: bool = False
    lagging: int = 0  # windows in a row
    clear: int = 0


class Straggling:
    """Judges the engines of one server by one reading after the other."""

    def __init__(self) -> None:
        self._began: int | None = None
        self._time = 0
        self._readings = 0
        self._windows: dict[Name, _Window] = {}
        self._verdicts: dict[Name, _Verdict] = {}

    def judge(self, now: int, loads: Mapping[Name, Load]) -> dict[Name, bool]:
        """Say of each engine whether it straggles. An engine alone has no peers and never does."""
        if self._began is None or not 0 < now - self._time <= _GAP:
            self._begin(now, loads)
        else:
            self._add((now - self._time) / _SECOND, loads)
            self._time = now
            if now - self._began >= _WINDOW and self._readings >= _READINGS:
                self._close((now - self._began) / _SECOND)
                self._begin(now, loads)
        self._verdicts = {name: self._verdicts.get(name) or _Verdict() for name in loads}
        return {name: verdict.straggles for name, verdict in self._verdicts.items()}

    def forget(self) -> None:
        """Begin anew: it may be another server."""
        self._began, self._verdicts = None, {}

    def _begin(self, now: int, loads: Mapping[Name, Load]) -> None:
        self._began, self._time, self._readings = now, now, 0
        self._windows = {name: _Window(load, load, idle=load.running <= 0) for name, load in loads.items()}

    def _add(self, seconds: float, loads: Mapping[Name, Load]) -> None:
        """Add a reading; an engine that came, went or was started anew in this window is left out of it."""
        self._readings += 1
        for name in list(self._windows):
            window, load = self._windows[name], loads.get(name)
            if load is None or load.made < window.last.made or load.read < window.last.read:
                del self._windows[name]
                continue
            window.running += seconds * (window.last.running + load.running) / 2
            window.waiting += seconds * (window.last.waiting + load.waiting) / 2
            window.idle = window.idle or load.running <= 0
            window.last = load

    def _close(self, seconds: float) -> None:
        works = {name: _work(window, seconds) for name, window in self._windows.items() if not window.idle}
        for name, verdict in self._verdicts.items():
            peers = [work for other, work in works.items() if other != name]
            if name not in works or not peers:
                lagging, clear = False, True
            else:
                lagging, clear = _lags(works[name], peers)
            verdict.lagging = verdict.lagging + 1 if lagging else 0
            verdict.clear = verdict.clear + 1 if clear else 0
            verdict.straggles = verdict.clear < _LEAVE if verdict.straggles else verdict.lagging >= _ENTER


def _work(window: _Window, seconds: float) -> _Work:
    made, read = window.last.made - window.first.made, window.last.read - window.first.read
    return _Work(made / window.running, made, read, window.running / seconds, window.waiting / seconds)


def _lags(work: _Work, peers: list[_Work]) -> tuple[bool, bool]:
    """Say whether an engine lags behind its *peers*, and whether it is well clear of that."""
    queue = max(_LONG_QUEUE, work.running, _QUEUE_TIMES * _median(peer.waiting for peer in peers))
    lagging = _slow(work, peers, _SLOW) or work.waiting > queue
    clear = work.made > 0 and not _slow(work, peers, _FAST_ENOUGH) and work.waiting <= queue / 2
    return lagging, clear


def _slow(work: _Work, peers: list[_Work], share: float) -> bool:
    usual = _median(peer.speed for peer in peers)
    made, read = _median(peer.made for peer in peers), _median(peer.read for peer in peers)
    busier = work.made > _MORE_WORK * made or work.read > _MORE_WORK * read
    if not work.made or busier or work.speed >= share * usual:
        return False
    spread = _median(abs(peer.speed - usual) for peer in peers)
    return len(peers) < _PEERS_WITH_SPREAD or usual - work.speed > _FAR_OUT * spread


def _median(values: Iterable[float]) -> float:
    """Return the median of one value or more; ``statistics`` would load decimals and fractions for it, 0.2 MiB."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

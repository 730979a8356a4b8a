"""The tick's reading half: read each source that is due, time and judge it, and fold everything into one snapshot.

Sources never report on themselves: whether a read succeeded, how long it took and when it last did is known here.
A source that may block (a server, a file system on the network) reads on a thread of its own; the tick takes what is ready.

A source that has a ``share`` (a server: 0.02) may take no more than that share of the time: its next read comes no sooner than
its smoothed reading time divided by the share (50 times it) after the last, at its interval at least, and at 60 s at most. So a
server that answers slowly, or not in time, is read less often by itself, and as often as before when it is quick again. 60 s,
together with the gate's heartbeat, is well within the 5 minutes after which Prometheus forgets a series.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from otelperf.errors import SourceAbsent, SourceFailed, SourceFlawed
from otelperf.logs import Log
from otelperf.readings import Batch, Health, Reading, Snapshot, Source

_log = Log("otelperf.sampler")

_SECOND = 1_000_000_000
_ABSENT_AGAIN = 60 * _SECOND  # how often a source that this machine lacks is asked again
_EARLY = _SECOND // 4  # ticks are never quite on time: one this early (at most ¼ interval) counts as on time
_STUCK_STREAMS = 100.0  # seconds: two default heartbeats
_SLOWEST = 60.0  # seconds: no source is slowed beyond
_NEWEST = 1 / 3  # weight of the last read in the smoothed reading time: one slow answer is not yet a slow server
_TOLD = 2  # times the pace told last: a pace so slow is told
_NORMAL = 300 * _SECOND  # at the usual interval for so long is normal: a server that is slow now and then is told once
_CHANCES = 2  # reads that have failed since, before a reading can be gone
_SLEPT = 10 * _SECOND  # nobody sampled for so long: the process was stopped, or its machine


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one read gave. *readings* None: nothing new."""

    time: int
    duration: float
    readings: tuple[Reading, ...] | None
    whole: bool
    ok: bool
    absent: bool
    message: str


def _attempt(source: Source, now: int, timer: Callable[[], float]) -> _Outcome:
    """Read once; whatever the source raises becomes an outcome."""
    began = timer()

    def outcome(
        readings: Sequence[Reading] | None,
        message: str = "",
        *,
        whole: bool = True,
        ok: bool = False,
        absent: bool = False,
    ) -> _Outcome:
        kept = None if readings is None else tuple(readings)
        return _Outcome(now, timer() - began, kept, whole, ok, absent, message)

    try:
        return outcome(source.read(now), ok=True)
    except SourceAbsent as error:
        return outcome((), str(error), absent=True)
    except SourceFlawed as error:
        return outcome(error.readings, str(error))
    except SourceFailed as error:
        return outcome(error.readings or None, str(error), whole=False)
    except Exception as error:  # noqa: BLE001 # one broken source must not take the others or the host down
        return outcome(None, f"{type(error).__name__}: {error}")


class _Worker:
    """A daemon thread that reads one source when asked, once at a time: it is *busy* until its outcome is taken."""

    def __init__(self, source: Source, timer: Callable[[], float]) -> None:
        self._source = source
        self._timer = timer
        self._asked = threading.Event()
        self._now = 0
        self._outcomes: deque[_Outcome] = deque()  # at most one
        self.busy = False
        self.stopped = False
        threading.Thread(target=self._loop, name=f"otelperf-{source.name}", daemon=True).start()

    def ask(self, now: int) -> None:
        self._now = now
        self.busy = True
        self._asked.set()

    def take(self) -> _Outcome | None:
        if not self._outcomes:
            return None
        self.busy = False
        return self._outcomes.popleft()

    def stop(self) -> None:
        """End the thread, after the read it is at if it is at one; it closes the source itself."""
        self.stopped = True
        self._asked.set()

    def _loop(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self.stopped:
                self._source.close()
                return
            self._outcomes.append(_attempt(self._source, self._now, self._timer))


class _Read(NamedTuple):
    """A batch, when it was read by the steady clock, and how many reads there had been by then."""

    at: int
    reads: int
    batch: Batch


class _Slot:
    """A source, its pace, and what is known of it."""

    def __init__(
        self, source: Source, interval: float, gone_after: float, *, threads: bool, timer: Callable[[], float]
    ) -> None:
        self.source = source
        self.interval = int(interval * _SECOND)
        self.gone_after = max(int(gone_after * _SECOND), 3 * self.interval)
        self.worker = _Worker(source, timer) if threads and getattr(source, "blocking", False) else None
        self._timer = timer
        self.due = 0
        self.asked = 0
        self._share: float | None = getattr(source, "share", None)
        self._pace = self._told_pace = self.interval
        self._slowed = 0  # last so
        self._told_away = False
        self._smoothed = 0.0  # s that a read takes
        self._reads = 0
        self._overslept = False
        self._waiting = 0  # for an answer, since
        self._known: tuple[_Read, ...] = ()
        self.health: Health | None = None

    @property
    def batches(self) -> tuple[Batch, ...]:
        return tuple(each.batch for each in self._known)

    def read(self, now: int, steady: int, *, slept: bool = False) -> None:
        """Read if due, take what is ready, and drop what is too old to be called alive. Only *steady* tells what is due.

        Too old is what is older than ``gone_after`` while two reads since have failed, or one hangs: neither a slow pace nor
        a time in which nobody read (*slept*) ends anything.
        """
        busy = self.worker is not None and self.worker.busy
        if busy and slept:
            self._overslept, self._waiting = True, steady
        if self.worker and (outcome := self.worker.take()):
            busy = False
            if self._overslept and not outcome.ok:
                self.due = steady  # the time that it had went by asleep: that says nothing of the source
            else:
                self._judge(outcome)
            self._overslept = False
        stuck = busy and steady - self._waiting > self.interval
        if stuck:
            self._stuck(steady)
        if not busy and steady >= self.due - min(_EARLY, self.interval // 4):
            missed = max(0, steady - self.due) // self.interval if self.due else 0
            self.due = (self.due or steady) + (missed + 1) * self.interval
            self.asked = self._waiting = steady
            if self.worker:
                self.worker.ask(now)
            else:
                self._judge(_attempt(self.source, now, self._timer))
        self._known = tuple(
            each
            for each in self._known
            if steady - each.at <= self.gone_after or not (stuck or self._reads - each.reads >= _CHANCES)
        )

    def close(self) -> None:
        if self.worker:
            self.worker.stop()
        else:
            self.source.close()

    def _judge(self, outcome: _Outcome) -> None:
        before, name = self.health, self.source.name
        failed = not outcome.ok and not outcome.absent
        self._reads += 1
        self._set_pace(outcome.duration)
        self._report(outcome, outcome.time if outcome.ok else None, failures=int(failed))
        if outcome.absent:
            self.due = self.asked + max(_ABSENT_AGAIN, self.interval)
            _log.debug("source absent", source=name, problem=outcome.message)
        elif failed:
            self._told_away |= _log.trouble("source failed", by=("source",), source=name, problem=outcome.message)
        elif before is not None and not before.ok and (before.absent or self._told_away):
            self._told_away = False
            _log.info("source is back", source=name)
        if outcome.readings is not None:
            batch = Batch(name, self.source.entity, outcome.time, outcome.readings)
            older = () if outcome.whole else self._without(batch)
            self._known = (*older, _Read(self.asked, self._reads, batch))

    def _set_pace(self, duration: float) -> None:
        """Smooth the reading time, and put the next read off as far as that and the share ask for."""
        if self._share is None:
            return
        # What it may count for is bounded, or a server that hung would be read seldom for long after.
        self._smoothed += _NEWEST * (min(duration, _SLOWEST * self._share) - self._smoothed)
        wanted = min(self._smoothed / self._share, _SLOWEST)
        self._pace = max(self.interval, int(wanted * _SECOND))
        if self._pace > self.interval:
            self.due = self.asked + self._pace
            self._slowed = self.asked
        usual = round(self.interval / _SECOND, 1)
        if self._pace >= _TOLD * self._told_pace:
            self._told_pace = self._pace
            _log.warning(
                "source answers slowly and is read less often",
                source=self.source.name,
                answer_seconds=round(duration, 3),
                interval_seconds=round(self._pace / _SECOND, 1),
                usual_interval_seconds=usual,
            )
        elif self._told_pace > self.interval and self.asked - self._slowed >= _NORMAL:
            self._told_pace = self.interval
            _log.info("source is read as often as usual again", source=self.source.name, interval_seconds=usual)

    def _without(self, batch: Batch) -> list[_Read]:
        """What was read before, less the namesakes of what *batch* has read anew."""
        fresh = {(reading.name, frozenset(reading.attributes.items())) for reading in batch.readings}
        older = []
        for each in self._known:
            old = each.batch
            kept = tuple(r for r in old.readings if (r.name, frozenset(r.attributes.items())) not in fresh)
            if kept:
                older.append(each._replace(batch=Batch(old.source, old.entity, old.time, kept)))
        return older

    def _stuck(self, steady: int) -> None:
        seconds = (steady - self._waiting) / _SECOND
        message = f"no answer for {seconds:.0f} s"
        self._report(_Outcome(0, seconds, None, whole=False, ok=False, absent=False, message=message), None, failures=0)
        self._told_away |= _log.trouble("source hangs", by=("source",), source=self.source.name, problem=message)

    def _report(self, outcome: _Outcome, success: int | None, failures: int) -> None:
        """Say how the source is, on top of what was known: the last *success* (Unix ns), and *failures* more."""
        if self.health is not None:
            success = success if success is not None else self.health.last_success
            failures += self.health.failures
        name, message = self.source.name, outcome.message
        pace = None if self._share is None else self._pace / _SECOND
        self.health = Health(name, outcome.ok, outcome.absent, message, outcome.duration, success, failures, pace)


class Sampler:
    """Read *sources*, each with its interval in seconds, and fold their readings into snapshots.

    A reading older than *gone_after* seconds (or three intervals) is dropped if two reads have failed since, or one hangs: its
    source says nothing any more.
    With *threads* false every source is read in the caller's thread, blocking or not. *steady* (ns) says what is due and how
    old a reading is, so that a step of the wall clock ends nothing; None goes by the times that ``sample`` is given.
    *timer* (s) says how long a read takes.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        gone_after: float = _STUCK_STREAMS,
        *,
        threads: bool = True,
        steady: Callable[[], int] | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._steady = steady
        self._timer = timer
        self._gone_after = gone_after
        self._threads = threads
        self._last: int | None = None
        self._slots: list[_Slot] = []
        for source, interval in sources:
            self.add(source, interval)

    def add(self, source: Source, interval: float) -> None:
        """Read *source* as well from the next sample on, each *interval* seconds."""
        self._slots.append(_Slot(source, interval, self._gone_after, threads=self._threads, timer=self._timer))

    def remove(self, source: Source) -> None:
        """Read *source* no more, and forget what it said."""
        for slot in [slot for slot in self._slots if slot.source is source]:
            self._slots.remove(slot)
            slot.close()

    def make_due(self) -> None:
        """Have every source read in the next sample, however short ago it was: the last one must know the last state."""
        for slot in self._slots:
            slot.due = 0

    def sample(self, now: int) -> Snapshot:
        """Return what is known at *now* (Unix ns). A source that was not due stands in it with its old time."""
        steady = self._steady() if self._steady else now
        slept = self._last is not None and steady - self._last > _SLEPT
        self._last = steady
        for slot in self._slots:
            slot.read(now, steady, slept=slept)
        return Snapshot(
            now,
            tuple(batch for slot in self._slots for batch in slot.batches),
            tuple(slot.health for slot in self._slots if slot.health is not None),
        )

    def abandon(self) -> None:
        """In a forked child, which has none of the threads: close the sources themselves."""
        for slot in self._slots:
            slot.source.close()

    def close(self) -> None:
        """Stop the threads and close the sources; one that is being read is closed by its thread when the read ends."""
        for slot in self._slots:
            slot.close()

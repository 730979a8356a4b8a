"""The tick's reading half: read each source that is due, time and judge it, and fold everything into one snapshot.

Sources never report on themselves: whether a read succeeded, how long it took and when it last did is known here.
A source that may block (a server, a file system on the network) reads on a thread of its own; the tick takes what is ready.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from otelperf.errors import SourceAbsent, SourceFailed, SourceFlawed
from otelperf.logs import Log
from otelperf.readings import Batch, Health, Reading, Snapshot, Source

_log = Log("otelperf.sampler")

_SECOND = 1_000_000_000
_ABSENT_AGAIN = 60 * _SECOND  # how often a source that this machine lacks is asked again
_EARLY = _SECOND // 4  # ticks are never quite on time: one this early (at most ¼ interval) counts as on time
_STUCK_STREAMS = 100.0  # seconds: two default heartbeats


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


def _attempt(source: Source, now: int) -> _Outcome:
    """Read once; whatever the source raises becomes an outcome."""
    began = time.perf_counter()

    def outcome(
        readings: Sequence[Reading] | None,
        message: str = "",
        *,
        whole: bool = True,
        ok: bool = False,
        absent: bool = False,
    ) -> _Outcome:
        kept = None if readings is None else tuple(readings)
        return _Outcome(now, time.perf_counter() - began, kept, whole, ok, absent, message)

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

    def __init__(self, source: Source) -> None:
        self._source = source
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
            self._outcomes.append(_attempt(self._source, self._now))


class _Slot:
    """A source, its pace, and what is known of it."""

    def __init__(self, source: Source, interval: float, gone_after: float, *, threads: bool) -> None:
        self.source = source
        self.interval = int(interval * _SECOND)
        self.gone_after = max(int(gone_after * _SECOND), 3 * self.interval)
        self.worker = _Worker(source) if threads and getattr(source, "blocking", False) else None
        self.due = 0
        self.asked = 0
        self._batches: tuple[tuple[int, Batch], ...] = ()  # when it was read, by the steady clock
        self.health: Health | None = None

    @property
    def batches(self) -> tuple[Batch, ...]:
        return tuple(batch for _, batch in self._batches)

    def read(self, now: int, steady: int) -> None:
        """Read if due, take what is ready, and drop what is too old to be called alive. Only *steady* tells what is due."""
        if self.worker and (outcome := self.worker.take()):
            self._judge(outcome)
        busy = self.worker is not None and self.worker.busy
        if busy and steady - self.asked > self.interval:
            self._stuck(steady)
        if not busy and steady >= self.due - min(_EARLY, self.interval // 4):
            missed = max(0, steady - self.due) // self.interval if self.due else 0
            self.due = (self.due or steady) + (missed + 1) * self.interval
            self.asked = steady
            if self.worker:
                self.worker.ask(now)
            else:
                self._judge(_attempt(self.source, now))
        self._batches = tuple(entry for entry in self._batches if steady - entry[0] <= self.gone_after)

    def _judge(self, outcome: _Outcome) -> None:
        before, name = self.health, self.source.name
        failed = not outcome.ok and not outcome.absent
        self._report(outcome, outcome.time if outcome.ok else None, failures=int(failed))
        if outcome.absent:
            self.due = self.asked + max(_ABSENT_AGAIN, self.interval)
            _log.debug("source absent", source=name, problem=outcome.message)
        elif failed:
            _log.trouble("source failed", by=("source",), source=name, problem=outcome.message)
        elif before is not None and not before.ok:
            _log.info("source is back", source=name)
        if outcome.readings is not None:
            batch = Batch(name, self.source.entity, outcome.time, outcome.readings)
            older = () if outcome.whole else self._without(batch)
            self._batches = (*older, (self.asked, batch))

    def _without(self, batch: Batch) -> list[tuple[int, Batch]]:
        """What was read before, less the namesakes of what *batch* has read anew."""
        fresh = {(reading.name, frozenset(reading.attributes.items())) for reading in batch.readings}
        older = []
        for read, old in self._batches:
            kept = tuple(r for r in old.readings if (r.name, frozenset(r.attributes.items())) not in fresh)
            if kept:
                older.append((read, Batch(old.source, old.entity, old.time, kept)))
        return older

    def _stuck(self, steady: int) -> None:
        seconds = (steady - self.asked) / _SECOND
        message = f"no answer for {seconds:.0f} s"
        self._report(_Outcome(0, seconds, None, whole=False, ok=False, absent=False, message=message), None, failures=0)
        _log.trouble("source hangs", by=("source",), source=self.source.name, problem=message)

    def _report(self, outcome: _Outcome, success: int | None, failures: int) -> None:
        """Say how the source is, on top of what was known: the last *success* (Unix ns), and *failures* more."""
        if self.health is not None:
            success = success if success is not None else self.health.last_success
            failures += self.health.failures
        name, message = self.source.name, outcome.message
        self.health = Health(name, outcome.ok, outcome.absent, message, outcome.duration, success, failures)


class Sampler:
    """Read *sources*, each with its interval in seconds, and fold their readings into snapshots.

    A reading older than *gone_after* seconds (or three intervals) is dropped: its source says nothing any more.
    With *threads* false every source is read in the caller's thread, blocking or not. *steady* (ns) says what is due and how
    old a reading is, so that a step of the wall clock ends nothing; None goes by the times that ``sample`` is given.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        gone_after: float = _STUCK_STREAMS,
        *,
        threads: bool = True,
        steady: Callable[[], int] | None = None,
    ) -> None:
        self._steady = steady
        self._gone_after = gone_after
        self._threads = threads
        self._slots: list[_Slot] = []
        for source, interval in sources:
            self.add(source, interval)

    def add(self, source: Source, interval: float) -> None:
        """Read *source* as well from the next sample on, each *interval* seconds."""
        self._slots.append(_Slot(source, interval, self._gone_after, threads=self._threads))

    def sample(self, now: int) -> Snapshot:
        """Return what is known at *now* (Unix ns). A source that was not due stands in it with its old time."""
        steady = self._steady() if self._steady else now
        for slot in self._slots:
            slot.read(now, steady)
        return Snapshot(
            now,
            tuple(batch for slot in self._slots for batch in slot.batches),
            tuple(slot.health for slot in self._slots if slot.health is not None),
        )

    def close(self) -> None:
        """Stop the threads and close the sources; one that is being read is closed by its thread when the read ends."""
        for slot in self._slots:
            if slot.worker:
                slot.worker.stop()
            else:
                slot.source.close()

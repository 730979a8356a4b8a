"""Workers of the application: which state each is in, how many tasks it did, how long they took, how many failed.

A worker is a name under which tasks run: a thread, a pool, a queue's consumer. Several tasks may run under one name at a time.
Every task counts, however short; its state is looked at once a tick, and ``otelperf.worker.time`` has what lies between.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NoReturn, ParamSpec, Protocol, Self, TypeVar

from otelperf.readings import Attributes, Reading
from otelperf.sources.generators import measured, measured_async
from otelperf.sources.histogram import Histogram
from otelperf.sources.registry import Registry, RegistrySource, text

P = ParamSpec("P")
R = TypeVar("R")


class Future(Protocol):
    """What asyncio's futures and those of concurrent.futures have in common."""

    def add_done_callback(self, function: Callable[[Any], object], /) -> object: ...


F = TypeVar("F", bound=Future)
State = Literal["active", "idle", "error"]
STATES: tuple[State, ...] = ("active", "idle", "error")
_MOST_ERRORS = 20  # kinds of error of one worker that are told apart
_CANCELLED = "CancelledError"  # what both kinds of future raise when they are cancelled
_OTHER = "_OTHER"  # the conventions' word for an error that is not told apart


class Worker:
    """A worker by *name*; ``otelperf.worker(name)`` makes it or returns the one there is.

    It is active while a task runs, and else idle; after a task that raised it is in error until the next one begins.
    """

    def __init__(self, name: str, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.name = name
        self._clock = clock
        self._attributes: Attributes = {"otelperf.worker.id": name}
        self._in_state: dict[State, Attributes] = {
            state: {**self._attributes, "otelperf.worker.state": state} for state in STATES
        }
        self._failed: dict[str, Attributes] = {}
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything: in a forked child, the tasks and the lock are the parent's."""
        # Reentrant: a garbage collection may close a generator, and so end what it measures, anywhere, in here too.
        self._lock = threading.RLock()
        self._started = time.time_ns()
        self._born = self._since = self._clock()
        self._running = 0
        self._error = False
        self._spent: dict[State, int] = dict.fromkeys(STATES, 0)
        self._errors: dict[str, int] = {}
        self._first: dict[str, int] = {}  # when each error was first seen: its counter begins there (Unix ns)
        self._durations = Histogram()

    @property
    def state(self) -> State:
        """The state now."""
        return "active" if self._running else "error" if self._error else "idle"

    def task(self) -> Task:
        """Return a context, sync and async, in which one task runs."""
        return Task(self)

    def _no_context(self, *_: object) -> NoReturn:
        """Say so with the cure: several tasks may run at a time, so it is a task that is entered."""
        raise TypeError(f"otelperf.worker: a worker is no context: with otelperf.worker({self.name!r}).task(): ...")

    __enter__ = __exit__ = __aenter__ = __aexit__ = _no_context

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate *function*: each of its calls is a task. Of a coroutine or generator function, until it ends."""
        return _decorated(self, function)

    def follow(self, future: F) -> F:
        """Take *future* (of asyncio or concurrent.futures; a Task is one) for a task that lasts until it is done. Return it."""
        began = self.begin()

        def done(ended: Any) -> None:
            # Asked by exception(), asyncio would take the error for seen, and no longer warn of one that nobody looks at.
            self.end(began, _CANCELLED if ended.cancelled() else ended._exception)  # noqa: SLF001 # as said above

        future.add_done_callback(done)
        return future

    def begin(self) -> int:
        """A task begins. Return what ``end`` wants."""
        now = self._clock()
        with self._lock:
            self._pass(now)
            self._running += 1
            self._error = False
        return now

    def end(self, began: int, error: BaseException | str | None = None) -> None:
        """The task that began at *began* is done; *error* is what it failed with, or that error's type in a word."""
        now = self._clock()
        seconds = (now - began) / 1e9
        with self._lock:
            if began < self._born:  # begun before a fork, in the parent
                return
            self._pass(now)
            self._running = max(0, self._running - 1)
            self._durations.add(seconds)
            if error is None:
                return
            kind = text(error if isinstance(error, str) else type(error).__qualname__) or _OTHER
            # A task that was cancelled or told to exit did not fail by itself.
            self._error = kind != _CANCELLED and isinstance(error, str | Exception)
            if kind not in self._errors and len(self._errors) >= _MOST_ERRORS:
                kind = _OTHER
            if kind not in self._errors:
                self._first[kind] = time.time_ns()
            self._errors[kind] = self._errors.get(kind, 0) + 1

    def _pass(self, now: int) -> None:
        self._spent[self.state] += now - self._since
        self._since = now

    def readings(self) -> list[Reading]:
        """Read everything that is known of it."""
        with self._lock:
            self._pass(self._clock())
            state, running, start = self.state, self._running, self._started
            spent, errors, first = dict(self._spent), dict(self._errors), dict(self._first)
            durations = self._durations.buckets()
        for kind in errors:
            self._failed.setdefault(kind, {**self._attributes, "error.type": kind})
        return [
            *(Reading("otelperf.worker.state", int(state == each), self._in_state[each]) for each in STATES),
            *(Reading("otelperf.worker.time", spent[each] / 1e9, self._in_state[each], start) for each in STATES),
            Reading("otelperf.worker.active_tasks", running, self._attributes),
            Reading("otelperf.worker.tasks", durations.count, self._attributes, start),
            *(
                Reading("otelperf.worker.errors", count, self._failed[kind], first[kind])
                for kind, count in errors.items()
            ),
            Reading("otelperf.worker.task.duration", durations, self._attributes, start),
        ]


class Task:
    """One task of *worker*, from entering to leaving. An exception passes through and is counted."""

    __slots__ = ("_began", "_worker")

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __enter__(self) -> Self:
        self._began = self._worker.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.end(self._began, error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.end(self._began, error)


def _decorated(worker: Worker, function: Callable[P, R]) -> Callable[P, R]:
    called: Any = function
    wrapped: Any
    if inspect.iscoroutinefunction(function):

        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
            with worker.task():
                return await called(*args, **kwargs)

    elif inspect.isasyncgenfunction(function):
        wrapped = measured_async(called, worker.task)

    elif inspect.isgeneratorfunction(function):
        wrapped = measured(called, worker.task)

    else:

        def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
            with worker.task():
                return called(*args, **kwargs)

    return functools.wraps(function)(wrapped)


_workers: Registry[str, Worker] = Registry(Worker, _OTHER)


class Workers(RegistrySource):
    """The source of all workers of this process."""

    name = "workers"
    registry = _workers


def worker(name: str) -> Worker:
    """Return the worker by *name*, which is low in cardinality: a role, not a request. From 1,000 on they are one, ``_OTHER``.

    Raises TypeError for what is no text: a function, where it stands bare above one.
    """
    if not isinstance(name, str):
        msg = f"otelperf.worker: name is {name!r}, expected text: otelperf.worker('loader')"
        raise TypeError(msg)
    return _workers[text(name) or ""]

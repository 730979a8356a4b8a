"""Relief when the kernel says that memory is short: caches are emptied, garbage collected, the application's own callback called.

Nothing is polled. The kernel wakes one thread: by a pressure stall trigger of the control group (or of the machine, where there
is none), and when the group comes to its limit. https://docs.kernel.org/accounting/psi.html,
https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.events)
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from otelperf import telemetry
from otelperf.logs import Log

_log = Log("otelperf.relief")

# 150 ms of stall within 2 s: what the kernel's documentation has as its example, in the window that needs no privilege.
_TRIGGER = b"some 150000 2000000\0"
_CALM = 60.0  # s after which the steps begin with the first again
_REST = 2.0  # s between two steps: the one before must have had its effect
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Event(NamedTuple):
    """A file that the kernel wakes us by, and what it means: ``stall`` or ``limit``."""

    descriptor: int
    cause: str


def kernel_events(root: str = "/") -> list[Event]:
    """Open what this kernel and control group have. The caller closes the descriptors."""
    group = _group(root)
    found = []
    for path in ([group / "memory.pressure"] if group else []) + [Path(root, "proc/pressure/memory")]:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(descriptor, _TRIGGER)
            except OSError:
                os.close(descriptor)
                continue
            found.append(Event(descriptor, "stall"))
            break  # the group's own says more than the machine's
    if group:
        with suppress(OSError):
            found.append(Event(os.open(group / "memory.events", os.O_RDONLY | os.O_CLOEXEC), "limit"))
    return found


def _group(root: str) -> Path | None:
    """Return the folder of this process' control group (version 2)."""
    with suppress(OSError, ValueError):
        for line in Path(root, "proc/self/cgroup").read_text().splitlines():
            number, _, path = line.split(":", 2)
            folder = Path(root, "sys/fs/cgroup", path.lstrip("/"))
            if number == "0" and (folder / "memory.events").exists():
                return folder
    return None


class Step(NamedTuple):
    """One step of relief that was taken. *freed* bytes of resident memory, negative where it grew; *seconds* it took."""

    name: str
    cause: str
    freed: int
    seconds: float


class Relief:
    """Waits for *events* and relieves, one step at each: caches, garbage, *callback*; after a minute of calm from the first again.

    *caches* are functions with ``cache_clear()``, or what has ``clear()``. A step with nothing to do is left out, one that
    fails is logged. Each is a span ``otelperf.memory.relief``, and counted.
    """

    def __init__(
        self,
        callback: Callable[[], object] | None,
        caches: Iterable[Any],
        events: Callable[[], Sequence[Event]] = kernel_events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        steps = {
            "caches": tuple(_clearing(each) for each in caches),
            "garbage": (_collect,),
            "callback": (callback,) if callback else (),
        }
        self._steps = [(name, calls) for name, calls in steps.items() if calls]
        self._open = events
        self._clock = clock
        self._next = 0
        self._last = float("-inf")
        self._wait()

    def _wait(self) -> None:
        greenlets = _threads_are_greenlets()
        self._events = {} if greenlets else {event.descriptor: event.cause for event in self._open()}
        self._thread = threading.Thread(target=self._run, name="otelperf-relief", daemon=True)
        if not self._events:
            if greenlets:
                _log.warning("memory pressure is not told under gevent", why="its poll() knows no POLLPRI")
            else:
                _log.warning("memory pressure is not told by this kernel", needs="PSI or cgroup v2")
            return
        self._stopping = False
        self._read, self._write = os.pipe()
        self._thread.start()

    @property
    def watching(self) -> bool:
        """Whether there is anything that tells of pressure, and nobody has stopped it."""
        return self._thread.is_alive()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop waiting; a callback that runs is waited for no longer than *timeout* seconds."""
        if self._thread.is_alive():
            if not self._stopping:  # the thread closes the pipe, and its number may be another file's soon
                self._stopping = True
                os.write(self._write, b".")
            self._thread.join(timeout)
        with suppress(ValueError):
            _running.remove(self)

    def begin_anew(self) -> None:
        """Wait in a forked child: it has not the thread, and the descriptors are the parent's."""
        for descriptor in (self._read, self._write, *self._events) if self._events else ():
            with suppress(OSError):
                os.close(descriptor)
        self._wait()

    def _run(self) -> None:
        stopped, poll = select.poll(), select.poll()
        stopped.register(self._read, select.POLLIN)
        poll.register(self._read, select.POLLIN)
        for descriptor in self._events:
            poll.register(descriptor, select.POLLPRI)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._read in ready:
                break
            for descriptor in ready:
                with suppress(OSError):  # memory.events tells again until it is read; a trigger has nothing to read
                    os.pread(descriptor, 4096, 0)
            self.relieve(self._events[ready[0]])
            if stopped.poll(_REST * 1000):
                break
        for descriptor in (self._read, self._write, *self._events):
            os.close(descriptor)

    def relieve(self, cause: str) -> Step:
        """Take the next step, in this thread. *cause* is ``stall``, ``limit``, or why the caller asks."""
        now = self._clock()
        if now - self._last > _CALM:
            self._next = 0
        self._last = now
        name, calls = self._steps[min(self._next, len(self._steps) - 1)]
        self._next += 1
        began, before, start = time.time_ns(), resident(), time.perf_counter()
        for call in calls:
            try:
                call()
            except Exception as error:  # noqa: BLE001 # the application's code must not end this thread
                _log.trouble(
                    "memory relief failed", by=("step",), step=name, problem=f"{type(error).__name__}: {error}"
                )
        step = Step(name, cause, before - resident(), time.perf_counter() - start)
        _log.info("memory is short", cause=cause, step=name, freed_bytes=step.freed)
        _tell(step, began)
        return step


def _tell(step: Step, began: int) -> None:
    about = {"otelperf.relief.step": step.name, "otelperf.relief.cause": step.cause}
    telemetry.add("otelperf.memory.reliefs", 1, about)
    telemetry.add("otelperf.memory.freed", max(0, step.freed), about)
    try:
        span = telemetry.tracer().start_span("otelperf.memory.relief", attributes=about, start_time=began)
        span.set_attribute("otelperf.relief.freed", step.freed)
        span.end(began + int(step.seconds * 1e9))
    except Exception as error:  # noqa: BLE001 # a span processor of the application's
        _log.trouble("span not recorded", problem=f"{type(error).__name__}: {error}")


def _threads_are_greenlets() -> bool:
    """Say whether gevent has replaced threads, and with them ``select.poll``."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _clearing(cache: Any) -> Callable[[], object]:
    for name in ("cache_clear", "clear"):
        clear = getattr(cache, name, None)
        if callable(clear):
            return clear  # type: ignore[no-any-return] # it is callable
    msg = f"otelperf.on_memory_pressure: {cache!r} has neither cache_clear() nor clear()"
    raise TypeError(msg)


def resident() -> int:
    """Return the bytes of this process that are in memory: /proc/self/statm, second column, in pages."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def _collect() -> None:
    """Collect garbage, and give back to the kernel what malloc holds free: malloc_trim, which glibc has."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_MOST = 16  # a cell of a notebook that is run again and again must not add threads without end
_running: list[Relief] = []


def on_memory_pressure(callback: Callable[[], object] | None = None, *, caches: Iterable[Any] = ()) -> Relief:
    """Relieve this process when the kernel says that memory is short.

    In steps, the next one when the kernel says it again: *caches* are cleared, garbage is collected and free memory given back,
    *callback* is called. All in a thread of its own, which *callback* must not hold up for long. Returns what ``stop()`` ends; of
    more than 16 at a time the oldest is ended.
    Raises TypeError for a cache that cannot be cleared, and a *callback* that cannot be called; where the kernel tells nothing (no
    Linux, neither PSI nor cgroup v2), or gevent has replaced threads, that is logged, and nothing is ever called.
    """
    if callback is not None and not callable(callback):
        msg = (
            f"otelperf.on_memory_pressure: the callback is {callback!r}, expected a function without arguments, or None"
        )
        raise TypeError(msg)
    if isinstance(caches, Mapping) or hasattr(caches, "cache_clear") or not isinstance(caches, Iterable):
        told = f"otelperf.on_memory_pressure: caches is one {type(caches).__name__}"
        raise TypeError(f"{told}, expected a list, such as caches=[cache]")
    relief = Relief(callback, caches)
    _running.append(relief)
    if len(_running) > _MOST:
        _log.warning("too many at a time, the oldest is stopped", most=_MOST)
        _running[0].stop(0.0)
    return relief


def _in_child() -> None:
    for each in tuple(_running):
        each.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

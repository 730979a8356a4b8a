"""Relief by real events: urgent data on a socket wakes poll() as the kernel's files do."""

from __future__ import annotations

import functools
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import otelperf.relief
from otelperf.relief import Event, Relief, kernel_events, on_memory_pressure, resident
from tests.seen import Seen


class Kernel:
    """Says that memory is short."""

    def __init__(self) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        self._sender = socket.create_connection(server.getsockname())
        self._receiver, _ = server.accept()
        server.close()

    def events(self) -> list[Event]:
        return [Event(os.dup(self._receiver.fileno()), "stall")]

    def says_so(self) -> None:
        self._sender.send(b"!", socket.MSG_OOB)

    def is_heard(self) -> None:
        """The urgent byte stays until it is taken: the kernel's own files tell each event once."""
        self._receiver.recv(1, socket.MSG_OOB)

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    yield found
    found.close()


class Watch:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def nothing() -> list[Event]:
    return []


def test_steps_are_taken_one_after_the_other_and_from_the_first_after_a_calm_minute(seen: Seen) -> None:
    clock, called = Watch(), list[str]()
    relief = Relief(lambda: called.append("callback"), [], nothing, clock)
    steps = []
    for seconds in (0, 10, 10, 59, 61):
        clock.now += seconds
        steps.append(relief.relieve("stall").name)
    assert steps == ["garbage", "callback", "callback", "callback", "garbage"]
    assert called == ["callback"] * 3
    assert [(span.name, (span.attributes or {})["otelperf.relief.step"]) for span in seen.spans] == [
        ("otelperf.memory.relief", step) for step in steps
    ]


def test_caches_are_cleared_and_what_that_freed_is_told(seen: Seen) -> None:
    @functools.lru_cache
    def block(number: int) -> bytes:
        return os.urandom(2**20) * 64

    held = {"block": os.urandom(2**20) * 64}
    block(1)
    step = Relief(None, [block, held], nothing).relieve("limit")
    assert (step.name, step.cause) == ("caches", "limit")
    assert block.cache_info().currsize == 0
    assert held == {}
    assert step.freed > 100 * 2**20
    assert (seen.spans[0].attributes or {})["otelperf.relief.freed"] == step.freed


def test_a_callback_that_fails_does_not_end_the_relief(seen: Seen) -> None:
    relief = Relief(lambda: 1 / 0, [], nothing)
    assert [relief.relieve("stall").name for _ in range(3)] == ["garbage", "callback", "callback"]


def test_what_cannot_be_cleared_is_refused() -> None:
    with pytest.raises(TypeError, match="neither cache_clear"):
        on_memory_pressure(caches=[3])


@pytest.mark.parametrize("caches", [{}, {"a": 1}, functools.lru_cache(len), 5])
def test_one_cache_in_place_of_a_list_is_refused(caches: Any) -> None:
    with pytest.raises(TypeError, match=r"on_memory_pressure: caches is one \w+, expected a list, such as caches="):
        on_memory_pressure(caches=caches)


def test_a_callback_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="on_memory_pressure: the callback is 5, expected a function"):
        on_memory_pressure(5)  # type: ignore[arg-type] # wrong on purpose


def test_a_thread_is_woken_by_the_event_and_ends_when_it_is_stopped(kernel: Kernel, seen: Seen) -> None:
    called, before = threading.Event(), set(Path("/proc/self/fd").iterdir())

    def callback() -> None:
        kernel.is_heard()
        called.set()

    relief = Relief(callback, [], kernel.events)
    relief._next = 1  # the first step, garbage, would leave the urgent byte where it is
    relief._last = relief._clock()
    assert relief.watching
    kernel.says_so()
    assert called.wait(10)
    relief.stop()
    assert not relief.watching
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_without_a_kernel_that_tells_nothing_waits(seen: Seen) -> None:
    relief = Relief(None, [], nothing)
    assert not relief.watching
    relief.stop()


def test_under_gevent_it_says_that_nothing_tells_of_pressure() -> None:
    pytest.importorskip("gevent")
    program = """
import gevent.monkey
gevent.monkey.patch_all()
import otelperf
print(otelperf.on_memory_pressure(print).watching)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert "memory pressure is not told under gevent" in done.stderr


def test_the_groups_own_pressure_goes_before_the_machines(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/kube/pod"
    for path, content in (
        (group / "memory.pressure", ""),
        (group / "memory.events", "low 0\nhigh 0\n"),
        (tmp_path / "proc/self/cgroup", "0::/kube/pod\n"),
        (tmp_path / "proc/pressure/memory", ""),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    events = kernel_events(str(tmp_path))
    for event in events:
        os.close(event.descriptor)
    assert [event.cause for event in events] == ["stall", "limit"]
    assert (group / "memory.pressure").read_bytes() == b"some 150000 2000000\0"
    assert (tmp_path / "proc/pressure/memory").read_bytes() == b""


@pytest.mark.skipif(not os.access("/proc/pressure/memory", os.W_OK), reason="this kernel has no PSI for us")
def test_this_kernel_takes_the_trigger() -> None:
    events = kernel_events()
    poll = select.poll()
    for event in events:
        poll.register(event.descriptor, select.POLLPRI)
    assert [mask for _, mask in poll.poll(0) if mask & select.POLLERR] == []
    for event in events:
        os.close(event.descriptor)
    assert "stall" in {event.cause for event in events}


def test_resident_memory_is_that_of_this_process() -> None:
    before = resident()
    block = os.urandom(2**20) * 64
    assert resident() - before > 50 * 2**20
    del block


def test_of_too_many_the_oldest_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otelperf.relief, "_running", [])
    several = [on_memory_pressure() for _ in range(20)]
    assert otelperf.relief._running == several[4:]
    for each in several:
        each.stop()
    assert otelperf.relief._running == []

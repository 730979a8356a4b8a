"""The process behind a port, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from otelperf.sources import server_process
from otelperf.sources.procfs import File
from otelperf.sources.server_process import ServerProcess, find

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: /proc and pidfd")

# Listens, says where, and does as it is told.
SERVER = """
import os, socket, sys
server = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
if "fork" not in sys.argv or os.fork():
    print(server.getsockname()[1], flush=True)
sys.exit(int(sys.stdin.readline() or 0))
"""


@contextmanager
def serving(host: str = "127.0.0.1", *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", SERVER, host, *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0) as child:
        assert child.stdout
        try:
            yield child, int(child.stdout.readline())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


@contextmanager
def found(host: str = "127.0.0.1", *more: str) -> Iterator[tuple[subprocess.Popen[str], ServerProcess]]:
    with serving(host, *more) as (child, port):
        process = find(port)
        assert process is not None
        try:
            yield child, process
        finally:
            process.close()


def dead(child: subprocess.Popen[str]) -> None:
    """Wait until it has ended, but leave it to be waited for."""
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_the_process_that_listens_is_found(host: str) -> None:
    if ":" in host and not Path("/proc/net/if_inet6").exists():
        pytest.skip("needs IPv6")
    with found(host) as (child, process):
        assert child.pid == process.pid
        assert process.ended() is None


def test_of_a_server_and_the_workers_that_it_forked_it_is_the_server() -> None:
    with found("127.0.0.1", "fork") as (child, process):
        assert child.pid == process.pid


def test_where_nobody_listens_nothing_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert find(port) is None


def test_who_connects_to_a_port_is_not_who_listens_there() -> None:
    with serving() as (child, port), socket.create_connection(("127.0.0.1", port)):
        process = find(port)
        assert process is not None
        assert child.pid == process.pid
        process.close()


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.parametrize("code", [0, 1, 137])
def test_an_exit_code_is_told(code: int, *, reaped: bool) -> None:
    with found() as (child, process):
        if reaped and not tells_the_reaped():
            pytest.skip("needs Linux 6.15: before, nobody tells of a process that has been waited for")
        assert child.stdin
        child.stdin.write(f"{code}\n")
        child.stdin.flush()
        child.wait() if reaped else dead(child)
        assert process.ended() == f"exit:{code}"


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_is_told(number: signal.Signals, *, reaped: bool) -> None:
    with found() as (child, process):
        if reaped and not tells_the_reaped():
            pytest.skip("needs Linux 6.15: before, nobody tells of a process that has been waited for")
        child.send_signal(number)
        child.wait() if reaped else dead(child)
        assert process.ended() == f"signal:{number.name}"


def tells_the_reaped() -> bool:
    release = os.uname().release.split(".")
    return (int(release[0]), int(release[1])) >= (6, 15)


def test_where_nobody_tells_the_end_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    with found() as (child, process):
        monkeypatch.setattr(server_process, "_GET_INFO", 0)  # as an older kernel, which does not know it
        child.kill()
        child.wait()
        assert process.ended() == "unknown"


def test_a_process_of_somebody_else_is_not_to_be_seen() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    with serving() as (_, port):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            os.write(writer, b"none" if find(port) is None else b"some")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 10) == b"none"
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(("killed", "said"), [((3, 4), "oom"), ((3, 3), "signal:SIGKILL"), ((4, 0), "signal:SIGKILL")])
def test_a_kill_for_want_of_memory_in_its_cgroup_is_told(
    killed: tuple[int, int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written here: a container may hold no cgroup of its own to run out of."""
    events = tmp_path / "memory.events"
    events.write_text(f"low 0\noom 9\noom_kill {killed[0]}\noom_group_kill 0\n")
    monkeypatch.setattr(server_process, "_oom_file", lambda _: File("/", str(events)))
    with found() as (child, process):
        assert process.ended() is None
        events.write_text(f"low 0\noom 9\noom_kill {killed[1]}\noom_group_kill 0\n")
        child.kill()
        dead(child)
        assert process.ended() == said


def test_who_exits_by_itself_was_not_killed_for_want_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "memory.oom_control"
    events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    monkeypatch.setattr(server_process, "_oom_file", lambda _: File("/", str(events)))
    with found() as (child, process):
        events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")  # one of its workers
        child.terminate()
        dead(child)
        assert process.ended() == "signal:SIGTERM"


def test_the_same_arguments_have_the_same_number_and_others_another() -> None:
    with found() as (_, one), found() as (_, two), found("127.0.0.1", "--secret") as (_, other):
        assert one.arguments == two.arguments
        assert one.arguments != other.arguments
        assert isinstance(other.arguments, int)  # and not what was said


def test_its_start_is_told() -> None:
    before = time.time_ns()
    with found() as (_, process):
        tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        assert before - 2 * tick <= process.started <= time.time_ns()

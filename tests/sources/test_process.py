from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from otelperf.errors import SourceFailed
from otelperf.sources.process import Process, Stat, open_files, parse

REST = b"R 885 885 32482 0 -1 4194304 98 0 0 0 11 12 0 0 20 0 17 0 191337 3133440 379 18446744073709551615\n"


@pytest.mark.parametrize("name", [b"python3", b"a b) (c", b"))", b"\xff\n"])
def test_a_programs_name_may_hold_anything(name: bytes) -> None:
    """Brackets and blanks included."""
    assert Stat(11, 12, 17, 191337, 379) == parse(b"901 (" + name + b") " + REST)


@pytest.mark.parametrize("content", [b"", b"901 (x) R 1\n", b"901 (x) " + REST.replace(b"379", b"x")])
def test_odd_content_is_a_failure(content: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="/proc/self/stat"):
        parse(content)


def test_this_process_agrees_with_psutil() -> None:
    """CPU time, memory, threads, open files and start."""
    source, theirs = Process(), psutil.Process()
    source.read(0)
    before, memory = theirs.cpu_times(), theirs.memory_info().rss
    user, system, resident, threads, files = source.read(0)
    after = theirs.cpu_times()
    assert user.value == pytest.approx(before.user, abs=after.user - before.user + 1e-9)
    assert system.value == pytest.approx(before.system, abs=after.system - before.system + 1e-9)
    assert resident.value == pytest.approx(memory, rel=0.1)
    assert threads.value == theirs.num_threads()
    assert files.value == theirs.num_fds() - 1  # psutil counts the one that it opens to count
    assert user.start == pytest.approx(theirs.create_time() * 1e9, abs=2e9)
    source.close()


def test_open_files_are_counted() -> None:
    """To list the folder opens one more."""
    assert len(list(Path("/proc/self/fd").iterdir())) - 1 == open_files()


def test_open_files_are_listed_where_the_folder_has_no_size() -> None:
    """As before Linux 6.2; folders of sysfs never have one."""
    assert len(list(Path("/sys/kernel").iterdir())) - 1 == open_files("/sys/kernel")


def test_open_files_that_cannot_be_counted_are_a_failure(tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(SourceFailed, match="nothing"):
        open_files(str(tmp_path / "nothing"))


FORKED = """
import os
from otelperf.sources.process import Process
source = Process()
source.read(0)
if os.fork() == 0:
    source.read(0)
    print(os.getpid(), source._file.read().partition(b" ")[0].decode())
else:
    os.wait()
"""


def test_after_a_fork_the_child_reads_itself() -> None:
    """The descriptor of the parent's file still stands for the parent."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    child, read = done.stdout.split()
    assert child == read

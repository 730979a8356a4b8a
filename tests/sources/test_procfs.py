from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otelperf.errors import SourceAbsent, SourceFailed
from otelperf.sources.procfs import File, boot_time, numbers, odd, text

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_file_is_read_whole_however_long(tmp_path: Path) -> None:
    """The buffer starts at a page; content is longer, then longer still."""
    path = tmp_path / "long"
    file = File(str(tmp_path), "long")
    for length in (0, 1, 4095, 4096, 4097, 100_000, 3):
        path.write_bytes(b"x" * length)
        assert b"x" * length == file.read()
    file.close()


def test_a_kernel_file_longer_than_a_page_is_read_whole() -> None:
    """A seq_file gives a page at a time."""
    file = File("/proc", "kallsyms")
    content = file.read()
    file.close()
    assert content.endswith(b"\n")
    assert len(content) > 10 * 4096


def test_a_second_read_sees_what_is_new(tmp_path: Path) -> None:
    """The descriptor stays, the content does not."""
    path = tmp_path / "stat"
    path.write_bytes(b"one")
    file = File(str(tmp_path), "stat")
    assert file.read() == b"one"
    path.write_bytes(b"two")
    assert file.read() == b"two"
    file.close()


def test_a_closed_file_opens_again(tmp_path: Path) -> None:
    """Closing is no end."""
    (tmp_path / "stat").write_bytes(b"one")
    file = File(str(tmp_path), "stat")
    file.close()
    assert file.read() == b"one"
    file.close()
    file.close()
    assert file.read() == b"one"
    file.close()


def test_a_forgotten_file_is_closed(tmp_path: Path) -> None:
    """As when a fork's child makes its own sources."""
    (tmp_path / "stat").write_bytes(b"one")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert File(str(tmp_path), "stat").read() == b"one"
    assert before == len(list(Path("/proc/self/fd").iterdir()))


def test_a_descriptor_that_went_bad_is_opened_again(tmp_path: Path) -> None:
    """As when a program closes all descriptors to become a daemon."""
    (tmp_path / "stat").write_bytes(b"one")
    file = File(str(tmp_path), "stat")
    file.read()
    os.close(file._fd)
    assert file.read() == b"one"
    file.close()


def test_a_descriptor_that_became_somebody_elses_is_left_open(tmp_path: Path) -> None:
    """After the same, the number may be a socket's."""
    (tmp_path / "stat").write_bytes(b"one")
    file = File(str(tmp_path), "stat")
    file.read()
    number = file._fd
    with socket.socket() as theirs:
        os.dup2(theirs.fileno(), number)
        assert file.read() == b"one"
        assert os.fstat(number).st_ino == os.fstat(theirs.fileno()).st_ino
        os.close(number)
    file.close()


def test_a_missing_file_is_absence(tmp_path: Path) -> None:
    """Neither the file nor its folder needs to be there."""
    (tmp_path / "file").write_bytes(b"")
    for name in ("nothing", "no/folder", "file/below"):
        with pytest.raises(SourceAbsent, match=name):
            File(str(tmp_path), name).read()


def test_a_file_that_cannot_be_read_is_a_failure_that_names_it(tmp_path: Path) -> None:
    """A folder opens but does not read."""
    with pytest.raises(SourceFailed, match=rf"cannot read {tmp_path}/: Is a directory"):
        File(str(tmp_path), "").read()


def test_odd_content_is_named_and_cut() -> None:
    """The message names file and content."""
    assert str(odd("/proc/stat", b"cpu x")) == "/proc/stat: unexpected content b'cpu x'"
    assert len(str(odd("/proc/stat", b"x" * 10_000))) < 150


@pytest.mark.parametrize("word", [b"-1", b"18446744073709551616", b"1.5", b"", b"x", b"9" * 5000])
def test_numbers_are_what_the_kernel_can_print(word: bytes) -> None:
    """Nothing but unsigned 64-bit numbers."""
    with pytest.raises(ValueError, match=r"."):
        numbers([b"1", word])


def test_numbers_reach_to_the_largest() -> None:
    """Both ends count."""
    assert numbers([b"0", b"18446744073709551615"]) == [0, 2**64 - 1]


def test_a_name_that_is_no_utf8_is_still_text() -> None:
    """An attribute must be text."""
    assert text(b"eth\xff") == "eth\\xff"


def test_boot_time_is_in_nanoseconds(machine: Callable[[str], Path]) -> None:
    """From the line btime."""
    assert boot_time(str(machine("node"))) == 1_700_000_000_000_000_000


def test_boot_time_is_unknown_where_the_kernel_does_not_say(machine: Callable[[str], Path], tmp_path: Path) -> None:
    """Neither odd content nor no file is an error here: a counter without a start is still one."""
    assert boot_time(str(machine("odd"))) is None
    assert boot_time(str(tmp_path / "nowhere")) is None


def test_boot_time_does_not_follow_the_clock(machine: Callable[[str], Path]) -> None:
    """A step of the wall clock moves btime; to a backend that would be a restart."""
    root = machine("node")
    before = boot_time(str(root))
    (root / "proc/stat").write_text("btime 1700000009\n")
    assert boot_time(str(root)) == before

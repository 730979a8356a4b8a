from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from otelperf import catalog
from otelperf.errors import SourceAbsent, SourceError, SourceFailed, SourceFlawed
from otelperf.sources import portable
from otelperf.sources.host import agent_source, host_sources

if TYPE_CHECKING:
    from otelperf.readings import Reading


# What a busy machine may move between two reads, by unit.
MOVED = {"By": 1e8, "s": 5, "1": 0.2}
Key = tuple[str, frozenset[tuple[str, object]]]


def read(source: object) -> dict[Key, Reading]:
    """Return the second reading of a source by metric and attributes; flawed ones count, absent ones are empty."""
    try:
        source.read(0)  # type: ignore[attr-defined] # any source
        readings = source.read(0)  # type: ignore[attr-defined] # any source
    except SourceFlawed as flawed:
        readings = flawed.readings
    except SourceAbsent:
        readings = []
    return {(reading.name, frozenset(reading.attributes.items())): reading for reading in readings}


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")
@pytest.mark.parametrize(
    ("name", "only_proc"),
    [
        ("cpu", set()),
        ("load", set()),
        ("memory", {"system.memory.linux.available"}),
        ("paging", {"system.paging.faults", "system.paging.operations"}),
        ("disk", set()),
        ("filesystem", set()),
        ("network", {"system.network.connection.count"}),
        ("uptime", set()),
        ("process", set()),
    ],
)
def test_psutil_tells_the_same_streams_as_proc(name: str, only_proc: set[str]) -> None:
    """Names and attributes agree but for what psutil does not know, and values but for what moved in between."""
    proc = {source.name: source for source in (*host_sources(), agent_source())}[name]
    probe = {source.name: source for source in (*portable.sources(), portable.agent())}[name]
    ours, theirs = read(proc), read(probe)
    compared = {key: reading for key, reading in ours.items() if key[0] not in only_proc and key in theirs}
    if name == "filesystem" and not compared:
        pytest.skip("psutil does not list the overlay of a container")
    wanted = {key[0] for key in ours} - only_proc - {"system.cpu.utilization"}
    assert wanted == {key[0] for key in compared} - {"system.cpu.utilization"}
    for key, reading in compared.items():
        if reading.name != "system.cpu.utilization":
            near = pytest.approx(reading.value, rel=0.2, abs=MOVED.get(catalog.BY_NAME[reading.name].unit, 2000))
            assert near == theirs[key].value, key
            assert (reading.start is None) == (theirs[key].start is None)


def test_totals_by_mode_carry_no_cpu_number() -> None:
    """As with /proc."""
    probe = portable.sources(per_logical=False)[0]
    assert all("cpu.logical_number" not in reading.attributes for reading in probe.read(0))


def test_utilization_is_of_the_time_between() -> None:
    """Absent at first; a mode that steps back leaves it out."""
    cpu = portable.Cpu()
    assert cpu._utilization({"user": 10, "idle": 20}) == []
    assert [reading.value for reading in cpu._utilization({"user": 11, "idle": 23})] == [0.25, 0.75]
    assert cpu._utilization({"user": 10, "idle": 24}) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AttributeError("module 'psutil' has no attribute 'getloadavg'"), SourceAbsent),
        (NotImplementedError(), SourceAbsent),
        (RuntimeError("no disk stats"), SourceFailed),
        (FileNotFoundError("/sys/block"), SourceFailed),
        (ValueError("not enough values"), SourceFailed),
        (SourceAbsent("there is no swap"), SourceAbsent),
    ],
)
def test_what_psutil_raises_becomes_a_source_error(error: Exception, expected: type[SourceError]) -> None:
    """The others are sources of their own, and lose nothing."""

    def broken() -> list[Reading]:
        raise error

    with pytest.raises(expected):
        portable.Probe("disk", broken).read(0)


def test_only_file_systems_take_a_thread() -> None:
    """They may wait for ever."""
    assert [probe.name for probe in portable.sources() if probe.blocking] == ["filesystem"]


def test_macos_memory_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no cache, inactive memory is a state."""
    assert _memory_of(monkeypatch, total=100, free=10, inactive=30, wired=20) == {
        "free": 10,
        "inactive": 30,
        "used": 60,
    }


def _memory_of(monkeypatch: pytest.MonkeyPatch, **fields: int) -> dict[object, object]:
    """Return memory by state on a system whose psutil has *fields*."""

    class Found:
        def _asdict(self) -> dict[str, int]:
            return fields

    monkeypatch.setattr("psutil.virtual_memory", Found)
    return {
        reading.attributes["system.memory.state"]: reading.value
        for reading in portable.memory_readings()
        if reading.name == "system.memory.usage"
    }


def test_psutil_is_not_imported_where_there_is_proc() -> None:
    """It costs memory that the agent has not promised."""
    script = (
        "import sys, otelperf.sources.host as s; [x.close() for x in s.host_sources()]; print('psutil' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert str(sys.platform != "linux") == done.stdout.strip() or sys.platform != "linux"


def test_without_psutil_the_message_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a dependency only where it is needed."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    for probe in portable.sources():
        with pytest.raises(SourceFailed, match="pip install 'psutil"):
            probe.read(0)


def test_sources_of_other_systems_are_psutils(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same subjects, the kernel's pressure aside."""
    linux = [source.name for source in host_sources()]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert [name for name in linux if name != "pressure"] == [source.name for source in host_sources()]
    assert all(isinstance(source, portable.Probe) for source in (*host_sources(), agent_source()))

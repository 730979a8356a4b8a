from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf import catalog
from otelperf.errors import SourceAbsent, SourceError, SourceFailed
from otelperf.sources import (
    cpu,
    disk,
    filesystem,
    load,
    memory,
    network,
    paging,
    pressure,
    process,
    uptime,
)
from otelperf.sources.host import agent_source, host_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otelperf.readings import Reading

MACHINES = Path(__file__).parent.parent / "proc"
PARSERS: tuple[tuple[Callable[[bytes], Any], str], ...] = (
    (cpu.parse, "proc/stat"),
    (load.parse, "proc/loadavg"),
    (memory.parse, "proc/meminfo"),
    (paging.parse_swaps, "proc/swaps"),
    (paging.parse_vmstat, "proc/vmstat"),
    (disk.parse, "proc/diskstats"),
    (filesystem.parse_mountinfo, "proc/1/mountinfo"),
    (filesystem.parse_filesystems, "proc/filesystems"),
    (network.interfaces, "proc/1/net/dev"),
    (network.parse_row, "proc/1/net/dev"),
    (network.parse_established, "proc/1/net/snmp"),
    (network.parse_time_wait, "proc/1/net/sockstat"),
    (network.parse_udp, "proc/1/net/sockstat6"),
    (pressure.parse, "proc/pressure/memory"),
    (process.parse, "proc/stat"),
    (uptime.parse, "proc/uptime"),
)
FILES = sorted(
    str(path.relative_to(MACHINES / "node")) for path in (MACHINES / "node/proc").rglob("*") if path.is_file()
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw *content* with a piece of it replaced by anything, digits above all."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 40)))
    piece = draw(st.binary(max_size=30) | st.from_regex(rb"[-+0-9 .\n]{0,30}", fullmatch=True))
    return content[:start] + piece + content[end:]


def readings_of(source: Any) -> Sequence[Reading]:
    """Return what a source tells, whatever it complains of."""
    try:
        return list(source.read(0))
    except SourceError as error:
        return error.readings


@pytest.fixture
def node(machine: Callable[[str], Path]) -> Path:
    """Return the node with a folder for one of its mounts."""
    root = machine("node")
    (root / "home").mkdir()
    return root


def test_every_row_of_the_catalogue_has_a_reading_and_every_reading_a_row(node: Path) -> None:
    """CPU shares need a second reading."""
    sources = host_sources(str(node))
    told = {reading.name for source in sources for reading in readings_of(source)}
    with (node / "proc/stat").open("r+") as file:
        file.write("cpu  1001")
    told |= {reading.name for source in sources for reading in readings_of(source)}
    assert {metric.name for metric in catalog.HOST} == told
    assert {metric.name for metric in catalog.PROCESS} == {reading.name for reading in agent_source().read(0)}


def test_only_counters_have_a_start(node: Path) -> None:
    """The kind stands in the catalogue."""
    for source in (*host_sources(str(node)), agent_source()):
        for reading in readings_of(source):
            assert (catalog.BY_NAME[reading.name].kind == "counter") == (reading.start is not None), reading


@pytest.mark.parametrize("name", ["vm", "node", "old"])
def test_no_stream_is_told_twice(machine: Callable[[str], Path], name: str) -> None:
    """One reading a metric and set of attributes."""
    for source in host_sources(str(machine(name))):
        streams = [(reading.name, *sorted(reading.attributes.items())) for reading in readings_of(source)]
        assert len(set(streams)) == len(streams)


def test_a_recorded_machine_is_read_without_a_complaint(machine: Callable[[str], Path]) -> None:
    """All but its file systems, which need the folders."""
    root = machine("vm")
    (root / "dev/shm").mkdir(parents=True)
    for source in host_sources(str(root)):
        assert source.read(0), source.name


def test_odd_content_is_a_failure_of_that_source_alone(machine: Callable[[str], Path]) -> None:
    """And tells nothing."""
    for source in host_sources(str(machine("odd"))):
        with pytest.raises(SourceFailed) as failed:
            source.read(0)
        assert failed.value.readings == (), source.name


def test_an_empty_machine_is_absence(tmp_path: Path) -> None:
    """Nothing is published and nothing is wrong."""
    for source in host_sources(str(tmp_path)):
        with pytest.raises(SourceAbsent):
            source.read(0)


def test_sources_are_told_apart_by_name_and_belong_to_the_host() -> None:
    """The process belongs to the agent."""
    sources = host_sources()
    assert len(sources) == len({source.name for source in sources})
    assert {source.entity for source in sources} == {"host"}
    assert agent_source().entity == "agent"


def open_under_proc() -> list[str]:
    """What of /proc and /sys this process holds open; other tests' threads close sockets when they like."""
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            targets.append(str(descriptor.readlink()))
    return sorted(t for t in targets if re.match(r"/(proc/(?!\d+/fd)|sys/)", t))


def test_this_machine_can_be_read_and_closed() -> None:
    """No descriptor is left behind."""
    before = open_under_proc()
    sources: tuple[Any, ...] = (*host_sources(), agent_source())
    for source in sources:
        readings_of(source)
        source.close()
    assert before == open_under_proc()


@pytest.mark.parametrize(("parser", "path"), PARSERS, ids=[f"{p.__module__}.{p.__name__}" for p, _ in PARSERS])
@given(data=st.data())
def test_no_content_raises_anything_but_a_source_error(
    parser: Callable[[bytes], Any], path: str, data: st.DataObject
) -> None:
    """Neither arbitrary bytes nor real content that was damaged."""
    real = (MACHINES / "node" / path).read_bytes()
    content = data.draw(st.binary() | damaged(real))
    try:
        parser(content)
    except SourceError as error:
        assert len(str(error)) < 500  # noqa: PT017 - a line of a log


@given(data=st.data())
def test_no_machine_raises_anything_but_a_source_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Nor do the sources that are made of the parsers; read twice, for what they remember."""
    root = tmp_path_factory.mktemp("machine") / "node"
    shutil.copytree(MACHINES / "node", root)
    sources: tuple[Any, ...] = host_sources(str(root))
    for _ in range(2):
        for source in sources:
            readings_of(source)
        path = root / data.draw(st.sampled_from(FILES))
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    for source in sources:
        source.close()
    shutil.rmtree(root)

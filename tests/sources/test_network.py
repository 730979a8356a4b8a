from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from otelperf.errors import SourceAbsent, SourceFailed, SourceFlawed
from otelperf.readings import Reading
from otelperf.sources.network import (
    Chosen,
    Counters,
    Network,
    interfaces,
    parse_established,
    parse_row,
    parse_time_wait,
    parse_udp,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOOT = 1_700_000_000_000_000_000


def names(readings: list[Reading]) -> set[object]:
    """Return the names of the interfaces told."""
    return {
        reading.attributes["network.interface.name"]
        for reading in readings
        if "network.interface.name" in reading.attributes
    }


def connections(readings: list[Reading]) -> dict[object, object]:
    """Return the counts of connections by state; UDP has none."""
    return {
        reading.attributes.get("network.connection.state"): reading.value
        for reading in readings
        if reading.name == "system.network.connection.count"
    }


def test_an_interface_tells_both_directions(machine: Callable[[str], Path]) -> None:
    """Bytes, packets, errors, drops."""
    interface = {"network.interface.name": "eth0"}
    receive = {**interface, "network.io.direction": "receive"}
    transmit = {**interface, "network.io.direction": "transmit"}
    assert [
        Reading("system.network.io", 941_011_468, receive, BOOT),
        Reading("system.network.io", 3_660_873, transmit, BOOT),
        Reading("system.network.packet.count", 47_362, receive, BOOT),
        Reading("system.network.packet.count", 34_527, transmit, BOOT),
        Reading("system.network.errors", 1, receive, BOOT),
        Reading("system.network.errors", 3, transmit, BOOT),
        Reading("system.network.packet.dropped", 2, receive, BOOT),
        Reading("system.network.packet.dropped", 4, transmit, BOOT),
    ] == Network(str(machine("node"))).read(0)[:8]


def test_loopback_and_the_ends_of_containers_cables_are_left_out(machine: Callable[[str], Path]) -> None:
    """A name may hold a colon, and a number may follow it without a blank."""
    assert names(Network(str(machine("node"))).read(0)) == {"eth0", "eth0:1"}


def test_what_is_left_out_is_a_matter_of_globs(machine: Callable[[str], Path]) -> None:
    """None at all is possible."""
    root = str(machine("node"))
    assert names(Network(root, exclude=()).read(0)) == {"lo", "eth0", "eth0:1", "veth1a", "cali99", "lxc_health"}
    assert names(Network(root, exclude=["e*", "lo"]).read(0)) == {"veth1a", "cali99", "lxc_health"}


def test_connections_are_those_of_both_internet_protocols(machine: Callable[[str], Path]) -> None:
    """The TCP counts hold IPv6 already, the UDP ones do not."""
    assert connections(Network(str(machine("node"))).read(0)) == {"established": 17, "time_wait": 5, None: 5}


def test_a_kernel_without_ipv6_has_only_the_others(machine: Callable[[str], Path]) -> None:
    """There is no sockstat6."""
    assert connections(Network(str(machine("old"))).read(0)) == {"established": 4, "time_wait": 0, None: 1}


def test_without_counts_of_connections_traffic_is_told(machine: Callable[[str], Path]) -> None:
    """A sandbox may lack them: that is no fault."""
    root = machine("node")
    (root / "proc/1/net/snmp").unlink()
    readings = Network(str(root)).read(0)
    assert connections(readings) == {}
    assert names(readings) == {"eth0", "eth0:1"}


def test_odd_counts_of_connections_lose_no_traffic(machine: Callable[[str], Path]) -> None:
    """That is a fault, and is said."""
    root = machine("node")
    (root / "proc/1/net/sockstat").write_text("TCP: none\n")
    with pytest.raises(SourceFlawed, match="net/sockstat") as flawed:
        Network(str(root)).read(0)
    assert names(list(flawed.value.readings)) == {"eth0", "eth0:1"}


def test_an_interface_that_comes_is_told_and_one_that_goes_ends() -> None:
    """The others keep their attributes, the same objects."""
    chosen = Chosen(["lo"])
    before = dict(chosen.among(["lo", "eth0", "eth1"]))
    after = chosen.among(["lo", "eth0", "eth2"])
    assert after.keys() == {"eth0", "eth2"}
    assert before["eth0"] is after["eth0"]
    assert chosen.among(["lo", "eth0"]).keys() == {"eth0"}


def test_attributes_are_the_same_objects_each_time(machine: Callable[[str], Path]) -> None:
    """Identity makes the way to the gate cheap."""
    source = Network(str(machine("node")))
    first, second = source.read(0), source.read(0)
    assert [id(reading.attributes) for reading in first] == [id(reading.attributes) for reading in second]


def test_counters_reach_to_the_largest() -> None:
    """They are 64 bits wide."""
    row = b" 18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"
    assert parse_row(row) == (Counters(2**64 - 1, 2, 3, 4), Counters(9, 10, 11, 12))


@pytest.mark.parametrize("row", [b"", b"1 2 3", b"1 2 3 4 5 6 7 8 9 10 11 x", b" No statistics available."])
def test_odd_rows_are_a_failure(row: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="net/dev"):
        parse_row(row)


def test_no_interfaces_are_no_rows() -> None:
    """Only the header."""
    assert interfaces(b"Inter-| Receive\n face |bytes\n") == {}
    assert interfaces(b"") == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"Tcp: CurrEstab\n", b"Tcp: A B\nTcp: 1 2\n", b"Tcp: CurrEstab\nTcp: x\n", b"Tcp: A CurrEstab\nTcp:\n"],
)
def test_odd_snmp_is_a_failure(content: bytes) -> None:
    """The message names the file."""
    with pytest.raises(SourceFailed, match="net/snmp"):
        parse_established(content)


def test_odd_sockstat_is_a_failure() -> None:
    """UDPLITE is not UDP."""
    with pytest.raises(SourceFailed, match="net/sockstat"):
        parse_udp(b"UDPLITE: inuse 5\n")
    with pytest.raises(SourceFailed, match="net/sockstat"):
        parse_time_wait(b"TCP: inuse 5\nTCP6: tw 3\n")


def test_no_file_is_absence(tmp_path: Path) -> None:
    """Nothing is invented."""
    with pytest.raises(SourceAbsent):
        Network(str(tmp_path)).read(0)


def test_this_machine_agrees_with_psutil() -> None:
    """Read between two readings of psutil, each count lies between."""
    source = Network(exclude=())
    before = psutil.net_io_counters(pernic=True, nowrap=False)
    readings = source.read(0)
    after = psutil.net_io_counters(pernic=True, nowrap=False)
    source.close()
    fields = {
        ("system.network.io", "receive"): "bytes_recv",
        ("system.network.io", "transmit"): "bytes_sent",
        ("system.network.packet.count", "receive"): "packets_recv",
        ("system.network.packet.count", "transmit"): "packets_sent",
        ("system.network.errors", "receive"): "errin",
        ("system.network.errors", "transmit"): "errout",
        ("system.network.packet.dropped", "receive"): "dropin",
        ("system.network.packet.dropped", "transmit"): "dropout",
    }
    assert names(readings) == before.keys()
    for reading in readings:
        if field := fields.get((reading.name, str(reading.attributes.get("network.io.direction")))):
            name = str(reading.attributes["network.interface.name"])
            assert getattr(before[name], field) <= reading.value <= getattr(after[name], field)

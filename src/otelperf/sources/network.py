"""Network traffic and connections, from /proc/net."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING, NamedTuple

from otelperf.errors import SourceAbsent, SourceError, SourceFlawed
from otelperf.readings import Attributes, Reading
from otelperf.sources.procfs import File, boot_time, numbers, odd, text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

# Loopback is no traffic, and the host's ends of the containers' cables come and go with every pod.
EXCLUDED = ("lo", "veth*", "cali*", "lxc*")
ESTABLISHED: Attributes = {"network.transport": "tcp", "network.connection.state": "established"}
TIME_WAIT: Attributes = {"network.transport": "tcp", "network.connection.state": "time_wait"}
UDP: Attributes = {"network.transport": "udp"}
_HEADER_LINES = 2
_TIME_WAIT = re.compile(rb"^TCP:.* tw (\d{1,10})\b", re.MULTILINE)
_UDP = re.compile(rb"^UDP6?: inuse (\d{1,10})\b", re.MULTILINE)


class Counters(NamedTuple):
    """One direction of one interface."""

    bytes: int
    packets: int
    errors: int
    dropped: int


class Interface(NamedTuple):
    """The attributes of one interface."""

    receive: Attributes
    transmit: Attributes


def interfaces(content: bytes) -> dict[str, bytes]:
    """Parse net/dev into the row of each interface. Names may hold a colon, rows do not."""
    rows = (line.rpartition(b":") for line in content.splitlines()[_HEADER_LINES:])
    return {text(name.strip()): row for name, _, row in rows}


def parse_row(row: bytes) -> tuple[Counters, Counters]:
    """Parse an interface's row: what it received and what it sent."""
    columns = row.split()
    try:
        return Counters(*numbers(columns[0:4])), Counters(*numbers(columns[8:12]))
    except (ValueError, TypeError) as error:  # TypeError: too few columns
        raise odd("net/dev", row) from error


def parse_established(content: bytes) -> int:
    """Parse net/snmp, pairs of lines of names and values: the TCP connections of IPv4 and IPv6, also half-closed."""
    lines = [line.split() for line in content.splitlines() if line.startswith(b"Tcp: ")]
    try:
        names, values = lines
        (established,) = numbers([values[names.index(b"CurrEstab")]])
    except (ValueError, IndexError) as error:
        raise odd("net/snmp", content) from error
    return established


def parse_time_wait(content: bytes) -> int:
    """Parse net/sockstat: TCP connections of IPv4 and IPv6 that have ended and wait for stray packets."""
    found = _TIME_WAIT.search(content)
    if not found:
        raise odd("net/sockstat", content)
    return int(found[1])


def parse_udp(content: bytes) -> int:
    """Parse net/sockstat or net/sockstat6: UDP sockets."""
    found = _UDP.search(content)
    if not found:
        raise odd("net/sockstat", content)
    return int(found[1])


class Chosen:
    """The interfaces but those that match *exclude*, each with its attributes."""

    def __init__(self, exclude: Sequence[str]) -> None:
        self._excluded = re.compile("|".join(map(translate, exclude)) or r"(?!)")
        self._names: frozenset[str] = frozenset()
        self._chosen: dict[str, Interface] = {}

    def among(self, names: Collection[str]) -> dict[str, Interface]:
        """Return those of *names* that are wanted, the same objects as long as the names are the same."""
        if len(names) != len(self._names) or not self._names.issuperset(names):
            self._chosen = {
                name: self._chosen.get(name) or _interface(name) for name in names if not self._excluded.match(name)
            }
            self._names = frozenset(names)
        return self._chosen


def _interface(name: str) -> Interface:
    return Interface(
        receive={"network.interface.name": name, "network.io.direction": "receive"},
        transmit={"network.interface.name": name, "network.io.direction": "transmit"},
    )


def told(interface: Interface, received: Counters, sent: Counters, start: int | None) -> tuple[Reading, ...]:
    """Return what is told about one interface."""
    receive, transmit = interface
    return (
        Reading("system.network.io", received.bytes, receive, start),
        Reading("system.network.io", sent.bytes, transmit, start),
        Reading("system.network.packet.count", received.packets, receive, start),
        Reading("system.network.packet.count", sent.packets, transmit, start),
        Reading("system.network.errors", received.errors, receive, start),
        Reading("system.network.errors", sent.errors, transmit, start),
        Reading("system.network.packet.dropped", received.dropped, receive, start),
        Reading("system.network.packet.dropped", sent.dropped, transmit, start),
    )


class Network:
    """Read the traffic of the interfaces but those that match *exclude*, and how many connections there are.

    The kernel's own counts are read: walking the sockets takes milliseconds where there are thousands.
    """

    name = "network"
    entity = "host"

    def __init__(self, root: str = "/", exclude: Sequence[str] = EXCLUDED) -> None:
        # /proc/net is the network of whoever reads; the host's is that of its first process.
        net = "proc/net" if root == "/" else "proc/1/net"
        self._dev = File(root, f"{net}/dev")
        self._snmp = File(root, f"{net}/snmp")
        self._sockstat = File(root, f"{net}/sockstat")
        self._sockstat6 = File(root, f"{net}/sockstat6")
        self._start = boot_time(root)
        self._chosen = Chosen(exclude)

    def read(self, now: int) -> list[Reading]:
        """Read net/dev, then the counts of connections; without these the rest still stands."""
        readings = self._traffic()
        try:
            readings += self._connections()
        except SourceAbsent:
            pass
        except SourceError as error:
            raise SourceFlawed(str(error), readings) from error
        return readings

    def close(self) -> None:
        """Close the files."""
        for file in (self._dev, self._snmp, self._sockstat, self._sockstat6):
            file.close()

    def _traffic(self) -> list[Reading]:
        rows = interfaces(self._dev.read())
        readings: list[Reading] = []
        for name, interface in self._chosen.among(rows).items():
            readings += told(interface, *parse_row(rows[name]), self._start)
        return readings

    def _connections(self) -> list[Reading]:
        sockstat = self._sockstat.read()
        return [
            Reading("system.network.connection.count", parse_established(self._snmp.read()), ESTABLISHED),
            Reading("system.network.connection.count", parse_time_wait(sockstat), TIME_WAIT),
            Reading("system.network.connection.count", parse_udp(sockstat) + self._udp6(), UDP),
        ]

    def _udp6(self) -> int:
        try:
            return parse_udp(self._sockstat6.read())
        except SourceAbsent:  # a kernel without IPv6
            return 0

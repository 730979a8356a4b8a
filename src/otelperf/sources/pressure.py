"""How long tasks waited for CPU, memory and I/O, from /proc/pressure (PSI)."""

from __future__ import annotations

import re
from typing import NamedTuple

from otelperf.readings import Attributes, Reading
from otelperf.sources.procfs import File, boot_time, odd

_LINE = re.compile(rb"(some|full) avg10=(\d{1,3}\.\d\d) .*?total=(\d{1,20})(?:\n|$)")


class Stall(NamedTuple):
    """The share of the last 10 s in which tasks waited (0 to 1), and the seconds since the machine started."""

    share: float
    seconds: float


def parse(content: bytes) -> dict[str, Stall]:
    """Parse a pressure file: some and full. https://docs.kernel.org/accounting/psi.html."""
    found = _LINE.findall(content)
    if not found:
        raise odd("/proc/pressure", content)
    return {kind.decode(): Stall(float(share) / 100, int(total) / 1e6) for kind, share, total in found}


class Pressure:
    """Read what the kernel keeps of each resource."""

    name = "pressure"
    entity = "host"

    def __init__(self, root: str = "/") -> None:
        self._start = boot_time(root)
        self._files = tuple(
            (File(root, f"proc/pressure/{resource}"), _kinds(resource)) for resource in ("cpu", "memory", "io")
        )

    def read(self, now: int) -> list[Reading]:
        """Read the pressure files. A kernel built without PSI has none; one booted with psi=0 refuses to read them."""
        readings: list[Reading] = []
        for file, kinds in self._files:
            for kind, stall in parse(file.read()).items():
                if attributes := kinds.get(kind):
                    readings.append(Reading("otelperf.system.pressure.time", stall.seconds, attributes, self._start))
                    readings.append(Reading("otelperf.system.pressure.utilization", stall.share, attributes))
        return readings

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._files:
            file.close()


def _kinds(resource: str) -> dict[str, Attributes]:
    """Return the attributes by kind. All tasks cannot wait for the CPU at once: there, full is always zero."""
    kinds = ("some",) if resource == "cpu" else ("some", "full")
    return {kind: {"otelperf.pressure.resource": resource, "otelperf.pressure.kind": kind} for kind in kinds}

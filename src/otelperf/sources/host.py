"""The sources of the machine and of this process: the list of them.

A source that can wait for ever (for a mount whose server is gone) says so by ``blocking = True``: it takes a thread of
its own.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from otelperf.sources import portable
from otelperf.sources.cpu import Cpu
from otelperf.sources.disk import Disk
from otelperf.sources.filesystem import Filesystem
from otelperf.sources.load import Load
from otelperf.sources.memory import Memory
from otelperf.sources.network import EXCLUDED, Network
from otelperf.sources.paging import Paging
from otelperf.sources.pressure import Pressure
from otelperf.sources.process import Process
from otelperf.sources.uptime import Uptime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otelperf.readings import Source


def host_sources(root: str = "/", *, per_logical: bool = True, exclude: Sequence[str] = EXCLUDED) -> tuple[Source, ...]:
    """Return the sources of the host whose /proc and /sys are under *root*.

    *per_logical*: CPU time for each logical CPU rather than for all together. *exclude*: globs of network interfaces.
    """
    if sys.platform != "linux":
        return portable.sources(per_logical=per_logical, exclude=exclude)
    return (
        Cpu(root, per_logical=per_logical),
        Load(root),
        Memory(root),
        Paging(root),
        Disk(root),
        Filesystem(root),
        Network(root, exclude),
        Pressure(root),
        Uptime(root),
    )


def agent_source() -> Source:
    """Return the source of the agent's own process."""
    return Process() if sys.platform == "linux" else portable.agent()

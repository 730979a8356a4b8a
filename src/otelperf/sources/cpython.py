"""The Python runtime of this process: what its garbage collector did."""

from __future__ import annotations

import gc

from otelperf.readings import Attributes, Reading

_GENERATION: tuple[Attributes, ...] = tuple({"cpython.gc.generation": generation} for generation in range(3))


class CPython:
    """Read ``gc.get_stats()``, which costs a microsecond."""

    name = "cpython"

    def __init__(self, entity: str) -> None:
        self.entity = entity

    def read(self, now: int) -> list[Reading]:
        """Read the counts since the interpreter started; when that was is not known here."""
        return [
            Reading(name, stats[key], attributes)
            for stats, attributes in zip(gc.get_stats(), _GENERATION, strict=False)
            for name, key in (
                ("cpython.gc.collections", "collections"),
                ("cpython.gc.collected_objects", "collected"),
                ("cpython.gc.uncollectable_objects", "uncollectable"),
            )
        ]

    def close(self) -> None:
        """Nothing is kept open."""

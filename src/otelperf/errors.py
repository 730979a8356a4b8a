"""What can go wrong, as types.

OtelperfError            shown to the user as one line, never as a traceback
├── ConfigError          a setting that cannot be used
└── SourceError          a source could not give what it should
    ├── SourceAbsent     this machine has nothing of the kind: no fault
    ├── SourceFailed     this read failed; what was read before stays, at its old time
    └── SourceFlawed     the reading is whole, but something in it was odd
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otelperf.readings import Reading


class OtelperfError(Exception):
    """Say what is wrong, which value, and what to do."""


class ConfigError(OtelperfError):
    """A setting that cannot be used."""


class SourceError(OtelperfError):
    """A source could not give what it should; *readings* are those it can still vouch for."""

    def __init__(self, message: str, readings: Sequence[Reading] = ()) -> None:
        super().__init__(message)
        self.readings = tuple(readings)


class SourceAbsent(SourceError):
    """The machine has nothing of the kind (no pressure files, no swap): nothing is published and nothing is wrong."""


class SourceFailed(SourceError):
    """The read failed. *readings* replace their namesakes; the rest stays as it was read, at its old time."""


class SourceFlawed(SourceError):
    """*readings* are complete, and the message says what in the input could not be used."""

"""What all who ask share: how long they wait, whose clock an answer tells, and what of it may be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from otelperf.connection import Answer, without_login

if TYPE_CHECKING:
    from otelperf.config import Settings

TIMEOUT = 5.0


class Offset(NamedTuple):
    """How far another clock is ahead of ours in seconds: at least *low*, at most *high*."""

    low: float
    high: float

    @property
    def sure(self) -> float:
        """The part that no rounding and no travel time explains."""
        return self.low if self.low > 0 else min(self.high, 0.0)


def date_offset(date: str | None, sent: float, received: float) -> Offset | None:
    """Read a Date header, which tells whole seconds."""
    from email.utils import parsedate_to_datetime

    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    return Offset(theirs - received, theirs + 1.0 - sent)


def answered(answer: Answer) -> str:
    """Tell the status and the beginning of what was answered."""
    body = " ".join(answer.body[:200].decode(errors="replace").split())
    return f"HTTP {answer.status} {''.join(each for each in body if each.isprintable())}".rstrip()


def shown_endpoint(settings: Settings) -> str:
    """Return the endpoint's URL without what must not be shown."""
    return without_login(settings.export.endpoint)[0]


def without_password(settings: Settings, text: str) -> str:
    """Keep a password that the endpoint's URL carries out of a message."""
    return text.replace(settings.export.endpoint, shown_endpoint(settings))

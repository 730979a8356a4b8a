"""Which calls are kept and how many each stands for: keys and times in, verdicts out.

A *kind* is what calls have in common: name, span kind and some attributes of few values. Each kind has two *tallies*, of calls
that went well and of calls that failed, so that counts rebuild by outcome too. A call that is not kept is *owed*: the next
one that is kept stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import random
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

SECOND = 1_000_000_000
_MINUTE = 60 * SECOND
Key = tuple[Any, ...]  # name, span kind, attributes


class Tally:
    """Calls that are owed: how many, since when, and the spans of the newest, its root last."""

    __slots__ = ("newest", "owed", "since")

    def __init__(self) -> None:
        self.owed = 0
        self.since = 0
        self.newest: tuple[ReadableSpan, ...] = ()

    def owe(self, spans: tuple[ReadableSpan, ...], now: int) -> None:
        """Count one more call that is not kept."""
        if not self.owed:
            self.since = now
        self.owed += 1
        self.newest = spans

    def pay(self) -> int:
        """Return how many calls are owed, and owe none."""
        owed, self.owed, self.newest = self.owed, 0, ()
        return owed


class Kind:
    """What is remembered of a kind: when one was kept last, which latencies were, and what is owed."""

    __slots__ = ("errors", "errors_since", "failed", "kept", "latencies", "used", "well")

    def __init__(self) -> None:
        self.well = Tally()
        self.failed = Tally()
        self.kept: int | None = None
        self.used = 0
        self.latencies: dict[int, int] = {}
        self.errors = 0
        self.errors_since = -_MINUTE

    def tally(self, *, failed: bool) -> Tally:
        return self.failed if failed else self.well


class Terms(NamedTuple):
    """Times in ns; *chance* is a share of the calls, *errors* a number a minute and kind."""

    heartbeat: int
    latency_memory: int
    chance: float
    errors: float
    most: int


class Kinds:
    """All kinds. Calls of kinds beyond ``terms.most`` are counted together, as *other*."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._kinds: dict[Key, Kind] = {}
        self.other = Kind()
        # One that is neither due, nor has latencies lately kept, nor owes anything, is as good as new.
        self._idle = max(terms.heartbeat, terms.latency_memory, _MINUTE)

    def __len__(self) -> int:
        return len(self._kinds)

    def find(self, key: Key, now: int) -> Kind:
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= self._terms.most:
                return self.other
            kind = self._kinds[key] = Kind()
        kind.used = now
        return kind

    def head(self, key: Key, now: int) -> str:
        """Say why a call that begins is kept, or nothing."""
        kind = self.find(key, now)
        if kind.kept is None:
            reason = "new"
        elif now - kind.kept >= self._terms.heartbeat:
            reason = "due"
        elif random() < self._terms.chance:  # noqa: S311 # no secret
            return "chance"
        else:
            return ""
        kind.kept = now
        return reason

    def unusual(self, kind: Kind, duration: int, now: int) -> bool:
        """Say whether no call of this latency (from a power of two ns up to the next) was kept lately; then it is kept now."""
        bucket = duration.bit_length() if duration > 0 else 0
        kept = kind.latencies.get(bucket)
        if kept is not None and now - kept < self._terms.latency_memory:
            return False
        kind.latencies[bucket] = now
        return True

    def may_fail(self, kind: Kind, now: int) -> bool:
        """Say whether one more failure of the kind is kept this minute."""
        if now - kind.errors_since >= _MINUTE:
            kind.errors_since, kind.errors = now, 0
        kind.errors += 1
        return kind.errors <= self._terms.errors

    def overdue(self, now: int) -> list[Tally]:
        """Return the tallies that have owed for a heartbeat, and forget kinds that nobody calls any more.

        Where a call kept at its head is under way, it will pay; that is waited for, up to another heartbeat.
        """
        due = []
        heartbeat = self._terms.heartbeat
        for key, kind in [*self._kinds.items(), (None, self.other)]:
            for tally in (kind.well, kind.failed):
                age = now - tally.since
                payer = kind.kept is not None and kind.kept >= tally.since
                if tally.owed and age >= (2 * heartbeat if payer else heartbeat):
                    due.append(tally)
            if key is not None and now - kind.used >= self._idle and not (kind.well.owed or kind.failed.owed):
                del self._kinds[key]
        return due

    def owing(self) -> Iterator[Tally]:
        """Return the tallies that owe."""
        for kind in [*self._kinds.values(), self.other]:
            for tally in (kind.well, kind.failed):
                if tally.owed:
                    yield tally

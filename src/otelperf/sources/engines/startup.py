"""How long a server's start took, by phases, as seen from outside."""

from __future__ import annotations

_SECOND = 1e9


class Startup:
    """Takes one look after the other; each time is as late as two looks are apart.

    A phase has a duration only if it was seen to begin and to end: a server that was ready at the first look has none.
    """

    def __init__(self) -> None:
        self._refused = self._loaded = self._was_ready = False
        self._listening: int | None = None
        self._ready: int | None = None

    def look(self, now: int, state: str) -> None:
        """Note what the server was at *now* (Unix ns): ``down``, ``loading``, ``ready``; anything else says nothing."""
        if state == "down":
            self._refused, self._loaded, self._was_ready = True, False, False
            self._listening = self._ready = None
        elif state in {"loading", "ready"} and not self._was_ready:
            if self._listening is None and self._refused:
                self._listening = now
            if state == "loading":
                self._loaded = True
            else:
                self._ready = now if self._refused or self._loaded else None
                self._was_ready = True

    def phases(self, started: int | None) -> dict[str, float]:
        """Return the seconds of each phase for a process that *started* then (Unix ns)."""
        phases = {
            "process_to_listening": (started, self._listening),
            "listening_to_ready": (self._listening, self._ready if self._loaded else None),
            "process_to_ready": (started, self._ready),
        }
        return {
            phase: (end - begin) / _SECOND
            for phase, (begin, end) in phases.items()
            if begin is not None and end is not None and end >= begin
        }

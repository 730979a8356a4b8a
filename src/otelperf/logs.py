"""The agent's own log on standard error: a constant event, then fields.

``log = logs.Log("otelperf.export"); log.warning("collector unreachable", endpoint=url)``. Programs that have set up the
standard library's logging themselves see the same records in their own form.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import isfinite
from typing import Any, Literal

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/+@%*,;()[]{}<>!#$&'^`|~?")
_MOST_KEYS = 1000
_ERRNO = re.compile(r"\[(?:Errno|WinError) -?\d+\] ")  # a number that says what the words after it say


class Event:
    """A log message: an event that never varies, and fields that do."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={_word(value)}" for key, value in self.fields.items())])


class Repeats:
    """Let a trouble through once per *every* seconds, and count those held back."""

    def __init__(self, every: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        # Reentrant: a garbage collection may end what has a trouble to tell anywhere, in here too.
        self._lock = threading.RLock()
        self._every = every
        self._clock = clock
        self._seen: dict[
            tuple[Any, ...], tuple[float, int, int]
        ] = {}  # when one was let through, its problem, how many held

    def admit(self, key: tuple[Any, ...], problem: object = None) -> int | None:
        """Return how often the same *problem* was let through last and held back since, or None to hold this one too."""
        with self._lock:
            now, this = self._clock(), hash(problem)
            last, told, held = self._seen.get(key, (None, this, 0))
            if last is not None and now - last < self._every:
                self._seen[key] = (last, told, held + (this == told))
                return None
            self._make_room(now)
            self._seen[key] = (now, this, 0)
            return held if this == told else 0

    def renew_lock(self) -> None:
        """In a forked child: a thread of the parent's may have held it."""
        self._lock = threading.RLock()

    def _make_room(self, now: float) -> None:
        if len(self._seen) < _MOST_KEYS:
            return
        self._seen = {key: seen for key, seen in self._seen.items() if now - seen[0] < self._every}
        if len(self._seen) >= _MOST_KEYS:
            self._seen.clear()


_REPEATS = Repeats()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_REPEATS.renew_lock)


class Log:
    """Log events with fields under *name*."""

    __slots__ = ("_logger", "_repeats")

    def __init__(self, name: str, repeats: Repeats = _REPEATS) -> None:
        self._logger = logging.getLogger(name)
        self._repeats = repeats

    def debug(self, event: str, /, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def trouble(self, event: str, /, *, by: tuple[str, ...] = (), apart: str = "", **fields: Any) -> bool:
        """Warn at most once a minute per event, values of the fields in *by*, and *apart*. Return whether it was told.

        ``repeated`` counts those with the same problem that were held back since it was told last.
        """
        key = (self._logger.name, event, apart, *(_plain(fields.get(name)) for name in by))
        held = self._repeats.admit(key, _plain(fields.get("problem")))
        if held is None:
            return False
        self._log(logging.WARNING, event, {**fields, "repeated": held} if held else fields)
        return True

    def _log(self, level: int, event: str, fields: Mapping[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            with suppress(Exception):  # a handler of the application's
                # Python's last resort, for a program without logging, prints nothing of who speaks.
                told = event if self._logger.hasHandlers() else f"otelperf: {event}"
                worded = {key: _ERRNO.sub("", each) if isinstance(each, str) else each for key, each in fields.items()}
                self._logger.log(level, Event(told, worded), stacklevel=3)


def configure(level: str = "info", form: Literal["logfmt", "json"] = "logfmt", stream: Any = None) -> None:
    """Send every log of this process to standard error in one form; other libraries speak from warning on."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(handler)
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(_Formatter(form))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("otelperf").setLevel(level.upper())


class _Handler(logging.StreamHandler[Any]):
    """A stream that may be gone: a lost line must not harm the agent."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 # logging's own name
        """Say nothing: the place to say it is the one that failed."""

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError):
            self.handleError(logging.makeLogRecord({}))


class _Formatter(logging.Formatter):
    def __init__(self, form: Literal["logfmt", "json"]) -> None:
        super().__init__()
        self._write = _json if form == "json" else _logfmt

    def format(self, record: logging.LogRecord) -> str:
        return self._write(_fields(record))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return a line's fields; those of the line itself win over an event's of the same name."""
    message = record.msg
    event, fields = (message.name, message.fields) if isinstance(message, Event) else (record.getMessage(), {})
    line = {"ts": _utc(record.created), "level": record.levelname.lower(), "event": event, "logger": record.name}
    line |= {key: value for key, value in fields.items() if key not in line}
    if record.exc_info and record.exc_info[0] is not None:
        line["exception"] = logging.Formatter().formatException(record.exc_info)
    return line


def _utc(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def _logfmt(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_word(value)}" for key, value in fields.items())


def _word(value: Any) -> str:
    """Write one value of logfmt, in quotes where a reader of lines would stumble."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else _string(value)
    return text if text and _BARE.issuperset(text) else json.dumps(text, ensure_ascii=False)


def _json(fields: Mapping[str, Any]) -> str:
    return json.dumps({key: _plain(value) for key, value in fields.items()}, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return str(value)  # JSON has no NaN
    return value if value is None or isinstance(value, (str, bool, int, float)) else _string(value)


def _string(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 # whatever it is, the log must not be what breaks
        return f"<{type(value).__name__}>"

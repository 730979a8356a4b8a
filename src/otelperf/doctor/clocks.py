"""Checks of time: whether the clocks agree, and whether Prometheus remembers from one heartbeat to the next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from otelperf import catalog
from otelperf.config_values import show_duration
from otelperf.doctor.asking import Offset
from otelperf.doctor.backend import Backend, unread
from otelperf.doctor.finding import Finding

if TYPE_CHECKING:
    from otelperf.config import Settings

REFUSED_BEYOND = 600.0  # s; Prometheus takes no points that lie further in the future

_CLOCK_LIMIT = 1.0


def check_clock(offsets: Mapping[str, Offset]) -> Finding:
    """Compare our clock with the others' (*offsets* by whose clock it is)."""
    if not offsets:
        return Finding("clock", "skipped", "no answer told the time")
    whose, worst = max(offsets.items(), key=lambda each: abs(each[1].sure))
    if abs(worst.sure) <= _CLOCK_LIMIT:
        return Finding(
            "clock", "ok", f"no difference over {_CLOCK_LIMIT:g} s seen to the clock of {' and '.join(offsets)}"
        )
    if worst.sure < 0:
        what = "points lie in the future: queries and alerts see them late by that much"
        what += ", and Prometheus refuses those more than 10 min ahead" if worst.sure < -REFUSED_BEYOND else ""
        seen = f"our clock is {-worst.sure:.1f} s ahead of that of {whose}: {what}"
    else:
        seen = f"our clock is {worst.sure:.1f} s behind that of {whose}: each point looks that old, and alerts are late by it"
    return Finding("clock", "warning", seen, "synchronise the clocks of both machines (chrony, systemd-timesyncd)")


def check_lookback(settings: Settings, backend: Backend | None) -> Finding:
    """Check that a series is sent again before Prometheus forgets it."""
    if backend is None or backend.flags is None:
        return Finding(
            "lookback", "skipped", unread(settings) if backend is None else "Prometheus' flags cannot be read"
        )
    text = backend.flags.get("query.lookback-delta", "")
    lookback = _seconds(text)
    if lookback is None:
        return Finding("lookback", "skipped", "Prometheus does not tell query.lookback-delta")
    heartbeat = _longest_heartbeat(settings)
    seen = f"query.lookback-delta is {text}, the longest heartbeat {show_duration(heartbeat)}"
    least = show_duration(2 * heartbeat)
    cure = f"start Prometheus with --query.lookback-delta={least} or more (default 5m), or set a shorter gate.heartbeat"
    if lookback <= heartbeat:
        return Finding("lookback", "failed", f"{seen}: a series that does not move has gaps between heartbeats", cure)
    if lookback < 2 * heartbeat:
        return Finding("lookback", "warning", f"{seen}: one lost request makes gaps", cure)
    return Finding("lookback", "ok", seen)


def _longest_heartbeat(settings: Settings) -> float:
    users = (rule.changes.get("heartbeat") for rule in settings.gate.rules)
    ours = (rule.heartbeat for rule in catalog.rules(settings.gate.heartbeat).values())
    return max(settings.gate.heartbeat, *(float(each) for each in (*users, *ours) if each is not None))


def _seconds(text: str) -> float | None:
    """Read a duration of Prometheus, such as 1h30m."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
    parts = re.findall(r"(\d+)(ms|[smhdwy])", text)
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return float(sum(int(number) * units[unit] for number, unit in parts))

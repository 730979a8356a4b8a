"""The embedded default: what the gate lets out, one readable line each, and now and then how much it held back."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData, NumberDataPoint

from otelperf.gate.metrics import Emission, GateStats
from otelperf.logs import Log

if TYPE_CHECKING:
    from otelperf.transitions import Transition

_log = Log("otelperf.console")

_SUMMARY_EVERY = 5_000_000_000
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi")
_BRACES = re.compile(r"\{.*?\}")
_DECIMAL = ("", "k", "M", "G", "T", "P")


class NullExporter(MetricExporter):
    """Takes everything and does nothing: the console listens to the gate itself, which knows old values and reasons."""

    flags_marks = True

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass


class Console:
    """Print emissions to *stream* as they happen."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout
        self._summary = 0
        self._seen = self._emitted = 0
        self.closed = False  # nobody reads any more
        self._ended: int | None = None  # how many streams ended at the stop; None before it

    def begin(self) -> None:
        """Say how to read what follows."""
        self._print(f"{'time':<10}  {'metric':<68} {'old → new':<26} why")
        self._print(
            "why: first sight, and beginning: the 0 before it · change past the delta · threshold · state · rate or quantile"
        )
        self._print(
            "misread, and previous: an earlier reading mends it · group: with another · reset · heartbeat · end (docs/gate.md)"
        )

    def emission(self, emission: Emission) -> None:
        """Print one line: time, metric, attributes, old → new, why."""
        if self._ended is not None and emission.reason == "end":
            self._ended += emission.new is None
            return
        name = _named(emission.name, emission.attributes or {})
        self._print(f"{_clock(emission.time)}  {name:<68} {_change(emission):<26} {emission.reason}")

    def transition(self, change: Transition) -> None:
        """Print one line: time, metric, attributes, old → new state, how long the old one was held."""
        name = _named(change.metric, change.attributes)
        states = f"{change.previous} → {change.new}"
        self._print(f"{_clock(change.at)}  {name:<68} {states:<26} span: after {change.duration:.3g} s")

    def stopping(self) -> None:
        """Everything ends now: count the ends rather than print a line for each."""
        self._ended = 0

    def stopped(self, now: int, stats: GateStats) -> None:
        """Say how many streams were ended, and what was held back in all."""
        share = stats.suppressed / stats.seen if stats.seen else 0.0
        self._print(
            f"{_clock(now)}  ── {self._ended} streams ended; held back {share:.1%} of {stats.seen} points in all"
        )

    def summary(self, now: int, stats: GateStats) -> None:
        """Every few seconds, say how much was held back since the last time."""
        if now - self._summary < _SUMMARY_EVERY:
            return
        emitted = stats.emitted.total()
        if self._summary and stats.seen > self._seen:
            points, sent = stats.seen - self._seen, emitted - self._emitted
            share = max(0.0, 1 - sent / points)
            self._print(
                f"{_clock(now)}  ── held back {share:.1%} in {(now - self._summary) / 1e9:.0f} s: {sent} of {points} points sent, "
                f"{stats.streams} streams"
            )
        self._summary, self._seen, self._emitted = now, stats.seen, emitted

    def _print(self, line: str) -> None:
        try:
            try:
                print(line, file=self._stream, flush=True)
            except UnicodeEncodeError:  # a terminal that knows no arrows
                plain = line.replace("→", "->").replace("──", "--").replace("·", "|")
                print(plain.encode("ascii", "replace").decode(), file=self._stream, flush=True)
        except (OSError, ValueError):
            self.closed = True
            _log.trouble("console closed", problem="standard output takes no more lines")


def _clock(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 100_000_000}"


def _change(emission: Emission) -> str:
    """Say old → new; of a counter, how much it grew."""
    old, new, unit = emission.old, emission.new, emission.unit
    if new is None:
        return "ended" if old is None else f"{amount(old, unit)} → ended"
    if old is None or emission.reason == "previous":
        return amount(new, unit)
    if emission.shape == "monotonic" and isinstance(old, NumberDataPoint) and isinstance(new, NumberDataPoint):
        return f"{amount(old, unit)} → +{written(new.value - old.value, unit)}"
    before, after = amount(old, unit), amount(new, unit)
    return after if before == after else f"{before} → {after}"


def _named(name: str, attributes: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{_short(key)}={value}" for key, value in attributes.items())
    return f"{name}{{{shown}}}" if shown else name


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def amount(point: Any, unit: str) -> str:
    """Write a point's value with its unit."""
    return written(point.value, unit) if isinstance(point, NumberDataPoint) else f"{point.count} recorded"


def written(value: float, unit: str) -> str:
    """Write a value with its unit, at the precision a person reads. Units in braces say what the name says: left out."""
    if not math.isfinite(value):
        return f"{value}"
    if unit == "By":
        return _scaled(value, 1024, _BINARY, "B")
    if unit == "1":
        return f"{value:.3g}"
    return _scaled(value, 1000, _DECIMAL, _BRACES.sub("", unit)).rstrip()


def _scaled(value: float, base: int, prefixes: tuple[str, ...], unit: str) -> str:
    if unit == "s" or abs(value) < base:
        return f"{value:g} {unit}" if isinstance(value, int) else f"{value:.6g} {unit}"
    size = float(value)
    for prefix in prefixes:
        if abs(size) < base or prefix == prefixes[-1]:
            if base == 1000:
                return f"{size:.4g} {prefix} {unit}".rstrip()
            digits = 3 if abs(size) < 999.5 else 4  # below the next binary prefix there are 1000 to 1023
            return f"{size:.{digits}g} {prefix}{unit}"
        size /= base
    return f"{value:g} {unit}"

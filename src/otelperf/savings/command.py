"""The steps of ``otelperf savings``: read, compare, show; with a progress bar where somebody looks at one."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from otelperf.connection import without_login
from otelperf.errors import OtelperfError
from otelperf.savings import options, samples
from otelperf.savings.compare import Options, compare
from otelperf.savings.prometheus import Prometheus
from otelperf.savings.recording import Recording, visible
from otelperf.savings.report import Report, as_json, show
from otelperf.savings.streams import Stream, streams

_WIDTH = 100  # where the output is no terminal
_LEAST_WIDTH = 40  # of a terminal that is narrower, lines are broken by itself


def run(arguments: argparse.Namespace) -> int:
    """Read, compare, print."""
    try:
        return _run(arguments)
    except OtelperfError as error:
        error.args = (visible(str(error)),)  # in it are words of servers and of files
        raise


def _run(arguments: argparse.Namespace) -> int:
    options.check(arguments)
    compared = Options(arguments.delta, arguments.scrape, arguments.window, arguments.heartbeat)
    recording = Recording(arguments.max_samples)
    with _progress() as bar:
        origin = _read_file(arguments, recording, bar) if arguments.file else _read_url(arguments, recording, bar)
        found = _streams(recording, origin)
        work = sum(len(stream.times) * stream.cost for stream in found) * 2  # replayed, then scored
        with bar("comparing", work) as advance:
            comparison = compare(found, compared, advance)
    notes = [f"{what[0].upper()}{what[1:]}: {count:,}." for what, count in recording.notes.items()]
    report = Report(comparison, compared, origin, arguments.price, notes)
    if arguments.json:
        print(as_json(report))
    else:
        console = _console()
        with console.capture() as shown:  # printed by Python itself: cli.py knows what to do when nobody reads on
            show(report, console)
        print(_encodable(shown.get()), end="")
    return 0


def _streams(recording: Recording, origin: dict[str, Any]) -> list[Stream]:
    found = streams(recording, recording.finish())
    if not found:
        told = "".join(f"; {what}: {count}" for what, count in recording.notes.items())
        where = origin.get("file") or f"{origin['url']} for {' '.join(origin['selectors'])} in that time"
        raise OtelperfError(f"no samples in {where}{told}")
    return found


Bar = Callable[[str, int | None], Any]


@contextmanager
def _progress() -> Iterator[Bar]:
    """Yield what makes a bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        @contextmanager
        def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.advance(task, done)
            progress.update(task, total=1, completed=1)

        yield bar


def _read_file(arguments: argparse.Namespace, recording: Recording, bar: Bar) -> dict[str, Any]:
    with bar("reading", _size(arguments.file)) as advance:
        samples.read(arguments.file, recording, advance)
    return {"file": "standard input" if arguments.file == samples.STDIN else arguments.file}


def _size(name: str) -> int | None:
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _read_url(arguments: argparse.Namespace, recording: Recording, bar: Bar) -> dict[str, Any]:
    start, end = options.time_range(arguments)
    url, selectors = without_login(arguments.url)[0], arguments.selector
    prometheus = Prometheus(arguments.url, options.headers(arguments), options.tls(arguments), arguments.timeout)
    try:
        prometheus.series(selectors, start, end, arguments.max_series)
        recording.types = prometheus.types()
        with bar("reading", (end - start) * len(selectors)) as advance:
            prometheus.read(selectors, start, end, recording, advance)
    finally:
        prometheus.close()
    return {"url": url, "selectors": selectors, "start": start / 1000, "end": end / 1000}


def _console() -> Console:
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _WIDTH
    console = Console(width=width, highlight=False, soft_wrap=False)
    console.width = max(console.width, _LEAST_WIDTH)
    return console


def _encodable(text: str) -> str:
    """Write as Python would what standard output's encoding has not, such as ASCII's."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)

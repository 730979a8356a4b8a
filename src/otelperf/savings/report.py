"""The comparison as tables for a person and as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from otelperf.savings.compare import Comparison, Metric, Options, Tally, Way
from otelperf.savings.recording import visible
from otelperf.savings.score import Errors
from otelperf.savings.streams import Kind

MONTH = 30 * 86400  # s
_P99 = 0.99
_NONE = "-"
_NAME_WIDTH = 24  # what the name's column has at least
_ENDLESS = 10**6  # columns: a table measured for it is as wide as it would like to be
_KINDS: tuple[Kind, ...] = ("gauge", "counter", "histogram")


class Report(NamedTuple):
    """All that is told. *origin* is where the samples are from, *price* that of a million samples, in any currency."""

    comparison: Comparison
    options: Options
    origin: dict[str, Any]
    price: float | None
    notes: Sequence[str]

    def a_month(self, samples: int) -> float:
        """Return how many samples that would be in 30 days."""
        return samples / self.comparison.seconds * MONTH

    def cost(self, samples: int) -> float | None:
        """Return what they would cost in 30 days."""
        return None if self.price is None else self.a_month(samples) / 1e6 * self.price


def as_json(report: Report) -> str:
    """Render for a program. Errors and shares are fractions, times Unix seconds, all else has its unit in its key."""
    comparison, options = report.comparison, report.options
    found = {
        "origin": report.origin,
        "data": {
            "start": comparison.start / 1000,
            "end": comparison.end / 1000,
            "seconds": comparison.seconds,
            "interval_seconds": comparison.interval / 1000,
            "targets": comparison.targets,
            "series": comparison.series,
            **_amount(report, comparison.samples),
        },
        "rate_window_seconds": options.window,
        "heartbeat_seconds": options.heartbeat,
        "price_per_million_samples": report.price,
        "total": [
            {
                **_way(report, way, comparison.total(way), comparison.samples),
                "target_info": comparison.target_info.get(way, 0),
            }
            for way in options.ways
        ],
        "metrics": [
            {
                "metric": metric.name,
                "type": metric.kind,
                "type_is_known": metric.known,
                "rule": "catalogue" if metric.catalogue else "delta",
                "series": metric.series,
                "samples": metric.samples,
                "interval_seconds": _interval(metric),
                "ways": [_way(report, way, tally, metric.samples) for way, tally in metric.tallies.items()],
            }
            for metric in comparison.metrics
        ],
        "notes": list(report.notes),
    }
    return json.dumps(found, indent=2, allow_nan=False)


def _amount(report: Report, samples: int) -> dict[str, Any]:
    return {"samples": samples, "samples_a_month": round(report.a_month(samples)), "cost_a_month": report.cost(samples)}


def _way(report: Report, way: Way, tally: Tally, samples: int) -> dict[str, Any]:
    return {
        "delta": way.delta,
        "scrape_seconds": way.interval,
        **_amount(report, tally.samples),
        "share": tally.samples / samples,
        "is_all_data": tally.all_kept,
        "gauge_error": _errors(tally.held),
        "gauge_error_live": _errors(tally.live),
        "rate_error": _errors(tally.rates),
        "histogram_rate_error": _errors(tally.histograms),
        "rates_unanswered": tally.unanswered,
    }


def _errors(errors: Errors) -> dict[str, Any] | None:
    if not errors.count:
        return None
    return {"p99": errors.quantile(_P99), "worst": errors.worst, "readings": errors.count}


def _interval(metric: Metric) -> float:
    ordered = sorted(metric.intervals)
    return ordered[len(ordered) // 2] / 1000


def show(report: Report, console: Console) -> None:
    """Print a table by metric, the sums, and what there is to know about them; blocks where a table would be too wide."""
    comparison = report.comparison
    rows = _rows(report)
    table = _by_metric(report, rows)
    names = max(cell_len(text) for row in rows for text in (row.name, f"  {row.about}"))
    if _fits(table, console, max(0, names - _NAME_WIDTH)):
        console.print(table)
    else:
        _print_blocks(report, rows, console)
    console.print()
    totals = _totals(report)
    if _fits(totals, console):
        console.print(totals)
    else:
        _print_sums(report, console)
    console.print()
    count = f"{comparison.series:,} series of {_plural(comparison.targets, 'target')}"
    span = f"{_moment(comparison.start)} to {_moment(comparison.end)} ({_duration(comparison.seconds)})"
    lines = [
        f"{count}, {span}. A sample each {comparison.interval / 1000:g} s, as the median of the series.",
        *_explanations(report),
        *report.notes,
    ]
    for line in lines:
        console.print(Text(visible(line)))


def _fits(table: Table, console: Console, foldable: int = 0) -> bool:
    """Say whether the table can be shown whole; *foldable* is by how much it may be narrower than it would like."""
    wanted = Measurement.get(console, console.options.update(width=_ENDLESS), table).maximum
    return wanted - foldable <= console.width


class _Cell(NamedTuple):
    """What one way keeps of a metric, and its errors."""

    share: str
    errors: str = ""


class _Row(NamedTuple):
    """A metric, or several that have nothing to tell apart; texts as they are shown."""

    name: str
    about: str
    samples: str
    series: str
    cells: Sequence[_Cell]


def _rows(report: Report) -> list[_Row]:
    ways = report.options.ways
    moving = [metric for metric in report.comparison.metrics if _moves(metric)]
    still = [metric for metric in report.comparison.metrics if not _moves(metric)]
    rows = []
    for metric in moving:
        kind = metric.kind if metric.known else f"{metric.kind} (by its name)"
        rows.append(_row(visible(metric.name), f"{kind}{', own rule' if metric.catalogue else ''}", [metric], ways))
    if still:
        rows.append(_row(f"{_plural(len(still), 'metric')} without an error", "--json names them", still, ways))
    info = report.comparison.target_info
    counts = [_Cell(f"{info[way]:,}" if way in info else _NONE) for way in ways]
    rows.append(_Row("target_info", "comes with requests", _NONE, "", counts))
    return rows


def _row(name: str, about: str, metrics: Sequence[Metric], ways: Sequence[Way]) -> _Row:
    samples, series = (sum(each) for each in zip(*((metric.samples, metric.series) for metric in metrics), strict=True))
    return _Row(name, about, f"{samples:,}", f"{series:,} series", [_cell(metrics, way) for way in ways])


def _by_metric(report: Report, rows: Sequence[_Row]) -> Table:
    """Two lines a metric: how much is kept, and below it the 99th percentile and the worst of the errors."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True, show_edge=False, pad_edge=False)
    table.add_column("metric", overflow="fold", min_width=_NAME_WIDTH)
    table.add_column("samples", justify="right", no_wrap=True)
    for way in report.options.ways:
        table.add_column(_head(way), justify="right", no_wrap=True)
    for row in rows:
        cells = (_two_lines(cell.share, cell.errors) for cell in row.cells)
        table.add_row(_two_lines(row.name, f"  {row.about}"), _two_lines(row.samples, row.series), *cells)
    return table


def _two_lines(first: str, second: str) -> Text:
    return Text.assemble(first, "\n", (second, "dim"))


def _print_blocks(report: Report, rows: Sequence[_Row], console: Console) -> None:
    """Print one metric below the other, each with its ways in as many columns as there is room for."""
    ways = [_name(way) for way in report.options.ways]
    width = max(map(len, ways))
    shares = max(len(cell.share) for row in rows for cell in row.cells)
    errors = max(len(cell.errors) for row in rows for cell in row.cells)
    for row in rows:
        console.print(Text(row.name, overflow="fold"))
        amount = f": {row.samples} samples, {row.series}" if row.series else ""
        console.print(_indented(Text(f"{row.about}{amount}", style="dim")))
        cells = [
            Text.assemble(f"{way:{width}}  {cell.share:>{shares}}", (f"  {cell.errors:>{errors}}", "dim"))
            for way, cell in zip(ways, row.cells, strict=True)
        ]
        console.print(_indented(Columns(cells, padding=(0, 4, 0, 0), column_first=True)))


def _indented(shown: RenderableType) -> Padding:
    return Padding(shown, (0, 0, 0, 2), expand=False)


def _head(way: Way) -> str:
    return f"delta\n{_share(way.delta)}" if way.delta is not None else f"scrape\n{way.interval:g} s"


def _name(way: Way) -> str:
    return f"delta {_share(way.delta)}" if way.delta is not None else f"scrape each {way.interval:g} s"


def _moves(metric: Metric) -> bool:
    return any(tally.held.worst or tally.rates.worst or tally.histograms.worst for tally in metric.tallies.values())


def _cell(metrics: Sequence[Metric], way: Way) -> _Cell:
    """Return what is kept of the metrics, which are of one kind or never wrong."""
    tallies = [metric.tallies[way] for metric in metrics]
    if all(tally.all_kept for tally in tallies):
        return _Cell("= data")
    errors = _of_kind(tallies[0], metrics[0].kind)
    share = sum(tally.samples for tally in tallies) / sum(metric.samples for metric in metrics)
    return _Cell(_share(share), _both(errors))


def _both(errors: Errors) -> str:
    if not errors.count:
        return _NONE
    p99, worst = _share(errors.quantile(_P99)), _share(errors.worst)
    return f"{p99.removesuffix('%')}/{worst}"


def _of_kind(tally: Tally, kind: Kind) -> Errors:
    return {"gauge": tally.held, "counter": tally.rates, "histogram": tally.histograms}[kind]


class _Sum(NamedTuple):
    """One way to store, all metrics together; *errors* by kind, nothing where it is the data themselves."""

    way: str
    samples: int
    share: str
    errors: Sequence[str]
    same: bool


def _sums(report: Report, kinds: Sequence[Kind]) -> list[_Sum]:
    comparison = report.comparison
    nothing = [_NONE] * len(kinds)
    sums = [_Sum(f"the data, each {comparison.interval / 1000:g} s", comparison.samples, "100%", nothing, same=False)]
    for way in report.options.ways:
        tally = comparison.total(way)
        if tally.all_kept:
            sums.append(_Sum(_name(way), tally.samples, "= data", nothing, same=True))
        else:
            share = _share(tally.samples / comparison.samples)
            errors = [_both(_of_kind(tally, kind)) for kind in kinds]
            sums.append(_Sum(_name(way), tally.samples, share, errors, same=False))
    return sums


def _kinds(report: Report) -> list[Kind]:
    return [kind for kind in _KINDS if any(metric.kind == kind for metric in report.comparison.metrics)]


def _totals(report: Report) -> Table:
    """A line a way to store; errors of the kinds that there are."""
    kinds = _kinds(report)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True, show_edge=False, pad_edge=False)
    table.add_column("\nin all", no_wrap=True)
    for head in ("\nsamples", "of the\ndata", *(f"{kind}s\np99/worst" for kind in kinds)):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("samples\na month", justify="right", no_wrap=True)
    if report.price is not None:
        table.add_column("price\na month", justify="right", no_wrap=True)
    for each in _sums(report, kinds):
        month = [_large(report.a_month(each.samples)), *_price(report, each.samples)]
        style = "dim" if each.same else ""
        table.add_row(each.way, f"{each.samples:,}", each.share, *each.errors, *month, style=style)
    return table


def _print_sums(report: Report, console: Console) -> None:
    """Print what the table of sums has, a way below the other."""
    kinds = _kinds(report)
    console.print("in all")
    for each in _sums(report, kinds):
        price = "".join(f", price {price}" for price in _price(report, each.samples))
        of_data = each.share if each.share == "= data" else f"{each.share} of the data"
        month = f"a month {_large(report.a_month(each.samples))}{price}"
        lines = [f"{each.samples:,} samples, {of_data}; {month}"]
        if set(each.errors) != {_NONE}:
            told = (f"{kind}s {error}" for kind, error in zip(kinds, each.errors, strict=True) if error != _NONE)
            lines.append(f"p99/worst: {', '.join(told)}")
        console.print(Text(each.way))
        console.print(_indented(Text("\n".join(lines), style="dim")))


def _price(report: Report, samples: int) -> list[str]:
    cost = report.cost(samples)
    return [] if cost is None else [f"{cost:,.2f}"]


def _explanations(report: Report) -> list[str]:
    """Say how the numbers are meant, as far as they occur."""
    window = _duration(report.options.window)
    about = (
        "With each share stand the errors, 99th percentile/worst, as shares of the value; 100% is as good as no reading. "
        f"Gauges: what is stored at each instant of the data. Counters, and counts of histograms: rate()[{window}] as an alert "
        "reads it live."
    )
    lines = [about]
    totals = {way: report.comparison.total(way) for way in report.options.ways}
    waited = [way for way, tally in totals.items() if tally.live.worst > tally.held.worst]
    if waited:
        told = ", ".join(f"{_both(totals[way].live)} ({_name(way)})" for way in waited)
        lines.append(f"Some points wait up to 5 s to share a request. Read live, errors of gauges are {told}.")
    unanswered = [f"{tally.unanswered:,} ({_name(way)})" for way, tally in totals.items() if tally.unanswered]
    if unanswered:
        lines.append(f"Rates with less than two points in their window, taken for 0: {', '.join(unanswered)}.")
    if any(metric.catalogue for metric in report.comparison.metrics):
        lines.append("own rule: otelperf's metrics follow the rule of the catalogue, whatever the delta.")
    return lines


def _share(share: float | None) -> str:
    """Write a share in percent, in four characters at most; ~0 is less than 0.1."""
    if share is None:
        return _NONE
    percent = share * 100
    if 0 < percent < 0.05:
        return "~0%"
    if percent >= 9.95 or percent == int(percent):
        return f"{percent:.0f}%"
    return f"{percent:.1f}%"


def _large(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    """Write a duration in its two largest units."""
    rest = round(seconds)
    parts = []
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if rest >= size:
            parts.append(f"{rest // size}{letter}")
            rest %= size
    return " ".join(parts[:2]) or f"{seconds:g}s"


def _moment(time: int) -> str:
    return f"{datetime.fromtimestamp(time / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"

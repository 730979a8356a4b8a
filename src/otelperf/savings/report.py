"""The comparison as tables for a person and as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from otelperf.savings.compare import Comparison, Metric, Options, Tally, Way
from otelperf.savings.score import Errors
from otelperf.savings.streams import Kind

MONTH = 30 * 86400  # s
_P99 = 0.99
_NONE = "-"
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
    """Print a table by metric, the sums, and what there is to know about them."""
    comparison = report.comparison
    console.print(_by_metric(report))
    console.print()
    console.print(_totals(report))
    console.print()
    count = f"{comparison.series:,} series of {_plural(comparison.targets, 'target')}"
    span = f"{_moment(comparison.start)} to {_moment(comparison.end)} ({_duration(comparison.seconds)})"
    lines = [
        f"{count}, {span}. A sample each {comparison.interval / 1000:g} s, as the median of the series.",
        *_explanations(report),
        *report.notes,
    ]
    for line in lines:
        console.print(Text(line))


def _by_metric(report: Report) -> Table:
    """Two lines a metric: how much is kept, and below it the 99th percentile and the worst of the errors."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True, show_edge=False, pad_edge=False)
    table.add_column("metric", overflow="fold", min_width=24)
    table.add_column("samples", justify="right", no_wrap=True)
    ways = report.options.ways
    for way in ways:
        table.add_column(_head(way), justify="right", no_wrap=True)
    moving = [metric for metric in report.comparison.metrics if _moves(metric)]
    still = [metric for metric in report.comparison.metrics if not _moves(metric)]
    for metric in moving:
        kind = metric.kind if metric.known else f"{metric.kind} (by its name)"
        rule = ", own rule" if metric.catalogue else ""
        name = Text.assemble(metric.name, "\n", (f"  {kind}{rule}", "dim"))
        table.add_row(name, _amount_of([metric]), *(_cell([metric], way) for way in ways))
    if still:
        name = Text.assemble(_plural(len(still), "metric"), " without an error", "\n", ("  --json names them", "dim"))
        table.add_row(name, _amount_of(still), *(_cell(still, way) for way in ways))
    info = report.comparison.target_info
    counts = [Text(f"{info[way]:,}" if way in info else _NONE) for way in ways]
    table.add_row(Text.assemble("target_info", "\n", ("  comes with requests", "dim")), _NONE, *counts)
    return table


def _head(way: Way) -> str:
    return f"delta\n{_share(way.delta)}" if way.delta is not None else f"scrape\n{way.interval:g} s"


def _name(way: Way) -> str:
    return f"delta {_share(way.delta)}" if way.delta is not None else f"scrape each {way.interval:g} s"


def _moves(metric: Metric) -> bool:
    return any(tally.held.worst or tally.rates.worst or tally.histograms.worst for tally in metric.tallies.values())


def _amount_of(metrics: Sequence[Metric]) -> Text:
    samples, series = (sum(each) for each in zip(*((metric.samples, metric.series) for metric in metrics), strict=True))
    return Text.assemble(f"{samples:,}", "\n", (f"{series:,} series", "dim"))


def _cell(metrics: Sequence[Metric], way: Way) -> Text:
    """Return what is kept of the metrics, which are of one kind or never wrong."""
    tallies = [metric.tallies[way] for metric in metrics]
    if all(tally.all_kept for tally in tallies):
        return Text("= data", style="dim")
    errors = _of_kind(tallies[0], metrics[0].kind)
    share = sum(tally.samples for tally in tallies) / sum(metric.samples for metric in metrics)
    return Text.assemble(_share(share), "\n", (_both(errors), "dim"))


def _both(errors: Errors) -> str:
    if not errors.count:
        return _NONE
    p99, worst = _share(errors.quantile(_P99)), _share(errors.worst)
    return f"{p99.removesuffix('%')}/{worst}"


def _of_kind(tally: Tally, kind: Kind) -> Errors:
    return {"gauge": tally.held, "counter": tally.rates, "histogram": tally.histograms}[kind]


def _totals(report: Report) -> Table:
    """A line a way to store; errors of the kinds that there are."""
    comparison = report.comparison
    kinds = [kind for kind in _KINDS if any(metric.kind == kind for metric in comparison.metrics)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True, show_edge=False, pad_edge=False)
    table.add_column("\nin all", no_wrap=True)
    for head in ("\nsamples", "of the\ndata", *(f"{kind}s\np99/worst" for kind in kinds)):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("samples\na month", justify="right", no_wrap=True)
    if report.price is not None:
        table.add_column("price\na month", justify="right", no_wrap=True)
    nothing = [_NONE] * len(kinds)
    table.add_row(
        f"the data, each {comparison.interval / 1000:g} s", *_sums(report, comparison.samples, ["100%", *nothing])
    )
    for way in report.options.ways:
        tally = comparison.total(way)
        if tally.all_kept:
            table.add_row(_name(way), *_sums(report, tally.samples, ["= data", *nothing]), style="dim")
            continue
        share = _share(tally.samples / comparison.samples)
        errors = [_both(_of_kind(tally, kind)) for kind in kinds]
        table.add_row(_name(way), *_sums(report, tally.samples, [share, *errors]))
    return table


def _sums(report: Report, samples: int, middle: Sequence[str]) -> list[str]:
    cost = report.cost(samples)
    return [f"{samples:,}", *middle, _large(report.a_month(samples)), *([] if cost is None else [f"{cost:,.2f}"])]


def _explanations(report: Report) -> list[str]:
    """Say how the numbers are meant, as far as they occur."""
    window = _duration(report.options.window)
    about = (
        "Under each share stand the errors, 99th percentile/worst, as shares of the value; 100% is as good as no reading. "
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

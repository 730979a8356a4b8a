"""The tables of a run, and docs/headline.md."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks import page
from benchmarks.fidelity.alerting import Comparison
from benchmarks.headline import score
from benchmarks.headline.public import Alert
from benchmarks.headline.run import CLASSES, DENSE, OTELPERF, QUANTILES, RATES, SCRAPE, Record
from benchmarks.page import Table

DOCUMENT = page.DOCS / "headline.md"
BEGIN, END = "<!-- results -->", "<!-- end -->"
BOTH = (SCRAPE, OTELPERF)
ALL = (DENSE, SCRAPE, OTELPERF)


SENT_BY_ALL = tuple(CLASSES)[:3]  # vLLM's own series but start times, which otelperf never sends as series


def everything(record: Record, alerts: Sequence[Alert]) -> str:
    """Return all tables."""
    return "\n\n".join(
        [
            about(record),
            titled("The claim", claim(record, alerts)),
            titled("Stored samples", samples(record)),
            titled("Rules as published", rules(record, alerts), _not_there(record, alerts)),
            titled("The same rules, thresholds lowered", lowered_rules(record, alerts), _LOWERED),
            titled("Long queues", queues(record), _QUEUES),
            titled("Rates and quantiles over 2 minutes, asked each 5 s", rates(record)),
            titled("Queries of vLLM's boards that answer", boards(record), _BOARDS),
        ]
    )


_LOWERED = (
    "Few of them fire beside a tiny model. So each once more with the threshold half way between the least and the greatest"
    " value of what it compares on dense data, `for: 30s`; rules that compare two series, or whose value never moves, are left out."
)
_QUEUES = (
    f"More than {score.LONG_QUEUE} requests waiting, counted from when the 1 s scrape shows it. *Watched*: asked twice a second."
    " *By a rule*: evaluated each 15 s without `for`, over the 15 seconds in which its evaluation may fall. A queue that"
    " shows only when it is over is missed."
)
_BOARDS = "With `$__rate_interval` 1m, `$__interval` 15s and `$__range` 15m, as Grafana fills them in for a data source of 15 s."


def about(record: Record) -> str:
    """Return what ran, and how busy the machine was."""
    load = record.load
    requests = sum(count for reason, count in record.requests.items() if not reason.startswith("error"))
    events = ", ".join(f"{what} at {when:.0f} s" for when, what in record.events)
    busy = f"load average {min(load):.1f} to {max(load):.1f}, mean {sum(load) / len(load):.1f}"
    lines = [
        f"{record.seconds / 60:.0f} minutes, {requests:,} requests answered, {len(record.spikes)} spikes; {events}.",
        f"{page.machine()}: all of them for vLLM, its load, three Prometheus, Collector, agent and others' work; {busy}.",
    ]
    if record.page:
        page_took = f"half within {1000 * record.page['0.5']:.0f} ms, 99 % within {1000 * record.page['0.99']:.0f} ms"
        lines.append(f"vLLM's page took the 1 s scrape, all of the machine's doings included: {page_took}.")
    failed = [f"{reason}: {count}" for reason, count in record.requests.items() if reason.startswith("error")]
    if failed or record.errors:
        lines.append(f"Went wrong: {'; '.join([*failed, *record.errors])}.")
    return "\n".join(lines)


def claim(record: Record, alerts: Sequence[Alert]) -> Table:
    """Return the claim, row by row."""
    table: Table = [("", *ALL)]
    table.append(("stored samples", *(f"{record.samples[way]:,}" for way in ALL)))
    table.append(("- of a 15 s scrape's", *(_share(record.samples[way] / record.samples[SCRAPE]) for way in ALL)))
    same = {way: sum(record.by_class[way][name] for name in SENT_BY_ALL) for way in ALL}
    table.append(("- of the series that all three store", *(_share(same[way] / same[SCRAPE]) for way in ALL)))
    for name, totals in (
        ("rules as published", _published(record, alerts)),
        ("thresholds lowered", _lowered(record, alerts)),
    ):
        fired = sum(each.fired for each in totals[DENSE])
        table.append(
            (f"alerts missed, {name}", *(f"{sum(each.missed for each in totals[way])} of {fired}" for way in ALL))
        )
        table.append((f"false alerts, {name}", *(str(sum(each.false for each in totals[way])) for way in ALL)))
    watched = {way: score.noticed(record, way) for way in ALL}
    table.append(
        ("a long queue watched, p99 delay", *(_seconds(score.percentile(watched[way].delays, 0.99)) for way in ALL))
    )
    table.append(("- missed", *(f"{watched[way].missed} of {len(score.queues(record))}" for way in ALL)))
    quiet = score.quiet_queues(record)
    apart = {way: score.noticed(record, way, quiet) for way in ALL}
    table.append(
        ("- outside the two outages", *(_seconds(score.percentile(apart[way].delays, 0.99)) for way in ALL)),
    )
    ruled = {way: score.evaluated(record, way) for way in ALL}
    table.append(
        ("a long queue by a rule, p99 delay", *(_seconds(score.percentile(ruled[way].delays, 0.99)) for way in ALL))
    )
    table.append(("- missed", *(_share(_missed(ruled[way])) for way in ALL)))
    for share in (0.5, 0.95, 0.99):
        row = (_share(_all_errors(record, way, RATES, share)) for way in ALL)
        table.append((f"rate()[2m], p{100 * share:.0f} error", *row))
    answers = {way: [each for board in record.boards[way].values() for each in board] for way in ALL}
    table.append(("board queries that answer", *(f"{sum(answers[way])} of {len(answers[way])}" for way in ALL)))
    return table


def _all_errors(record: Record, way: str, queries: Sequence[str], share: float) -> float:
    return score.percentile([error for promql in queries for error in score.errors(record, way, promql)[0]], share)


def _missed(found: score.Noticed) -> float:
    return found.missed / (found.missed + len(found.delays))


def _published(record: Record, alerts: Sequence[Alert]) -> dict[str, list[Comparison]]:
    return {
        way: [score.compared(score.fired(record, DENSE, alert), score.fired(record, way, alert)) for alert in alerts]
        for way in ALL
    }


def _lowered(record: Record, alerts: Sequence[Alert]) -> dict[str, list[Comparison]]:
    found: dict[str, list[Comparison]] = {way: [] for way in ALL}
    for alert in alerts:
        if (limit := score.lowered(record, alert)) is not None:
            truth = score.fired_lowered(record, DENSE, alert, limit)
            for way in ALL:
                found[way].append(score.compared(truth, score.fired_lowered(record, way, alert, limit)))
    return found


def samples(record: Record) -> Table:
    """Return what was stored, by class."""
    table: Table = [("", *ALL)]
    for name in CLASSES:
        table.append((name, *(f"{record.by_class[way][name]:,}" for way in ALL)))
    table.append(("all that the TSDB appended, stale marks among it", *(f"{record.samples[way]:,}" for way in ALL)))
    table.append(("series at the end", *(f"{record.series[way]:,}" for way in ALL)))
    return table


def rules(record: Record, alerts: Sequence[Alert]) -> Table:
    """Return the rules about something that some way has."""
    table: Table = [
        ("of", "alert", "fired", *(f"{way}: {what}" for way in BOTH for what in ("missed", "false", "delay")))
    ]
    for alert in alerts:
        if score.known_to(record, alert):
            truth = score.fired(record, DENSE, alert)
            cells = [_cells(score.compared(truth, score.fired(record, way, alert))) for way in BOTH]
            table.append((alert.of, alert.name, str(len(truth)), *(cell for row in cells for cell in row)))
    return table


def _not_there(record: Record, alerts: Sequence[Alert]) -> str:
    absent = [alert.name for alert in alerts if not score.known_to(record, alert)]
    return (
        f"{len(alerts)} rules. Silent on every way, being about other components, about a name or labels that vLLM does"
        f" not have, or about what did not happen: {', '.join(absent)}. Delay: later than on dense data, the worst."
    )


def lowered_rules(record: Record, alerts: Sequence[Alert]) -> Table:
    """Return the rules with thresholds that are reached."""
    head = tuple(f"{way}: {what}" for way in BOTH for what in ("missed", "false", "delay"))
    table: Table = [("alert", "threshold", "fired", *head)]
    for alert in alerts:
        if (limit := score.lowered(record, alert)) is not None:
            truth = score.fired_lowered(record, DENSE, alert, limit)
            ours = [_cells(score.compared(truth, score.fired_lowered(record, way, alert, limit))) for way in BOTH]
            assert alert.threshold is not None  # it has been lowered
            cells = [cell for row in ours for cell in row]
            table.append((alert.name, f"{alert.threshold[1]} {limit:.3g}", str(len(truth)), *cells))
    return table


def _cells(found: Comparison) -> tuple[str, str, str]:
    return str(found.missed), str(found.false), f"{max(found.delays)} s" if found.delays else ""


def queues(record: Record) -> Table:
    """Return how soon long queues show."""
    table: Table = [("", *(f"{way}: {what}" for way in ALL for what in ("p50", "p99", "missed")))]
    for name, measure in (("watched", score.noticed), ("by a rule", score.evaluated)):
        row = [name]
        for way in ALL:
            found = measure(record, way)
            row += [_seconds(score.percentile(found.delays, share)) for share in (0.5, 0.99)]
            row.append(f"{found.missed} of {found.missed + len(found.delays)}")
        table.append(tuple(row))
    return table


def rates(record: Record) -> Table:
    """Return how far rates and quantiles are off."""
    table: Table = [("query", *(f"{way}: {what}" for way in BOTH for what in ("p50", "p99", "no answer")))]
    for promql in (*RATES, *QUANTILES):
        row = [f"`{promql}`"]
        for way in BOTH:
            found, missing = score.errors(record, way, promql)
            row += [_share(score.percentile(found, share)) for share in (0.5, 0.99)]
            row.append(str(missing))
        table.append(tuple(row))
    return table


def boards(record: Record) -> Table:
    """Return how many queries of each board answer."""
    table: Table = [("board", *ALL)]
    for board in record.boards[DENSE]:
        table.append((board, *(f"{sum(record.boards[way][board])} of {len(record.boards[way][board])}" for way in ALL)))
    return table


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def _seconds(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f} s"


def titled(title: str, table: Table, note: str = "") -> str:
    """Return a table under a title and a note."""
    return "\n".join([f"### {title}", "", *([note, ""] if note else []), *page.markdown(table)])


def write(text: str) -> None:
    """Put the tables into the document."""
    page.write(DOCUMENT, BEGIN, END, text)

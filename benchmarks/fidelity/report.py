"""The results as Markdown: what is printed, and what stands in docs/fidelity.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks import page
from benchmarks.fidelity import alerting, scoring
from benchmarks.fidelity.alerting import Alert, Comparison
from benchmarks.fidelity.answers import LATER, Answers
from benchmarks.fidelity.inputs import BURSTY, CLASSES, GAUGES, HISTOGRAMS, STATES, STEADY, Input
from benchmarks.fidelity.promql import MEDIAN, P95, RATE_1M, RATE_2M, VALUE
from benchmarks.fidelity.scoring import Errors, Score, headline, no_answer, samples_by_series
from benchmarks.fidelity.ways import Way
from benchmarks.page import DOCS, Table

GATE, SCRAPE, SLOW = "gate", "15 s", "60 s"
MAIN = (GATE, SCRAPE, SLOW)
MOST_RATE_ERROR = 0.5  # of a 15 s scrape's: docs/design.md, section 6
MOST_DELAY = alerting.STEP
DOCUMENT = DOCS / "fidelity.md"
BEGIN, END = "<!-- results -->", "<!-- end -->"
_MINUTE = 60.0
_ROUNDING = 1e-9
_MOST = 1000

Runs = list[tuple[Way, Answers]]


@dataclass
class Result:
    """One input: the answers of dense data, and each way's runs (the phases of an interval).

    *posted* bytes and *counted* samples, both by way and the mean of its runs, and the *alerts* are of the real way only.
    *off* is the largest difference between the model's answers and the real ones, relative.
    """

    recording: Input
    dense: Answers
    runs: dict[str, Runs]
    posted: dict[str, float] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)
    alerts: dict[str, list[tuple[Alert, Comparison]]] = field(default_factory=dict)
    off: float | None = None
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    ratios: dict[str, dict[str, Errors]] = field(default_factory=dict)

    def add(self, name: str, runs: Runs) -> None:
        """Score what was answered."""
        self.runs[name] = runs
        self.scores[name] = scoring.score(self.recording, self.dense, runs)
        self.ratios[name] = scoring.ratios(self.recording, self.dense, runs)

    @property
    def classes(self) -> list[str]:
        """The classes that the input has."""
        return [name for name in CLASSES if name in self.recording.classes]

    def dense_samples(self, group: str) -> int:
        """Return the samples of dense data, the marks of series that go among them."""
        chosen = (self.recording.series[number] for number in self.recording.classes[group])
        return sum(each.samples * (each.present + each.ends) for each in chosen)

    def price(self, way: str, group: str) -> float:
        """Return samples a minute a series of a class."""
        scored = self.scores[way][group]
        return scored.samples / scored.series / (self.recording.seconds / _MINUTE)

    def same_price(self, group: str) -> int:
        """Return the shortest interval (s) that costs no more than the gate."""
        dearer = self.dense_samples(group) / self.scores[GATE][group].samples
        return math.ceil(self.recording.interval * max(1.0, dearer))

    def dominating(self, group: str) -> list[str]:
        """Return the intervals that have fewer samples, less error, and no fewer answers than the gate."""
        price, ours = self.price(GATE, group), self.scores[GATE][group]
        error, none = headline(group, ours), no_answer(group, ours)
        return [
            name
            for name, scored in ((name, self.scores[name][group]) for name in self.runs if name != GATE)
            if self.price(name, group) < price and headline(group, scored) < error and no_answer(group, scored) <= none
        ]

    def total(self, way: str) -> float:
        """Return all samples of a way: of the series, ``target_info``, and what the agent says of itself."""
        series = sum(scored.samples for scored in self.scores[way].values())
        return series + self.mean(way, "target_info") + self.mean(way, "own") + self.mean(way, "own_target_info")

    def mean(self, way: str, what: str) -> float:
        """Return the mean of a number over the runs of a way."""
        total: int = sum(getattr(run, what) for run, _ in self.runs[way])
        return total / len(self.runs[way])


def everything(results: Sequence[Result], *, long: bool = False) -> str:
    """Return all tables; *long* with every interval."""
    parts = [goals(results), samples(results)]
    parts += [of_class(results, group, long=long) for group in CLASSES if any(group in r.classes for r in results)]
    parts.append(ratio_table(results))
    if any(result.alerts for result in results):
        parts += [alert_table(results), sources(results)]
    checked = [result for result in results if result.off is not None]
    if checked:
        parts.append(verified(checked))
    return "\n\n".join(parts)


def write(text: str) -> None:
    """Put the tables between the markers of the document."""
    page.write(DOCUMENT, BEGIN, END, text)


def markdown(title: str, table: Table, note: str = "") -> str:
    """Return a titled table, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [table[0], tuple("-" * width for width in widths), *table[1:]]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([f"### {title}", "", *([note, ""] if note else []), *lines])


def goals(results: Sequence[Result]) -> str:
    """Return the goals, and whether they are met."""
    table: Table = [("input", "goal", "limit", "measured", "met")]
    for result in results:
        name = result.recording.name
        share = result.total(GATE) / result.total(SCRAPE)
        table.append((name, "samples, of a 15 s scrape's", "< 100%", _share(share), _met(share < 1)))
        if GAUGES in result.classes:
            for what, key in (("live", "bound"), ("once stored", "bound stored")):
                outside = result.scores[GATE][GAUGES].of(key).above(1 + _ROUNDING)
                table.append((name, f"gauges outside their bound, {what}", "0", _percent(outside), _met(not outside)))
        for group in (STEADY, BURSTY):
            if group in result.classes:
                ours, theirs = (result.scores[way][group].of(RATE_2M).percentile(0.99) for way in (GATE, SCRAPE))
                limit = theirs * MOST_RATE_ERROR
                goal = (f"p99 error of rate[2m], {group}", f"≤ {_percent(limit)}")
                table.append((name, *goal, _percent(ours), _met(ours <= limit + _ROUNDING)))
        for group in result.classes:
            better = result.dominating(group)
            table.append(
                (name, f"on the front, {group}", "no better interval", ", ".join(better) or "none", _met(not better))
            )
        if result.alerts:
            missed, false, delay = _alert_sums(result, GATE)
            measured = f"{missed} missed, {false} false, {delay} s late"
            table.append((name, "alerts as on dense data", f"0, 0, ≤ {MOST_DELAY} s", measured))
            table[-1] += (_met(not missed and not false and delay <= MOST_DELAY),)
    return markdown("Goals", table)


def samples(results: Sequence[Result]) -> str:
    """Return samples by class: dense, gate, and scrapes."""
    table: Table = [("input", "class", "series", "dense", *MAIN, "gate of dense", "gate of 15 s")]
    for result in results:
        name, ticks = result.recording.name, result.recording.ticks
        total = 0
        for group in result.classes:
            dense, row = result.dense_samples(group), [result.scores[way][group].samples for way in MAIN]
            total += dense
            table.append((name, group, str(len(result.recording.classes[group])), *_counts(dense, row)))
        infos = [result.mean(way, "target_info") for way in MAIN]
        table.append((name, "target_info", "1", *_counts(ticks, infos)))
        own = [f"{result.mean(way, 'own') + result.mean(way, 'own_target_info'):.0f}" for way in MAIN]
        table.append((name, "the agent's own", "-", "0", *own, "-", "-"))
        row = [result.total(way) for way in MAIN]
        table.append((name, "all", str(len(result.recording.series)), *_counts(total + ticks, row)))
        if result.counted:
            row = [result.counted[way] for way in MAIN]
            table.append((name, "all, as the TSDB counted", "", *_counts(result.counted["dense"], row)))
            row = [result.posted[way] for way in MAIN]
            table.append((name, "bytes of OTLP", "", *_counts(result.posted["dense"], row)))
    return markdown("Samples stored", table)


def _counts(dense: float, row: Sequence[float]) -> tuple[str, ...]:
    shares = (_share(row[0] / dense), _share(row[0] / row[1]) if row[1] else "-")
    return (f"{dense:.0f}", *(f"{value:.0f}" for value in row), *shares)


_ERRORS = {
    GAUGES: ("p99, in bounds", "max", "outside, live", "outside, stored", "p99, of range", "max", "no answer"),
    STATES: ("wrong, live", "wrong, stored", "changes stored", "no answer"),
    STEADY: ("[1m] p50", "[1m] p99", "[1m] none", "[2m] p50", "[2m] p99", "[2m] none", "outside T"),
    BURSTY: ("[1m] p50", "[1m] p99", "[1m] none", "[2m] p50", "[2m] p99", "[2m] none", "outside T"),
    HISTOGRAMS: ("median: p50", "p99", "p95: p50", "p99", "no answer"),
}


def of_class(results: Sequence[Result], group: str, *, long: bool = False) -> str:
    """Return price and errors of the gate, of the interval that costs as much, and of scrapes; or of every interval."""
    table: Table = [("input", "way", "samples/min/series", *_ERRORS[group], "better than the gate")]
    for result in results:
        if group not in result.classes:
            continue
        better = result.dominating(group)
        same = f"{result.same_price(group)} s"
        wanted = set(result.runs) if long else {*MAIN, same}
        for name in sorted(wanted & set(result.runs), key=lambda way: -result.price(way, group)):
            note = f"{name} (same price)" if name == same else name
            cells = _cells(group, result.scores[name][group])
            price = f"{result.price(name, group):.2f}"
            table.append((result.recording.name, note, price, *cells, "yes" if name in better else ""))
    return markdown(group[0].upper() + group[1:], table)


def _cells(group: str, scored: Score) -> tuple[str, ...]:
    if group == GAUGES:
        bound, stored, span = scored.of("bound"), scored.of("bound stored"), scored.of("range")
        outside = [_percent(errors.above(1 + _ROUNDING)) for errors in (bound, stored)]
        spans = (_percent(span.percentile(0.99)), _percent(span.worst))
        return (_number(bound.percentile(0.99)), _number(bound.worst), *outside, *spans, _percent(bound.no_answer))
    if group == STATES:
        kept, all_of_them = scored.transitions
        wrong = [_percent(scored.of(question).above(0)) for question in (VALUE, LATER)]
        return (*wrong, _share(kept / all_of_them) if all_of_them else "-", _percent(scored.of(VALUE).no_answer))
    if group == HISTOGRAMS:
        both = (scored.of(MEDIAN), scored.of(P95))
        cells = [_percent(errors.percentile(share)) for errors in both for share in (0.5, 0.99)]
        return (*cells, _percent(both[0].no_answer))
    windows = (scored.of(RATE_1M), scored.of(RATE_2M))
    cells = [
        _percent(value)
        for errors in windows
        for value in (errors.percentile(0.5), errors.percentile(0.99), errors.no_answer)
    ]
    return (*cells, _percent(scored.of("rate bound").above(1 + _ROUNDING)))


def ratio_table(results: Sequence[Result]) -> str:
    """Return the smallest and the largest multiple of the true ratio, and how far p99 is off."""
    heads = [f"{way}: {what}" for way in MAIN for what in ("min", "max", "p99 off", "none")]
    table: Table = [("input", "ratio", *heads)]
    for result in results:
        for ratio in result.ratios[GATE]:
            cells: list[str] = []
            for way in MAIN:
                errors = result.ratios[way][ratio]
                off = Errors([abs(value - 1) for value in errors.errors])
                low = min(errors.errors, default=math.nan)
                cells += [
                    _number(low),
                    _number(errors.worst),
                    _percent(off.percentile(0.99)),
                    _percent(errors.no_answer),
                ]
            table.append((result.recording.name, ratio, *cells))
    return markdown("Ratios of rates over 2 minutes, as multiples of the true ratio", table)


def alert_table(results: Sequence[Result]) -> str:
    """Return what each alert did."""
    heads = [f"{way}: {what}" for way in MAIN for what in ("missed", "false", "latest")]
    table: Table = [("input", "alert", "fired on dense", *heads)]
    for result in results:
        for place, (alert, compared) in enumerate(result.alerts[GATE]):
            cells: list[str] = []
            for way in MAIN:
                other = result.alerts[way][place][1]
                runs = len(result.runs[way])
                late = f"{max(other.delays):+d} s" if other.delays else "-"
                cells += [_per_run(other.missed, runs), _per_run(other.false, runs), late]
            table.append((result.recording.name, alert.name, str(compared.fired), *cells))
    note = "Missed and false firings are means of the phases of a scrape."
    return markdown("Alerts", table, note)


def sources(results: Iterable[Result]) -> str:
    """Return where the alerts are from."""
    table: Table = [("alert", "follows", "original, where it differs", "expression")]
    for result in results:
        for alert, _ in result.alerts.get(GATE, ()):
            expr = f"`{alert.expr}` for {alert.seconds} s".replace("|", "\\|")
            table.append((alert.name, alert.of, alert.changed, expr))
    return markdown("Where the alerts are from", table)


def verified(results: Iterable[Result]) -> str:
    """Say how far the model is from the real Prometheus."""
    table: Table = [("input", "largest difference between the model and Prometheus")]
    table += [(result.recording.name, f"{result.off:.1e} of the value") for result in results]
    return markdown("The model, checked", table, "Intervals other than 15 and 60 s are answered by the model.")


def details(results: Sequence[Result]) -> str:
    """Return each series: samples of the gate and of a 15 s scrape, and the errors of both."""
    heads = ("gate samples", "15 s samples", "gate p99", "gate max", "15 s p99", "15 s max")
    table: Table = [("input", "class", "series", *heads)]
    for result in results:
        stored = {way: samples_by_series(result.recording, result.runs[way][0][0]) for way in (GATE, SCRAPE)}
        for number, series in enumerate(result.recording.series):
            group = series.group
            question = {GAUGES: VALUE, STATES: VALUE, HISTOGRAMS: P95}.get(group, RATE_2M)
            counts = (str(stored[GATE][number]), str(stored[SCRAPE][number]))
            cells = ["-"] * 4
            if (number, question) in result.dense.by_series:
                only = Answers(result.dense.instants, {(number, question): result.dense.by_series[number, question]})
                cells = []
                for way in (GATE, SCRAPE):
                    scored = scoring.score(result.recording, only, result.runs[way])[group]
                    errors = scored.of("bound" if group == GAUGES else question)
                    cells += [_number(errors.percentile(0.99)), _number(errors.worst)]
            labels = ",".join(map(str, series.attributes.values()))
            table.append((result.recording.name, group, f"{series.name}{{{labels}}}"[:70], *counts, *cells))
    why: Table = [("input", "reason", "points")]
    for result in results:
        reasons = result.runs[GATE][0][0].reasons
        why += [(result.recording.name, reason, str(reasons[reason])) for reason in sorted(reasons)]
    return "\n\n".join([markdown("Series by series", table), markdown("Why", why)])


def _alert_sums(result: Result, way: str) -> tuple[int, int, int]:
    compared = [comparison for _, comparison in result.alerts[way]]
    latest = max((delay for comparison in compared for delay in comparison.delays), default=0)
    return sum(each.missed for each in compared), sum(each.false for each in compared), latest


def _per_run(count: int, runs: int) -> str:
    return f"{count / runs:.1f}".removesuffix(".0")


def _met(kept: bool) -> str:  # noqa: FBT001 # the one argument
    return "yes" if kept else "no"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _share(value: float) -> str:
    return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"  # more digits where they tell


def _number(value: float) -> str:
    if value > _MOST:  # of a bound that is a share of nothing
        return f"> {_MOST}"
    return "-" if math.isnan(value) else f"{value:.2f}"

"""How true the gate is, and at what price: ``python -m benchmarks.fidelity``. docs/fidelity.md says what is measured."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.fidelity import alerting, pipeline, report
from benchmarks.fidelity.alerting import Comparison
from benchmarks.fidelity.answers import Answers, modelled
from benchmarks.fidelity.inputs import INPUTS, Input, load
from benchmarks.fidelity.pipeline import Firings
from benchmarks.fidelity.report import GATE, SCRAPE, SLOW, Result
from benchmarks.fidelity.ways import SECOND, Way, fixed, fixed_requests, gated
from otelperf.gate.budget import Budget
from otelperf.gate.policy import Rule
from stack.parts import PartError
from stack.processes import ProcessError

REAL_INTERVALS = {SCRAPE: 15, SLOW: 60}
INTERVALS = (5, 10, 15, 20, 30, 45, 60)
# Of the interval: when a scrape happens to fall. Chosen so that, seen from the instants, it is half an interval ago in the mean.
PHASES = (0.2, 0.53, 0.87)
# A replay begins at a multiple of this, so that heartbeats fall alike each time.
_ALIGNED = 1200 * SECOND
START = 1_700_000_400 * SECOND  # of the model
_MARGIN = 60 * SECOND
QUICK_INPUTS = ("llama", "gpu")
GATE_OPTIONS = ("heartbeat", "linger", "rate_window", "histogram_interval", "spacing")


def main() -> int:
    """Run the ways, score them, and print the tables."""
    options = _options()
    names = options.input or (QUICK_INPUTS if options.quick else tuple(INPUTS))
    results = []
    for name in names:
        began = time.monotonic()
        recording = load(name)
        try:
            results.append(model(recording, options) if options.model_only else real(recording, options))
        except (PartError, ProcessError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    text = report.everything(results, long=options.long)
    print(text, flush=True)
    if options.details:
        print(f"\n{report.details(results)}", flush=True)
    if options.write:
        from benchmarks.fidelity import plot

        report.write(text)
        plot.front(results, report.DOCUMENT.with_suffix(".png"))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--input", action="append", choices=list(INPUTS), help="only this one (may be repeated)")
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK_INPUTS)}, one phase a scrape")
    parser.add_argument("--model-only", action="store_true", help="no Collector, no Prometheus: the model answers")
    parser.add_argument("--long", action="store_true", help="every interval, in every table")
    parser.add_argument("--details", action="store_true", help="series by series as well")
    parser.add_argument("--write", action="store_true", help="put tables and plot into docs/")
    rules = parser.add_argument_group("rules", "to try others than the catalogue's")
    rules.add_argument("--relative", type=float, help="of every counter (0.25 is the catalogue's)")
    rules.add_argument("--histogram-relative", type=float, help="of every histogram")
    rules.add_argument("--delta-factor", type=float, default=1.0, help="times every delta, of gauges and counters")
    rules.add_argument("--no-groups", action="store_true", help="let no series follow another")
    gate = parser.add_argument_group("gate", "options of DeltaGate; what is not given is as DeltaGate has it")
    for name in GATE_OPTIONS:
        gate.add_argument(f"--{name.replace('_', '-')}", type=float)
    gate.add_argument("--budget", type=float, help="samples a minute for each stream")
    options = parser.parse_args()
    if options.write and (options.model_only or options.quick or options.input):
        parser.error("--write is for a whole run: without --model-only, --quick and --input")
    return options


def model(recording: Input, options: argparse.Namespace) -> Result:
    """Run every way and let the model answer."""
    gate = run_gate(recording, START, options)
    result = Result(recording, modelled(recording, fixed(recording, recording.interval, 0)), {})
    result.add(GATE, [(gate, modelled(recording, gate))])
    _add_intervals(result, options)
    return result


def real(recording: Input, options: argparse.Namespace) -> Result:
    """Send dense, gate, 15 s and 60 s through Collector and Prometheus; check the model against them, and model the rest."""
    start = (time.time_ns() - recording.seconds * SECOND - _MARGIN) // _ALIGNED * _ALIGNED
    dense = fixed(recording, recording.interval, 0)
    answers, truth, posted, counted = _play(recording, dense, start)
    result = Result(recording, answers, {}, off=difference(modelled(recording, dense), answers))
    result.posted["dense"], result.counted["dense"] = posted, counted
    ways = {GATE: [run_gate(recording, start, options)]}
    ways |= {name: _phases(recording, interval, options) for name, interval in REAL_INTERVALS.items()}
    for name, runs in ways.items():
        played = [_play(recording, way, start) for way in runs]
        result.add(name, [(way, each[0]) for way, each in zip(runs, played, strict=True)])
        result.posted[name] = sum(each[2] for each in played) / len(played)
        result.counted[name] = sum(each[3] for each in played) / len(played)
        result.alerts[name] = _compared(recording, truth, [each[1] for each in played])
        apart = [difference(modelled(recording, way), each[0]) for way, each in zip(runs, played, strict=True)]
        result.off = max(result.off or 0.0, *apart)
    _add_intervals(result, options)
    return result


def _play(recording: Input, way: Way, start: int) -> tuple[Answers, Firings, int, int]:
    requests = way.requests or list(fixed_requests(way, recording, start))
    with tempfile.TemporaryDirectory(prefix="otelperf-fidelity-") as folder, pipeline.fresh(Path(folder)) as stack:
        answers, firings, posted = pipeline.play(stack, recording, requests, start, live=way.interval is None)
        return answers, firings, posted, stack.samples()


def _compared(recording: Input, truth: Firings, played: Sequence[Firings]) -> list[tuple[alerting.Alert, Comparison]]:
    found = []
    for alert in alerting.alerts(recording.name):
        comparison = Comparison()
        for firings in played:
            alerting.compare(truth[alert.name], firings[alert.name], comparison)
        comparison.fired //= len(played)
        found.append((alert, comparison))
    return found


def _add_intervals(result: Result, options: argparse.Namespace) -> None:
    """Model the fixed intervals that are still missing, among them those that cost no more than the gate."""
    same = {result.same_price(group) for group in result.classes}
    for interval in sorted({*INTERVALS, *same}):
        name = f"{interval} s"
        if name not in result.runs:
            ways = _phases(result.recording, interval, options)
            result.add(name, [(way, modelled(result.recording, way)) for way in ways])


def _phases(recording: Input, interval: int, options: argparse.Namespace) -> list[Way]:
    phases = PHASES[1:2] if options.quick else PHASES
    return [fixed(recording, interval, round(interval * phase)) for phase in phases]


def run_gate(recording: Input, start: int, options: argparse.Namespace) -> Way:
    """Drive the gate through the recording."""
    rules = {name: changed(rule, options) for name, rule in recording.rules.items()}
    given: dict[str, Any] = {name: getattr(options, name) for name in GATE_OPTIONS}
    given["budget"] = None if options.budget is None else Budget(per_stream=options.budget)
    return gated(recording, start, rules, **{name: value for name, value in given.items() if value is not None})


def changed(rule: Rule, options: argparse.Namespace) -> Rule:
    """Return the rule with what the options change."""
    changes: dict[str, Any] = {"delta": rule.delta * options.delta_factor}
    if options.relative is not None and rule.kind == "trend":
        changes["relative"] = options.relative
    if options.histogram_relative is not None and rule.kind == "histogram":
        changes["relative"] = options.histogram_relative
    if options.no_groups and not rule.share:  # a share needs its group
        changes["group"] = None
    return replace(rule, **changes)


def difference(model_says: Answers, prometheus_says: Answers) -> float:
    """Return the largest relative difference; infinite where only one of them has an answer."""
    largest = 0.0
    for key, ours in model_says.by_series.items():
        for mine, theirs in zip(ours, prometheus_says.by_series[key], strict=True):
            if (mine is None) != (theirs is None):
                return math.inf
            if mine is not None and theirs is not None and mine != theirs:
                largest = max(largest, abs(mine - theirs) / max(abs(mine), abs(theirs)))
    return largest


if __name__ == "__main__":
    raise SystemExit(main())

"""The front as a picture: price against error, one panel a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.fidelity.inputs import BURSTY, CLASSES, GAUGES, HISTOGRAMS, STATES, STEADY
from benchmarks.fidelity.report import GATE, Result
from benchmarks.fidelity.scoring import headline, no_answer

_ERROR = {
    GAUGES: "p99 error, share of range",
    STATES: "share of wrong instants",
    STEADY: "p99 error of rate[2m]",
    BURSTY: "p99 error of rate[2m]",
    HISTOGRAMS: "p99 error of quantiles",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#7a3e9d")  # told apart by colour-blind eyes
_LABELLED = ("5 s", "15 s", "60 s")


def front(results: Sequence[Result], path: Path) -> None:
    """Draw it."""
    groups = [group for group in CLASSES if any(group in result.classes for result in results)]
    mpl.rcParams["svg.hashsalt"] = "otelperf"
    columns = 3
    figure = Figure(figsize=(13, 4.2 * math.ceil(len(groups) / columns)), facecolor="white", layout="constrained")
    panels = figure.subplots(math.ceil(len(groups) / columns), columns, squeeze=False).ravel()
    for panel, group in zip(panels, groups, strict=False):
        for result, colour in zip(results, _COLOURS, strict=False):
            if group in result.classes:
                _draw(panel, result, group, colour)
        panel.set_title(group)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("samples a minute a series")
        panel.set_ylabel(_ERROR[group])
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.set_ylim(bottom=0)
        panel.grid(visible=True, color="#dddddd", linewidth=0.6)
        panel.legend(fontsize=8)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    figure.suptitle(
        "Stars: the gate. Lines: scrapes at fixed intervals; hollow where more questions than the gate's have no answer. "
        "Lower and further left is better."
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw(panel: Axes, result: Result, group: str, colour: str) -> None:
    ours = result.scores[GATE][group]
    points = sorted(
        (result.price(name, group), headline(group, scored[group]), no_answer(group, scored[group]), name)
        for name, scored in result.scores.items()
        if name != GATE
    )
    panel.plot([point[0] for point in points], [point[1] for point in points], "-", color=colour, linewidth=1)
    for price, error, none, name in points:
        hollow = none > no_answer(group, ours)
        panel.plot(price, error, "o", color=colour, markersize=4, markerfacecolor="white" if hollow else colour)
        if name in _LABELLED:
            panel.annotate(name, (price, error), textcoords="offset points", xytext=(3, 4), fontsize=7, color=colour)
    gate = result.price(GATE, group), headline(group, ours)
    panel.plot(*gate, "*", color=colour, markersize=15, markeredgecolor="black", label=result.recording.name)

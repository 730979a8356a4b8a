"""docs/servers.md tells of every metric of the maps where it comes from, and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from otelperf import catalog
from otelperf.sources.engines.engine import TOKEN_TYPE
from otelperf.sources.engines.llamacpp import LLAMACPP

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "servers.md").read_text()


def rows() -> list[list[str]]:
    [table] = re.findall(r"<!-- llama\.cpp: checked .*?-->\n(.*?)<!-- end", PAGE, flags=re.DOTALL)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_table_has_every_metric_of_the_catalogue_and_no_other() -> None:
    assert {f"`{row.name}`" for row in catalog.SERVER} == {metric for metric, _, _, _ in rows()}


def test_the_table_says_which_series_each_metric_is() -> None:
    expected = {
        (
            f"`{take.metric}`",
            " ".join(f"`{name}` = {value}" for name, value in take.attributes.items()),
            f"`{take.series}`",
        )
        for take in LLAMACPP.takes
    }
    assert expected <= {(metric, attributes, series) for metric, attributes, series, _ in rows()}


def test_every_series_that_is_read_is_in_the_table_and_no_other() -> None:
    said = {series for _, _, source, _ in rows() for series in re.findall(r"llamacpp:\w+", source)}
    assert {*(take.series for take in LLAMACPP.takes), *LLAMACPP.also} == said


def test_the_table_names_the_attribute_of_token_types() -> None:
    assert {f"`{TOKEN_TYPE}`"} == {cell for metric, cell, _, _ in rows() if metric.endswith("throughput`")}

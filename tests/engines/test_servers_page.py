"""docs/servers.md tells of every metric of the maps where it comes from, and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otelperf.sources.engines import ENGINES
from otelperf.sources.engines.engine import TOKEN_TYPE, Engine
from tests import generated_docs

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "servers.md").read_text()
EACH = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)


def rows(engine: Engine) -> list[list[str]]:
    name = re.escape(engine.name)
    [table] = re.findall(rf"<!-- {name}: checked .*?-->\n(.*?)<!-- end of {name} -->", PAGE, flags=re.DOTALL)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_table_of_who_gives_what_is_made_from_the_maps() -> None:
    assert generated_docs.servers_page(PAGE) == PAGE, "run `make docs`"


@EACH
def test_a_servers_table_has_every_metric_that_its_map_gives_and_no_other(engine: Engine) -> None:
    assert {f"`{name}`" for name in generated_docs.metrics_of(engine)} == {metric for metric, _, _, _ in rows(engine)}


@EACH
def test_a_servers_table_says_which_series_each_metric_is(engine: Engine) -> None:
    said = [(metric, attributes, source) for metric, attributes, source, _ in rows(engine)]
    for take in engine.takes:
        attributes = " ".join(f"`{name}` = {value}" for name, value in take.attributes.items())
        for series in [take.series] if isinstance(take.series, str) else take.series:
            assert any(
                metric == f"`{take.metric}`" and there.startswith(attributes) and f"`{series}`" in source
                for metric, there, source in said
            ), f"{take.metric} {attributes} from {series}"


@EACH
def test_every_series_that_is_read_is_in_the_servers_table(engine: Engine) -> None:
    said = {series for _, _, source, _ in rows(engine) for series in re.findall(r"`([\w:]+)`", source)}
    common = {engine.started, *engine.counters, *engine.steps}  # steps have a table of their own
    assert engine.series() - said - common == set()


def test_the_table_of_steps_is_that_of_the_maps() -> None:
    [table] = re.findall(r"<!-- steps: checked .*?-->\n(.*?)<!-- end of steps -->", PAGE, flags=re.DOTALL)
    said = {line.split("|")[1].strip(): re.findall(r"`([\w:]+)`", line) for line in table.splitlines()[2:]}
    assert {engine.name: list(engine.steps) for engine in ENGINES if engine.steps} == said


def test_the_tables_name_the_attribute_of_token_types() -> None:
    for engine in ENGINES:
        for metric, attributes, _, _ in rows(engine):
            if metric.endswith("throughput`"):
                assert attributes.startswith(f"`{TOKEN_TYPE}`")

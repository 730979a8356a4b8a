"""Variables of OpenTelemetry's specification that are not followed: none is passed over in silence."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

import otelperf
from otelperf.logs import Event
from otelperf.standard_variables import INSTEAD, PACE, SAMPLER, not_followed

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"
TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


def test_what_is_unset_or_asks_for_what_is_done_is_not_told() -> None:
    environ = {TEMPORALITY: "Cumulative", SAMPLER: "parentbased_always_on", "OTEL_BSP_SCHEDULE_DELAY": " "}
    assert not_followed({}) == not_followed(environ) == {}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_asks_for_something_else_is_told_with_what_to_do(name: str) -> None:
    assert not_followed({name: "1"}) == {name: INSTEAD[name]}
    assert not_followed({name: "1"}, {name}) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("otlp", None),
        ("otlp,", None),
        ("prometheus, console", "only console: there is one exporter at a time"),
        ("otlp,console", "only otlp: there is one exporter at a time"),
        ("prometheus,zipkin", None),  # refused as a setting
    ],
)
def test_of_a_list_of_exporters_the_one_that_is_taken_is_told(value: str, expected: str | None) -> None:
    assert not_followed({"OTEL_METRICS_EXPORTER": value}).get("OTEL_METRICS_EXPORTER") == expected


def test_the_documentation_has_each_of_them() -> None:
    table = re.findall(r"^\| `(OTEL_[A-Z_]+)(\*?)`", DOCS.read_text(), re.MULTILINE)
    exact = {name for name, star in table if not star}
    prefixes = tuple(name for name, star in table if star)
    named = {name for name in INSTEAD if name in exact or name.startswith(prefixes)}
    assert set(INSTEAD) - named == {"OTEL_EXPERIMENTAL_CONFIG_FILE"}  # its older spelling


@pytest.fixture
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")


@pytest.mark.usefixtures("_nowhere")
def test_a_program_is_told_once_in_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in (*dict.fromkeys(PACE, "1000").items(), (TEMPORALITY, "delta"), (SAMPLER, "always_off")):
        monkeypatch.setenv(name, value)
    with otelperf.instrument("chat", libraries="none"):
        otelperf.instrument("chat", libraries="none")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert isinstance(record.msg, Event)
    assert set(record.msg.fields) == {*PACE, TEMPORALITY}


@pytest.mark.usefixtures("_nowhere")
def test_the_log_level_holds_while_it_runs_unless_the_program_has_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("otelperf")
    before = logger.level
    try:
        for own, expected in ((logging.NOTSET, logging.ERROR), (logging.INFO, logging.INFO)):
            logger.setLevel(own)
            monkeypatch.setenv("OTEL_LOG_LEVEL", "fatal")
            with otelperf.instrument("chat", libraries="none"):
                assert logger.level == expected
            assert logger.level == own
    finally:
        logger.setLevel(before)

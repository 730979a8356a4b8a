"""Log lines, repeated trouble, and a standard error that is gone."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf import logs


@pytest.fixture(autouse=True)
def _quiet_afterwards() -> Iterator[None]:
    root = logging.getLogger()
    ours = logging.getLogger("otelperf")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_is_an_event_and_fields() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    logs.Log("otelperf.export").warning(
        "collector unreachable", endpoint="http://c:4318", error="no route", tries=3, last=None
    )
    stamp, _, rest = stream.getvalue().partition(" ")
    assert stamp.startswith("ts=20")
    assert stamp.endswith("Z")
    assert rest == (
        'level=warning event="collector unreachable" logger=otelperf.export endpoint=http://c:4318 error="no route" '
        'tries=3 last=""\n'
    )


def test_a_line_can_be_json() -> None:
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)
    logs.Log("otelperf").error("odd", value=float("nan"), thing=ValueError("x"), count=2)
    line = json.loads(stream.getvalue())
    assert {key: line[key] for key in ("level", "event", "value", "thing", "count")} == {
        "level": "error", "event": "odd", "value": "nan", "thing": "x", "count": 2,
    }  # fmt: skip


def test_a_field_cannot_replace_what_each_line_has() -> None:
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)
    logs.Log("otelperf").info("event", level="mine", ts="never")
    assert json.loads(stream.getvalue())["level"] == "info"


def test_levels_below_the_chosen_one_are_left_out() -> None:
    stream = io.StringIO()
    logs.configure("warning", stream=stream)
    logs.Log("otelperf").info("quiet")
    logs.Log("otelperf").warning("loud")
    logs.configure("debug", stream=stream)
    logs.Log("otelperf").debug("low")
    assert [line.split("event=")[1].split()[0] for line in stream.getvalue().splitlines()] == ["loud", "low"]


def test_other_libraries_speak_from_warning_on_in_the_same_form() -> None:
    stream = io.StringIO()
    logs.configure("debug", stream=stream)
    logging.getLogger("elsewhere").info("chatter")
    try:
        int("why")
    except ValueError:
        logging.getLogger("elsewhere").exception("broke %s", "down")
    (line,) = stream.getvalue().splitlines()
    assert 'level=error event="broke down" logger=elsewhere exception="Traceback' in line
    assert "ValueError: invalid literal" in line


def test_configuring_twice_does_not_write_twice() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    logs.configure(stream=stream)
    logs.Log("otelperf").info("once")
    assert stream.getvalue().count("once") == 1


def test_programs_with_their_own_logging_see_event_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    logs.Log("otelperf.gate").warning("gate full", streams=5)
    assert caplog.messages == ["gate full streams=5"]
    assert caplog.records[0].funcName == "test_programs_with_their_own_logging_see_event_and_fields"


def test_repeated_trouble_is_told_once_a_minute_with_the_number_held_back(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = logs.Log("otelperf.export", logs.Repeats(clock=clock))
    for _ in range(61):
        log.trouble("collector unreachable", endpoint="a")
        clock.now += 1
    assert caplog.messages == ["collector unreachable endpoint=a", "collector unreachable endpoint=a repeated=59"]


def test_only_the_problem_that_was_told_counts_as_repeated(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = logs.Log("otelperf.sampler", logs.Repeats(clock=clock))
    for problem in ("loads", "loads", "refused"):
        log.trouble("source failed", problem=problem)
    clock.now += 60
    told = [log.trouble("source failed", problem="refused") for _ in range(3)]
    clock.now += 60
    log.trouble("source failed", problem="refused")
    assert told == [True, False, False]
    assert caplog.messages == [
        "source failed problem=loads",
        "source failed problem=refused",
        "source failed problem=refused repeated=2",
    ]


def test_trouble_is_told_apart_by_the_fields_named(caplog: pytest.LogCaptureFixture) -> None:
    log = logs.Log("otelperf.export", logs.Repeats(clock=Clock()))
    for endpoint, error in (("a", 1), ("b", 2), ("a", 3)):
        log.trouble("collector unreachable", by=("endpoint",), endpoint=endpoint, error=error)
    log.trouble("request refused", by=("endpoint",), endpoint="a")
    assert caplog.messages == [
        "collector unreachable endpoint=a error=1",
        "collector unreachable endpoint=b error=2",
        "request refused endpoint=a",
    ]


def test_numbers_of_errors_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    reset, gone = OSError(104, "Connection reset by peer"), OSError(2, "No such file", "x")
    logs.Log("otelperf").warning("odd", problem=str(reset), then=f"OSError: {gone}")
    assert caplog.messages == ['odd problem="Connection reset by peer" then="OSError: No such file: \'x\'"']


def test_without_logging_set_up_a_line_says_who_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers[:] = []
    log = logs.Log("otelperf.export")
    log.warning("collector unreachable", endpoint="a")
    log.info("not for the last resort")
    assert capsys.readouterr().err == "otelperf: collector unreachable endpoint=a\n"
    logging.getLogger().addHandler(handler := logging.StreamHandler(sys.stderr))
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    log.warning("collector unreachable", endpoint="a")
    assert capsys.readouterr().err == "WARNING:otelperf.export:collector unreachable endpoint=a\n"


def test_memory_for_trouble_is_bounded() -> None:
    clock = Clock()
    repeats = logs.Repeats(clock=clock)
    for number in range(5000):
        repeats.admit(("event", number))
    assert len(repeats._seen) <= 1000


@pytest.mark.parametrize("form", ["logfmt", "json"])
@given(
    key=st.text(alphabet="abc_", min_size=1).filter(lambda key: key != "ts"),
    value=st.text() | st.floats() | st.binary(),
)
def test_any_value_makes_one_line(form: str, key: str, value: object) -> None:
    stream = io.StringIO()
    logs.configure(form=form, stream=stream)  # type: ignore[arg-type] # the two forms
    logs.Log("otelperf").info("event", **{key: value})
    assert stream.getvalue().count("\n") == 1


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_logging_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = io.StringIO()
    gone.close()
    logs.configure(stream=gone)
    logs.Log("otelperf").error("to nobody", key=[])
    monkeypatch.setattr(sys, "stderr", None)
    logs.configure()
    logs.Log("otelperf").error("to nobody")
    logs.configure(stream=io.StringIO())
    logs.Log("otelperf").trouble("unspeakable", by=("what",), what=Unprintable())
    logging.shutdown()


def test_a_handler_of_the_programs_that_fails_reaches_nobody() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("broken")

    handler = Broken()
    logging.getLogger("otelperf").addHandler(handler)
    try:
        logs.Log("otelperf.export").warning("collector unreachable")
    finally:
        logging.getLogger("otelperf").removeHandler(handler)

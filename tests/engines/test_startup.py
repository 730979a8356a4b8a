"""The phases of a start, by what was seen of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelperf.sources.engines.startup import Startup

SECOND = 1_000_000_000
STARTED = 1_700_000_000 * SECOND
ALL = {"process_to_listening": 10.0, "listening_to_ready": 30.0, "process_to_ready": 40.0}


def phases(looks: str, started: int | None = STARTED) -> dict[str, float]:
    """Look each 10 s, the first time as the process starts: d(own), l(oading), r(eady), u(nresponsive)."""
    startup = Startup()
    words = {"d": "down", "l": "loading", "r": "ready", "u": "unresponsive"}
    for number, look in enumerate(looks):
        startup.look(STARTED + number * 10 * SECOND, words[look])
    return startup.phases(started)


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ("dlllr", ALL),
        ("dlllrrrr", ALL),
        ("dluurr", {"process_to_listening": 10.0, "listening_to_ready": 30.0, "process_to_ready": 40.0}),
        ("dddr", {"process_to_listening": 30.0, "process_to_ready": 30.0}),  # a server that listens when it is ready
        ("llr", {"process_to_ready": 20.0}),  # nobody saw when it began to listen
        ("r", {}),
        ("rrr", {}),
        ("d", {}),
        ("dl", {"process_to_listening": 10.0}),
        ("rrddlr", {"process_to_listening": 40.0, "listening_to_ready": 10.0, "process_to_ready": 50.0}),
        ("dlrd", {}),
    ],
)
def test_a_phase_is_known_if_it_was_seen_to_begin_and_to_end(looks: str, expected: dict[str, float]) -> None:
    assert expected == phases(looks)


def test_without_the_process_start_the_time_from_listening_is_known() -> None:
    assert phases("dlllr", None) == {"listening_to_ready": 30.0}


def test_a_start_after_the_first_answer_is_somebody_elses_clock() -> None:
    assert phases("dlr", STARTED + 3600 * SECOND) == {"listening_to_ready": 10.0}


@given(st.text("dlru", max_size=20))
def test_no_phase_is_negative_and_the_parts_are_the_whole(looks: str) -> None:
    found = phases(looks)
    assert all(seconds >= 0 for seconds in found.values())
    if found.keys() == ALL.keys():
        assert found["process_to_listening"] + found["listening_to_ready"] == found["process_to_ready"]

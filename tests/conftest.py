"""Fixtures and rules for every test."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 # before any TracerProvider: see otelperf/gate/spans.py
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from otelperf import telemetry
from otelperf.sources import calls
from stack.parts import PartError, part
from tests.seen import Seen

# No deadline: a machine may be busy. CI tries the same examples each time, so that it is red for what was changed; what is new
# is found at the desk and by night.
settings.register_profile("check", max_examples=50, deadline=None, derandomize=False)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("nightly", max_examples=10_000, deadline=None, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "check"))

PROJECT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Spare the garbage collector the tests themselves, which live to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def captures() -> Path:
    """Return the folder of pages that real servers answered."""
    return PROJECT / "tests" / "captures"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of a real part that is not there, with the command that gets it; in CI that is a failure."""
    needed = {name for marker in item.iter_markers("real_servers") for name in marker.args}
    needed |= {name for _ in item.iter_markers("end_to_end") for name in ("llama-server", "tiny-model")}
    if not needed:
        return
    try:
        for name in ("collector", "prometheus", *sorted(needed)):
            part(name)
    except PartError as error:
        if os.environ.get("CI"):
            pytest.fail(f"a real part is missing in CI: {error}")
        pytest.skip(str(error))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Have what is recorded go to providers that keep it."""
    monkeypatch.setattr(calls.Calls.registry, "_all", {})
    found = Seen()
    telemetry.bind(found.meter_provider, found.tracer_provider)
    yield found
    telemetry.unbind()

"""Fixtures and rules for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from stack.parts import PartError, part

settings.register_profile("ci", max_examples=200, deadline=None)
settings.register_profile("nightly", max_examples=10_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def captures() -> Path:
    """Return the folder of pages that real servers answered."""
    return PROJECT / "tests" / "captures"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of a real part that is not there, with the command that gets it; in CI that is a failure."""
    if item.get_closest_marker("end_to_end") is None:
        return
    try:
        for name in ("collector", "prometheus", "llama-server", "tiny-model"):
            part(name)
    except PartError as error:
        if os.environ.get("CI"):
            pytest.fail(f"a real part is missing in CI: {error}")
        pytest.skip(str(error))

"""What the tests of one engine's map share."""

from __future__ import annotations

import pytest

from tests.engines.pages import Pages


@pytest.fixture
def pages(request: pytest.FixtureRequest) -> Pages:
    """Return what a healthy server answers by the test module's HEALTHY, to be changed."""
    return dict(request.module.HEALTHY)

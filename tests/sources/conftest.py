"""Fake machines for the sources to read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

MACHINES = Path(__file__).parent.parent / "proc"


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies one of tests/proc, to be read and changed."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(MACHINES / name, tmp_path / name))

    return copied

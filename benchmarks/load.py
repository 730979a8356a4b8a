"""A busy machine, on one core: compile, hash, write, pause, in bursts, the same each time."""

from __future__ import annotations

import compileall
import email
import hashlib
import os
import random
import sys
import time
from pathlib import Path

_CHUNK = b"otelperf" * 2**17  # 1 MiB
_LONGEST_BURST_SECONDS = 8.0
_LONGEST_PAUSE_SECONDS = 4.0
_MOST_WRITTEN_MIB = 64


def main(folder: Path) -> None:
    """Work in *folder* until killed."""
    choice = random.Random(1)
    while True:
        until = time.monotonic() + choice.uniform(0.5, _LONGEST_BURST_SECONDS)
        while time.monotonic() < until:
            _compile(folder)
            _write(folder / "written", choice.randrange(_MOST_WRITTEN_MIB))
        time.sleep(choice.uniform(0, _LONGEST_PAUSE_SECONDS))


def _compile(folder: Path) -> None:
    sys.pycache_prefix = str(folder)
    compileall.compile_dir(Path(email.__file__).parent, quiet=2, force=True)


def _write(path: Path, mebibytes: int) -> None:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mebibytes):
            digest.update(_CHUNK)
            file.write(_CHUNK)
        os.fsync(file.fileno())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

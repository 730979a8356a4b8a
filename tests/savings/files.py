"""Small recordings for the tests."""

from __future__ import annotations

from pathlib import Path

from otelperf.savings import samples
from otelperf.savings.recording import Recording, Series
from otelperf.savings.streams import Stream, streams

START = 1_700_000_000  # s


def recorded(tmp_path: Path, text: str | bytes, most: int = 10**6) -> tuple[Recording, list[Series]]:
    """Return what is read of a file with this text."""
    file = tmp_path / "samples"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    recording = Recording(most)
    samples.read(str(file), recording, lambda _: None)
    return recording, recording.finish()


def lines(name: str, values: list[float], *, labels: str = 'job="a",instance="b"', step: float = 1.0) -> str:
    """Return a series in lines, a sample each *step* s."""
    return "".join(f"{name}{{{labels}}} {value!r} {START + n * step:.3f}\n" for n, value in enumerate(values))


def streamed(tmp_path: Path, text: str) -> tuple[Recording, list[Stream]]:
    recording, series = recorded(tmp_path, text)
    return recording, streams(recording, series)

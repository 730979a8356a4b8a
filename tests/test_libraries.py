"""When libraries are instrumented, with made-up ones and with OpenTelemetry's own instrumentation of httpx."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from otelperf import config, libraries
from otelperf.errors import ConfigError
from otelperf.libraries import Instrumented, Library, LibraryMissing
from tests import generated_docs
from tests.receiver import Receiver

MODULE = "otelperf_made_up"


class Recorder:
    """An instrumentor that notes what it sees of the module when it is called."""

    def __init__(self, error: Exception | None = None) -> None:
        self.seen: list[str] = []
        self.error = error

    def instrument(self, *, tracer_provider: Any, meter_provider: Any) -> None:
        self.seen.append(f"with {getattr(sys.modules[MODULE], 'complete', None)}")
        if self.error:
            raise self.error

    def uninstrument(self) -> None:
        self.seen.append("undone")


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that is complete at its last line, not yet imported."""
    file = tmp_path / f"{MODULE}.py"
    file.write_text("complete = False\nimport json\ncomplete = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield file
    sys.modules.pop(MODULE, None)


def started(recorder: Recorder) -> Instrumented:
    instrumented = Instrumented([Library(MODULE, MODULE, lambda: recorder, "")], None, None)
    instrumented.start()
    return instrumented


def imported() -> ModuleType:
    return importlib.import_module(MODULE)


@pytest.mark.usefixtures("made_up")
def test_a_library_is_instrumented_after_its_import_and_not_before() -> None:
    recorder = Recorder()
    finders = list(sys.meta_path)
    instrumented = started(recorder)
    assert recorder.seen == []
    assert MODULE not in sys.modules
    module = imported()
    assert recorder.seen == ["with True"]
    assert type(module.__loader__) is type(json_loader())
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    instrumented.stop()
    assert recorder.seen == ["with True", "undone"]
    assert sys.meta_path == finders


def json_loader() -> object:
    import json

    return json.__loader__


@pytest.mark.usefixtures("made_up")
def test_one_that_is_imported_already_is_instrumented_at_once() -> None:
    imported()
    recorder = Recorder()
    started(recorder).stop()
    assert recorder.seen == ["with True", "undone"]


@pytest.mark.usefixtures("made_up")
def test_one_that_is_imported_after_the_end_is_left_alone() -> None:
    recorder = Recorder()
    started(recorder).stop()
    imported()
    assert recorder.seen == []


@pytest.mark.usefixtures("made_up")
def test_an_instrumentation_that_fails_does_not_fail_the_import(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(RuntimeError("ours"))
    instrumented = started(recorder)
    assert imported().complete
    instrumented.stop()
    assert recorder.seen == ["with True"]
    assert "library is not instrumented" in str(caplog.records[0].msg)


def test_an_import_that_fails_fails_as_ever(made_up: Path) -> None:
    made_up.write_text("raise KeyError('theirs')\n")
    recorder = Recorder()
    instrumented = started(recorder)
    with pytest.raises(KeyError, match="theirs"):
        imported()
    instrumented.stop()
    assert recorder.seen == []


@pytest.mark.usefixtures("made_up")
def test_a_missing_package_is_told_with_its_cure(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> libraries.Instrumentor:
        raise LibraryMissing("pip install some-package")

    caplog.set_level(logging.INFO, "otelperf")
    instrumented = Instrumented([Library(MODULE, MODULE, load, "")], None, None)
    instrumented.start()
    imported()
    instrumented.stop()
    (record,) = caplog.records
    assert (record.levelno, str(record.msg)) == (
        logging.INFO,
        f'library is not instrumented library={MODULE} cure="pip install some-package"',
    )


@pytest.mark.usefixtures("made_up")
def test_one_that_the_program_has_instrumented_itself_is_left_to_it() -> None:
    recorder = Recorder()
    recorder.is_instrumented_by_opentelemetry = True  # type: ignore[attr-defined] # as OpenTelemetry's instrumentors say it
    instrumented = started(recorder)
    imported()
    instrumented.stop()
    assert recorder.seen == []


def names(value: str, **environ: str) -> set[str]:
    return {library.name for library in libraries.chosen(config.load({"instrument.libraries": value}), environ)}


def test_libraries_are_chosen_by_name_or_all_or_none() -> None:
    every = {library.name for library in libraries.LIBRARIES}
    assert names("all") == every
    assert names("none") == set()
    assert names("httpx") == {"httpx"}
    assert names("all", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="httpx, other") == every - {"httpx"}
    assert names("all", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*") == set()
    with pytest.raises(ConfigError, match=r"'httpx,nix'.*expected all, none, or some of"):
        names("httpx,nix")


def test_the_page_is_made_from_the_table() -> None:
    page = generated_docs.INSTRUMENT_PAGE.read_text()
    assert generated_docs.instrument_page(page) == page, "run `make docs`"


def test_names_are_unique_and_so_are_modules() -> None:
    assert len({library.name for library in libraries.LIBRARIES}) == len(libraries.LIBRARIES)
    assert len({library.module for library in libraries.LIBRARIES}) == len(libraries.LIBRARIES)


HTTPX = """
import sys
import otelperf
with otelperf.instrument(libraries=sys.argv[2]):
    before = "httpx" in sys.modules
    import httpx
    for _ in range(3):
        httpx.post(sys.argv[1], content=b"")
httpx.post(sys.argv[1], content=b"")
print(before)
"""


@pytest.mark.parametrize(("chosen", "expected"), [("all", 3), ("none", 0)])
def test_httpx_is_measured_by_opentelemetrys_own_instrumentation_under_the_stable_names(
    chosen: str, expected: int
) -> None:
    pytest.importorskip("opentelemetry.instrumentation.httpx")
    with Receiver() as receiver:
        done = subprocess.run(
            [sys.executable, "-c", HTTPX, f"{receiver.url}/hello", chosen],
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_SERVICE_NAME": "chat"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
        assert sum(receiver.last("http.client.request.duration").values()) == expected
        points = [point for point in receiver.points("http.client.request.duration") if not point.gone]
        assert {point.attributes["http.response.status_code"] for point in points} == ({200} if expected else set())
        assert {span.name for span in receiver.spans()} == ({"POST"} if expected else set())


ORDER = """
import sys
from otelperf import libraries
def everything():
    import anthropic, fastapi, flask, httpx, httpx2, openai, requests, starlette.applications
for _ in ("imported after the start", "imported before"):
    instrumented = libraries.Instrumented(libraries.LIBRARIES, None, None)
    instrumented.start()
    everything()
    print(*sorted(library.name for library, _ in instrumented._done))
    instrumented.stop()
"""


def test_each_library_is_instrumented_whenever_it_is_imported() -> None:
    for name in ("anthropic", "fastapi", "flask", "httpx2", "openai", "requests"):
        pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ORDER],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    everything = "anthropic fastapi flask httpx httpx2 openai requests starlette"
    assert (done.stderr, done.stdout.splitlines()) == ("", [everything] * 2)

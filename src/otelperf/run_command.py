"""``otelperf run -- PROGRAM``: the program itself takes this process's place, with a hook in the way of every Python it starts.

The hook is a ``sitecustomize`` in a folder of its own in front of PYTHONPATH (otelperf/startup): Python imports it before the
program, and it calls ``otelperf.instrument()``. Exit code and signals are the program's own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from otelperf import config, libraries
from otelperf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

STARTUP = Path(__file__).parent / "startup"

# As a shell has them.
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127


def run(given: Mapping[str, str], file: str | None, program: Sequence[str]) -> int:
    """Become *program*; return only where it cannot be started. Settings are checked here, where their faults can be shown."""
    program = program[1:] if program[:1] == ["--"] else program
    if not program:
        raise ConfigError("no program is given: otelperf run [FLAG ...] -- python app.py")
    settings = config.load(given, os.environ, file)
    libraries.chosen(settings)
    environ = dict(os.environ)
    prepare(environ, given, file)
    try:
        os.execvpe(program[0], list(program), environ)  # noqa: S606 # it is what the command is for
    except OSError as error:
        print(f"otelperf: {program[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE


def prepare(environ: MutableMapping[str, str], given: Mapping[str, str], file: str | None) -> None:
    """Put the hook, and what it is to be told, into the *environ* of the program and of all that it starts."""
    environ[config.RUN_VARIABLE] = json.dumps(dict(given))
    if file is not None:
        environ[config.FILE_VARIABLE] = str(Path(file).absolute())
    before = environ.get("PYTHONPATH")
    environ["PYTHONPATH"] = os.pathsep.join([str(STARTUP), *([before] if before else [])])

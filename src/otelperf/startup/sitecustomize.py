"""Imported by every Python that ``otelperf run`` starts, before the program: begins to measure it.

It takes its own folder out of the way, so that the program finds the ``sitecustomize`` that it would have found without us.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 # pathlib would be paid for by every process


def _step_aside() -> None:
    """Import the other ``sitecustomize``, if there is one, under its own name."""
    sys.path[:] = [each for each in sys.path if os.path.abspath(each or ".") != _HERE]  # noqa: PTH100 # as above
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # type: ignore[import-not-found] # noqa: F401 # what counts is that it is done
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        if ours is not None:
            sys.modules["sitecustomize"] = ours


def _begin() -> None:
    try:
        from otelperf.inprocess import begin
    except Exception as error:  # noqa: BLE001 # the program must run without us
        told = f"otelperf: {sys.executable} is not measured: {type(error).__name__}: {error}"
        print(told, file=sys.stderr)  # noqa: T201 # there is no log yet
        return
    begin()


if os.environ.get("OTELPERF_RUN"):
    _begin()
_step_aside()

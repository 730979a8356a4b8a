"""Functions of a library put into others, and taken out again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from otelperf.calls import Call, current_call
from otelperf.logs import Log

_log = Log("otelperf.instrumentations")


class Wrapped:
    """The functions that one library has had wrapped; true while there are any."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Any]] = []

    def wrap(self, owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace the method *name* of the class *owner* by what *wrapper* makes of it; not where *owner* has none of its own."""
        original = vars(owner).get(name)
        if original is not None:
            self._originals.append((owner, name, original))
            setattr(owner, name, functools.wraps(original)(wrapper(original)))

    def __bool__(self) -> bool:
        return bool(self._originals)

    def undo(self) -> None:
        """Put the originals back."""
        while self._originals:
            setattr(*self._originals.pop())


def inside(provider: str) -> bool:
    """Say whether a call of *provider* is current: then the library calls itself, and the outer call is the one to count."""
    call = current_call()
    return call is not None and call.what.kind.attributes.get("gen_ai.provider.name") == provider


def model_name(name: object) -> str | None:
    """Return the *name* of a model; one that was loaded from a folder of this machine is known by the folder's own name."""
    if not isinstance(name, str) or not name:
        return None
    path = PurePath(name)
    return path.name if path.is_absolute() else name


def told(call: Call, tell: Callable[[], object]) -> None:
    """Run *tell*, which reads the library's own objects for *call*: in another version they may look otherwise."""
    try:
        tell()
    except Exception as error:  # noqa: BLE001 # the application's call must not fail for that
        _log.trouble(
            "call is not fully read", by=("call",), call=call.what.name, problem=f"{type(error).__name__}: {error}"
        )

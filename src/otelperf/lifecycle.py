"""What happens to a process while it is measured: it ends, it forks, gevent replaces its threads.

No handler for signals is installed, and nothing that is hooked can be taken out again: so each hook is made once, and asks
for whoever listens then.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
from contextlib import suppress
from typing import Any, Protocol

from otelperf.libraries import when_imported


class Listener(Protocol):
    """Whom to tell. Nothing of it raises."""

    def end(self) -> None:
        """The process ends."""

    def in_child(self) -> None:
        """The process is a child that has just been forked: it has one thread, and its parent's locks."""

    def will_be_patched(self) -> None:
        """The threads that there are, and locks that they wait for, will not work any more."""

    def was_patched(self) -> None:
        """Threads are greenlets now."""


class Lifecycle:
    """Tells *listener*, from the first ``watch`` on."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._watching = False
        self._fork_hook: object = None

    def watch(self) -> None:
        """Begin to tell; again in a forked child."""
        if not self._watching:
            self._watching = True
            atexit.register(self._listener.end)
            self._watch_forks()
            when_imported("gevent.events", self._watch_gevent)
            when_imported("uvicorn.server", self._watch_uvicorn)
        self._watch_multiprocessing()

    def _watch_forks(self) -> None:
        """Be told of forks, after whoever has asked for it by now. Earlier hooks of ours stay, and do nothing."""
        hook = self._fork_hook = object()

        def forked() -> None:
            if self._fork_hook is hook:
                self._listener.in_child()
                self._watch_multiprocessing()

        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=forked)

    def _watch_multiprocessing(self) -> None:
        """Its children leave by ``os._exit``, which no atexit handler sees."""
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None:
            with suppress(Exception):
                end = self._listener.end
                util.register_after_fork(self, lambda _: util.Finalize(None, end, exitpriority=-100))

    def _watch_gevent(self) -> None:
        with suppress(Exception):
            sys.modules["gevent.events"].subscribers.append(self._on_gevent)

    def _on_gevent(self, event: object) -> None:
        kind = type(event).__name__
        if kind == "GeventWillPatchAllEvent":
            self._listener.will_be_patched()
        elif kind == "GeventDidPatchAllEvent":
            self._listener.was_patched()
            self._watch_forks()  # gevent counts threads after a fork, and must not find ours

    def _watch_uvicorn(self) -> None:
        """It takes a signal, shuts down, and then dies of that signal, which no atexit handler sees."""
        with suppress(Exception):
            server: Any = sys.modules["uvicorn.server"].Server
            shut_down, end = server.shutdown, self._listener.end

            @functools.wraps(shut_down)
            async def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
                try:
                    return await shut_down(self, *args, **kwargs)
                finally:
                    if getattr(self, "_captured_signals", None):
                        end()

            server.shutdown = shutdown

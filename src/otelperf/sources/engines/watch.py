"""What one server's pages say only together, one after the other: its state, its start, its restarts, its last words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import isfinite
from typing import Any, Literal, Protocol

from otelperf.readings import Attributes, Buckets, Reading
from otelperf.sources.engines.engine import ACTIVE, MODEL, REQUEST_STATE, REQUESTS, TOKEN_TYPE, TOKENS, Engine
from otelperf.sources.engines.exposition import Lines
from otelperf.sources.engines.startup import Startup
from otelperf.sources.engines.straggling import Load, Straggling
from otelperf.sources.engines.stuck import Name, Steps, Stuck

Silence = Literal["loading", "unresponsive", "error", "down"]

_ENGINES = 256  # told apart at most
_REASONS = 32  # ways to end that are told apart at most
_CHANGES = 8  # more than there are
_STATE = "otelperf.server.state"
_STATES = ("ready", "loading", "unresponsive", "error", "down")
_ENGINE_STATE = "otelperf.server.engine.state"
_ENGINE_STATES = ("ok", "straggling", "stuck")
_STARTUP = "otelperf.server.startup.duration"
_PHASE = "otelperf.server.startup.phase"
_SERVES = frozenset({ACTIVE, TOKENS, REQUESTS})  # whose model is what the server was started with
_LONGEST = 400  # characters of models' names in the log


class Process(Protocol):
    """A server's process in sight: sources/server_process.py has it."""

    pid: int
    arguments: int | None
    started: int  # Unix ns

    def ended(self) -> str | None:
        """Say how it ended, None while it lives."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True, slots=True)
class Signs:
    """What a server's pages tell besides readings.

    *steps*, of each engine, change with each step of work; *counters* fall only when the process is another; *started* is when
    it started (Unix ns), if it says so; *model* is what it serves, where no reading says it.
    """

    engine: str
    steps: Mapping[Name, Steps] = field(default_factory=dict)
    counters: Mapping[Hashable, float] = field(default_factory=dict)
    started: int | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class _Life:
    """One process, as far as it is known."""

    engine: str = ""
    models: frozenset[str] = frozenset()
    arguments: int | None = None
    started: int | None = None
    counters: Mapping[Hashable, float] = field(default_factory=dict)

    def after(self, earlier: _Life) -> _Life:
        """What it does not tell is as *earlier*."""
        return _Life(
            self.engine or earlier.engine,
            self.models or earlier.models,
            earlier.arguments if self.arguments is None else self.arguments,
            self.started or earlier.started,
            self.counters or earlier.counters,
        )

    def is_another(self, later: _Life, *, alive: bool) -> bool | None:
        """Say whether *later* is another process by what they told, None if they did not; *alive*: this one is still there."""
        if self.engine and self.engine != later.engine:
            return True
        if self.started is not None and later.started is not None:
            return self.started != later.started
        if alive:
            return False
        fell = any(later.counters[name] < value for name, value in self.counters.items() if name in later.counters)
        return True if fell else None

    def changed(self, later: _Life) -> str:
        """Say in a word what is different in *later*."""
        if self.engine and later.engine and self.engine != later.engine:
            return "engine"
        if self.models and later.models - self.models:
            return "model"
        if self.arguments is None or later.arguments is None:
            return "unknown"
        return "none" if self.arguments == later.arguments else "arguments"


class _Counts:
    """A counter by one attribute. A value is shown before it counts: a series that begins with 1 has no increase."""

    def __init__(self, metric: str, attribute: str, most: int) -> None:
        self._metric, self._attribute, self._most = metric, attribute, most
        self._counts: dict[str, int] = {}
        self._before: dict[str, int] = {}  # what a series begins with
        self._shown: set[str] = set()

    def begin_series(self) -> None:
        """Go on under another identity: there, too, what counts next must be seen to grow."""
        self._before, self._shown = dict(self._counts), set()

    def expect(self, *values: str) -> None:
        for value in values:
            self._counts.setdefault(value, 0)

    def add(self, value: str) -> None:
        value = value if value in self._counts or len(self._counts) < self._most else "other"
        self._counts[value] = self._counts.get(value, 0) + 1

    def readings(self, since: int) -> list[Reading]:
        found = [
            Reading(
                self._metric,
                count if value in self._shown else self._before.get(value, 0),
                _attribute(self._attribute, value),
                since,
            )
            for value, count in self._counts.items()
        ]
        self._shown |= self._counts.keys()
        return found


class Watch:
    """Watches the server at *url*.

    An engine is stuck after *stuck_after* seconds. *find*, if any, looks for the server's process, once for each start of it.
    *local*: a refused connection means that no process is there. *tell* takes an event and its fields for the log. *startup*
    has been looked at by whoever found the server.
    """

    def __init__(
        self,
        url: str,
        *,
        stuck_after: float,
        find: Callable[[], Process | None] | None = None,
        local: bool = True,
        tell: Callable[[str, dict[str, Any]], None] = lambda _event, _fields: None,
        startup: Startup | None = None,
    ) -> None:
        self._url = url
        self._find, self._local, self._tell = find, local, tell
        self._stuck, self._straggling = Stuck(stuck_after), Straggling()
        self._startup = startup or Startup()
        self._since = 0
        self._judged = False  # whether it can be said that it is stuck
        self._engines: dict[Name, str] = {}  # their states
        self.process: Process | None = None
        self._sought = False
        self._refused = False  # since it answered last
        self._gone = False  # the process that answered last is not there any more
        self._another = False  # there is another process, and it is not counted yet
        self._earlier = self._life = _Life()
        self._lived = False
        self._restarts = _Counts("otelperf.server.restarts", "otelperf.server.restart.changed", _CHANGES)
        self._exits = _Counts("otelperf.server.exits", "otelperf.server.exit.reason", _REASONS)

    def answered(self, now: int, readings: Sequence[Reading], signs: Signs) -> list[Reading]:
        """Return what is to be said besides *readings*, which the server gave at *now* (Unix ns)."""
        life = _Life(signs.engine, _models(readings, signs), None, signs.started, signs.counters)
        self._follow(now)
        self._look(now, "ready", another=self._life.is_another(life, alive=self.process is not None))
        self._life = life.after(self._life)
        self._count_restart()
        self._judge(now, readings, signs)
        started = self.process.started if self.process and signs.started is None else signs.started
        phases = self._startup.phases(started)
        told = self._engines.items() if len(self._engines) > 1 else ()
        return [
            *self._said("stuck" if "stuck" in self._engines.values() else "ready"),
            *(
                Reading(_ENGINE_STATE, int(state == each), _engine_attributes(name, each))
                for name, state in told
                for each in _ENGINE_STATES
            ),
            *(Reading(_STARTUP, seconds, _attribute(_PHASE, phase)) for phase, seconds in phases.items()),
        ]

    def silent(self, now: int, state: Silence) -> list[Reading]:
        """Return what is to be said of a server that at *now* (Unix ns) gave nothing of its own."""
        self._follow(now)
        self._look(now, state)
        if state == "down":
            self._stuck.forget()
            self._straggling.forget()
            self._engines = {}
        else:
            self._stuck.interrupted()
        return self._said(state)

    def close(self) -> None:
        """Let go of the server's process."""
        if self.process:
            self.process.close()
            self.process = None

    # -- lives

    def _follow(self, now: int) -> None:
        """See whether the process has ended."""
        self._since = self._since or now
        if self.process and (reason := self.process.ended()):
            self._exits.add(reason)
            self._tell("server ended", {"url": self._url, "reason": reason, "pid": self.process.pid})
            self.close()
            self._gone, self._sought = True, False

    def _look(self, now: int, state: str, *, another: bool | None = None) -> None:
        """See whether there is another process now."""
        if state == "down":
            self._count_restart()  # it did not live to be ready
            self._refused, self._sought = True, False
            self._gone = self._gone or (self._local and self.process is None)  # who refuses is not there
        elif state in {"loading", "ready"}:
            self._accepted(another=another)
        self._startup.look(now, state)

    def _accepted(self, *, another: bool | None) -> None:
        if self._lived and (self._gone if another is None else another):
            self._another, self._sought = True, False
            self._earlier, self._life = self._life.after(self._earlier), _Life()
            if not self._refused:
                self._startup = Startup()  # nobody saw its start
        self._lived, self._refused, self._gone = True, False, False
        if not self._sought and self.process is None:
            self._sought, self.process = True, self._find() if self._find else None
        if self.process:
            self._life = replace(self._life, arguments=self.process.arguments)
        self._restarts.expect("model", *(("arguments", "none") if self.process else ("unknown",)))

    def _count_restart(self) -> None:
        if not self._another:
            return
        self._another = False
        changed = self._earlier.changed(self._life)
        if changed == "engine":  # its service.name is another
            self._restarts.begin_series()
            self._exits.begin_series()
        self._restarts.add(changed)
        models = {"model": _words(self._life.models), "model_before": _words(self._earlier.models)}
        self._tell("server restarted", {"url": self._url, "changed": changed, **models})
        self._stuck.forget()
        self._straggling.forget()
        self._engines = {}
        self._judged = self._judged and changed != "engine"

    # -- engines

    def _judge(self, now: int, readings: Sequence[Reading], signs: Signs) -> None:
        """Say of each engine how it is; where it cannot be told, because a page did not come, it stays as it was."""
        loads = _loads(readings, signs.steps)
        if not loads:
            self._stuck.interrupted()
            return
        self._judged = True
        stuck = self._stuck.judge(now, {name: load.running for name, load in loads.items()}, signs.steps)
        peers = loads if len(_models(readings, signs)) <= 1 else {}  # engines of different models are none
        straggling = self._straggling.judge(now, peers)
        before, self._engines = self._engines, {}
        for name, load in loads.items():
            state = "stuck" if stuck[name] else "straggling" if straggling.get(name) else "ok"
            self._engines[name] = state
            if state != before.get(name, "ok"):
                engine = " ".join(value for _, value in name)
                work = {"running": load.running, "waiting": load.waiting}
                self._tell(f"engine is {state}", {"url": self._url, "engine": engine, **work})

    def _said(self, state: str) -> list[Reading]:
        states = (*_STATES, "stuck") if self._judged else _STATES
        return [
            *(Reading(_STATE, int(state == each), _attribute(_STATE, each)) for each in states),
            *self._restarts.readings(self._since),
            *self._exits.readings(self._since),
        ]


def _models(readings: Sequence[Reading], signs: Signs) -> frozenset[str]:
    named = {str(r.attributes[MODEL]) for r in readings if r.name in _SERVES and MODEL in r.attributes}
    return frozenset({signs.model} if signs.model else named)


def steps_of(engine: Engine, lines: Lines) -> dict[Name, Steps]:
    """Return each engine's steps. Of an odd number, or one that a page does not have, there is None."""
    labels = {label: attribute for label, attribute in engine.labels.items() if attribute != MODEL}
    found: dict[Name, list[float | None]] = {}
    for at, series in enumerate(engine.steps):
        for place, value in lines.get(series, ()):
            name = tuple(
                sorted((labels[label], text) for label, text in place.labels.items() if label in labels and text)
            )
            steps = found.setdefault(name, [None] * len(engine.steps))
            if isfinite(value):
                steps[at] = (steps[at] or 0.0) + value
    return {name: tuple(steps) for name, steps in found.items()}


def counters_of(engine: Engine, lines: Lines) -> dict[Hashable, float]:
    """Return each line of the counters: of a sum, one that is there no more would look like a fall.

    By a hash, because labels may be long, and are kept until the next reading.
    """
    return {
        hash((series, *sorted(place.labels.items()))): value
        for series in engine.counters
        for place, value in lines.get(series, ())
        if isfinite(value)
    }


def _loads(readings: Sequence[Reading], steps: Mapping[Name, Steps]) -> dict[Name, Load]:
    """Return what each engine has to do, of those that tell their steps and their requests."""
    sums: dict[Name, dict[str, float]] = {}
    for reading in readings:
        if reading.name in {ACTIVE, TOKENS} and not isinstance(reading.value, Buckets) and isfinite(reading.value):
            rest = {name: str(value) for name, value in reading.attributes.items() if name != MODEL}
            kind = rest.pop(REQUEST_STATE, "") or rest.pop(TOKEN_TYPE, "")
            each = sums.setdefault(tuple(sorted(rest.items())), {})
            each[kind] = each.get(kind, 0.0) + reading.value
    told = [(name, each) for name, each in sums.items() if name in steps and "running" in each]
    return {
        name: Load(each["running"], each.get("waiting", 0.0), each.get("input", 0.0), each.get("output", 0.0))
        for name, each in told[:_ENGINES]
    }


def _words(models: frozenset[str]) -> str:
    return ", ".join(sorted(models))[:_LONGEST]


@lru_cache(maxsize=256)
def _attribute(name: str, value: str) -> Attributes:
    return {name: value}


@lru_cache(maxsize=len(_ENGINE_STATES) * _ENGINES)
def _engine_attributes(name: Name, state: str) -> Attributes:
    return {**dict(name), _ENGINE_STATE: state}

"""The source that reads an inference server by its map and never harms it: one request at a time, limits on all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from otelperf.connection import Answer, Connection, HttpError, Unreachable, without_login
from otelperf.errors import SourceFailed, SourceFlawed
from otelperf.readings import Attribute, Attributes, Reading
from otelperf.sources.engines.engine import MODEL, WORKER_STATE, Engine, Facts, JsonPage, Moment
from otelperf.sources.engines.exposition import Lines, Reader
from otelperf.sources.engines.mapping import Mapper
from otelperf.sources.engines.recognise import recognise

_FACTS_EVERY = 60_000_000_000  # ns; a model can be swapped by a restart that no scrape saw
_UP = "otelperf.server.up"
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "otelperf"}
_OK = 200
UNAVAILABLE = 503
_REMEMBERED = 10_000  # attribute sets
_FAR = 1e10  # s since 1970: no process starts later, and OTLP's nanoseconds end soon after


class Server:
    """The server at *url*. *timeout* (s) bounds each of its pages, *max_page* (bytes) their size.

    With *engines* it is whichever of them its pages look like, and looked at anew when they no longer do; *engine* is then what
    it is known to be already. Its entity is the URL until it is known, and changes when another server takes its place.
    """

    blocking = True

    def __init__(
        self,
        url: str,
        engine: Engine | None,
        *,
        engines: Sequence[Engine] = (),
        timeout: float = 2.0,
        max_page: int = 4 * 2**20,
    ) -> None:
        self.url, login = without_login(url)
        self._engines = engines
        self.name = f"{engine.name} {self.url}" if engine and not engines else f"server {self.url}"
        self._headers = {**HEADERS, **login}
        self.up = False  # as of the last whole read: read from other threads
        self._broken = False
        self._connection = Connection(self.url)
        self._base = self._connection.path.rstrip("/")
        self._timeout = timeout
        self._max_page = max_page
        self._doubted = False
        self._become(engine)

    def _become(self, engine: Engine | None) -> None:
        """Take the server for *engine*, of which nothing is known yet."""
        self.engine = engine
        self.entity = f"{engine.name} {self.url}" if engine else self.url
        self._before: Moment | None = None
        self._facts = Facts()
        self._facts_time = 0
        self._attributes: dict[tuple[int, str], tuple[Attributes, Attributes]] = {}
        if engine is not None:
            self._reader = Reader(engine.wanted())
            self._mapper = Mapper(engine)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def read(self, now: int) -> list[Reading]:
        """Read every page of the server.

        A server that refuses the connection or loads is down: nothing but that is read. One that hangs or breaks off may be
        busy: it is down, and what was read before stays at its old time, to end only if the silence lasts.
        """
        engine = self._recognised() if self.engine is None or self._doubted else self.engine
        troubles: list[str] = []
        self._broken = False
        lines = self._lines(engine, troubles)
        moment = _moment(now, lines)
        start = _started(engine, lines)
        if self._restarted(engine, moment):
            self._facts_time = 0
        self._learn(engine, now, troubles)
        readings = self._metrics(engine, lines, moment, start, troubles)
        for page in engine.pages:
            if not (page.instead and readings):
                readings += self._page(engine, page, troubles)
        if not readings:
            self._doubted = bool(self._engines)  # another server may have taken its place
            self._down("; ".join(troubles) or f"{self.url} tells nothing that {engine.name} would")
        readings += engine.facts_readings(self._facts)
        self.up = True
        readings = [Reading(_UP, 1), *(self._with_model(reading) for reading in _distinct(readings, troubles))]
        if troubles:
            # What a page that did not come said before may still be true; what an odd page no longer says is not.
            raise (SourceFailed if self._broken else SourceFlawed)("; ".join(troubles), readings)
        return readings

    def _recognised(self) -> Engine:
        try:
            found = recognise(self._get, self._engines)
        except Unreachable as error:
            self._down(str(error))
        except HttpError as error:
            self.up = False
            raise SourceFailed(str(error), [Reading(_UP, 0)]) from error
        if found.engine is None:
            self._down(f"{self.url} is not recognised as an inference server: {found.told}")
        self._doubted = False
        if found.engine is not self.engine:
            self._become(found.engine)
        return found.engine

    def _down(self, message: str) -> NoReturn:
        self.up = False
        self._before, self._facts, self._facts_time = None, Facts(), 0  # its successor may be another
        if self.engine:
            self._mapper.forget()
        raise SourceFlawed(message, [Reading(_UP, 0)])

    def _get(self, path: str) -> Answer:
        answer = self._connection.request(
            "GET", self._base + path, headers=self._headers, timeout=self._timeout, limit=self._max_page
        )
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            msg = f"{self.url}{path} answered compressed though asked not to; not unpacked"
            raise HttpError(msg)
        return answer

    def _lines(self, engine: Engine, troubles: list[str]) -> Lines:
        """Read the metrics page, the wanted lines by series."""
        if not engine.metrics_path:
            return {}
        try:
            answer = self._get(engine.metrics_path)
        except Unreachable as error:
            self._down(str(error))
        except HttpError as error:
            self.up = False
            self._facts_time = 0  # it may be about to be replaced
            raise SourceFailed(str(error), [Reading(_UP, 0)]) from error
        if answer.status == UNAVAILABLE:
            self._down(f"{self.url} is not ready: HTTP 503 {_start(answer)}")
        where = f"{self.url}{engine.metrics_path}"
        if answer.status != _OK:
            troubles.append(
                f"{where} answered HTTP {answer.status}: {engine.off.get(answer.status, 'is it the page?')}"
            )
            return {}
        page = self._reader.read(answer.body.decode("utf-8", "replace"))
        if page.malformed:
            troubles.append(f"{page.malformed} malformed lines, the first: {page.first_malformed!r}")
        if not page.lines or not _is_of(engine, answer.body):
            troubles.append(f"{where} has no series of {engine.name}; it begins {_start(answer)!r}")
            return {}
        return page.lines

    def _restarted(self, engine: Engine, now: Moment) -> bool:
        """Say whether a counter fell or the process is another: it came back between two scrapes, perhaps with another model."""
        before = self._before.values if self._before else {}
        if engine.started and before.get(engine.started) != now.values.get(engine.started):
            return True
        return any(now.values[name] < before[name] for name in engine.counters if name in before and name in now.values)

    def _metrics(
        self, engine: Engine, lines: Lines, moment: Moment, start: int | None, troubles: list[str]
    ) -> list[Reading]:
        if not lines:
            return []
        readings = self._mapper.readings(moment.time, lines, start, troubles)
        readings += engine.derive(self._before, moment, self._facts)
        self._before = moment
        return readings

    def _learn(self, engine: Engine, now: int, troubles: list[str]) -> None:
        if not engine.facts_path or (self._facts_time and now - self._facts_time < _FACTS_EVERY):
            return

        def learn(content: Any) -> list[Reading]:
            self._facts = engine.facts(content)
            self._facts_time = now
            return []

        before = self._facts_time
        self._json_readings(engine, engine.facts_path, learn, troubles, engine.facts_quiet)
        if self._facts_time == before and engine.facts_quiet:
            self._facts_time = now  # asked often enough

    def _page(self, engine: Engine, page: JsonPage, troubles: list[str]) -> list[Reading]:
        return self._json_readings(
            engine, page.path, lambda content: page.readings(content, self._facts), troubles, page.quiet
        )

    def _json_readings(
        self,
        engine: Engine,
        path: str,
        read: Callable[[Any], list[Reading]],
        troubles: list[str],
        quiet: Sequence[int] = (),
    ) -> list[Reading]:
        """Read a JSON page; one that is missing or odd is told and does not lose the others."""
        try:
            answer = self._get(path)
            if answer.status != _OK:
                if answer.status not in quiet:
                    troubles.append(f"{self.url}{path} answered HTTP {answer.status}")
                return []
            found = read(json.loads(answer.body))
        except HttpError as error:
            self._broken = True
            troubles.append(str(error))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            troubles.append(f"{self.url}{path} is not what {engine.name} answers: {type(error).__name__} {error}")
        else:
            return found
        return []

    def _with_model(self, reading: Reading) -> Reading:
        """Add the model; a worker's state belongs to the worker, whatever it serves."""
        model, attributes = self._facts.model, reading.attributes
        if model is None or WORKER_STATE in attributes or MODEL in attributes:
            return reading
        key = (id(attributes), model)
        known = self._attributes.get(key)
        if known is None or known[0] is not attributes:
            if len(self._attributes) > _REMEMBERED:
                self._attributes.clear()
            known = self._attributes[key] = (attributes, {**attributes, MODEL: model})
        return reading._replace(attributes=known[1])


def _is_of(engine: Engine, page: bytes) -> bool:
    """Say whether the metrics page has the engine's fingerprint: series of the process and of HTTP are in many servers' pages."""
    marks = [mark.pattern for mark in engine.prints if mark.path == engine.metrics_path]
    return not marks or any(mark.search(page) for mark in marks)


def _moment(now: int, lines: Lines) -> Moment:
    """Sum each series over its labels: engines of one server count together."""
    return Moment(
        now, {name: sum(value for _, value in found) for name, found in lines.items() if not name.endswith("_bucket")}
    )


def _started(engine: Engine, lines: Lines) -> int | None:
    """Return when the server's process started, if it says so (Unix ns)."""
    found = lines.get(engine.started or "")
    return int(found[0][1] * 1e9) if found and 0 < found[0][1] < _FAR else None


def _distinct(readings: list[Reading], troubles: list[str]) -> list[Reading]:
    """Keep the first reading of each stream: a stream twice in one request, and Prometheus refuses all of it."""
    kept: dict[tuple[str, frozenset[tuple[str, Attribute]]], Reading] = {}
    for reading in readings:
        kept.setdefault((reading.name, frozenset(reading.attributes.items())), reading)
    if len(kept) < len(readings):
        troubles.append(f"{len(readings) - len(kept)} series that are not told apart: the first of each is kept")
    return list(kept.values())


def _start(answer: Answer) -> str:
    return answer.body[:60].decode("utf-8", "replace").strip()

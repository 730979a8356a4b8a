"""The source that reads an inference server by its map and never harms it: one request at a time, limits on all."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from otelperf.connection import Answer, Connection, HttpError, Timeout, Unreachable, without_login
from otelperf.errors import SourceError, SourceFailed, SourceFlawed
from otelperf.readings import Attribute, Attributes, Native, Reading
from otelperf.sources.engines.bearer import Bearer
from otelperf.sources.engines.engine import MODEL, WORKER_STATE, Engine, Facts, JsonPage, Moment
from otelperf.sources.engines.exposition import Families, Lines, Reader
from otelperf.sources.engines.mapping import Mapper
from otelperf.sources.engines.native import SCRAPED, Chosen, Fits, Natives
from otelperf.sources.engines.recognise import recognise
from otelperf.sources.engines.startup import Startup
from otelperf.sources.engines.watch import Signs, Silence, Watch, counters_of, steps_of

if TYPE_CHECKING:
    import ssl

_FACTS_EVERY = 60_000_000_000  # ns; a model can be swapped by a restart that no scrape saw
_UP = "otelperf.server.up"
_SCRAPED_MEANS = Native("gauge", "1 while the server answers, else 0.")
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "otelperf"}
_OK = 200
UNAVAILABLE = 503
CLOSED = (401, 403)
_LOADING = "wait until the server has loaded (its log says how far it is); behind a proxy, see whether it runs at all"
_STRANGER = "set server.url to the port of an inference server, or give this one a map (server.maps, docs/servers.md)"
_NO_CURES: Mapping[int, str] = {}
_SAMPLE = re.compile(rb"^[^#\s]", re.MULTILINE)
_REMEMBERED = 10_000  # attribute sets
_LINES = 25_000  # that are taken of a page: some 20 MiB for a moment if all are new
_LINE = 160  # bytes: of a page that may be larger, as many as fit in it
_FAR = 1e10  # s since 1970: no process starts later, and OTLP's nanoseconds end soon after


@dataclass(slots=True)
class _Visit:
    """What one reading learns of the server, besides readings. *silence* is what it is if it says nothing of its own.

    *marked*: the metrics page is the engine's, whatever is on it; *empty*: it has no sample; *broken*: another page did not
    come, or not whole. *signs* are there once the metrics page has been read. *cures* say what to do about the troubles.
    """

    now: int
    troubles: list[str] = field(default_factory=list)
    cures: list[str] = field(default_factory=list)
    silence: Silence = "error"
    marked: bool = False
    empty: bool = False
    broken: bool = False
    signs: Signs | None = None


class Server:
    """The server at *url*. *timeout* (s) bounds each of its pages, *max_page* (bytes) their size, *share* the time they take.

    *tls* is for https; None trusts what the system trusts; *server_name* is what the certificate is for, if not the host.
    The bearer token in *token_file* is sent to *url* and nowhere else.

    With *engines* it is whichever of them its pages look like, and looked at anew when they no longer do; *engine* is then what
    it is known to be already. Its entity is the URL until it is known, and changes when another server takes its place.
    """

    blocking = True

    def __init__(  # noqa: PLR0913 # settings, all but two by keyword
        self,
        url: str,
        engine: Engine | None,
        *,
        engines: Sequence[Engine] = (),
        timeout: float = 2.0,
        max_page: int = 4 * 2**20,
        share: float = 0.02,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        token_file: str | None = None,
    ) -> None:
        self.url, login = without_login(url)
        self._engines = engines
        self.name = f"{engine.name} {self.url}" if engine and not engines else f"server {self.url}"
        self.share = share  # of the time: the sampler keeps to it
        self._headers = {**HEADERS, **login}
        self._bearer = Bearer(token_file) if token_file else None
        self.up = False  # as of the last whole read: read from other threads
        self.watch: Watch | None = None
        self.startup: Startup | None = None  # as far as whoever found it saw it
        self.fits = Fits(())
        self.unfit: deque[str] = deque()  # globs of passthrough to be told; taken by other threads
        self._visit = _Visit(0)  # the newest
        self._connection = Connection(self.url, tls, server_name)
        self._base = self._connection.path.rstrip("/")
        self._timeout = timeout
        self._max_page = max_page
        self._doubted = False  # it said nothing of the engine's: another may be there
        self._become(engine)

    def _become(self, engine: Engine | None) -> None:
        """Take the server for *engine*, of which nothing is known yet."""
        self.engine = engine
        self.entity = f"{engine.name} {self.url}" if engine else self.url
        self._before: Moment | None = None
        self._facts = Facts()
        self._facts_time = 0
        self._attributes: dict[tuple[int, str], tuple[Attributes, Attributes]] = {}
        self._streams: list[tuple[str, Attributes]] = []  # the last reading's, if no two were the same
        if engine is not None:
            wanted = Chosen(engine.native, engine.wanted()) if engine.native else engine.wanted()
            self._families = Families(wanted)
            self._most = max(_LINES, self._max_page // _LINE)
            self._reader = Reader(wanted, self._families if engine.native else None, self._most)
            self._mapper = Mapper(engine)
            self._natives = Natives(engine.native) if engine.native else None
            self.fits = Fits(engine.native)

    @property
    def cures(self) -> tuple[str, ...]:
        """What to do about what the last reading met with, as far as it is known."""
        return tuple(dict.fromkeys(self._visit.cures))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        if self.watch:
            self.watch.close()

    def read(self, now: int) -> list[Reading]:
        """Read every page of the server, and what its *watch* makes of them."""
        visit = self._visit = _Visit(now)
        try:
            readings = self._read(visit)
        except SourceError as error:
            error.readings += tuple(self._watched(visit, error.readings))
            raise
        return [*readings, *self._watched(visit, readings)]

    def _watched(self, visit: _Visit, readings: Sequence[Reading]) -> list[Reading]:
        if self.watch is None:
            return []
        if not self.up or visit.signs is None:
            return self.watch.silent(visit.now, visit.silence)
        return self.watch.answered(visit.now, readings, replace(visit.signs, model=self._facts.model))

    def _read(self, visit: _Visit) -> list[Reading]:
        """Read every page of the server.

        A server that refuses the connection or loads is down: nothing but that is read. One that hangs or breaks off may be
        busy: it is down, and what was read before stays at its old time, to end only if the silence lasts.
        """
        engine = self._recognised() if self.engine is None or self._doubted else self.engine
        troubles = visit.troubles
        lines = self._lines(engine, visit)
        moment = _moment(visit.now, lines)
        start = _started(engine, lines)
        visit.signs = _signs(engine, lines, start)
        if self._restarted(engine, moment):
            self._facts_time = 0
            self.fits.forget()
        self._learn(engine, visit)
        readings = self._metrics(engine, lines, moment, start, troubles)
        for page in engine.pages:
            if not (page.instead and readings):
                readings += self._page(engine, page, visit)
        if self._bearer and self._bearer.trouble:
            troubles.append(self._bearer.trouble)
            visit.cures.append("correct the file that server.token_file names")
        known = readings or (lines and engine.native) or visit.marked
        if not (known or (visit.empty and self._marked_elsewhere(engine))):
            self._doubted = bool(self._engines)  # another server may have taken its place
            if visit.empty or not troubles:
                troubles.insert(0, f"{self.url}{engine.metrics_path} has no series of {engine.name}")
            self._down("; ".join(troubles))
        readings += engine.facts_readings(self._facts)
        self.up = True
        if (lines or visit.marked) and not visit.empty:
            self.unfit.extend(self.fits.look(visit.now, readings))
        readings = self._distinct(readings, troubles)
        if self._facts.model is not None:
            readings = [self._with_model(reading, self._facts.model) for reading in readings]
        readings = [*self._said(1), *readings]
        if troubles:
            # What a page that did not come said before may still be true; what an odd page no longer says is not.
            raise (SourceFailed if visit.broken else SourceFlawed)("; ".join(troubles), readings)
        return readings

    def _recognised(self) -> Engine:
        try:
            found = recognise(self._get, self._engines)
        except Unreachable as error:
            self._down(str(error))
        except HttpError as error:
            self.up = False
            raise SourceFailed(str(error), self._said(0)) from error
        if found.engine is None and self._visit.silence == "loading":
            self._down(f"{self.url} answers HTTP 503, as a server does while it loads")
        if found.engine is None:
            closed = any(f"HTTP {status}" in found.told for status in CLOSED)
            if not closed:
                self._visit.cures.append(_STRANGER)
            self._down(
                f"{self.url} is not recognised as an inference server: {found.told}"
                + (f"; {self._login_cure()}" if closed else "")
            )
        self._doubted = False
        if found.engine is not self.engine:
            self._become(found.engine)
        return found.engine

    def _login_cure(self) -> str:
        if self._bearer is None:
            self._visit.cures.append(
                "set server.token_file (OTELPERF_SERVER_TOKEN_FILE) to the file of its bearer token"
            )
            return "it wants a login: set server.token_file"
        self._visit.cures.append("put the token that the server takes into the file that server.token_file names")
        return self._bearer.trouble or "it does not take the token in server.token_file"

    def _down(self, message: str) -> NoReturn:
        self.up = False
        self._before, self._facts, self._facts_time = None, Facts(), 0  # its successor may be another
        if self.engine:
            self._mapper.forget()
        self.fits.forget()
        raise SourceFlawed(message, self._said(0))

    def _said(self, up: int) -> list[Reading]:
        """Say whether it is up; by the name that a scrape gives to that as well, where the user names it."""
        native = self.engine is not None and SCRAPED in self.engine.native
        return [Reading(_UP, up), *([Reading(SCRAPED, up, native=_SCRAPED_MEANS)] if native else [])]

    def _get(self, path: str) -> Answer:
        headers = {**self._headers, **self._bearer.headers()} if self._bearer else self._headers
        try:
            answer = self._connection.request(
                "GET", self._base + path, headers=headers, timeout=self._timeout, limit=self._max_page
            )
        except HttpError as error:
            self._visit.silence = _silence(error)
            raise
        if answer.status == UNAVAILABLE:
            self._visit.silence = "loading"
            self._visit.cures.append(_LOADING)
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            msg = f"{self.url}{path} answered compressed though asked not to; not unpacked"
            raise HttpError(msg)
        return answer

    def _lines(self, engine: Engine, visit: _Visit) -> Lines:
        """Read the metrics page, the wanted lines by series."""
        if not engine.metrics_path:
            return Lines()
        try:
            answer = self._get(engine.metrics_path)
        except Unreachable as error:
            self._down(str(error))
        except HttpError as error:
            self.up = False
            self._facts_time = 0  # it may be about to be replaced
            raise SourceFailed(str(error), self._said(0)) from error
        if answer.status == UNAVAILABLE:
            self._down(f"{self.url} is not ready: HTTP 503 {_start(answer)}")
        where = f"{self.url}{engine.metrics_path}"
        if answer.status != _OK:
            visit.troubles.append(f"{where} answered HTTP {answer.status}: {self._page_cure(engine, answer.status)}")
            return Lines()
        page = self._reader.read(answer.body)
        if page.cut:
            visit.troubles.append(f"{where} has more than {self._most} lines that are wanted: the rest is not read")
        if page.malformed:
            visit.troubles.append(f"{page.malformed} malformed lines, the first: {page.first_malformed!r}")
        marks = [mark.pattern for mark in engine.prints if mark.path == engine.metrics_path]
        marked = any(mark.search(answer.body) for mark in marks)
        visit.marked = marked and not page.malformed
        visit.empty = _SAMPLE.search(answer.body) is None  # as some are before their first request
        if marked or not marks:  # series of the process and of HTTP are in many servers' pages
            return page.lines
        if not visit.empty:
            visit.troubles.append(f"{where} has no series of {engine.name}; it begins {_start(answer)!r}")
        return Lines()

    def _page_cure(self, engine: Engine, status: int) -> str:
        if status in CLOSED:
            return self._login_cure()
        if status not in engine.off:
            return "is it the page?"
        self._visit.cures.append(engine.off[status])
        return engine.off[status]

    def _marked_elsewhere(self, engine: Engine) -> bool:
        """Say whether a page that is not read otherwise has the engine's fingerprint: then it is up, and has nothing to tell."""
        read = {engine.metrics_path, *(page.path for page in engine.pages)}
        for mark in engine.prints:
            if mark.path not in read:
                with suppress(HttpError):
                    answer = self._get(mark.path)
                    if answer.status == mark.status and mark.pattern.search(answer.body):
                        return True
        return False

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
        if self._natives:
            readings += self._natives.readings(lines, self._families, start, troubles)
        self._before = moment
        return readings

    def _learn(self, engine: Engine, visit: _Visit) -> None:
        now = visit.now
        if not engine.facts_path or (self._facts_time and 0 <= now - self._facts_time < _FACTS_EVERY):
            return

        def learn(content: Any) -> list[Reading]:
            self._facts = engine.facts(content)
            self._facts_time = now
            return []

        before = self._facts_time
        self._json_readings(engine, engine.facts_path, learn, visit, engine.facts_quiet)
        if self._facts_time == before and engine.facts_quiet:
            self._facts_time = now  # asked often enough

    def _page(self, engine: Engine, page: JsonPage, visit: _Visit) -> list[Reading]:
        return self._json_readings(
            engine, page.path, lambda content: page.readings(content, self._facts), visit, page.quiet, page.off
        )

    def _json_readings(
        self,
        engine: Engine,
        path: str,
        read: Callable[[Any], list[Reading]],
        visit: _Visit,
        quiet: Sequence[int] = (),
        off: Mapping[int, str] = _NO_CURES,
    ) -> list[Reading]:
        """Read a JSON page; one that is missing or odd is told and does not lose the others."""
        try:
            answer = self._get(path)
            if answer.status != _OK:
                if answer.status not in quiet:
                    cure = off.get(answer.status)
                    visit.cures += [cure] if cure else []
                    visit.troubles.append(
                        f"{self.url}{path} answered HTTP {answer.status}" + (f": {cure}" if cure else "")
                    )
                return []
            found = read(json.loads(answer.body))
        except HttpError as error:
            visit.broken = True
            visit.troubles.append(str(error))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            visit.troubles.append(f"{self.url}{path} is not what {engine.name} answers: {type(error).__name__} {error}")
        else:
            return found
        return []

    def _distinct(self, readings: list[Reading], troubles: list[str]) -> list[Reading]:
        """Keep the first reading of each stream: a stream twice in one request, and Prometheus refuses all of it."""
        streams = [(reading.name, reading.attributes) for reading in readings]
        if streams == self._streams:  # quick, because mappings are the same objects each time
            return readings
        kept: dict[tuple[str, frozenset[tuple[str, Attribute]]], Reading] = {}
        for reading in readings:
            kept.setdefault((reading.name, frozenset(reading.attributes.items())), reading)
        if len(kept) < len(readings):
            troubles.append(f"{len(readings) - len(kept)} series that are not told apart: the first of each is kept")
        self._streams = streams if len(kept) == len(readings) else []
        return list(kept.values())

    def _with_model(self, reading: Reading, model: str) -> Reading:
        """Add the model; a worker's state belongs to the worker, whatever it serves."""
        attributes = reading.attributes
        if reading.native or WORKER_STATE in attributes or MODEL in attributes:
            return reading
        key = (id(attributes), model)
        known = self._attributes.get(key)
        if known is None or known[0] is not attributes:
            if len(self._attributes) > _REMEMBERED:
                self._attributes.clear()
            known = self._attributes[key] = (attributes, {**attributes, MODEL: model})
        return reading._replace(attributes=known[1])


def _moment(now: int, lines: Lines) -> Moment:
    """Sum each series over its labels: engines of one server count together."""
    return Moment(
        now, {name: sum(value for _, value in found) for name, found in lines.items() if not name.endswith("_bucket")}
    )


def _started(engine: Engine, lines: Lines) -> int | None:
    """Return when the server's process started, if it says so (Unix ns)."""
    found = lines.get(engine.started or "")
    return int(found[0][1] * 1e9) if found and 0 < found[0][1] < _FAR else None


def _signs(engine: Engine, lines: Lines, start: int | None) -> Signs:
    return Signs(engine.name, steps_of(engine, lines), counters_of(engine, lines), start)


def _silence(error: HttpError) -> Silence:
    return "down" if isinstance(error, Unreachable) else "unresponsive" if isinstance(error, Timeout) else "error"


def _start(answer: Answer) -> str:
    return answer.body[:60].decode("utf-8", "replace").strip()

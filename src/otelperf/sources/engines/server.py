"""The source that reads an inference server by its map and never harms it: one request at a time, limits on all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, NoReturn

from otelperf.connection import Answer, Connection, HttpError, Unreachable, without_login
from otelperf.errors import SourceFailed, SourceFlawed
from otelperf.readings import Attribute, Attributes, Buckets, Reading
from otelperf.sources.engines.engine import MODEL, WORKER_STATE, Engine, Facts, Moment, Take, whole
from otelperf.sources.engines.exposition import Sample, histograms, parse

_FACTS_EVERY = 60_000_000_000  # ns; a model can be swapped by a restart that no scrape saw
_UP = "otelperf.server.up"
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "otelperf"}
_OK = 200
_UNAVAILABLE = 503


class Server:
    """The server at *url*. *timeout* (s) bounds each of its pages, *max_page* (bytes) their size."""

    blocking = True

    def __init__(self, url: str, engine: Engine, *, timeout: float = 2.0, max_page: int = 4 * 2**20) -> None:
        self.url, login = without_login(url)
        self.name = self.entity = f"{engine.name} {self.url}"
        self.engine = engine
        self._headers = {**_HEADERS, **login}
        self.up = False  # as of the last whole read: read from other threads
        self._broken = False
        self._connection = Connection(self.url)
        self._base = self._connection.path.rstrip("/")
        self._timeout = timeout
        self._max_page = max_page
        self._wanted = engine.wanted()
        self._before: Moment | None = None
        self._facts = Facts()
        self._facts_time = 0
        self._attributes: dict[tuple[Any, ...], Attributes] = {}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def read(self, now: int) -> list[Reading]:
        """Read every page of the server.

        A server that refuses the connection or loads is down: nothing but that is read. One that hangs or breaks off may be
        busy: it is down, and what was read before stays at its old time, to end only if the silence lasts.
        """
        try:
            answer = self._get(self.engine.metrics_path)
        except Unreachable as error:
            self._down(str(error))
        except HttpError as error:
            self.up = False
            self._facts_time = 0  # it may be about to be replaced
            raise SourceFailed(str(error), [Reading(_UP, 0)]) from error
        if answer.status == _UNAVAILABLE:
            self._down(f"{self.url} is not ready: HTTP 503 {_start(answer)}")
        troubles: list[str] = []
        self._broken = False
        samples = self._samples(answer, troubles)
        moment = _moment(now, samples)
        if self._restarted(moment):
            self._facts_time = 0
        self._learn(now, troubles)
        readings = self._metrics(samples, moment)
        for page in self.engine.pages:
            readings += self._json_readings(
                page.path, lambda content, read=page.readings: read(content, self._facts), troubles
            )
        if not readings:
            self._down("; ".join(troubles) or f"{self.url} tells nothing that {self.engine.name} would")
        self.up = True
        readings = [Reading(_UP, 1), *(self._with_model(reading) for reading in _distinct(readings, troubles))]
        if troubles:
            # What a page that did not come said before may still be true; what an odd page no longer says is not.
            raise (SourceFailed if self._broken else SourceFlawed)("; ".join(troubles), readings)
        return readings

    def _down(self, message: str) -> NoReturn:
        self.up = False
        self._before, self._facts, self._facts_time = None, Facts(), 0  # its successor may be another
        raise SourceFlawed(message, [Reading(_UP, 0)])

    def _get(self, path: str) -> Answer:
        answer = self._connection.request(
            "GET", self._base + path, headers=self._headers, timeout=self._timeout, limit=self._max_page
        )
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            msg = f"{self.url}{path} answered compressed though asked not to; not unpacked"
            raise HttpError(msg)
        return answer

    def _samples(self, answer: Answer, troubles: list[str]) -> list[Sample]:
        where = f"{self.url}{self.engine.metrics_path}"
        if answer.status != _OK:
            troubles.append(
                f"{where} answered HTTP {answer.status}: {self.engine.off.get(answer.status, 'is it the page?')}"
            )
            return []
        page = parse(answer.body.decode("utf-8", "replace"), self._wanted)
        if page.malformed:
            troubles.append(f"{page.malformed} malformed lines, the first: {page.first_malformed!r}")
        if not page.samples:
            troubles.append(f"{where} has no series of {self.engine.name}; it begins {_start(answer)!r}")
        return page.samples

    def _restarted(self, now: Moment) -> bool:
        """Say whether a counter fell: the server came back between two scrapes, perhaps with another model."""
        before = self._before.values if self._before else {}
        return any(
            now.values[name] < before[name] for name in self.engine.counters if name in before and name in now.values
        )

    def _metrics(self, samples: list[Sample], moment: Moment) -> list[Reading]:
        if not samples:
            return []
        readings = [*self._taken(samples), *self.engine.derive(self._before, moment, self._facts)]
        self._before = moment
        return readings

    def _learn(self, now: int, troubles: list[str]) -> None:
        if self._facts_time and now - self._facts_time < _FACTS_EVERY:
            return

        def learn(content: Any) -> list[Reading]:
            self._facts = self.engine.facts(content)
            self._facts_time = now
            return []

        self._json_readings(self.engine.facts_path, learn, troubles)

    def _json_readings(self, path: str, read: Any, troubles: list[str]) -> list[Reading]:
        """Read a JSON page; one that is missing or odd is told and does not lose the others."""
        try:
            answer = self._get(path)
            if answer.status != _OK:
                troubles.append(f"{self.url}{path} answered HTTP {answer.status}")
                return []
            found: list[Reading] = read(json.loads(answer.body))
        except HttpError as error:
            self._broken = True
            troubles.append(str(error))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            troubles.append(f"{self.url}{path} is not what {self.engine.name} answers: {type(error).__name__} {error}")
        else:
            return found
        return []

    def _taken(self, samples: list[Sample]) -> list[Reading]:
        by_series: dict[str, list[Sample]] = {}
        for sample in samples:
            by_series.setdefault(sample.name, []).append(sample)
        started = by_series.get(self.engine.started or "", [])
        start = int(started[0].value * 1e9) if started and isfinite(started[0].value) else None
        readings = []
        for take in self.engine.takes:
            for labels, value in _values(take, by_series):
                more = {new: labels.get(old, "") for old, new in take.labels.items()}
                readings.append(Reading(take.metric, value, self._attributes_of(take.attributes, more), start))
        return readings

    def _with_model(self, reading: Reading) -> Reading:
        """Add the model; a worker's state belongs to the worker, whatever it serves."""
        model = self._facts.model
        if model is None or WORKER_STATE in reading.attributes:
            return reading
        return reading._replace(attributes=self._attributes_of(reading.attributes, {MODEL: model}))

    def _attributes_of(self, fixed: Attributes, more: Mapping[str, str]) -> Attributes:
        """Return the same mapping for the same attributes each time: that makes the gate cheap."""
        if not more:
            return fixed
        key = (*fixed.items(), *more.items())
        found = self._attributes.get(key)
        if found is None:
            if len(self._attributes) > 10_000:  # a server that invents labels must not fill our memory
                self._attributes.clear()
            found = self._attributes[key] = {**fixed, **more}
        return found


def _values(take: Take, by_series: Mapping[str, list[Sample]]) -> list[tuple[Mapping[str, str], float | Buckets]]:
    """Return what the series says, by its labels."""
    if take.histogram:
        parts = [s for part in ("_bucket", "_sum", "_count") for s in by_series.get(take.series + part, ())]
        return [(labels, buckets) for labels, buckets in histograms(parts, take.series)]
    return [(sample.labels, whole(sample.value)) for sample in by_series.get(take.series, ())]


def _moment(now: int, samples: list[Sample]) -> Moment:
    """Sum each series over its labels: engines of one server count together."""
    values: dict[str, float] = {}
    for sample in samples:
        values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return Moment(now, values)


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
